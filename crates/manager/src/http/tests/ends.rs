//! The end of a connection, of the manager, and of the core.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sublet_api::request::Response;
use sublet_api::{ErrorKind, Refusal};
use sublet_table::{Action, Event};

use crate::testing::Manager;

/// A manager whose core holds every request for ever, and what it is told.
fn holding() -> (Manager, mpsc::Receiver<Event>) {
    let (tell, told) = mpsc::channel();
    let manager = Manager::scripted(move |event| {
        // Nobody listens any more when the test is over.
        drop(tell.send(event));
        Vec::new()
    });
    (manager, told)
}

const HELD: &[u8] = b"GET /v1/table?after=1&wait_ms=30000 HTTP/1.1\r\nhost: m\r\n\r\n";
const SOON: Duration = Duration::from_secs(1);

fn held(manager: &Manager, told: &mpsc::Receiver<Event>) -> (TcpStream, u64) {
    let mut stream = TcpStream::connect(manager.address).unwrap();
    stream.write_all(HELD).unwrap();
    match told.recv_timeout(5 * SOON).unwrap() {
        Event::Request { conn, .. } => (stream, conn),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_killed_caller_of_a_held_request_is_noticed_at_once() {
    let (manager, told) = holding();
    let (stream, conn) = held(&manager, &told);
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err(), "while it waits, it is not gone");
    drop(stream);
    match told.recv_timeout(SOON).unwrap() {
        Event::Gone { conn: gone } => assert_eq!(gone, conn),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reset_connection_is_noticed_at_once_and_others_are_kept() {
    let (manager, told) = holding();
    let (_kept, _) = held(&manager, &told);
    let (stream, conn) = held(&manager, &told);
    // With no time to linger, closing sends a reset: what the peers of a killed machine's successor see.
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert!(matches!(told.recv_timeout(SOON).unwrap(), Event::Gone { conn: gone } if gone == conn));
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
}

#[test]
fn an_answered_caller_is_never_reported_as_gone() {
    let (tell, told) = mpsc::channel();
    let manager = Manager::scripted(move |event| match event {
        Event::Request { conn, .. } => vec![Action::Reply { conn, response: Response::Tasks(Vec::new()) }],
        other => {
            tell.send(other).unwrap();
            Vec::new()
        }
    });
    for _ in 0..50 {
        let mut stream = TcpStream::connect(manager.address).unwrap();
        stream.write_all(b"GET /v1/tasks HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
}

#[test]
fn stopping_answers_held_requests_and_takes_the_files_back() {
    let (mut manager, told) = holding();
    let (mut stream, _) = held(&manager, &told);
    let (_deaf, _) = held(&manager, &told);
    let began = Instant::now();
    manager.stop().unwrap();
    assert!(began.elapsed() < 3 * SOON, "{:?}", began.elapsed());
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"), "{answer}");
    assert!(TcpStream::connect(manager.address).is_err());
}

#[test]
fn a_core_that_fails_ends_the_manager_with_a_reason_and_leaves_nobody_waiting() {
    let mut requests = 0;
    let mut manager = Manager::scripted(move |_| {
        requests += 1;
        assert!(requests < 2, "the core fails here on purpose");
        Vec::new()
    });
    let mut held = TcpStream::connect(manager.address).unwrap();
    held.write_all(HELD).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let (status, json) = manager.ask("GET", "/v1/pool", None);
    assert_eq!(status, 503);
    assert_eq!(serde_json::from_value::<Refusal>(json).unwrap().kind, ErrorKind::Unreachable);
    assert_eq!(manager.wait().unwrap_err().kind, ErrorKind::Internal);
    let mut answer = String::new();
    held.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}
