//! Documents: no dead link, every step of the seed has its row, and the protocol's and format's documents moved together
//! with their code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::read;

/// Documents with a fingerprint of the code they describe: (document, files whose change must be looked at).
const FINGERPRINTED: &[(&str, &[&str])] = &[
    ("docs/protocol.md", &["crates/wire/src/"]),
    (
        "docs/format.md",
        &[
            "crates/area/src/layout",
            "crates/area/src/envelope",
            "crates/area/src/label",
            "crates/area/src/record",
            "crates/area/src/table",
            "crates/area/src/missed",
            "crates/area/src/sums",
        ],
    ),
];

pub(super) fn check(top: &Path, files: &[PathBuf], bless: bool) -> Result<Vec<String>, String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "md")) {
        findings.extend(dead_links(top, file));
    }
    findings.extend(seed_rows(top));
    for (document, sources) in FINGERPRINTED {
        findings.extend(fingerprint(top, files, document, sources, bless)?);
    }
    Ok(findings)
}

/// Links of the form `[text](path)` or `` [`symbol`](path) ``: the path exists, and a symbol in code quotes is defined in it.
fn dead_links(top: &Path, file: &Path) -> Vec<String> {
    let text = read(&top.join(file));
    let folder = top.join(file.parent().unwrap_or(Path::new("")));
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut rest = line;
        while let Some(middle) = rest.find("](") {
            let name = rest[..middle].rfind('[').map_or("", |start| &rest[start + 1..middle]);
            let after = &rest[middle + 2..];
            let Some(end) = after.find(')') else { break };
            let target = &after[..end];
            rest = &after[end + 1..];
            if target.contains("://") || target.starts_with('#') || target.is_empty() {
                continue;
            }
            let path = folder.join(target.split('#').next().unwrap_or(target));
            let place = format!("{}:{}", file.display(), number + 1);
            if !path.exists() {
                findings.push(format!("{place}: dead link to {target}"));
            } else if let Some(symbol) = name.strip_prefix('`').and_then(|n| n.strip_suffix('`'))
                && path.extension().is_some_and(|e| e == "rs")
                && !defines(&read(&path), symbol)
            {
                findings.push(format!("{place}: {target} does not define {symbol}"));
            }
        }
    }
    findings
}

/// True if a source file defines the last part of `Type::symbol` as a function, type, constant, variant or field.
fn defines(source: &str, symbol: &str) -> bool {
    let name = symbol.trim_end_matches("()").rsplit("::").next().unwrap_or(symbol);
    let keywords = ["fn", "struct", "enum", "trait", "const", "static", "mod", "type", "macro_rules!"];
    let word = |text: &str| text.trim_start_matches("r#").split(|c: char| !c.is_alphanumeric() && c != '_').next() == Some(name);
    source.lines().map(str::trim_start).any(|line| {
        let item = keywords.iter().any(|k| line.match_indices(&format!("{k} ")).any(|(at, k)| word(&line[at + k.len()..])));
        let member = line.strip_prefix("pub ").unwrap_or(line);
        item || (word(member) && member[name.len()..].starts_with([',', '(', ':', ' ', '{']))
    })
}

/// Every step number of the seed has a row in docs/seed.md.
fn seed_rows(top: &Path) -> Vec<String> {
    let text = read(&top.join("docs/seed.md"));
    let rows: BTreeSet<&str> = text.lines().filter_map(|l| l.strip_prefix("| ")).filter_map(|l| l.split(' ').next()).collect();
    // The steps that the seed numbers (FIG. 4, 5A, 6A, 6B), its programs and its figure fields.
    let steps = ["S1", "S2", "S3", "S4", "S5", "S8", "S31", "S32", "S33", "S34", "S35", "S51", "S52", "S53", "S71", "S72"];
    let parts = ["10", "11", "13", "14", "15", "16", "17", "19", "20", "21", "23", "30", "50"];
    let figures =
        ["FIG.1A", "FIG.1B", "FIG.2A", "FIG.2B", "FIG.3", "FIG.4", "FIG.5A", "FIG.5B", "FIG.6A", "FIG.6B", "FIG.6C", "FIG.6D"];
    let wanted = steps.iter().chain(&parts).chain(&figures);
    wanted.filter(|row| !rows.contains(**row)).map(|row| format!("docs/seed.md: no row for {row}")).collect()
}

/// The document's last line carries a hash of the code that it describes.
fn fingerprint(top: &Path, files: &[PathBuf], document: &str, sources: &[&str], bless: bool) -> Result<Vec<String>, String> {
    let mut hash = Fnv::default();
    for file in files {
        let name = file.to_string_lossy();
        if name.ends_with(".rs") && sources.iter().any(|s| name.starts_with(s)) {
            hash.add(&significant(&read(&top.join(file))));
        }
    }
    let mark = format!("<!-- describes code {:016x} -->", hash.0);
    let text = read(&top.join(document));
    if text.lines().any(|line| line == mark) {
        return Ok(Vec::new());
    }
    if !bless {
        return Ok(vec![format!(
            "{document}: the code it describes ({}) has changed; bring it up to date, then: cargo xtask tidy --bless",
            sources.join(", ")
        )]);
    }
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("<!-- describes code ")).collect();
    let new = format!("{}\n\n{mark}\n", kept.join("\n").trim_end());
    std::fs::write(top.join(document), new).map_err(|e| format!("cannot write {document}: {e}"))?;
    Ok(Vec::new())
}

/// The code without its tests, comments and white space: changes of those need no new document.
fn significant(source: &str) -> String {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().map(str::trim).filter(|line| !line.starts_with("//")).flat_map(|line| line.split_whitespace()).collect()
}

/// FNV-1a, 64 bits: enough to notice a change (<http://www.isthe.com/chongo/tech/comp/fnv/>).
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_found_and_uses_are_not() {
        let source = "pub async fn alpha(x: u8) {}\npub(crate) struct Beta<T>;\n    Gamma { x: u8 },\n    pub delta: u8,\n    let y = epsilon(3);\n";
        for symbol in ["alpha", "X::alpha()", "Beta", "Enum::Gamma", "delta"] {
            assert!(defines(source, symbol), "{symbol}");
        }
        for symbol in ["epsilon", "alph", "zeta"] {
            assert!(!defines(source, symbol), "{symbol}");
        }
    }

    #[test]
    fn comments_do_not_change_a_fingerprint() {
        assert_eq!(significant("// a\nlet x = 1;\n"), significant("let  x = 1; \n// b\n#[cfg(test)]\nmod t {}"));
        assert_ne!(significant("let x = 1;"), significant("let x = 2;"));
    }
}
