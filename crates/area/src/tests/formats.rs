//! Areas that older versions made must open. The fixtures were written by the software of their time, and never change.

use std::path::PathBuf;

use sublet_wire::message::{BlockState, MapWhich};

use super::memory::{Image, Images, MemoryDoors};
use super::*;
use crate::copies::read_both;
use crate::envelope::AREA;
use crate::label::AreaLabel;
use crate::layout::AREA_LABEL_AT;

/// An image as text: `file PATH SIZE`, then `OFFSET BYTES` of every sector that is not zero, both hexadecimal, without the
/// zeroes at its end.
fn fixture(text: &str) -> (Images, Vec<PieceSpec>) {
    let (mut images, mut pieces) = (Images::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["file", path, size] = words[..] {
            let length = size.parse().unwrap();
            images.insert(PathBuf::from(path), Image::new(length));
            pieces.push(PieceSpec { path: path.into(), offset: 0, length });
            continue;
        }
        let mut sector: Vec<u8> =
            words[1].as_bytes().chunks(2).map(|hex| u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap()).collect();
        sector.resize(512, 0);
        let path = &pieces.last().unwrap().path;
        images.get_mut(path).unwrap().write(u64::from_str_radix(words[0], 16).unwrap(), &sector);
    }
    (images, pieces)
}

#[test]
fn an_area_of_format_1_opens_with_its_slices_and_bytes_and_keeps_checksums_from_then_on() {
    for (text, device) in
        [(include_str!("../../tests/fixtures/v1-device.hex"), true), (include_str!("../../tests/fixtures/v1-file.hex"), false)]
    {
        let (images, pieces) = fixture(text);
        assert_eq!(pieces.len(), if device { 2 } else { 1 });
        sublet_doors::real::run(async |_| {
            let doors = MemoryDoors::new(images, device);
            for round in 0..3 {
                let area = open(&doors, &pieces).await;
                let report = area.report("");
                assert_eq!(report.slices.len(), 2);
                let (one, two) = (&report.slices[0], &report.slices[1]);
                assert_eq!((one.epoch, one.open, &one.facts.in_sync), (epoch(3), true, &vec![true, false]));
                assert_eq!((one.facts.generation, two.epoch, two.open), (generation(2), epoch(5), false));
                assert_eq!(area.missed_since(slice(1)), [None, None], "no map: a full copy");
                let mut model = vec![0; 12 << 20];
                model[4096..8192].fill(0x11);
                model[(2 * REGION - 4096) as usize..][..8192].fill(0x22);
                assert!(read(&area, 1, 0, 12 << 20).await == model, "round {round}");
                assert_eq!(read(&area, 2, 0, 8192).await, [vec![0x33; 4096], vec![0; 4096]].concat());
                let states = area.verify(slice(1), 0, REGION).await.unwrap();
                let expected = if round < 2 { BlockState::Computed } else { BlockState::Matches };
                assert!(states.iter().all(|block| block.state == expected), "round {round}");
                if round == 1 {
                    area.cool(slice(1), &[0]).await.unwrap();
                    area.flush().await.unwrap();
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn h3_legs_of_format_1_that_were_left_open_may_differ_wherever_something_was_written() {
    for open_by in [None, Some(3)] {
        let (images, pieces) = fixture(include_str!("../../tests/fixtures/v1-device.hex"));
        sublet_doors::real::run(async |_| {
            let doors = MemoryDoors::new(images, true);
            let file = doors.open_file().await;
            let label = read_both(&file, AREA_LABEL_AT, AREA, "").await.unwrap().unwrap();
            let mut label = AreaLabel::decode(&label.bytes).unwrap();
            (label.slices[0].facts.in_sync, label.slices[0].open) = (vec![true, true], open_by);
            for at in AREA_LABEL_AT {
                doors.machine.images.borrow_mut().get_mut(&pieces[0].path).unwrap().write(at, &label.encode());
            }
            // Also when it is opened once more.
            for _ in 0..2 {
                let area = open(&doors, &pieces).await;
                let map = area.map(slice(1), MapWhich::All, 0, 3 * REGION).await.unwrap();
                let hot: Vec<u32> = map.entries.iter().filter(|entry| entry.hot).map(|entry| entry.region).collect();
                assert_eq!(hot, if open_by.is_some() { vec![0, 1, 2] } else { vec![] });
            }
        })
        .unwrap();
    }
}

#[test]
fn a_conversion_that_a_crash_interrupts_anywhere_loses_nothing() {
    let (images, pieces) = fixture(include_str!("../../tests/fixtures/v1-device.hex"));
    sublet_doors::real::run(async |_| {
        let doors = MemoryDoors::new(images.clone(), true);
        drop(open(&doors, &pieces).await);
        for (what, images) in super::memory::crashes(&images, &doors.take_log()) {
            let area = open(&doors.restarted(images), &pieces).await;
            assert_eq!(read(&area, 1, 0, 8192).await, [vec![0; 4096], vec![0x11; 4096]].concat(), "{what}");
            assert_eq!(read(&area, 1, 2 * REGION, 8192).await, [vec![0x22; 4096], vec![0; 4096]].concat(), "{what}");
            assert_eq!(read(&area, 2, 4096, 4096).await, vec![0; 4096], "{what}");
        }
    })
    .unwrap();
}
