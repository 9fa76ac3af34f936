//! Garbage is refused with a reason, as a refusal in JSON, without troubling the core.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use sublet_api::Refusal;
use sublet_api::request::{Request, Response};

use crate::http::body::BODY_MAX;
use crate::testing::Manager;

/// A manager whose core fails the test when it is asked anything but for the tasks.
fn manager() -> Manager {
    Manager::answering(|request| {
        assert!(matches!(request, Request::Tasks), "the core was asked {request:?}");
        Response::Tasks(Vec::new())
    })
}

const ID: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn malformed_requests_are_refused_in_json() {
    let manager = manager();
    let poll = format!("/v1/servers/{ID}/poll");
    let longest = format!("/v1/volumes/{}", "a".repeat(64));
    let deep = "[".repeat(100_000);
    let cases: &[(&str, &str, Option<&str>, u16)] = &[
        ("GET", "/", None, 404),
        ("GET", "/v1", None, 404),
        ("GET", "/v1/", None, 404),
        ("GET", "/v1/volumes/", None, 404),
        ("GET", "/v2/pool", None, 404),
        ("GET", "/v1/volumes/a/b", None, 404),
        ("POST", "/v1/volumes/a/potatoes", Some("{}"), 404),
        ("DELETE", "/v1/volumes/a", None, 405),
        ("POST", "/v1/pool", Some("{}"), 405),
        ("PUT", "/v1/borrow", Some("{}"), 405),
        ("GET", "/v1/borrow", None, 405),
        ("GET", "/v1/volumes/..", None, 400),
        ("GET", "/v1/volumes/a%2Fb", None, 400),
        ("GET", "/v1/volumes/%00", None, 400),
        ("GET", "/v1/volumes/%FF%FE", None, 400),
        ("GET", "/v1/volumes/-x", None, 400),
        ("GET", &longest, None, 400),
        ("POST", "/v1/servers/server-a/poll", Some(r#"{"run":1}"#), 400),
        ("POST", "/v1/volumes/short/legs", Some("{}"), 400),
        ("GET", "/v1/table?after=x", None, 400),
        ("GET", "/v1/table?after=-1", None, 400),
        ("GET", "/v1/table?wait=1", None, 400),
        ("GET", "/v1/events?limit=99999999999999999999", None, 400),
        ("POST", &poll, Some("{"), 400),
        ("POST", &poll, Some("null"), 400),
        ("POST", &poll, Some("\u{0}\u{1}"), 400),
        ("POST", &poll, Some(&deep), 400),
        ("POST", &poll, Some(r#"{"run":-1}"#), 400),
        ("POST", &poll, Some(r#"{"run":1} {"run":2}"#), 400),
        ("POST", "/v1/borrow", Some(r#"{"task":"x","server":"y"}"#), 400),
        ("POST", "/v1/volumes/a/rename", Some(r#"{"name":"a b"}"#), 400),
        ("POST", "/v1/volumes/a/rename", Some(r#"{"name":"b","colour":"red"}"#), 400),
    ];
    for (method, path, body, expected) in cases {
        let (status, json) = manager.ask(method, path, *body);
        assert_eq!(status, *expected, "{method} {path} {json}");
        let refusal: Refusal = serde_json::from_value(json).unwrap();
        assert!(!refusal.message.is_empty() && !refusal.hint.is_empty(), "{method} {path} {refusal}");
    }
    for text in ["0", "-5", "9223372036854775808000", "1.5", "\"10 potatoes\"", "[]"] {
        let body = format!(r#"{{"task":"{ID}","server":"{ID}","size":{text}}}"#);
        if text != "0" {
            assert_eq!(manager.ask("POST", "/v1/borrow", Some(&body)).0, 400, "{text}");
        }
    }
}

#[test]
fn a_body_that_is_not_declared_as_json_is_refused() {
    let manager = manager();
    for headers in [&[][..], &[("content-type", "text/plain")], &[("content-type", "application/x-www-form-urlencoded")]] {
        let (status, json) = manager.ask_with("POST", "/v1/borrow", headers, b"{}");
        assert_eq!(status, 415);
        assert!(json["hint"].as_str().unwrap().contains("application/json"));
    }
    let headers = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(manager.ask_with("POST", "/v1/borrow", &headers, b"{}").0, 400, "taken as JSON, without the fields it needs");
}

#[test]
fn a_body_that_is_too_large_is_refused_also_to_a_caller_that_sends_first() {
    let manager = manager();
    let headers = [("content-type", "application/json")];
    for size in [BODY_MAX + 1, 8 * BODY_MAX] {
        let (status, json) = manager.ask_with("POST", "/v1/borrow", &headers, &vec![b' '; size]);
        assert_eq!(status, 413, "{json}");
    }
    assert_eq!(manager.ask_with("POST", "/v1/borrow", &headers, &vec![b' '; BODY_MAX]).0, 400, "just fits, but is no JSON");
    let expecting = [("content-type", "application/json"), ("expect", "100-continue")];
    assert_eq!(manager.ask_with("POST", "/v1/borrow", &expecting, &vec![b' '; 100 * BODY_MAX]).0, 413);
    let poll = format!("/v1/servers/{ID}/poll");
    assert_eq!(manager.ask_with("POST", &poll, &headers, &vec![b' '; 4 * BODY_MAX]).0, 400, "a report may be long");
}

#[test]
fn a_connection_can_be_used_again_after_a_refusal_that_nobody_read_the_body_for() {
    let manager = manager();
    let mut stream = TcpStream::connect(manager.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for path in ["/nothing", "/v1/pool", "/v1/servers/bad/poll", "/nothing"] {
        write!(stream, "POST {path} HTTP/1.1\r\nhost: m\r\ncontent-length: 70000\r\n\r\n").unwrap();
        // The body comes later than the manager can know that it refuses.
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(&[b'x'; 70000]).unwrap();
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).to_lowercase();
        assert!(answer.starts_with("http/1.1 40") && !answer.contains("connection: close"), "{path}: {answer}");
    }
}

#[test]
fn a_wrong_method_is_told_the_right_ones() {
    let manager = manager();
    let answer = raw(&manager, b"DELETE /v1/volumes HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n").to_lowercase();
    assert!(answer.starts_with("http/1.1 405") && answer.contains("allow: get,head,post"), "{answer}");
}

#[test]
fn a_body_that_never_comes_does_not_hold_up_the_refusal() {
    let manager = manager();
    let began = std::time::Instant::now();
    let answer = raw(&manager, b"POST /nothing HTTP/1.1\r\nhost: m\r\ncontent-length: 5\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("connection: close"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(4));
}

fn raw(manager: &Manager, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(manager.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset is as good an end as any: the manager does not owe garbage more.
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_not_http_ends_its_own_connection_only() {
    let manager = manager();
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\0\0\0\0\r\n\r\n", b"NBDMAGIC\r\n\r\n", b"GET /\r\n\r\n"]
    {
        let answer = raw(&manager, bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let chunked =
        b"POST /v1/borrow HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
    let answer = raw(&manager, chunked);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("bad_request"), "{answer}");
    assert_eq!(manager.ask("GET", "/v1/tasks", None).0, 200);
}
