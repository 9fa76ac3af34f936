//! Disks that fail, orders that come late, labels that nobody wrote.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use sublet_doors::Clock;
use sublet_types::AreaId;
use sublet_wire::message::{MapWhich, Seed, SetState, StaleMark};

use super::memory::{MemoryDoors, crashes, let_others_run, with_files};
use super::*;
use crate::AreaErrorKind as Kind;
use crate::Witness;
use crate::copies::read_both;
use crate::envelope::{AREA, COUNT_MAX, PIECE};
use crate::label::{AreaLabel, PieceLabel};
use crate::layout::{AREA_LABEL_AT, PIECE_LABEL_AT};

const SIZE: u64 = 72 * MIB;

fn one() -> [PieceSpec; 1] {
    [piece("/disk", SIZE)]
}

fn with_area(test: impl AsyncFnOnce(MemoryDoors, Rc<Area<MemoryDoors>>)) {
    with_files(&[("/disk", file_size_for(SIZE))], false, async |doors| {
        let area = made(&doors, &one()).await;
        test(doors.clone(), area).await;
    });
}

#[test]
fn w7_the_kernel_tells_of_a_lost_write_once_and_every_area_on_that_file_hears_of_it() {
    let length = file_size_for(SIZE);
    with_files(&[("/disk", 2 * length)], false, async |doors| {
        let parts: Vec<PieceSpec> = (0..2).map(|n| PieceSpec { offset: n * length, ..piece("/disk", SIZE) }).collect();
        let mut areas = Vec::new();
        for part in &parts {
            let area = made(&doors, std::slice::from_ref(part)).await;
            area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
            write(&area, 1, 0, 7, 4096).await;
            areas.push(area);
        }
        let before: Vec<_> = areas.iter().map(|area| area.identity()).collect();
        doors.machine.fail_sync.set(true);
        areas[0].flush().await.unwrap_err();
        areas[1].flush().await.unwrap_err();
        put(&areas[1], 1, 0, vec![8; 4096]).await.unwrap_err();
        drop(areas);
        // A restart does not clear it.
        let doors = doors.restarted(doors.images());
        for (part, before) in parts.iter().zip(&before) {
            let area = open(&doors, std::slice::from_ref(part)).await;
            assert!(!area.identity().kept_writes_of(before));
        }
    });
}

#[test]
fn w7_of_two_syncs_at_once_none_is_good_when_one_has_lost_something() {
    with_area(async |doors, area| {
        area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        area.flush().await.unwrap();
        write(&area, 1, 0, 8, 4096).await;
        // The sync of the cooling region's checksums is told, and the flush beside it is not.
        let beside = async {
            while doors.machine.fail_sync.get() {
                let_others_run().await;
            }
            area.flush().await
        };
        doors.machine.fail_sync.set(true);
        let (_, flushed) = futures_util::future::join(area.cool(slice(1), &[0]), beside).await;
        flushed.unwrap_err();
    });
}

#[test]
fn w7_a_failure_that_the_disk_does_not_take_is_noted_as_soon_as_it_does() {
    with_area(async |doors, area| {
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        let before = area.identity();
        // The disk is away for a moment: neither the flush nor the label can be written.
        doors.machine.fail_after.set(Some(0));
        area.flush().await.unwrap_err();
        assert!(!area.identity().kept_writes_of(&before), "the present opening says so at once");
        doors.machine.fail_after.set(None);
        doors.sleep(Duration::from_millis(1500)).await;
        drop(area);
        let area = open(&doors.restarted(doors.images()), &one()).await;
        assert!(!area.identity().kept_writes_of(&before), "and so does the next one");
    });
}

/// A witness as a server's state directory is one.
#[derive(Default)]
struct Notes(std::cell::RefCell<std::collections::BTreeSet<AreaId>>);

impl Witness for Notes {
    fn note(&self, area: AreaId) -> LocalBoxFuture<'static, std::io::Result<()>> {
        self.0.borrow_mut().insert(area);
        Box::pin(async { Ok(()) })
    }

    fn is_noted(&self, area: AreaId) -> LocalBoxFuture<'static, std::io::Result<bool>> {
        let is_noted = self.0.borrow().contains(&area);
        Box::pin(async move { Ok(is_noted) })
    }

    fn forget(&self, area: AreaId) -> LocalBoxFuture<'static, std::io::Result<()>> {
        self.0.borrow_mut().remove(&area);
        Box::pin(async { Ok(()) })
    }
}

#[test]
fn w7_a_failure_that_the_disk_never_takes_outlives_the_process_with_a_witness() {
    let length = file_size_for(SIZE);
    with_files(&[("/disk", length)], false, async |doors| {
        let notes = Rc::new(Notes::default());
        let begin = async |doors: &MemoryDoors| Area::open_with(doors, &one(), None, 1, notes.clone()).await.unwrap();
        drop(made(&doors, &one()).await);
        let area = begin(&doors).await;
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        let before = area.identity();
        doors.machine.fail_after.set(Some(0));
        area.flush().await.unwrap_err();
        assert!(notes.0.borrow().contains(&area.id()), "noted before it is answered");
        drop(area);
        // The process ends before the disk works again.
        crate::files::forget_losses();
        let doors = doors.restarted(doors.images());
        let area = begin(&doors).await;
        assert!(!area.identity().kept_writes_of(&before));
        assert!(notes.0.borrow().is_empty(), "the label has it now");
        let identity = area.identity();
        drop(area);
        let area = begin(&doors.restarted(doors.images())).await;
        assert!(area.identity().kept_writes_of(&identity), "once");
    });
}

#[test]
fn w7_the_other_areas_on_the_file_of_a_failed_one_are_noted_too_before_the_disk_is_asked_again() {
    let length = file_size_for(SIZE);
    with_files(&[("/disk", 2 * length)], false, async |doors| {
        let notes = Rc::new(Notes::default());
        let parts: Vec<PieceSpec> = (0..2).map(|n| PieceSpec { offset: n * length, ..piece("/disk", SIZE) }).collect();
        let mut areas = Vec::new();
        for (part, id) in parts.iter().zip([0xa1, 0xa2]) {
            let (pieces, id) = (std::slice::from_ref(part), AreaId::from_u128(id));
            Area::format(&doors, &FormatSpec { area: id, ..spec(pieces) }).await.unwrap();
            let area = Area::open_with(&doors, pieces, None, 1, notes.clone()).await.unwrap();
            area.prepare_slice(&SliceFacts { area: id, ..facts(1, 0, 2 * REGION) }).await.unwrap();
            write(&area, 1, 0, 7, 4096).await;
            areas.push(area);
        }
        let before = areas[1].identity();
        doors.machine.fail_sync.set(true);
        areas[0].flush().await.unwrap_err();
        assert_eq!(*notes.0.borrow(), [areas[1].id()].into(), "the label of the first one has it");
        // The process is killed before the other one is used again.
        drop(areas);
        crate::files::forget_losses();
        let doors = doors.restarted(doors.images());
        let other = Area::open_with(&doors, std::slice::from_ref(&parts[1]), None, 1, notes.clone()).await.unwrap();
        assert!(!other.identity().kept_writes_of(&before));
    });
}

/// The same, but slowly.
struct SlowNotes(Rc<Notes>, MemoryDoors);

impl Witness for SlowNotes {
    fn note(&self, area: AreaId) -> LocalBoxFuture<'static, std::io::Result<()>> {
        let (notes, doors) = (Rc::clone(&self.0), self.1.clone());
        Box::pin(async move {
            doors.sleep(Duration::from_millis(200)).await;
            notes.note(area).await
        })
    }

    fn is_noted(&self, area: AreaId) -> LocalBoxFuture<'static, std::io::Result<bool>> {
        self.0.is_noted(area)
    }

    fn forget(&self, area: AreaId) -> LocalBoxFuture<'static, std::io::Result<()>> {
        self.0.forget(area)
    }
}

#[test]
fn w7_of_two_requests_that_fail_at_once_none_is_answered_before_that_is_noted() {
    with_files(&[("/disk", file_size_for(SIZE))], false, async |doors| {
        let notes = Rc::new(Notes::default());
        drop(made(&doors, &one()).await);
        let slow = Rc::new(SlowNotes(Rc::clone(&notes), doors.clone()));
        let area = Area::open_with(&doors, &one(), None, 1, slow).await.unwrap();
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        doors.machine.fail_after.set(Some(0));
        let request = async || {
            area.flush().await.unwrap_err();
            assert!(!notes.0.borrow().is_empty());
        };
        futures_util::future::join(request(), request()).await;
    });
}

#[test]
fn w7_a_note_of_a_failure_is_taken_back_once_the_label_has_it() {
    let length = file_size_for(SIZE);
    with_files(&[("/disk", length)], false, async |doors| {
        let notes = Rc::new(Notes::default());
        drop(made(&doors, &one()).await);
        let area = Area::open_with(&doors, &one(), None, 1, notes.clone()).await.unwrap();
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        doors.machine.fail_after.set(Some(0));
        area.flush().await.unwrap_err();
        assert!(!notes.0.borrow().is_empty());
        doors.machine.fail_after.set(None);
        doors.sleep(Duration::from_millis(1500)).await;
        assert!(notes.0.borrow().is_empty());
    });
}

#[test]
fn l1_a_failure_is_noted_in_the_copy_first_that_may_be_damaged() {
    for bad in 0..2 {
        with_area(async |doors, area| {
            area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
            let before = area.identity();
            let at = AREA_LABEL_AT[bad];
            doors.machine.unwritable.replace(Some(at..at + 4096));
            area.prepare_slice(&facts(2, 2 * REGION, REGION)).await.unwrap_err();
            let other = AREA_LABEL_AT[1 - bad];
            let images = doors.images();
            let good = images[&PathBuf::from("/disk")].read(other, 8192);
            doors.sleep(Duration::from_millis(1500)).await;
            let now = doors.images()[&PathBuf::from("/disk")].read(other, 8192);
            assert!(good == now, "the only good copy is left alone while the other one takes no writes");
            doors.machine.unwritable.replace(None);
            doors.sleep(Duration::from_millis(1500)).await;
            drop(area);
            let area = open(&doors.restarted(doors.images()), &one()).await;
            assert!(!area.identity().kept_writes_of(&before));
        });
    }
}

#[test]
fn p2_a_wipe_that_fails_has_nothing_under_way_that_could_land_on_the_next_borrower() {
    with_area(async |doors, area| {
        area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        let data = area.inner.pieces[0].data_at;
        doors.machine.unwritable.replace(Some(data + 2 * MIB..data + 3 * MIB));
        assert_eq!(area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}).await.unwrap_err().kind, Kind::Io);
        assert_eq!(doors.machine.abandoned.get(), 0);
    });
}

#[test]
fn s3_marks_that_cannot_be_written_leave_nothing_under_way() {
    let reserve = crate::layout::Reserve::of(one()[0].length);
    let places = [reserve.map_entry(0), reserve.sums(0), reserve.page(0)[0], reserve.page(0)[1]];
    places.into_iter().for_each(|bad| {
        with_area(async |doors, area| {
            let own = facts(1, 0, 16 * REGION);
            area.prepare_slice(&own).await.unwrap();
            area.open_lease(slice(1), &lease(1), &own).await.unwrap();
            let seed = Seed { leg: 1, since: generation(2), reset: true, entries: (0..16).map(|region| (region, 1)).collect() };
            area.seed(slice(1), &seed).await.unwrap();
            let stale = vec![StaleMark { leg: 1, since: generation(2), seeded: true }];
            let state = SetState { generation: generation(2), in_sync: vec![true, false], equalised: false, stale };
            area.set_state(slice(1), epoch(1), &state).await.unwrap();
            for region in 0..16 {
                write(&area, 1, region * REGION, 7, 4096).await;
            }
            doors.machine.unwritable.replace(Some(bad..bad + 512));
            // Which of the two copies is written is of no account here.
            let cooled = area.cool(slice(1), &(0..16).collect::<Vec<_>>()).await;
            assert!(cooled.is_err() || reserve.page(0).contains(&bad));
            assert_eq!(doors.machine.abandoned.get(), 0);
        })
    });
}

#[test]
fn p2_a_mark_that_was_asked_for_ahead_does_not_come_after_the_wipe() {
    with_area(async |_, area| {
        area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        let late = async {
            while area.inner.label().find(slice(1)).is_some_and(|record| record.wipe.is_none()) {
                let_others_run().await;
            }
            area.inner.heat(slice(1), 2).await
        };
        let (wiped, heated) = futures_util::future::join(area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}), late).await;
        wiped.unwrap();
        assert!(matches!(heated.unwrap_err().kind, Kind::Busy | Kind::NoSlice));
        assert_eq!(area.inner.heat(slice(1), 2).await.unwrap_err().kind, Kind::NoSlice);
        assert!(area.hot_slices().is_empty());
    });
}

#[test]
fn s5_an_order_that_is_repeated_while_a_list_is_sent_loses_none_of_it() {
    with_area(async |_, area| {
        let own = facts(1, 0, 8 * REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        let seed = |reset, region| Seed { leg: 1, since: generation(2), reset, entries: vec![(region, 1)] };
        area.seed(slice(1), &seed(true, 3)).await.unwrap();
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        area.seed(slice(1), &seed(false, 5)).await.unwrap();
        let stale = vec![StaleMark { leg: 1, since: generation(2), seeded: true }];
        let state = SetState { generation: generation(2), in_sync: vec![true, false], equalised: false, stale };
        area.set_state(slice(1), epoch(1), &state).await.unwrap();
        let map = area.map(slice(1), MapWhich::Leg(1), 0, 8 * REGION).await.unwrap();
        let missed: Vec<(u32, u64)> = map.entries.iter().map(|entry| (entry.region, entry.missed)).collect();
        assert_eq!(missed, [(3, 1), (5, 1)]);
    });
}

#[test]
fn s3_a_map_that_is_begun_anew_takes_nothing_off_the_old_one_before_the_label_names_it() {
    with_area(async |doors, area| {
        let own = facts(1, 0, 4 * REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        let leaves = async |number, entries: &[(u32, u64)]| {
            let seed = Seed { leg: 1, since: generation(number), reset: true, entries: entries.to_vec() };
            area.seed(slice(1), &seed).await.unwrap();
            let stale = vec![StaleMark { leg: 1, since: generation(number), seeded: true }];
            let state = SetState { generation: generation(number), in_sync: vec![true, false], equalised: false, stale };
            area.set_state(slice(1), epoch(1), &state).await.unwrap();
        };
        leaves(2, &[]).await;
        write(&area, 1, 0, 7, 4096).await;
        area.cool(slice(1), &[0]).await.unwrap();
        area.flush().await.unwrap();
        let base = doors.images();
        doors.take_log();
        leaves(3, &[(0, 4)]).await;
        for (what, images) in crashes(&base, &doors.take_log()) {
            let area = open(&doors.restarted(images), &one()).await;
            let since = area.missed_since(slice(1))[1].unwrap();
            let map = area.map(slice(1), MapWhich::Leg(1), 0, REGION).await.unwrap();
            let must = if since == generation(2) { 1 } else { 4 };
            assert!(map.entries.first().is_some_and(|entry| entry.missed & must == must), "{what}: {since}");
        }
    });
}

#[test]
fn s3_h3_an_opening_whose_client_goes_away_still_says_that_hot_regions_are_of_an_earlier_epoch() {
    with_area(async |_, area| {
        let own = facts(1, 0, 4 * REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        area.mark_open(slice(1), epoch(1)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        area.open_lease(slice(1), &lease(2), &own).await.unwrap();
        let noted = async {
            while area.inner.label().find(slice(1)).is_some_and(|record| record.open != Some(2)) {
                let_others_run().await;
            }
        };
        // As soon as the label has it, nobody waits for the rest.
        let opening = area.mark_open(slice(1), epoch(2));
        drop(futures_util::future::select(Box::pin(noted), Box::pin(opening)).await);
        assert!(area.mark_open(slice(1), epoch(2)).await.unwrap());
        assert!(area.inner.regions.hot.borrow().values().all(|hot| hot.inherited));
    });
}

/// Puts a label with a right checksum in both places.
fn put_label(doors: &MemoryDoors, at: [u64; 2], bytes: &[u8]) {
    let mut images = doors.machine.images.borrow_mut();
    let image = images.get_mut(&PathBuf::from("/disk")).unwrap();
    at.into_iter().for_each(|at| image.write(at, bytes));
}

#[test]
fn l5_a_label_that_fits_its_checksum_and_makes_no_sense_is_refused() {
    with_area(async |doors, area| {
        for n in 0..2 {
            area.prepare_slice(&facts(n.into(), n * 2 * REGION, 2 * REGION)).await.unwrap();
        }
        drop(area);
        let images = doors.images();
        let doors = || doors.restarted(images.clone());
        let file = doors().open_file().await;
        let label = read_both(&file, AREA_LABEL_AT, AREA, "").await.unwrap().unwrap();
        let label = AreaLabel::decode(&label.bytes).unwrap();
        let piece = read_both(&file, PIECE_LABEL_AT, PIECE, "").await.unwrap().unwrap();
        let piece = PieceLabel::decode(&piece.bytes).unwrap();
        type Spoil = fn(&mut AreaLabel);
        let spoils: [(&str, Spoil); 22] = [
            ("sequence", |label| label.sequence = u64::MAX),
            ("sequence", |label| label.sequence = COUNT_MAX + 1),
            ("opening", |label| label.opening.number = u64::MAX),
            ("capacity", |label| label.capacity = u64::MAX),
            ("piece", |label| label.piece_lengths[0] = u64::MAX),
            ("overlap", |label| label.slices[1].facts.offset = 0),
            ("order", |label| label.slices.swap(0, 1)),
            ("region", |label| label.slices[0].facts.length -= 4096),
            ("empty", |label| label.slices[0].facts.length = 0),
            ("segment", |label| label.slices[0].facts.segment_length += 4096),
            ("legs", |label| label.slices[0].facts.in_sync = vec![true; 60]),
            ("fewer legs", |label| label.slices[0].facts.in_sync = vec![true]),
            ("more legs", |label| label.slices[0].facts.legs = 3),
            ("leg", |label| label.slices[0].facts.leg = 2),
            ("of segments", |label| label.slices[0].facts.segment = 1),
            ("epoch", |label| label.slices[0].epoch.number = COUNT_MAX + 1),
            ("generation", |label| label.slices[0].facts.generation.number = u64::MAX),
            ("missed", |label| label.slices[1].missed_since[3] = Some(Generation { number: COUNT_MAX + 1, random: 1 })),
            ("open", |label| label.slices[0].open = Some(u64::MAX)),
            ("failures", |label| label.failures = u64::MAX),
            ("tombstone", |label| {
                let epoch = Epoch { number: u64::MAX, random: 1 };
                let (slice, volume) = (slice(9), VolumeId::from_u128(9));
                label.tombstones = vec![sublet_api::server::Tombstone { slice, volume, area: super::AREA, epoch }];
            }),
            ("wipe", |label| label.slices[0].wipe = Some(crate::record::WipeRecord { done: u64::MAX, drop: true })),
        ];
        for (what, spoil) in spoils {
            let (doors, mut spoilt) = (doors(), label.clone());
            spoil(&mut spoilt);
            put_label(&doors, AREA_LABEL_AT, &spoilt.encode());
            let error = Area::open(&doors, &one(), Some(POOL), BOOT).await.err();
            assert_eq!(error.map(|error| error.kind), Some(Kind::Format), "{what}");
        }
        let doors = doors();
        let mut spoilt = piece.clone();
        spoilt.opening.number = u64::MAX;
        put_label(&doors, PIECE_LABEL_AT, &spoilt.encode());
        assert_eq!(Area::open(&doors, &one(), Some(POOL), BOOT).await.err().unwrap().kind, Kind::Format);
    });
}

#[test]
fn bytes_under_a_right_checksum_never_panic_whatever_they_are() {
    with_area(async |doors, area| {
        let own = facts(1, 0, 4 * REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        for region in 0..3 {
            write(&area, 1, region * REGION, 7, 8192).await;
        }
        area.cool(slice(1), &[0]).await.unwrap();
        drop(area);
        let images = doors.images();
        let reserve = crate::layout::Reserve::of(one()[0].length);
        let mut dice = super::crash::Dice(5);
        let mut opened = 0;
        for round in 0..300 {
            let mut records = 0;
            let doors = doors.restarted(images.clone());
            let places = [(AREA_LABEL_AT, AREA), (PIECE_LABEL_AT, PIECE), (reserve.page(0), crate::envelope::REGIONS)];
            let (at, kind) = places[round % 3];
            let mut bytes = doors.images()[&PathBuf::from("/disk")].read(at[0], if round % 3 == 0 { 8192 } else { 4096 });
            let sequence = crate::bytes::Get(&bytes).u64(24);
            for _ in 0..1 + dice.roll(3) {
                // The head of each structure, and of a label every second time a field of its slice record.
                let in_record = kind == AREA && dice.roll(2) == 0;
                let place =
                    if in_record { 4096 + dice.roll(368 - 8) } else { 40 + dice.roll(bytes.len() as u64 / 12 - 40) } as usize;
                records += usize::from(in_record);
                let value = [0, 1, 0x80, 0xFF][dice.roll(4) as usize];
                let length = [1, 4, 8][dice.roll(3) as usize];
                bytes[place..place + length].fill(value);
            }
            crate::envelope::seal(&mut bytes, kind, sequence);
            put_label(&doors, at, &bytes);
            let Ok(area) = Area::open(&doors, &one(), Some(POOL), BOOT).await else { continue };
            opened += usize::from(records > 0);
            // What was opened is used: an error is an answer, too.
            let _ = area.report("");
            let _ = area.open_lease(slice(1), &lease(9), &own).await;
            let _ = area.mark_open(slice(1), epoch(9)).await;
            let _ = area.map(slice(1), MapWhich::All, 0, 4 * REGION).await;
            let _ = area.verify(slice(1), 0, 8192).await;
            let _ = put(&area, 1, 0, vec![1; 8192]).await;
            let _ = area.clear(slice(1), 1, &[(0, 1)]).await;
            let _ = area.cool(slice(1), &[0, 1, 2]).await;
            let _ = area.close_clean(slice(1), epoch(9)).await;
            if round % 10 == 0 {
                let _ = area.wipe_slice(slice(1), epoch(10), true, &|_, _| {}).await;
            }
        }
        assert!(opened > 20, "spoilt records that make sense are used: {opened}");
    });
}

#[test]
fn l5_a_lease_by_a_table_that_does_not_know_the_generation_of_a_leg_in_sync_is_refused() {
    with_area(async |_, area| {
        let own = SliceFacts { legs: 2, in_sync: vec![true, true], ..facts(1, 0, 2 * REGION) };
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        let newer = SetState { generation: generation(2), in_sync: vec![true, false], equalised: false, stale: Vec::new() };
        area.set_state(slice(1), epoch(1), &newer).await.unwrap();
        let refused = area.open_lease(slice(1), &lease(2), &own).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Disagreement);
        assert!(refused.to_string().contains("the table is behind"), "{refused}");
        let label = area.report("").slices[0].clone();
        assert_eq!((label.epoch, label.facts.generation), (epoch(1), generation(2)), "nothing was changed");
        // A return that was broken off leaves the label of its target ahead (S5).
        let target = SliceFacts { in_sync: vec![false, true], ..own.clone() };
        area.open_lease(slice(1), &lease(2), &target).await.unwrap();
        let present = SliceFacts { generation: generation(2), in_sync: vec![true, false], ..own };
        area.open_lease(slice(1), &lease(3), &present).await.unwrap();
    });
}

#[test]
fn l5_numbers_that_no_manager_issues_are_refused_and_never_written() {
    with_area(async |doors, area| {
        let own = facts(1, 0, 2 * REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        let huge = Epoch { number: COUNT_MAX + 1, random: 1 };
        let since = Generation { number: COUNT_MAX + 1, random: 1 };
        let refused = |result: Result<(), crate::AreaError>| assert_eq!(result.unwrap_err().kind, Kind::Disagreement);
        refused(area.open_lease(slice(1), &Lease { epoch: huge, ..lease(1) }, &own).await);
        refused(area.fence(slice(1), huge).await);
        refused(area.prepare_slice(&SliceFacts { generation: since, ..own.clone() }).await);
        let stale = vec![StaleMark { leg: 1, since, seeded: false }];
        let state = SetState { generation: generation(2), in_sync: vec![true, false], equalised: false, stale };
        refused(area.set_state(slice(1), epoch(1), &state).await);
        // What was refused leaves nothing behind that stands in the way.
        area.open_lease(slice(1), &lease(2), &own).await.unwrap();
        drop(area);
        open(&doors.restarted(doors.images()), &one()).await;
    });
}
