//! What the caller chooses, and the door to the manager.

use std::time::Duration;

use sublet_api::Refusal;
use sublet_api::request::{ChangeLeg, LegAnswer, LenderAddresses};
use sublet_types::VolumeId;

/// Choices of one mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolumeOptions {
    /// Close the path to the lenders after so long without a request, unless a copy is stale; never if absent.
    pub idle_close: Option<Duration>,
    /// Fail requests when a lender without which they cannot go on has been missing for so long; wait for ever if absent.
    pub fail_after: Option<Duration>,
    /// The borrower's kernel boot, for the log.
    pub boot: u128,
}

/// How zeroes are made ([`crate::Volume::write_zeroes`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZeroFlags {
    /// Durable before it returns (force unit access).
    pub fua: bool,
    /// Keep the space allocated.
    pub no_hole: bool,
    /// Fail rather than write zeroes block by block.
    pub fast: bool,
}

/// Encrypts the blocks of a sealed volume ([`crate::Volume::unseal`]). A block is [`BLOCK_SIZE`](sublet_types::limits::BLOCK_SIZE)
/// bytes long; `block` is the number that the first one has in the volume.
pub trait BlockCipher {
    /// Encrypts whole blocks; `into` is as long as `from`.
    ///
    /// # Errors
    /// What went wrong.
    fn encrypt(&self, block: u64, from: &[u8], into: &mut [u8]) -> Result<(), String>;

    /// Decrypts whole blocks likewise. Blocks that are all zero stay so.
    ///
    /// # Errors
    /// What went wrong.
    fn decrypt(&self, block: u64, from: &[u8], into: &mut [u8]) -> Result<(), String>;
}

/// The two things that a client asks of the manager while a volume is mounted. The data path never waits for it; only a change
/// of an in-sync set does (S2).
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait ManagerDoor: Clone + 'static {
    /// Changes a segment's in-sync set (S1, S5). Idempotent.
    ///
    /// # Errors
    /// The manager's refusal; `Unreachable` or `TimedOut` mean that the outcome is not known.
    async fn change_leg(&self, volume: VolumeId, change: ChangeLeg) -> Result<LegAnswer, Refusal>;

    /// Where the volume's lenders can be reached now.
    ///
    /// # Errors
    /// The manager's refusal, or that it is unreachable.
    async fn lenders(&self, volume: VolumeId) -> Result<Vec<LenderAddresses>, Refusal>;
}
