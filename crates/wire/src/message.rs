//! The payloads of the control operations. Data payloads (`Write` requests, `Read` replies) are a checksum table (see
//! [`crate::checksum`]) followed by whole blocks.

use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, OpenId, PoolId, ServerId, SessionNumber, SliceId, VolumeId, Way};

use crate::codec::{Malformed, Reader, Writer};

mod regions;

pub use regions::{
    BlockState, Clear, Cool, MapEntry, MapReply, MapRequest, MapWhich, REGIONS_PER_MESSAGE_MAX, Seed, StaleMark, VERIFY_SIZE_MAX,
    VerifyBlock, VerifyReply,
};
use regions::{read_optional_generation, write_optional_generation};

/// The longest control payload or error text, in bytes.
pub const CONTROL_PAYLOAD_MAX: usize = 64 << 10;
/// The longest pattern of a search, in bytes.
pub const PATTERN_MAX: usize = 4096;
/// The most offsets in one `Search` reply.
pub const MATCHES_PER_REPLY_MAX: usize = 4096;
/// The most extents in one `Extents` reply.
pub const EXTENTS_PER_REPLY_MAX: usize = 4096;

/// The most URLs in an `Announce`.
pub const ANNOUNCED_URLS_MAX: usize = 16;

/// A message that can be a control payload.
pub trait Message: Sized {
    /// Appends the message.
    fn write(&self, w: &mut Writer);

    /// Reads it; the caller checks that nothing is left over.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no such message.
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// The message as bytes.
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        self.write(&mut w);
        w.0
    }

    /// The message from exactly these bytes.
    ///
    /// # Errors
    /// [`Malformed`] if they are no such message, or longer.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let message = Self::read(&mut r)?;
        r.end()?;
        Ok(message)
    }
}

/// Request of `Hello`. Later versions append fields: a reader ignores none, so versions are agreed first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The lowest version the client speaks.
    pub version_min: u8,
    /// The highest.
    pub version_max: u8,
    /// Wished features (bits; none are defined yet: TLS and authentication will be).
    pub features: u64,
    /// Who connects.
    pub server: ServerId,
    /// Random, for the challenge-response of a later version.
    pub nonce: u128,
}

impl Message for Hello {
    fn write(&self, w: &mut Writer) {
        w.u8(self.version_min).u8(self.version_max).u64(self.features).u128(self.server.to_u128()).u128(self.nonce);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            version_min: r.u8()?,
            version_max: r.u8()?,
            features: r.u64()?,
            server: ServerId::from_u128(r.u128()?),
            nonce: r.u128()?,
        })
    }
}

/// Reply of `Hello`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelloReply {
    /// The version from now on.
    pub version: u8,
    /// Features in force.
    pub features: u64,
    /// Who answers: not an address, an identity (F6).
    pub server: ServerId,
    /// Random.
    pub nonce: u128,
    /// Requests that may be in flight.
    pub depth_max: u32,
    /// Bytes of one request's data at most.
    pub request_max: u32,
}

impl Message for HelloReply {
    fn write(&self, w: &mut Writer) {
        w.u8(self.version).u64(self.features).u128(self.server.to_u128()).u128(self.nonce);
        w.u32(self.depth_max).u32(self.request_max);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            version: r.u8()?,
            features: r.u64()?,
            server: ServerId::from_u128(r.u128()?),
            nonce: r.u128()?,
            depth_max: r.u32()?,
            request_max: r.u32()?,
        })
    }
}

/// Request of `Announce`: a manager that has been given another address looks for its servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announce {
    /// The pool; another pool's server refuses.
    pub pool: PoolId,
    /// Where the manager can be reached; at most [`ANNOUNCED_URLS_MAX`].
    pub urls: Vec<String>,
}

impl Message for Announce {
    fn write(&self, w: &mut Writer) {
        w.u128(self.pool.to_u128()).u8(self.urls.len().min(ANNOUNCED_URLS_MAX) as u8);
        for url in self.urls.iter().take(ANNOUNCED_URLS_MAX) {
            w.short_bytes(url.as_bytes());
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let pool = PoolId::from_u128(r.u128()?);
        let n = usize::from(r.u8()?);
        if n > ANNOUNCED_URLS_MAX {
            return Err(Malformed("it has too many URLs"));
        }
        let url = |r: &mut Reader<'_>| {
            let text = std::str::from_utf8(r.short_bytes()?).map_err(|_| Malformed("a URL is not text"))?;
            Ok(text.to_owned())
        };
        Ok(Self { pool, urls: (0..n).map(|_| url(r)).collect::<Result<_, _>>()? })
    }
}

/// As what a leg is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// As a member of the in-sync set of this generation: the label must agree.
    InSync,
    /// As a stale leg that is copied to; it is never read, and its label's generation is older.
    Target,
}

/// Request of `Open`: everything the label is compared with (F6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// The session; higher than any before of this epoch with this slice (W4).
    pub session: SessionNumber,
    /// The area.
    pub area: AreaId,
    /// The slice.
    pub slice: SliceId,
    /// The volume.
    pub volume: VolumeId,
    /// Its usage way.
    pub way: Way,
    /// Which segment.
    pub segment: u32,
    /// Length of the segment in bytes.
    pub segment_length: u64,
    /// Which leg.
    pub leg: u32,
    /// The generation the client knows.
    pub generation: Generation,
    /// As what.
    pub mode: OpenMode,
    /// The borrower.
    pub borrower: ServerId,
    /// The epoch of the mount.
    pub epoch: Epoch,
    /// The lease secret.
    pub secret: LeaseSecret,
    /// The opening of the area that the client remembers, 0 if none: it must be the lender's own or one before it (L2).
    pub known_open: OpenId,
    /// The sequence of the area's label that the client remembers; the lender's is not lower.
    pub known_sequence: u64,
}

fn write_generation(w: &mut Writer, g: Generation) {
    w.u64(g.number).u128(g.random);
}

fn read_generation(r: &mut Reader<'_>) -> Result<Generation, Malformed> {
    Ok(Generation { number: r.u64()?, random: r.u128()? })
}

impl Message for Open {
    fn write(&self, w: &mut Writer) {
        w.u64(self.session.0).u128(self.area.to_u128()).u128(self.slice.to_u128()).u128(self.volume.to_u128());
        w.u8(self.way.to_u8()).u32(self.segment).u64(self.segment_length).u32(self.leg);
        write_generation(w, self.generation);
        w.bool(self.mode == OpenMode::Target).u128(self.borrower.to_u128());
        w.u64(self.epoch.number).u128(self.epoch.random).u128(self.secret.to_u128());
        w.u128(self.known_open.to_u128()).u64(self.known_sequence);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            session: SessionNumber(r.u64()?),
            area: AreaId::from_u128(r.u128()?),
            slice: SliceId::from_u128(r.u128()?),
            volume: VolumeId::from_u128(r.u128()?),
            way: Way::from_u8(r.u8()?).ok_or(Malformed("its usage way is not known"))?,
            segment: r.u32()?,
            segment_length: r.u64()?,
            leg: r.u32()?,
            generation: read_generation(r)?,
            mode: if r.bool()? { OpenMode::Target } else { OpenMode::InSync },
            borrower: ServerId::from_u128(r.u128()?),
            epoch: Epoch { number: r.u64()?, random: r.u128()? },
            secret: LeaseSecret::from_u128(r.u128()?),
            known_open: OpenId::from_u128(r.u128()?),
            known_sequence: r.u64()?,
        })
    }
}

/// The identity of an open area: it changes whenever unflushed writes may have been lost (contract, terms).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct DiskIdentity {
    /// This opening of the area.
    pub open: OpenId,
    /// The kernel's boot id.
    pub boot: u128,
    /// `BLKGETDISKSEQ` of the device, or of the device under the file; 0 where there is none.
    pub disk_sequence: u64,
}

impl DiskIdentity {
    /// True if writes that `earlier` accepted and did not flush are still there: the machine has not restarted and the disk
    /// was not exchanged. A mere restart of the agent (another `open`) loses nothing.
    pub fn kept_writes_of(&self, earlier: &Self) -> bool {
        self.boot == earlier.boot && self.disk_sequence == earlier.disk_sequence
    }
}

impl Message for DiskIdentity {
    fn write(&self, w: &mut Writer) {
        w.u128(self.open.to_u128()).u128(self.boot).u64(self.disk_sequence);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { open: OpenId::from_u128(r.u128()?), boot: r.u128()?, disk_sequence: r.u64()? })
    }
}

/// Reply of `Open`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenReply {
    /// The identity of the area.
    pub identity: DiskIdentity,
    /// The generation in the label.
    pub generation: Generation,
    /// True if an earlier epoch was not closed cleanly, and the legs have not been made equal since: the *open* flag.
    pub unclean: bool,
    /// The sequence of the area's label: to be shown at the next OPEN (L2).
    pub sequence: u64,
    /// How many regions of this slice the client may keep hot (H2).
    pub hot_max: u32,
    /// For each leg of the segment: from which generation on this lender keeps a map of what it missed; none without a map.
    pub missed_since: Vec<Option<Generation>>,
}

impl Message for OpenReply {
    fn write(&self, w: &mut Writer) {
        self.identity.write(w);
        write_generation(w, self.generation);
        w.bool(self.unclean).u64(self.sequence).u32(self.hot_max);
        w.u8(u8::try_from(self.missed_since.len()).unwrap_or(u8::MAX));
        for since in self.missed_since.iter().take(u8::MAX.into()) {
            write_optional_generation(w, *since);
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (identity, generation, unclean) = (DiskIdentity::read(r)?, read_generation(r)?, r.bool()?);
        let (sequence, hot_max, legs) = (r.u64()?, r.u32()?, r.u8()?);
        let missed_since = (0..legs).map(|_| read_optional_generation(r)).collect::<Result<_, _>>()?;
        Ok(Self { identity, generation, unclean, sequence, hot_max, missed_since })
    }
}

/// Request of `SetState` (S1, S5): what the label shall say from now on. The reply comes when it is durable; its payload
/// is a [`DiskIdentity`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetState {
    /// The generation; not older than the label's.
    pub generation: Generation,
    /// Which legs of the segment are in sync, in the order of the legs.
    pub in_sync: Vec<bool>,
    /// The legs of the segment are equal again: clear the sticky part of the *open* flag.
    pub equalised: bool,
    /// Legs that this lender keeps a map for. A stale leg without mark and without a map has none: a full copy (S3).
    pub stale: Vec<StaleMark>,
}

impl Message for SetState {
    fn write(&self, w: &mut Writer) {
        write_generation(w, self.generation);
        w.u8(u8::try_from(self.in_sync.len()).unwrap_or(u8::MAX));
        for leg in self.in_sync.iter().take(u8::MAX.into()) {
            w.bool(*leg);
        }
        w.bool(self.equalised).u8(u8::try_from(self.stale.len()).unwrap_or(u8::MAX));
        for mark in self.stale.iter().take(u8::MAX.into()) {
            mark.write(w);
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let generation = read_generation(r)?;
        let legs = r.u8()?;
        let in_sync = (0..legs).map(|_| r.bool()).collect::<Result<_, _>>()?;
        let (equalised, marks) = (r.bool()?, r.u8()?);
        let stale = (0..marks).map(|_| StaleMark::read(r)).collect::<Result<_, _>>()?;
        Ok(Self { generation, in_sync, equalised, stale })
    }
}

/// Request of `Close`. Everything acknowledged is durable before the reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Close {
    /// The client ends for good and all legs have flushed: clear the *open* flag. False when only the path is closed (idle).
    pub clean: bool,
}

impl Message for Close {
    fn write(&self, w: &mut Writer) {
        w.bool(self.clean);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { clean: r.bool()? })
    }
}

/// Request of `Search`; the range is the frame's offset and length. Matches that begin in the range are found if they end
/// in the slice. The agent may answer for a shorter range (see [`SearchReply::scanned`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Search {
    /// Bytes to find; 1 to [`PATTERN_MAX`].
    pub pattern: Vec<u8>,
}

impl Message for Search {
    fn write(&self, w: &mut Writer) {
        w.short_bytes(&self.pattern);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let pattern = r.short_bytes()?.to_vec();
        if pattern.is_empty() || pattern.len() > PATTERN_MAX {
            return Err(Malformed("a search pattern has 1 to 4096 bytes"));
        }
        Ok(Self { pattern })
    }
}

/// Reply of `Search`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SearchReply {
    /// How many bytes of the range were searched for beginnings of matches: ask again from there.
    pub scanned: u64,
    /// How many matches begin in them.
    pub count: u64,
    /// Their offsets in the slice, ascending; none with [`crate::Flags::COUNT`].
    pub matches: Vec<u64>,
}

impl Message for SearchReply {
    fn write(&self, w: &mut Writer) {
        w.u64(self.scanned).u64(self.count).u32(u32::try_from(self.matches.len()).unwrap_or(u32::MAX));
        for m in &self.matches {
            w.u64(*m);
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (scanned, count) = (r.u64()?, r.u64()?);
        let n = r.u32()? as usize;
        if n > MATCHES_PER_REPLY_MAX {
            return Err(Malformed("it has too many matches"));
        }
        let matches = (0..n).map(|_| r.u64()).collect::<Result<_, _>>()?;
        Ok(Self { scanned, count, matches })
    }
}

/// One stretch of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Length in bytes.
    pub length: u64,
    /// True if it may hold something else than zeroes.
    pub data: bool,
}

/// Reply of `Extents`: the stretches from the frame's offset on, covering its length or less (never nothing).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentsReply {
    /// In order, without gaps.
    pub extents: Vec<Extent>,
}

impl Message for ExtentsReply {
    fn write(&self, w: &mut Writer) {
        w.u32(u32::try_from(self.extents.len()).unwrap_or(u32::MAX));
        for e in &self.extents {
            w.u64(e.length).bool(e.data);
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let n = r.u32()? as usize;
        if n == 0 || n > EXTENTS_PER_REPLY_MAX {
            return Err(Malformed("it has no or too many extents"));
        }
        let extents = (0..n).map(|_| Ok(Extent { length: r.u64()?, data: r.bool()? })).collect::<Result<Vec<_>, Malformed>>()?;
        if extents.iter().any(|e| e.length == 0) {
            return Err(Malformed("an extent is empty"));
        }
        Ok(Self { extents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads_back<M: Message + PartialEq + std::fmt::Debug>(message: M) {
        let bytes = message.encode();
        assert_eq!(M::decode(&bytes).as_ref(), Ok(&message));
        for cut in 0..bytes.len() {
            assert!(M::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(M::decode(&longer).is_err());
    }

    #[test]
    fn messages_read_back_and_nothing_shorter_or_longer_does() {
        let server = ServerId::from_u128(5);
        let generation = Generation { number: 3, random: 99 };
        let identity = DiskIdentity { open: OpenId::from_u128(1), boot: 2, disk_sequence: 3 };
        reads_back(Hello { version_min: 1, version_max: 1, features: 0, server, nonce: 4 });
        reads_back(HelloReply { version: 1, features: 0, server, nonce: 4, depth_max: 256, request_max: 1 << 20 });
        reads_back(Announce { pool: PoolId::from_u128(1), urls: vec!["http://a:1".into(), "http://b:2".into()] });
        reads_back(Open {
            session: SessionNumber(9),
            area: AreaId::from_u128(1),
            slice: SliceId::from_u128(2),
            volume: VolumeId::from_u128(3),
            way: Way::Doubled,
            segment: 4,
            segment_length: 4096,
            leg: 1,
            generation,
            mode: OpenMode::Target,
            borrower: server,
            epoch: Epoch { number: 7, random: 8 },
            secret: LeaseSecret::from_u128(6),
            known_open: OpenId::from_u128(77),
            known_sequence: 12,
        });
        reads_back(identity);
        let missed_since = vec![None, Some(generation)];
        reads_back(OpenReply { identity, generation, unclean: true, sequence: 12, hot_max: 64, missed_since });
        let stale = vec![StaleMark { leg: 1, since: generation, seeded: true }];
        reads_back(SetState { generation, in_sync: vec![true, false], equalised: true, stale });
        reads_back(Seed { leg: 1, since: generation, reset: true, entries: vec![(7, 1 << 63), (8, u64::MAX)] });
        reads_back(Clear { leg: 1, entries: vec![(7, 1)] });
        reads_back(MapRequest { which: MapWhich::All });
        reads_back(MapRequest { which: MapWhich::Leg(3) });
        let entries = vec![MapEntry { region: 5, hot: true, missed: 0 }, MapEntry { region: 6, hot: false, missed: 9 }];
        reads_back(MapReply { since: Some(generation), lost: true, scanned: 4096, entries });
        reads_back(MapReply { since: None, lost: false, scanned: 1, entries: Vec::new() });
        reads_back(Cool { regions: vec![1, 2, 3] });
        reads_back(Close { clean: true });
        reads_back(Search { pattern: b"needle".to_vec() });
        reads_back(SearchReply { scanned: 10, count: 2, matches: vec![1, 5] });
        reads_back(ExtentsReply { extents: vec![Extent { length: 1, data: true }] });
    }

    #[test]
    fn the_blocks_of_a_verify_reply_are_five_bytes_each() {
        let block = |sum, state| VerifyBlock { sum, state };
        let states = [BlockState::Matches, BlockState::Differs, BlockState::Computed, BlockState::Proven];
        let blocks = (1..).zip(states).map(|(sum, state)| block(sum, state)).collect();
        let reply = VerifyReply { blocks };
        let bytes = reply.encode();
        assert_eq!(bytes.len(), 4 * VerifyReply::ENTRY_SIZE);
        assert_eq!(VerifyReply::decode(&bytes), Ok(reply));
        assert!(VerifyReply::decode(&bytes[..9]).is_err());
        assert!(VerifyReply::decode(&[0, 0, 0, 0, 4]).is_err(), "a state that is not known");
    }

    #[test]
    fn the_largest_messages_about_regions_fit_into_a_control_payload_and_larger_ones_are_refused() {
        let generation = Generation { number: 3, random: 99 };
        let seed = |n: u32| Seed { leg: 0, since: generation, reset: false, entries: (0..n).map(|r| (r, 1)).collect() }.encode();
        let entry = |region| MapEntry { region, hot: true, missed: 1 };
        let map =
            |n: u32| MapReply { since: Some(generation), lost: false, scanned: n, entries: (0..n).map(entry).collect() }.encode();
        let cool = |n: u32| Cool { regions: (0..n).collect() }.encode();
        let most = REGIONS_PER_MESSAGE_MAX as u32;
        for bytes in [seed(most), map(most), cool(most)] {
            assert!(bytes.len() <= CONTROL_PAYLOAD_MAX);
        }
        assert!(Seed::decode(&seed(most)).is_ok() && Seed::decode(&seed(most + 1)).is_err());
        assert!(MapReply::decode(&map(most)).is_ok() && MapReply::decode(&map(most + 1)).is_err());
        assert!(Cool::decode(&cool(most)).is_ok() && Cool::decode(&cool(most + 1)).is_err());
    }

    #[test]
    fn a_restarted_agent_keeps_writes_and_a_rebooted_machine_does_not() {
        let before = DiskIdentity { open: OpenId::from_u128(1), boot: 2, disk_sequence: 3 };
        assert!(DiskIdentity { open: OpenId::from_u128(9), ..before }.kept_writes_of(&before));
        assert!(!DiskIdentity { boot: 9, ..before }.kept_writes_of(&before));
        assert!(!DiskIdentity { disk_sequence: 9, ..before }.kept_writes_of(&before));
    }
}
