//! Source files: short, ASCII, without leftovers.

use std::path::{Path, PathBuf};

use super::read;

/// The most lines of a source file that is not a test.
const LINES_MAX: usize = 600;

fn is_test(path: &Path) -> bool {
    path.components().any(|c| c.as_os_str() == "tests")
        || path.file_stem().is_some_and(|s| s == "tests" || s.to_string_lossy().ends_with("_tests"))
}

pub(super) fn check(top: &Path, files: &[PathBuf]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs")) {
        let text = read(&top.join(file));
        let lines = text.lines().count();
        if lines > LINES_MAX && !is_test(file) {
            findings.push(format!("{}: {lines} lines; split it (at most {LINES_MAX})", file.display()));
        }
        for (number, line) in text.lines().enumerate() {
            if !line.is_ascii() {
                findings.push(format!("{}:{}: not ASCII", file.display(), number + 1));
            }
            // Written in two parts, so that this file does not find itself.
            let leftovers = [concat!("todo", "!("), concat!("unimpl", "emented!("), concat!("FIX", "ME"), concat!("dbg", "!(")];
            if leftovers.iter().any(|leftover| line.contains(leftover)) {
                findings.push(format!("{}:{}: a leftover: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    findings
}
