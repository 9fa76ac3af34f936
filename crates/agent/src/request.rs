//! One request of a session, from its payload to its reply.

use std::rc::Rc;
use std::time::Duration;

use sublet_area::{AreaError, ReadInfo};
use sublet_doors::local::Permit;
use sublet_doors::{Buffer, Chunk, Doors, Tick};
use sublet_types::limits::{BLOCK_SIZE, REQUEST_SIZE_MAX};
use sublet_types::mutation::{self, Mutation};
use sublet_wire::checksum::{first_mismatch, table_size};
use sublet_wire::frame::READ_COMPUTED;
use sublet_wire::message::{
    Clear, Close, Cool, EXTENTS_PER_REPLY_MAX, ExtentsReply, MapRequest, Message, OpenMode, Search, Seed, SetState,
};
use sublet_wire::{FRAME_SIZE, Flags, Op, ReplyFrame, RequestFrame, Status};

use crate::connection::{Shared, reply_head};
use crate::gate::{Closing, Ticket};
use crate::outbox::Reply;
use crate::search::{Question, search};

/// Up to this length the blocks of a READ follow their header in one buffer; longer ones are sent as a chunk of their own,
/// because buffers come in powers of two.
const TOGETHER_MAX: usize = 28 << 10;
/// The room before the blocks in such a buffer: header and checksums, and the blocks stay aligned.
const ROOM: usize = BLOCK_SIZE as usize;

/// A request that was not carried out.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn wrong_session() -> Self {
        Self::new(Status::NotYours, "this connection belongs to another session or slice")
    }
}

impl From<AreaError> for Failure {
    fn from(error: AreaError) -> Self {
        Self::new(error.status(), error.to_string())
    }
}

/// What a request brought besides its header.
pub(crate) enum Body {
    /// Nothing.
    None,
    /// WRITE.
    Blocks {
        /// Four bytes per block.
        table: Vec<u8>,
        /// The blocks.
        data: Buffer,
    },
    /// SEARCH.
    Search(Search),
    /// SET_STATE.
    SetState(SetState),
    /// MAP.
    Map(MapRequest),
    /// SEED.
    Seed(Seed),
    /// CLEAR.
    Clear(Clear),
    /// COOL.
    Cool(Cool),
    /// CLOSE.
    Close(Close),
    /// The payload was passed over.
    Refused(Failure),
}

/// What a reply carries.
pub(crate) enum Answer {
    /// A small payload, or none.
    Small(Vec<u8>),
    /// Header, checksums and blocks.
    Blocks { head: Vec<u8>, data: Chunk },
}

/// A request under way. It runs to its end even if its connection breaks: a write that was begun cannot be taken back.
pub(crate) struct Work<D: Doors> {
    pub(crate) shared: Rc<Shared<D>>,
    pub(crate) frame: RequestFrame,
    pub(crate) arrived: Tick,
    pub(crate) permits: Vec<Permit>,
    /// Given back when the disk I/O has ended (W4, F1).
    pub(crate) ticket: Ticket,
}

impl<D: Doors> Work<D> {
    /// Carries it out and hands its reply to the outbox.
    pub(crate) async fn run(self, body: Body) {
        let result = self.carry_out(body).await;
        let Self { shared, frame, permits, ticket, .. } = self;
        let (head, data) = match result {
            Ok(Answer::Small(payload)) => (reply_head(&frame, Status::Ok, 0, &payload), None),
            Ok(Answer::Blocks { head, data }) => (head, Some(data)),
            Err(failure) => {
                tracing::debug!(op = ?frame.op, slice = ?frame.slice, status = ?failure.status, reason = %failure.text, "a request failed");
                (reply_head(&frame, failure.status, 0, failure.text.as_bytes()), None)
            }
        };
        shared.outbox.push(Reply { head, data, permits });
        drop(ticket);
    }

    async fn carry_out(&self, body: Body) -> Result<Answer, Failure> {
        let Self { shared, frame, .. } = self;
        let session = &shared.session;
        if frame.session != session.number || frame.slice != session.slice {
            return Err(Failure::wrong_session());
        }
        // F1: a session that is being fenced submits nothing more.
        // Only a fence says so: `StaleEpoch` stops the client for good (F4).
        match session.closing() {
            None => {}
            Some(Closing::Fenced) => return Err(Failure::new(Status::StaleEpoch, "a newer epoch was persisted")),
            Some(Closing::Superseded) => return Err(Failure::new(Status::Superseded, "a higher session was opened")),
            Some(Closing::Draining | Closing::Ended) => return Err(Failure::new(Status::Unavailable, "the session is closing")),
        }
        if frame.deadline_ms > 0 && shared.doors.now().since(self.arrived) > Duration::from_millis(frame.deadline_ms.into()) {
            return Err(Failure::new(Status::Deadline, "the deadline was over before the request could be begun"));
        }
        let none = || Answer::Small(Vec::new());
        match (frame.op, body) {
            // What is rare is boxed, so that the others need no room for it.
            (_, Body::Refused(failure)) => Err(failure),
            (Op::Read, _) => self.read().await,
            (Op::Write, Body::Blocks { table, data }) => self.write(&table, data).await.map(|()| none()),
            (Op::WriteZeroes, _) => Box::pin(self.write_zeroes()).await.map(|()| none()),
            (Op::Flush, _) => Box::pin(self.flush()).await.map(|()| none()),
            (Op::Extents, _) => Box::pin(self.extents()).await,
            (Op::Search, Body::Search(wanted)) => {
                self.readable()?;
                let question = Question {
                    offset: frame.offset,
                    length: frame.length.into(),
                    pattern: &wanted.pattern,
                    count_only: frame.flags.has(Flags::COUNT),
                };
                let reply = Box::pin(search(&shared.doors, &shared.served.area, session, &question)).await?;
                Ok(Answer::Small(reply.encode()))
            }
            (Op::SetState, Body::SetState(state)) => Box::pin(self.set_state(&state)).await,
            (Op::Map, Body::Map(map)) => Box::pin(self.map(map)).await,
            (Op::Seed, Body::Seed(seed)) => Box::pin(self.seed(&seed)).await.map(|()| none()),
            (Op::Clear, Body::Clear(clear)) => Box::pin(self.clear(&clear)).await.map(|()| none()),
            (Op::Cool, Body::Cool(cool)) => Box::pin(self.cool(&cool)).await.map(|()| none()),
            (Op::Verify, _) => Box::pin(self.verify()).await,
            (Op::Ping, _) => Ok(Answer::Small(shared.served.area.identity().encode())),
            _ => Err(Failure::new(Status::Unsupported, "this operation is not one of a session")),
        }
    }

    /// Checks that the range is whole blocks of the segment.
    pub(crate) fn range(&self) -> Result<(u64, u64), Failure> {
        let (offset, length) = (self.frame.offset, u64::from(self.frame.length));
        let aligned = offset.is_multiple_of(BLOCK_SIZE) && length.is_multiple_of(BLOCK_SIZE) && length > 0;
        let end = offset.checked_add(length).filter(|end| *end <= self.shared.session.length);
        if !aligned || end.is_none() {
            let text = format!(
                "{length} bytes at {offset} are not whole 4096-byte blocks of the slice's {}",
                self.shared.session.length
            );
            return Err(Failure::new(Status::OutOfRange, text));
        }
        Ok((offset, length))
    }

    /// A stale leg is never read.
    fn readable(&self) -> Result<(), Failure> {
        self.in_sync("it is written to until it is in sync, never read")
    }

    pub(crate) fn in_sync(&self, otherwise: &str) -> Result<(), Failure> {
        match self.shared.session.mode.get() {
            OpenMode::InSync => Ok(()),
            OpenMode::Target if mutation::is(Mutation::ServeStaleLeg) => Ok(()),
            OpenMode::Target => Err(Failure::new(Status::Disagreement, format!("this leg is stale: {otherwise}"))),
        }
    }

    pub(crate) fn writable(&self) -> Result<(), Failure> {
        if self.shared.session.read_only {
            return Err(Failure::new(Status::ReadOnly, "the volume is mounted read-only"));
        }
        Ok(())
    }

    async fn read(&self) -> Result<Answer, Failure> {
        self.readable()?;
        let (offset, length) = self.range()?;
        if length > REQUEST_SIZE_MAX {
            return Err(Failure::new(Status::TooMuch, format!("a read has at most {REQUEST_SIZE_MAX} bytes")));
        }
        let length = length as usize;
        let table = table_size(length);
        let header = |info: ReadInfo| {
            let result = if info.recomputed { READ_COMPUTED } else { 0 };
            ReplyFrame { result, ..self.frame.reply(Status::Ok, (table + length) as u32) }.encode()
        };
        let (area, slice) = (&self.shared.served.area, self.shared.session.slice);
        if length > TOGETHER_MAX {
            let mut head = vec![0; FRAME_SIZE + table];
            let (place, sums) = head.split_at_mut(FRAME_SIZE);
            let (result, data) = area.read(slice, offset, Buffer::new(length), 0..length, sums).await;
            place.copy_from_slice(&header(result?));
            return Ok(Answer::Blocks { head, data: data.freeze() });
        }
        let mut sums = [0; table_size(TOGETHER_MAX)];
        let sums = sums.get_mut(..table).unwrap_or(&mut []);
        let (result, mut buffer) = area.read(slice, offset, Buffer::new(ROOM + length), ROOM..ROOM + length, sums).await;
        let header = header(result?);
        let begin = ROOM - table - FRAME_SIZE;
        for (at, bytes) in [(begin, &header[..]), (ROOM - table, &*sums)] {
            if let Some(place) = buffer.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        Ok(Answer::Blocks { head: Vec::new(), data: buffer.freeze().part(begin..ROOM + length) })
    }

    async fn write(&self, table: &[u8], data: Buffer) -> Result<(), Failure> {
        self.writable()?;
        let (offset, _) = self.range()?;
        if let Some(block) = first_mismatch(&data, table) {
            let at = offset + block as u64 * BLOCK_SIZE;
            return Err(Failure::new(
                Status::BadChecksum,
                format!("the block at {at} arrived with a wrong checksum; nothing was written"),
            ));
        }
        self.shared.served.area.write(self.shared.session.slice, offset, data.freeze(), table).await?;
        self.shared.served.wake_cooler(&self.shared.doors);
        self.durable_if_asked().await
    }

    async fn write_zeroes(&self) -> Result<(), Failure> {
        self.writable()?;
        let (offset, length) = self.range()?;
        let keep = self.frame.flags.has(Flags::NO_HOLE);
        // W6: reads as zero from now on. The area zeroes by ranges, so FAST needs no other way.
        self.shared.served.area.write_zeroes(self.shared.session.slice, offset, length, keep).await?;
        self.shared.served.wake_cooler(&self.shared.doors);
        self.durable_if_asked().await
    }

    async fn durable_if_asked(&self) -> Result<(), Failure> {
        if self.frame.flags.has(Flags::FUA) { Box::pin(self.flush()).await } else { Ok(()) }
    }

    /// Covers every write that was answered before, on any session: it is one file (or several) for all of them.
    async fn flush(&self) -> Result<(), Failure> {
        if mutation::is(Mutation::FlushNotDone) {
            return Ok(());
        }
        Ok(self.shared.served.area.flush().await?)
    }

    async fn extents(&self) -> Result<Answer, Failure> {
        let (offset, length) = self.range()?;
        let mut extents = self.shared.served.area.extents(self.shared.session.slice, offset, length).await?;
        extents.truncate(EXTENTS_PER_REPLY_MAX);
        Ok(Answer::Small(ExtentsReply { extents }.encode()))
    }

    async fn set_state(&self, state: &SetState) -> Result<Answer, Failure> {
        let Self { shared, .. } = self;
        let session = &shared.session;
        shared.served.area.set_state(session.slice, session.epoch, state).await?;
        // S5: the label says that this leg is in sync: it may be read from now on.
        if state.in_sync.get(session.leg) == Some(&true) {
            session.mode.set(OpenMode::InSync);
        }
        Ok(Answer::Small(shared.served.area.identity().encode()))
    }
}
