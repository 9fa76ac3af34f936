//! What the client tells its starter: that everything is up, or why not.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sublet_api::{ErrorKind, Refusal};

/// Everything is up: `ready.json` in the mount's directory, and one line on the ready descriptor. Where it fails, the line is
/// a [`Refusal`] instead.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// The NBD socket.
    pub socket: String,
    /// The block device's link, if there is one.
    pub device: Option<String>,
    /// This process.
    pub pid: u32,
}

/// The name of the file.
pub const READY_FILE: &str = "ready.json";

impl Ready {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// `Io` if it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), Refusal> {
        let path = dir.join(READY_FILE);
        let json = serde_json::to_vec(self).map_err(|e| Refusal::new(ErrorKind::Internal, e.to_string()))?;
        sublet_link::write_private(&path, &json)
            .map_err(|e| Refusal::new(ErrorKind::Io, format!("{} cannot be written: {e}", path.display())))
    }
}

/// Writes one line of JSON to the ready descriptor. A starter that is gone is no failure.
pub fn tell(descriptor: Option<i32>, what: &impl Serialize) {
    let Some(descriptor) = descriptor else { return };
    let told = serde_json::to_string(what).map_err(std::io::Error::from).and_then(|line| {
        // By its name in /proc: owning an inherited number would need unsafe code.
        let mut pipe = OpenOptions::new().write(true).open(format!("/proc/self/fd/{descriptor}"))?;
        pipe.write_all(format!("{line}\n").as_bytes())
    });
    if let Err(error) = told {
        tracing::info!(%error, descriptor, "the starter was not told");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_starter_reads_one_line() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let ready = Ready { socket: "/x/nbd.sock".into(), device: None, pid: 7 };
        tell(Some(writer.as_raw_fd()), &ready);
        tell(None, &ready);
        drop(writer);
        let mut line = String::new();
        std::fs::File::from(reader).read_to_string(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Ready>(line.strip_suffix('\n').unwrap()).unwrap(), ready);
    }
}
