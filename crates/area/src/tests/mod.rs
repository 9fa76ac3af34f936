//! Tests of areas: on a disk in memory that records and breaks, and on real files.

mod blank;
mod crash;
mod failures;
mod faults;
mod formats;
mod hot;
mod joined;
mod labels;
mod leases;
mod ledger;
mod maps;
mod measure;
mod memory;
mod proof;
mod real;
mod share;
mod stories;
mod wipes;

use std::rc::Rc;

use sublet_api::order::{Lease, SliceFacts};
use sublet_doors::{Buffer, Doors};
use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, OpenId, PoolId, ServerId, SessionNumber, SliceId, VolumeId, Way};
use sublet_wire::message::{Open, OpenMode};

use crate::{Area, FormatSpec, PieceSpec, file_size_for};

const MIB: u64 = 1 << 20;
const REGION: u64 = 4 * MIB;
const AREA: AreaId = AreaId::from_u128(0xa1);
const POOL: PoolId = PoolId::from_u128(0xb0);
const BORROWER: ServerId = ServerId::from_u128(0xb0b);
const BOOT: u128 = 77;

fn piece(path: &str, capacity: u64) -> PieceSpec {
    PieceSpec { path: path.into(), offset: 0, length: file_size_for(capacity) }
}

fn spec(pieces: &[PieceSpec]) -> FormatSpec {
    FormatSpec {
        pool: POOL,
        area: AREA,
        server: ServerId::from_u128(0x5e),
        name: "a1".parse().unwrap(),
        pieces: pieces.to_vec(),
        sparse: false,
    }
}

fn slice(n: u128) -> SliceId {
    SliceId::from_u128(n)
}

fn epoch(number: u64) -> Epoch {
    Epoch { number, random: u128::from(number) * 1000 + 7 }
}

fn generation(number: u64) -> Generation {
    Generation { number, random: u128::from(number) * 1000 + 9 }
}

pub(crate) fn facts(n: u128, offset: u64, length: u64) -> SliceFacts {
    SliceFacts {
        slice: slice(n),
        area: AREA,
        offset,
        length,
        volume: VolumeId::from_u128(n.wrapping_add(100)),
        volume_name: format!("vol-{n}").parse().unwrap(),
        way: Way::Doubled,
        volume_size: length,
        segment: 0,
        segments: 1,
        segment_length: length,
        leg: 0,
        legs: 2,
        generation: generation(1),
        in_sync: vec![true, true],
        borrower: Some(BORROWER),
        defined: false,
        sealed: false,
    }
}

fn lease(number: u64) -> Lease {
    Lease { epoch: epoch(number), borrower: BORROWER, secret: LeaseSecret::from_u128(number.into()), read_only: false }
}

/// What a client with this lease shows.
fn open_request(facts: &SliceFacts, lease: &Lease) -> Open {
    Open {
        session: SessionNumber(1),
        area: AREA,
        slice: facts.slice,
        volume: facts.volume,
        way: facts.way,
        segment: facts.segment,
        segment_length: facts.segment_length,
        leg: facts.leg,
        generation: facts.generation,
        mode: OpenMode::InSync,
        borrower: lease.borrower,
        epoch: lease.epoch,
        secret: lease.secret,
        known_open: OpenId::from_u128(0),
        known_sequence: 0,
    }
}

async fn open<D: Doors>(doors: &D, pieces: &[PieceSpec]) -> Rc<Area<D>> {
    Area::open(doors, pieces, Some(POOL), BOOT).await.unwrap()
}

/// The same after the machine went down and came up again.
async fn open_rebooted<D: Doors>(doors: &D, pieces: &[PieceSpec]) -> Rc<Area<D>> {
    Area::open(doors, pieces, Some(POOL), BOOT + 1).await.unwrap()
}

async fn made<D: Doors>(doors: &D, pieces: &[PieceSpec]) -> Rc<Area<D>> {
    Area::format(doors, &spec(pieces)).await.unwrap();
    open(doors, pieces).await
}

pub(crate) async fn read<D: Doors>(area: &Area<D>, n: u128, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = Buffer::new(length);
    buffer.fill(0xEE);
    let (result, buffer) = area.read(slice(n), offset, buffer, 0..length, &mut []).await;
    result.unwrap();
    buffer.to_vec()
}

pub(crate) async fn write<D: Doors>(area: &Area<D>, n: u128, offset: u64, byte: u8, length: usize) {
    put(area, n, offset, vec![byte; length]).await.unwrap();
}

/// Writes with the right checksums.
async fn put<D: Doors>(area: &Area<D>, n: u128, offset: u64, data: Vec<u8>) -> Result<(), crate::AreaError> {
    let mut sums = vec![0; data.len() / 4096 * 4];
    sublet_wire::checksum::write_table(&data[..data.len() / 4096 * 4096], &mut sums);
    area.write(slice(n), offset, data.into(), &sums).await
}
