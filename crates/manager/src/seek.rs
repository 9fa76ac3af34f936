//! A manager whose address has changed looks for its servers: those that it does not hear from are told, at their storage
//! addresses, where it can be reached (operation `Announce` of the access protocol).

use std::sync::Arc;
use std::time::Duration;

use sublet_api::access::Caller;
use sublet_api::request::{Request, Response};
use sublet_api::view::ServerState;
use sublet_types::{Address, PoolId, SessionNumber, SliceId};
use sublet_wire::message::{Announce, Message};
use sublet_wire::{FRAME_SIZE, Flags, Op, ReplyFrame, RequestFrame, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::inbox::Inbox;

/// Servers that know the manager's address are back within this time after its start.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_secs(3);
/// How long one server's address may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// Tells every server that is not heard from, until the manager stops.
pub(crate) async fn seek(inbox: Arc<Inbox>, urls: Vec<String>) {
    tokio::time::sleep(FIRST_PAUSE).await;
    loop {
        let Response::Pool(pool) = inbox.ask(Caller::Manager, None, Request::Pool).await else { return };
        let Response::Servers(servers) = inbox.ask(Caller::Manager, None, Request::Servers).await else { return };
        for server in servers.iter().filter(|server| server.state == ServerState::Lost) {
            for address in &server.addresses {
                match tokio::time::timeout(ANSWER_TIME_MAX, tell(address, pool.pool, &urls)).await {
                    Ok(Ok(Status::Ok)) => {
                        tracing::debug!(server = %server.name, %address, "told where the manager is");
                        break;
                    }
                    Ok(Ok(status)) => tracing::info!(server = %server.name, %address, ?status, "does not take the announcement"),
                    // It is away; the next round comes.
                    Ok(Err(_)) | Err(_) => {}
                }
            }
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// One announcement, and its answer.
async fn tell(address: &Address, pool: PoolId, urls: &[String]) -> std::io::Result<Status> {
    let payload = Announce { pool, urls: urls.to_vec() }.encode();
    let frame = RequestFrame {
        op: Op::Announce,
        flags: Flags::default(),
        cookie: 0,
        session: SessionNumber(0),
        slice: SliceId::from_u128(0),
        offset: 0,
        length: 0,
        deadline_ms: 0,
        payload: u32::try_from(payload.len()).unwrap_or(u32::MAX),
    };
    let mut stream = TcpStream::connect((address.host(), address.port())).await?;
    let mut bytes = frame.encode().to_vec();
    bytes.extend_from_slice(&payload);
    stream.write_all(&bytes).await?;
    let mut reply = [0; FRAME_SIZE];
    stream.read_exact(&mut reply).await?;
    let reply = ReplyFrame::decode(&reply).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))?;
    Ok(reply.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_is_told_the_pool_and_the_urls() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::new("127.0.0.1", listener.local_addr().unwrap().port());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; FRAME_SIZE];
            stream.read_exact(&mut head).await.unwrap();
            let frame = RequestFrame::decode(&head).unwrap();
            let mut payload = vec![0; frame.payload as usize];
            stream.read_exact(&mut payload).await.unwrap();
            stream.write_all(&frame.reply(Status::NotYours, 0).encode()).await.unwrap();
            (frame.op, Announce::decode(&payload).unwrap())
        });
        let urls = vec!["http://m:1".to_owned()];
        let status = tell(&address, PoolId::from_u128(7), &urls).await.unwrap();
        assert_eq!(status, Status::NotYours);
        assert_eq!(server.await.unwrap(), (Op::Announce, Announce { pool: PoolId::from_u128(7), urls }));
    }
}
