//! Disks for tests: loop devices over files, with partitions where wished.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::run::{run, sh, tool};

/// A loop device; detached when dropped.
pub struct LoopDisk {
    /// Its device file.
    pub device: String,
    /// The file under it.
    pub file: PathBuf,
    partitions: bool,
}

/// Makes a sparse file.
///
/// # Panics
/// It cannot be made.
pub fn sparse_file(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

impl LoopDisk {
    /// A new disk of that size; the file lies in `dir`.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(dir: &Path, name: &str, size: u64) -> Self {
        let file = dir.join(name);
        sparse_file(&file, size);
        Self::attach(&file)
    }

    /// A device over an existing file.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn attach(file: &Path) -> Self {
        let run = sh("losetup", &["-f", "--show", &file.to_string_lossy()]);
        Self { device: run.out.trim().to_owned(), file: file.to_owned(), partitions: false }
    }

    /// A device over another block device with blocks of 4 KiB, without a page cache between them.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn over(device: &Path) -> Self {
        let run = sh("losetup", &["-f", "--show", "--direct-io=on", "--sector-size", "4096", &device.to_string_lossy()]);
        Self { device: run.out.trim().to_owned(), file: device.to_owned(), partitions: false }
    }

    /// Writes an MBR (two partitions of the same size), and makes the kernel see them: `DEVICEp1`, `DEVICEp2`.
    ///
    /// # Panics
    /// The kernel does not see them.
    pub fn partition(&mut self) -> [String; 2] {
        let sectors = std::fs::metadata(&self.file).unwrap().len() / 512;
        let each = u32::try_from((sectors - 2048) / 2 / 2048 * 2048).unwrap();
        let mut mbr = [0u8; 512];
        for (number, start) in [2048, 2048 + each].into_iter().enumerate() {
            let entry = 446 + 16 * number;
            mbr[entry + 4] = 0x83;
            mbr[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
            mbr[entry + 12..entry + 16].copy_from_slice(&each.to_le_bytes());
        }
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        put(&self.device, 0, &mbr);
        // A device number that was used before may still have the partitions of its former disk.
        run(tool("partx").args(["-d", &self.device]));
        sh("partx", &["-a", &self.device]);
        self.partitions = true;
        [format!("{}p1", self.device), format!("{}p2", self.device)]
    }

    /// Detaches the device; the file stays.
    pub fn detach(self) -> PathBuf {
        self.file.clone()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.partitions {
            run(tool("partx").args(["-d", &self.device]));
        }
        run(tool("losetup").args(["-d", &self.device]));
    }
}

/// Writes bytes to a file or device, durably.
///
/// # Panics
/// It fails.
pub fn put(path: &str, offset: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// True if a file or device holds these bytes anywhere. What the kernel has cached is written back first.
///
/// # Panics
/// It cannot be read.
pub fn holds(path: &Path, pattern: &[u8]) -> bool {
    find(path, pattern).is_some()
}

/// Where a file or device holds these bytes first.
///
/// # Panics
/// It cannot be read.
pub fn find(path: &Path, pattern: &[u8]) -> Option<u64> {
    use std::io::Read;
    let mut file = File::open(path).unwrap();
    let mut window: Vec<u8> = Vec::new();
    let mut before = 0;
    let mut part = vec![0; 4 << 20];
    loop {
        let n = file.read(&mut part).unwrap();
        if n == 0 {
            return None;
        }
        window.extend(&part[..n]);
        // Most of a sparse file is zeroes: look for the first byte only.
        let mut bytes = window.iter().enumerate();
        let found = bytes.find(|(at, b)| **b == pattern[0] && window[*at..].starts_with(pattern));
        if let Some((at, _)) = found {
            return Some(before + at as u64);
        }
        let keep = window.len().min(pattern.len() - 1);
        before += (window.len() - keep) as u64;
        window.drain(..window.len() - keep);
    }
}
