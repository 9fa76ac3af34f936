//! The closed set of results that an agent answers with.

/// The result of a request. Anything but `Ok` carries a text for people as payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u16)]
pub enum Status {
    /// Done as asked.
    Ok = 0,
    /// The frame or message breaks the protocol; the connection ends.
    Malformed = 1,
    /// No protocol version or feature in common.
    Version = 2,
    /// The slice is not here.
    NoSlice = 3,
    /// The epoch is older than the newest one persisted: the client has been fenced and stops (F4).
    StaleEpoch = 4,
    /// The lease secret, the borrower or the session is not the lease's.
    NotYours = 5,
    /// The label says something else than the client's mounting information (F6).
    Disagreement = 6,
    /// A higher session number took over (W4): this connection ends.
    Superseded = 7,
    /// The range does not lie in the slice, or is not aligned to 4 KiB.
    OutOfRange = 8,
    /// The lease is read-only.
    ReadOnly = 9,
    /// A payload arrived with a wrong checksum; nothing was written.
    BadChecksum = 10,
    /// The disk reported an error.
    Io = 11,
    /// A bound of the protocol was exceeded (requests in flight, size).
    TooMuch = 12,
    /// The agent is stopping or the area is offline; try again later.
    Unavailable = 13,
    /// The deadline had passed before the request was begun.
    Deadline = 14,
    /// The operation is not known in this version.
    Unsupported = 15,
}

impl Status {
    /// The status with that number, if there is one.
    pub const fn from_u16(n: u16) -> Option<Self> {
        use Status::*;
        const ALL: [Status; 16] = [
            Ok,
            Malformed,
            Version,
            NoSlice,
            StaleEpoch,
            NotYours,
            Disagreement,
            Superseded,
            OutOfRange,
            ReadOnly,
            BadChecksum,
            Io,
            TooMuch,
            Unavailable,
            Deadline,
            Unsupported,
        ];
        if (n as usize) < ALL.len() { Some(ALL[n as usize]) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back() {
        for n in 0..16 {
            assert_eq!(Status::from_u16(n).unwrap() as u16, n);
        }
        assert_eq!(Status::from_u16(16), None);
    }
}
