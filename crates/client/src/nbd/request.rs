//! Requests and replies of the transmission phase, without sockets.

use sublet_types::limits::FRONT_REQUEST_SIZE_MAX;

use super::negotiation::{Agreed, Export};
use super::protocol::*;
use crate::device::{DeviceErrorKind, Extent, ZeroFlags};

/// Length of a request header in bytes.
pub const REQUEST_SIZE: usize = 28;

/// A request as received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// Command.
    pub command: u16,
    /// Chosen by the client, returned in the reply.
    pub cookie: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

/// The stream is not at the beginning of a request: nothing more can be understood of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LostSync;

/// A request that passed all checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read.
    Read,
    /// Write the payload that follows.
    Write {
        /// Durable before the answer.
        fua: bool,
    },
    /// Make everything durable.
    Flush,
    /// Make a range read as zero (W6).
    Zero(ZeroFlags),
    /// A hint; nothing is done.
    Cache,
    /// Tell what is known of a range.
    BlockStatus {
        /// Only of its first stretch.
        one: bool,
    },
    /// Finish what is in flight, then close.
    Disconnect,
}

/// A refused request: the error number and a text for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// One of the numbers of the specification.
    pub error: u32,
    /// What is wrong.
    pub text: String,
}

impl Failure {
    fn new(error: u32, text: impl Into<String>) -> Self {
        Self { error, text: text.into() }
    }
}

impl From<crate::device::DeviceError> for Failure {
    fn from(error: crate::device::DeviceError) -> Self {
        let number = match error.kind {
            DeviceErrorKind::OutOfRange => EINVAL,
            DeviceErrorKind::NoSpace => ENOSPC,
            DeviceErrorKind::ReadOnly => EPERM,
            DeviceErrorKind::TooSlow => ENOTSUP,
            DeviceErrorKind::ShutDown => ESHUTDOWN,
            DeviceErrorKind::Io => EIO,
        };
        Self::new(number, error.message)
    }
}

impl Request {
    /// Reads a header.
    ///
    /// # Errors
    /// [`LostSync`] if it does not begin with the magic number.
    pub fn read(bytes: &[u8; REQUEST_SIZE]) -> Result<Self, LostSync> {
        let [m0, m1, m2, m3, f0, f1, c0, c1, rest @ ..] = *bytes;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REQUEST_MAGIC {
            return Err(LostSync);
        }
        let [k0, k1, k2, k3, k4, k5, k6, k7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([c0, c1]),
            cookie: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// How many bytes of payload follow the header, whatever comes of the request.
    pub const fn payload(&self) -> u32 {
        if self.command == CMD_WRITE { self.length } else { 0 }
    }

    /// Checks everything that can be checked without the device.
    ///
    /// # Errors
    /// [`Failure`], to be answered after the payload was skipped.
    pub fn check(&self, export: &Export, agreed: Agreed) -> Result<Command, Failure> {
        let flag = |bit: u16| self.flags & bit != 0;
        // FUA is allowed with every command.
        let allowed = CMD_FLAG_FUA
            | match self.command {
                CMD_READ if agreed.structured => CMD_FLAG_DF,
                CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
                CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE,
                _ => 0,
            };
        if self.command == CMD_DISC {
            return Ok(Command::Disconnect);
        }
        if self.flags & !allowed != 0 {
            return Err(Failure::new(EINVAL, format!("flags {:#x} are not known with command {}", self.flags, self.command)));
        }
        let fua = flag(CMD_FLAG_FUA);
        let command = match self.command {
            CMD_READ => Command::Read,
            CMD_WRITE => Command::Write { fua },
            CMD_FLUSH => Command::Flush,
            CMD_TRIM => Command::Zero(ZeroFlags { fua, ..ZeroFlags::default() }),
            CMD_WRITE_ZEROES => Command::Zero(ZeroFlags { fua, no_hole: flag(CMD_FLAG_NO_HOLE), fast: flag(CMD_FLAG_FAST_ZERO) }),
            CMD_CACHE => Command::Cache,
            CMD_BLOCK_STATUS => Command::BlockStatus { one: flag(CMD_FLAG_REQ_ONE) },
            other => return Err(Failure::new(EINVAL, format!("command {other} is not known"))),
        };
        self.check_range(command, export, agreed)?;
        Ok(command)
    }

    fn check_range(&self, command: Command, export: &Export, agreed: Agreed) -> Result<(), Failure> {
        let writes = matches!(command, Command::Write { .. } | Command::Zero(_));
        if writes && export.read_only {
            return Err(Failure::new(EPERM, "the volume is mounted read-only"));
        }
        if matches!(command, Command::Flush) {
            return if self.offset == 0 && self.length == 0 {
                Ok(())
            } else {
                Err(Failure::new(EINVAL, "a flush has no offset and no length"))
            };
        }
        if matches!(command, Command::BlockStatus { .. }) {
            if !agreed.allocation {
                return Err(Failure::new(EINVAL, "base:allocation was not selected in the handshake"));
            }
            if self.length == 0 {
                return Err(Failure::new(EINVAL, "block status of no bytes was asked for"));
            }
        }
        let large = u64::from(self.length) > FRONT_REQUEST_SIZE_MAX;
        if large && matches!(command, Command::Read | Command::Write { .. }) {
            // A read that may not be split has its own error number.
            let error = if self.flags & CMD_FLAG_DF != 0 { EOVERFLOW } else { EINVAL };
            return Err(Failure::new(error, format!("one request carries at most {FRONT_REQUEST_SIZE_MAX} bytes")));
        }
        let inside = self.offset.checked_add(self.length.into()).is_some_and(|end| end <= export.size);
        if inside {
            return Ok(());
        }
        let no_space = matches!(self.command, CMD_WRITE | CMD_WRITE_ZEROES);
        let error = if no_space { ENOSPC } else { EINVAL };
        Err(Failure::new(error, format!("the volume has {} bytes; the request reaches behind its end", export.size)))
    }
}

fn simple(out: &mut Vec<u8>, error: u32, cookie: u64) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

fn structured(out: &mut Vec<u8>, kind: u16, cookie: u64, length: usize) {
    out.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&REPLY_FLAG_DONE.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

/// A reply without data: success.
pub fn reply_done(out: &mut Vec<u8>, request: &Request) {
    simple(out, 0, request.cookie);
}

/// A reply without data: failure, with a text where the client can take it.
pub fn reply_failure(out: &mut Vec<u8>, request: &Request, agreed: Agreed, failure: &Failure) {
    if !agreed.structured {
        return simple(out, failure.error, request.cookie);
    }
    let mut end = failure.text.len().min(STRING_LENGTH_MAX);
    while !failure.text.is_char_boundary(end) {
        end -= 1;
    }
    let text = failure.text.as_bytes().get(..end).unwrap_or_default();
    structured(out, REPLY_TYPE_ERROR, request.cookie, 6 + text.len());
    out.extend_from_slice(&failure.error.to_be_bytes());
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(text);
}

/// What goes before the data of a read. The data is one chunk, so that `DF` needs nothing special.
pub fn reply_read(out: &mut Vec<u8>, request: &Request, agreed: Agreed) {
    if !agreed.structured {
        simple(out, 0, request.cookie);
    } else if request.length == 0 {
        structured(out, REPLY_TYPE_NONE, request.cookie, 0);
    } else {
        structured(out, REPLY_TYPE_OFFSET_DATA, request.cookie, 8 + request.length as usize);
        out.extend_from_slice(&request.offset.to_be_bytes());
    }
}

/// The answer to a block status request: equal neighbours joined, cut at the end of the range.
pub fn reply_block_status(out: &mut Vec<u8>, request: &Request, one: bool, extents: &[Extent]) {
    let mut left = u64::from(request.length);
    let mut joined: Vec<(u64, u32)> = Vec::new();
    for extent in extents {
        let length = extent.length.min(left);
        let state = if extent.data { 0 } else { STATE_HOLE | STATE_ZERO };
        if length == 0 {
            continue;
        }
        left -= length;
        match joined.last_mut() {
            Some((before, same)) if *same == state => *before += length,
            _ => joined.push((length, state)),
        }
    }
    if joined.is_empty() {
        joined.push((left, 0));
    }
    joined.truncate(if one { 1 } else { EXTENTS_MAX });
    structured(out, REPLY_TYPE_BLOCK_STATUS, request.cookie, 4 + 8 * joined.len());
    out.extend_from_slice(&BASE_ALLOCATION_ID.to_be_bytes());
    for (length, state) in joined {
        out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&state.to_be_bytes());
    }
}
