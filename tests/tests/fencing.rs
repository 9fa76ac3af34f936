//! What a killed server has handed to its disk: nothing is answered before it has landed (F1, F2).

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use sublet_tests::nbd::Op;
use sublet_tests::process::Process;
use sublet_tests::run::{run, sh, tool};
use sublet_tests::shorthand::text;
use sublet_tests::slow_disk::SlowDisk;
use sublet_tests::{MIB, Pool, Wish, exit, has_devices, wait_for};

const LIMIT: Duration = Duration::from_secs(20);

fn state(pool: &Pool) -> String {
    let areas = pool.json(0, "area ls");
    let area = areas.as_array().unwrap().iter().find(|area| area["name"] == "slow").unwrap();
    text(area, "/state")
}

/// A mount of the test's own; unmounted when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(device: &str) -> Self {
        let place = sublet_tests::pool::scratch();
        sh("mkfs.ext4", &["-q", device]);
        sh("mount", &[device, &place.path().to_string_lossy()]);
        Self(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(tool("umount").arg(self.0.path()));
    }
}

/// `kill -9` while a write is on its way in the kernel. The process ends, its open file lives on until the write has ended.
fn killed_with_a_write_on_its_way(disk: &SlowDisk, lend: &str) {
    let pool = Pool::with(&Wish { servers: 2, area: None });
    pool.ok(1, &format!("lend {lend} --name slow"));
    pool.ok(0, "borrow v --size 16M");
    let mut nbd = pool.mount(0, "v", "");
    nbd.write(0, &vec![1; MIB as usize]).unwrap();
    nbd.flush().unwrap();

    disk.hold();
    let landed = disk.landed();
    nbd.submit(&Op::Write(0, vec![2; MIB as usize], 0)).unwrap();
    wait_for("the write to be at the disk", LIMIT, || disk.waiting() > 0);
    // The borrower crashes, and so does the lender. The borrower mounts again, which fences its own older epoch (F5).
    pool.client(0, "v").kill();
    drop(nbd);
    let server = pool.server(1);
    server.signal(rustix::process::Signal::KILL);
    wait_for("the server to end", LIMIT, || !server.runs());
    server.restart();
    wait_for("the new server to be up", LIMIT, || Process::of(&server.home).is_some() && pool.is_up(1));
    assert!(disk.waiting() > 0 && disk.landed() == landed, "the old write is still on its way");
    wait_for("the area to wait for its lock", LIMIT, || state(&pool).contains("waiting for its lock"));
    pool.sublet_within(0, &["mount", "v", "--as", "socket"], Duration::from_secs(60)).refused(exit::UNREACHABLE);
    assert!(disk.waiting() > 0 && disk.landed() == landed, "and nothing was answered meanwhile");

    disk.release();
    wait_for("the area to be online", LIMIT, || state(&pool) == "online");
    assert!(disk.waiting() == 0 && disk.landed() > landed, "the old write has landed first");
    let mut nbd = pool.mount(0, "v", "");
    let new = vec![3; MIB as usize];
    nbd.write(0, &new).unwrap();
    nbd.flush().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(nbd.read(0, MIB as u32).unwrap() == new, "nothing old lands on what was written since");
    drop(nbd);
    pool.finish(0, "v");
    pool.ok(1, "reclaim slow");
}

#[test]
fn f2_a_new_server_answers_nothing_before_the_last_write_of_a_killed_one_has_landed() {
    if has_devices() {
        let disk = SlowDisk::new(96 << 20);
        let device = disk.device().to_owned();
        killed_with_a_write_on_its_way(&disk, &device);
    }
}

#[test]
fn f2_the_same_holds_for_a_file_on_a_file_system() {
    if has_devices() {
        let disk = SlowDisk::new(160 << 20);
        let mounted = Mounted::new(disk.device());
        killed_with_a_write_on_its_way(&disk, &format!("{} --size 64M", mounted.0.path().display()));
    }
}
