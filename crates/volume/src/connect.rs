//! Opening a session: connect, HELLO, OPEN.

use std::rc::Rc;
use std::time::Duration;

use sublet_doors::{Doors, Endpoint};
use sublet_types::limits::REQUEST_SIZE_MAX;
use sublet_types::{Address, ServerId};
use sublet_wire::frame::PROTOCOL_VERSION;
use sublet_wire::message::{Hello, HelloReply, Message, Open, OpenReply};
use sublet_wire::{Op, Status};

use crate::session::{End, Session, SessionError};

/// One address is tried for so long.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// HELLO is answered from memory: who does not answer within this time is not there.
const HELLO_LIMIT: Duration = Duration::from_secs(3);
/// OPEN waits at the lender until disk I/O of earlier sessions has ended (W4).
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Why no session was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ConnectError {
    /// Nobody there, or not the lender that is looked for: another address may help.
    NotHere(String),
    /// The lender refused.
    Refused(Status, String),
    /// The lender knows a newer epoch (F4).
    Fenced(String),
}

/// Opens a session at one address.
pub(crate) async fn open_session<D: Doors>(
    doors: &D,
    address: &Address,
    lender: ServerId,
    open: &Open,
) -> Result<Rc<Session<D>>, ConnectError> {
    let endpoint = Endpoint::Tcp(address.clone());
    let conn = doors
        .connect(&endpoint, CONNECT_LIMIT)
        .await
        .map_err(|error| ConnectError::NotHere(format!("{address} cannot be reached: {error}")))?;
    let session = Session::start(doors, conn, open.slice, open.session, open.mode);
    let outcome = shake_hands(doors, &session, address, lender, open).await;
    match outcome {
        Ok(()) => Ok(session),
        Err(error) => {
            session.kill(End::Unwanted);
            Err(error)
        }
    }
}

async fn shake_hands<D: Doors>(
    doors: &D,
    session: &Session<D>,
    address: &Address,
    lender: ServerId,
    open: &Open,
) -> Result<(), ConnectError> {
    let hello = Hello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        features: 0,
        server: open.borrower,
        nonce: doors.random_u128(),
    };
    let reply: HelloReply = said(doors, session, address, Op::Hello, &hello, HELLO_LIMIT).await?;
    if reply.server != lender {
        // F6: an address is never an identity.
        return Err(ConnectError::NotHere(format!("another server answers at {address}")));
    }
    if reply.version != PROTOCOL_VERSION || u64::from(reply.request_max) < REQUEST_SIZE_MAX {
        return Err(ConnectError::Refused(Status::Version, format!("the lender at {address} speaks another protocol version")));
    }
    session.limit_depth(reply.depth_max);
    let opened: OpenReply = said(doors, session, address, Op::Open, open, OPEN_LIMIT).await?;
    session.set_opened(opened);
    Ok(())
}

/// One control exchange within a time limit.
async fn said<D: Doors, A: Message, B: Message>(
    doors: &D,
    session: &Session<D>,
    address: &Address,
    op: Op,
    message: &A,
    limit: Duration,
) -> Result<B, ConnectError> {
    let payload = message.encode();
    let answer = doors.timeout(limit, session.control(op, &payload)).await;
    let not_here = |what: String| ConnectError::NotHere(format!("{address} {what}"));
    match answer {
        Err(_) => Err(not_here(format!("does not answer {op:?}"))),
        Ok(Err(SessionError::Refused(status, text))) => Err(ConnectError::Refused(status, text)),
        Ok(Err(SessionError::Lost)) => Err(match session.end().await {
            End::Fenced(text) => ConnectError::Fenced(text),
            End::Lost(text) | End::Hung(text, _) => not_here(format!("ended the connection: {text}")),
            End::Unwanted => not_here("ended the connection".into()),
        }),
        Ok(Ok(payload)) => session.decoded(&payload).map_err(|_| not_here("sent a malformed answer".into())),
    }
}
