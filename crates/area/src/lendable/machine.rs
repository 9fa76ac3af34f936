//! What the kernel knows: which devices there are, what is mounted, swapped on, or held by something else.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, makedev, minor};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    pub device: u64,
    pub point: PathBuf,
    pub kind: String,
    pub source: PathBuf,
    pub read_only: bool,
}

/// Spaces and the like are written as `\040` in `/proc`.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or(&[]);
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (high, low) = front.next()?.split_once(':')?;
    let point = unescape(front.nth(1)?);
    let options = front.next()?;
    let mut back = back.split(' ');
    Some(Mount {
        device: makedev(high.parse().ok()?, low.parse().ok()?),
        point,
        kind: back.next()?.to_owned(),
        source: unescape(back.next()?),
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// Everything that is mounted.
pub(super) fn mounts() -> io::Result<Vec<Mount>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(parse_mount).collect())
}

/// Files and devices that are swapped on.
pub(super) fn swaps() -> io::Result<Vec<PathBuf>> {
    let text = match fs::read_to_string("/proc/swaps") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    Ok(text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape).collect())
}

/// The device number of a block device.
pub(super) fn device_number(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device()).map(|meta| meta.rdev())
}

fn sysfs(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn device_in(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let (high, low) = text.trim().split_once(':')?;
    Some(makedev(high.parse().ok()?, low.parse().ok()?))
}

/// A partition as the kernel sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PartitionFacts {
    pub name: String,
    pub device: u64,
    /// First byte on the disk.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

/// If the device is a partition: its disk's number, and where it begins there.
pub(super) fn parent_of(device: u64) -> Option<(u64, u64)> {
    let folder = sysfs(device);
    folder.join("partition").exists().then_some(())?;
    let start = number_in(&folder.join("start"))? * 512;
    let disk = device_in(&fs::canonicalize(folder).ok()?.parent()?.join("dev"))?;
    Some((disk, start))
}

/// The partitions of a disk.
pub(super) fn partitions_of(disk: u64) -> Vec<PartitionFacts> {
    let entries = fs::read_dir(sysfs(disk)).into_iter().flatten().flatten();
    let mut partitions: Vec<PartitionFacts> = entries
        .filter(|entry| entry.path().join("partition").exists())
        .filter_map(|entry| {
            let start = number_in(&entry.path().join("start"))? * 512;
            let end = start + number_in(&entry.path().join("size"))? * 512;
            let name = entry.file_name().to_string_lossy().into_owned();
            Some(PartitionFacts { name, device: device_in(&entry.path().join("dev"))?, start, end })
        })
        .collect();
    partitions.sort_by_key(|partition| partition.start);
    partitions
}

/// Who else holds a device: RAID, LVM, device mapper, bcache.
fn holders(device: u64) -> Vec<String> {
    let entries = fs::read_dir(sysfs(device).join("holders")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn device_use(device: u64) -> io::Result<Option<String>> {
    let same = |path: &Path| device_number(path) == Some(device);
    if let Some(mount) = mounts()?.iter().find(|mount| mount.device == device || same(&mount.source)) {
        return Ok(Some(format!("it is mounted on {}", mount.point.display())));
    }
    if swaps()?.iter().any(|path| same(path)) {
        return Ok(Some("it is in use as swap".to_owned()));
    }
    Ok(holders(device).first().map(|holder| format!("{holder} (RAID, LVM or device mapper) uses it")))
}

/// Why the device is in use, if it or a partition of it is.
pub(super) fn block_device_use(device: u64) -> io::Result<Option<String>> {
    if let Some(why) = device_use(device)? {
        return Ok(Some(why));
    }
    for partition in partitions_of(device) {
        if let Some(why) = device_use(partition.device)? {
            return Ok(Some(format!("its partition {} is in use: {why}", partition.name)));
        }
    }
    Ok(None)
}

/// What lies under a loop device; none for other devices. `sys` is its folder in `/sys/block`.
fn backing_file(sys: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(sys.join("loop/backing_file")).ok()?;
    Some(unescape(text.trim_end()))
}

/// True for a file in a FUSE file system: it may be a borrowed volume, whose lender may be away. Whoever looks at it then waits
/// for ever, cannot even be killed, and two servers that lend to each other would wait for each other.
fn is_in_fuse(file: &Path, mounts: &[Mount]) -> bool {
    let below = mounts.iter().filter(|mount| file.starts_with(&mount.point));
    below.max_by_key(|mount| mount.point.as_os_str().len()).is_some_and(|mount| mount.kind.starts_with("fuse"))
}

/// The loop devices over files in FUSE file systems: borrowed volumes and the like. They are never touched.
pub(super) fn over_fuse() -> Vec<u64> {
    let mounts = mounts().unwrap_or_default();
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let over = entries.filter(|entry| backing_file(&entry.path()).is_some_and(|file| is_in_fuse(&file, &mounts)));
    over.filter_map(|entry| device_in(&entry.path().join("dev"))).collect()
}

/// Why a file is in use, if it is: as swap, or under a loop device.
pub(super) fn file_use(path: &Path) -> io::Result<Option<String>> {
    let own = fs::metadata(path)?;
    let same = |other: &Path| fs::metadata(other).is_ok_and(|meta| (meta.dev(), meta.ino()) == (own.dev(), own.ino()));
    if swaps()?.iter().any(|path| same(path)) {
        return Ok(Some("it is in use as swap".to_owned()));
    }
    let mounts = mounts()?;
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    for device in devices {
        let backing = backing_file(&device.path()).filter(|file| !is_in_fuse(file, &mounts));
        if backing.is_some_and(|file| same(&file)) {
            return Ok(Some(format!("it is attached to {}", device.file_name().to_string_lossy())));
        }
    }
    Ok(None)
}

/// A disk or partition of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub path: PathBuf,
    pub device: u64,
    pub size: u64,
    pub partition: bool,
}

/// All disks and partitions that hold something, are writable, and are not borrowed themselves.
pub(super) fn blocks() -> Vec<Block> {
    let mut found = Vec::new();
    let over_fuse = over_fuse();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Memory, optical drives and floppies are no disks; zram is memory too.
        if ["ram", "zram", "sr", "fd"].iter().any(|prefix| name.starts_with(prefix))
            || number_in(&entry.path().join("ro")) != Some(0)
        {
            continue;
        }
        let Some(device) = device_in(&entry.path().join("dev")).filter(|device| !over_fuse.contains(device)) else { continue };
        let size = number_in(&entry.path().join("size")).unwrap_or(0) * 512;
        let node = |name: &str| PathBuf::from("/dev").join(name.replace('!', "/"));
        found.push(Block { path: node(&name), device, size, partition: false });
        found.extend(partitions_of(device).into_iter().map(|partition| Block {
            path: node(&partition.name),
            device: partition.device,
            size: partition.end - partition.start,
            partition: true,
        }));
    }
    found.retain(|block| block.size > 0 && device_number(&block.path) == Some(block.device));
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_optional_fields_and_escapes() {
        let line = r"36 35 98:7 /mnt1 /mnt/my\040disk rw,noatime master:1 shared:2 - ext3 /dev/ro\134ot rw,errors=continue";
        let mount = parse_mount(line).unwrap();
        assert_eq!((mount.point.as_path(), mount.source.as_path()), (Path::new("/mnt/my disk"), Path::new(r"/dev/ro\ot")));
        assert_eq!((major(mount.device), minor(mount.device), mount.read_only), (98, 7, false));
        assert!(parse_mount("36 35 0:5 / /x ro - proc proc rw").unwrap().read_only);
        assert_eq!(parse_mount("nonsense"), None);
    }

    #[test]
    fn files_of_borrowed_volumes_are_told_by_their_file_system() {
        let mounts: Vec<Mount> = [
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
            "2 1 0:50 / /srv/mounts/v/fuse rw - fuse.sublet sublet rw",
            "3 1 8:2 / /srv rw - xfs /dev/sda2 rw",
        ]
        .iter()
        .filter_map(|line| parse_mount(line))
        .collect();
        assert!(is_in_fuse(Path::new("/srv/mounts/v/fuse/volume"), &mounts));
        for other in ["/srv/mounts/v/fuse2/volume", "/srv/disk", "/image"] {
            assert!(!is_in_fuse(Path::new(other), &mounts), "{other}");
        }
    }

    #[test]
    fn the_root_of_this_machine_is_mounted() {
        assert!(mounts().unwrap().iter().any(|mount| mount.point == Path::new("/")));
    }
}
