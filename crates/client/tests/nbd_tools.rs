//! The NBD server driven by the tools that people use. A tool that is not installed is an error for root.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Served, have, noise, path_text, tool};

#[test]
fn nbdinfo_sees_every_ability() {
    if !have("nbdinfo") {
        return;
    }
    let served = Served::start((1 << 20) + 4096, false);
    assert_eq!(tool("nbdinfo", &["--size", &served.uri()]).trim(), "1052672");
    let json = tool("nbdinfo", &["--json", &served.uri()]);
    for yes in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"base:allocation\"",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"is_read_only\": false",
        "\"block_size_minimum\": 1,",
        "\"block_size_preferred\": 4096,",
        "\"block_size_maximum\": 33554432,",
    ] {
        assert!(json.contains(yes), "{yes} is missing in {json}");
    }
    let list = tool("nbdinfo", &["--list", "--json", &served.uri()]);
    assert!(list.contains("nbd+unix:///?socket") && list.contains("nbd+unix:///vol?socket"), "{list}");
    let read_only = Served::start(4096, true);
    assert!(tool("nbdinfo", &["--json", &read_only.uri()]).contains("\"is_read_only\": true"));
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    if !have("nbdinfo") {
        return;
    }
    let mut bytes = vec![0; 1 << 20];
    bytes[65536..131072].fill(1);
    let served = Served::filled(bytes, false);
    let map = tool("nbdinfo", &["--map", "--json", &served.uri()]);
    let words: String = map.split_whitespace().collect();
    assert!(words.contains("\"offset\":0,\"length\":65536,\"type\":3"), "{map}");
    assert!(words.contains("\"offset\":65536,\"length\":65536,\"type\":0"), "{map}");
    assert!(words.contains("\"offset\":131072,\"length\":917504,\"type\":3"), "{map}");
}

#[test]
fn nbdcopy_and_qemu_img_carry_an_image_in_and_out() {
    let served = Served::start(24 << 20, false);
    let image = served.dir.path().join("image");
    let mut bytes = noise(3, 24 << 20);
    bytes[5 << 20..13 << 20].fill(0);
    std::fs::write(&image, &bytes).unwrap();
    let uri = served.uri();
    let image = path_text(&image).to_owned();
    if have("nbdcopy") {
        let back = format!("{image}.back");
        tool("nbdcopy", &[&image, &uri]);
        tool("nbdcopy", &[&uri, &back]);
        assert!(std::fs::read(&back).unwrap() == bytes);
    }
    if have("qemu-img") {
        tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &uri]);
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
        let map = tool("qemu-img", &["map", "-f", "raw", "--output=json", &uri]);
        assert!(map.contains("\"zero\": true"), "{map}");
        assert!(served.stop() == bytes);
    }
}

#[test]
fn qemu_io_writes_zeroes_trims_and_reads_back() {
    if !have("qemu-io") {
        return;
    }
    let served = Served::start(4 << 20, false);
    let commands = [
        "write -P 0xab 511 70001",
        "read -P 0xab 511 70001",
        "write -f -P 0xcd 4096 512",
        "read -P 0xcd 4096 512",
        "write -z 8192 4096",
        "read -P 0 8192 4096",
        "write -z -u 16384 1000",
        "read -P 0 16384 1000",
        "discard 20480 4096",
        "read -P 0 20480 4096",
        "flush",
    ];
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    let uri = served.uri();
    arguments.push(&uri);
    let said = tool("qemu-io", &arguments);
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote_at_depth() {
    if !have("fio") || !tool("fio", &["--enghelp"]).contains("nbd") {
        return;
    }
    let served = Served::start(32 << 20, false);
    for (size, depth) in [("4k", "32"), ("1m", "8"), ("512-64k", "16")] {
        tool(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", served.uri()),
                "--rw=randwrite",
                &format!("--bsrange={}", if size.contains('-') { size.to_owned() } else { format!("{size}-{size}") }),
                "--bs_unaligned=1",
                &format!("--iodepth={depth}"),
                "--size=32m",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_fatal=1",
                "--randseed=7",
                "--verify_state_save=0",
            ],
        );
    }
}

#[test]
fn libnbd_uses_structured_replies_fua_and_fast_zero() {
    let python = "/usr/bin/python3";
    if !std::process::Command::new(python).args(["-c", "import nbd"]).status().is_ok_and(|s| s.success()) {
        common::passed_over("libnbd for Python");
        return;
    }
    let served = Served::start(1 << 20, false);
    let program = r#"
import errno, nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
h.pwrite(b"x" * 1000, 333, nbd.CMD_FLAG_FUA)
assert h.pread(1000, 333, nbd.CMD_FLAG_DF) == b"x" * 1000
h.zero(100, 400, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
assert h.pread(100, 400) == bytes(100) and h.pread(1, 500) == b"x"
h.trim(4096, 8192); h.cache(4096, 0); h.flush(nbd.CMD_FLAG_FUA)
seen = []
h.block_status(1 << 20, 0, lambda name, offset, entries, error: seen.append(list(entries)))
assert seen == [[4096, 0, (1 << 20) - 4096, 3]], seen
seen = []
h.block_status(1 << 20, 0, lambda name, offset, entries, error: seen.append(list(entries)), nbd.CMD_FLAG_REQ_ONE)
assert seen == [[4096, 0]], seen
def fails(number, work):
    try:
        work()
    except nbd.Error as e:
        assert e.errnum == number, e
    else:
        raise AssertionError("it did not fail")
fails(errno.ENOSPC, lambda: h.pwrite(b"y", 1 << 20))
fails(errno.EINVAL, lambda: h.pread(2, (1 << 20) - 1))
fails(errno.EINVAL, lambda: h.block_status(2, 1 << 20, lambda *a: 0))
h.shutdown()
h = nbd.NBD(); h.set_opt_mode(True); h.connect_uri(sys.argv[1])
h.set_export_name("nobody"); fails(errno.ENOENT, h.opt_info)
h.set_export_name("vol"); h.opt_go(); assert h.get_size() == 1 << 20; h.shutdown()
"#;
    tool(python, &["-c", program, &served.uri()]);
}
