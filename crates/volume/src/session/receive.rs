//! The receiving half of a session: many small replies out of one receive, the blocks of a long READ without a detour.

use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use sublet_doors::{Buffer, Chunk, Conn, ConnReader, Doors};
use sublet_wire::checksum::table_size;
use sublet_wire::message::CONTROL_PAYLOAD_MAX;
use sublet_wire::{FRAME_SIZE, Malformed, Op, ReplyFrame, RequestFrame, Status};

use super::{End, Expect, Reply, Session, SessionError, is_data};

/// The receive buffer: many small replies, or the beginning of a large one.
const RECEIVE_SIZE: usize = 256 << 10;
/// From this length on the blocks of a READ are received into a buffer of their own.
const LONG_MIN: usize = (64 << 10) + 1;

/// So many bytes of a lender's text are shown.
const TEXT_MAX: usize = 500;

/// A READ whose blocks are not all there.
struct Long {
    frame: ReplyFrame,
    sums: Chunk,
    blocks: Buffer,
    /// Bytes of them that are there.
    filled: usize,
}

/// What was taken out of a receive buffer.
struct Taken {
    /// The next buffer, with what is left of the present one at its beginning.
    buffer: Buffer,
    left: usize,
    /// All of the rest belongs to this.
    long: Option<Long>,
}

/// How many bytes of checksums come before the blocks of a READ that is so long that these get a buffer of their own: the whole of
/// it for one request, which is not copied any more on its way to the front end.
fn long_table(asked: &RequestFrame) -> Option<usize> {
    (asked.op == Op::Read && asked.length as usize >= LONG_MIN).then(|| table_size(asked.length as usize))
}

fn broken(malformed: Malformed) -> End {
    End::Lost(format!("the lender broke the protocol: {malformed}"))
}

/// A lender's text as it is shown to people: not too much of it, and nothing that a terminal would obey.
fn said(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload.get(..payload.len().min(TEXT_MAX)).unwrap_or(&[]));
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl<D: Doors> Session<D> {
    pub(super) async fn receive(self: Rc<Self>, mut reader: <<D as sublet_doors::Net>::Conn as Conn>::Reader) {
        let mut buffer = Buffer::new(RECEIVE_SIZE);
        let mut filled = 0;
        loop {
            let room = filled..if filled == 0 { buffer.len().min(self.expected()) } else { buffer.len() };
            buffer = match self.receive_some(&mut reader, buffer, room).await {
                Ok((n, back)) => {
                    filled += n;
                    back
                }
                Err(end) => return self.kill(end),
            };
            let taken = match self.take_replies(buffer, filled) {
                Ok(taken) => taken,
                Err(malformed) => return self.kill(broken(malformed)),
            };
            (buffer, filled) = (taken.buffer, taken.left);
            if let Some(long) = taken.long
                && let Err(end) = self.receive_long(&mut reader, long).await
            {
                return self.kill(end);
            }
        }
    }

    /// How many bytes to receive at once: as many as there are, or, after a long READ, no more than comes before the blocks of the
    /// next one.
    fn expected(&self) -> usize {
        if !self.sips.take() {
            return RECEIVE_SIZE;
        }
        let flow = self.flow.borrow();
        let next = flow.pending.values().next().map(|pending| &pending.frame);
        next.and_then(long_table).map_or(RECEIVE_SIZE, |table| FRAME_SIZE + table)
    }

    /// One receive, of at least one byte; the end of the session if there is none.
    async fn receive_some(
        &self,
        reader: &mut impl ConnReader,
        buffer: Buffer,
        room: Range<usize>,
    ) -> Result<(usize, Buffer), End> {
        let (result, buffer) = {
            let reading = pin!(reader.read(buffer, room));
            let ended = pin!(self.end());
            match select(reading, ended).await {
                Either::Left((result, _)) => result,
                Either::Right((end, _)) => return Err(end),
            }
        };
        match result {
            Ok(0) => Err(End::Lost("the lender closed the connection".into())),
            Ok(n) => {
                self.heard.set(self.doors.now());
                Ok((n, buffer))
            }
            Err(error) => Err(End::Lost(format!("receiving failed: {error}"))),
        }
    }

    /// Receives what is missing of a long READ's blocks, right into their buffer, and hands the reply out.
    async fn receive_long(&self, reader: &mut impl ConnReader, long: Long) -> Result<(), End> {
        let Long { frame, sums, mut blocks, mut filled } = long;
        while filled < blocks.len() {
            let room = filled..blocks.len();
            let (n, back) = self.receive_some(reader, blocks, room).await?;
            filled += n;
            blocks = back;
        }
        self.sips.set(true);
        self.deliver(&frame, sums, Some(blocks.freeze())).map_err(broken)
    }

    /// Hands out all whole replies at the front of the buffer; gives back a buffer that begins with what is left.
    fn take_replies(&self, buffer: Buffer, filled: usize) -> Result<Taken, Malformed> {
        let mut at = 0;
        let mut needed = FRAME_SIZE;
        let mut long = None;
        let mut replies = Vec::new();
        while let Some(header) = buffer.get(at..filled).and_then(|rest| rest.first_chunk::<FRAME_SIZE>()) {
            let frame = ReplyFrame::decode(header)?;
            // Before its payload is awaited, so that endless or absurd payloads are never buffered.
            let table = self.check(&frame)?;
            let (begin, total) = (at + FRAME_SIZE, FRAME_SIZE + frame.payload as usize);
            if filled - at >= total {
                replies.push((frame, begin..at + total));
                at += total;
                continue;
            }
            needed = total;
            if let Some(table) = table {
                needed = FRAME_SIZE + table;
                if let Some(sums) = buffer.get(begin..begin + table).filter(|_| filled >= begin + table) {
                    let here = buffer.get(begin + table..filled).unwrap_or(&[]);
                    let mut blocks = Buffer::new(total - needed);
                    if let Some(place) = blocks.get_mut(..here.len()) {
                        place.copy_from_slice(here);
                    }
                    long = Some(Long { frame, sums: Chunk::copy_of(sums), blocks, filled: here.len() });
                    at = filled;
                }
            }
            break;
        }
        if replies.is_empty() && long.is_none() && needed <= buffer.len() {
            return Ok(Taken { buffer, left: filled, long });
        }
        let left = filled - at;
        let mut next = Buffer::new(RECEIVE_SIZE.max(needed));
        if let (Some(to), Some(from)) = (next.get_mut(..left), buffer.get(at..filled)) {
            to.copy_from_slice(from);
        }
        let received = buffer.freeze();
        for (frame, range) in replies {
            self.deliver(&frame, received.part(range), None)?;
        }
        Ok(Taken { buffer: next, left, long })
    }

    /// Does the reply answer a request of this session, and has its payload a size that it may have? For a long READ's blocks: how
    /// many bytes of checksums come before them.
    fn check(&self, frame: &ReplyFrame) -> Result<Option<usize>, Malformed> {
        if frame.slice != self.slice {
            return Err(Malformed("a reply names another slice"));
        }
        if frame.cookie == 0 {
            let notice = matches!(frame.op, Op::Fenced | Op::Draining | Op::Resized);
            let fits = frame.payload as usize <= CONTROL_PAYLOAD_MAX;
            return if notice && fits { Ok(None) } else { Err(Malformed("a notice is not one that is known")) };
        }
        let flow = self.flow.borrow();
        let Some(pending) = flow.pending.get(&frame.cookie) else { return Err(Malformed("a reply has no request")) };
        let asked = &pending.frame;
        let same = frame.op == asked.op
            && frame.session == asked.session
            && frame.offset == asked.offset
            && frame.length == asked.length;
        if !same {
            return Err(Malformed("a reply does not repeat its request"));
        }
        let payload = frame.payload as usize;
        let fits = match (frame.status, pending.expect) {
            (Status::Ok, Expect::Exactly(n)) => payload == n,
            (Status::Ok, Expect::AtMost(n)) => payload <= n,
            _ => payload <= CONTROL_PAYLOAD_MAX,
        };
        if !fits {
            return Err(Malformed("a reply has a payload of a wrong size"));
        }
        Ok(long_table(asked).filter(|_| frame.status == Status::Ok))
    }

    fn deliver(&self, frame: &ReplyFrame, payload: Chunk, blocks: Option<Chunk>) -> Result<(), Malformed> {
        let text = || said(&payload);
        if frame.op == Op::Fenced || frame.status == Status::StaleEpoch {
            self.kill(End::Fenced(text()));
            return Ok(());
        }
        if frame.cookie == 0 {
            tracing::info!(slice = %self.slice, op = ?frame.op, "notice of the lender");
            return Ok(());
        }
        let pending = self.flow.borrow_mut().pending.remove(&frame.cookie);
        let Some(pending) = pending else { return if self.is_dead() { Ok(()) } else { Err(Malformed("a reply came twice")) } };
        if is_data(frame.op) {
            let now = self.doors.now();
            self.data_replied.set(now);
            if frame.op == Op::Read && frame.status == Status::Ok && (frame.length as usize) < LONG_MIN {
                self.note_pace(now, now.since(pending.sent));
            }
        }
        let answer = if frame.status == Status::Ok {
            Ok(Reply { payload, blocks, result: frame.result })
        } else {
            Err(SessionError::Refused(frame.status, text()))
        };
        // The caller may have gone away; the reply was still awaited so that the bounds hold.
        let _ = pending.reply.send(answer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lenders_text_is_shown_without_what_a_terminal_would_obey() {
        assert_eq!(said("the disk is full: \u{fc}".as_bytes()), "the disk is full: \u{fc}");
        assert_eq!(said(b"\x1b[2Jgone\0\r\n"), "\u{fffd}[2Jgone\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(said(&[b'x'; 5000]).len(), TEXT_MAX);
    }
}
