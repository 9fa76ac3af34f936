//! Limits of those who coordinate a volume.

use std::time::Duration;

/// The pause after a report that did not arrive.
pub const REPORT_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The pause after a try to open the path that failed.
pub const OPEN_RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How long a clean close, and the last flush before it, may take.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a close may take that waits for nobody.
pub const FORCED_CLOSE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the manager is waited for at the end.
pub const LEAVE_TIME_MAX: Duration = Duration::from_secs(3);
/// How often the progress of background work is reported.
pub const PROGRESS_PAUSE: Duration = Duration::from_secs(1);
/// How long a lost path is asked whether it was fenced; a fenced one says so at once.
pub const PROBE_TIME_MAX: Duration = Duration::from_secs(1);
