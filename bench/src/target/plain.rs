//! The file itself, without any server.

use super::{Kind, Medium, Place, Target};
use crate::error::Failure;

/// fio on a file, in its own process.
pub fn targets(place: &Place, bytes: u64, wants: &dyn Fn(&str) -> bool) -> Result<Vec<Target>, Failure> {
    if !wants("raw") {
        return Ok(Vec::new());
    }
    let path = place.file("raw.img", bytes)?;
    let direct = i32::from(place.medium == Medium::Disk);
    let io = vec!["--ioengine=io_uring".to_owned(), format!("--direct={direct}"), format!("--filename={}", path.display())];
    Ok(vec![Target { name: "raw", kind: Kind::Raw, io, pids: Vec::new(), served: Vec::new() }])
}
