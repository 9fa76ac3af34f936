//! A disk with a volatile cache, as an NBD server for qemu
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>): what was written and not flushed lies in memory. A
//! power cut keeps, loses or tears it, sector by sector, with any of the versions that a sector had since the last flush. Sectors that the
//! disk writes as one, as disks with sectors of 4 KiB do, are not torn from each other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::random::Random;
use crate::wait::wait_for;

const SECTOR: usize = 512;
/// The export has flags, takes flushes, and takes writes with forced unit access.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 3;

type Sector = [u8; SECTOR];

/// What a power cut does with a sector that was not flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Everything that was not flushed is gone.
    Lose,
    /// Everything has just reached the disk.
    Keep,
    /// Each sector has any of its versions.
    Tear,
}

/// How much a power cut met.
#[derive(Clone, Copy, Default, Debug)]
pub struct Toll {
    /// Sectors that were not flushed.
    pub unflushed: u64,
    /// Those that are older now than their last write.
    pub lost: u64,
}

struct Store {
    file: File,
    size: u64,
    /// The versions of a sector since the last flush, oldest first.
    cache: BTreeMap<u64, Vec<Sector>>,
    connections: u32,
}

impl Store {
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        let (first, end) = (offset / SECTOR as u64, (offset + length as u64).div_ceil(SECTOR as u64));
        for (sector, versions) in self.cache.range(first..end) {
            let at = ((sector - first) as usize) * SECTOR;
            if let (Some(place), Some(last)) = (bytes.get_mut(at..at + SECTOR), versions.last()) {
                place.copy_from_slice(last);
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        let first = offset / SECTOR as u64;
        for (sector, data) in (first..).zip(bytes.chunks_exact(SECTOR)) {
            let data: Sector = data.try_into().map_err(io::Error::other)?;
            if durable {
                self.cache.remove(&sector);
            } else {
                self.cache.entry(sector).or_default().push(data);
            }
        }
        if durable { self.file.write_all_at(bytes, offset) } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        for (sector, versions) in std::mem::take(&mut self.cache) {
            if let Some(last) = versions.last() {
                self.file.write_all_at(last, sector * SECTOR as u64)?;
            }
        }
        Ok(())
    }
}

/// The disk; it serves as long as the process lives.
pub struct Disk {
    /// Where qemu finds it.
    pub socket: PathBuf,
    store: Arc<Mutex<Store>>,
    /// So many sectors are written as one.
    at_once: u64,
}

impl Disk {
    /// Serves that file, which must exist, at that socket. What is `unit` bytes long and begins at a multiple of that is written as
    /// one; a guest that writes less at a time must be told of it.
    ///
    /// # Panics
    /// It cannot.
    pub fn serve(file: &Path, socket: &Path, unit: usize) -> Self {
        let file = File::options().read(true).write(true).open(file).unwrap();
        let size = file.metadata().unwrap().len();
        let store = Arc::new(Mutex::new(Store { file, size, cache: BTreeMap::new(), connections: 0 }));
        let listener = UnixListener::bind(socket).unwrap();
        let of_thread = Arc::clone(&store);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let store = Arc::clone(&of_thread);
                store.lock().unwrap().connections += 1;
                std::thread::spawn(move || {
                    // A machine that is killed breaks its connection anywhere.
                    let _ = serve(stream, &store);
                    store.lock().unwrap().connections -= 1;
                });
            }
        });
        Self { socket: socket.to_owned(), store, at_once: (unit / SECTOR) as u64 }
    }

    /// Cuts the power, once the machine is gone.
    ///
    /// # Panics
    /// The machine still uses it, or the file cannot be written.
    pub fn cut(&self, cut: Cut, random: &mut Random) -> Toll {
        wait_for("the end of the disk's connections", Duration::from_secs(20), || self.store.lock().unwrap().connections == 0);
        let mut store = self.store.lock().unwrap();
        let mut toll = Toll::default();
        let (mut unit, mut drawn) = (None, 0);
        for (sector, versions) in std::mem::take(&mut store.cache) {
            if unit.replace(sector / self.at_once) != Some(sector / self.at_once) {
                drawn = random.below(u64::MAX);
            }
            let count = versions.len() as u64;
            // How many of its writes have reached the disk.
            let reached = match cut {
                Cut::Lose => 0,
                Cut::Keep => count,
                Cut::Tear => drawn % (count + 1),
            };
            toll.unflushed += 1;
            toll.lost += u64::from(reached < count);
            if let Some(version) = reached.checked_sub(1).and_then(|last| versions.get(last as usize)) {
                store.file.write_all_at(version, sector * SECTOR as u64).unwrap();
            }
        }
        toll
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

/// One connection: the handshake, then requests one after the other.
fn serve(mut stream: UnixStream, store: &Mutex<Store>) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let option = u32::from_be_bytes(number(&head, 8));
        let mut data = vec![0; u32::from_be_bytes(number(&head, 12)) as usize];
        stream.read_exact(&mut data)?;
        let mut reply = |kind: u32, body: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend((body.len() as u32).to_be_bytes());
            bytes.extend(body);
            stream.write_all(&bytes)
        };
        match option {
            // INFO and GO.
            6 | 7 => {
                let mut export = vec![0, 0];
                export.extend(store.lock().unwrap().size.to_be_bytes());
                export.extend(FLAGS.to_be_bytes());
                reply(3, &export)?;
                reply(1, &[])?;
                if option == 7 {
                    return requests(stream, store);
                }
            }
            // ABORT.
            2 => return reply(1, &[]),
            // Not supported.
            _ => reply(1 << 31 | 1, &[])?,
        }
    }
}

fn requests(mut stream: UnixStream, store: &Mutex<Store>) -> io::Result<()> {
    loop {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let (flags, kind) = (u16::from_be_bytes(number(&head, 4)), u16::from_be_bytes(number(&head, 6)));
        let (offset, length) = (u64::from_be_bytes(number(&head, 16)), u32::from_be_bytes(number(&head, 24)) as usize);
        let mut data = Vec::new();
        if kind == 1 {
            data.resize(length, 0);
            stream.read_exact(&mut data)?;
        }
        let done = {
            let mut store = store.lock().unwrap();
            match kind {
                0 => store.read(offset, length),
                1 => store.write(offset, &data, flags & 1 != 0).map(|()| Vec::new()),
                2 => return Ok(()),
                3 => store.flush().map(|()| Vec::new()),
                _ => Err(io::ErrorKind::Unsupported.into()),
            }
        };
        let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
        reply.extend(if done.is_ok() { 0u32 } else { 5 }.to_be_bytes());
        reply.extend(number::<8>(&head, 8));
        reply.extend(done.unwrap_or_default());
        stream.write_all(&reply)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        Store { file, size: 1 << 20, cache: BTreeMap::new(), connections: 0 }
    }

    fn disk(store: Store) -> Disk {
        Disk { socket: PathBuf::new(), store: Arc::new(Mutex::new(store)), at_once: 1 }
    }

    #[test]
    fn only_what_was_flushed_survives_a_cut_that_loses_everything() {
        let mut store = store();
        store.write(0, &[1; 4096], false).unwrap();
        store.flush().unwrap();
        store.write(0, &[2; 2048], false).unwrap();
        store.write(8192, &[3; 512], true).unwrap();
        assert_eq!(store.read(0, 4096).unwrap(), [[2; 2048], [1; 2048]].concat());
        let disk = disk(store);
        let toll = disk.cut(Cut::Lose, &mut Random::new(1));
        assert_eq!((toll.unflushed, toll.lost), (4, 4));
        let store = disk.store.lock().unwrap();
        assert_eq!(store.read(0, 4096).unwrap(), [1; 4096]);
        assert_eq!(store.read(8192, 512).unwrap(), [3; 512]);
    }

    #[test]
    fn a_cut_that_tears_leaves_sectors_of_all_versions() {
        let mut store = store();
        for version in 1..4 {
            store.write(0, &[version; 1 << 16], false).unwrap();
        }
        let disk = disk(store);
        disk.cut(Cut::Tear, &mut Random::new(5));
        let bytes = disk.store.lock().unwrap().read(0, 1 << 16).unwrap();
        for version in 0..4 {
            assert!(bytes.chunks(SECTOR).any(|sector| sector.iter().all(|b| *b == version)), "none of version {version}");
        }
    }

    #[test]
    fn a_cut_tears_nothing_that_the_disk_writes_as_one() {
        let mut store = store();
        for version in 1..4 {
            store.write(0, &[version; 1 << 16], false).unwrap();
        }
        let disk = Disk { at_once: 8, ..disk(store) };
        disk.cut(Cut::Tear, &mut Random::new(5));
        let bytes = disk.store.lock().unwrap().read(0, 1 << 16).unwrap();
        assert!(bytes.chunks(4096).all(|unit| unit.iter().all(|b| Some(b) == unit.first())));
        assert!((0..4).all(|version| bytes.contains(&version)), "and the units differ");
    }
}
