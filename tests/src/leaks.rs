//! What a pool must not leave behind: processes, mounts, loop devices, links in `/dev/sublet`.

use std::path::{Path, PathBuf};

use crate::process::naming;
use crate::run::{run, tool};

/// Loop devices whose file lies in `dir`: (device, file).
pub fn loops(dir: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            Some((format!("/dev/{}", entry.file_name().to_string_lossy()), file.trim().to_owned()))
        })
        .filter(|(_, file)| Path::new(file).starts_with(dir))
        .collect()
}

/// Mount points in `dir`, and those of devices in `devices`; the innermost first.
pub fn mounts(dir: &Path, devices: &[(String, String)]) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut points: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = PathBuf::from(before.split(' ').nth(4)?);
            let source = after.split(' ').nth(1)?;
            (point.starts_with(dir) || devices.iter().any(|(device, _)| device == source)).then_some(point)
        })
        .collect();
    points.reverse();
    points
}

/// Links in `/dev/sublet` of these names that still point at nothing, or at a loop device of `dir`.
fn links(dir: &Path, names: &[String]) -> Vec<PathBuf> {
    let own = loops(dir);
    names
        .iter()
        .map(|name| Path::new("/dev/sublet").join(name))
        .filter(|link| match std::fs::read_link(link) {
            Err(_) => false,
            Ok(target) => {
                let target = target.to_string_lossy().into_owned();
                let used = Path::new(&format!("{}/loop/backing_file", target.replace("/dev", "/sys/block"))).exists();
                !used || own.iter().any(|(device, _)| *device == target)
            }
        })
        .collect()
}

/// Everything that is left of a pool in `dir` which had mounted volumes of these names.
pub fn find(dir: &Path, names: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(naming(dir).into_iter().map(|(pid, line)| format!("process {pid}: {line}")));
    let devices = loops(dir);
    found.extend(mounts(dir, &devices).into_iter().map(|point| format!("mount {}", point.display())));
    found.extend(devices.into_iter().map(|(device, file)| format!("loop device {device}: {file}")));
    found.extend(links(dir, names).into_iter().map(|link| format!("link {}", link.display())));
    found
}

/// Removes everything that is left, so that one failed test does not spoil the next.
pub fn sweep(dir: &Path, names: &[String]) {
    for (pid, _) in naming(dir) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let devices = loops(dir);
    for point in mounts(dir, &devices) {
        run(tool("umount").arg("-l").arg(point));
    }
    for (device, _) in devices {
        run(tool("partx").args(["-d", &device]));
        run(tool("losetup").args(["-d", &device]));
    }
    for link in links(dir, names) {
        let _ = std::fs::remove_file(link);
    }
}
