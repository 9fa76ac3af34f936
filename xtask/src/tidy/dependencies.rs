//! Dependencies run one way: a crate uses only crates of lower layers (section 11 of the design, ARCHITECTURE.md).

use std::path::Path;

use super::read;

/// The layers, lowest first. Crates of one layer do not know each other.
const LAYERS: &[&[&str]] = &[
    &["types"],
    &["api", "doors", "trust"],
    &["wire", "link", "seal"],
    &["area", "table", "volume"],
    &["coordinator"],
    &["agent", "client", "manager"],
    &["cli", "sim", "model"],
];

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

pub(super) fn check(top: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    let Ok(crates) = std::fs::read_dir(top.join("crates")) else {
        return vec!["crates/ is missing".to_owned()];
    };
    for name in crates.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        let Some(own) = layer(&name) else {
            findings.push(format!("crates/{name}: not in the list of layers (xtask/src/tidy/dependencies.rs)"));
            continue;
        };
        let manifest = read(&top.join("crates").join(&name).join("Cargo.toml"));
        let normal = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for used in normal.lines().filter_map(|line| line.strip_prefix("sublet-")) {
            let used = used.split([' ', '=', '.']).next().unwrap_or_default();
            if layer(used).is_none_or(|used| used >= own) {
                findings.push(format!("crates/{name} depends on {used}, which is not in a lower layer"));
            }
        }
    }
    findings
}
