//! Loads: what fio does to a target.

/// One load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Its name in tables and for `--only`.
    pub name: &'static str,
    /// fio's word for it.
    pub rw: &'static str,
    /// Bytes of one request.
    pub block: u64,
    /// Requests in flight, of each connection.
    pub depth: u32,
    /// Connections, each with a part of the volume of its own.
    pub connections: u32,
    /// A flush after every write.
    pub fsync: bool,
    /// What counts.
    pub figure: Figure,
}

/// What a load is judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Figure {
    /// Mean latency in microseconds: less is better.
    Latency,
    /// Requests a second: more is better.
    Rate,
    /// Megabytes (10^6) a second: more is better.
    Bandwidth,
}

impl Figure {
    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Latency => "us",
            Self::Rate => "IOPS",
            Self::Bandwidth => "MB/s",
        }
    }
}

const BLOCK: Load =
    Load { name: "", rw: "randread", block: 4096, depth: 1, connections: 1, fsync: false, figure: Figure::Latency };

/// All of them.
pub const LOADS: [Load; 9] = [
    Load { name: "read-1", ..BLOCK },
    Load { name: "write-1", rw: "randwrite", ..BLOCK },
    Load { name: "sync-1", rw: "randwrite", fsync: true, ..BLOCK },
    Load { name: "read-32", depth: 32, figure: Figure::Rate, ..BLOCK },
    Load { name: "write-32", rw: "randwrite", depth: 32, figure: Figure::Rate, ..BLOCK },
    Load { name: "read-4x8", depth: 8, connections: 4, figure: Figure::Rate, ..BLOCK },
    Load { name: "write-4x8", rw: "randwrite", depth: 8, connections: 4, figure: Figure::Rate, ..BLOCK },
    Load { name: "read-seq", rw: "read", block: 1 << 20, depth: 8, figure: Figure::Bandwidth, ..BLOCK },
    Load { name: "write-seq", rw: "write", block: 1 << 20, depth: 8, figure: Figure::Bandwidth, ..BLOCK },
];

impl Load {
    /// In words.
    pub fn words(&self) -> String {
        let kind = match self.rw {
            "randread" => "random reads",
            "randwrite" => "random writes",
            "read" => "sequential reads",
            _ => "sequential writes",
        };
        let block = if self.block >= 1 << 20 { format!("{} MiB", self.block >> 20) } else { format!("{} KiB", self.block >> 10) };
        let flushed = if self.fsync { ", each flushed" } else { "" };
        let connections = if self.connections > 1 { format!("{} connections, ", self.connections) } else { String::new() };
        format!("{block} {kind}{flushed}, {connections}{} in flight", self.depth)
    }

    /// Whether it writes.
    pub fn writes(&self) -> bool {
        self.rw.ends_with("write")
    }
}
