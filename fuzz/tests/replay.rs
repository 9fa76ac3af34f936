//! Corpora and regressions: nothing of them breaks anything, and they are what they should be.
#![allow(clippy::unwrap_used)]

use sublet_fuzz::{TARGETS, corpus, engine};

/// Of all corpora and regressions together.
const BYTES_MAX: usize = 500 << 10;

#[test]
fn nothing_in_the_corpora_and_regressions_breaks_a_property() {
    for target in TARGETS {
        match engine::replay(target).unwrap() {
            Ok(summary) => assert!(summary.replayed > 0, "{} has no corpus", target.name),
            Err(finding) => panic!("{}: {}: {}", target.name, finding.path.display(), finding.message),
        }
    }
}

#[test]
fn every_corpus_has_its_seeds_and_some_are_taken() {
    for target in TARGETS {
        let there: Vec<Vec<u8>> = corpus::of(target).unwrap().into_iter().map(|(_, input)| input).collect();
        let seeds = (target.seeds)();
        assert_eq!(seeds, (target.seeds)(), "{}: seeds are always the same", target.name);
        for seed in &seeds {
            assert!(there.contains(seed), "{}: a seed is missing; make it with: sublet-fuzz seeds", target.name);
        }
        let taken = seeds.iter().filter(|seed| target.check(seed)).count();
        assert!(taken * 2 >= seeds.len(), "{}: only {taken} of {} seeds are taken", target.name, seeds.len());
    }
}

#[test]
fn files_are_small_and_named_by_what_is_in_them() {
    let mut bytes = 0;
    for target in TARGETS {
        for (path, input) in corpus::of(target).unwrap() {
            assert_eq!(path.file_name().unwrap().to_str().unwrap(), corpus::name_of(&input), "{}", path.display());
            bytes += input.len();
        }
    }
    assert!(bytes <= BYTES_MAX, "{bytes} bytes");
}
