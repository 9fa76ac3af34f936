//! Every crash: a story is told on a disk in memory, and cut off at every write and sync. What was not synced by then arrives,
//! is lost, or arrives in part (sectors of 512 bytes), in all or many combinations; the area is opened again and must be
//! what the contract promises. The same with rot in its metadata.

use std::cell::RefCell;
use std::path::PathBuf;

use sublet_wire::message::{BlockState, MapWhich, Seed, SetState, StaleMark};

use super::memory::{Image, Images, MemoryDoors, Op, apply};
use super::*;
use crate::layout::{AREA_LABEL_AT, PIECE_LABEL_AT, Reserve};

const BLOCK: u64 = 4096;
/// Combinations of what was not synced that are tried at each point.
const SAMPLES: usize = 8;

/// The disks that the story is told on.
#[derive(Clone, Copy, Debug)]
enum Kind {
    File,
    Device,
    /// Two devices; the slice lies across both.
    Joined,
}

impl Kind {
    fn pieces(self) -> Vec<PieceSpec> {
        match self {
            Self::File | Self::Device => vec![piece("/disk", 16 * MIB)],
            Self::Joined => vec![piece("/disk", 8 * MIB), piece("/other", 8 * MIB)],
        }
    }

    fn device(self) -> bool {
        !matches!(self, Self::File)
    }

    /// Before they are lent.
    fn images(self, used: bool) -> Images {
        let image = |size| if used { Image::filled(size, 0xDD) } else { Image::new(size) };
        self.pieces().into_iter().map(|piece| (piece.path, image(piece.length))).collect()
    }
}

/// A small generator, so that every run tries the same.
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A write of one byte value to a block, from the operation before its first one to that after its last one.
#[derive(Clone, Copy)]
struct Written {
    block: u64,
    byte: u8,
    begun: usize,
    ended: usize,
}

/// What the story did, and when, in numbers of operations on the disk.
#[derive(Default)]
struct Story {
    writes: Vec<Written>,
    /// Flushes: begun, ended.
    flushes: Vec<(usize, usize)>,
    /// States of the segment: generation, leg 1 in sync, begun, ended.
    states: Vec<(u64, bool, usize, usize)>,
}

impl Story {
    /// The flush that made a write durable had ended.
    fn is_flushed(&self, write: &Written, end: usize) -> bool {
        self.flushes.iter().any(|(begun, ended)| write.ended <= *begun && *ended <= end)
    }

    /// What a block may hold after a crash at `end`: what was flushed last, or anything that came later.
    fn allowed(&self, block: u64, end: usize) -> Vec<u8> {
        let own: Vec<&Written> = self.writes.iter().filter(|write| write.block == block && write.begun < end).collect();
        let durable = own.iter().rposition(|write| self.is_flushed(write, end));
        let later = own.iter().skip(durable.unwrap_or(0)).map(|write| write.byte);
        if durable.is_some() { later.collect() } else { later.chain([0]).collect() }
    }
}

/// Tells a story and records it.
struct Teller {
    doors: MemoryDoors,
    area: Rc<Area<MemoryDoors>>,
    story: RefCell<Story>,
}

impl Teller {
    fn now(&self) -> usize {
        self.doors.machine.log.borrow().len()
    }

    async fn write(&self, block: u64, byte: u8) {
        let begun = self.now();
        write(&self.area, 1, block * BLOCK, byte, BLOCK as usize).await;
        self.story.borrow_mut().writes.push(Written { block, byte, begun, ended: self.now() });
    }

    async fn flush(&self) {
        let begun = self.now();
        self.area.flush().await.unwrap();
        self.story.borrow_mut().flushes.push((begun, self.now()));
    }

    async fn state(&self, number: u64, other: bool, seed: &[(u32, u64)]) {
        let begun = self.now();
        let mut stale = Vec::new();
        if !other {
            let seed = Seed { leg: 1, since: generation(number), reset: true, entries: seed.to_vec() };
            self.area.seed(slice(1), &seed).await.unwrap();
            stale.push(StaleMark { leg: 1, since: generation(number), seeded: true });
        }
        let state = SetState { generation: generation(number), in_sync: vec![true, other], equalised: false, stale };
        self.area.set_state(slice(1), epoch(1), &state).await.unwrap();
        self.story.borrow_mut().states.push((number, other, begun, self.now()));
    }
}

/// All that an area does between two openings.
async fn tell(doors: &MemoryDoors, pieces: &[PieceSpec]) -> Story {
    let own = facts(1, 0, 4 * REGION);
    let area = open(doors, pieces).await;
    area.prepare_slice(&own).await.unwrap();
    area.open_lease(slice(1), &lease(1), &own).await.unwrap();
    area.mark_open(slice(1), epoch(1)).await.unwrap();
    let teller = Teller { doors: doors.clone(), area, story: RefCell::default() };
    let t = &teller;
    // Blank regions, one after the other and together.
    t.write(0, 1).await;
    t.write(1, 2).await;
    futures_util::future::join(t.write(1024, 3), t.write(2048, 4)).await;
    t.flush().await;
    // Hot ones, flushed or not, and cooling.
    t.write(0, 5).await;
    t.write(1025, 6).await;
    t.flush().await;
    t.area.cool(slice(1), &[0, 1]).await.unwrap();
    // Cold ones.
    t.write(0, 7).await;
    futures_util::future::join(t.write(1, 8), t.write(1024, 9)).await;
    t.flush().await;
    // A leg leaves: it lacks block 1 and all of region 2, which is hot, and something of region 3, which is blank.
    t.state(2, false, &[(0, 1), (2, u64::MAX), (3, 0x10)]).await;
    t.write(1040, 10).await;
    t.write(3072 + 512, 11).await;
    t.flush().await;
    t.area.cool(slice(1), &[0, 1, 2, 3]).await.unwrap();
    t.write(1041, 12).await;
    t.write(2, 13).await;
    // A region that is written while it cools.
    let again = async {
        t.write(1, 14).await;
        t.write(1042, 15).await;
    };
    let (cooled, ()) = futures_util::future::join(t.area.cool(slice(1), &[0, 1, 2, 3]), again).await;
    cooled.unwrap();
    t.flush().await;
    t.area.cool(slice(1), &[0, 1]).await.unwrap();
    // It returns.
    t.state(3, true, &[]).await;
    t.write(3, 16).await;
    t.flush().await;
    t.area.close_clean(slice(1), epoch(1)).await.unwrap();
    teller.story.into_inner()
}

fn path_of(op: &Op) -> &PathBuf {
    let (Op::Write { path, .. } | Op::Zero { path, .. } | Op::Sync { path }) = op;
    path
}

/// The disk after a crash: operations before `end` were begun; those that no later sync covers may have been lost or torn.
fn crash(base: &Images, log: &[Op], end: usize, sample: usize, dice: &mut Dice) -> Images {
    let mut images = base.clone();
    let synced =
        |path: &PathBuf| log[..end].iter().rposition(|op| matches!(op, Op::Sync { path: own } if own == path)).unwrap_or(0);
    let durable: std::collections::BTreeMap<PathBuf, usize> = base.keys().map(|path| (path.clone(), synced(path))).collect();
    for (n, op) in log[..end].iter().enumerate() {
        let fate = match sample {
            _ if n < durable[path_of(op)] => 0,
            0 => 0,
            1 => 1,
            // The last one alone.
            2 => u64::from(n + 1 != end),
            _ => dice.roll(3),
        };
        match (fate, op) {
            (0, _) => apply(&mut images, op),
            (1, _) => {}
            (_, Op::Write { path, at, bytes }) => {
                for (sector, part) in bytes.chunks(512).enumerate() {
                    if dice.roll(2) == 0 {
                        images.get_mut(path).unwrap().write(at + sector as u64 * 512, part);
                    }
                }
            }
            (_, Op::Zero { path, at, length }) => {
                let half = length / 2 / 4096 * 4096;
                apply(&mut images, &Op::Zero { path: path.clone(), at: *at, length: half });
            }
            (_, Op::Sync { .. }) => {}
        }
    }
    images
}

/// Opens what a crash left and compares it with the story.
async fn judge(story: &Story, doors: &MemoryDoors, pieces: &[PieceSpec], end: usize, what: &str) {
    let area = open(doors, pieces).await;
    let Some(record) = area.report("").slices.into_iter().next() else {
        assert!(story.writes.first().is_some_and(|write| end <= write.begun), "{what}: the slice is there");
        return;
    };
    // The label: what was answered is there, what was not begun is not.
    let answered = story.states.iter().rev().find(|(_, _, _, ended)| *ended <= end).map_or(1, |(number, ..)| *number);
    let begun = story.states.iter().rev().find(|(_, _, begun, _)| *begun < end).map_or(1, |(number, ..)| *number);
    let number = record.facts.generation.number;
    assert!((answered..=begun).contains(&number), "{what}: generation {number} of {answered} to {begun}");
    let stale = number == 2;
    assert_eq!(area.missed_since(slice(1)), [None, stale.then(|| generation(2))], "{what}");

    let map = area.map(slice(1), MapWhich::Leg(1), 0, 4 * REGION).await.unwrap();
    let entry = |region: u64| map.entries.iter().find(|entry| u64::from(entry.region) == region);
    for write in story.writes.iter().filter(|write| write.begun < end) {
        let (region, unit) = (write.block / 1024, write.block % 1024 / 16);
        let reached = write.ended <= end;
        // H1, H2: what may not be durable lies in a region that is hot. (Cooling makes it durable without a flush.)
        if reached && !story.is_flushed(write, end) && entry(region).is_none_or(|entry| !entry.hot) {
            let later = story.writes.iter().filter(|other| other.block == write.block && other.begun >= write.begun);
            let later: Vec<u8> = later.map(|write| write.byte).collect();
            let found = read(&area, 1, write.block * BLOCK, BLOCK as usize).await;
            assert!(found.iter().all(|byte| later.contains(byte)), "{what}: block {} lost a write", write.block);
        }
        // S3: what was written without the leg is missed.
        let left = story.states.iter().find(|(number, ..)| *number == 2).map_or(usize::MAX, |(_, _, begun, _)| *begun);
        if stale && reached && write.begun >= left {
            assert!(entry(region).is_some_and(|entry| entry.missed >> unit & 1 == 1), "{what}: unit {unit} of {region}");
        }
    }
    if stale {
        for (region, bits) in [(0, 1), (2, u64::MAX), (3, 0x10)] {
            assert!(entry(region).is_some_and(|entry| entry.missed & bits == bits), "{what}: what was sent for {region}");
        }
    }
    for first in [0, 1024, 1040, 2048, 3072 + 512] {
        let data = read(&area, 1, first * BLOCK, 4 * BLOCK as usize).await;
        let states = area.verify(slice(1), first * BLOCK, 4 * BLOCK).await.unwrap();
        for (n, (bytes, state)) in data.chunks(BLOCK as usize).zip(states).enumerate() {
            let block = first + n as u64;
            let allowed = story.allowed(block, end);
            // A block that was being written may be torn.
            let whole = allowed.len() == 1;
            let fits = if whole { bytes.iter().all(|b| *b == allowed[0]) } else { bytes.iter().all(|b| allowed.contains(b)) };
            assert!(fits, "{what}: block {block} holds {} of {allowed:?}", bytes[0]);
            assert!(state.state != BlockState::Differs, "{what}: the checksum of block {block} does not fit");
        }
    }
    // And it goes on: what is written next is there, with its checksum.
    area.open_lease(slice(1), &lease(1), &record.facts).await.unwrap();
    write(&area, 1, 1026 * BLOCK, 0x77, BLOCK as usize).await;
    area.cool(slice(1), &[1]).await.unwrap();
    if area.inner.regions.record(1).unproved {
        // K2: the other leg knows better, and so nothing is kept before all of it was written.
        assert!(what.ends_with(&format!("rot at {:#x}", Reserve::of(pieces[0].length).sums(1))), "{what}");
        let states = area.verify(slice(1), 1024 * BLOCK, 2 * BLOCK).await.unwrap();
        assert_eq!(states[0].state, BlockState::Computed, "{what}");
        for at in (REGION..2 * REGION).step_by(MIB as usize) {
            write(&area, 1, at, 0x77, MIB as usize).await;
        }
        area.cool(slice(1), &[1]).await.unwrap();
    }
    let states = area.verify(slice(1), 1024 * BLOCK, 8 * BLOCK).await.unwrap();
    assert!(states.iter().all(|block| block.state == BlockState::Matches), "{what}: everything is kept again");
}

/// The story, its log, and the disk before it.
async fn told(kind: Kind) -> (MemoryDoors, Images, Vec<Op>, Story) {
    let doors = MemoryDoors::new(kind.images(kind.device()), kind.device());
    Area::format(&doors, &spec(&kind.pieces())).await.unwrap();
    let base = doors.images();
    doors.take_log();
    let story = tell(&doors, &kind.pieces()).await;
    let log = doors.take_log();
    (doors, base, log, story)
}

#[test]
fn h1_h2_k2_s3_p1_a_crash_at_any_write_or_sync_keeps_every_promise() {
    for kind in [Kind::File, Kind::Device, Kind::Joined] {
        sublet_doors::real::run(async |_| {
            let (doors, base, log, story) = told(kind).await;
            let mut dice = Dice(7);
            for end in 0..=log.len() {
                for sample in 0..SAMPLES {
                    let images = crash(&base, &log, end, sample, &mut dice);
                    let what = format!("{kind:?}, {end} of {} operations, sample {sample}", log.len());
                    judge(&story, &doors.restarted(images), &kind.pieces(), end, &what).await;
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn l1_s3_rot_in_any_structure_after_a_crash_keeps_every_promise() {
    for kind in [Kind::File, Kind::Device] {
        sublet_doors::real::run(async |_| {
            let (doors, base, log, story) = told(kind).await;
            let mut dice = Dice(11);
            let reserve = Reserve::of(kind.pieces()[0].length);
            let copies: Vec<u64> = PIECE_LABEL_AT.into_iter().chain(AREA_LABEL_AT).chain(reserve.page(0)).collect();
            let entries = (0..4).map(|region| reserve.map_entry(region));
            let places: Vec<u64> = copies.into_iter().chain(entries).chain((0..4).map(|region| reserve.sums(region))).collect();
            for end in (0..=log.len()).step_by(2) {
                // What was answered is in both copies of a label; a torn one has no second copy to lose.
                let images = crash(&base, &log, end, 0, &mut dice);
                for at in &places {
                    let label = *at < reserve.page(0)[0];
                    let between =
                        log[..end].iter().rev().take(2).any(|op| matches!(op, Op::Write { at, .. } if *at < reserve.page(0)[0]));
                    if label && between {
                        continue;
                    }
                    let mut images = images.clone();
                    let image = images.get_mut(&PathBuf::from("/disk")).unwrap();
                    let mut sector = image.read(*at, 512);
                    sector[dice.roll(300) as usize] ^= 1 << dice.roll(8);
                    image.write(*at, &sector);
                    let what = format!("{kind:?}, {end} of {} operations, rot at {at:#x}", log.len());
                    judge(&story, &doors.restarted(images), &kind.pieces(), end, &what).await;
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn a_format_that_a_crash_interrupts_leaves_an_area_or_none() {
    for kind in [Kind::File, Kind::Device, Kind::Joined] {
        sublet_doors::real::run(async |_| {
            let base = kind.images(true);
            let doors = MemoryDoors::new(base.clone(), kind.device());
            Area::format(&doors, &spec(&kind.pieces())).await.unwrap();
            let log = doors.take_log();
            let mut dice = Dice(3);
            let mut seen = [0; 2];
            for end in 0..=log.len() {
                for sample in 0..SAMPLES {
                    let doors = doors.restarted(crash(&base, &log, end, sample, &mut dice));
                    let found = Area::open(&doors, &kind.pieces(), Some(POOL), BOOT).await;
                    if found.is_err() {
                        assert!(end < log.len() || sample > 0);
                        seen[0] += 1;
                        continue;
                    }
                    let area = found.unwrap();
                    seen[1] += 1;
                    area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
                    assert_eq!(read(&area, 1, 0, 16 << 20).await, vec![0; 16 << 20]);
                    write(&area, 1, REGION, 1, 4096).await;
                    assert!(!read(&area, 1, 0, 16 << 20).await.contains(&0xDD));
                }
            }
            assert!(seen[0] > 0 && seen[1] > 0);
        })
        .unwrap();
    }
}
