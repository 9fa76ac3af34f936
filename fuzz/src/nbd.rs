//! The codecs of the NBD server: options of the handshake, requests and replies of the transmission.

use sublet_client::device::Extent;
use sublet_client::nbd::negotiation::{Agreed, Export, Negotiation, Step};
use sublet_client::nbd::protocol::*;
use sublet_client::nbd::request::{Command, REQUEST_SIZE, Request, reply_block_status, reply_done, reply_failure, reply_read};
use sublet_types::limits::FRONT_REQUEST_SIZE_MAX;

/// The name of the volume that is served.
pub const NAME: &str = "vol";

/// A big-endian number at a place.
pub fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    Some(field.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// Checks that these are whole replies to this option.
fn check_replies(option: u32, bytes: &[u8], length: usize) {
    let mut at = 0;
    while at < bytes.len() {
        assert_eq!(number(bytes, at, 8), Some(OPTION_REPLY_MAGIC), "a reply begins at {at}");
        assert_eq!(number(bytes, at + 8, 4), Some(option.into()));
        let data = number(bytes, at + 16, 4).and_then(|length| usize::try_from(length).ok());
        at += 20 + data.unwrap_or(usize::MAX / 2);
        assert!(at <= bytes.len(), "a reply to option {option} is not all there");
    }
    assert!(bytes.len() <= 1024, "{} bytes answer {length}", bytes.len());
}

/// Options, each as its number (one byte), its length (two) and its data. The first byte of all is the client's flags.
pub fn options(input: &[u8]) -> bool {
    let Some((flags, mut rest)) = input.split_first() else { return false };
    let mut negotiation = Negotiation::new(Export { name: NAME.to_owned(), size: 1 << 20, read_only: flags & 4 != 0 });
    if negotiation.client_flags(u32::from(flags & 0x83)).is_err() {
        assert!(flags & 0x80 != 0);
        return false;
    }
    let mut is_structured = false;
    let mut was_taken = false;
    while let Some(([option, high, low], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (data, after) = after.split_at(length);
        rest = after;
        let option = u32::from(*option);
        match negotiation.option(option, data) {
            Step::Answer(bytes) => {
                check_replies(option, &bytes, length);
                assert!(!bytes.is_empty(), "option {option} was not answered");
                let kind = number(&bytes, bytes.len() - 8, 4);
                let is_acknowledged = bytes.len() >= 20 && kind == Some(REP_ACK.into());
                is_structured |= option == OPT_STRUCTURED_REPLY && data.is_empty();
                was_taken |= is_acknowledged;
            }
            Step::Transmit(bytes, agreed) => {
                assert_eq!(agreed.structured, is_structured);
                assert!(agreed.structured || !agreed.allocation, "contexts need structured replies");
                if option == OPT_EXPORT_NAME {
                    assert!(data.is_empty() || data == NAME.as_bytes());
                    assert_eq!(bytes.len(), if flags & 2 != 0 { 10 } else { 134 });
                } else {
                    check_replies(option, &bytes, length);
                }
                return true;
            }
            Step::End(bytes) => {
                assert!(option == OPT_ABORT || option == OPT_EXPORT_NAME);
                check_replies(option, &bytes, length);
                return true;
            }
        }
    }
    was_taken
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text].concat()
}

/// The data of GO and INFO.
pub fn go(name: &[u8], wishes: &[u16]) -> Vec<u8> {
    let wishes: Vec<u8> = [wishes.len() as u16].iter().chain(wishes).flat_map(|wish| wish.to_be_bytes()).collect();
    [string(name), wishes].concat()
}

/// The data of SET_META_CONTEXT and LIST_META_CONTEXT.
pub fn contexts(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = [string(name), (queries.len() as u32).to_be_bytes().to_vec()].concat();
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// What clients send: (option, data).
pub fn dialogues() -> Vec<Vec<(u32, Vec<u8>)>> {
    let structured = (OPT_STRUCTURED_REPLY, Vec::new());
    let allocation = (OPT_SET_META_CONTEXT, contexts(b"", &[BASE_ALLOCATION]));
    let wishes = [INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE];
    vec![
        vec![(OPT_EXPORT_NAME, b"vol".to_vec())],
        vec![(OPT_GO, go(b"", &[INFO_BLOCK_SIZE]))],
        vec![structured.clone(), allocation.clone(), (OPT_GO, go(b"", &wishes))],
        vec![(OPT_LIST, Vec::new()), (OPT_INFO, go(b"vol", &wishes)), (OPT_ABORT, Vec::new())],
        vec![structured, (OPT_LIST_META_CONTEXT, contexts(b"vol", &[b"base:", b"x:y"])), allocation, (99, vec![1, 2, 3])],
    ]
}

pub fn option_seeds() -> Vec<Vec<u8>> {
    let seed = |options: Vec<(u32, Vec<u8>)>| {
        let mut bytes = vec![3];
        for (option, data) in options {
            bytes.push(option as u8);
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(data);
        }
        bytes
    };
    dialogues().into_iter().map(seed).collect()
}

/// A request as it is sent.
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// What a command that passed may rely on.
fn check_command(request: &Request, command: Command, export: &Export, agreed: Agreed) {
    let end = request.offset.checked_add(request.length.into());
    let lies_inside = end.is_some_and(|end| end <= export.size);
    match command {
        Command::Disconnect => {}
        Command::Flush => assert!(request.length == 0 && request.offset == 0),
        Command::Read => assert!(lies_inside && u64::from(request.length) <= FRONT_REQUEST_SIZE_MAX),
        Command::Write { .. } => {
            assert!(lies_inside && !export.read_only && u64::from(request.length) <= FRONT_REQUEST_SIZE_MAX);
            assert_eq!(request.payload(), request.length);
        }
        Command::Zero(_) => assert!(lies_inside && !export.read_only),
        Command::Cache => assert!(lies_inside),
        Command::BlockStatus { .. } => assert!(lies_inside && agreed.allocation && request.length > 0),
    }
}

/// The length that a reply says it has; of a simple one without data.
fn said(out: &[u8]) -> usize {
    match number(out, 0, 4) {
        Some(magic) if magic == u64::from(STRUCTURED_REPLY_MAGIC) => 20 + number(out, 16, 4).unwrap_or(0) as usize,
        Some(magic) if magic == u64::from(SIMPLE_REPLY_MAGIC) => 16,
        other => panic!("no reply begins with {other:?}"),
    }
}

/// A byte of what was agreed, a request, and extents of five bytes each.
pub fn requests(input: &[u8]) -> bool {
    let Some((how, rest)) = input.split_first() else { return false };
    let Some((head, rest)) = rest.split_first_chunk::<REQUEST_SIZE>() else { return false };
    let agreed = Agreed { structured: how & 1 != 0, allocation: how & 3 == 3 };
    let export = Export { name: NAME.to_owned(), size: 48 << (10 + how / 16), read_only: how & 4 != 0 };
    let Ok(request) = Request::read(head) else { return false };
    let again = self::request(request.flags, request.command, request.cookie, request.offset, request.length);
    assert_eq!(again, head, "{request:?}");
    let mut out = Vec::new();
    match request.check(&export, agreed) {
        Err(failure) => {
            reply_failure(&mut out, &request, agreed, &failure);
            assert_eq!(said(&out), out.len());
            assert!(failure.error != 0 && out.len() <= 512);
            return false;
        }
        Ok(command) => {
            check_command(&request, command, &export, agreed);
            reply_done(&mut out, &request);
            assert_eq!(said(&out), out.len());
            out.clear();
            if command == Command::Read {
                reply_read(&mut out, &request, agreed);
                let data = if agreed.structured { request.length as usize } else { 0 };
                assert_eq!(said(&out), out.len() + data);
            }
        }
    }
    let extents: Vec<Extent> = rest
        .chunks_exact(5)
        .map(|part| Extent { length: number(part, 0, 4).unwrap_or(0) << (part[4] >> 3), data: part[4] & 1 != 0 })
        .collect();
    for one in [false, true] {
        out.clear();
        reply_block_status(&mut out, &request, one, &extents);
        assert_eq!(said(&out), out.len());
        let told = (24..out.len()).step_by(8).filter_map(|at| number(&out, at, 4));
        assert!(told.sum::<u64>() <= request.length.into(), "more is told than was asked for");
    }
    true
}

pub fn request_seeds() -> Vec<Vec<u8>> {
    let commands = [CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS];
    let seed = |command: u16| {
        let (offset, length) = if command == CMD_FLUSH { (0, 0) } else { (4096, 8192) };
        let extents = [0, 0, 16, 0, 1, 0, 0, 16, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff];
        [&[0x13][..], &request(CMD_FLAG_FUA, command, 7, offset, length), &extents].concat()
    };
    commands.map(seed).to_vec()
}
