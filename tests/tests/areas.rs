//! What can be lent, what is refused, and what comes back: folders, files, disks, partitions, parts, joined pieces.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sublet_tests::disks::{self, LoopDisk, sparse_file};
use sublet_tests::fio::Fio;
use sublet_tests::model::same;
use sublet_tests::random::Random;
use sublet_tests::run::{run, sh, tool};
use sublet_tests::shorthand::{number, text};
use sublet_tests::{MIB, Pool, Run, Wish, exit, has_devices, wait_for};

fn pool(servers: usize) -> Pool {
    Pool::with(&Wish { servers, area: None })
}

/// A folder for the disks of a test.
fn folder(pool: &Pool, name: &str) -> std::path::PathBuf {
    let dir = pool.dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// The row of an area.
fn area(pool: &Pool, name: &str) -> Value {
    let areas = pool.json(0, "area ls");
    areas.as_array().unwrap().iter().find(|a| a["name"] == name).cloned().unwrap_or_else(|| panic!("no area {name}: {areas:#}"))
}

/// A lend that must be refused, for a reason that contains one of these words.
#[track_caller]
fn not_lent(pool: &Pool, args: &[&str], words: &[&str]) -> Run {
    let before = pool.json(0, "area ls");
    let mut line = vec!["lend"];
    line.extend(args);
    let run = pool.sublet(1, &line).sane();
    let codes = [exit::BAD_REQUEST, exit::NOT_FOUND, exit::ALREADY_EXISTS, exit::CONFLICT, exit::NO_SPACE, exit::IO];
    assert!(run.code.is_some_and(|c| codes.contains(&c)), "not refused: {run}");
    let said = run.err.to_lowercase();
    assert!(words.iter().any(|w| said.contains(&w.to_lowercase())), "says none of {words:?}: {run}");
    assert_eq!(pool.json(0, "area ls"), before, "something was registered");
    run
}

/// Server-a borrows the whole area, uses all of it, and gives it back.
#[track_caller]
fn carries_bytes(pool: &Pool, name: &str) {
    pool.ok(0, &format!("volume create u --way single --on {name}"));
    pool.ok(0, "borrow u");
    let nbd = pool.mount(0, "u", "");
    assert_eq!(nbd.size, number(&area(pool, name), "/capacity"), "all of the area");
    Fio::nbd(&pool.socket(0, "u")).job("64k", 16, nbd.size / 65_536 * 65_536).check();
    drop(nbd);
    pool.ok(0, "unmount u");
    pool.ok(0, "return u --dissolve");
    assert_eq!(area(pool, name)["free"], area(pool, name)["capacity"]);
}

#[test]
fn a_folder_gets_a_preallocated_file_with_exactly_the_room_asked_for() {
    let pool = pool(2);
    let dir = folder(&pool, "lend");
    let lent = pool.json(1, &format!("lend {} --size 48M --keep-free 0%", dir.display()));
    assert_eq!(number(&lent, "/capacity"), 48 * MIB);
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|e| e.metadata().unwrap()).collect();
    assert_eq!(files.len(), 1);
    assert!(files[0].blocks() * 512 >= 48 * MIB, "preallocated: {} blocks", files[0].blocks());
    assert_eq!(files[0].mode() & 0o077, 0, "nobody else may read what borrowers keep here");
    let name = text(&lent, "/name");
    assert_eq!(area(&pool, &name)["server"], "server-b");
    assert_eq!(area(&pool, &name)["state"], "online");
    carries_bytes(&pool, &name);
    // Sparse on request, and more than one area in one folder.
    pool.ok(1, &format!("lend {} --size 33M --name thin --sparse --keep-free 0%", dir.display()));
    assert_eq!(area(&pool, "thin")["capacity"], 36 * MIB, "rounded up to 4 MiB");
    assert_eq!(area(&pool, "thin")["sparse"], true);
    let thin = std::fs::read_dir(&dir).unwrap().flatten().map(|e| e.metadata().unwrap()).min_by_key(MetadataExt::blocks).unwrap();
    assert!(thin.blocks() * 512 < 16 * MIB, "{} blocks", thin.blocks());
    carries_bytes(&pool, "thin");
    // A name that is taken is refused, and nothing is left of the try.
    let count = || std::fs::read_dir(&dir).unwrap().count();
    let before = count();
    let path = dir.to_string_lossy().into_owned();
    not_lent(&pool, &[&path, "--size", "32M", "--name", "thin", "--keep-free", "0%"], &["thin"]);
    assert_eq!(count(), before, "a file stays behind");
}

#[test]
fn a_file_can_be_lent_whole_or_in_part() {
    let pool = pool(2);
    let dir = folder(&pool, "files");
    let whole = dir.join("whole");
    sparse_file(&whole, 64 * MIB);
    pool.ok(1, &format!("lend {} --name whole --keep-free 0%", whole.display()));
    let capacity = number(&area(&pool, "whole"), "/capacity");
    assert!((48 * MIB..64 * MIB).contains(&capacity), "{capacity}");
    carries_bytes(&pool, "whole");
    let part = dir.join("part");
    std::fs::write(&part, Random::new(1).bytes(96 << 20)).unwrap();
    let before = std::fs::read(&part).unwrap();
    pool.ok(1, &format!("lend {} --offset 8M --size 64M --name part --force --keep-free 0%", part.display()));
    carries_bytes(&pool, "part");
    let after = std::fs::read(&part).unwrap();
    assert_eq!(after.len(), before.len());
    assert!(
        after[..8 << 20] == before[..8 << 20] && after[72 << 20..] == before[72 << 20..],
        "bytes outside of the part were touched"
    );
}

#[test]
fn whole_disks_partitions_and_divisions_carry_bytes() {
    if !has_devices() {
        return;
    }
    let pool = pool(2);
    let dir = folder(&pool, "disks");
    let disk = LoopDisk::new(&dir, "disk", 96 * MIB);
    pool.ok(1, &format!("lend {} --name disk", disk.device));
    assert!(text(&area(&pool, "disk"), "/place").contains(&disk.device));
    carries_bytes(&pool, "disk");
    let mut parted = LoopDisk::new(&dir, "parted", 160 * MIB);
    let [one, two] = parted.partition();
    pool.ok(1, &format!("lend {one} --name p1"));
    carries_bytes(&pool, "p1");
    pool.ok(1, &format!("lend {two} --offset 16M --size 40M --name d2"));
    carries_bytes(&pool, "d2");
    // Two divisions of one disk, used at the same time.
    let divided = LoopDisk::new(&dir, "divided", 160 * MIB);
    pool.ok(1, &format!("lend {} --offset 0 --size 64M --name e1", divided.device));
    pool.ok(1, &format!("lend {} --offset 64M --size 64M --name e2", divided.device));
    let device = divided.device.clone();
    not_lent(&pool, &[&device, "--offset", "100M", "--size", "60M", "--name", "e3"], &["overlap"]);
    carries_bytes(&pool, "e1");
    carries_bytes(&pool, "e2");
    for name in ["disk", "p1", "d2", "e1", "e2"] {
        pool.ok(1, &format!("reclaim {name}"));
    }
}

#[test]
fn a_joined_area_with_a_missing_piece_is_offline_by_name_and_never_shifted() {
    if !has_devices() {
        return;
    }
    let pool = pool(2);
    let dir = folder(&pool, "joined");
    let disks: Vec<LoopDisk> =
        [32, 48, 40].into_iter().enumerate().map(|(n, mib)| LoopDisk::new(&dir, &format!("j{n}"), mib * MIB)).collect();
    let paths: Vec<String> = disks.iter().map(|d| d.device.clone()).collect();
    pool.ok(1, &format!("lend {} --name joined", paths.join(" ")));
    pool.ok(0, "volume create v --way single --on joined");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let size = nbd.size as usize;
    assert!(size as u64 > 90 * MIB, "three disks as one: {size}");
    let bytes = Random::new(6).bytes(size);
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        nbd.write(n as u64 * MIB, part).unwrap();
    }
    nbd.flush().unwrap();
    drop(nbd);
    pool.ok(0, "unmount v");

    let server = pool.kill(1);
    let mut disks = disks.into_iter();
    let (first, middle, last) = (disks.next().unwrap(), disks.next().unwrap(), disks.next().unwrap());
    let missing = middle.device.clone();
    // The kernel lets go of a killed server's device only after a moment.
    let file = middle.detach();
    wait_for("the middle disk to be gone", Duration::from_secs(10), || !run(tool("losetup").arg(&missing)).succeeded());
    // Its number goes to another disk, full of other bytes.
    let stranger = LoopDisk::new(&dir, "stranger", 48 * MIB);
    pool.revive(1, &server);
    wait_for("the area to be offline", Duration::from_secs(15), || area(&pool, "joined")["state"] != "online");
    let state = text(&area(&pool, "joined"), "/state");
    assert!(state.contains(&missing), "names the missing piece {missing}: {state}");
    let refused = pool.sublet_within(0, &["mount", "v", "--as", "socket"], Duration::from_secs(60)).sane();
    assert!(!refused.succeeded(), "mounted without one of its disks: {refused}");
    let stranger_bytes = std::fs::read(&stranger.file).unwrap();
    assert!(stranger_bytes.iter().all(|b| *b == 0), "the stranger was written to");

    // It comes back under another number, and is recognised by its label.
    let back = LoopDisk::attach(&file);
    assert!(stranger.device != missing || back.device != missing);
    wait_for("the area to be online again", Duration::from_secs(40), || area(&pool, "joined")["state"] == "online");
    let mut nbd = pool.mount(0, "v", "");
    same(&nbd.read_all().unwrap(), &bytes, 0, "all three disks");
    drop(nbd);
    pool.ok(0, "unmount v");
    pool.ok(0, "return v --dissolve");
    pool.ok(1, "reclaim joined");
    drop((first, back, last));
}

#[test]
fn a_file_that_is_missing_at_a_restart_makes_its_area_offline_until_it_returns() {
    let pool = pool(2);
    let dir = folder(&pool, "files");
    let pieces: Vec<_> = (0..3).map(|n| dir.join(format!("f{n}"))).collect();
    for piece in &pieces {
        sparse_file(piece, 40 * MIB);
    }
    let line: Vec<String> = pieces.iter().map(|p| p.display().to_string()).collect();
    pool.ok(1, &format!("lend {} --name three --keep-free 0%", line.join(" ")));
    let capacity = area(&pool, "three")["capacity"].clone();
    let server = pool.kill(1);
    // To another folder: beside the others it would be recognised by its label.
    let away = folder(&pool, "elsewhere").join("away");
    std::fs::rename(&pieces[1], &away).unwrap();
    pool.revive(1, &server);
    wait_for("the area to be offline", Duration::from_secs(15), || area(&pool, "three")["state"] != "online");
    assert!(text(&area(&pool, "three"), "/state").contains("f1"), "{}", area(&pool, "three"));
    pool.refused(0, "borrow big --size 64M", exit::NO_SPACE);
    // Two that have changed names are recognised by their labels, and never served in a wrong order.
    std::fs::rename(&pieces[2], &pieces[1]).unwrap();
    std::fs::rename(&away, &pieces[2]).unwrap();
    wait_for("the area to be online again", Duration::from_secs(15), || area(&pool, "three")["state"] == "online");
    assert_eq!(area(&pool, "three")["capacity"], capacity);
    carries_bytes(&pool, "three");
}

#[test]
fn what_is_in_use_or_not_empty_is_not_lent() {
    if !has_devices() {
        return;
    }
    let pool = pool(2);
    let dir = folder(&pool, "used");
    let disk = |name: &str| LoopDisk::new(&dir, name, 64 * MIB);

    let mounted = disk("mounted");
    sh("mkfs.ext4", &["-q", &mounted.device]);
    not_lent(&pool, &[&mounted.device], &["ext4", "ext"]).says("--force");
    let point = folder(&pool, "point");
    sh("mount", &[&mounted.device, &point.to_string_lossy()]);
    let refused =
        [&["--force"][..], &[]].map(|force| not_lent(&pool, &[&[mounted.device.as_str()], force].concat(), &["mounted"]));
    sh("umount", &[&point.to_string_lossy()]);
    assert!(refused[0].err.contains(&*point.to_string_lossy()), "says where: {}", refused[0]);

    let swap = disk("swap");
    sh("mkswap", &[&swap.device]);
    not_lent(&pool, &[&swap.device], &["swap"]);
    if run(tool("swapon").arg(&swap.device)).succeeded() {
        let refused = pool.sublet(1, &["lend", &swap.device, "--force"]);
        sh("swapoff", &[&swap.device]);
        refused.refused(exit::CONFLICT).says("swap");
    }

    // A GPT: its header in the second sector.
    let gpt = disk("gpt");
    disks::put(&gpt.device, 512, b"EFI PART\0\0\x01\0\x5c\0\0\0");
    not_lent(&pool, &[&gpt.device], &["gpt", "partition table"]);
    let xfs = disk("xfs");
    disks::put(&xfs.device, 0, b"XFSB\0\0\x10\0");
    not_lent(&pool, &[&xfs.device], &["xfs"]);
    let lvm = disk("lvm");
    let mut label = b"LABELONE\x01\0\0\0\0\0\0\0".to_vec();
    label.extend([0; 8]);
    label.extend(b"LVM2 001");
    disks::put(&lvm.device, 512, &label);
    not_lent(&pool, &[&lvm.device], &["lvm"]);
    let raid = disk("raid");
    disks::put(&raid.device, 4096, &0xa92b_4efc_u32.to_le_bytes());
    not_lent(&pool, &[&raid.device], &["raid"]);
    let luks = disk("luks");
    disks::put(&luks.device, 0, b"LUKS\xba\xbe\0\x02");
    not_lent(&pool, &[&luks.device], &["luks"]);
    let mut parted = LoopDisk::new(&dir, "parted", 96 * MIB);
    let [part, _] = parted.partition();
    not_lent(&pool, &[&parted.device], &["partition"]);
    sh("mkfs.ext4", &["-q", &part]);
    sh("mount", &[&part, &point.to_string_lossy()]);
    let whole = pool.sublet(1, &["lend", &parted.device, "--force"]);
    sh("umount", &[&point.to_string_lossy()]);
    assert!(!whole.sane().succeeded(), "a disk was lent whose partition is mounted");

    // A file with a file system in it.
    let image = dir.join("image");
    sh("mkfs.ext4", &["-q", &image.to_string_lossy(), "64M"]);
    not_lent(&pool, &[&image.to_string_lossy()], &["ext4", "ext"]);
    // With --force what is on it is lost, and the lender knew.
    pool.ok(1, &format!("lend {} --name forced --force --keep-free 0%", image.display()));
    carries_bytes(&pool, "forced");
    pool.ok(1, "reclaim forced");
}

#[test]
fn too_small_too_large_missing_overlapping_and_foreign_places_are_refused() {
    let pool = pool(2);
    let dir = folder(&pool, "places");
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    sparse_file(&dir.join("small"), MIB);
    not_lent(&pool, &[&path("small")], &["small", "at least", "16 MiB"]);
    not_lent(&pool, &[&path("nowhere"), "--size", "32M"], &["no such file", "nowhere"]);
    let folder = dir.to_string_lossy().into_owned();
    not_lent(&pool, &[&folder, "--size", "1M", "--keep-free", "0%"], &["small", "at least", "16 MiB"]);
    not_lent(&pool, &[&folder, "--size", "0", "--keep-free", "0%"], &["size", "0"]);
    not_lent(&pool, &[&folder, "--size", "900T"], &["space", "free"]);
    not_lent(&pool, &[&folder, "--size", "32M", "--keep-free", "99%"], &["free"]);
    not_lent(&pool, &[&folder, "--size", "32M", "--name", "no_underscore"], &["name"]);
    not_lent(&pool, &["/proc/self/status"], &["size", "small", "file", "not", "status"]);
    not_lent(&pool, &["/dev/null"], &["null", "not"]);
    sparse_file(&dir.join("twice"), 64 * MIB);
    not_lent(&pool, &[&path("twice"), "--offset", "60M", "--size", "32M"], &["end", "beyond", "size", "long", "has"]);
    not_lent(&pool, &[&path("twice"), &path("twice")], &["twice", "overlap", "same", "more than once"]);
    pool.ok(1, &format!("lend {} --name once --keep-free 0%", path("twice")));
    for force in [&[][..], &["--force"]] {
        not_lent(
            &pool,
            &[&[path("twice").as_str(), "--name", "again"], force].concat(),
            &["overlap", "already", "in use", "once"],
        );
    }
    // Another server of the same pool must not get it either: the file is locked.
    let other = pool.sublet(0, &["lend", &path("twice"), "--force"]).sane();
    assert!(!other.succeeded(), "one file was lent by two servers: {other}");
    carries_bytes(&pool, "once");
}

#[test]
fn another_pools_label_is_refused() {
    let (one, two) = (pool(1), pool(2));
    let dir = folder(&one, "label");
    let file = dir.join("moved");
    sparse_file(&file, 64 * MIB);
    one.ok(0, &format!("lend {} --name moved --keep-free 0%", file.display()));
    one.stop().ok();
    not_lent(&two, &[&file.to_string_lossy()], &["pool"]);
    one.start(&Wish { servers: 1, area: None }).ok();
    wait_for("the area to be online", Duration::from_secs(15), || area(&one, "moved")["state"] == "online");
}

#[test]
fn suggestions_name_what_could_be_lent_and_the_command_for_it() {
    let pool = pool(2);
    let disk = has_devices().then(|| LoopDisk::new(&folder(&pool, "disks"), "empty", 256 * MIB));
    let list = pool.json(1, "lend --suggest");
    for entry in list.as_array().unwrap() {
        assert!(text(entry, "/command").starts_with("sublet lend"), "{entry}");
        assert!(["disk", "partition", "folder"].contains(&text(entry, "/kind").as_str()), "{entry}");
        assert!(number(entry, "/surplus") > 0, "{entry}");
    }
    if let Some(disk) = disk {
        let entry = list.as_array().unwrap().iter().find(|e| text(e, "/path") == disk.device).cloned();
        let entry = entry.unwrap_or_else(|| panic!("the empty disk {} is not suggested: {list:#}", disk.device));
        // The command works as it stands.
        let command = text(&entry, "/command");
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        pool.sublet(1, &words).ok();
        assert!(
            !pool.json(1, "lend --suggest").to_string().contains(&format!("\"{}\"", disk.device)),
            "suggested although it is lent"
        );
        let areas = pool.json(0, "area ls");
        pool.ok(1, &format!("reclaim {}", text(&areas[0], "/name")));
    }
    pool.ok(1, "lend --suggest");
}

#[test]
fn reclaiming_a_used_area_names_the_borrowers_and_an_unused_one_gives_the_disk_back() {
    let pool = pool(3);
    let dir = folder(&pool, "lend");
    pool.ok(1, &format!("lend {} --size 64M --name b9 --keep-free 0%", dir.display()));
    pool.ok(0, "borrow v --size 16M");
    pool.ok(2, "borrow w --size 16M");
    pool.refused(1, "reclaim b9", exit::CONFLICT).says("server-a").says("server-c");
    assert_eq!(area(&pool, "b9")["state"], "online");
    pool.ok(0, "return v");
    pool.refused(1, "reclaim b9", exit::CONFLICT).says("server-c");
    pool.ok(2, "return w");
    pool.ok(1, "reclaim b9");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "the file that was made for it is gone");
    assert!(pool.json(0, "area ls").as_array().unwrap().is_empty());
    pool.refused(1, "reclaim b9", exit::NOT_FOUND);
    pool.refused(0, "borrow v --size 16M", exit::NO_SPACE);
    // A file that was there before stays, without a label: it can be lent again.
    let file = dir.join("mine");
    sparse_file(&file, 64 * MIB);
    for _ in 0..2 {
        pool.ok(1, &format!("lend {} --name mine --keep-free 0%", file.display()));
        pool.ok(1, "reclaim mine");
        assert!(Path::new(&file).exists());
    }
    pool.bounce(1);
    assert!(pool.json(1, "status")["server"]["areas"].as_array().unwrap().is_empty());
}

#[test]
fn a_doubled_volume_of_joined_pieces_survives_the_loss_of_either_side() {
    let pool = pool(3);
    let dir = folder(&pool, "joined");
    for (server, name, pieces) in [(1, "left", 3), (2, "right", 2)] {
        let paths: Vec<String> = (0..pieces)
            .map(|n| {
                let path = dir.join(format!("{name}{n}"));
                sparse_file(&path, 96 / pieces * MIB);
                path.to_string_lossy().into_owned()
            })
            .collect();
        pool.ok(server, &format!("lend {} --name {name} --keep-free 0%", paths.join(" ")));
    }
    pool.ok(0, "volume create v --way doubled --on left:64M,right:64M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let bytes = Random::new(9).bytes(64 << 20);
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        nbd.write(n as u64 * MIB, part).unwrap();
    }
    for server in [1, 2] {
        let process = pool.kill(server);
        same(&nbd.read_all().unwrap(), &bytes, 0, "one side alone");
        pool.revive(server, &process);
        pool.wait_in_sync("v", Duration::from_secs(30));
    }
    drop(nbd);
    pool.finish(0, "v");
}

#[test]
fn a_borrowed_volume_that_hangs_keeps_no_server_of_the_machine_from_serving() {
    if !has_devices() {
        return;
    }
    // Servers that lend to each other must not wait for each other when they start.
    let pool = Pool::with(&Wish { servers: 3, area: Some("64M") });
    pool.ok(0, "volume create hang --way divided --on b1:32M");
    pool.ok(0, "borrow hang");
    let device = text(&pool.json(0, "mount hang --as fuse"), "/device");
    let lender = pool.kill(1);
    let mut reader = tool("dd").args([&format!("if={device}"), "of=/dev/null", "bs=4k", "iflag=direct"]).spawn().unwrap();
    for server in [0, 2] {
        pool.bounce(server);
        let name = ["a1", "b1", "c1"][server];
        wait_for("the area to be online", Duration::from_secs(15), || area(&pool, name)["state"] == "online");
    }
    let list = pool.sublet_within(2, &["lend", "--suggest", "--json"], Duration::from_secs(20)).json();
    assert!(!list.to_string().contains(&format!("\"{device}\"")), "a borrowed volume is suggested: {list:#}");
    assert!(reader.try_wait().unwrap().is_none(), "the reader does not wait for the lender");
    pool.revive(1, &lender);
    wait_for("the reader to go on", Duration::from_secs(30), || reader.try_wait().unwrap().is_some());
    pool.finish(0, "hang");
}

#[test]
fn areas_come_back_after_a_restart_of_their_server_with_everything_in_them() {
    let pool = pool(2);
    let dir = folder(&pool, "lend");
    pool.ok(1, &format!("lend {} --size 64M --name b9 --keep-free 0%", dir.display()));
    let mut nbd = pool.carve(0, "v", "--size 32M");
    let bytes = Random::new(2).bytes(8 << 20);
    nbd.write(MIB, &bytes).unwrap();
    let before = area(&pool, "b9");
    pool.bounce(1);
    // An open lease serves on: the client reconnects by itself.
    same(&nbd.read(MIB, 8 << 20).unwrap(), &bytes, MIB, "after the restart");
    nbd.write(0, b"x").unwrap();
    let after = area(&pool, "b9");
    for field in ["id", "capacity", "free", "slices"] {
        assert_eq!(after[field], before[field], "{field}");
    }
}
