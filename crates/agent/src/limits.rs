//! Limits of the agent.

use std::time::Duration;

/// Connections at the same time, of all borrowers together. One more is closed at once.
pub const CONNECTIONS_MAX: usize = 1024;
/// Connections among them that have not asked for a session yet. One more, and the oldest of them is closed: borrowers are not kept
/// out by connections that say nothing.
pub const ARRIVALS_MAX: usize = 128;
/// File descriptors beside the connections: disks, sockets, the runtime's own.
pub const FILES_BESIDE: usize = 512;
/// HELLO and OPEN have to arrive within this time: whoever says nothing keeps no connection.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long an OPEN waits for the disk I/O of lower sessions (W4) before it is answered `Unavailable`: the client tries
/// again. Longer than any healthy disk needs.
pub const OPEN_WAIT_MAX: Duration = Duration::from_secs(15);
/// How long a connection that is being closed may take to receive its last replies and notices.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a stopping agent waits for requests in flight.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a stopping agent saves what it knows of hot regions. What is not saved by then is computed at the next start.
pub const SETTLE_TIME_MAX: Duration = Duration::from_secs(3);
/// Bytes received at once: a queue of 32 small writes arrives in one system call.
pub const RECEIVE_BUFFER_SIZE: usize = 192 << 10;
/// The receive buffer until the session is open: HELLO and OPEN fit, and a flood of idle connections costs little.
pub const HANDSHAKE_BUFFER_SIZE: usize = 4096;
/// Replies that leave in one send at most; the kernel takes 1024 pieces (`IOV_MAX`), a reply has up to two.
pub const REPLIES_PER_SEND_MAX: usize = 256;
/// How often an area is asked to cool what was not written for a while, as long as it has hot regions (H2).
pub const COOL_INTERVAL: Duration = Duration::from_secs(2);
/// Bytes that one SEARCH reads before it answers for what it has scanned.
pub const SEARCH_BYTES_MAX: u64 = 64 << 20;
/// Bytes that a search reads at once: they are looked through without a pause, and others wait meanwhile.
pub const SEARCH_STEP: u64 = 256 << 10;
/// Bytes that a search reads first.
pub const SEARCH_STEP_FIRST: u64 = 16 << 10;
/// The stretch for which a search asks the extents at once, in bytes.
pub const SEARCH_WINDOW: u64 = 256 << 20;
/// Slices that were wiped and given up, and that a server remembers so that no late order makes them anew (P2).
pub const DROPPED_MAX: usize = 4096;
/// How long a stopping server waits for the coordinations that it closes.
pub const COORDINATION_STOP_MAX: Duration = Duration::from_secs(3);
/// Volumes that are not mounted and that one server coordinates at the same time (F5).
pub const COORDINATIONS_MAX: usize = 64;
/// How often a search reads blocks that do not fit their checksums, because they may be written at the same time ...
pub const SEARCH_TRIES: u32 = 5;
/// ... and the pause between two tries.
pub const SEARCH_TRY_PAUSE: Duration = Duration::from_millis(10);
/// The pause after a poll of the manager that failed.
pub const POLL_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often wipes tell the manager how far they are.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long the first registration waits for the areas to be opened, so that they do not seem to be offline.
pub const AREAS_PATIENCE: Duration = Duration::from_secs(3);
/// The pause between two tries to open an area.
pub const AREA_RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// Orders and questions of the control threads that wait for the data thread.
pub const COMMANDS_MAX: usize = 256;
/// Connections at the control socket at the same time.
pub const CONTROL_CONNECTIONS_MAX: usize = 16;
