//! Plain HTTP requests, also malformed ones.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The manager's answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status; 0 if the answer is no HTTP.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Sends raw bytes to `host:port`, closes the writing side if wished, and returns everything that comes back within 10 s.
///
/// # Errors
/// The connection cannot be made, or the answer does not end.
pub fn raw(address: &str, bytes: &[u8], close: bool) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // A server that closes early is as good.
    let _ = stream.write_all(bytes);
    if close {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() != io::ErrorKind::ConnectionReset => Err(e),
        _ => Ok(answer),
    }
}

/// One request to `http://host:port`.
///
/// # Errors
/// As [`raw`].
pub fn request(url: &str, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    let address = url.trim_start_matches("http://");
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    let answer = String::from_utf8_lossy(&raw(address, &bytes, false)?).into_owned();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok(Answer { status, body })
}
