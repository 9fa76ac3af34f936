//! Reading whole blocks from one leg, checked end to end, and repairing what does not fit its checksum (K1).

use std::collections::BTreeSet;
use std::rc::Rc;

use sublet_api::work::{Finding, FindingKind};
use sublet_doors::{Chunk, Doors};
use sublet_types::limits::BLOCK_SIZE;
use sublet_types::mutation::{self, Mutation};
use sublet_types::{BlockRange, SliceId};
use sublet_wire::Status;

use crate::change::Change;
use crate::error::{VolumeError, VolumeErrorKind};
use crate::maps::regions_of;
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::{Session, SessionError};

/// So many findings are remembered so that the same place is told once.
const KNOWN_MAX: usize = 4096;

/// Blocks as a lender delivered them.
pub(crate) struct Blocks {
    pub(crate) data: Chunk,
    /// Their checksums as the lender keeps them.
    pub(crate) sums: Chunk,
    /// One of them was not kept but computed for this answer: it proves nothing about what was written (K2).
    pub(crate) computed: bool,
    /// Blocks that do not fit, by number.
    pub(crate) wrong: Vec<usize>,
}

impl Blocks {
    /// The data, if all of it fits.
    pub(crate) fn sound(self) -> Option<Chunk> {
        self.wrong.is_empty().then_some(self.data)
    }

    fn sum(&self, block: usize) -> Option<&[u8]> {
        self.sums.get(block * 4..block * 4 + 4)
    }
}

/// What was found wrong, for the manager's events. Each place once.
#[derive(Default)]
pub(crate) struct Findings {
    count: u64,
    untold: Vec<Finding>,
    known: BTreeSet<(SliceId, u64, u64)>,
}

impl Findings {
    /// Those that the manager has not recorded yet.
    pub(crate) fn untold(&self) -> Vec<Finding> {
        self.untold.clone()
    }

    /// The manager has recorded those up to this number.
    pub(crate) fn seen(&mut self, number: u64) {
        self.untold.retain(|finding| finding.number > number);
    }

    fn add(&mut self, mut finding: Finding) {
        let place = (finding.slice, finding.offset, finding.length);
        if finding.kind == FindingKind::Unrepairable {
            if self.known.contains(&place) || self.known.len() >= KNOWN_MAX {
                return;
            }
            self.known.insert(place);
        } else {
            // Should it go wrong again, that is news.
            self.known.remove(&place);
        }
        self.count += 1;
        finding.number = self.count;
        self.untold.push(finding);
        let excess = self.untold.len().saturating_sub(KNOWN_MAX);
        self.untold.drain(..excess);
    }
}

/// What one read has met at the legs so far.
struct Tried {
    /// How often a leg delivered what does not fit.
    wrong: Vec<u8>,
    /// It is asked again before another one: else what went wrong with it would stay, and nobody would be told.
    again: Option<usize>,
    /// The legs that did so twice, with what they delivered.
    suspects: Vec<(usize, Blocks)>,
    /// The legs whose disk cannot read all of it.
    unreadable: Vec<usize>,
    /// Why nothing more is read from a leg.
    failed: Vec<Option<VolumeError>>,
}

impl Tried {
    fn new(legs: usize) -> Self {
        Self { wrong: vec![0; legs], again: None, suspects: Vec::new(), unreadable: Vec::new(), failed: vec![None; legs] }
    }
}

/// Stretches of neighbouring blocks, in bytes from the first block of a request.
pub(crate) fn spans(blocks: &[usize]) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        let at = *block as u64 * BLOCK_SIZE;
        match spans.last_mut() {
            Some((start, length)) if *start + *length == at => *length += BLOCK_SIZE,
            _ => spans.push((at, BLOCK_SIZE)),
        }
    }
    spans
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Reads whole blocks from one leg of the in-sync set, checked end to end. With `held` the caller has their range lock, and
    /// runs to its end; otherwise it may go away.
    pub(crate) async fn read(self: &Rc<Self>, offset: u64, length: u32, held: bool) -> Result<Chunk, VolumeError> {
        let mut tried = Tried::new(self.legs.len());
        if let Some(data) = self.read_once(offset, length, held, &mut tried).await? {
            return Ok(data);
        }
        Box::pin(self.read_again(offset, length, tried)).await
    }

    async fn read_again(self: &Rc<Self>, offset: u64, length: u32, mut tried: Tried) -> Result<Chunk, VolumeError> {
        // K1: read again under the range lock before it counts. As a task of its own: a caller that goes away must not take the
        // lock with it while a repair is under way (W2).
        let segment = Rc::clone(self);
        let again = async move {
            let blocks = BlockRange::covering(segment.start + offset, length.into());
            let _guard = segment.shared.ranges.lock(blocks).await;
            let data = segment.read_once(offset, length, true, &mut tried).await?;
            data.ok_or_else(|| VolumeError::new(VolumeErrorKind::Io, "a read under its range lock came to nothing"))
        };
        self.shared.detached(again).await
    }

    /// Reads until there is an outcome; nothing if that needs the range lock and it is not `held`.
    async fn read_once(
        self: &Rc<Self>,
        offset: u64,
        length: u32,
        held: bool,
        tried: &mut Tried,
    ) -> Result<Option<Chunk>, VolumeError> {
        let Tried { wrong, again, suspects, unreadable, failed } = tried;
        loop {
            let seen = self.shared.changed.version();
            self.check()?;
            // H3: what may differ is made equal before it is read.
            if !self.is_equal(offset, length.into()) {
                Box::pin(self.make_equal(offset, length.into(), held)).await?;
            }
            let readable = self.members.borrow().which(|m| {
                (m.role == Role::InSync && m.equal) || (m.role.takes_writes() && mutation::is(Mutation::ServeStaleLeg))
            });
            let (out, usable): (Vec<usize>, Vec<usize>) =
                readable.into_iter().partition(|leg| failed.get(*leg).is_some_and(Option::is_some));
            let last_error = out.first().filter(|_| usable.is_empty()).and_then(|leg| failed.get_mut(*leg)?.take());
            if let Some(error) = last_error {
                for (leg, blocks) in suspects.iter() {
                    self.found(*leg, offset, &blocks.wrong, FindingKind::Unrepairable, "no other copy has it");
                }
                for leg in unreadable.iter() {
                    let bad = Box::pin(self.unreadable_blocks(*leg, offset, length)).await;
                    self.found(*leg, offset, &bad, FindingKind::Unrepairable, "it cannot be read, and no other copy has it");
                }
                return Err(error);
            }
            let open = usable
                .into_iter()
                .filter(|leg| self.is_sound(*leg) || mutation::is(Mutation::ServeStaleLeg))
                .filter_map(|leg| Some((leg, self.legs.get(leg)?.session()?)));
            let Some((leg, session)) = self.choose(open, *again) else {
                if self.reads_expired.get() {
                    return Err(self.expired());
                }
                self.shared.changed.changed(seen).await;
                continue;
            };
            let name = self.legs.get(leg).map(|leg| leg.lender()).unwrap_or_default();
            let error = match session.read(offset, length).await {
                Ok(blocks) if blocks.wrong.is_empty() || mutation::is(Mutation::ChecksumIgnored) => {
                    if !suspects.iter().all(|(_, suspect)| may_replace(&blocks, suspect)) {
                        // K2: computed checksums never win over kept ones.
                        self.wrong_bytes(&name, offset, length)
                    } else {
                        for (suspect, bad) in suspects.iter() {
                            Box::pin(self.repair(*suspect, offset, &bad.wrong, &blocks.data, FindingKind::Repaired)).await;
                        }
                        for leg in unreadable.iter() {
                            let bad = Box::pin(self.unreadable_blocks(*leg, offset, length)).await;
                            Box::pin(self.repair(*leg, offset, &bad, &blocks.data, FindingKind::Repaired)).await;
                        }
                        return Ok(Some(blocks.data));
                    }
                }
                Ok(blocks) => {
                    tracing::warn!(lender = name, segment = self.index, offset, "a read does not fit its checksum");
                    let Some(count) = wrong.get_mut(leg) else { continue };
                    *count += 1;
                    *again = (*count < 2).then_some(leg);
                    if *count < 2 {
                        if !held {
                            return Ok(None);
                        }
                        continue;
                    }
                    suspects.push((leg, blocks));
                    self.wrong_bytes(&name, offset, length)
                }
                Err(SessionError::Lost) => continue,
                Err(SessionError::Refused(status, text)) => match self.judge(&session, status, &text, &name) {
                    None => continue,
                    Some(error) => {
                        if status == Status::Io {
                            unreadable.push(leg);
                        }
                        error
                    }
                },
            };
            if let Some(slot) = failed.get_mut(leg) {
                *slot = Some(error);
            }
            if !unreadable.is_empty() && !held {
                // What another leg has of it is written there, or it is told: that needs the range lock.
                return Ok(None);
            }
        }
    }

    /// Which leg to read from: the one that has to be asked again, else the one with the fewest requests of those that are not slow.
    fn choose(
        &self,
        open: impl Iterator<Item = (usize, Rc<Session<D>>)>,
        again: Option<usize>,
    ) -> Option<(usize, Rc<Session<D>>)> {
        let open: Vec<_> = open.collect();
        let now = self.shared.doors.now();
        let least = open.iter().filter_map(|(_, session)| session.pace(now)).min().unwrap_or(u64::MAX);
        // Of two with the same load the quicker one; one that is not known yet first.
        let pace = |session: &Session<D>| session.pace(now).unwrap_or(0);
        open.into_iter()
            .min_by_key(|(leg, session)| (Some(*leg) != again, session.is_slow(least, now), session.load(), pace(session)))
    }

    /// The blocks of a range that a leg's disk cannot read, counted from `offset`.
    async fn unreadable_blocks(&self, index: usize, offset: u64, length: u32) -> Vec<usize> {
        let mut bad = Vec::new();
        let Some(session) = self.legs.get(index).and_then(|leg| leg.session()) else { return bad };
        for (block, at) in (offset..offset + u64::from(length)).step_by(BLOCK_SIZE as usize).enumerate() {
            match session.read(at, BLOCK_SIZE as u32).await {
                Ok(_) => {}
                Err(SessionError::Refused(Status::Io, _)) => bad.push(block),
                Err(_) => break,
            }
        }
        bad
    }

    fn wrong_bytes(&self, name: &str, offset: u64, length: u32) -> VolumeError {
        let at = self.start + offset;
        let text = format!("server {name} delivers wrong bytes for {length} bytes at {at} of the volume");
        VolumeError::new(VolumeErrorKind::Io, text)
    }

    /// Writes the right bytes of these blocks (counted from `offset`) to a leg that holds wrong ones, durably, and tells it then;
    /// the caller has their range lock.
    pub(crate) async fn repair(&self, index: usize, offset: u64, blocks: &[usize], data: &Chunk, kind: FindingKind) {
        let Some(leg) = self.legs.get(index) else { return };
        if self.shared.info.read_only {
            let text = "another copy has it; it was not rewritten, because the volume is mounted read-only";
            return self.found(index, offset, blocks, FindingKind::Unrepairable, text);
        }
        let Some(session) = leg.session().filter(|_| self.role(index) == Role::InSync) else { return };
        for (at, length) in spans(blocks) {
            // Durable at once: no log keeps it, and what was told as repaired must not be wrong again after a power cut.
            let change = Change::write(offset + at, data.part(at as usize..(at + length) as usize), true);
            let sent = session.send_change(&change).await;
            self.adopt_hot(regions_of(offset + at, length));
            match sent {
                Ok(()) => {
                    let repaired: Vec<usize> =
                        blocks.iter().copied().filter(|b| (at..at + length).contains(&(*b as u64 * BLOCK_SIZE))).collect();
                    self.found(index, offset, &repaired, kind, "rewritten from another copy");
                }
                // The next read of it finds it again.
                Err(SessionError::Lost) => return,
                Err(SessionError::Refused(status, text)) => {
                    tracing::warn!(lender = %leg.facts.server_name, ?status, text, "wrong blocks were not repaired");
                    if status == Status::Io {
                        self.leaves_broken(
                            index,
                            &format!("server {} cannot rewrite wrong blocks: {text}", leg.facts.server_name),
                        );
                    }
                    return;
                }
            }
        }
    }

    /// Records what was found at blocks counted from `offset`.
    pub(crate) fn found(&self, index: usize, offset: u64, blocks: &[usize], kind: FindingKind, text: &str) {
        let Some(leg) = self.legs.get(index) else { return };
        for (at, length) in spans(blocks) {
            let place = leg.facts.offset + offset + at;
            tracing::error!(lender = %leg.facts.server_name, area = %leg.facts.area_name, place, length, ?kind, text, "a block is wrong");
            self.shared.findings.borrow_mut().add(Finding {
                number: 0,
                slice: leg.facts.slice,
                server: leg.facts.server,
                area: leg.facts.area,
                offset: place,
                length,
                kind,
                text: text.to_owned(),
            });
        }
        self.shared.changed.notify();
    }
}

/// May these blocks replace what the suspect holds? Not if their checksums are computed ones and the suspect's kept ones differ.
fn may_replace(good: &Blocks, suspect: &Blocks) -> bool {
    !good.computed || suspect.computed || suspect.wrong.iter().all(|block| good.sum(*block) == suspect.sum(*block))
}
