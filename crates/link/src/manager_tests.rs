//! Against a scripted manager.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use sublet_api::request::Reclaim;
use sublet_types::TaskId;

use super::*;

/// Answers one request per connection with these (status, body) pairs, in turn.
fn manager(answers: Vec<(u16, String)>) -> (String, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (url, serve(listener, answers))
}

/// An answer with this status is none: the manager is killed at this point.
const KILLED: u16 = 0;

fn serve(listener: TcpListener, answers: Vec<(u16, String)>) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let (mut line, mut length) = (String::new(), 0);
            stream.read_line(&mut line).unwrap();
            loop {
                let mut header = String::new();
                stream.read_line(&mut header).unwrap();
                if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if header.trim().is_empty() {
                    break;
                }
            }
            std::io::copy(&mut stream.by_ref().take(length), &mut std::io::sink()).unwrap();
            asked.push(line.trim().to_owned());
            if status == KILLED {
                continue;
            }
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
        asked
    })
}

fn task(outcome: &str) -> String {
    let id = TaskId::from_u128(7);
    format!(
        r#"{{"task":{{"id":"{id}","kind":"reclaim","subject":"a","step":"","state":"running","done":0,"total":0,"started_ms":0,"ended_ms":0}},"outcome":{outcome}}}"#
    )
}

#[test]
fn urls_are_completed_and_checked() {
    for (text, url) in [
        ("m", "http://m:7470"),
        ("m:1", "http://m:1"),
        ("http://m:1/", "http://m:1"),
        ("::1", "http://[::1]:7470"),
        ("http://[::1]:9", "http://[::1]:9"),
        ("https://m", "https://m:7470"),
    ] {
        assert_eq!(base_url(text).unwrap(), url);
    }
    for text in ["", "ftp://m:1", "http://", "http://m/v1", "a b"] {
        assert_eq!(base_url(text).unwrap_err().kind, ErrorKind::BadRequest, "{text}");
    }
}

#[test]
fn a_dead_url_is_passed_over_and_the_living_one_comes_first_then() {
    let (url, serving) = manager(vec![(200, "[]".into()), (200, "[]".into())]);
    let dead = "http://127.0.0.1:1".to_owned();
    let link = ManagerLink::new(vec![dead.clone(), url.clone()]);
    link.servers().unwrap();
    assert_eq!(link.urls(), [url, dead]);
    link.areas().unwrap();
    assert_eq!(serving.join().unwrap(), ["GET /v1/servers HTTP/1.1", "GET /v1/areas HTTP/1.1"]);
}

#[test]
fn refusals_come_through_and_nonsense_is_named() {
    let refusal = Refusal::new(ErrorKind::NoSpace, "too small").hint("lend more");
    let (url, serving) =
        manager(vec![(507, serde_json::to_string(&refusal).unwrap()), (200, "<html>".into()), (502, "bad gateway".into())]);
    let link = ManagerLink::new(vec![url]);
    assert_eq!(link.pool().unwrap_err(), refusal);
    assert_eq!(link.pool().unwrap_err().kind, ErrorKind::Internal);
    assert!(link.pool().unwrap_err().message.contains("502"));
    serving.join().unwrap();
    let begun = Instant::now();
    let patient = link.with_patience(Duration::from_millis(500));
    assert_eq!(patient.pool().unwrap_err().kind, ErrorKind::Unreachable);
    assert!(begun.elapsed() >= Duration::from_millis(500), "it goes on for its patience");
    assert_eq!(ManagerLink::new(Vec::new()).pool().unwrap_err().kind, ErrorKind::BadRequest);
}

#[test]
fn a_task_is_repeated_until_it_has_ended() {
    let failed = r#"{"is":"failed","refusal":{"kind":"conflict","message":"in use"}}"#;
    let running = r#"{"is":"running"}"#;
    let answers = [running, running, r#"{"is":"done"}"#, running, failed];
    let (url, serving) = manager(answers.iter().map(|outcome| (200, task(outcome))).collect());
    let link = ManagerLink::new(vec![url]);
    let request = Request::Reclaim { area: "a".into(), reclaim: Reclaim { task: TaskId::from_u128(7) } };
    let mut heard = 0;
    assert_eq!(link.task(&request, &mut |_| heard += 1).unwrap().outcome, TaskOutcome::Done);
    assert_eq!(heard, 2);
    assert_eq!(link.task(&request, &mut |_| ()).unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(serving.join().unwrap().len(), 5);
}

#[test]
fn learned_urls_come_first_and_typed_ones_stay() {
    let link = ManagerLink::new(vec!["http://typed:1".into()]);
    assert!(link.learn(&["http://new:1".into()]));
    assert_eq!(link.urls(), ["http://new:1", "http://typed:1"]);
    assert!(!link.learn(&["http://new:1".into()]));
}

fn reclaim() -> Request {
    Request::Reclaim { area: "a".into(), reclaim: Reclaim { task: TaskId::from_u128(7) } }
}

fn stopping() -> (u16, String) {
    let refusal = Refusal::new(ErrorKind::Unreachable, "the manager is stopping");
    (503, serde_json::to_string(&refusal).unwrap())
}

/// The manager ends while the first request, or a later one, waits at it; another process takes its place after a while.
#[test]
fn a_task_goes_on_at_the_next_manager_however_the_first_one_ended() {
    let running = || (200, task(r#"{"is":"running"}"#));
    for first in
        [vec![(KILLED, String::new())], vec![stopping()], vec![running(), stopping()], vec![running(), (KILLED, String::new())]]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let count = first.len();
        let serving = thread::spawn(move || {
            let first = serve(listener, first).join().unwrap();
            thread::sleep(Duration::from_secs(3));
            let again = TcpListener::bind(address).unwrap();
            let second = serve(again, vec![stopping(), (200, task(r#"{"is":"done"}"#))]).join().unwrap();
            (first, second)
        });
        let link = ManagerLink::new(vec![format!("http://{address}")]);
        assert_eq!(link.task(&reclaim(), &mut |_| ()).unwrap().outcome, TaskOutcome::Done);
        let (first, second) = serving.join().unwrap();
        assert_eq!((first.len(), second.len()), (count, 2));
    }
}

#[test]
fn a_manager_that_was_never_there_is_not_waited_for() {
    let begun = Instant::now();
    let refusal = ManagerLink::new(vec!["http://127.0.0.1:1".into()]).task(&reclaim(), &mut |_| ()).unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::Unreachable);
    assert!(refusal.message.contains("http://127.0.0.1:1") && !refusal.hint.is_empty(), "{refusal:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn a_manager_that_answered_another_request_of_the_command_is_waited_for_and_other_requests_fail_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let first = serve(listener, vec![(200, "[]".into())]);
    let link = ManagerLink::new(vec![format!("http://{address}")]);
    link.servers().unwrap();
    first.join().unwrap();
    let begun = Instant::now();
    assert_eq!(link.servers().unwrap_err().kind, ErrorKind::Unreachable);
    assert!(begun.elapsed() < Duration::from_secs(1));
    let second = thread::spawn(move || {
        thread::sleep(Duration::from_secs(4));
        serve(TcpListener::bind(address).unwrap(), vec![(200, task(r#"{"is":"done"}"#))]).join().unwrap();
    });
    assert_eq!(link.clone().task(&reclaim(), &mut |_| ()).unwrap().outcome, TaskOutcome::Done);
    second.join().unwrap();
}
