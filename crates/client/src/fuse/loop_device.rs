//! Loop devices: a block device over the FUSE file. Everything here blocks: helper threads only.

use std::ffi::c_ulong;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::mount;

const LOOP_CTL_GET_FREE: c_ulong = 0x4c82;
const LOOP_CONFIGURE: c_ulong = 0x4c0a;
const LOOP_CLR_FD: c_ulong = 0x4c01;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// How often a free device is asked for: another process may take it between the question and its use.
const TRIES_MAX: u32 = 64;
/// How long a device node may take to appear after the kernel made the device.
const NODE_TIME_MAX: Duration = Duration::from_secs(2);
/// How long detaching usually waits for others (udev looks into every new device) to let go.
pub const DETACH_TIME_MAX: Duration = Duration::from_secs(10);
/// How long processes that have the device open are waited for: udev and blkid look into it for a moment now and then.
const OPENER_TIME_MAX: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// `struct loop_info64` (`linux/loop.h`).
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A control call with a plain number or nothing as its argument.
#[allow(unsafe_code, reason = "ioctl has no safe form")]
fn control(file: &File, request: c_ulong, argument: c_ulong) -> io::Result<i32> {
    // SAFETY: the descriptor is open, and the requests used here (GET_FREE, CLR_FD, BLKFLSBUF) take no pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[allow(unsafe_code, reason = "ioctl has no safe form")]
fn configure(device: &File, config: &LoopConfig) -> io::Result<()> {
    // SAFETY: the descriptor is open; LOOP_CONFIGURE only reads a `struct loop_config`, which `LoopConfig` mirrors field by
    // field (size checked by a test), and `config` lives until the call returns.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(config)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a free loop device to `file`.
///
/// Direct I/O, so that no second page cache lies under the device's own one; the FUSE file has `FOPEN_DIRECT_IO` as well,
/// and the loop driver takes such a file: its requests are then asynchronous (`FUSE_ASYNC_DIO`), at depth, with no thread
/// waiting per request. The logical block is 4096 where the size allows it: file systems then never make the engine read
/// before it writes.
///
/// # Errors
/// What the operating system says.
pub fn attach(file: &Path, size: u64, read_only: bool) -> io::Result<PathBuf> {
    let backing = OpenOptions::new().read(true).write(!read_only).open(file)?;
    let control_device = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let block_size = if size.is_multiple_of(4096) { 4096 } else { 512 };
    let mut flags = LO_FLAGS_DIRECT_IO;
    if read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    let mut file_name = [0; 64];
    for (to, from) in file_name.iter_mut().take(63).zip(file.as_os_str().as_encoded_bytes()) {
        *to = *from;
    }
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name,
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig { fd, block_size, info, reserved: [0; 8] };
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..TRIES_MAX {
        let number = control(&control_device, LOOP_CTL_GET_FREE, 0)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_node(&path)?;
        match configure(&device, &config) {
            Ok(()) => return Ok(path),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                last = error;
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn open_node(path: &Path) -> io::Result<File> {
    let begun = Instant::now();
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && begun.elapsed() < NODE_TIME_MAX => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// The loop devices whose backing file is `file`.
///
/// # Errors
/// What the operating system says to listing `/sys/block`.
pub fn attached_to(file: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        let backing = std::fs::read(entry.path().join("loop/backing_file")).unwrap_or_default();
        let backing = backing.strip_suffix(b"\n").unwrap_or(&backing);
        if !backing.is_empty() && backing == file.as_os_str().as_encoded_bytes() {
            found.push(Path::new("/dev").join(name));
        }
    }
    Ok(found)
}

/// Writes out what the kernel still caches of the device, so that detaching loses nothing.
///
/// # Errors
/// What the operating system says, write errors included.
pub fn flush(device: &Path) -> io::Result<()> {
    File::open(device)?.sync_all()
}

/// Detaches a loop device if its backing file is still `file`, and waits for `patience` until it is gone. While somebody has
/// it open, the kernel detaches it at the last close.
///
/// # Errors
/// What the operating system says; `ResourceBusy` if somebody still has it open after that time.
pub fn detach(device: &Path, file: &Path, patience: Duration) -> io::Result<()> {
    if !attached_to(file)?.iter().any(|found| found == device) {
        return Ok(());
    }
    let opened = File::open(device)?;
    match control(&opened, LOOP_CLR_FD, 0) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
        Err(error) => return Err(error),
    }
    drop(opened);
    let begun = Instant::now();
    while attached_to(file)?.iter().any(|found| found == device) {
        if begun.elapsed() >= patience {
            let by = openers(device).unwrap_or_default().join(", ");
            let by = if by.is_empty() { "somebody".to_owned() } else { by };
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("it is still used by {by}; it goes away when they close it"),
            ));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Who uses a block device: mount points, swap, other devices on top of it, and processes that have it open for longer than a
/// moment. Empty if nobody does.
///
/// # Errors
/// What the operating system says.
pub fn users(device: &Path) -> io::Result<Vec<String>> {
    let Some(name) = device.file_name() else { return Ok(Vec::new()) };
    let sys = Path::new("/sys/block").join(name);
    let mut users = Vec::new();
    if let Some(number) = device_number(&sys) {
        users.extend(mount::mounted()?.into_iter().filter(|m| m.device == number).map(|m| m.at.display().to_string()));
    }
    if let Ok(holders) = std::fs::read_dir(sys.join("holders")) {
        users.extend(holders.flatten().map(|holder| holder.file_name().to_string_lossy().into_owned()));
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().any(|line| line.split_ascii_whitespace().next() == device.to_str()) {
        users.push("swap".to_owned());
    }
    let begun = Instant::now();
    while users.is_empty() {
        let open = openers(device)?;
        if open.is_empty() || begun.elapsed() >= OPENER_TIME_MAX {
            users = open;
            break;
        }
        thread::sleep(PAUSE);
    }
    Ok(users)
}

/// Other processes that have a device open. By the names of their descriptors only: looking at what these lead to could wait
/// for a file system that hangs.
fn openers(device: &Path) -> io::Result<Vec<String>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let number = process.file_name().to_string_lossy().into_owned();
        if number == own || !number.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // A process may end while it is looked at.
        let descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if descriptors.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == device)) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("process {number} ({})", name.trim_end()));
        }
    }
    Ok(found)
}

fn device_number(sys: &Path) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string(sys.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }

    #[test]
    fn a_process_that_has_the_device_open_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("device");
        let file = File::create_new(&path).unwrap();
        assert_eq!(openers(&path).unwrap(), [""; 0], "this process does not count");
        let mut child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
        // The name is that of the program only after exec.
        let found = openers(&path).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(found.as_slice(), [one] if one.starts_with(&format!("process {} ", child.id()))), "{found:?}");
        assert_eq!(openers(&path).unwrap(), [""; 0]);
    }
}
