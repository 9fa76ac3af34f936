//! A manager over a scripted core, on a port of its own, reached as everybody else reaches it.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use sublet_api::Refusal;
use sublet_api::access::DrawnToken;
use sublet_api::request::{Request, Response};
use sublet_table::{Action, Event, Outside};
use sublet_types::{Address, PoolId};
use tokio::sync::oneshot;

use crate::machine::Machine;
use crate::run::{ManagerArgs, Shell};

/// A core that does what a closure says, and never wants to be woken.
struct Scripted<F>(F);

impl<F: FnMut(Event) -> Vec<Action>> Machine for Scripted<F> {
    fn apply(&mut self, _: &mut Outside<'_>, event: Event) -> Vec<Action> {
        (self.0)(event)
    }

    fn pool(&self) -> Result<PoolId, Refusal> {
        Ok(PoolId::from_u128(1))
    }

    fn first_link(&mut self, _: &mut Outside<'_>, _: bool) -> Result<Option<DrawnToken>, Refusal> {
        Ok(None)
    }

    fn next_wake_ms(&self) -> Option<u64> {
        None
    }
}

/// A running manager; it stops when dropped.
pub(crate) struct Manager {
    pub(crate) address: SocketAddr,
    pub(crate) agent: ureq::Agent,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), Refusal>>>,
    _data: tempfile::TempDir,
}

impl Manager {
    /// One whose core answers every request at once.
    pub(crate) fn answering(mut answer: impl FnMut(Request) -> Response + Send + 'static) -> Self {
        Self::scripted(move |event| match event {
            Event::Request { conn, request, .. } => vec![Action::Reply { conn, response: answer(request) }],
            Event::Gone { .. } | Event::Tick => Vec::new(),
        })
    }

    /// One whose core does what the closure says.
    pub(crate) fn scripted(script: impl FnMut(Event) -> Vec<Action> + Send + 'static) -> Self {
        let data = tempfile::tempdir().unwrap();
        let args = ManagerArgs {
            data: data.path().to_owned(),
            listen: vec![Address::new("127.0.0.1", 0)],
            urls: Vec::new(),
            security: None,
        };
        let shell = Shell::open(&args, |_, _, _| Ok(Scripted(script))).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&std::fs::read(data.path().join("manager.json")).unwrap()).unwrap();
        let address = told["urls"][0].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(shell.serve(async move { drop(stopped.await) }))
        });
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        Self { address, agent, stop: Some(stop), thread: Some(thread), _data: data }
    }

    /// Asks; the answer's status and JSON.
    pub(crate) fn ask(&self, method: &str, path: &str, json: Option<&str>) -> (u16, serde_json::Value) {
        let headers: &[_] = if json.is_some() { &[("content-type", "application/json")] } else { &[] };
        self.ask_with(method, path, headers, json.unwrap_or_default().as_bytes())
    }

    /// Asks with these headers.
    pub(crate) fn ask_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, serde_json::Value) {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = if body.is_empty() {
            self.agent.run(request.body(()).unwrap()).unwrap()
        } else {
            self.agent.run(request.body(body).unwrap()).unwrap()
        };
        let text = answer.body_mut().read_to_string().unwrap();
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{method} {path}: {error}: {text}"));
        (answer.status().as_u16(), json)
    }

    /// Stops it as a signal would; how it ended.
    pub(crate) fn stop(&mut self) -> Result<(), Refusal> {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until it ends by itself; how it ended.
    pub(crate) fn wait(&mut self) -> Result<(), Refusal> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let ended = self.stop();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}
