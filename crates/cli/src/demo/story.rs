//! The story itself: what the seed tells with FIG. 1A to 6D, and what it promises of doubled volumes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::ByteSize;
use sublet_types::size::MIB;

use super::tree::{self, Entry};
use crate::interrupt;
use crate::nbd::NbdClient;
use crate::playground::{Playground, processes};

/// How many bytes of real files are copied.
const TREE_BYTES: u64 = 256 * MIB;
/// The marker that is written, searched, and must be gone from the lenders' disks at the end.
const MARKER: &str = "sublet-demo-marker-7f3a";
/// How long a state may take to come about.
const WAIT_LIMIT: Duration = Duration::from_secs(45);

/// The servers by their number in the playground; F is called X in the story, G is J, H is K.
const A: usize = 0;
const D: usize = 3;
const E: usize = 4;
const X: usize = 5;
const J: usize = 6;
const K: usize = 7;

/// The areas of the seed's table: (name, server, MiB).
const AREAS: [(&str, usize, u64); 6] =
    [("a2", A, 256), ("b2", 1, 128), ("c2", 2, 192), ("d", D, 512), ("e", E, 512), ("x2", X, 256)];

pub(super) struct Story<'a> {
    pool: &'a Playground,
    root: bool,
    step: u32,
}

fn off(what: impl Into<String>) -> Refusal {
    Refusal::new(ErrorKind::Internal, format!("the demo is off: {}", what.into()))
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> Refusal + '_ {
    move |e| Refusal::new(ErrorKind::Io, format!("{what}: {e}"))
}

impl<'a> Story<'a> {
    pub(super) fn new(pool: &'a Playground) -> Self {
        let root =
            rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists() && Path::new("/dev/fuse").exists();
        Self { pool, root, step: 0 }
    }

    pub(super) fn tell(&mut self) -> Result<(), Refusal> {
        if !self.root {
            println!(
                "Without root (or without the loop and FUSE devices) there is no block device: the NBD socket is used instead."
            );
        }
        self.register()?;
        self.define()?;
        self.lend_vol_1()?;
        self.lend_the_others()?;
        self.fill_the_doubled_volume()?;
        self.give_everything_back()
    }

    fn heading(&mut self, text: &str) {
        self.step += 1;
        println!("\n--- {}. {text}", self.step);
    }

    /// Runs a command in a server's name, and shows both.
    fn show(&self, server: usize, args: &[&str]) -> Result<String, Refusal> {
        interrupt::check()?;
        println!("{}$ sublet {}", name(server), args.join(" "));
        let text = self.pool.sublet(server).run(args)?;
        if !text.trim().is_empty() {
            println!("{}", indent(&text));
        }
        Ok(text)
    }

    /// Shows a command that must be refused.
    fn show_refused(&self, server: usize, args: &[&str], because: &str) -> Result<(), Refusal> {
        println!("{}$ sublet {}", name(server), args.join(" "));
        match self.pool.sublet(server).run(args) {
            Ok(_) => Err(off(format!("'sublet {}' was not refused", args.join(" ")))),
            Err(refusal) if refusal.message.contains(because) => {
                println!("{}", indent(&refusal.to_string()));
                Ok(())
            }
            Err(refusal) => Err(off(format!("refused for another reason than '{because}': {refusal}"))),
        }
    }

    fn table(&self) -> Result<(), Refusal> {
        interrupt::check()?;
        println!("{}", indent(&self.pool.sublet(A).run(&["table"])?));
        Ok(())
    }

    fn volume(&self, name: &str) -> Result<Value, Refusal> {
        self.pool.sublet(A).json(&["volume", "show", name, "--json"])
    }

    fn expect(&self, volume: &str, field: &str, value: &Value) -> Result<(), Refusal> {
        let row = self.volume(volume)?;
        if row.get(field) == Some(value) {
            Ok(())
        } else {
            Err(off(format!("{field} of {volume} is {:?}, not {value}", row.get(field))))
        }
    }

    fn wait_for(&self, what: &str, mut ready: impl FnMut() -> Result<bool, Refusal>) -> Result<Duration, Refusal> {
        let begun = Instant::now();
        while !ready()? {
            interrupt::check()?;
            if begun.elapsed() > WAIT_LIMIT {
                return Err(off(format!("{what} has not come about within {} s", WAIT_LIMIT.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(begun.elapsed())
    }

    /// Seed: each server registers surplus storage areas of its own with the management server.
    fn register(&mut self) -> Result<(), Refusal> {
        self.heading("Servers with disks of their own register areas they do not need");
        for (server, new) in [(X, "server-x"), (J, "server-j"), (K, "server-k")] {
            let old = crate::playground::server_name(server);
            self.pool.sublet(server).run(&["server", "rename", &old, new])?;
        }
        for (area, server, mib) in AREAS {
            let folder = self.pool.home(server).join("disk");
            std::fs::create_dir_all(&folder).map_err(io("cannot make a folder"))?;
            let size = format!("{mib}M");
            self.show(server, &["lend", &folder.to_string_lossy(), "--size", &size, "--name", area, "--keep-free", "1%"])?;
        }
        println!("{}", indent(&self.pool.sublet(A).run(&["area", "ls"])?));
        Ok(())
    }

    /// Seed, FIG. 1B: five volumes in the four usage ways.
    fn define(&mut self) -> Result<(), Refusal> {
        self.heading("The administrator sets usage ways: the table of FIG. 1B");
        for line in [
            "volume create Vol-1 --way single --on a2",
            "volume create Vol-2 --way integrated --on b2,c2",
            "volume create Vol-3 --way doubled --on d,e",
            "volume create Vol-4 --way divided --on x2:128M",
            "volume create Vol-5 --way divided --on x2:128M",
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            println!("administrator$ sublet {line}");
            self.pool.sublet(A).run(&args)?;
        }
        self.table()
    }

    /// Seed, FIG. 2A to 6D: server J borrows Vol-1, mounts, accesses, unmounts.
    fn lend_vol_1(&mut self) -> Result<(), Refusal> {
        self.heading("Server J runs short: it borrows Vol-1 (FIG. 2B) and nobody else can");
        self.show(J, &["borrow", "Vol-1"])?;
        self.expect("Vol-1", "borrower", &Value::from("server-j"))?;
        self.expect("Vol-1", "status", &Value::from(0))?;
        self.show_refused(K, &["borrow", "Vol-1"], "server-j")?;

        self.heading("It mounts Vol-1: the manager answers with the mounting information, the status becomes 1");
        self.show(J, &["mount", "Vol-1", "--as", "socket"])?;
        self.expect("Vol-1", "status", &Value::from(1))?;
        self.table()?;

        self.heading("It accesses the area directly at server A: write, read, search (FIG. 6A to 6D)");
        let socket = self.socket(J, "Vol-1");
        let mut client = NbdClient::connect(&socket).map_err(io("Vol-1"))?;
        let places = [0, 4096 - 5, client.size() - MARKER.len() as u64];
        for offset in places {
            client.write(offset, MARKER.as_bytes()).map_err(io("writing to Vol-1"))?;
        }
        client.flush().map_err(io("flushing Vol-1"))?;
        let mut back = vec![0; MARKER.len()];
        for offset in places {
            client.read(offset, &mut back).map_err(io("reading from Vol-1"))?;
            if back != MARKER.as_bytes() {
                return Err(off(format!("Vol-1 reads other bytes at {offset} than were written")));
            }
        }
        let found = self.show(J, &["search", "Vol-1", MARKER])?;
        let found: Vec<u64> = found.lines().filter_map(|l| l.parse().ok()).collect();
        if found != places {
            return Err(off(format!("the search found {found:?}, not {places:?}")));
        }
        drop(client);

        self.heading("It unmounts Vol-1: the path is gone, the status is 0; the bytes stay until it returns the volume");
        self.show(J, &["unmount", "Vol-1"])?;
        self.expect("Vol-1", "status", &Value::from(0))?;
        if self.pool.home(J).join("mounts/Vol-1").exists() {
            return Err(off("the mounting information of Vol-1 is still there"));
        }
        self.table()
    }

    /// Integrated and divided volumes, lent to different servers.
    fn lend_the_others(&mut self) -> Result<(), Refusal> {
        self.heading("Vol-2 is two areas as one; Vol-4 and Vol-5 are one area as two, lent to different servers");
        for (server, volume) in [(K, "Vol-2"), (J, "Vol-4"), (K, "Vol-5")] {
            self.show(server, &["borrow", volume])?;
            self.show(server, &["mount", volume, "--as", "socket"])?;
        }
        self.table()?;
        // Across the border of Vol-2's two areas, and at the same places of Vol-4 and Vol-5.
        let border = 128 * MIB - 7;
        for (server, volume, offset, text) in [
            (K, "Vol-2", border, "integrated: B2 and C2"),
            (J, "Vol-4", 4096, "four, for server J"),
            (K, "Vol-5", 4096, "five, for server K"),
        ] {
            let mut client = NbdClient::connect(&self.socket(server, volume)).map_err(io(volume))?;
            client.write(offset, text.as_bytes()).map_err(io(volume))?;
            client.flush().map_err(io(volume))?;
        }
        for (server, volume, offset, text) in [
            (K, "Vol-2", border, "integrated: B2 and C2"),
            (J, "Vol-4", 4096, "four, for server J"),
            (K, "Vol-5", 4096, "five, for server K"),
        ] {
            let mut client = NbdClient::connect(&self.socket(server, volume)).map_err(io(volume))?;
            let mut back = vec![0; text.len()];
            client.read(offset, &mut back).map_err(io(volume))?;
            if back != text.as_bytes() {
                return Err(off(format!("{volume} reads other bytes than were written to it")));
            }
        }
        println!("  Vol-2 was written and read across its border; Vol-4 and Vol-5 hold different bytes at the same place.");
        // Seed: access may also be initialisation.
        self.show(J, &["volume", "init", "Vol-4"])?;
        let read = |server, volume, expected: &[u8]| {
            let mut client = NbdClient::connect(&self.socket(server, volume)).map_err(io(volume))?;
            let mut back = vec![0; expected.len()];
            client.read(4096, &mut back).map_err(io(volume))?;
            if back == expected { Ok(()) } else { Err(off(format!("{volume} reads wrong bytes after Vol-4 was initialised"))) }
        };
        read(J, "Vol-4", &[0; 18])?;
        read(K, "Vol-5", b"five, for server K")
    }

    /// Doubled: a real tree of files, and a lender that is killed in the middle.
    fn fill_the_doubled_volume(&mut self) -> Result<(), Refusal> {
        self.heading("Vol-3 is doubled: a real tree of files, and lender D is killed in the middle");
        let mount_dir = self.pool.dir().join("vol-3");
        let dir = mount_dir.to_string_lossy();
        self.show(J, &["borrow", "Vol-3"])?;
        if self.root {
            self.show(J, &["mount", "Vol-3", &dir, "--mkfs", "ext4"])?;
        } else {
            self.show(J, &["mount", "Vol-3", "--as", "socket"])?;
        }
        self.table()?;
        let files = tree::collect(TREE_BYTES);
        let mut entries: Vec<Entry> = Vec::new();
        let mut socket = None;
        if !self.root {
            socket = Some(NbdClient::connect(&self.socket(J, "Vol-3")).map_err(io("Vol-3"))?);
        }
        let mut offset = 0;
        let mut killed = None;
        for (number, (source, length)) in files.iter().enumerate() {
            if killed.is_none() && number >= files.len() / 2 {
                self.kill(D)?;
                killed = Some(Instant::now());
            }
            let entry = match &mut socket {
                None => tree::copy(source, &mount_dir),
                Some(client) => tree::write(source, client, offset),
            };
            entries.push(entry.map_err(io(&source.to_string_lossy()))?);
            offset += length;
        }
        self.sync(&mount_dir, socket.as_mut())?;
        let bytes: u64 = entries.iter().map(|e| e.length).sum();
        println!("  {} files ({}) were written, half of them after the kill; no error was seen.", entries.len(), ByteSize(bytes));
        let waited = self.wait_for("the stale leg", || Ok(self.stale_legs()? == 1))?;
        println!("  The manager has recorded the leg on server D as stale ({:.1} s).", waited.as_secs_f64());
        self.table()?;
        self.verify(&entries, &mount_dir, "from server E alone")?;

        self.heading("Server D comes back: it is copied to, and only then read from; now E is killed");
        self.pool.spawn_server(D)?;
        self.pool.wait_for_server(D)?;
        let waited = self.wait_for("the resync", || Ok(self.stale_legs()? == 0))?;
        println!("  Both legs are in sync again ({:.1} s).", waited.as_secs_f64());
        self.table()?;
        self.kill(E)?;
        self.verify(&entries, &mount_dir, "from server D alone")?;
        self.pool.spawn_server(E)?;
        self.pool.wait_for_server(E)?;
        self.wait_for("the second resync", || Ok(self.stale_legs()? == 0))?;
        Ok(())
    }

    fn sync(&self, mount_dir: &Path, socket: Option<&mut NbdClient>) -> Result<(), Refusal> {
        match socket {
            Some(client) => client.flush().map_err(io("flushing Vol-3")),
            None => {
                let done = Command::new("sync").arg("-f").arg(mount_dir).status().map_err(io("cannot run sync"))?;
                if done.success() { Ok(()) } else { Err(off("sync failed on Vol-3")) }
            }
        }
    }

    fn verify(&self, entries: &[Entry], mount_dir: &Path, whence: &str) -> Result<(), Refusal> {
        let differing: Vec<PathBuf> = if self.root {
            tree::differing_files(entries, mount_dir).map_err(io("reading the tree back"))?
        } else {
            let mut client = NbdClient::connect(&self.socket(J, "Vol-3")).map_err(io("Vol-3"))?;
            tree::differing_ranges(entries, &mut client).map_err(io("reading the tree back"))?
        };
        match differing.first() {
            None => {
                println!("  All {} files were read back {whence}; every SHA-256 agrees.", entries.len());
                Ok(())
            }
            Some(first) => {
                Err(off(format!("{} of {} files differ, the first is {}", differing.len(), entries.len(), first.display())))
            }
        }
    }

    fn stale_legs(&self) -> Result<usize, Refusal> {
        let row = self.volume("Vol-3")?;
        let states = row.pointer("/segments/0/legs").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(states.iter().filter(|leg| leg.get("state") == Some(&Value::from("stale"))).count())
    }

    fn kill(&self, server: usize) -> Result<(), Refusal> {
        let home = self.pool.home(server);
        let pid = processes::pid_of(&home).ok_or_else(|| off(format!("{} does not run", name(server))))?;
        println!("  kill -9 {} ({})", pid.as_raw_nonzero(), name(server));
        kill_process(pid, Signal::KILL).map_err(|e| off(format!("cannot kill {}: {e}", name(server))))
    }

    fn socket(&self, server: usize, volume: &str) -> PathBuf {
        self.pool.home(server).join("mounts").join(volume).join("nbd.sock")
    }

    /// Unmounted, returned, wiped.
    fn give_everything_back(&mut self) -> Result<(), Refusal> {
        self.heading("Everything is unmounted and returned; what is returned is wiped");
        let area = self.pool.home(A).join("disk");
        let held = |folder: &Path| -> Result<bool, Refusal> {
            let mut found = false;
            for entry in std::fs::read_dir(folder).map_err(io("the lender's folder"))?.flatten() {
                found |= tree::contains(&entry.path(), MARKER.as_bytes()).map_err(io("reading the lender's file"))?;
            }
            Ok(found)
        };
        if !held(&area)? {
            return Err(off("the bytes of Vol-1 are not in server A's file, although it was not returned yet"));
        }
        for (server, volume) in [(K, "Vol-2"), (J, "Vol-3"), (J, "Vol-4"), (K, "Vol-5")] {
            self.show(server, &["unmount", volume])?;
        }
        self.table()?;
        for (server, volume) in [(J, "Vol-1"), (K, "Vol-2"), (J, "Vol-3"), (J, "Vol-4"), (K, "Vol-5")] {
            self.show(server, &["return", volume])?;
            self.expect(volume, "borrower", &Value::Null)?;
        }
        self.table()?;
        if held(&area)? {
            return Err(off("the bytes of Vol-1 are still in server A's file"));
        }
        println!("  The marker that server J wrote to Vol-1 is gone from server A's file.");

        self.heading("The next borrower of the same space reads zeroes");
        self.pool.sublet(K).run(&["borrow", "Vol-1"])?;
        self.pool.sublet(K).run(&["mount", "Vol-1", "--as", "socket"])?;
        let mut client = NbdClient::connect(&self.socket(K, "Vol-1")).map_err(io("Vol-1"))?;
        let mut part = vec![1; MIB as usize];
        let mut at = 0;
        while at < client.size() {
            let n = usize::try_from(client.size() - at).unwrap_or(part.len()).min(part.len());
            let part = part.get_mut(..n).unwrap_or_default();
            client.read(at, part).map_err(io("reading Vol-1"))?;
            if part.iter().any(|b| *b != 0) {
                return Err(off(format!("server K reads something else than zeroes near {at}")));
            }
            at += n as u64;
        }
        println!("  Server K has read all {} of Vol-1: zeroes.", ByteSize(client.size()));
        drop(client);
        self.show(K, &["unmount", "Vol-1"])?;
        self.show(K, &["return", "Vol-1"])?;
        self.table()
    }
}

/// The prompt of a server in the story.
fn name(server: usize) -> &'static str {
    ["server-a", "server-b", "server-c", "server-d", "server-e", "server-x", "server-j", "server-k"]
        .get(server)
        .copied()
        .unwrap_or("?")
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
