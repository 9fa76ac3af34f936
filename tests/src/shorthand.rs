//! What nearly every test does.

use std::time::Duration;

use serde_json::Value;

use crate::nbd::Nbd;
use crate::pool::Pool;
use crate::process::Process;
use crate::wait::wait_for;

impl Pool {
    /// Borrows a new volume and mounts it as a socket.
    #[track_caller]
    pub fn carve(&self, server: usize, volume: &str, options: &str) -> Nbd {
        self.ok(server, &format!("borrow {volume} {options}"));
        self.mount(server, volume, "")
    }

    /// Mounts a volume as a socket, and connects to it.
    #[track_caller]
    pub fn mount(&self, server: usize, volume: &str, options: &str) -> Nbd {
        self.ok(server, &format!("mount {volume} --as socket {options}"));
        self.nbd(server, volume)
    }

    /// A new connection to a mounted volume.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn nbd(&self, server: usize, volume: &str) -> Nbd {
        let socket = self.socket(server, volume);
        Nbd::connect(&socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()))
    }

    /// Unmounts and returns a volume.
    #[track_caller]
    pub fn finish(&self, server: usize, volume: &str) {
        self.ok(server, &format!("unmount {volume}"));
        self.ok(server, &format!("return {volume}"));
    }

    /// The states of all legs of a volume, in order.
    #[track_caller]
    pub fn legs(&self, volume: &str) -> Vec<String> {
        let row = self.volume(volume);
        legs_of(&row).iter().map(|leg| text(leg, "/state")).collect()
    }

    /// The servers of all legs of a volume, in order: their numbers.
    #[track_caller]
    pub fn lenders(&self, volume: &str) -> Vec<usize> {
        let row = self.volume(volume);
        legs_of(&row).iter().map(|leg| number_of(&text(leg, "/server"))).collect()
    }

    /// Whether the legs of all that a server has mounted are equal: none is copied to, or compared after an unclean close (H3).
    pub fn legs_are_equal(&self, server: usize) -> bool {
        let status = self.json(server, "status");
        let is_equal = |mount: &Value| {
            mount["resync"].is_null() && !mount["reason"].as_str().is_some_and(|reason| reason.contains("made equal"))
        };
        status["mounts"].as_array().is_some_and(|mounts| mounts.iter().all(is_equal))
    }

    /// Waits until all legs are in sync again.
    #[track_caller]
    pub fn wait_in_sync(&self, volume: &str, limit: Duration) -> Duration {
        wait_for(&format!("all legs of {volume} to be in sync"), limit, || self.legs(volume).iter().all(|s| s == "in-sync"))
    }

    /// Kills a server's process and leaves it dead.
    #[track_caller]
    pub fn kill(&self, server: usize) -> Process {
        let process = self.server(server);
        process.kill();
        process
    }

    /// The files of a server's first area.
    ///
    /// # Panics
    /// There is no folder.
    pub fn area_files(&self, server: usize) -> Vec<std::path::PathBuf> {
        let folder = self.home(server).join("disk");
        std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect()
    }
}

fn legs_of(row: &Value) -> Vec<Value> {
    let segments = row.get("segments").and_then(Value::as_array).cloned().unwrap_or_default();
    segments.iter().flat_map(|s| s.get("legs").and_then(Value::as_array).cloned().unwrap_or_default()).collect()
}

/// The number of `server-a` ...
fn number_of(name: &str) -> usize {
    name.bytes().last().map_or(0, |b| usize::from(b.wrapping_sub(b'a')))
}

/// A text in JSON; empty if there is none.
pub fn text(json: &Value, pointer: &str) -> String {
    json.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A number in JSON.
///
/// # Panics
/// There is none.
#[track_caller]
pub fn number(json: &Value, pointer: &str) -> u64 {
    json.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number at {pointer}: {json:#}"))
}
