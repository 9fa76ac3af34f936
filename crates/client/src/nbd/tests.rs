//! The codecs against bytes as they stand in the specification, and against bytes as nobody should send them.

use super::negotiation::{Agreed, Export, Negotiation, Step};
use super::protocol::*;
use super::request::{self, Command, Request};
use crate::device::{Extent, ZeroFlags};

fn export(read_only: bool) -> Export {
    Export { name: "vol".into(), size: 1 << 20, read_only }
}

/// Splits the server's bytes into (option, kind, data).
fn replies(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(u64::from_be_bytes(bytes[..8].try_into().unwrap()), OPTION_REPLY_MAGIC);
        let end = 20 + word(16) as usize;
        found.push((word(8), word(12), bytes[20..end].to_vec()));
        bytes = &bytes[end..];
    }
    found
}

fn answered(step: Step) -> Vec<(u32, u32, Vec<u8>)> {
    match step {
        Step::Answer(bytes) => replies(&bytes),
        other => panic!("an answer was expected, not {other:?}"),
    }
}

fn kinds(step: Step) -> Vec<u32> {
    answered(step).into_iter().map(|(_, kind, _)| kind).collect()
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text].concat()
}

fn go(name: &[u8], wishes: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((wishes.len() as u16).to_be_bytes());
    data.extend(wishes.iter().flat_map(|w| w.to_be_bytes()));
    data
}

fn meta(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|q| string(q)));
    data
}

#[test]
fn both_names_are_the_volume_and_any_other_is_unknown() {
    let mut n = Negotiation::new(export(false));
    for name in [&b""[..], b"vol"] {
        let found = answered(n.option(OPT_INFO, &go(name, &[])));
        assert_eq!(found[0].2, [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &found[0].2[10..]].concat());
        assert_eq!(found.last().unwrap().1, REP_ACK);
    }
    assert_eq!(kinds(n.option(OPT_INFO, &go(b"other", &[]))), [REP_ERR_UNKNOWN]);
    assert_eq!(kinds(n.option(OPT_GO, &go(b"other", &[]))), [REP_ERR_UNKNOWN]);
    assert_eq!(n.option(OPT_EXPORT_NAME, b"other"), Step::End(Vec::new()));
    assert_eq!(kinds(n.option(OPT_LIST, b"")), [REP_SERVER, REP_SERVER, REP_ACK]);
}

#[test]
fn a_read_only_mount_says_so_and_df_comes_with_structured_replies() {
    let flags = |n: &mut Negotiation| {
        let info = &answered(n.option(OPT_INFO, &go(b"", &[])))[0].2;
        u16::from_be_bytes([info[10], info[11]])
    };
    let mut n = Negotiation::new(export(true));
    assert_eq!(flags(&mut n) & (TRANSMIT_READ_ONLY | TRANSMIT_SEND_DF), TRANSMIT_READ_ONLY);
    assert_eq!(kinds(n.option(OPT_STRUCTURED_REPLY, b"")), [REP_ACK]);
    assert_ne!(flags(&mut n) & TRANSMIT_SEND_DF, 0);
    let mut n = Negotiation::new(export(false));
    assert_eq!(flags(&mut n) & (TRANSMIT_READ_ONLY | TRANSMIT_CAN_MULTI_CONN), TRANSMIT_CAN_MULTI_CONN);
}

#[test]
fn the_old_export_name_gets_its_zeroes_unless_waived() {
    let length = |flags: u32| {
        let mut n = Negotiation::new(export(false));
        n.client_flags(flags).unwrap();
        match n.option(OPT_EXPORT_NAME, b"") {
            Step::Transmit(bytes, _) => bytes.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((length(1), length(3)), (134, 10));
    assert!(Negotiation::new(export(false)).client_flags(4).is_err());
}

#[test]
fn a_context_holds_for_the_name_it_was_selected_for() {
    let mut n = Negotiation::new(export(false));
    let select = meta(b"", &[b"base:allocation", b"qemu:dirty-bitmap:x"]);
    assert_eq!(kinds(n.option(OPT_SET_META_CONTEXT, &select)), [REP_ERR_INVALID], "structured replies come first");
    n.option(OPT_STRUCTURED_REPLY, b"");
    assert_eq!(kinds(n.option(OPT_SET_META_CONTEXT, &select)), [REP_META_CONTEXT, REP_ACK]);
    let agreed = |step: Step| if let Step::Transmit(_, agreed) = step { agreed } else { panic!("{step:?}") };
    let both = Agreed { structured: true, allocation: true };
    assert_eq!(agreed(n.clone().option(OPT_GO, &go(b"", &[]))), both);
    assert!(!agreed(n.clone().option(OPT_GO, &go(b"vol", &[]))).allocation);
    // A later selection replaces the earlier one, also if it selects nothing or fails.
    assert_eq!(kinds(n.clone().option(OPT_SET_META_CONTEXT, &meta(b"", &[b"base:"]))), [REP_ACK]);
    assert_eq!(kinds(n.option(OPT_SET_META_CONTEXT, &meta(b"other", &[b"base:allocation"]))), [REP_ERR_UNKNOWN]);
    assert!(!agreed(n.option(OPT_GO, &go(b"", &[]))).allocation);
}

#[test]
fn listing_contexts_understands_wildcards() {
    let mut n = Negotiation::new(export(false));
    n.option(OPT_STRUCTURED_REPLY, b"");
    for queries in [&[][..], &[&b"base:"[..]], &[b"base:allocation"]] {
        let found = answered(n.option(OPT_LIST_META_CONTEXT, &meta(b"vol", queries)));
        assert_eq!(found[0].2, [&[0; 4][..], BASE_ALLOCATION].concat());
    }
    assert_eq!(kinds(n.option(OPT_LIST_META_CONTEXT, &meta(b"", &[b"x:"]))), [REP_ACK]);
}

#[test]
fn unknown_and_malformed_options_are_refused_and_the_next_one_works() {
    let mut n = Negotiation::new(export(false));
    for option in [0, 4, 5, 11, 99, u32::MAX] {
        assert_eq!(kinds(n.option(option, b"whatever")), [REP_ERR_UNSUP]);
    }
    n.option(OPT_STRUCTURED_REPLY, b"");
    let whole = go(b"vol", &[INFO_BLOCK_SIZE, INFO_NAME]);
    let selection = meta(b"vol", &[BASE_ALLOCATION]);
    for cut in 0..whole.len() {
        assert_eq!(kinds(n.option(OPT_INFO, &whole[..cut])), [REP_ERR_INVALID]);
    }
    for cut in 0..selection.len() {
        assert_eq!(kinds(n.option(OPT_SET_META_CONTEXT, &selection[..cut])), [REP_ERR_INVALID]);
    }
    assert_eq!(kinds(n.option(OPT_INFO, &[&whole[..], b"x"].concat())), [REP_ERR_INVALID]);
    assert_eq!(kinds(n.option(OPT_GO, &[0xff; 64])), [REP_ERR_INVALID]);
    assert_eq!(kinds(n.option(OPT_LIST_META_CONTEXT, &[&string(b"")[..], &[0xff; 4]].concat())), [REP_ERR_INVALID]);
    assert_eq!(kinds(n.option(OPT_LIST, b"x")), [REP_ERR_INVALID]);
    assert_eq!(kinds(n.option(OPT_STRUCTURED_REPLY, b"x")), [REP_ERR_INVALID]);
    assert_eq!(kinds(n.option(OPT_INFO, &go(&[b'a'; 4097], &[]))), [REP_ERR_TOO_BIG]);
    assert_eq!(kinds(n.option(OPT_INFO, &whole)), [REP_INFO, REP_INFO, REP_INFO, REP_ACK]);
    assert!(matches!(n.option(OPT_ABORT, b""), Step::End(bytes) if replies(&bytes)[0].1 == REP_ACK));
}

#[test]
fn random_options_never_panic() {
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32
    };
    let mut n = Negotiation::new(export(false));
    n.option(OPT_STRUCTURED_REPLY, b"");
    for _ in 0..20_000 {
        let data: Vec<u8> = (0..random() % 40).map(|_| if random() % 3 == 0 { (random() % 256) as u8 } else { 0 }).collect();
        match n.option(random() % 12, &data) {
            Step::Answer(bytes) => assert!(!replies(&bytes).is_empty()),
            Step::End(_) | Step::Transmit(..) => {}
        }
    }
}

const BOTH: Agreed = Agreed { structured: true, allocation: true };

fn ask(command: u16, flags: u16, offset: u64, length: u32) -> Request {
    Request { flags, command, cookie: 0x0102_0304_0506_0708, offset, length }
}

#[test]
fn a_request_is_read_from_its_bytes() {
    let mut bytes = [0u8; 28];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[5] = 1;
    bytes[7] = 1;
    bytes[8..16].copy_from_slice(&0x0102_0304_0506_0708u64.to_be_bytes());
    bytes[23] = 9;
    bytes[27] = 5;
    let request = Request::read(&bytes).unwrap();
    assert_eq!(request, ask(CMD_WRITE, CMD_FLAG_FUA, 9, 5));
    assert_eq!(request.payload(), 5);
    bytes[0] ^= 1;
    assert!(Request::read(&bytes).is_err());
}

#[test]
fn requests_fail_with_the_numbers_of_the_specification() {
    let size = 1u64 << 20;
    let cases = [
        ("read behind the end", ask(CMD_READ, 0, size, 1), EINVAL),
        ("read across the end", ask(CMD_READ, 0, size - 1, 2), EINVAL),
        ("read with an offset that wraps", ask(CMD_READ, 0, u64::MAX, 2), EINVAL),
        ("write behind the end", ask(CMD_WRITE, 0, size, 1), ENOSPC),
        ("zeroes behind the end", ask(CMD_WRITE_ZEROES, 0, size - 1, 2), ENOSPC),
        ("trim behind the end", ask(CMD_TRIM, 0, size - 1, 2), EINVAL),
        ("huge read", ask(CMD_READ, 0, 0, (32 << 20) + 1), EINVAL),
        ("huge unsplit read", ask(CMD_READ, CMD_FLAG_DF, 0, (32 << 20) + 1), EOVERFLOW),
        ("huge write", ask(CMD_WRITE, 0, 0, u32::MAX), EINVAL),
        ("status of nothing", ask(CMD_BLOCK_STATUS, 0, 0, 0), EINVAL),
        ("flush of something", ask(CMD_FLUSH, 0, 0, 1), EINVAL),
        ("unknown command", ask(77, 0, 0, 0), EINVAL),
        ("unknown flag", ask(CMD_READ, 1 << 9, 0, 1), EINVAL),
        ("flag of another command", ask(CMD_WRITE, CMD_FLAG_NO_HOLE, 0, 1), EINVAL),
    ];
    for (what, request, error) in cases {
        assert_eq!(request.check(&export(false), BOTH).unwrap_err().error, error, "{what}");
    }
    for command in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
        assert_eq!(ask(command, 0, size, 1).check(&export(true), BOTH).unwrap_err().error, EPERM);
    }
    let plain = Agreed::default();
    assert_eq!(ask(CMD_READ, CMD_FLAG_DF, 0, 1).check(&export(false), plain).unwrap_err().error, EINVAL);
    assert_eq!(ask(CMD_BLOCK_STATUS, 0, 0, 1).check(&export(false), plain).unwrap_err().error, EINVAL);
}

#[test]
fn right_requests_pass() {
    let size = 1u64 << 20;
    let zero = ZeroFlags { fua: true, no_hole: true, fast: true };
    let cases = [
        (ask(CMD_READ, CMD_FLAG_DF | CMD_FLAG_FUA, size - 1, 1), Command::Read),
        (ask(CMD_READ, 0, size, 0), Command::Read),
        (ask(CMD_WRITE, CMD_FLAG_FUA, 1, 3), Command::Write { fua: true }),
        (ask(CMD_WRITE_ZEROES, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO, 0, 1 << 20), Command::Zero(zero)),
        (ask(CMD_TRIM, 0, 0, 1), Command::Zero(ZeroFlags::default())),
        (ask(CMD_FLUSH, 0, 0, 0), Command::Flush),
        (ask(CMD_CACHE, 0, 0, 4), Command::Cache),
        (ask(CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 0, 4), Command::BlockStatus { one: true }),
        (ask(CMD_DISC, 0xffff, u64::MAX, u32::MAX), Command::Disconnect),
    ];
    for (request, command) in cases {
        assert_eq!(request.check(&export(false), BOTH), Ok(command));
    }
}

#[test]
fn block_status_joins_neighbours_and_ends_with_the_range() {
    let extents = [(10, true), (20, true), (5, false), (0, true), (7, false), (1 << 40, true)]
        .map(|(length, data)| Extent { length, data });
    let status = |one: bool| {
        let mut out = Vec::new();
        request::reply_block_status(&mut out, &ask(CMD_BLOCK_STATUS, 0, 0, 100), one, &extents);
        assert_eq!(u32::from_be_bytes(out[16..20].try_into().unwrap()) as usize, out.len() - 20);
        let words: Vec<u32> = out[20..].chunks(4).map(|w| u32::from_be_bytes(w.try_into().unwrap())).collect();
        assert_eq!(words[0], BASE_ALLOCATION_ID);
        words[1..].to_vec()
    };
    assert_eq!(status(false), [30, 0, 12, 3, 58, 0]);
    assert_eq!(status(true), [30, 0]);
}

#[test]
fn failures_carry_their_text_to_those_who_can_take_it() {
    let request = ask(CMD_READ, 0, 1 << 30, 1);
    let failure = request.check(&export(false), BOTH).unwrap_err();
    let mut out = Vec::new();
    request::reply_failure(&mut out, &request, BOTH, &failure);
    assert_eq!(&out[..8], [&STRUCTURED_REPLY_MAGIC.to_be_bytes()[..], &[0, 1, 0x80, 1]].concat());
    assert!(out.ends_with(failure.text.as_bytes()));
    assert_eq!(out.len(), 20 + 6 + failure.text.len());
    let mut out = Vec::new();
    request::reply_failure(&mut out, &request, Agreed::default(), &failure);
    assert_eq!(out.len(), 16);
    assert_eq!(out[4..8], EINVAL.to_be_bytes());
}
