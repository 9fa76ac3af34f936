//! Every usage way carries bytes: fio, a byte model, and the tools that people use with NBD and block devices.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::Value;
use sublet_tests::fio::Fio;
use sublet_tests::model::{Model, same};
use sublet_tests::nbd::{self, Nbd, Op};
use sublet_tests::random::Random;
use sublet_tests::run::{run, sh, tool};
use sublet_tests::shorthand::text;
use sublet_tests::{MIB, Pool, Wish, all_there, exit, has_devices, tree};

/// Makes `v` in the given way, borrowed by server-a.
fn make(pool: &Pool, way: &str) {
    match way {
        "single" => pool.ok(0, "borrow v --size 48M --way single"),
        // Unequal areas, and not of a round size: the last segment ends within a region.
        "integrated" => {
            pool.ok(0, "volume create v --way integrated --on b1:24M,c1:16392K,d1:20M");
            pool.ok(0, "borrow v")
        }
        "doubled" => pool.ok(0, "borrow v --size 48M --way doubled"),
        "doubled and integrated" => {
            pool.ok(0, "volume create v --way doubled --on b1:24M,c1:24M,d1:28M,b1:28M");
            pool.ok(0, "borrow v")
        }
        "divided" => {
            pool.ok(1, "volume create w --way divided --on d1:48M");
            pool.ok(0, "volume create v --way divided --on d1:48M");
            pool.ok(1, "borrow w");
            pool.ok(0, "borrow v")
        }
        other => panic!("no way {other}"),
    };
}

fn pool_with(way: &str) -> Pool {
    let pool = Pool::with(&Wish { servers: 4, area: Some("128M") });
    make(&pool, way);
    pool.ok(0, "mount v --as socket");
    let word = if way.starts_with("doubled") { "doubled" } else { way };
    assert_eq!(pool.volume("v")["way"], word);
    pool
}

/// fio, then the byte model over the same place after an init.
fn carries_bytes(way: &str) {
    let pool = pool_with(way);
    let socket = pool.socket(0, "v");
    let size = pool.nbd(0, "v").size;
    // 28 KiB: blocks that no power of two is a multiple of; 512 of them.
    let jobs = [("4k", 1, 2 * MIB), ("4k", 32, 16 * MIB), ("64k", 8, 32 * MIB), ("1M", 32, 40 * MIB), ("28k", 32, 14 * MIB)];
    for (number, (block, depth, amount)) in jobs.into_iter().enumerate() {
        let mut fio = Fio::nbd(&socket).job(block, depth, amount).seed(number as u64 + 7);
        if block == "1M" {
            fio.offset = (size - amount) / 4096 * 4096;
        }
        fio.check();
    }
    pool.ok(0, "volume init v");
    let mut nbd = pool.nbd(0, "v");
    assert!(nbd.read_all().unwrap().iter().all(|b| *b == 0), "init makes every byte zero");
    // Over the borders of segments, up to the very last byte.
    let (first, second) = (24 * MIB, 40_968 << 10);
    for range in [first - 400_000..first + 400_000, second - 300_000..second + 300_000, size - 700_001..size] {
        Model::new(&socket, range).check();
    }
}

#[test]
fn single() {
    carries_bytes("single");
}

#[test]
fn integrated() {
    carries_bytes("integrated");
}

#[test]
fn doubled() {
    carries_bytes("doubled");
}

#[test]
fn doubled_and_integrated() {
    carries_bytes("doubled and integrated");
}

#[test]
fn divided() {
    carries_bytes("divided");
}

#[test]
fn both_legs_of_a_doubled_volume_hold_the_bytes() {
    let pool = pool_with("doubled");
    let mut nbd = pool.nbd(0, "v");
    nbd.write(5 * MIB, b"on both legs, in plain bytes").unwrap();
    nbd.flush().unwrap();
    let lenders = pool.lenders("v");
    assert_eq!(lenders.len(), 2);
    assert_ne!(lenders[0], lenders[1], "S6");
    for lender in lenders {
        let held = pool.area_files(lender).iter().any(|f| sublet_tests::disks::holds(f, b"on both legs, in plain bytes"));
        assert!(held, "server {lender} does not hold the bytes");
    }
}

#[test]
fn divided_volumes_of_one_area_do_not_touch_each_other() {
    let pool = pool_with("divided");
    pool.ok(1, "mount w --as socket");
    let (v, w) = (pool.socket(0, "v"), pool.socket(1, "w"));
    std::thread::scope(|scope| {
        for (socket, seed) in [(&v, 1), (&w, 2)] {
            scope.spawn(move || Fio::nbd(socket).job("64k", 16, 48 * MIB).seed(seed).write());
        }
    });
    Fio::nbd(&v).job("64k", 16, 48 * MIB).seed(1).verify();
    Fio::nbd(&w).job("64k", 16, 48 * MIB).seed(2).verify();
}

#[test]
fn odd_sizes_are_rounded_up_to_whole_blocks_and_end_there() {
    let pool = Pool::with(&Wish { servers: 3, area: Some("128M") });
    for (name, asked, size) in
        [("o1", 16 * MIB + 1, 16 * MIB + 4096), ("o2", 20 * MIB - 1, 20 * MIB), ("o3", 4097, 8192), ("o4", 1, 4096)]
    {
        let mut nbd = pool.carve(0, name, &format!("--size {asked}"));
        assert_eq!(nbd.size, size, "{name}");
        assert_eq!(pool.volume(name)["size"], size);
        let tail = Random::new(3).bytes(3000);
        nbd.write(size - 3000, &tail).unwrap();
        same(&nbd.read(size - 3000, 3000).unwrap(), &tail, size - 3000, name);
        for (op, error) in [
            (Op::Read(size - 1, 2), nbd::error::INVAL),
            (Op::Read(size, 1), nbd::error::INVAL),
            (Op::Read(u64::MAX - 5, 4), nbd::error::INVAL),
            (Op::Write(size - 1, vec![1; 2], 0), nbd::error::NOSPC),
            (Op::Write(u64::MAX - 1, vec![1; 2], 0), nbd::error::NOSPC),
            (Op::Zero(size, 4096, 0), nbd::error::NOSPC),
        ] {
            let done = nbd.call(&op).unwrap();
            assert!(done.error == error || done.error == nbd::error::INVAL, "{op:?} at size {size} answers {}", done.error);
        }
        same(&nbd.read(size - 3000, 3000).unwrap(), &tail, size - 3000, "nothing of it was carried out");
        assert!(nbd.disconnect().unwrap());
        pool.finish(0, name);
    }
}

#[test]
fn a_read_only_mount_refuses_writes_at_every_door() {
    let pool = Pool::with(&Wish { servers: 2, area: Some("64M") });
    let mut nbd = pool.carve(0, "v", "--size 16M");
    nbd.write(0, b"before").unwrap();
    drop(nbd);
    pool.ok(0, "unmount v");
    let mut nbd = pool.mount(0, "v", "--read-only");
    assert_ne!(nbd.flags & nbd::READ_ONLY, 0);
    for op in [Op::Write(0, vec![1], 0), Op::Zero(0, 4096, 0), Op::Trim(0, 4096)] {
        assert_eq!(nbd.call(&op).unwrap().error, nbd::error::PERM, "{op:?}");
    }
    assert_eq!(nbd.read(0, 6).unwrap(), b"before");
    assert!(!pool.sublet(0, &["volume", "init", "v"]).succeeded(), "init writes");
}

#[test]
fn payloads_of_32_mib_pass_and_larger_ones_harm_nobody() {
    let pool = pool_with("integrated");
    let mut nbd = pool.nbd(0, "v");
    let big = Random::new(9).bytes(32 << 20);
    nbd.write(10 * MIB + 77, &big).unwrap();
    same(&nbd.read(10 * MIB + 77, 32 << 20).unwrap(), &big, 10 * MIB + 77, "32 MiB");
    let mut other = pool.nbd(0, "v");
    let error = other.read(0, (32 << 20) + 1).map(|d| d.len());
    assert!(error.is_err(), "a read of 32 MiB + 1 was answered: {error:?}");
    assert_eq!(nbd.read(10 * MIB + 77, 16).unwrap(), &big[..16]);
}

#[test]
fn several_connections_are_promised_and_see_each_others_writes() {
    let pool = pool_with("doubled");
    let (mut one, mut two) = (pool.nbd(0, "v"), pool.nbd(0, "v"));
    assert_ne!(one.flags & nbd::CAN_MULTI_CONN, 0);
    for round in 0..200u64 {
        one.write(round * 5000, &round.to_le_bytes()).unwrap();
        assert_eq!(two.read(round * 5000, 8).unwrap(), round.to_le_bytes());
    }
    two.flush().unwrap();
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

/// `nbdinfo --map`: (offset, length, type).
fn map(uri: &str) -> Vec<(u64, u64, u64)> {
    let map = sh("nbdinfo", &["--map", "--json", uri]).json();
    let entry = |e: &Value| (e["offset"].as_u64().unwrap(), e["length"].as_u64().unwrap(), e["type"].as_u64().unwrap());
    map.as_array().unwrap().iter().map(entry).collect()
}

#[test]
fn nbdinfo_sees_a_first_class_export_and_where_its_bytes_are() {
    let pool = pool_with("integrated");
    let uri = uri(&pool.socket(0, "v"));
    let info = sh("nbdinfo", &["--json", &uri]).json();
    let export = &info["exports"][0];
    assert_eq!(text(&info, "/protocol"), "newstyle-fixed");
    assert_eq!(info["structured"], true);
    assert_eq!(export["export-size"], pool.volume("v")["size"]);
    for flag in ["can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache", "can_df", "can_multi_conn"] {
        assert_eq!(export[flag], true, "{flag} in {export:#}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_minimum"], 1, "requests of any alignment");
    assert_eq!(export["block_size_maximum"], 32 << 20);
    assert!(export["contexts"].to_string().contains("base:allocation"), "{export:#}");
    let size = export["export-size"].as_u64().unwrap();
    // The default export, by the empty name and by the volume's; both tell the volume's name.
    let list = sh("nbdinfo", &["--list", "--json", &uri]).json();
    let names: Vec<String> = list["exports"].as_array().unwrap().iter().map(|e| text(e, "/export-name")).collect();
    assert!(!names.is_empty() && names.iter().all(|n| n.is_empty() || n == "v"), "{names:?}");
    let all: Vec<(u64, u64, u64)> = map(&uri);
    assert_eq!(all.iter().map(|(_, length, _)| length).sum::<u64>(), size);
    assert!(all.iter().all(|(_, _, kind)| kind & 2 != 0), "a fresh volume reads as zero: {all:?}");
    // Across the border of the first two segments.
    pool.nbd(0, "v").write(23 * MIB, &vec![7; 2 << 20]).unwrap();
    let all = map(&uri);
    let data: u64 = all.iter().filter(|(_, _, kind)| *kind == 0).map(|(_, length, _)| length).sum();
    let covers = |at: u64| all.iter().any(|(offset, length, kind)| *kind == 0 && *offset <= at && at < offset + length);
    assert!(covers(23 * MIB) && covers(25 * MIB - 1), "{all:?}");
    assert!((2 * MIB..=16 * MIB).contains(&data), "{data} bytes of data: {all:?}");
    assert!(all.iter().any(|(offset, _, kind)| *offset == 0 && kind & 2 != 0), "{all:?}");
}

#[test]
fn nbdcopy_carries_an_image_in_and_out() {
    let pool = pool_with("doubled and integrated");
    let image = pool.dir().join("image");
    let size = pool.nbd(0, "v").size;
    let mut bytes = Random::new(5).bytes(size as usize);
    bytes[10 << 20..20 << 20].fill(0);
    std::fs::write(&image, &bytes).unwrap();
    let (image, uri) = (image.to_string_lossy().into_owned(), uri(&pool.socket(0, "v")));
    sh("nbdcopy", &["--flush", &image, &uri]);
    let back = pool.dir().join("back");
    sh("nbdcopy", &[&uri, &back.to_string_lossy()]);
    assert_eq!(tree::hash(&back), tree::hash(Path::new(&image)));
}

#[test]
fn qemu_img_converts_a_real_image_in_compares_and_maps_it() {
    let pool = pool_with("doubled");
    let dir = pool.dir();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (raw, qcow) = (path("image.raw"), path("image.qcow2"));
    // A real image: a file system with files in it.
    let files = dir.join("files");
    std::fs::create_dir(&files).unwrap();
    tree::copy(&files, 12 * MIB);
    sh("mkfs.ext4", &["-q", "-d", &files.to_string_lossy(), &raw, "47M"]);
    sh("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow]);
    let uri = uri(&pool.socket(0, "v"));
    sh("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", &qcow, &uri]);
    sh("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &qcow, &uri]);
    let map = sh("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).json();
    let entries = map.as_array().unwrap();
    assert!(entries.iter().any(|e| e["data"] == true), "{map:#}");
    assert!(entries.iter().any(|e| e["zero"] == true), "{map:#}");
    // And a byte that differs is noticed: the comparison compares.
    pool.nbd(0, "v").write(3, &[0xaa]).unwrap();
    assert_eq!(run(tool("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw", &qcow, &uri])).code, Some(1));
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() {
    let pool = pool_with("integrated");
    let uri = uri(&pool.socket(0, "v"));
    let lines = [
        "write -P 0x5a 1000 100000",
        "write -f -P 0xa5 24M 8k",
        "read -P 0x5a 1000 100000",
        "read -P 0xa5 24M 8k",
        "write -z 4096 8192",
        "read -P 0 4096 8192",
        "read -P 0x5a 12288 4096",
        "write -z -u 65536 4096",
        "read -P 0 65536 4096",
        "discard 24M 4k",
        "read -P 0xa5 25169920 4096",
        "aio_write -P 0x11 30M 1M",
        "aio_write -P 0x22 31M 1M",
        "aio_flush",
        "flush",
        "read -P 0x11 30M 1M",
        "read -P 0x22 31M 1M",
        "writev -P 0x33 40M 512 1024 4096",
        "read -P 0x33 40M 5632",
    ];
    let args: Vec<&str> = lines.iter().flat_map(|line| ["-c", *line]).collect();
    let run = run(tool("qemu-io").args(["-f", "raw"]).args(args).arg(&uri)).ok();
    assert!(!run.out.contains("failed") && !run.out.contains("error"), "{run}");
}

#[test]
fn nbdsh_finds_right_errors_structured_replies_and_fast_zeroes() {
    // Debian's: another Python on the PATH does not know the package.
    let python = "/usr/bin/python3";
    let is_there = run(tool(python).args(["-c", "import nbd"])).code == Some(0);
    if !all_there(if is_there { &[] } else { &["nbd for Python (package python3-libnbd)"] }) {
        return;
    }
    let pool = pool_with("doubled");
    let script = r#"
import errno
def fails(what, *numbers):
    try:
        what()
    except nbd.Error as e:
        assert e.errnum in numbers, (e.errnum, numbers)
        return
    assert False, "no error"
assert h.get_structured_replies_negotiated()
h.set_strict_mode(0)
size = h.get_size()
h.pwrite(b"x" * 5000, 777, nbd.CMD_FLAG_FUA)
assert h.pread(5000, 777) == b"x" * 5000
assert h.pread(5000, 777, nbd.CMD_FLAG_DF) == b"x" * 5000
h.zero(4096, 4096)
assert h.pread(4096, 4096) == bytes(4096)
h.cache(65536, 0)
h.flush()
fails(lambda: h.pread(2, size - 1), errno.EINVAL)
fails(lambda: h.pwrite(b"xx", size - 1), errno.ENOSPC, errno.EINVAL)
fails(lambda: h.zero(4096, 0, 1 << 9), errno.EINVAL)
try:
    h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(1 << 20, 0) == bytes(1 << 20)
except nbd.Error as e:
    assert e.errnum in (errno.ENOTSUP, errno.EOPNOTSUPP), e
assert h.pread(1, 0) == bytes(1)
"#;
    let base = "h.add_meta_context('base:allocation')";
    // What `nbdsh` does.
    sh(python, &["-m", "nbd", "-c", base, "-c", &format!("h.connect_uri('{}')", uri(&pool.socket(0, "v"))), "-c", script]);
}

/// What `mount --json` says of the device.
fn device_of(mounted: &Value) -> String {
    let device = text(mounted, "/device");
    assert!(device.starts_with("/dev/"), "no device in {mounted:#}");
    device
}

#[test]
fn fio_verifies_on_the_block_device() {
    if !has_devices() {
        return;
    }
    for way in ["single", "integrated", "doubled", "doubled and integrated", "divided"] {
        let pool = Pool::with(&Wish { servers: 4, area: Some("128M") });
        make(&pool, way);
        let device = device_of(&pool.json(0, "mount v --as fuse"));
        assert_eq!(Path::new("/dev/sublet/v").canonicalize().unwrap(), Path::new(&device).canonicalize().unwrap());
        for (block, depth, amount) in [("4k", 1, 1), ("4k", 32, 12), ("64k", 16, 32), ("1M", 8, 48)] {
            Fio::device(&device).job(block, depth, amount * MIB).seed(amount).check();
        }
        pool.finish(0, "v");
    }
}

#[test]
fn a_file_system_on_a_fresh_volume_keeps_a_real_tree() {
    if !has_devices() {
        return;
    }
    let pool = Pool::with(&Wish { servers: 3, area: Some("512M") });
    for (name, way, kind) in
        [("fs-int", "integrated --on b1:90M,c1:110M", "ext4"), ("fs-dbl", "doubled --on b1:330M,c1:330M", "xfs")]
    {
        pool.ok(0, &format!("volume create {name} --way {way}"));
        pool.ok(0, &format!("borrow {name}"));
        let dir = pool.dir().join(format!("mnt-{name}"));
        let mounted = pool.json(0, &format!("mount {name} {} --mkfs {kind}", dir.display()));
        assert_eq!(text(&mounted, "/mountpoint"), dir.to_string_lossy());
        let files = tree::copy(&dir, 60 * MIB);
        let before = tree::hashes(&dir);
        assert!(before.len() >= files, "{} of {files} files", before.len());
        pool.ok(0, &format!("unmount {name}"));
        assert!(!Path::new("/dev/sublet").join(name).exists(), "the link is gone");
        // --mkfs keeps the file system that is there.
        pool.ok(0, &format!("mount {name} {} --mkfs {kind}", dir.display()));
        assert_eq!(tree::hashes(&dir), before);
        // While it is in use, init is refused.
        pool.refused(0, &format!("volume init {name}"), exit::CONFLICT);
        pool.finish(0, name);
    }
}

#[test]
fn a_foreign_name_in_dev_sublet_is_never_overwritten() {
    if !has_devices() {
        return;
    }
    let pool = Pool::with(&Wish { servers: 2, area: Some("64M") });
    let foreign = Path::new("/dev/sublet/test-foreign");
    std::fs::create_dir_all("/dev/sublet").unwrap();
    let _ = std::fs::remove_file(foreign);
    std::os::unix::fs::symlink("/dev/null", foreign).unwrap();
    pool.ok(0, "borrow test-foreign --size 16M");
    let device = device_of(&pool.json(0, "mount test-foreign --as fuse"));
    let target = std::fs::read_link(foreign);
    std::fs::remove_file(foreign).unwrap();
    assert_eq!(target.unwrap(), Path::new("/dev/null"), "the foreign link was overwritten");
    assert!(Path::new(&device).exists() && device != foreign.to_string_lossy(), "{device}");
    Fio::device(&device).job("64k", 4, 4 * MIB).check();
    pool.finish(0, "test-foreign");
}

#[test]
fn the_socket_and_the_device_show_the_same_bytes() {
    if !has_devices() {
        return;
    }
    let pool = Pool::with(&Wish { servers: 2, area: Some("64M") });
    pool.ok(0, "borrow both --size 16M");
    let device = device_of(&pool.json(0, "mount both --as fuse"));
    let mut nbd = Nbd::connect(&pool.socket(0, "both")).unwrap();
    let bytes = Random::new(1).bytes(1 << 20);
    nbd.write(3 * MIB, &bytes).unwrap();
    let out = pool.dir().join("out");
    sh("dd", &[&format!("if={device}"), &format!("of={}", out.display()), "bs=1M", "skip=3", "count=1", "iflag=direct"]);
    same(&std::fs::read(out).unwrap(), &bytes, 3 * MIB, "the device");
}
