//! `/dev/sublet/NAME`: the name under which people find the block device.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where the links are.
pub const LINKS: &str = "/dev/sublet";
/// Names tried: `NAME`, `NAME-2`, ... A foreign link is never overwritten.
const NAMES_MAX: u32 = 100;

/// Makes a link to `device` under `name` in `links`, or under the next free name, and says which.
///
/// # Errors
/// What the operating system says; `AlreadyExists` if a hundred names are taken.
pub fn make(links: &Path, name: &str, device: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(links)?;
    for number in 1..=NAMES_MAX {
        let path = if number == 1 { links.join(name) } else { links.join(format!("{name}-{number}")) };
        match symlink(device, &path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    let text = format!("{NAMES_MAX} names like {} are taken", links.join(name).display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

/// Removes the link if it still leads to `device`.
///
/// # Errors
/// What the operating system says; a link that is gone is no error.
pub fn remove(link: &Path, device: &Path) -> io::Result<()> {
    match std::fs::read_link(link) {
        Ok(target) if target == device => std::fs::remove_file(link),
        // Somebody else's by now.
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_link_is_left_alone_and_the_next_name_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let links = dir.path().join("sublet");
        let (ours, theirs) = (Path::new("/dev/loop901"), Path::new("/dev/loop902"));
        assert_eq!(make(&links, "v", theirs).unwrap(), links.join("v"));
        let second = make(&links, "v", ours).unwrap();
        assert_eq!(second, links.join("v-2"));
        remove(&links.join("v"), ours).unwrap();
        remove(&second, ours).unwrap();
        remove(&second, ours).unwrap();
        assert_eq!(std::fs::read_link(links.join("v")).unwrap(), theirs);
        assert!(!second.exists() && std::fs::read_link(&second).is_err());
    }

    #[test]
    fn a_file_of_that_name_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("v"), "mine").unwrap();
        assert_eq!(make(dir.path(), "v", Path::new("/dev/loop901")).unwrap(), dir.path().join("v-2"));
        remove(&dir.path().join("v"), Path::new("/dev/loop901")).unwrap();
        assert!(dir.path().join("v").exists());
    }
}
