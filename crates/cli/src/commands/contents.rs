//! `search` and `volume init`: work on the bytes of a borrowed volume, mounted or not.

use serde::Serialize;
use sublet_api::control::{self, ClientAnswerLine, ClientRequest};
use sublet_api::mount::MountingInformation;
use sublet_api::{ErrorKind, Refusal};
use sublet_link::{AnswerLine, LineConn, MountHome, connect};

use super::local::{self, Client};
use super::mount::{How, bring_up};
use super::unmount;
use crate::args;
use crate::context::Context;
use crate::interrupt;
use crate::output::{ProgressLine, print, print_json, try_print};

/// The longest pattern in bytes: what the access protocol carries.
const PATTERN_MAX: usize = 4096;

/// Asks the volume's client; a volume that is not mounted is mounted for this one question. `on_more` answers whether it wants
/// to hear more; a client whose asker goes away ends its search.
fn ask_client(
    c: &Context,
    volume: &str,
    key: &args::Key,
    read_only: bool,
    request: &ClientRequest,
    on_more: &mut dyn FnMut(ClientAnswerLine) -> bool,
) -> Result<Option<ClientAnswerLine>, Refusal> {
    if let Some(mount) = local::find(c, volume)
        && matches!(mount.client(), Client::Answers(_))
    {
        note_sealed(request, &mount.info);
        return talk(&mount.home, request, on_more);
    }
    let how = How { fuse: false, read_only, idle_close: None, fail_after: None, key: key.clone() };
    let up = bring_up(c, volume, &how)?;
    note_sealed(request, &up.info);
    let answer = talk(&up.home, request, on_more);
    let down = unmount::take_down(c, &up.info, false);
    let answer = answer?;
    down?;
    Ok(answer)
}

/// Where an encrypted volume is searched is not where others are.
fn note_sealed(request: &ClientRequest, info: &MountingInformation) {
    if info.sealed && matches!(request, ClientRequest::Search(_)) {
        eprintln!("note: {} is encrypted: it is searched here, all of it is read, and its lenders do not help", info.name);
    }
}

/// The last line of the answer; none if no more was wanted.
pub(super) fn talk(
    home: &MountHome,
    request: &ClientRequest,
    on_more: &mut dyn FnMut(ClientAnswerLine) -> bool,
) -> Result<Option<ClientAnswerLine>, Refusal> {
    let gone = |e: std::io::Error| Refusal::new(ErrorKind::Unreachable, format!("the volume's client does not answer: {e}"));
    let mut conn = LineConn::new(connect(&home.control_socket()).map_err(gone)?);
    let stream = conn.stream().try_clone().map_err(gone)?;
    let hang_up = move || {
        // A client that has hung up itself is as good.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    };
    let answer = interrupt::during(hang_up, || {
        conn.send(request)?;
        loop {
            let answer: ClientAnswerLine = conn.receive()?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
            if !answer.more_follows() {
                return Ok(Some(answer));
            }
            if !on_more(answer) {
                return Ok(None);
            }
        }
    });
    interrupt::check()?;
    answer.map_err(gone)?.map(AnswerLine::refused).transpose()
}

pub(super) fn init(c: &Context, volume: &str, key: &args::Key) -> Result<(), Refusal> {
    if let Some(mount) = local::find(c, volume)
        && let Some(device) = mount.ready().and_then(|ready| ready.device)
        && let Some(point) = local::mounts_of(std::path::Path::new(&device)).first()
    {
        return Err(Refusal::new(
            ErrorKind::Conflict,
            format!("{volume} holds a file system that is mounted at {}", point.display()),
        )
        .hint(format!("sublet unmount {volume} first")));
    }
    let mut line = ProgressLine::default();
    let what = format!("initialising {volume}");
    let answer = ask_client(c, volume, key, false, &ClientRequest::Init, &mut |answer| {
        if let ClientAnswerLine::Progress { done, total } = answer {
            line.show(&what, done, total);
        }
        true
    })?;
    drop(line);
    match answer {
        Some(ClientAnswerLine::Done) if c.json => print_json(&serde_json::json!({ "name": volume, "initialised": true })),
        Some(ClientAnswerLine::Done) => print(&format!("every byte of {volume} reads as zero now\n")),
        other => return Err(Refusal::new(ErrorKind::Internal, format!("the client answered strangely: {other:?}"))),
    }
    Ok(())
}

/// What `search --count --json` prints.
#[derive(Serialize)]
struct Count {
    count: u64,
    /// True if `--limit` ended the search.
    limited: bool,
}

fn pattern_of(options: &args::Search) -> Result<Vec<u8>, Refusal> {
    let bad = |message: String| Refusal::new(ErrorKind::BadRequest, message);
    let pattern = if options.hex {
        let digits: Vec<u8> = options.pattern.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let pair = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).ok().filter(|t| t.len() == 2 && t.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(text, 16).ok()
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(pair).collect();
        bytes.ok_or_else(|| {
            bad(format!("'{}' is not hexadecimal", options.pattern)).hint("write pairs of digits, for example 00ff41")
        })?
    } else {
        options.pattern.as_bytes().to_vec()
    };
    if pattern.is_empty() || pattern.len() > PATTERN_MAX {
        return Err(bad(format!("a pattern has 1 to {PATTERN_MAX} bytes, not {}", pattern.len())));
    }
    Ok(pattern)
}

pub(super) fn search(c: &Context, options: &args::Search) -> Result<(), Refusal> {
    let pattern = pattern_of(options)?;
    let request = ClientRequest::Search(control::Search {
        pattern_hex: pattern.iter().map(|b| format!("{b:02x}")).collect(),
        limit: options.limit,
        count_only: options.count,
    });
    let mut line = ProgressLine::default();
    let what = format!("searching {}", options.volume);
    // Printed as they come: there may be more than fit into memory.
    let mut printed = 0u64;
    let answer = ask_client(c, &options.volume, &options.key, true, &request, &mut |answer| match answer {
        ClientAnswerLine::Progress { done, total } => {
            line.show(&what, done, total);
            true
        }
        ClientAnswerLine::Matches { offsets } => {
            let text = lines(&offsets, c.json, printed == 0);
            printed += offsets.len() as u64;
            try_print(&text)
        }
        _ => true,
    })?;
    drop(line);
    // Whoever reads the output (`| head`) wants no more of it.
    let Some(answer) = answer else { return Ok(()) };
    let ClientAnswerLine::Searched { count, limited } = answer else {
        return Err(Refusal::new(ErrorKind::Internal, format!("the client answered strangely: {answer:?}")));
    };
    match (c.json, options.count) {
        (true, true) => print_json(&Count { count, limited }),
        (true, false) => print(if printed == 0 { "[]\n" } else { "\n]\n" }),
        (false, true) => print(&format!("{count}\n")),
        (false, false) => {}
    }
    Ok(())
}

/// Matches as text: one offset a line; in JSON the elements of a list, which `first` opens.
fn lines(offsets: &[u64], json: bool, first: bool) -> String {
    let mut out = String::with_capacity(offsets.len() * 24);
    for (i, offset) in offsets.iter().enumerate() {
        match (json, first && i == 0) {
            (false, _) => out += &format!("{offset}\n"),
            (true, true) => out += &format!("[\n  {{ \"offset\": {offset} }}"),
            (true, false) => out += &format!(",\n  {{ \"offset\": {offset} }}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pattern: &str, hex: bool) -> args::Search {
        args::Search { volume: "v".into(), pattern: pattern.into(), hex, limit: None, count: false, key: args::Key::default() }
    }

    #[test]
    fn matches_are_printed_as_a_list_piece_by_piece() {
        assert_eq!(lines(&[7, 8], false, true), "7\n8\n");
        let text = lines(&[7, 8], true, true) + &lines(&[9], true, false) + "\n]\n";
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read, serde_json::json!([{ "offset": 7 }, { "offset": 8 }, { "offset": 9 }]));
    }

    #[test]
    fn patterns_are_text_or_hexadecimal() {
        assert_eq!(pattern_of(&options("ab", false)).unwrap(), b"ab");
        assert_eq!(pattern_of(&options("00 fF 41", true)).unwrap(), [0, 255, 65]);
        for bad in ["0", "0x41", "zz", "", "+1"] {
            assert!(pattern_of(&options(bad, true)).is_err(), "{bad}");
        }
        assert!(pattern_of(&options(&"a".repeat(4097), false)).is_err());
    }
}
