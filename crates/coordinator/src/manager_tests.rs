//! Reports against a manager that is only a listening socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::FutureExt;
use sublet_api::request::ClientReport;
use sublet_api::view::PathState;
use sublet_doors::real::run;
use sublet_types::{Epoch, VolumeId};
use sublet_volume::PathStatus;

use super::{Heard, Manager};
use crate::Reports as _;

const LIMIT: Duration = Duration::from_secs(10);

/// Takes requests of one connection, passes the reports on and answers; held ones are held for a while.
fn serve(stream: TcpStream, reports: &Sender<ClientReport>, refuse: bool) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let report: ClientReport = serde_json::from_slice(&body).unwrap();
        if report.hold {
            thread::sleep(Duration::from_millis(500));
        }
        let _ = reports.send(report);
        let (status, answer) = if refuse {
            ("409 Conflict", r#"{"kind":"stale_epoch","message":"epoch 2 rules"}"#)
        } else {
            ("200 OK", r#"{"lenders":[],"urls":[]}"#)
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len());
        if reader.get_mut().write_all((head + answer).as_bytes()).is_err() {
            return;
        }
    }
}

fn fake(refuse: bool) -> (String, Receiver<ClientReport>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, reports) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            thread::spawn(move || serve(stream.unwrap(), &sender, refuse));
        }
    });
    (url, reports)
}

fn status(path: PathState) -> PathStatus {
    PathStatus { path, ..PathStatus::default() }
}

fn until(reports: &Receiver<ClientReport>, wanted: impl Fn(&ClientReport) -> bool) {
    let begun = Instant::now();
    while !wanted(&reports.recv_timeout(LIMIT).unwrap()) {
        assert!(begun.elapsed() < LIMIT);
    }
}

#[test]
fn changes_are_told_at_once_beside_a_held_report_and_the_last_word_is_leaving() {
    let (url, reports) = fake(false);
    let manager = Manager::new(vec![url], None, VolumeId::from_u128(1), Epoch { number: 1, random: 2 });
    let (hear, heard) = futures_channel::mpsc::unbounded();
    manager.update(&status(PathState::Open));
    manager.start(&hear).unwrap();
    until(&reports, |report| report.hold && report.path == PathState::Open);
    manager.update(&status(PathState::Lost));
    until(&reports, |report| !report.hold && report.path == PathState::Lost);
    run(async |_| manager.leave(true).await).unwrap();
    until(&reports, |report| report.leaving);
    // What changes afterwards is no business of anybody. (The held report that was under way still ends.)
    manager.update(&status(PathState::Idle));
    thread::sleep(Duration::from_millis(700));
    assert!(reports.try_iter().all(|report| report.hold && report.path != PathState::Idle));
    drop(heard);
}

#[test]
fn f4_a_newer_epoch_at_the_manager_is_heard() {
    let (url, _reports) = fake(true);
    let manager = Manager::new(vec![url], None, VolumeId::from_u128(1), Epoch { number: 1, random: 2 });
    let (hear, mut heard) = futures_channel::mpsc::unbounded();
    manager.update(&status(PathState::Open));
    manager.start(&hear).unwrap();
    let begun = Instant::now();
    loop {
        if let Some(Some(Heard::StaleEpoch(text))) = heard.next().now_or_never() {
            assert!(text.contains("epoch 2"));
            return;
        }
        assert!(begun.elapsed() < LIMIT, "the refusal was not heard");
        thread::sleep(Duration::from_millis(5));
    }
}
