//! The contract and its table: every rule has a row, its code cites it, its tests exist and cite it, and what is missing is said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::read;

const CONTRACT: &str = "docs/contract.md";

/// A row of the table: the rule, links to its code, names of its tests, what is missing.
struct Row<'a> {
    rule: &'a str,
    code: Vec<&'a str>,
    tests: Vec<&'a str>,
    gap: &'a str,
}

pub(super) fn check(top: &Path, files: &[PathBuf]) -> Vec<String> {
    let sources: BTreeMap<&PathBuf, String> =
        files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs")).map(|f| (f, read(&top.join(f)))).collect();
    let sources: BTreeMap<String, &str> =
        sources.iter().map(|(file, text)| (file.to_string_lossy().into_owned(), text.as_str())).collect();
    findings(&read(&top.join(CONTRACT)), &sources)
}

fn findings(contract: &str, sources: &BTreeMap<String, &str>) -> Vec<String> {
    let rules: Vec<&str> =
        contract.lines().filter_map(|l| l.strip_prefix("- **")?.split_once("**").map(|(rule, _)| rule)).collect();
    let rows: Vec<Row<'_>> = contract.lines().filter_map(row).collect();
    let mut findings = Vec::new();
    for rule in &rules {
        if rows.iter().filter(|row| row.rule == *rule).count() != 1 {
            findings.push(format!("{CONTRACT}: rule {rule} needs one row in the table"));
        }
    }
    for Row { rule, code, tests, gap } in &rows {
        if !rules.contains(rule) {
            findings.push(format!("{CONTRACT}: the table has a row for {rule}, which is no rule"));
        }
        if tests.is_empty() && gap.is_empty() {
            findings.push(format!("{CONTRACT}: {rule} has no test, and the table does not say why"));
        }
        for file in code {
            let path = file.trim_start_matches("../");
            if !sources.get(path).is_some_and(|text| cites(text, rule)) {
                findings.push(format!("{CONTRACT}: {path} does not cite {rule}"));
            }
        }
        for test in tests {
            let mut defining = sources.values().filter(|text| text.contains(&format!("fn {test}(")));
            let named = test.split('_').any(|part| part.eq_ignore_ascii_case(rule));
            match defining.next() {
                None => findings.push(format!("{CONTRACT}: {rule}: there is no test {test}")),
                Some(text) if !named && !cites(text, rule) => {
                    findings.push(format!("{CONTRACT}: neither the test {test} nor its file cites {rule}"));
                }
                Some(_) => {}
            }
        }
    }
    // The other tables of the document name tests, too.
    let cells = contract.lines().filter(|line| line.starts_with("| ") && row(line).is_none());
    for name in cells.flat_map(|line| line.split('`').skip(1).step_by(2)).filter(|name| name.matches('_').count() > 2) {
        if !sources.values().any(|text| text.contains(&format!("fn {name}("))) {
            findings.push(format!("{CONTRACT}: there is no test {name}"));
        }
    }
    findings
}

/// `| W1 | [file](../path), ... | `test`, ... | what is missing |`
fn row(line: &str) -> Option<Row<'_>> {
    let mut cells = line.strip_prefix("| ")?.trim_end_matches('|').split(" | ").map(str::trim);
    let rule = cells.next()?;
    let is_rule =
        rule.len() == 2 && rule.starts_with(|c: char| c.is_ascii_uppercase()) && rule.ends_with(|c: char| c.is_ascii_digit());
    let (code, tests) = (cells.next()?, cells.next()?);
    let code = code.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    let tests = tests.split('`').skip(1).step_by(2).collect();
    is_rule.then(|| Row { rule, code, tests, gap: cells.next().unwrap_or_default() })
}

/// Whether a text names the rule as a word.
fn cites(text: &str, rule: &str) -> bool {
    let is_border = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    let border = |at: usize| {
        is_border(text.get(..at).and_then(|t| t.chars().next_back()))
            && is_border(text.get(at + rule.len()..).and_then(|t| t.chars().next()))
    };
    text.match_indices(rule).any(|(at, _)| border(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "- **W1** A write.\n- **W2** A lock.\n";

    fn look(table: &str) -> Vec<String> {
        let sources = BTreeMap::from([("crates/a.rs".to_owned(), "// W1\nfn w1_all() {}\nfn other() {}\n")]);
        findings(&format!("{RULES}{table}"), &sources)
    }

    #[test]
    fn rows_that_are_missing_wrong_or_empty_are_found() {
        let good = "| W1 | [a](../crates/a.rs) | `w1_all`, `other` | |\n| W2 | - | - | comes later |\n";
        assert_eq!(look(good), Vec::<String>::new());
        for (bad, expected) in [
            ("| W1 | [a](../crates/a.rs) | `w1_all` | |\n", "rule W2 needs one row"),
            ("| W1 | - | `w1_all` | |\n| W2 | - | - | |\n", "W2 has no test"),
            ("| W1 | - | `gone` | |\n| W2 | - | - | later |\n", "there is no test gone"),
            ("| W1 | - | `w1_all` | |\n| W2 | [a](../crates/a.rs) | - | later |\n", "a.rs does not cite W2"),
            ("| W1 | - | `w1_all` | |\n| W2 | - | `other` | |\n", "nor its file cites W2"),
            (
                "| W1 | - | `w1_all` | |\n| W2 | - | - | later |\n| a bug | `a_test_that_is_gone` |\n",
                "no test a_test_that_is_gone",
            ),
            ("| W1 | - | `w1_all` | |\n| W2 | - | - | later |\n| X1 | - | - | x |\n", "X1, which is no rule"),
        ] {
            assert!(look(bad).iter().any(|found| found.contains(expected)), "{expected}: {:?}", look(bad));
        }
    }

    #[test]
    fn a_rule_is_cited_as_a_word_only() {
        assert!(cites("see (W1, W5)", "W1") && cites("// W1", "W1"));
        assert!(!cites("W12", "W1") && !cites("AW1", "W1"));
    }
}
