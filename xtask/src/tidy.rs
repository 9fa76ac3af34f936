//! `cargo xtask tidy`: the house rules that a machine can check.

mod contract;
mod dependencies;
mod documents;
mod sources;
mod unsafe_code;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs every check.
///
/// # Errors
/// All findings, one a line.
pub fn tidy(top: &Path, bless: bool) -> Result<(), String> {
    println!("== tidy");
    let files = files(top)?;
    let mut findings = Vec::new();
    findings.extend(dependencies::check(top));
    findings.extend(sources::check(top, &files));
    findings.extend(unsafe_code::check(top, &files));
    findings.extend(contract::check(top, &files));
    findings.extend(documents::check(top, &files, bless)?);
    if findings.is_empty() { Ok(()) } else { Err(format!("tidy found:\n{}", findings.join("\n"))) }
}

/// All files that git knows or would add, relative to the top.
fn files(top: &Path) -> Result<Vec<PathBuf>, String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(top)
        .output()
        .map_err(|e| format!("cannot run git: {e}"))?;
    let names = String::from_utf8_lossy(&output.stdout);
    let mut files: Vec<PathBuf> = names.lines().map(PathBuf::from).filter(|f| top.join(f).is_file()).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
