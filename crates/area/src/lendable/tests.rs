//! Checks against files and devices with real content.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sublet_doors::real::run;
use sublet_types::{AreaId, PoolId, ServerId};

use super::*;
use crate::{Area, FormatSpec, file_size_for};

const MIB: u64 = 1 << 20;
const POOL: PoolId = PoolId::from_u128(5);

fn whole(path: &Path) -> PieceSpec {
    PieceSpec { path: path.to_owned(), offset: 0, length: probe(path).unwrap().size / 4096 * 4096 }
}

fn sparse_file(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = fs::canonicalize(folder).unwrap().join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Says that a test is passed over, if this user cannot help it: `cargo xtask test` has installed everything for root.
#[track_caller]
fn passed_over(missing: &str) {
    assert!(!rustix::process::geteuid().is_root(), "this test cannot be run without {missing}; see `cargo xtask test`");
    eprintln!("skipped: not here: {missing}");
}

/// True if the program is there and did it.
fn did(program: &str, arguments: &[&str]) -> bool {
    let paths = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new(program).args(arguments).env("PATH", paths).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => panic!("{program}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            passed_over(program);
            false
        }
    }
}

fn refused(pieces: &[PieceSpec], areas: &[PieceSpec], text: &str) -> Refusal {
    let refusal = check_pieces(pieces, areas, Some(POOL), false).unwrap_err();
    assert!(refusal.to_string().contains(text), "'{refusal}' says '{text}'");
    refusal
}

fn format(path: &Path, pool: PoolId) {
    let name = "a1".parse().unwrap();
    let (area, server) = (AreaId::from_u128(1), ServerId::from_u128(2));
    let spec = FormatSpec { pool, area, server, name, pieces: vec![whole(path)], sparse: true };
    run(async |doors| Area::format(&doors, &spec).await.unwrap()).unwrap();
}

#[test]
fn what_real_tools_made_is_recognised_and_only_force_overrules_it() {
    let folder = tempfile::tempdir().unwrap();
    for (program, arguments, what) in [
        ("mkfs.ext4", &["-q", "-F"][..], "an ext2/3/4 file system"),
        ("mkfs.xfs", &["-q", "-f"], "an XFS file system"),
        ("mkswap", &[], "a swap area"),
        ("mkfs.btrfs", &["-q", "-f"], "a btrfs file system"),
        ("mkfs.vfat", &[], "a FAT file system"),
        ("mkfs.ntfs", &["-q", "-F", "-f"], "an NTFS file system"),
    ] {
        let path = sparse_file(folder.path(), program, 320 * MIB);
        assert!(check_pieces(&[whole(&path)], &[], None, false).is_ok(), "an empty file may be lent");
        if did(program, &[arguments, &[path.to_str().unwrap()]].concat()) {
            let refusal = refused(&[whole(&path)], &[], what);
            assert!(refusal.hint.contains("--force"));
            assert!(check_pieces(&[whole(&path)], &[], None, true).is_ok());
            // A part in the middle of it belongs to it too.
            refused(&[PieceSpec { offset: 100 * MIB, length: 100 * MIB, ..whole(&path) }], &[], what);
        }
    }
}

#[test]
fn labels_of_this_and_of_another_pool_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "x", file_size_for(16 * MIB));
    format(&path, POOL);
    refused(&[whole(&path)], &[], "area a1 (pool 00000000, piece 1 of 1), which is of this pool");
    let path = sparse_file(folder.path(), "y", file_size_for(16 * MIB));
    format(&path, PoolId::from_u128(6));
    refused(&[whole(&path)], &[], "which is another pool's");
    assert!(check_pieces(&[whole(&path)], &[], Some(POOL), true).is_ok());
    File::options().write(true).open(&path).unwrap().write_all_at(b"x", 100).unwrap();
    refused(&[whole(&path)], &[], "another pool's");
    File::options().write(true).open(&path).unwrap().write_all_at(b"x", 65536 + 100).unwrap();
    refused(&[whole(&path)], &[], "a damaged Sublet label");
}

#[test]
fn overlap_is_seen_through_links_and_parts_that_touch_are_fine() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "x", 200 * MIB);
    let link = path.with_file_name("hard-link");
    fs::hard_link(&path, &link).unwrap();
    let part =
        |path: &Path, offset: u64, length: u64| PieceSpec { path: path.to_owned(), offset: offset * MIB, length: length * MIB };
    let lent = [part(&path, 50, 50)];
    for (offset, length) in [(50, 50), (0, 51), (99, 50), (0, 200), (60, 32)] {
        refused(&[part(&path, offset, length)], &lent, "overlaps what is lent already");
        refused(&[part(&link, offset, length)], &lent, "overlaps what is lent already");
    }
    for (offset, length) in [(0, 50), (100, 100)] {
        assert!(check_pieces(&[part(&path, offset, length)], &lent, None, false).is_ok());
    }
    refused(&[part(&path, 0, 50), part(&link, 49, 50)], &[], "named twice");
}

#[test]
fn sizes_and_places_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "x", 64 * MIB);
    let piece = whole(&path);
    refused(&[PieceSpec { length: 20 * MIB, ..piece.clone() }], &[], "must be 16 MiB");
    refused(&[PieceSpec { length: 0, ..piece.clone() }], &[], "too small");
    refused(&[PieceSpec { length: 4096, ..piece.clone() }], &[], "too small");
    refused(&[PieceSpec { length: 65 * MIB, ..piece.clone() }], &[], "do not fit");
    refused(&[PieceSpec { offset: 60 * MIB, length: 32 * MIB, ..piece.clone() }], &[], "do not fit");
    refused(&[PieceSpec { offset: 1, ..piece.clone() }], &[], "multiples of 4 KiB");
    refused(&[PieceSpec { offset: u64::MAX - 4095, length: 32 * MIB, ..piece }], &[], "multiples of 4 KiB, below 1 EiB");
    refused(&[], &[], "1 to 64 pieces");
    let gone = PieceSpec { path: path.with_file_name("gone"), offset: 0, length: 32 * MIB };
    assert_eq!(refused(&[gone], &[], "there is no").kind, ErrorKind::NotFound);
}

#[test]
fn a_file_with_content_is_not_taken_by_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "thesis", 64 * MIB);
    File::options().write(true).open(&path).unwrap().write_all_at(b"Chapter 1", 40 * MIB).unwrap();
    refused(&[whole(&path)], &[], "holds data");
    assert!(check_pieces(&[whole(&path)], &[], None, true).is_ok());
    assert!(check_pieces(&[PieceSpec { length: 32 * MIB, ..whole(&path) }], &[], None, false).is_ok());
}

#[test]
fn probing_tells_folders_files_and_what_cannot_be_lent() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "x", 12345);
    assert_eq!(probe(folder.path()).unwrap().kind, TargetKind::Folder);
    let target = probe(&path).unwrap();
    assert_eq!((target.kind, target.size), (TargetKind::File, 12345));
    assert_eq!(probe(Path::new("/dev/null")).unwrap_err().kind, ErrorKind::BadRequest);
    assert_eq!(probe(&path.with_file_name("gone")).unwrap_err().kind, ErrorKind::NotFound);
}

/// A file on a loop device, detached at the end of the test.
struct Loop(PathBuf);

impl Loop {
    /// None, with the reason printed, if this machine does not allow it.
    fn attach(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["-P", "--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))),
            other => {
                passed_over(&format!("a loop device: {other:?}"));
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A mount, ended with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(device: &Path, folder: &Path) -> Self {
        assert!(did("mount", &[device.to_str().unwrap(), folder.to_str().unwrap()]));
        Self(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn mounted_devices_are_refused_even_with_force_and_empty_ones_are_suggested() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "disk", 200 * MIB);
    let Some(device) = Loop::attach(&path) else { return };
    let piece = whole(&device.0);
    assert_eq!(probe(&device.0).unwrap().kind, TargetKind::Disk);
    assert_eq!(check_pieces(std::slice::from_ref(&piece), &[], None, false), Ok(vec![]));
    refused(&[whole(&path)], &[], "it is attached to loop");
    let suggested = |areas: &[PieceSpec]| suggest(areas, 10).into_iter().find(|s| s.path == device.0.to_str().unwrap());
    let suggestion = suggested(&[]).unwrap();
    assert_eq!((suggestion.kind.as_str(), suggestion.surplus), ("disk", crate::layout::data_size(200 * MIB)));
    assert_eq!(suggestion.command, format!("sublet lend {}", device.0.display()));
    assert_eq!(suggested(&[PieceSpec { offset: 4096, length: MIB, ..piece.clone() }]), None, "lent already");
    assert!(block_devices().contains(&piece));
    if !did("mkfs.ext4", &["-q", "-F", device.0.to_str().unwrap()]) {
        return;
    }
    assert_eq!(suggested(&[]), None, "something is on it");
    let point = folder.path().join("my mount");
    fs::create_dir(&point).unwrap();
    let mounted = Mounted::new(&device.0, &point);
    for force in [false, true] {
        let refusal = check_pieces(std::slice::from_ref(&piece), &[], None, force).unwrap_err();
        assert!(refusal.to_string().contains("it is mounted on"), "{refusal}");
        assert!(refusal.to_string().contains("my mount"), "{refusal}");
    }
    drop(mounted);
    refused(&[piece], &[], "an ext2/3/4 file system");
}

/// Swap on a device, off again with the test.
struct Swap(PathBuf);

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).status();
    }
}

#[test]
fn swapped_on_devices_and_files_are_refused_even_with_force() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "swap", 40 * MIB);
    File::options().write(true).open(&path).unwrap().write_all_at(&vec![0; 40 << 20], 0).unwrap();
    let Some(device) = Loop::attach(&path) else { return };
    if !did("mkswap", &["-q", device.0.to_str().unwrap()]) {
        return;
    }
    let on = Command::new("swapon").args(["-p", "0"]).arg(&device.0).output();
    if !on.as_ref().is_ok_and(|output| output.status.success()) {
        // Not everywhere where root may do all else: containers.
        eprintln!("skipped: no swap here: {on:?}");
        return;
    }
    let _swap = Swap(device.0.clone());
    let refusal = check_pieces(&[whole(&device.0)], &[], None, true).unwrap_err();
    assert!(refusal.to_string().contains("it is in use as swap"), "{refusal}");
}

/// An MBR with one Linux partition, from sector `start` on.
fn partition_table(start: u32, sectors: u32) -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&start.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    sector
}

#[test]
fn a_disk_is_in_use_when_its_partition_is_and_parts_keep_off_partitions() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "disk", 300 * MIB);
    let table = partition_table(2048, 100 * 2048);
    File::options().write(true).open(&path).unwrap().write_all_at(&table, 0).unwrap();
    let Some(device) = Loop::attach(&path) else { return };
    let partition = PathBuf::from(format!("{}p1", device.0.display()));
    // A kernel without support for partition tables is told where the partition lies.
    if !partition.exists() && !did("addpart", &[device.0.to_str().unwrap(), "1", "2048", "204800"]) {
        return;
    }
    let disk = whole(&device.0);
    refused(std::slice::from_ref(&disk), &[], "an MBR partition table");
    assert_eq!(probe(&partition).unwrap().kind, TargetKind::Partition);
    assert!(check_pieces(&[whole(&partition)], &[], None, false).is_ok());
    // The partition lies from 1 to 101 MiB of the disk.
    let part = |offset: u64, length: u64| PieceSpec { offset: offset * MIB, length: length * MIB, ..disk.clone() };
    refused(&[part(100, 50)], &[], "would lie on partition");
    assert!(check_pieces(&[part(101, 50)], &[], None, false).is_ok());
    // An area on the partition and one on the disk are compared on the disk.
    refused(&[whole(&partition)], &[part(50, 50)], "overlaps what is lent already");
    refused(&[part(100, 50)], &[whole(&partition)], "overlaps what is lent already");
    if did("mkfs.ext4", &["-q", "-F", partition.to_str().unwrap()]) {
        let point = folder.path().join("mount");
        fs::create_dir(&point).unwrap();
        let _mounted = Mounted::new(&partition, &point);
        let refusal = check_pieces(&[part(101, 50)], &[], None, true).unwrap_err();
        assert!(refusal.to_string().contains("is in use: it is mounted on"), "{refusal}");
    }
}

#[test]
fn an_area_on_a_device_works_whole_and_in_part() {
    use sublet_types::limits::REGION_SIZE;
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(folder.path(), "disk", 100 * MIB);
    File::options().write(true).open(&path).unwrap().write_all_at(&vec![0xDD; 100 << 20], 0).unwrap();
    let Some(device) = Loop::attach(&path) else { return };
    let part = |offset: u64, length: u64| PieceSpec { path: device.0.clone(), offset: offset * MIB, length: length * MIB };
    run(async |doors| {
        let mut areas = Vec::new();
        for (id, piece) in [(1, part(0, 40)), (2, part(40, 60))] {
            let name = "a1".parse().unwrap();
            let (area, server) = (AreaId::from_u128(id), ServerId::from_u128(2));
            let spec = FormatSpec { pool: POOL, area, server, name, pieces: vec![piece], sparse: false };
            Area::format(&doors, &spec).await.unwrap();
            areas.push(Area::open(&doors, &spec.pieces, Some(POOL), 1).await.unwrap());
        }
        for area in &areas {
            assert_ne!(area.identity().disk_sequence, 0);
            let mut facts = crate::tests::facts(7, 0, 2 * REGION_SIZE);
            facts.area = area.id();
            area.prepare_slice(&facts).await.unwrap();
            crate::tests::write(area, 7, REGION_SIZE - 4096, 0x77, 8192).await;
            let found = crate::tests::read(area, 7, 0, 2 * REGION_SIZE as usize).await;
            assert!(!found.contains(&0xDD), "nothing of the disk's past is seen");
            assert_eq!(found.iter().filter(|byte| **byte == 0x77).count(), 8192);
            area.flush().await.unwrap();
            area.wipe_slice(facts.slice, sublet_types::Epoch { number: 1, random: 1 }, true, &|_, _| {}).await.unwrap();
        }
    })
    .unwrap();
    drop(device);
    // A run of them: ids and checksums may hold one by chance.
    assert!(!fs::read(&path).unwrap().windows(16).any(|bytes| bytes == [0x77; 16]), "the wipe reaches the disk");
}
