//! The fixed 64-byte headers of requests and replies (seed: FIG. 6C and 6D).
//!
//! A request says who asks (the session), which disk (the slice) and what is asked (operation, offset, length, flags,
//! deadline). A reply repeats all of it and adds the result, so that a reply to another request is noticed.

use sublet_types::{SessionNumber, SliceId};

use crate::checksum::crc32c;
use crate::codec::{Malformed, Reader, Writer};
use crate::status::Status;

/// The size of either header in bytes.
pub const FRAME_SIZE: usize = 64;
/// The version of the protocol spoken here.
pub const PROTOCOL_VERSION: u8 = 3;
/// First bytes of a request: "SbQ1".
pub const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"SbQ1");
/// First bytes of a reply or notice: "SbR1".
pub const REPLY_MAGIC: u32 = u32::from_le_bytes(*b"SbR1");

/// Bit of the result of a READ reply: at least one checksum was not kept but computed from the data now, and proves nothing
/// about them (K2).
pub const READ_COMPUTED: u32 = 1;

/// What is asked (seed: access request information).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Op {
    /// First message of a connection: versions and features.
    Hello = 1,
    /// Open a session with one slice.
    Open = 2,
    /// Read blocks.
    Read = 3,
    /// Write blocks.
    Write = 4,
    /// Make blocks read as zero (initialise, discard).
    WriteZeroes = 5,
    /// Make everything acknowledged before durable.
    Flush = 6,
    /// Which parts hold data?
    Extents = 7,
    /// Find a byte pattern, ship only offsets.
    Search = 8,
    /// Persist a generation and its in-sync set.
    SetState = 9,
    /// Which regions are hot, and what was missed (S3, H3).
    Map = 10,
    /// Pull a region from another lender (reserved: who copies reads and writes through its own sessions at both ends, F5).
    Copy = 11,
    /// Are you there, and with which identity?
    Ping = 12,
    /// End the session.
    Close = 13,
    /// The manager tells where it can be reached now, instead of HELLO; the connection ends after the reply.
    Announce = 14,
    /// Mark blocks that a stale leg lacks (S1, S3).
    Seed = 15,
    /// Clear the hot marks of regions (H2).
    Cool = 16,
    /// Read blocks and compare them with their checksums, ship only those (K1).
    Verify = 17,
    /// Unmark blocks that a stale leg has now (S4).
    Clear = 18,
    /// Notice: a newer epoch was persisted (F4).
    Fenced = 32,
    /// Notice: the agent stops; go on elsewhere or reconnect.
    Draining = 33,
    /// Notice: the slice has another size (reserved).
    Resized = 34,
}

impl Op {
    /// The operation with that number, if there is one.
    pub const fn from_u8(n: u8) -> Option<Self> {
        use Op::*;
        Some(match n {
            1 => Hello,
            2 => Open,
            3 => Read,
            4 => Write,
            5 => WriteZeroes,
            6 => Flush,
            7 => Extents,
            8 => Search,
            9 => SetState,
            10 => Map,
            11 => Copy,
            12 => Ping,
            13 => Close,
            14 => Announce,
            15 => Seed,
            16 => Cool,
            17 => Verify,
            18 => Clear,
            32 => Fenced,
            33 => Draining,
            34 => Resized,
            _ => return None,
        })
    }
}

/// Flags of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// The result is durable before the reply (force unit access).
    pub const FUA: Flags = Flags(1);
    /// `WriteZeroes`: keep the space allocated.
    pub const NO_HOLE: Flags = Flags(2);
    /// `WriteZeroes`: fail rather than write zeroes block by block.
    pub const FAST: Flags = Flags(4);
    /// `Search`: count the matches, send no offsets.
    pub const COUNT: Flags = Flags(8);

    /// True if all bits of `other` are set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// The header of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestFrame {
    /// What is asked.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// Chosen by the client; unique among its requests in flight.
    pub cookie: u64,
    /// Who asks: the session opened on this connection.
    pub session: SessionNumber,
    /// Which disk: the identity of the slice (F6).
    pub slice: SliceId,
    /// Where in the slice, in bytes.
    pub offset: u64,
    /// How many bytes of the slice.
    pub length: u32,
    /// Give up if not begun within so many milliseconds; 0 is never.
    pub deadline_ms: u32,
    /// How many payload bytes follow the header.
    pub payload: u32,
}

impl RequestFrame {
    /// The 64 bytes.
    pub fn encode(&self) -> [u8; FRAME_SIZE] {
        let mut w = Writer(Vec::with_capacity(FRAME_SIZE));
        w.u32(REQUEST_MAGIC).u8(PROTOCOL_VERSION).u8(self.op as u8).u16(self.flags.0);
        w.u64(self.cookie).u64(self.session.0).u128(self.slice.to_u128()).u64(self.offset);
        w.u32(self.length).u32(self.deadline_ms).u32(self.payload);
        sealed(w)
    }

    /// Reads 64 bytes.
    ///
    /// # Errors
    /// [`Malformed`] for another magic, version or operation, or a wrong checksum.
    pub fn decode(bytes: &[u8; FRAME_SIZE]) -> Result<Self, Malformed> {
        let mut r = opened(bytes, REQUEST_MAGIC)?;
        let frame = Self {
            op: Op::from_u8(r.u8()?).ok_or(Malformed("its operation is not known"))?,
            flags: Flags(r.u16()?),
            cookie: r.u64()?,
            session: SessionNumber(r.u64()?),
            slice: SliceId::from_u128(r.u128()?),
            offset: r.u64()?,
            length: r.u32()?,
            deadline_ms: r.u32()?,
            payload: r.u32()?,
        };
        Ok(frame)
    }

    /// The reply to this request.
    pub const fn reply(&self, status: Status, payload: u32) -> ReplyFrame {
        ReplyFrame {
            op: self.op,
            status,
            cookie: self.cookie,
            session: self.session,
            slice: self.slice,
            offset: self.offset,
            length: self.length,
            result: 0,
            payload,
        }
    }
}

/// The header of a reply or notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyFrame {
    /// What was asked.
    pub op: Op,
    /// The result.
    pub status: Status,
    /// The cookie of the request; 0 for a notice.
    pub cookie: u64,
    /// As in the request.
    pub session: SessionNumber,
    /// As in the request.
    pub slice: SliceId,
    /// As in the request.
    pub offset: u64,
    /// As in the request.
    pub length: u32,
    /// The operation's own result; 0 where there is none.
    pub result: u32,
    /// How many payload bytes follow the header.
    pub payload: u32,
}

impl ReplyFrame {
    /// The 64 bytes.
    pub fn encode(&self) -> [u8; FRAME_SIZE] {
        let mut w = Writer(Vec::with_capacity(FRAME_SIZE));
        w.u32(REPLY_MAGIC).u8(PROTOCOL_VERSION).u8(self.op as u8).u16(self.status as u16);
        w.u64(self.cookie).u64(self.session.0).u128(self.slice.to_u128()).u64(self.offset);
        w.u32(self.length).u32(self.result).u32(self.payload);
        sealed(w)
    }

    /// Reads 64 bytes.
    ///
    /// # Errors
    /// [`Malformed`] for another magic, version, operation or status, or a wrong checksum.
    pub fn decode(bytes: &[u8; FRAME_SIZE]) -> Result<Self, Malformed> {
        let mut r = opened(bytes, REPLY_MAGIC)?;
        let frame = Self {
            op: Op::from_u8(r.u8()?).ok_or(Malformed("its operation is not known"))?,
            status: Status::from_u16(r.u16()?).ok_or(Malformed("its status is not known"))?,
            cookie: r.u64()?,
            session: SessionNumber(r.u64()?),
            slice: SliceId::from_u128(r.u128()?),
            offset: r.u64()?,
            length: r.u32()?,
            result: r.u32()?,
            payload: r.u32()?,
        };
        Ok(frame)
    }
}

/// Puts the checksum of the first 60 bytes behind them.
fn sealed(mut w: Writer) -> [u8; FRAME_SIZE] {
    let sum = crc32c(&w.0);
    w.u32(sum);
    let mut out = [0; FRAME_SIZE];
    out.copy_from_slice(&w.0);
    out
}

/// Checks checksum, magic and version; the reader stands behind them.
fn opened(bytes: &[u8; FRAME_SIZE], magic: u32) -> Result<Reader<'_>, Malformed> {
    let mut r = Reader::new(bytes);
    if r.u32()? != magic {
        return Err(Malformed("its first bytes are not the protocol's"));
    }
    let (body, sum) = bytes.split_at(FRAME_SIZE - 4);
    if crc32c(body).to_le_bytes() != sum {
        return Err(Malformed("its header checksum is wrong"));
    }
    if r.u8()? != PROTOCOL_VERSION {
        return Err(Malformed("its protocol version is not known"));
    }
    Ok(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RequestFrame {
        RequestFrame {
            op: Op::Write,
            flags: Flags::FUA,
            cookie: 77,
            session: SessionNumber(3),
            slice: SliceId::from_u128(0xabcd),
            offset: 1 << 40,
            length: 8192,
            deadline_ms: 5,
            payload: 8200,
        }
    }

    #[test]
    fn frames_read_back() {
        let q = request();
        assert_eq!(RequestFrame::decode(&q.encode()), Ok(q));
        let r = ReplyFrame { result: 9, ..q.reply(Status::Io, 12) };
        assert_eq!(ReplyFrame::decode(&r.encode()), Ok(r));
    }

    #[test]
    fn every_single_flipped_bit_is_refused() {
        let good = request().encode();
        for bit in 0..FRAME_SIZE * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(RequestFrame::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_reply_is_no_request() {
        assert!(RequestFrame::decode(&request().reply(Status::Ok, 0).encode()).is_err());
    }
}
