//! `sublet demo`: the seed's story on a playground, step by step, with the table shown. Every claim that it prints was
//! checked; anything that is off ends it with an error.

mod story;
mod tree;

use std::path::PathBuf;
use std::time::Instant;

use sublet_api::{ErrorKind, Refusal};
use sublet_types::ByteSize;
use sublet_types::size::MIB;

use crate::args;
use crate::interrupt;
use crate::playground::{Playground, processes};
use story::Story;

/// The servers of the story: A to E lend, X lends, J and K borrow. The playground calls them `server-a` to `server-h`.
const SERVERS: u8 = 8;

/// `sublet demo`.
///
/// # Errors
/// The step that was off.
pub fn run(options: &args::Demo) -> Result<(), Refusal> {
    interrupt::watch()?;
    let begun = Instant::now();
    let dir = match &options.dir {
        Some(dir) => dir.clone(),
        // On a disk, where there is room; /tmp may be memory.
        None => PathBuf::from("/var/tmp").join(format!("sublet-demo-{}", std::process::id())),
    };
    let fresh = !dir.exists();
    println!("The pool of this demo lives in {}.", dir.display());
    let playground = Playground::start(&args::Playground {
        servers: SERVERS,
        area_size: ByteSize(64 * MIB),
        dir: dir.clone(),
        no_areas: true,
        detach: true,
        stop: false,
        manager_port: None,
        server_port: None,
    })?;
    let told = Story::new(&playground).tell();
    // Whatever happened, no process, mount or device stays behind.
    let stopped = processes::stop(playground.dir());
    if told.is_ok() && fresh && !options.keep {
        std::fs::remove_dir_all(&dir)
            .map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot remove {}: {e}", dir.display())))?;
    } else {
        println!("The pool's directory was left in place: {}", dir.display());
    }
    told?;
    stopped?;
    println!("\nThe story is told: everything that was claimed was checked ({} s).", begun.elapsed().as_secs());
    Ok(())
}
