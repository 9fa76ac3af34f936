//! What is to be known of a volume for background work, and the lease of its coordinator.

use serde::{Deserialize, Serialize};
use sublet_types::{Epoch, LeaseSecret, ServerId};

/// What is to be known of a volume for background work.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WorkRow {
    /// The lease of the coordinator, while the volume is not mounted.
    #[serde(default)]
    pub background: Option<BackgroundRow>,
    /// The last holder of a lease has not said that it closed cleanly: in-sync legs may differ (H3).
    #[serde(default)]
    pub unclean: bool,
    /// Resyncs copy at most so many bytes a second; 0 is the default.
    #[serde(default)]
    pub resync_rate_max: u64,
    /// Resyncs pause.
    #[serde(default)]
    pub is_resync_paused: bool,
    /// Seconds between two scheduled scrubs; 0 is never, none the default.
    #[serde(default)]
    pub scrub_every_s: Option<u64>,
    /// From when the next scheduled scrub is counted, in milliseconds since 1970 (UTC); 0 before anything was counted.
    #[serde(default)]
    pub scrub_from_ms: u64,
    /// When the last scrub ended, in milliseconds since 1970 (UTC); 0 if there was none.
    #[serde(default)]
    pub scrubbed_ms: u64,
    /// Goes up with every replaced leg ([`WorkRow::next_revision`]).
    #[serde(default)]
    pub segments_revision: u64,
    /// The epoch during which a leg was last replaced.
    #[serde(default)]
    pub replaced_in: Epoch,
    /// What was found.
    #[serde(default)]
    pub findings: FindingsRow,
}

impl WorkRow {
    /// A leg is replaced. The number is one that no former table has told a client: it goes with the clock, in milliseconds since
    /// 1970 (F4, R1).
    pub fn next_revision(&mut self, now_ms: u64) {
        self.segments_revision = (self.segments_revision + 1).max(now_ms);
    }
}

/// The lease of background work on a volume that is not mounted: an epoch like a mount's, with the coordinator as its
/// borrower (F5). A mount replaces it by a newer epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackgroundRow {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its secret: goes to the coordinator and the lenders only.
    pub secret: LeaseSecret,
    /// The lender that does the work.
    pub coordinator: ServerId,
    /// How far it is.
    pub state: BackgroundState,
    /// Since when it is in that state, in milliseconds since 1970 (UTC).
    pub since_ms: u64,
}

/// See [`BackgroundRow`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackgroundState {
    /// The lenders are being told.
    Opening,
    /// The coordinator is being told.
    Starting,
    /// The coordinator is at work.
    Active,
    /// The coordinator is to end in good order.
    Stopping,
}

/// Findings of readers and scrubs that have become events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FindingsRow {
    /// The epoch in which they were last told.
    pub epoch: Epoch,
    /// The highest number told in it.
    pub seen: u64,
    /// How many were repaired, ever.
    pub repaired: u64,
    /// How many could not be.
    pub unrepairable: u64,
    /// How often legs differed.
    pub differed: u64,
}
