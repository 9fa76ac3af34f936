//! What a front end needs of a volume: a byte-addressed device. The engine is one; tests have one in memory.

use std::fmt;

use sublet_doors::Chunk;

/// How a range is to be made zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZeroFlags {
    /// Durable on every leg before the answer (W1).
    pub fua: bool,
    /// Keep the space allocated.
    pub no_hole: bool,
    /// Rather fail with [`DeviceErrorKind::TooSlow`] than take as long as writing zeroes would.
    pub fast: bool,
}

/// A stretch of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Length in bytes.
    pub length: u64,
    /// True if it may hold something else than zeroes.
    pub data: bool,
}

/// Why a request failed, as far as an application can act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceErrorKind {
    /// A read or other request behind the end.
    OutOfRange,
    /// A write behind the end.
    NoSpace,
    /// A write to a read-only mount.
    ReadOnly,
    /// Zeroing would not be fast.
    TooSlow,
    /// The volume is being closed, or was fenced (F4).
    ShutDown,
    /// Everything else.
    Io,
}

/// A failed request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceError {
    /// The kind, for the front end's protocol.
    pub kind: DeviceErrorKind,
    /// What happened, for people.
    pub message: String,
}

impl DeviceError {
    /// An error of this kind.
    pub fn new(kind: DeviceErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DeviceError {}

/// A byte-addressed device. Requests may have any alignment and run at the same time; ranges were checked by the front end.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait BlockDevice: 'static {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// True if writes are refused.
    fn read_only(&self) -> bool;

    /// Reads a range: its bytes in order, in chunks that hold little more memory than that.
    ///
    /// # Errors
    /// [`DeviceError`].
    async fn read(&self, offset: u64, length: u64) -> Result<Vec<Chunk>, DeviceError>;

    /// Writes bytes that nobody can change any more (W3); with `fua` they are durable before the answer (W1).
    ///
    /// # Errors
    /// [`DeviceError`]; any part may have been written.
    async fn write(&self, offset: u64, data: Chunk, fua: bool) -> Result<(), DeviceError>;

    /// Makes the range read as zero (W6).
    ///
    /// # Errors
    /// [`DeviceError`]; any part may have been zeroed.
    async fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), DeviceError>;

    /// Makes every write answered before durable (W1).
    ///
    /// # Errors
    /// [`DeviceError`]; what is durable is unknown then.
    async fn flush(&self) -> Result<(), DeviceError>;

    /// What is known of the range: stretches in order, from its start, covering it or a part of it (never nothing).
    ///
    /// # Errors
    /// [`DeviceError`].
    async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, DeviceError>;
}
