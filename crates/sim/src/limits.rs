//! Limits of a run: in some runs a few of them are small, or otherwise unusual, so that they are reached.

use std::collections::BTreeMap;

use sublet_types::drawn::Drawn;

use crate::rng::Random;

/// The limits that are not the usual ones.
pub type Limits = BTreeMap<Drawn, u64>;

const KIB: u64 = 1 << 10;

/// What a limit may be: least and most.
fn range(limit: Drawn) -> (u64, u64) {
    match limit {
        Drawn::KeptBytes => (16 * KIB, 4096 * KIB),
        Drawn::KeptEntries => (4, 64),
        Drawn::HabitRight => (1, 4),
        Drawn::HotRegions => (2, 16),
        // One request may lie on two regions.
        Drawn::HotShare => (2, 8),
        Drawn::SumPages => (1, 4),
        Drawn::Checkpoint => (2_000, 60_000),
        Drawn::AreaCoolAfter | Drawn::ClientCoolAfter => (500, 10_000),
        // Room for a ping and for one request beside it.
        Drawn::SessionDepth => (8, 64),
        // One request fits.
        Drawn::SessionBytes => (2048 * KIB, 8192 * KIB),
        Drawn::Hung => (4_000, 12_000),
        Drawn::ReconnectGrace => (200, 9_000),
        Drawn::OpenWait => (1_000, 15_000),
        Drawn::Order => (2_000, 20_000),
        Drawn::ResyncPause => (200, 5_000),
    }
}

/// Draws them.
pub fn draw(random: &mut Random) -> Limits {
    let chance = *random.pick(&[0, 0, 200_000, 500_000]);
    let unusual: Vec<Drawn> = Drawn::ALL.iter().copied().filter(|_| random.chance(chance)).collect();
    unusual.into_iter().map(|limit| (limit, random.between(range(limit).0, range(limit).1))).collect()
}
