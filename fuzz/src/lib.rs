//! Hostile input for every parser.
//!
//! A [`Target`] is a function that takes any bytes, hands them to a parser as its peer, its disk or its user would, and panics if
//! a property does not hold: what is decoded is encoded to the same again, lengths stay within their limits, and no more memory is
//! taken than the input justifies ([`memory`]). Two engines run them: [`engine`] on stable Rust, part of every test run, and
//! libFuzzer, which is guided by coverage (`fuzz/libfuzzer`). `docs/fuzzing.md` tells what was run and what was found.
//!
//! Left out on purpose: FUSE requests and `/proc`, which come from the kernel; HTTP itself, the store's file, and the arithmetic of
//! encryption, which are other projects' code.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
mod api;
mod area;
mod command_line;
pub mod corpus;
mod doors;
pub mod engine;
mod image;
mod lendable;
pub mod memory;
mod nbd;
mod nbd_connection;
mod seal;
mod table;
mod text;
mod trust;
mod volume;
mod wire;

use memory::Allowance;

/// A parser, or a few that belong together, and what must hold whatever they are given.
pub struct Target {
    /// Its name: of its folders, and on the command line.
    pub name: &'static str,
    /// Looks at an input. True if it was taken for what it should be, so that one sees how much comes behind the checks.
    ///
    /// # Panics
    /// If a property does not hold.
    pub run: fn(&[u8]) -> bool,
    /// Valid inputs to begin with, always the same.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Puts the checksums of an input right, so that changed bytes are looked at instead of refused.
    pub mend: fn(&mut [u8]),
    /// How much memory a run may take.
    pub allowance: Allowance,
}

/// There are no checksums.
fn nothing(_: &mut [u8]) {}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A target whose input has no checksums.
const fn plain(name: &'static str, run: fn(&[u8]) -> bool, seeds: fn() -> Vec<Vec<u8>>, allowance: Allowance) -> Target {
    Target { name, run, seeds, mend: nothing, allowance }
}

/// `fixed` bytes, and `each` for each byte of input.
const fn allow(fixed: usize, each: usize) -> Allowance {
    Allowance { fixed, each }
}

/// All of them. What an allowance is made of stands beside it.
pub const TARGETS: &[Target] = &[
    // Frames of 64 bytes and their encodings.
    Target {
        name: "wire_frames",
        run: wire::frames,
        seeds: wire::frame_seeds,
        mend: wire::mend_frame,
        allowance: allow(4 * KIB, 0),
    },
    // The message, and its encoding: vectors that double while they grow. An entry of five bytes has eight in memory.
    plain("wire_messages", wire::messages, wire::message_seeds, allow(4 * KIB, 12)),
    plain("wire_blocks", wire::blocks, wire::block_seeds, allow(4 * KIB, 3)),
    // Receive buffers, a buffer for each request in flight: of writes that are being received, the one of 1 MiB; of reads as
    // many as the session's 32 MiB allow; the area's tables and labels.
    Target {
        name: "agent_connection",
        run: agent::connection,
        seeds: agent::seeds,
        mend: agent::mend,
        allowance: allow(48 * MIB, 64),
    },
    // The same at the other end: receive buffers of the connections that break and are made anew, and the requests.
    plain("volume_replies", volume::replies, volume::seeds, allow(48 * MIB, 256)),
    plain("nbd_options", nbd::options, nbd::option_seeds, allow(16 * KIB, 160)),
    plain("nbd_requests", nbd::requests, nbd::request_seeds, allow(256 * KIB, 24)),
    // One write of the largest size is received at a time (32 MiB), beside the receive buffer.
    plain("nbd_connection", nbd_connection::connection, nbd_connection::seeds, allow(40 * MIB, 256)),
    // A label in memory is about as large as on the disk, and is encoded twice to be compared.
    Target {
        name: "area_labels",
        run: area::labels,
        seeds: area::label_seeds,
        mend: area::mend_label,
        allowance: allow(64 * KIB, 12),
    },
    Target {
        name: "area_pages",
        run: area::pages,
        seeds: area::page_seeds,
        mend: area::mend_page,
        allowance: allow(64 * KIB, 16),
    },
    // Labels of up to 1 MiB in two copies, and the tables of a small area.
    Target { name: "area_open", run: area::open, seeds: area::open_seeds, mend: nothing, allowance: allow(16 * MIB, 64) },
    // The ring of 128 KiB in which ZFS keeps its marks is read at once.
    plain("lendable_signatures", lendable::signatures, lendable::seeds, allow(512 * KIB, 16)),
    // JSON becomes a tree first: some 72 bytes for a value of two bytes, while its vector doubles.
    plain("table_rows", table::rows, table::row_seeds, allow(64 * KIB, 512)),
    plain("table_document", table::document, table::document_seeds, allow(256 * KIB, 1024)),
    Target { name: "seal_header", run: seal::header, seeds: seal::seeds, mend: seal::mend, allowance: allow(16 * KIB, 16) },
    plain("api_messages", api::messages, api::seeds, allow(64 * KIB, 512)),
    plain("invitations", trust::invitations, trust::invitation_seeds, allow(16 * KIB, 64)),
    plain("certificates", trust::certificates, trust::certificate_seeds, allow(64 * KIB, 256)),
    plain("texts", text::texts, text::seeds, allow(16 * KIB, 64)),
    // The description of the whole command line is built anew each time.
    plain("command_line", command_line::words, command_line::seeds, allow(4 * MIB, 1024)),
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Runs an input, with the memory that it takes watched.
    ///
    /// # Panics
    /// If a property does not hold.
    pub fn check(&self, input: &[u8]) -> bool {
        let watch = memory::Watch::begin();
        let taken = (self.run)(input);
        let (most, room) = (watch.most(), self.allowance.room(input.len()));
        assert!(most <= room, "{} bytes of input made it take {most} bytes of memory; {room} are justified", input.len());
        taken
    }
}
