//! HELLO and OPEN: from a fresh connection to a session.

use std::io;
use std::rc::Rc;

use sublet_area::Area;
use sublet_doors::{ConnReader, ConnWriter, Doors};
use sublet_types::SliceId;
use sublet_types::drawn::{self, Drawn};
use sublet_types::limits::{REQUEST_SIZE_MAX, SESSION_DEPTH_MAX};
use sublet_types::mutation::{self, Mutation};
use sublet_wire::frame::PROTOCOL_VERSION;
use sublet_wire::message::{Announce, CONTROL_PAYLOAD_MAX, Hello, HelloReply, Message, Open, OpenMode, OpenReply};
use sublet_wire::{Flags, Malformed, Op, RequestFrame, Status};

use crate::agent::{Agent, Missing, Served};
use crate::connection::{Shared, reply_head};
use crate::gate::{Closing, Session};
use crate::limits::{HANDSHAKE_TIME_MAX, OPEN_WAIT_MAX};
use crate::outbox::Reply;
use crate::receive::{End, Receiver};
use crate::request::Failure;

/// The frame that a reply to unreadable bytes, or a notice, repeats.
pub(crate) fn no_frame() -> RequestFrame {
    RequestFrame {
        op: Op::Hello,
        flags: Flags::default(),
        cookie: 0,
        session: Default::default(),
        slice: SliceId::from_u128(0),
        offset: 0,
        length: 0,
        deadline_ms: 0,
        payload: 0,
    }
}

/// Receives the next request, which must be `op`.
async fn expect<M: Message, R: ConnReader>(
    receiver: &mut Receiver<R>,
    op: Op,
    otherwise: &'static str,
) -> Result<(RequestFrame, M), End> {
    let frame = receiver.frame().await?;
    if frame.op != op {
        return Err(End::Malformed(Malformed(otherwise)));
    }
    message(receiver, frame).await
}

/// Receives the message behind a header.
async fn message<M: Message, R: ConnReader>(receiver: &mut Receiver<R>, frame: RequestFrame) -> Result<(RequestFrame, M), End> {
    if frame.payload as usize > CONTROL_PAYLOAD_MAX {
        return Err(End::Malformed(Malformed("its payload is too large")));
    }
    let message = M::decode(&receiver.bytes(frame.payload as usize).await?).map_err(End::Malformed)?;
    Ok((frame, message))
}

async fn answer(writer: &mut impl ConnWriter, frame: &RequestFrame, status: Status, payload: &[u8]) -> Result<(), End> {
    writer.write_all(vec![reply_head(frame, status, 0, payload).into()]).await.map_err(End::Broken)
}

/// What a connection can begin with.
enum First {
    /// A borrower.
    Hello(Hello),
    /// The manager, from another address than before.
    Announce(Announce),
}

/// Takes HELLO and OPEN, each within the time limit. None if that was all; the peer has been told.
pub(crate) async fn handshake<D: Doors, R: ConnReader>(
    agent: &Agent<D>,
    receiver: &mut Receiver<R>,
    writer: &mut impl ConnWriter,
) -> Result<Option<(RequestFrame, Open)>, End> {
    let late = |_| End::Broken(io::ErrorKind::TimedOut.into());
    let first = async {
        let frame = receiver.frame().await?;
        match frame.op {
            Op::Hello => message::<Hello, R>(receiver, frame).await.map(|(frame, hello)| (frame, First::Hello(hello))),
            Op::Announce => message::<Announce, R>(receiver, frame).await.map(|(frame, urls)| (frame, First::Announce(urls))),
            _ => Err(End::Malformed(Malformed("HELLO comes first"))),
        }
    };
    let (frame, first) = agent.doors.timeout(HANDSHAKE_TIME_MAX, first).await.map_err(late)??;
    let hello = match first {
        First::Hello(hello) => hello,
        First::Announce(announce) => {
            match agent.announced(announce) {
                Ok(()) => answer(writer, &frame, Status::Ok, &[]).await?,
                Err(reason) => answer(writer, &frame, Status::NotYours, reason.as_bytes()).await?,
            }
            return Ok(None);
        }
    };
    if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
        let text = format!("this lender speaks protocol version {PROTOCOL_VERSION}; update the older side");
        answer(writer, &frame, Status::Version, text.as_bytes()).await?;
        return Ok(None);
    }
    let reply = HelloReply {
        version: PROTOCOL_VERSION,
        features: 0,
        server: agent.server,
        nonce: agent.doors.random_u128(),
        depth_max: drawn::limit(Drawn::SessionDepth, SESSION_DEPTH_MAX as u64) as u32,
        request_max: REQUEST_SIZE_MAX as u32,
    };
    answer(writer, &frame, Status::Ok, &reply.encode()).await?;
    let open = expect::<Open, R>(receiver, Op::Open, "OPEN comes after HELLO");
    agent.doors.timeout(HANDSHAKE_TIME_MAX, open).await.map_err(late)?.map(Some)
}

/// Opens the session that was asked for. None if the client was refused; it has been told.
pub(crate) async fn answer_open<D: Doors>(
    agent: &Agent<D>,
    frame: RequestFrame,
    open: Open,
    writer: &mut impl ConnWriter,
) -> Result<Option<Rc<Shared<D>>>, End> {
    match open_session(agent, &open).await {
        Ok((shared, reply)) => {
            shared.outbox.push(Reply {
                head: reply_head(&frame, Status::Ok, 0, &reply.encode()),
                data: None,
                permits: Vec::new(),
            });
            Ok(Some(shared))
        }
        Err(failure) => {
            tracing::info!(slice = ?open.slice, epoch = open.epoch.number, status = ?failure.status, reason = %failure.text, "a session was refused");
            answer(writer, &frame, failure.status, failure.text.as_bytes()).await?;
            Ok(None)
        }
    }
}

/// L2: what the client remembers of the area is a part of its history. If not, the area was rolled back, restored or cloned: it
/// is not trusted from now on, which is in its label and in the next report.
async fn check_history<D: Doors>(served: &Served<D>, open: &Open) -> Result<(), Failure> {
    let area = &served.area;
    if !area.knows(open.known_open, open.known_sequence) {
        let why = format!(
            "it was rolled back, restored or cloned: a client remembers its opening {} with sequence {}",
            open.known_open.short(),
            open.known_sequence
        );
        tracing::error!(area = %area.name(), "{why}");
        served.set_quarantine(Some(&why)).await?;
        return Err(distrusted(area, &why));
    }
    check_trust(area, open)
}

/// L2: a quarantined area is not opened, but for copying to a stale leg: nothing that this one holds counts.
fn check_trust<D: Doors>(area: &Area<D>, open: &Open) -> Result<(), Failure> {
    match area.quarantined() {
        Some(why) if open.mode == OpenMode::InSync => Err(distrusted(area, &why)),
        _ => Ok(()),
    }
}

fn distrusted<D: Doors>(area: &Area<D>, why: &str) -> Failure {
    Failure::new(Status::Disagreement, format!("area {} is quarantined: {why}", area.name()))
}

/// Opens a session: compared with the label (F6), after all lower ones have ended (W4), with the *open* flag durable.
async fn open_session<D: Doors>(agent: &Agent<D>, open: &Open) -> Result<(Rc<Shared<D>>, OpenReply), Failure> {
    let stopping = || Failure::new(Status::Unavailable, "the agent is stopping; try again later");
    if agent.is_draining() {
        return Err(stopping());
    }
    let served = agent.served(open.area).map_err(|missing| match missing {
        Missing::Unknown => Failure::new(Status::NoSlice, format!("this lender has no area {}", open.area)),
        Missing::Offline(reason) => Failure::new(Status::Unavailable, format!("the area is offline: {reason}")),
    })?;
    let gate = served
        .gate(open.slice)
        .ok_or_else(|| Failure::new(Status::NoSlice, format!("area {} has no slice {}", served.area.name(), open.slice)))?;
    let check_epoch = || {
        if gate.is_ended(open.epoch) {
            return Err(Failure::new(Status::StaleEpoch, "a newer epoch was ordered, which the failed disk could not take"));
        }
        Ok(())
    };
    // Before any session is disturbed: who must not open must not end others either.
    served.area.check_open(open)?;
    check_epoch()?;
    check_history(&served, open).await?;
    let wait = async {
        let turn = gate.turn().await;
        // Again: a fence may have had its turn before.
        served.area.check_open(open)?;
        check_epoch()?;
        if gate.is_superseded(open.epoch, open.session) {
            let text = format!("session {} or a higher one was opened before; open a higher one", open.session.0);
            return Err(Failure::new(Status::Superseded, text));
        }
        if mutation::is(Mutation::OpenDoesNotWait) {
            gate.close_all(Closing::Superseded);
        } else {
            gate.end_all(Closing::Superseded).await;
        }
        Ok(turn)
    };
    // Only the waiting is given up, never a label change.
    let turn = agent.doors.timeout(drawn::time(Drawn::OpenWait, OPEN_WAIT_MAX), wait).await.map_err(|_| {
        Failure::new(Status::Unavailable, "the disk has not ended the requests of an earlier session; try again later")
    })??;
    let read_only = served.area.lease_read_only(open.slice);
    if !read_only {
        // A target is copied to, whatever an earlier process left in it (S4).
        if open.mode == OpenMode::InSync && open.known_open.to_u128() == 0 {
            served.area.mark_open_anew(open.slice, open.epoch).await?;
        } else {
            served.area.mark_open(open.slice, open.epoch).await?;
        }
    }
    let (generation, unclean) =
        served.area.slice_state(open.slice).ok_or_else(|| Failure::new(Status::NoSlice, "the slice is gone"))?;
    if agent.is_draining() {
        return Err(stopping());
    }
    // Again: from here on nothing is waited for until it is entered.
    check_trust(&served.area, open)?;
    let session = Rc::new(Session::new(open, read_only));
    gate.enter(&session);
    drop(turn);
    let reply = OpenReply {
        identity: served.area.identity(),
        generation,
        unclean,
        sequence: served.area.sequence(),
        hot_max: served.area.hot_share(open.slice),
        missed_since: served.area.missed_since(open.slice),
    };
    Ok((Shared::new(agent.doors.clone(), served, gate, session), reply))
}
