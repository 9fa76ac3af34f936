//! What is done for every request, without sockets, disks and threads.

use std::hint::black_box;

use sublet_client::nbd::negotiation::{Agreed, Export};
use sublet_client::nbd::request::{self, REQUEST_SIZE, Request};
use sublet_doors::Buffer;
use sublet_types::limits::REQUEST_SIZE_MAX;
use sublet_types::{SessionNumber, SliceId, VolumeMap};
use sublet_wire::checksum::{first_mismatch, table_size, write_table};
use sublet_wire::{Flags, Op, ReplyFrame, RequestFrame, Status};

/// One piece.
pub struct Piece {
    /// Its name.
    pub name: &'static str,
    /// What is done once.
    pub what: &'static str,
    /// Does it so often.
    pub run: fn(u64),
}

/// All of them.
pub const PIECES: [Piece; 10] = [
    Piece { name: "frame-encode", what: "a request's header is written, with its checksum", run: frame_encode },
    Piece { name: "frame-decode", what: "a request's header is read and checked", run: frame_decode },
    Piece { name: "reply-decode", what: "a reply's header is read and checked", run: reply_decode },
    Piece { name: "map", what: "a request of 4 KiB finds its place among four segments", run: map },
    Piece { name: "checksum-4k", what: "the checksum of a block is made", run: checksum },
    Piece { name: "compare-4k", what: "a block is compared with its checksum", run: compare },
    Piece { name: "nbd", what: "a request of an NBD client is read and checked, and the head of its reply written", run: nbd },
    Piece { name: "buffer", what: "a buffer of 4 KiB is taken from the pool, shared, and given back", run: buffer },
    Piece {
        name: "engine-read",
        what: "4 KiB are read through the engine, 16 at a time, from one of two lenders in memory, these included",
        run: sublet_volume::pieces::read,
    },
    Piece {
        name: "engine-write",
        what: "4 KiB are written through the engine, 16 at a time, to two lenders in memory, these included",
        run: sublet_volume::pieces::write,
    },
];

fn frame() -> RequestFrame {
    RequestFrame {
        op: Op::Read,
        flags: Flags::default(),
        cookie: 7,
        session: SessionNumber(1_700_000_000_000),
        slice: SliceId::from_u128(0x0123_4567_89ab_cdef),
        offset: 1 << 30,
        length: 4096,
        deadline_ms: 0,
        payload: 0,
    }
}

fn frame_encode(times: u64) {
    for cookie in 0..times {
        black_box(black_box(RequestFrame { cookie, ..frame() }).encode());
    }
}

fn frame_decode(times: u64) {
    let bytes = frame().encode();
    for _ in 0..times {
        let _ = black_box(RequestFrame::decode(black_box(&bytes)));
    }
}

fn reply_decode(times: u64) {
    let bytes = frame().reply(Status::Ok, 4100).encode();
    for _ in 0..times {
        let _ = black_box(ReplyFrame::decode(black_box(&bytes)));
    }
}

fn map(times: u64) {
    let Ok(map) = VolumeMap::new([1 << 30, 2 << 30, 1 << 30, 3 << 30]) else { return };
    for request in 0..times {
        let offset = request.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (7 << 18) * 4096;
        for piece in map.pieces(black_box(offset), 4096, REQUEST_SIZE_MAX) {
            black_box(piece);
        }
    }
}

fn checksum(times: u64) {
    let (block, mut table) = (vec![7; 4096], vec![0; table_size(4096)]);
    for _ in 0..times {
        write_table(black_box(&block), black_box(&mut table));
    }
}

fn compare(times: u64) {
    let (block, mut table) = (vec![7; 4096], vec![0; table_size(4096)]);
    write_table(&block, &mut table);
    for _ in 0..times {
        black_box(first_mismatch(black_box(&block), black_box(&table)));
    }
}

fn nbd(times: u64) {
    let export = Export { name: "v".to_owned(), size: 8 << 30, read_only: false };
    let agreed = Agreed { structured: true, allocation: false };
    let mut bytes = [0; REQUEST_SIZE];
    let fields = [&0x2560_9513_u32.to_be_bytes()[..], &[0; 4], &[7; 8], &(1_u64 << 30).to_be_bytes(), &4096_u32.to_be_bytes()];
    for (to, from) in bytes.iter_mut().zip(fields.concat()) {
        *to = from;
    }
    let mut out = Vec::new();
    for _ in 0..times {
        let Ok(asked) = Request::read(black_box(&bytes)) else { return };
        let _ = black_box(asked.check(&export, agreed));
        out.clear();
        request::reply_read(&mut out, &asked, agreed);
        black_box(&out);
    }
}

fn buffer(times: u64) {
    for _ in 0..times {
        let chunk = black_box(Buffer::new(4096)).freeze();
        black_box(chunk.part(0..4096));
    }
}
