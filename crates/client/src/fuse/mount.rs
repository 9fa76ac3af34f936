//! Mounting and unmounting the FUSE file system, and what is mounted where. Everything here blocks: helper threads only.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

/// How long an unmount waits for the last user before it becomes lazy.
const BUSY_TIME_MAX: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Mounts the file system served over `kernel` at `directory` (root only).
///
/// # Errors
/// What the operating system says.
pub fn mount(kernel: BorrowedFd<'_>, directory: &Path) -> io::Result<()> {
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,max_read={}", kernel.as_raw_fd(), super::protocol::PAYLOAD_MAX);
    let options = CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    rustix::mount::mount("sublet", directory, "fuse.sublet", flags, options.as_c_str())?;
    Ok(())
}

/// Unmounts `directory`; waits a little for the last user (the loop device that was just detached), then lets go lazily.
///
/// # Errors
/// What the operating system says; that nothing is mounted there is no error.
pub fn unmount(directory: &Path) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match rustix::mount::unmount(directory, UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if begun.elapsed() < BUSY_TIME_MAX => thread::sleep(BUSY_PAUSE),
            Err(rustix::io::Errno::BUSY) => return unmount_lazily(directory),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes `directory` out of the tree at once, whoever still uses it.
///
/// # Errors
/// What the operating system says; that nothing is mounted there is no error.
pub fn unmount_lazily(directory: &Path) -> io::Result<()> {
    match rustix::mount::unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lets every request that waits for the server of `directory` fail, and every later one. The file system stays while somebody
/// uses it.
pub fn abort(directory: &Path) {
    let is_ours = |m: &Mounted| m.at == directory && m.kind.starts_with("fuse");
    if !mounted().is_ok_and(|all| all.iter().any(is_ours)) {
        return;
    }
    // A forced unmount aborts the FUSE connection even where it cannot unmount (fuse(4), fuse_umount_begin).
    if let Err(error) = rustix::mount::unmount(directory, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW) {
        tracing::debug!(%error, at = %directory.display(), "the FUSE connection was aborted; its file system is still in use");
    }
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    /// `major:minor` of the file system's device.
    pub device: (u32, u32),
    /// Where.
    pub at: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What is mounted: a device, for those that have one.
    pub source: PathBuf,
}

/// Everything that is mounted, as this process sees it.
///
/// # Errors
/// What the operating system says to reading `/proc/self/mountinfo`.
pub fn mounted() -> io::Result<Vec<Mounted>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse(text: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let (major, minor) = fields.nth(2)?.split_once(':')?;
        let at = PathBuf::from(unescape(fields.nth(1)?));
        let mut behind = line.split_once(" - ")?.1.split(' ');
        let kind = behind.next()?.to_owned();
        let source = PathBuf::from(unescape(behind.next()?));
        Some(Mounted { device: (major.parse().ok()?, minor.parse().ok()?), at, kind, source })
    };
    text.lines().filter_map(line).collect()
}

/// Mount points and sources have blanks, tabs, line ends and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(part.get(3..).unwrap_or_default());
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_understood() {
        let text = "36 35 98:0 /a /mnt/two\\040words rw,noatime master:1 - ext4 /dev/root rw\n37 35 0:52 / /f rw - fuse.sublet sublet rw\nrubbish\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].at.to_str().unwrap(), found[0].device), ("/mnt/two words", (98, 0)));
        assert_eq!((found[1].kind.as_str(), found[1].device), ("fuse.sublet", (0, 52)));
        assert_eq!(found[0].source, Path::new("/dev/root"));
    }

    #[test]
    fn octal_escapes_are_read() {
        assert_eq!(unescape("/mnt/a\\040b\\134c"), "/mnt/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
        assert_eq!(unescape("/odd\\0"), "/odd\\0");
    }
}
