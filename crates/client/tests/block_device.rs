//! The real block device: FUSE, loop, a file system on it. Needs root and loop devices.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use common::{MemoryDevice, have, noise, path_text, tool};
use futures_channel::oneshot;
use sublet_client::clean_up;
use sublet_client::fuse::BlockFrontEnd;
use sublet_client::fuse::loop_device::attached_to;
use sublet_doors::real::run;

fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    let possible = root && Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    if !possible {
        common::passed_over("root, /dev/fuse and /dev/loop-control");
    }
    possible
}

/// A block device over memory, on a thread of its own; whatever happens, nothing of it stays.
struct Served {
    dir: tempfile::TempDir,
    link: PathBuf,
    durable_writes: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<bool>>,
    thread: Option<JoinHandle<Vec<u8>>>,
}

impl Served {
    fn start(name: &str, size: usize, read_only: bool) -> Self {
        Self::start_hanging(name, size, read_only, false)
    }

    fn start_hanging(name: &str, size: usize, read_only: bool, hangs: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (path, name) = (dir.path().to_path_buf(), name.to_owned());
        let thread = std::thread::spawn(move || {
            run(async move |doors| {
                let device = Rc::new(MemoryDevice::new(doors.clone(), size, read_only));
                let front = BlockFrontEnd::start(&doors, Rc::clone(&device), &path, &name).await.unwrap();
                device.hangs.set(hangs);
                ready.send((front.link().to_path_buf(), Arc::clone(&device.durable_writes))).unwrap();
                if stopped.await.unwrap_or(true) {
                    assert!(front.users().await.unwrap().is_empty());
                    front.flush().await.unwrap();
                    front.stop().await;
                }
                device.bytes.take()
            })
            .unwrap()
        });
        let (link, durable_writes) = is_ready.recv().unwrap();
        Self { dir, link, durable_writes, stop: Some(stop), thread: Some(thread) }
    }

    fn stop(&mut self, orderly: bool) -> Vec<u8> {
        self.stop.take().unwrap().send(orderly).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }

    fn file(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("fuse/volume")
    }

    fn nothing_is_left(&self) {
        assert!(attached_to(&self.file()).unwrap().is_empty());
        assert!(std::fs::symlink_metadata(&self.link).is_err());
        assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path_text(self.dir.path())));
        let left: Vec<_> = std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = clean_up(self.dir.path());
    }
}

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_lives_on_the_device() {
    if !possible() || !have("mkfs.ext4") {
        return;
    }
    let mut served = Served::start("client-test-ext4", 64 << 20, false);
    let link = path_text(&served.link).to_owned();
    tool("mkfs.ext4", &["-q", "-F", &link]);
    let place = tempfile::tempdir().unwrap();
    let data = noise(9, 20 << 20);
    tool("mount", &[&link, path_text(place.path())]);
    {
        let mounted = Mounted(place.path().to_path_buf());
        std::fs::write(mounted.0.join("a"), &data).unwrap();
        tool("sync", &["-f", path_text(&mounted.0)]);
        tool("fstrim", &[path_text(&mounted.0)]);
    }
    tool("mount", &["-o", "ro", &link, path_text(place.path())]);
    {
        let mounted = Mounted(place.path().to_path_buf());
        assert!(std::fs::read(mounted.0.join("a")).unwrap() == data);
    }
    tool("e2fsck", &["-f", "-n", &link]);
    served.stop(true);
    served.nothing_is_left();
}

#[test]
fn direct_io_of_many_sizes_verifies() {
    if !possible() || !have("fio") {
        return;
    }
    let mut served = Served::start("client-test-fio", 32 << 20, false);
    let name = served.link.file_name().unwrap().to_owned();
    let device = std::fs::canonicalize(&served.link).unwrap();
    let sys = Path::new("/sys/block").join(device.file_name().unwrap());
    assert_eq!(std::fs::read_to_string(sys.join("loop/dio")).unwrap().trim(), "1", "{name:?}: direct I/O is on");
    for size in ["4k", "1m"] {
        let file = format!("--filename={}", served.link.display());
        let bs = format!("--bs={size}");
        let fixed = ["--name=v", "--ioengine=libaio", "--direct=1", "--rw=randwrite", "--iodepth=32", "--verify=crc32c"];
        let more = ["--do_verify=1", "--verify_fatal=1", "--size=32m", "--randseed=3", "--verify_state_save=0", &file, &bs];
        tool("fio", &[&fixed[..], &more[..]].concat());
    }
    served.stop(true);
    served.nothing_is_left();
}

#[test]
fn w1_a_write_through_the_file_that_asks_for_durability_gets_it() {
    use std::os::unix::fs::OpenOptionsExt;
    if !possible() {
        return;
    }
    let mut served = Served::start("client-test-sync", 8 << 20, false);
    let write = |flags: i32| {
        let mut file = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(served.file()).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        served.durable_writes.load(Ordering::Relaxed)
    };
    assert_eq!(write(0), 0);
    assert_eq!(write(libc::O_DSYNC), 1);
    assert_eq!(write(libc::O_SYNC), 2);
    served.stop(true);
    served.nothing_is_left();
}

#[test]
fn a_read_only_device_refuses_writes() {
    if !possible() {
        return;
    }
    let mut served = Served::start("client-test-ro", 8 << 20, true);
    // The kernel may let a read-only device be opened for writing; what counts is the write.
    let written = std::fs::OpenOptions::new().write(true).open(&served.link).and_then(|mut file| file.write_all(b"x"));
    assert!(written.is_err());
    assert_eq!(std::fs::read(&served.link).unwrap().len(), 8 << 20);
    served.stop(true);
    served.nothing_is_left();
}

#[test]
fn what_a_dead_client_left_is_cleaned_up_from_outside() {
    if !possible() {
        return;
    }
    let mut served = Served::start("client-test-dead", 8 << 20, false);
    // The session ends without taking anything down, as after kill -9.
    served.stop(false);
    assert_eq!(attached_to(&served.file()).unwrap().len(), 1);
    clean_up(served.dir.path()).unwrap();
    served.nothing_is_left();
}

#[test]
fn the_directory_shows_one_file_that_can_be_read_directly() {
    if !possible() {
        return;
    }
    let mut served = Served::start("client-test-dir", 8 << 20, false);
    let entries = tool("ls", &["-A", path_text(served.file().parent().unwrap())]);
    assert_eq!(entries.trim(), "volume");
    let size = tool("stat", &["-c", "%s", path_text(&served.file())]);
    assert_eq!(size.trim(), (8u64 << 20).to_string());
    assert!(std::fs::write(served.file().with_file_name("other"), "x").is_err());
    served.stop(true);
    served.nothing_is_left();
}

#[test]
fn users_of_a_hanging_client_are_freed_by_cleaning_up() {
    if !possible() {
        return;
    }
    let mut served = Served::start_hanging("client-test-hang", 8 << 20, false, true);
    let device = served.link.clone();
    let reader = std::thread::spawn(move || std::fs::read(device).map(drop));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!reader.is_finished(), "the reader waits for the client");
    clean_up(served.dir.path()).unwrap();
    assert!(reader.join().unwrap().is_err());
    served.stop(false);
    served.nothing_is_left();
}
