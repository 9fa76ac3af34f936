//! A whole manager, as `sublet manager` runs it, with the real core and a real data directory. One test, because the
//! signal that ends the manager is the process's.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sublet_api::{ErrorKind, Refusal};
use sublet_manager::{ManagerArgs, run};
use sublet_types::Address;

fn args(data: &Path) -> ManagerArgs {
    ManagerArgs {
        data: data.to_owned(),
        listen: vec![Address::new("127.0.0.1", 0), Address::new("::1", 0)],
        urls: Vec::new(),
        security: None,
    }
}

fn start(data: &Path) -> (JoinHandle<Result<(), Refusal>>, Vec<String>) {
    let args = args(data);
    let thread = std::thread::spawn(move || run(args));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !data.join("pid").exists() {
        assert!(Instant::now() < deadline && !thread.is_finished(), "the manager does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    let told: Value = serde_json::from_slice(&std::fs::read(data.join("manager.json")).unwrap()).unwrap();
    assert_eq!(told["pid"], std::process::id());
    (thread, serde_json::from_value(told["urls"].clone()).unwrap())
}

fn get(url: &str) -> Value {
    ureq::get(url).call().unwrap().body_mut().read_json().unwrap()
}

fn stop(thread: JoinHandle<Result<(), Refusal>>) {
    let began = Instant::now();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
    thread.join().unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_manager_serves_on_all_its_addresses_alone_until_sigterm_and_comes_back_as_the_same() {
    let outer = tempfile::tempdir().unwrap();
    let data = outer.path().join("manager");
    let (thread, urls) = start(&data);
    assert_eq!(urls.len(), 2);

    let pool = get(&format!("{}/v1/pool", urls[0]));
    assert_eq!(pool["urls"], json!(urls));
    assert_eq!(get(&format!("{}/v1/pool", urls[1]))["pool"], pool["pool"]);
    assert_eq!(get(&format!("{}/v1/openapi.json", urls[0]))["info"]["version"], env!("CARGO_PKG_VERSION"));

    let id = "0123456789abcdef0123456789abcdef";
    let register =
        json!({ "server": id, "pool": null, "name": "server-a", "addresses": ["127.0.0.1:7471"], "version": "1", "run": 1 });
    let mut answer = ureq::post(format!("{}/v1/servers", urls[0])).send_json(register).unwrap();
    assert_eq!(answer.body_mut().read_json::<Value>().unwrap()["name"], "server-a");

    let second = run(args(&data)).unwrap_err();
    assert_eq!(second.kind, ErrorKind::Conflict);
    assert!(second.message.contains("another manager"), "{second}");

    let held = {
        let revision = get(&format!("{}/v1/table", urls[1]))["revision"].as_u64().unwrap();
        let url = format!("{}/v1/table?after={revision}&wait_ms=30000", urls[1]);
        std::thread::spawn(move || ureq::get(url).call().map(|answer| answer.status()))
    };
    std::thread::sleep(Duration::from_millis(300));
    assert!(!held.is_finished(), "it is held");
    stop(thread);
    assert!(matches!(held.join().unwrap(), Err(ureq::Error::StatusCode(503))));
    assert!(!data.join("pid").exists() && !data.join("manager.json").exists());

    let (thread, urls) = start(&data);
    let again = get(&format!("{}/v1/pool", urls[0]));
    assert_eq!((&again["pool"], &again["manager"]), (&pool["pool"], &pool["manager"]));
    assert_eq!(get(&format!("{}/v1/servers", urls[0]))[0]["name"], "server-a");
    stop(thread);
}
