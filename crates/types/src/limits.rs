//! Limits and defaults that more than one crate must agree on. Every limit of the project has a name.

use std::time::Duration;

use crate::size::{KIB, MIB};

/// The block of a volume: the unit of checksums, range locks and the access protocol.
pub const BLOCK_SIZE: u64 = 4 * KIB;
/// The end of a sealed volume, which it does not announce: two copies of the key header, a block each.
pub const SEAL_SIZE: u64 = 2 * BLOCK_SIZE;
/// The region of an area: slices begin and end on regions; hot marks are kept per region (H).
pub const REGION_SIZE: u64 = 4 * MIB;
/// The unit of missed-write maps (S3).
pub const MISSED_UNIT: u64 = 64 * KIB;
/// The largest request that a client sends to an agent, in bytes; larger ones are split.
pub const REQUEST_SIZE_MAX: u64 = MIB;
/// The largest request that a front end accepts, in bytes (the NBD specification's customary 32 MiB).
pub const FRONT_REQUEST_SIZE_MAX: u64 = 32 * MIB;
/// The most segments of one volume.
pub const SEGMENTS_MAX: usize = 256;
/// The most copies of one segment.
pub const COPIES_MAX: usize = 4;
/// The most pieces (disks, files) joined into one area.
pub const PIECES_MAX: usize = 64;
/// The most slices of one area: what one label copy holds (`docs/format.md`).
pub const SLICES_PER_AREA_MAX: usize = 1000;
/// The most tombstones in the label of one area (`docs/format.md`).
pub const TOMBSTONES_PER_AREA_MAX: usize = 4096;
/// The smallest area, as room for data, in bytes.
pub const AREA_SIZE_MIN: u64 = 16 * MIB;
/// The largest volume or area, in bytes: offsets must stay far from overflow and inside signed 64-bit file offsets.
pub const SIZE_MAX: u64 = 1 << 60;
/// Requests in flight of one session at the agent; the client never sends more.
pub const SESSION_DEPTH_MAX: usize = 256;
/// Bytes of write payload in flight of one session.
pub const SESSION_BYTES_MAX: u64 = 32 * MIB;

/// When so many requests of a connection are under way, they go their way before more are looked at. After a burst of requests and
/// one of answers, everybody else has nothing to do; with more under way, everybody has, and larger bursts cost less.
pub const BURST: usize = 8;

/// A payload of so many bytes or more is received right into its place: after one, the next receive takes no more than what comes
/// before such a payload.
pub const LONG_PAYLOAD_MIN: usize = 128 << 10;

/// The longest request for a certificate, in bytes of PEM: one for a P-256 key has some 400.
pub const CERTIFICATE_REQUEST_MAX: usize = 16 << 10;

/// Default port of the manager.
pub const MANAGER_PORT: u16 = 7470;
/// Default port of a server's agent.
pub const AGENT_PORT: u16 = 7471;

/// A lender that has been silent for so long is left out of a doubled volume (section 5 of the design).
pub const LENDER_SILENT_MAX: Duration = Duration::from_secs(10);
/// A broken connection is tried again for so long before a doubled volume goes on without that leg: a restarted agent
/// is back sooner, and the rest of [`LENDER_SILENT_MAX`] is left for the manager's commit.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(5);
/// The longest pause between two polls of a server at the manager (its heartbeat).
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// A server that has not polled for so long counts as lost.
pub const SERVER_SILENT_MAX: Duration = Duration::from_secs(12);
/// A lent volume is scrubbed so often, unless something else is set for it: rot is found while the other copy is still good.
pub const SCRUB_EVERY: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the manager waits for one order to a lender that is up before it counts as unreachable (F1, F3).
pub const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
