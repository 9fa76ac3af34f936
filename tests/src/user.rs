//! Commands of an ordinary user, and of root with fewer rights than it has.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pool::Pool;
use crate::process::program;
use crate::run::{run, tool};

/// Nobody: a user and a group on every Linux.
pub const NOBODY: u32 = 65_534;

/// Gives a path to that user.
///
/// # Panics
/// It cannot be given away.
pub fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
}

/// Gives an empty pool's directory to nobody, with a copy of the program in it that this user can run, whoever the sources
/// belong to.
///
/// # Panics
/// It cannot be copied.
pub fn hand_over(pool: &Pool) -> PathBuf {
    let folder = pool.dir().join("bin");
    let copy = folder.join("sublet");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(program(), &copy).unwrap();
    for path in [pool.dir(), &folder, &copy] {
        give(path, NOBODY);
    }
    copy
}

/// A command line of a program under `setpriv FLAGS`, as the first server of a pool.
pub fn with_rights(flags: &[&str], program: &Path, pool: &Pool, args: &[&str]) -> Command {
    let mut command = tool("setpriv");
    command.args(flags).arg(program).args(args);
    command.env_remove("SUBLET_MANAGER").env("SUBLET_CONFIG", "/dev/null").env("SUBLET_HOME", pool.home(0));
    command
}

/// True if a tool is on this machine.
pub fn has_tool(name: &str) -> bool {
    run(tool("sh").args(["-c", &format!("command -v {name}")])).succeeded()
}
