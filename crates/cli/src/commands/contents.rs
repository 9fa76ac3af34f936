//! `search` and `volume init`: work on the bytes of a borrowed volume, mounted or not.

use serde::Serialize;
use sublet_api::control::{self, ClientAnswerLine, ClientRequest};
use sublet_api::{ErrorKind, Refusal};
use sublet_link::ask;

use super::local::{self, Client};
use super::mount::{How, bring_up};
use super::unmount;
use crate::args;
use crate::context::Context;
use crate::output::{ProgressLine, print, print_json};

/// The longest pattern in bytes: what the access protocol carries.
const PATTERN_MAX: usize = 4096;

/// Asks the volume's client; a volume that is not mounted is mounted for this one question.
fn ask_client(
    c: &Context,
    volume: &str,
    read_only: bool,
    request: &ClientRequest,
    on_more: &mut dyn FnMut(ClientAnswerLine),
) -> Result<ClientAnswerLine, Refusal> {
    if let Some(mount) = local::find(c, volume)
        && matches!(mount.client(), Client::Answers(_))
    {
        return ask(&mount.home.control_socket(), request, on_more);
    }
    let how = How { fuse: false, read_only, idle_close: None, fail_after: None };
    let up = bring_up(c, volume, &how)?;
    let answer = ask(&up.home.control_socket(), request, on_more);
    let down = unmount::take_down(c, volume, &up.info, false);
    let answer = answer?;
    down?;
    Ok(answer)
}

pub(super) fn init(c: &Context, volume: &str) -> Result<(), Refusal> {
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
    let answer = ask_client(c, volume, false, &ClientRequest::Init, &mut |answer| {
        if let ClientAnswerLine::Progress { done, total } = answer {
            line.show(&what, done, total);
        }
    })?;
    drop(line);
    match answer {
        ClientAnswerLine::Done if c.json => print_json(&serde_json::json!({ "name": volume, "initialised": true })),
        ClientAnswerLine::Done => print(&format!("every byte of {volume} reads as zero now\n")),
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

/// One match; `search --json` prints a list of them.
#[derive(Serialize)]
struct Match {
    offset: u64,
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
    let mut matches = Vec::new();
    let answer = ask_client(c, &options.volume, true, &request, &mut |answer| match answer {
        ClientAnswerLine::Progress { done, total } => line.show(&what, done, total),
        ClientAnswerLine::Matches { offsets } if c.json => matches.extend(offsets.into_iter().map(|offset| Match { offset })),
        ClientAnswerLine::Matches { offsets } => {
            let text: String = offsets.iter().map(|offset| format!("{offset}\n")).collect();
            print(&text);
        }
        _ => {}
    })?;
    drop(line);
    let ClientAnswerLine::Searched { count, limited } = answer else {
        return Err(Refusal::new(ErrorKind::Internal, format!("the client answered strangely: {answer:?}")));
    };
    match (c.json, options.count) {
        (true, true) => print_json(&Count { count, limited }),
        (true, false) => print_json(&matches),
        (false, true) => print(&format!("{count}\n")),
        (false, false) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pattern: &str, hex: bool) -> args::Search {
        args::Search { volume: "v".into(), pattern: pattern.into(), hex, limit: None, count: false }
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
