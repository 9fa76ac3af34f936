//! The lender's disk: labels, region pages, missed maps, checksum pages, and opening an area with all of them.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::rc::Rc;

use sublet_api::order::{Lease, SliceFacts};
use sublet_api::server::Tombstone;
use sublet_area::{Area, FormatSpec, PieceSpec, file_size_for, fuzzing};
use sublet_doors::{Buffer, Chunk, Clock};
use sublet_types::size::MIB;
use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, PoolId, ServerId, SliceId, VolumeId, Way};
use sublet_wire::checksum::{table_size, write_table};
use sublet_wire::message::{MapWhich, Seed, SetState, StaleMark};

use crate::doors::MemDoors;
use crate::image::Image;

pub const AREA: AreaId = AreaId::from_u128(0xa1);
pub const SLICE: SliceId = SliceId::from_u128(0x51);
pub const VOLUME: VolumeId = VolumeId::from_u128(0x70);
pub const BORROWER: ServerId = ServerId::from_u128(0xb0);
pub const LENDER: ServerId = ServerId::from_u128(0x1e);
pub const GENERATION: Generation = Generation { number: 1, random: 9 };
pub const EPOCH: Epoch = Epoch { number: 1, random: 7 };
pub const SECRET: LeaseSecret = LeaseSecret::from_u128(1);
/// The segment is shorter than its slice: the rest of the slice is nobody's.
pub const SEGMENT: u64 = 6 * MIB;
/// The boot id of every opening: nothing is lost between them.
pub const BOOT: u128 = 3;

/// The piece of the area: all of the file.
pub fn pieces() -> Vec<PieceSpec> {
    vec![PieceSpec { path: PathBuf::from("area"), offset: 0, length: file_size_for(16 * MIB) }]
}

/// A slice of a volume with two legs.
fn facts(slice: SliceId, region: u64, way: Way) -> SliceFacts {
    let legs = if way == Way::Doubled { 2 } else { 1 };
    SliceFacts {
        slice,
        area: AREA,
        offset: region * 4 * MIB,
        length: if slice == SLICE { 8 * MIB } else { 4 * MIB },
        volume: VolumeId::from_u128(slice.to_u128() + VOLUME.to_u128() - SLICE.to_u128()),
        volume_name: if slice == SLICE { "vol-1" } else { "vol-2" }.parse().unwrap_or_else(|_| sublet_types::Name::unknown()),
        way,
        volume_size: SEGMENT,
        segment: 0,
        segments: 1,
        segment_length: if slice == SLICE { SEGMENT } else { 4 * MIB },
        leg: 0,
        legs,
        generation: GENERATION,
        in_sync: vec![true; legs as usize],
        borrower: Some(BORROWER),
        defined: slice != SLICE,
        sealed: false,
    }
}

/// An area on a file: a slice of two legs that is leased, another one of one leg with data, a tombstone.
async fn make(doors: &MemDoors) -> Result<(), sublet_area::AreaError> {
    let pieces = pieces();
    doors.set_file(Image::new(pieces.iter().map(PieceSpec::end).max().unwrap_or(0)));
    let name = "a1".parse().unwrap_or_else(|_| sublet_types::Name::unknown());
    let pool = PoolId::from_u128(1);
    Area::format(doors, &FormatSpec { pool, area: AREA, server: LENDER, name, pieces: pieces.clone(), sparse: true }).await?;
    let area = Area::open(doors, &pieces, None, BOOT).await?;
    let lease = Lease { epoch: EPOCH, borrower: BORROWER, secret: SECRET, read_only: false };
    let single = SliceId::from_u128(SLICE.to_u128() + 1);
    for (facts, slice) in [(facts(SLICE, 1, Way::Doubled), SLICE), (facts(single, 3, Way::Single), single)] {
        area.prepare_slice(&facts).await?;
        area.open_lease(slice, &lease, &facts).await?;
        let data = Chunk::copy_of(&[7; 8192]);
        let mut sums = vec![0; table_size(data.len())];
        write_table(&data, &mut sums);
        area.write(slice, 4096, data, &sums).await?;
    }
    area.put_tombstones(&[Tombstone { volume: VOLUME, slice: SliceId::from_u128(0x99), area: AREA, epoch: EPOCH }]).await?;
    area.flush().await?;
    area.settle().await?;
    // The other leg leaves, with a map of what it lacks.
    let since = Generation { number: 2, random: 8 };
    area.seed(SLICE, &Seed { leg: 1, since, reset: true, entries: vec![(0, 3)] }).await?;
    let stale = vec![StaleMark { leg: 1, since, seeded: true }];
    area.set_state(SLICE, EPOCH, &SetState { generation: since, in_sync: vec![true, false], equalised: false, stale }).await?;
    area.settle().await
}

/// That file, made once for each thread.
pub fn base() -> Image {
    thread_local! {
        static BASE: OnceCell<Image> = const { OnceCell::new() };
    }
    let build = || {
        MemDoors::run(|doors| async move {
            if let Err(error) = make(&doors).await {
                panic!("the area cannot be made: {error}");
            }
            doors.file()
        })
    };
    BASE.with(|base| base.get_or_init(build).clone())
}

/// The places of labels, region pages, missed maps and checksum pages in the file, and their lengths (docs/format.md).
const PLACES: [(u64, usize); 8] = [
    (0, 4096),
    (64 << 10, 4096),
    (1 << 20, 8192),
    (2 << 20, 8192),
    ((4 << 20) + 8192, 4096),
    ((4 << 20) + 12288, 4096),
    ((4 << 20) + 16384, 4096),
    ((4 << 20) + 20480, 16384),
];

fn taken(image: &Image, (at, length): (u64, usize)) -> Vec<u8> {
    let mut bytes = vec![0; length];
    image.read(at, &mut bytes);
    bytes
}

/// A label.
pub fn labels(input: &[u8]) -> bool {
    let Some(again) = fuzzing::label(input) else { return false };
    assert_eq!(fuzzing::label(&again).as_ref(), Some(&again), "what is written does not stay the same");
    true
}

/// Puts the checksum right that lies at that place of a structure and covers all of it.
fn mend_at(bytes: &mut [u8], at: usize) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.fill(0);
        let sum = crc32c::crc32c(bytes).to_le_bytes();
        bytes[at..at + 4].copy_from_slice(&sum);
    }
}

/// The checksum of an envelope, and its length, which would be found wrong before anything else.
pub fn mend_label(bytes: &mut [u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    if length.is_multiple_of(4096)
        && let Some(field) = bytes.get_mut(16..20)
    {
        field.copy_from_slice(&length.to_le_bytes());
    }
    mend_at(bytes, 12);
}

pub fn label_seeds() -> Vec<Vec<u8>> {
    let image = base();
    let mut seeds: Vec<Vec<u8>> = [PLACES[0], PLACES[2]].iter().map(|place| taken(&image, *place)).collect();
    // The same as other versions and states have them: the first version, a quarantine.
    let mut old = seeds.clone();
    for label in &mut old {
        label[8] = 1;
        mend_label(label);
    }
    let mut quarantined = seeds[1].clone();
    let why = b"it was rolled back";
    quarantined[232] = why.len() as u8;
    quarantined[3968..3968 + why.len()].copy_from_slice(why);
    mend_label(&mut quarantined);
    seeds.extend(old);
    seeds.push(quarantined);
    seeds
}

/// What the pages and entries belong to.
const PAGE: usize = 0;
const REGIONS: usize = 4;

/// A byte that says what it is, and the structure; of a checksum page, its checksum before it.
pub fn pages(input: &[u8]) -> bool {
    let Some((kind, bytes)) = input.split_first() else { return false };
    let again = match kind % 5 {
        0 => fuzzing::region_page(bytes, PAGE, REGIONS),
        1 => fuzzing::region_page(bytes, PAGE, 504),
        2 => fuzzing::missed_entry(bytes, 1, SLICE),
        3 => {
            let Some((sum, page)) = bytes.split_first_chunk::<4>() else { return false };
            return fuzzing::sum_page(page, u32::from_le_bytes(*sum)).is_some();
        }
        _ => {
            let (first, second) = bytes.split_at(bytes.len().min(4096));
            return matches!(fuzzing::region_pages([first, second], PAGE, REGIONS, kind & 0x80 != 0), Ok(Some(_)));
        }
    };
    let Some(again) = again else { return false };
    let fixed = match kind % 5 {
        0 => fuzzing::region_page(&again, PAGE, REGIONS),
        1 => fuzzing::region_page(&again, PAGE, 504),
        _ => fuzzing::missed_entry(&again, 1, SLICE),
    };
    assert_eq!(fixed.as_ref(), Some(&again), "what is written does not stay the same");
    true
}

pub fn mend_page(input: &mut [u8]) {
    let Some((kind, bytes)) = input.split_first_mut() else { return };
    match *kind % 5 {
        0 | 1 => mend_at(bytes, 12),
        2 => {
            if let Some(entry) = bytes.get_mut(..512) {
                mend_at(entry, 4);
            }
        }
        3 => {
            if let Some((sum, page)) = bytes.split_first_chunk_mut::<4>() {
                *sum = crc32c::crc32c(page).to_le_bytes();
            }
        }
        _ => bytes.chunks_mut(4096).for_each(|page| mend_at(page, 12)),
    }
}

pub fn page_seeds() -> Vec<Vec<u8>> {
    let image = base();
    let [first, second] = [taken(&image, PLACES[4]), taken(&image, PLACES[5])];
    let entry = taken(&image, (PLACES[6].0 + 512, 512));
    let sums = taken(&image, (PLACES[7].0 + 4096, 4096));
    let mut seeds = vec![
        [&[0][..], &first].concat(),
        [&[1][..], &second].concat(),
        [&[2][..], &entry].concat(),
        [&[3, 0, 0, 0, 0][..], &sums].concat(),
        [&[4][..], &first, &second].concat(),
        [&[0x85][..], &second, &first].concat(),
        [&[4][..], &first].concat(),
    ];
    seeds.iter_mut().for_each(|seed| mend_page(seed));
    seeds
}

/// Changes of the file, each with its place (one byte), offset in it (two), length (one) and bytes; then the area is opened and
/// used. The first byte says whether checksums are put right and whether both copies are changed.
pub fn open(input: &[u8]) -> bool {
    let Some((how, mut rest)) = input.split_first() else { return false };
    let mut image = base();
    while let Some(([place, high, low, length], after)) = rest.split_first_chunk() {
        let (bytes, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        let place = usize::from(*place) % PLACES.len();
        // Both copies of a label or page stand beside each other in the list.
        let copies = if how & 2 != 0 && place < 6 { vec![place & !1, place | 1] } else { vec![place] };
        for place in copies {
            let (at, room) = PLACES[place];
            let offset = usize::from(u16::from_be_bytes([*high, *low])) % room;
            let bytes = &bytes[..bytes.len().min(room - offset)];
            image.write(at + offset as u64, bytes);
            if how & 1 != 0 {
                mend_in(&mut image, place);
            }
        }
    }
    MemDoors::run(move |doors| async move {
        doors.set_file(image);
        let opened = use_area(&doors).await;
        // What it has made of it is no worse than what it was given.
        assert!(!opened || Area::open(&doors, &pieces(), None, BOOT).await.is_ok(), "it opens once, and not again");
        opened
    })
}

/// Puts the checksum of one structure in the file right.
fn mend_in(image: &mut Image, place: usize) {
    let (at, length) = PLACES[place];
    let mut bytes = taken(image, (at, length));
    match place {
        0..6 => mend_at(&mut bytes, 12),
        6 => bytes.chunks_mut(512).for_each(|entry| mend_at(entry, 4)),
        _ => return,
    }
    image.write(at, &bytes);
}

/// Opens the area, and does with every slice what borrowers do.
async fn use_area(doors: &MemDoors) -> bool {
    let Ok(area) = Area::open(doors, &pieces(), None, BOOT).await else { return false };
    let report = area.report("a file");
    assert!(report.slices.iter().all(|slice| slice.facts.offset.saturating_add(slice.facts.length) <= report.capacity));
    for slice in report.slices {
        use_slice(doors, &area, slice.facts.slice, slice.facts.segment_length).await;
    }
    // Whether this succeeds is not the point: a disk that holds nonsense may be refused at any step, but never make it panic.
    let _ = area.cool_idle(doors.now()).await;
    let _ = area.settle().await;
    true
}

async fn use_slice(doors: &MemDoors, area: &Rc<Area<MemDoors>>, slice: SliceId, length: u64) {
    let _ = area.map(slice, MapWhich::All, 0, length).await;
    let _ = area.map(slice, MapWhich::Leg(1), 0, length).await;
    let _ = area.verify(slice, 0, 8192.min(length / 4096 * 4096)).await;
    let _ = area.extents(slice, 0, length).await;
    let mut sums = vec![0; table_size(8192)];
    let (read, _) = area.read(slice, 0, Buffer::new(8192), 0..8192, &mut sums).await;
    let data = Chunk::copy_of(&[5; 4096]);
    let mut sum = [0; 4];
    write_table(&data, &mut sum);
    let wrote = area.write(slice, 0, data, &sum).await;
    if read.is_ok() && wrote.is_ok() {
        let (read, bytes) = area.read(slice, 0, Buffer::new(4096), 0..4096, &mut [0; 4]).await;
        assert!(read.is_err() || *bytes == [5; 4096], "what was written is not read");
    }
    let _ = area.flush().await;
    let _ = area.cool(slice, &[0, 1]).await;
    let _ = area.cool_idle(doors.now()).await;
}

pub fn open_seeds() -> Vec<Vec<u8>> {
    let change =
        |place: u8, offset: u16, bytes: &[u8]| [&[place][..], &offset.to_be_bytes(), &[bytes.len() as u8], bytes].concat();
    vec![
        vec![0],
        [vec![0], change(0, 0, b"X")].concat(),
        [vec![0], change(2, 5000, &[0xff; 8])].concat(),
        // A later sequence, the opening, a slice's generation and its flags.
        [vec![3], change(2, 24, &[200]), change(0, 120, &[9])].concat(),
        [vec![3], change(2, 4096 + 80, &[7]), change(2, 4096 + 192, &[0x14])].concat(),
        // Regions: plain, cold, hot, with maps.
        [vec![3], change(4, 64 + 8, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0x13, 1])].concat(),
        [vec![1], change(5, 64 + 8, &[3, 0x12]), change(6, 512 + 56, &[0xff; 8])].concat(),
        [vec![3], change(7, 4096, &[1, 2, 3, 4]), change(4, 0, b"SUBLETRT")].concat(),
    ]
}
