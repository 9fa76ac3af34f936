//! All fuzz targets under libFuzzer, in one program: `SUBLET_FUZZ_TARGET` says which. `cargo xtask fuzz --long` builds and runs it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use sublet_fuzz::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("SUBLET_FUZZ_TARGET").unwrap_or_default();
    sublet_fuzz::target(&name).unwrap_or_else(|| panic!("SUBLET_FUZZ_TARGET is '{name}', which is no target"))
});

fuzz_target!(|input: &[u8]| {
    TARGET.check(input);
});

// Most changes get right checksums: what is found behind them stays in the corpus as it is.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    if seed % 8 != 0
        && let Some(input) = data.get_mut(..size)
    {
        (TARGET.mend)(input);
    }
    size
});
