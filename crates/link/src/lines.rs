//! JSON lines over control sockets: one object a line both ways; a request is answered with any number of progress lines
//! and one last line.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sublet_api::control::{ClientAnswerLine, ServerAnswer};
use sublet_api::{ErrorKind, Refusal};

use crate::socket::connect;

/// The longest line, in bytes.
const LINE_SIZE_MAX: u64 = 16 << 20;

/// An answer that knows whether more lines follow.
pub trait AnswerLine: DeserializeOwned {
    /// True if another line of the same answer follows.
    fn more_follows(&self) -> bool;

    /// The refusal as an error.
    ///
    /// # Errors
    /// The refusal, if the answer is one.
    fn refused(self) -> Result<Self, Refusal>;
}

impl AnswerLine for ServerAnswer {
    fn more_follows(&self) -> bool {
        matches!(self, ServerAnswer::Progress { .. })
    }
    fn refused(self) -> Result<Self, Refusal> {
        if let ServerAnswer::Refused { refusal } = self { Err(refusal) } else { Ok(self) }
    }
}

impl AnswerLine for ClientAnswerLine {
    fn more_follows(&self) -> bool {
        matches!(self, ClientAnswerLine::Progress { .. } | ClientAnswerLine::Matches { .. })
    }
    fn refused(self) -> Result<Self, Refusal> {
        if let ClientAnswerLine::Refused { refusal } = self { Err(refusal) } else { Ok(self) }
    }
}

/// One connection that speaks JSON lines, at either end.
#[derive(Debug)]
pub struct LineConn {
    reader: BufReader<UnixStream>,
}

impl LineConn {
    /// Speaks over this stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { reader: BufReader::new(stream) }
    }

    /// The next object; none if the peer has ended.
    ///
    /// # Errors
    /// `InvalidData` for a line that is too long or no such object; else what the operating system says.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = Vec::new();
        self.reader.by_ref().take(LINE_SIZE_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') {
            let what =
                if line.len() as u64 + 1 >= LINE_SIZE_MAX { "the line is too long" } else { "the peer ended within a line" };
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        serde_json::from_slice(&line).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Sends one object.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn send(&mut self, object: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(object)?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line)
    }

    /// The stream, for time limits.
    pub fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }
}

/// Asks the process behind a control socket; `on_more` hears the lines before the last one, which is returned.
///
/// # Errors
/// The refusal of the other process; `Unreachable` if it does not run or ends before its last line.
pub fn ask<A: AnswerLine>(socket: &Path, request: &impl Serialize, on_more: &mut dyn FnMut(A)) -> Result<A, Refusal> {
    let gone = |e: io::Error| {
        Refusal::new(ErrorKind::Unreachable, format!("the process at {} does not answer: {e}", socket.display()))
            .hint("check that it runs, and that --home (SUBLET_HOME) names its state directory")
    };
    let mut conn = LineConn::new(connect(socket).map_err(gone)?);
    conn.send(request).map_err(gone)?;
    loop {
        let answer: A = conn.receive().map_err(gone)?.ok_or_else(|| gone(io::ErrorKind::UnexpectedEof.into()))?;
        if !answer.more_follows() {
            return answer.refused();
        }
        on_more(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use sublet_api::control::ClientRequest;

    use super::*;
    use crate::socket::listen;

    #[test]
    fn progress_comes_before_the_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen(&path).unwrap();
        let server = thread::spawn(move || {
            let mut conn = LineConn::new(listener.accept().unwrap().0);
            assert_eq!(conn.receive::<ClientRequest>().unwrap(), Some(ClientRequest::Init));
            conn.send(&ClientAnswerLine::Progress { done: 1, total: 2 }).unwrap();
            conn.send(&ClientAnswerLine::Done).unwrap();
            let mut conn = LineConn::new(listener.accept().unwrap().0);
            let _ = conn.receive::<ClientRequest>().unwrap();
            let refusal = Refusal::new(ErrorKind::Conflict, "no");
            conn.send(&ClientAnswerLine::Refused { refusal }).unwrap();
            drop(listener.accept().unwrap());
        });
        let mut heard = 0;
        let last = ask(&path, &ClientRequest::Init, &mut |_: ClientAnswerLine| heard += 1).unwrap();
        assert_eq!((last, heard), (ClientAnswerLine::Done, 1));
        let ask_again = || ask(&path, &ClientRequest::Status, &mut |_: ClientAnswerLine| {}).unwrap_err().kind;
        assert_eq!(ask_again(), ErrorKind::Conflict);
        assert_eq!(ask_again(), ErrorKind::Unreachable, "it ended without an answer");
        server.join().unwrap();
        assert_eq!(ask_again(), ErrorKind::Unreachable, "nobody listens");
    }
}
