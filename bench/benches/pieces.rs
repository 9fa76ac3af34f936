//! `cargo bench -p sublet-bench`: how long each piece takes. Times wander; instructions do not (`cargo xtask bench --instructions`).

use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use sublet_bench::pieces::PIECES;

fn pieces(criterion: &mut Criterion) {
    for piece in PIECES {
        criterion.bench_function(piece.name, |bencher| {
            bencher.iter_custom(|times| {
                let begun = Instant::now();
                (piece.run)(times);
                begun.elapsed()
            });
        });
    }
}

criterion_group!(benches, pieces);
criterion_main!(benches);
