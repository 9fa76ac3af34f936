//! Sublet, over two hops: a Unix socket or FUSE and loop, then TCP to the lenders.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Kind, Place, Target, unix};
use crate::error::{Doing as _, Failure};
use crate::process::of_folder;

/// Room for the key header of an encrypted volume, in bytes: areas are lent in such pieces.
const KEY_ROOM: u64 = 4 << 20;

/// A pool on this machine; it ends with this.
struct Pool {
    program: PathBuf,
    dir: PathBuf,
}

impl Pool {
    /// A manager and five servers: the first one borrows, the others lend.
    fn start(program: &Path, dir: PathBuf) -> Result<Self, Failure> {
        let pool = Self { program: program.to_owned(), dir };
        pool.run(None, &["playground", "--detach", "--servers", "5", "--no-areas", "--dir", &pool.dir.to_string_lossy()])?;
        Ok(pool)
    }

    /// `sublet ARGS` as one of the servers, `a` ... `e`.
    fn run(&self, server: Option<char>, args: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new(&self.program);
        command.env_remove("SUBLET_MANAGER").env_remove("SUBLET_HOME").env("SUBLET_CONFIG", "/dev/null").args(args);
        if let Some(letter) = server {
            command.env("SUBLET_HOME", self.home(letter));
        }
        let output = command.output().doing(self.program.display())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Failure::new(format!("sublet {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr))))
    }

    fn home(&self, letter: char) -> PathBuf {
        self.dir.join(format!("server-{letter}"))
    }

    fn lend(&self, letter: char, name: &str, bytes: u64) -> Result<(), Failure> {
        let folder = self.home(letter).join(name);
        std::fs::create_dir(&folder).doing(folder.display())?;
        let (folder, size) = (folder.to_string_lossy().into_owned(), bytes.to_string());
        self.run(Some(letter), &["lend", &folder, "--size", &size, "--name", name, "--keep-free", "0%"]).map(drop)
    }

    /// Defines a volume on these areas, borrows it, and mounts it.
    fn volume(&self, name: &str, way: &str, on: &str, front_end: &str) -> Result<(), Failure> {
        self.volume_with(name, way, on, &[], &["--as", front_end])
    }

    /// The same with these options of `borrow` and `mount`.
    fn volume_with(&self, name: &str, way: &str, on: &str, borrow: &[&str], mount: &[&str]) -> Result<(), Failure> {
        self.run(None, &["--manager", &self.url()?, "volume", "create", name, "--way", way, "--on", on])?;
        self.run(Some('a'), &[&["borrow", name], borrow].concat())?;
        self.run(Some('a'), &[&["mount", name], mount].concat()).map(drop)
    }

    /// The same, encrypted by its borrower, as a socket.
    fn encrypted(&self, name: &str, on: &str) -> Result<(), Failure> {
        let key = self.dir.join("key");
        std::fs::write(&key, [0x5b; 64]).doing(key.display())?;
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).doing(key.display())?;
        let key = key.to_string_lossy().into_owned();
        let (borrow, mount) = (["--encrypt", "--key-file", &key], ["--as", "socket", "--key-file", &key]);
        self.volume_with(name, "single", on, &borrow, &mount)
    }

    fn url(&self) -> Result<String, Failure> {
        let env = std::fs::read_to_string(self.dir.join("env")).doing("the playground's env")?;
        let line = env.lines().find_map(|line| line.strip_prefix("export SUBLET_MANAGER="));
        line.map(|url| url.trim_matches('\'').to_owned()).ok_or_else(|| Failure::new("no manager in the playground's env"))
    }

    fn target(&self, name: &'static str, volume: &str) -> Result<Target, Failure> {
        let socket = self.home('a').join("mounts").join(volume).join("nbd.sock");
        let mut target = Target::nbd(name, Kind::Own, &unix(&socket), Vec::new());
        target.pids = of_folder("sublet", &self.dir)?;
        Ok(target)
    }

    /// The block device of a volume.
    fn device(&self, volume: &str) -> Result<String, Failure> {
        let status = self.run(Some('a'), &["status", "--json"])?;
        let status: Value = serde_json::from_str(&status).doing("sublet status")?;
        let mounts = status["mounts"].as_array().cloned().unwrap_or_default();
        let mount = mounts.iter().find(|mount| mount["name"] == volume || mount["volume"] == volume);
        let device = mount.and_then(|mount| mount["device"].as_str());
        device.map(str::to_owned).ok_or_else(|| Failure::new(format!("no device of {volume} in {status}")))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for volume in ["single", "encrypted", "integrated", "doubled", "device"] {
            // Not all of them are always there.
            let _ = self.run(Some('a'), &["unmount", volume]);
        }
        if let Err(failure) = self.run(None, &["playground", "--stop", "--dir", &self.dir.to_string_lossy()]) {
            eprintln!("bench: {failure}");
        }
    }
}

/// A volume of each usage way, as a socket, and one as a block device.
pub fn targets(place: &Place, bytes: u64, program: &Path, wants: &dyn Fn(&str) -> bool) -> Result<Vec<Target>, Failure> {
    let names = ["sublet-single", "sublet-encrypted", "sublet-integrated", "sublet-doubled", "sublet-device"];
    if !names.iter().any(|name| wants(name)) {
        return Ok(Vec::new());
    }
    let pool = Pool::start(program, place.path("pool"))?;
    let mut targets = Vec::new();
    if wants("sublet-single") {
        pool.lend('b', "s1", bytes)?;
        pool.volume("single", "single", "s1", "socket")?;
        targets.push(pool.target("sublet-single", "single")?);
    }
    if wants("sublet-encrypted") {
        // It needs a little more: its key header.
        pool.lend('e', "e1", bytes + KEY_ROOM)?;
        pool.encrypted("encrypted", "e1")?;
        targets.push(pool.target("sublet-encrypted", "encrypted")?);
    }
    if wants("sublet-integrated") {
        for (letter, area) in ('b'..='e').zip(["i1", "i2", "i3", "i4"]) {
            pool.lend(letter, area, bytes / 4)?;
        }
        pool.volume("integrated", "integrated", "i1,i2,i3,i4", "socket")?;
        targets.push(pool.target("sublet-integrated", "integrated")?);
    }
    if wants("sublet-doubled") {
        pool.lend('c', "d1", bytes)?;
        pool.lend('d', "d2", bytes)?;
        pool.volume("doubled", "doubled", "d1,d2", "socket")?;
        targets.push(pool.target("sublet-doubled", "doubled")?);
    }
    if wants("sublet-device") {
        pool.lend('e', "f1", bytes)?;
        pool.volume("device", "single", "f1", "fuse")?;
        let (device, mut target) = (pool.device("device")?, pool.target("sublet-device", "device")?);
        target.io = vec!["--ioengine=io_uring".to_owned(), "--direct=1".to_owned(), format!("--filename={device}")];
        targets.push(target);
    }
    // Every client is there now.
    let pids = of_folder("sublet", &pool.dir)?;
    targets.iter_mut().for_each(|target| target.pids.clone_from(&pids));
    if let Some(first) = targets.first_mut() {
        first.served.push(Box::new(pool));
    }
    Ok(targets)
}
