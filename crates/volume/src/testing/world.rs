//! A whole small pool: lenders, a manager, the mounting information of one volume, and a byte model beside it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use sublet_api::mount::{MountLeg, MountSegment, MountingInformation};
use sublet_doors::{Chunk, Clock, Rng};
use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, ManagerId, PoolId, ServerId, SliceId, VolumeId, Way};

use super::doors::MemDoors;
use super::lender::{Label, Lender, Slice};
use super::manager::{FakeManager, SegmentRow, State};
use crate::{Volume, VolumeError, VolumeErrorKind, VolumeOptions, ZeroFlags};

pub(crate) type TestVolume = Rc<Volume<MemDoors, FakeManager>>;

pub(crate) struct World {
    pub(crate) doors: MemDoors,
    pub(crate) lenders: Vec<Rc<Lender>>,
    pub(crate) manager: FakeManager,
    pub(crate) info: MountingInformation,
    pub(crate) history: Rc<RefCell<Vec<String>>>,
}

impl World {
    /// A volume of segments with these lengths, each with so many legs; every leg at a lender of its own.
    pub(crate) fn new(doors: &MemDoors, lengths: &[u64], copies: usize) -> Self {
        let history = Rc::new(RefCell::new(Vec::new()));
        let generation = Generation { number: 1, random: 1 };
        let (mut lenders, mut segments, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for length in lengths {
            let mut legs = Vec::new();
            for _ in 0..copies {
                let lender = Lender::new(doors, lenders.len() as u16, &history);
                let slice = SliceId::from_u128(doors.random_u128());
                let label = Label { generation, in_sync: vec![true; copies], unclean: false, open_epoch: None };
                lender.slices.borrow_mut().insert(slice.to_u128(), Slice::new(label, *length as usize));
                legs.push(MountLeg {
                    slice,
                    area: AreaId::from_u128(5),
                    area_name: "area".parse().unwrap(),
                    server: lender.server,
                    server_name: lender.name.parse().unwrap(),
                    addresses: vec![lender.address()],
                    offset: 0,
                    in_sync: true,
                    stale_since: None,
                });
                lenders.push(lender);
            }
            rows.push(SegmentRow::new(generation, legs.iter().map(|l| l.slice).collect(), vec![true; copies]));
            segments.push(MountSegment { length: *length, generation, legs });
        }
        let way = if copies > 1 { Way::Doubled } else { Way::Integrated };
        let info = MountingInformation {
            version: 1,
            pool: PoolId::from_u128(1),
            manager: ManagerId::from_u128(2),
            volume: VolumeId::from_u128(3),
            name: "vol".parse().unwrap(),
            way,
            size: lengths.iter().sum(),
            sealed: false,
            seal: None,
            borrower: ServerId::from_u128(4),
            borrower_name: "borrower".parse().unwrap(),
            status: 1,
            read_only: false,
            epoch: Epoch { number: 1, random: 1 },
            secret: Some(LeaseSecret::from_u128(9)),
            segments,
        };
        let manager = FakeManager(Rc::new(State {
            doors: doors.clone(),
            segments: RefCell::new(rows),
            epoch: std::cell::Cell::new(1),
            away: std::cell::Cell::new(false),
            asked: std::cell::Cell::new(0),
            deaf: std::cell::Cell::new(0),
            puts_off: std::cell::Cell::new(0),
            lenders: RefCell::default(),
            history: Rc::clone(&history),
        }));
        Self { doors: doors.clone(), lenders, manager, info, history }
    }

    pub(crate) async fn open(&self) -> TestVolume {
        self.open_with(VolumeOptions::default()).await.unwrap()
    }

    /// Nobody looks at what has happened so far any more.
    #[cfg(feature = "pieces")]
    pub(crate) fn forget_history(&self) {
        self.history.borrow_mut().clear();
        self.lenders.iter().for_each(|lender| lender.seen.borrow_mut().clear());
    }

    pub(crate) async fn open_with(&self, options: VolumeOptions) -> Result<TestVolume, VolumeError> {
        Volume::open(self.doors.clone(), self.manager.clone(), self.info.clone(), options).await
    }

    pub(crate) async fn sleep(&self, seconds: f64) {
        self.doors.sleep(Duration::from_secs_f64(seconds)).await;
    }

    /// Waits until something holds, at most so long.
    pub(crate) async fn until(&self, seconds: u64, what: &str, holds: impl Fn() -> bool) {
        for _ in 0..seconds * 100 {
            if holds() {
                return;
            }
            self.sleep(0.01).await;
        }
        panic!("not within {seconds} s: {what}; history: {:#?}", self.history.borrow());
    }

    /// Both lenders hold the same bytes.
    pub(crate) fn assert_same(&self, one: usize, other: usize) {
        assert_same(&self.lenders[one].bytes(), &self.lenders[other].bytes(), &self.history.borrow());
    }

    /// Position of the first event that contains the text, from `from` on.
    pub(crate) fn event(&self, from: usize, text: &str) -> Option<usize> {
        self.history.borrow().iter().skip(from).position(|event| event.contains(text)).map(|at| at + from)
    }
}

/// Says where bytes differ, and what happened before, instead of printing them all.
pub(crate) fn assert_same(one: &[u8], other: &[u8], history: &[String]) {
    let differs = one.iter().zip(other).position(|(a, b)| a != b);
    let tail = &history[history.len().saturating_sub(60)..];
    assert!(one.len() == other.len() && differs.is_none(), "different at {differs:?}; history: {tail:#?}");
}

pub(crate) async fn read(volume: &TestVolume, offset: u64, length: usize) -> Result<Vec<u8>, VolumeError> {
    let bytes = Chunk::joined(&volume.read(offset, length as u64).await?);
    assert_eq!(bytes.len(), length, "all of it, and no more");
    Ok(bytes)
}

pub(crate) async fn write(volume: &TestVolume, offset: u64, bytes: &[u8]) -> Result<(), VolumeError> {
    volume.write(offset, Chunk::from(bytes.to_vec()), false).await
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, VolumeError>) -> VolumeErrorKind {
    result.unwrap_err().kind
}

/// Random requests of any alignment, one after the other, against a byte model. `model` is what the volume must hold.
pub(crate) async fn exercise(doors: &MemDoors, volume: &TestVolume, model: &mut [u8], operations: usize) {
    let size = model.len() as u64;
    for _ in 0..operations {
        let (offset, length) = range(doors, size);
        let span = offset as usize..(offset + length) as usize;
        match doors.below(8) {
            0..=2 => {
                assert_eq!(read(volume, offset, length as usize).await.unwrap(), model[span], "{length} bytes at {offset}");
            }
            3..=5 => {
                let bytes: Vec<u8> = (0..length).map(|_| doors.below(256) as u8).collect();
                volume.write(offset, Chunk::from(bytes.clone()), doors.below(4) == 0).await.unwrap();
                model[span].copy_from_slice(&bytes);
            }
            6 => {
                let flags = ZeroFlags { fua: doors.below(2) == 0, no_hole: doors.below(2) == 0, fast: false };
                volume.write_zeroes(offset, length, flags).await.unwrap();
                model[span].fill(0);
            }
            _ => volume.flush().await.unwrap(),
        }
    }
}

/// A range in a volume: often small, often aligned, sometimes at its very end.
pub(crate) fn range(doors: &MemDoors, size: u64) -> (u64, u64) {
    let length_max = [1, 700, 4096, 12288, 70000, 300_000][doors.below(6) as usize].min(size);
    let mut length = 1 + doors.below(length_max);
    let mut offset = doors.below(size - length + 1);
    if doors.below(3) == 0 {
        offset = offset / 4096 * 4096;
        length = length.div_ceil(4096) * 4096;
    }
    if doors.below(10) == 0 {
        offset = size - length.min(size);
    }
    (offset, length.min(size - offset))
}
