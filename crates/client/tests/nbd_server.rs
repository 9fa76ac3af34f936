//! The NBD server against raw bytes: concurrency, disconnection, garbage.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::raw::Raw;
use common::{Seeded, Served, noise};
use sublet_client::nbd::protocol::*;

#[test]
fn unaligned_operations_of_several_connections_agree_with_a_byte_model() {
    const SIZE: usize = 3 << 20;
    const CONNECTIONS: usize = 4;
    const SHARE: usize = SIZE / CONNECTIONS - 13;
    let served = Served::start(SIZE, false);
    let socket = served.socket();
    // Each connection has bytes of its own, but its first and last block it has together with its neighbours.
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|index| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let mut raw = Raw::connect(&socket);
                let mut random = Seeded(index as u64 + 1);
                let start = index * SHARE + 7;
                let mut model = vec![0u8; SHARE];
                for round in 0..40 {
                    // A batch in flight at once; no two of a batch touch the same bytes.
                    let mut expected: HashMap<u64, Vec<u8>> = HashMap::new();
                    let lane = SHARE / 16;
                    for slot in 0..16u64 {
                        let length = 1 + random.below(lane as u64) as usize;
                        let at = slot as usize * lane + random.below((lane - length + 1) as u64) as usize;
                        let offset = (start + at) as u64;
                        match random.below(4) {
                            0 => {
                                raw.send(CMD_WRITE_ZEROES, slot, offset, length as u32, b"");
                                model[at..at + length].fill(0);
                                expected.insert(slot, Vec::new());
                            }
                            1 => {
                                raw.send(CMD_READ, slot, offset, length as u32, b"");
                                expected.insert(slot, model[at..at + length].to_vec());
                            }
                            _ => {
                                let data = noise(round * 100 + slot, length);
                                raw.send(CMD_WRITE, slot, offset, length as u32, &data);
                                model[at..at + length].copy_from_slice(&data);
                                expected.insert(slot, Vec::new());
                            }
                        }
                    }
                    while !expected.is_empty() {
                        let reply = raw.reply(|cookie| expected[&cookie].len());
                        assert_eq!(reply.error, 0);
                        assert!(expected.remove(&reply.cookie) == Some(reply.data), "other bytes were read");
                    }
                }
                raw.send(CMD_DISC, 99, 0, 0, b"");
                assert!(raw.is_closed());
                (start, model)
            })
        })
        .collect();
    let models: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let mut whole = vec![0; SIZE];
    for (start, model) in models {
        whole[start..start + model.len()].copy_from_slice(&model);
    }
    assert!(served.stop() == whole);
}

#[test]
fn a_disconnect_finishes_what_is_in_flight() {
    let served = Served::start(1 << 20, false);
    let mut raw = Raw::connect(&served.socket());
    let mut bytes = Vec::new();
    for i in 0..100u64 {
        bytes.extend(Raw::header(CMD_WRITE, 0, i, i * 4096, 4096));
        bytes.extend([i as u8 + 1; 4096]);
    }
    bytes.extend(Raw::header(CMD_DISC, 0, 200, 0, 0));
    raw.stream.write_all(&bytes).unwrap();
    let answered = (0..100).map(|_| raw.reply(|_| 0)).filter(|reply| reply.error == 0).count();
    assert_eq!(answered, 100);
    assert!(raw.is_closed());
    let bytes = served.stop();
    assert!((0..100).all(|i| bytes[i * 4096] == i as u8 + 1));
}

#[test]
fn the_largest_requests_work_and_larger_ones_are_refused_without_losing_the_connection() {
    const LARGEST: usize = 32 << 20;
    let served = Served::start(LARGEST + 4096, false);
    let mut raw = Raw::connect(&served.socket());
    let data = noise(1, LARGEST);
    raw.send(CMD_WRITE, 1, 1, LARGEST as u32, &data);
    assert_eq!(raw.reply(|_| 0).error, 0);
    raw.send(CMD_READ, 2, 1, LARGEST as u32, b"");
    assert!(raw.reply(|_| LARGEST).data == data);
    raw.send(CMD_WRITE, 3, 0, LARGEST as u32 + 1, &vec![9; LARGEST + 1]);
    assert_eq!(raw.reply(|_| 0).error, EINVAL);
    raw.send(CMD_READ, 4, 0, u32::MAX, b"");
    assert_eq!(raw.reply(|_| 0).error, EINVAL);
    raw.send(CMD_WRITE, 5, LARGEST as u64 + 4096, 3, b"abc");
    assert_eq!(raw.reply(|_| 0).error, ENOSPC);
    raw.send(CMD_READ, 6, 1, 10, b"");
    assert_eq!(raw.reply(|_| 10).data, data[..10]);
}

#[test]
fn a_read_only_volume_takes_no_writes() {
    let served = Served::filled(vec![7; 8192], true);
    let mut raw = Raw::connect(&served.socket());
    raw.send(CMD_WRITE, 1, 0, 4, b"abcd");
    assert_eq!(raw.reply(|_| 0).error, EPERM);
    raw.send(CMD_TRIM, 2, 0, 4, b"");
    assert_eq!(raw.reply(|_| 0).error, EPERM);
    raw.send(CMD_READ, 3, 0, 4, b"");
    assert_eq!(raw.reply(|_| 4).data, [7; 4]);
    drop(raw);
    assert_eq!(served.stop(), vec![7; 8192]);
}

#[test]
fn garbage_and_clients_that_vanish_leave_the_server_working() {
    let served = Served::start(1 << 20, false);
    let mut random = Seeded(5);
    for round in 0..200u64 {
        let length = random.below(200) as usize;
        let mut bytes = noise(round, length);
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        match round % 4 {
            // From the first byte on.
            0 => {}
            // After proper flags; then with a proper option head and a random length.
            1 => bytes.splice(..0, 3u32.to_be_bytes()).for_each(drop),
            2 => {
                let mut head = 3u32.to_be_bytes().to_vec();
                head.extend(b"IHAVEOPT");
                bytes.splice(..0, head).for_each(drop);
            }
            // As requests.
            _ => {
                let mut raw = Raw::connect(&served.socket());
                let _ = raw.stream.write_all(&bytes);
                continue;
            }
        }
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink);
    }
    for cut in [1usize, 27, 28, 29, 100, 4000] {
        let mut raw = Raw::connect(&served.socket());
        let mut bytes = Raw::header(CMD_WRITE, 0, 1, 0, 4096);
        bytes.extend([0xee; 4096]);
        raw.stream.write_all(&bytes[..cut]).unwrap();
    }
    let mut raw = Raw::connect(&served.socket());
    raw.send(CMD_READ, 1, 0, 4096, b"");
    assert!(raw.reply(|_| 4096).data.iter().all(|b| *b == 0), "a write that was cut short did nothing");
}

#[test]
fn long_options_are_answered_and_absurd_ones_end_the_connection() {
    let served = Served::start(4096, false);
    let mut raw = Raw::greet(&served.socket());
    raw.stream.write_all(&3u32.to_be_bytes()).unwrap();
    raw.option(OPT_INFO, &vec![0; 1 << 20]);
    assert_eq!(raw.option_reply(), REP_ERR_TOO_BIG);
    raw.option(77, b"");
    assert_eq!(raw.option_reply(), REP_ERR_UNSUP);
    raw.option(OPT_ABORT, b"");
    assert_eq!(raw.option_reply(), REP_ACK);
    assert!(raw.is_closed());

    let mut raw = Raw::greet(&served.socket());
    raw.stream.write_all(&3u32.to_be_bytes()).unwrap();
    raw.stream.write_all(b"IHAVEOPT\0\0\0\x06\xff\xff\xff\xff").unwrap();
    assert!(raw.is_closed());

    let mut raw = Raw::greet(&served.socket());
    raw.stream.write_all(&0x8000_0001u32.to_be_bytes()).unwrap();
    assert!(raw.is_closed(), "unknown client flags end the connection");
}

#[test]
fn a_client_that_reads_nothing_does_not_stop_the_others() {
    let served = Served::start(32 << 20, false);
    let mut lazy = Raw::connect(&served.socket());
    // More than its share of bytes in flight is asked for, and nothing is taken.
    for cookie in 0..64 {
        lazy.send(CMD_READ, cookie, 0, 1 << 20, b"");
    }
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    let mut raw = Raw::connect(&served.socket());
    for cookie in 0..100 {
        raw.send(CMD_READ, cookie, 4096, 65536, b"");
        assert_eq!(raw.reply(|_| 65536).error, 0);
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn stopping_answers_requests_in_flight_and_closes_idle_connections() {
    let served = Served::start(1 << 20, false);
    let mut idle = Raw::connect(&served.socket());
    let mut shaking = Raw::greet(&served.socket());
    let begun = Instant::now();
    served.stop();
    assert!(begun.elapsed() < Duration::from_secs(4), "nobody had to be cut off");
    assert!(idle.is_closed() && shaking.is_closed());
}
