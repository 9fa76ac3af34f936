//! Code that the compiler does not check is in few named places, and each says why it is right.

use std::path::{Path, PathBuf};

use super::read;

/// The files that may use it, and what for. The compiler denies it everywhere else; this list says that nobody lifts that in passing.
const MODULES: &[(&str, &str)] = &[
    ("crates/doors/src/buffer.rs", "a slice of pages is a slice of bytes"),
    ("crates/doors/src/real/ioctl.rs", "ioctl numbers and argument types are declared by hand"),
    ("crates/doors/src/real/owned.rs", "the buffer traits of the runtime hand out memory to the kernel"),
    ("crates/client/src/fuse/loop_device.rs", "ioctl has no safe form"),
    ("crates/client/src/process/signals.rs", "there is no safe form of signal masks"),
    ("fuzz/src/memory.rs", "an allocator has no safe form"),
];

/// Written in two parts, so that this file does not find itself.
const WORD: &str = concat!("uns", "afe");

pub(super) fn check(top: &Path, files: &[PathBuf]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut used = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let name = file.to_string_lossy();
        let text = read(&top.join(file));
        let lines = uses(&text);
        if lines.is_empty() {
            continue;
        }
        used.push(name.to_string());
        if !MODULES.iter().any(|(module, _)| *module == name) {
            let numbers: Vec<String> = lines.iter().map(usize::to_string).collect();
            findings.push(format!(
                "{name}: {WORD} code in line {}; do it safely, or name the module and the reason in xtask/src/tidy/unsafe_code.rs",
                numbers.join(", ")
            ));
        }
        findings.extend(unexplained(&text).map(|line| format!("{name}:{line}: {WORD} code without a SAFETY comment before it")));
    }
    let stale = MODULES.iter().filter(|(module, _)| !used.iter().any(|name| name == module));
    findings.extend(stale.map(|(module, _)| format!("{module} has no {WORD} code any more: take it out of the list of modules")));
    findings
}

/// The code of a line: without its comment. Strings are taken for code, which errs on the side of a finding.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// Whether a line has the word, not as a part of another one (as the name of the lint has it), or lifts the lint.
fn is_use(line: &str) -> bool {
    let code = code(line);
    let border = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    let is_word = code.match_indices(WORD).any(|(at, word)| {
        border(code.get(..at).and_then(|before| before.chars().next_back()))
            && border(code.get(at + word.len()..).and_then(|after| after.chars().next()))
    });
    let lifts = ["allow(", "expect("].iter().any(|lift| code.contains(&format!("{lift}{WORD}_code")));
    is_word || lifts
}

/// Numbers of the lines that use it.
fn uses(text: &str) -> Vec<usize> {
    (1..).zip(text.lines()).filter(|(_, line)| is_use(line)).map(|(number, _)| number).collect()
}

/// Numbers of blocks and implementations without a reason in the comment right before them.
fn unexplained(text: &str) -> impl Iterator<Item = usize> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = move |line: &str| {
        let code = code(line);
        code.contains(&format!("{WORD} {{")) || code.trim_start().starts_with(&format!("{WORD} impl"))
    };
    let explained = {
        let lines = lines.clone();
        move |at: usize| {
            let before = lines.get(..at).unwrap_or_default().iter().rev();
            before.take_while(|line| line.trim_start().starts_with("//")).any(|line| line.contains("SAFETY:"))
        }
    };
    (0..lines.len()).filter(move |at| lines.get(*at).is_some_and(|line| starts(line)) && !explained(*at)).map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_found_in_code_and_not_in_comments_or_other_words() {
        for line in
            [format!("let x = {WORD} {{"), format!("{WORD} impl A for B"), format!("#[allow({WORD}_code, reason = \"x\")]")]
        {
            assert_eq!(uses(&line), [1], "{line}");
        }
        for line in [format!("// {WORD} code"), format!("let {WORD}ly = 1;"), format!("deny({WORD}_code)")] {
            assert!(uses(&line).is_empty(), "{line}");
        }
    }

    #[test]
    fn a_block_needs_its_reason_right_before_it() {
        let good = format!("// SAFETY: it is\n// two lines\nlet x = {WORD} {{ f() }};\n");
        assert_eq!(unexplained(&good).count(), 0);
        let bad = format!("// SAFETY: of another one\nlet y = 1;\nlet x = {WORD} {{ f() }};\n{WORD} impl A for B {{}}\n");
        assert_eq!(unexplained(&bad).collect::<Vec<_>>(), [3, 4]);
    }
}
