//! Peers that do not behave: silent, slow, half-open, endless, deaf. All of them are driven by one thread, without blocking.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::Process;

/// Between two rounds of all peers.
const PAUSE: Duration = Duration::from_millis(20);
/// What one of them sends at once, in bytes.
const PART: usize = 64 << 10;

/// A port or socket of the pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Door {
    /// `host:port`.
    Tcp(String),
    /// The path of a socket.
    Unix(PathBuf),
}

/// What a peer does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Says nothing at all.
    Silent,
    /// Says this, one byte a round, and begins again at its end.
    Slow(Vec<u8>),
    /// Says this, and will say no more.
    HalfOpen(Vec<u8>),
    /// Says the first, and then the second again and again, as fast as it is taken.
    Endless(Vec<u8>, Vec<u8>),
    /// The same, and reads no answers.
    Deaf(Vec<u8>, Vec<u8>),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn open(door: &Door) -> io::Result<Self> {
        let stream = match door {
            Door::Tcp(address) => Self::Tcp(TcpStream::connect(address)?),
            Door::Unix(path) => Self::Unix(UnixStream::connect(path)?),
        };
        match &stream {
            Self::Tcp(stream) => stream.set_nonblocking(true)?,
            Self::Unix(stream) => stream.set_nonblocking(true)?,
        }
        Ok(stream)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }

    fn end_writing(&self) {
        // A peer whose connection is gone has ended it as well.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

/// One of them; connects anew whenever its connection was ended.
struct Peer {
    door: Door,
    manner: Manner,
    stream: Option<Stream>,
    /// What is still to be sent, from there on.
    waiting: Vec<u8>,
    at: usize,
}

impl Peer {
    /// The next thing to do. How often its connection was ended, 0 or 1, and how many bytes it got rid of.
    fn step(&mut self) -> (u64, u64) {
        let Some(stream) = &mut self.stream else {
            // A queue that is full is as good an answer as any.
            self.stream = Stream::open(&self.door).ok();
            (self.waiting, self.at) = match &self.manner {
                Manner::Silent => (Vec::new(), 0),
                Manner::Slow(text) | Manner::HalfOpen(text) | Manner::Endless(text, _) | Manner::Deaf(text, _) => {
                    (text.clone(), 0)
                }
            };
            return (0, 0);
        };
        let slow = matches!(self.manner, Manner::Slow(_));
        let rest = self.waiting.get(self.at..).unwrap_or_default();
        let part = rest.get(..if slow { rest.len().min(1) } else { rest.len() }).unwrap_or_default();
        let mut sent = 0;
        if !part.is_empty() {
            match stream.write(part) {
                Ok(n) => sent = n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.stream = None;
                    return (1, 0);
                }
            }
            self.at += sent;
        }
        if self.at >= self.waiting.len() {
            match &self.manner {
                Manner::HalfOpen(_) => stream.end_writing(),
                Manner::Slow(text) => (self.waiting, self.at) = (text.clone(), 0),
                Manner::Endless(_, more) | Manner::Deaf(_, more) => {
                    (self.waiting, self.at) = (more.repeat(PART / more.len().max(1) + 1), 0);
                }
                Manner::Silent => {}
            }
        }
        let mut answer = [0; 4096];
        if !matches!(self.manner, Manner::Deaf(..)) {
            match stream.read(&mut answer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) if n > 0 => {}
                _ => {
                    self.stream = None;
                    return (1, sent as u64);
                }
            }
        }
        (0, sent as u64)
    }
}

/// What peers have brought about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// Connections that were ended by the other side.
    pub ended: u64,
    /// Bytes that were taken from them.
    pub sent: u64,
    /// How often each had its turn.
    pub rounds: u64,
}

/// Lets these peers loose, until `over` says so; each has had `rounds` turns at least.
pub fn annoy(peers: &[(Door, Manner)], rounds: u64, over: &dyn Fn() -> bool) -> Done {
    let one = |(door, manner): &(Door, Manner)| Peer {
        door: door.clone(),
        manner: manner.clone(),
        stream: None,
        waiting: Vec::new(),
        at: 0,
    };
    let mut all: Vec<Peer> = peers.iter().map(one).collect();
    let mut done = Done::default();
    while done.rounds < rounds || !over() {
        for peer in &mut all {
            let (ended, sent) = peer.step();
            done.ended += ended;
            done.sent += sent;
        }
        done.rounds += 1;
        std::thread::sleep(PAUSE);
    }
    done
}

/// Connections that are opened and kept, without a word.
///
/// # Panics
/// One is refused.
pub fn silent(address: &str, count: usize) -> Vec<TcpStream> {
    (0..count).map(|n| TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}, connection {n}: {e}"))).collect()
}

/// The most memory that a process has had, in MiB (`VmHWM` of proc(5)).
///
/// # Panics
/// It has ended.
#[track_caller]
pub fn peak_mib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_else(|| panic!("no VmHWM: {status}"));
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap() / 1024
}

/// Open file descriptors of a process.
pub fn descriptors(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid.as_raw_nonzero())).map_or(0, Iterator::count)
}

/// Lets this process have so many files.
pub fn raise_own_file_limit(wanted: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        setrlimit(Resource::Nofile, limit).unwrap();
    }
}

/// A socket of a mount or server.
pub fn unix(path: &Path) -> Door {
    Door::Unix(path.to_owned())
}
