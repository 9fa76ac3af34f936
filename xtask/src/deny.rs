//! What the dependencies are: licences, sources, versions, known defects (`deny.toml`).

use std::path::Path;
use std::process::Command;

use crate::run::cargo;

/// The workspaces that are checked: all crates that are ever built.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "fuzz/libfuzzer/Cargo.toml"];

const CONFIG: &str = "deny.toml";

fn deny(top: &Path, args: &[&str]) -> Result<(), String> {
    MANIFESTS.iter().try_for_each(|manifest| {
        let all = [&["deny", "--manifest-path", manifest, "--config", CONFIG, "--offline", "check"], args].concat();
        cargo(top, &all, &[])
    })
}

/// Installs cargo-deny if it is missing.
fn install(top: &Path) -> Result<(), String> {
    let there = Command::new("cargo").current_dir(top).args(["deny", "--version"]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("== cargo-deny is missing; installing it takes a few minutes, once");
    let installed = cargo(top, &["install", "--locked", "cargo-deny"], &[]);
    installed.map_err(|why| format!("{why}; install it by hand (0.18 or newer): cargo install --locked cargo-deny"))
}

/// Checks all dependencies. Known defects are looked up if their database can be had.
///
/// # Errors
/// What was found.
pub fn check(top: &Path) -> Result<(), String> {
    install(top)?;
    deny(top, &["--hide-inclusion-graph", "licenses", "bans", "sources"])?;
    let fetched = Command::new("cargo").args(["deny", "--config", CONFIG, "fetch", "db"]).current_dir(top).output();
    if !fetched.is_ok_and(|output| output.status.success()) {
        println!("== known defects of dependencies (RUSTSEC) were NOT looked up: their database cannot be had here");
        return Ok(());
    }
    deny(top, &["advisories"])
}
