//! `control.sock`: JSON lines, one thread a connection; what is asked goes to the engine's thread.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sublet_api::control::{ClientAnswerLine, ClientRequest};
use sublet_api::{ErrorKind, Refusal};
use sublet_link::{AnswerLine, LineConn};

/// Control connections at the same time.
const CONNECTIONS_MAX: usize = 32;
/// A connection that asks nothing for so long is closed.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How often it is looked whether an asker that waits is still there.
const ASKER_LOOK: Duration = Duration::from_millis(200);

/// A request, and where its answer lines go. The asker is gone when they cannot be sent.
pub struct Asked {
    /// What is asked.
    pub request: ClientRequest,
    /// Its answer.
    pub answer: mpsc::Sender<ClientAnswerLine>,
    /// One message for each line that was sent; ends behind the last one, and when the asker goes away before.
    pub sent: UnboundedReceiver<()>,
}

/// Listens at `path`; requests arrive at `asked`.
///
/// # Errors
/// What the operating system says to listening there.
pub fn start(path: &Path, asked: UnboundedSender<Asked>) -> io::Result<()> {
    let listener = sublet_link::listen(path)?;
    let open = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("sublet-control".into()).spawn(move || {
        for stream in listener.incoming() {
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a control connection could not be accepted");
                    thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if asked.is_closed() {
                return;
            }
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (asked, own) = (asked.clone(), Arc::clone(&open));
            let spawned = thread::Builder::new().name("sublet-control".into()).spawn(move || {
                if let Err(error) = stream.set_read_timeout(Some(SILENCE_MAX)) {
                    tracing::debug!(%error, "no time limit for a control connection");
                }
                if let Err(error) = serve(LineConn::new(stream), &asked) {
                    tracing::debug!(%error, "a control connection ended");
                }
                own.fetch_sub(1, Ordering::Relaxed);
            });
            if let Err(error) = spawned {
                open.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!(%error, "no thread for a control connection");
            }
        }
    })?;
    Ok(())
}

fn serve(mut conn: LineConn, asked: &UnboundedSender<Asked>) -> io::Result<()> {
    loop {
        let request = match conn.receive::<ClientRequest>() {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let refusal = Refusal::new(ErrorKind::BadRequest, format!("the request is not understood: {error}"));
                return conn.send(&ClientAnswerLine::Refused { refusal });
            }
            Err(error) => return Err(error),
        };
        let (answer, lines) = mpsc::channel();
        let (tell, sent) = unbounded();
        let gone = || Refusal::new(ErrorKind::Conflict, "the client is ending");
        if asked.unbounded_send(Asked { request, answer, sent }).is_err() {
            return conn.send(&ClientAnswerLine::Refused { refusal: gone() });
        }
        loop {
            let line = match lines.recv_timeout(ASKER_LOOK) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => ClientAnswerLine::Refused { refusal: gone() },
                Err(mpsc::RecvTimeoutError::Timeout) if hung_up(&conn) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the asker went away"));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
            };
            conn.send(&line)?;
            // An engine that is ending needs not know.
            let _ = tell.unbounded_send(());
            if !line.more_follows() {
                break;
            }
        }
    }
}

/// True if the peer has closed its end (not if it only says that it asks no more).
fn hung_up(conn: &LineConn) -> bool {
    let mut polled = [PollFd::new(conn.stream(), PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&at_once)).is_ok() && polled.iter().any(|p| p.revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use futures_channel::mpsc;
    use futures_util::StreamExt;
    use futures_util::future::FutureExt;
    use sublet_api::view::PathState;

    use super::*;

    /// Answers requests as an engine would, until the asker is gone.
    fn engine(mut asked: mpsc::UnboundedReceiver<Asked>) {
        loop {
            match asked.next().now_or_never() {
                Some(Some(next)) => {
                    let last = match next.request {
                        ClientRequest::Init => {
                            next.answer.send(ClientAnswerLine::Progress { done: 1, total: 2 }).unwrap();
                            ClientAnswerLine::Done
                        }
                        ClientRequest::Stop { .. } => {
                            // Ends without an answer.
                            return;
                        }
                        _ => ClientAnswerLine::Status {
                            path: PathState::Open,
                            reason: String::new(),
                            missing: Vec::new(),
                            device: None,
                            resync: None,
                            io: String::new(),
                        },
                    };
                    next.answer.send(last).unwrap();
                }
                Some(None) => return,
                None => thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    #[test]
    fn requests_are_answered_garbage_is_refused_and_an_ending_client_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (ask, asked) = mpsc::unbounded();
        start(&path, ask).unwrap();
        let engine = thread::spawn(move || engine(asked));

        for garbage in ["\n", "{}\n", "{\"ask\":\"dance\"}\n", "\u{1}\u{2}\n"] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(garbage.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("\"bad_request\""), "{garbage:?}: {answer}");
        }
        drop(UnixStream::connect(&path).unwrap());

        let ask_it = |request| {
            let mut lines = 0;
            let last = sublet_link::ask(&path, &request, &mut |_: ClientAnswerLine| lines += 1);
            (last, lines)
        };
        assert_eq!(ask_it(ClientRequest::Init), (Ok(ClientAnswerLine::Done), 1));
        assert!(matches!(ask_it(ClientRequest::Status).0, Ok(ClientAnswerLine::Status { path: PathState::Open, .. })));
        let ended = ask_it(ClientRequest::Stop { force: false }).0.unwrap_err();
        assert_eq!(ended.kind, ErrorKind::Conflict);
        engine.join().unwrap();
    }
}
