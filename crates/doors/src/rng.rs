//! The `Rng` door.

/// Draws random bits: from the kernel in reality (unpredictable, for ids and secrets), from the seed in the simulator.
pub trait Rng {
    /// 128 random bits.
    fn random_u128(&self) -> u128;

    /// 64 random bits.
    fn random_u64(&self) -> u64 {
        (self.random_u128() >> 64) as u64
    }
}
