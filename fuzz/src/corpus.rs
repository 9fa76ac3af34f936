//! Inputs on the disk: `corpus/TARGET` to begin with, `regressions/TARGET` that once broke something, `failures/TARGET` that have
//! just done so. Files are named by what is in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Target;

/// Where the inputs lie in the repository.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// FNV-1a, 64 bits: enough to give a file a name (<http://www.isthe.com/chongo/tech/comp/fnv/>).
pub fn name_of(input: &[u8]) -> String {
    let hash =
        input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// All inputs of a folder, by name. None if there is no such folder.
///
/// # Errors
/// What the operating system says.
pub fn inputs(folder: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().map(|path| fs::read(&path).map(|bytes| (path, bytes))).collect()
}

/// Corpus and regressions of a target.
///
/// # Errors
/// What the operating system says.
pub fn of(target: &Target) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut all = inputs(&folder().join("corpus").join(target.name))?;
    all.extend(inputs(&folder().join("regressions").join(target.name))?);
    Ok(all)
}

/// Keeps an input in a folder; the answer is where.
///
/// # Errors
/// What the operating system says.
pub fn keep(folder: &Path, input: &[u8]) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(name_of(input));
    fs::write(&path, input)?;
    Ok(path)
}
