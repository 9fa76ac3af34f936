//! `sublet playground`: a whole pool on this machine, of real processes.
//!
//! Layout of the directory `D` (checks and scripts rely on it): `D/manager`, `D/server-a` ... are the state directories, each
//! with the process's `pid` file and `log`; `D/env` has shell `export` lines; `D/playground.json` remembers the ports, so that
//! starting it again on the same `D` brings the same pool back.

pub mod processes;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sublet_api::{ErrorKind, Refusal};

use crate::args;
use crate::interrupt;
use processes::{Sublet, stop};

/// How long a process may take until it is up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// What is remembered between two starts.
#[derive(Serialize, Deserialize)]
struct Memory {
    manager_port: u16,
    server_ports: Vec<u16>,
}

/// A pool in a directory.
pub struct Playground {
    dir: PathBuf,
    memory: Memory,
}

fn io_refusal(what: &str, path: &Path, error: &io::Error) -> Refusal {
    Refusal::new(ErrorKind::Io, format!("cannot {what} {}: {error}", path.display()))
}

/// The name of the server with that number: `server-a`, `server-b`, ...
pub fn server_name(number: usize) -> String {
    format!("server-{}", letter(number))
}

fn letter(number: usize) -> char {
    u8::try_from(number).ok().and_then(|n| b'a'.checked_add(n)).map_or('z', char::from)
}

/// The lowest port that is chosen.
const PORT_MIN: u16 = 10_000;

/// A port that is free now and not `taken`, below those that the kernel gives to outgoing connections: one of these could be
/// taken by any of the pool's own connections before it is listened on, or while a server is being started again.
fn free_port(taken: &[u16]) -> Result<u16, Refusal> {
    let outgoing = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = outgoing.split_whitespace().next().and_then(|first| first.parse::<u16>().ok()).unwrap_or(32_768);
    let count = end.saturating_sub(PORT_MIN);
    for _ in 0..1000 {
        let mut bytes = [0; 2];
        if count == 0 || getrandom::fill(&mut bytes).is_err() {
            break;
        }
        let port = PORT_MIN + u16::from_le_bytes(bytes) % count;
        if !taken.contains(&port) && is_free(port) {
            return Ok(port);
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot find a free port on 127.0.0.1: {e}")))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

impl Playground {
    /// Starts all processes of a new pool, or of the one that `dir` holds already.
    ///
    /// # Errors
    /// Which process did not come up, with the end of its log; what had been started is stopped again.
    pub fn start(options: &args::Playground) -> Result<Self, Refusal> {
        std::fs::create_dir_all(&options.dir).map_err(|e| io_refusal("make", &options.dir, &e))?;
        let dir = options.dir.canonicalize().map_err(|e| io_refusal("find", &options.dir, &e))?;
        if processes::running(&dir).next().is_some() {
            return Err(Refusal::new(ErrorKind::Conflict, format!("a playground is running in {}", dir.display()))
                .hint(format!("end it with: sublet playground --dir {} --stop", dir.display())));
        }
        let memory = Self::remember(&dir, options)?;
        let playground = Self { dir, memory };
        let up = playground.start_all(options).and_then(|()| interrupt::check());
        if let Err(refusal) = up {
            stop(&playground.dir)?;
            return Err(refusal);
        }
        Ok(playground)
    }

    /// The ports: those of the last start where they are free, as many servers as were ever there.
    fn remember(dir: &Path, options: &args::Playground) -> Result<Memory, Refusal> {
        let path = dir.join("playground.json");
        let old: Option<Memory> = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let manager_port = match (options.manager_port, old.as_ref().map(|m| m.manager_port)) {
            (Some(port), _) => port,
            (None, Some(port)) if is_free(port) => port,
            _ => free_port(&[])?,
        };
        let old_ports = old.map(|m| m.server_ports).unwrap_or_default();
        let count = usize::from(options.servers).max(old_ports.len());
        let mut server_ports = Vec::new();
        for number in 0..count {
            let given = options.server_port.map(|first| first.saturating_add(u16::try_from(number).unwrap_or(u16::MAX)));
            let port = match (given, old_ports.get(number)) {
                (Some(port), _) => port,
                (None, Some(port)) if is_free(*port) => *port,
                _ => {
                    let mut taken = server_ports.clone();
                    taken.push(manager_port);
                    free_port(&taken)?
                }
            };
            server_ports.push(port);
        }
        let memory = Memory { manager_port, server_ports };
        let text = serde_json::to_vec_pretty(&memory).map_err(|e| Refusal::new(ErrorKind::Internal, e.to_string()))?;
        std::fs::write(&path, text).map_err(|e| io_refusal("write", &path, &e))?;
        Ok(memory)
    }

    fn start_all(&self, options: &args::Playground) -> Result<(), Refusal> {
        self.start_manager()?;
        for number in 0..self.servers() {
            self.spawn_server(number)?;
        }
        for number in 0..self.servers() {
            self.wait_for_server(number)?;
        }
        if !options.no_areas {
            for number in 0..self.servers() {
                self.lend_first_area(number, options)?;
            }
        }
        self.write_env()
    }

    /// The pool's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many servers there are.
    pub fn servers(&self) -> usize {
        self.memory.server_ports.len()
    }

    /// The manager's URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.memory.manager_port)
    }

    /// The state directory of a server.
    pub fn home(&self, number: usize) -> PathBuf {
        self.dir.join(server_name(number))
    }

    /// The command `sublet`, acting as that server.
    pub fn sublet(&self, number: usize) -> Sublet {
        Sublet::new(&self.url(), &self.home(number))
    }

    /// Starts the manager and waits until it answers.
    ///
    /// # Errors
    /// It did not come up.
    pub fn start_manager(&self) -> Result<(), Refusal> {
        let data = self.dir.join("manager");
        let listen = format!("127.0.0.1:{}", self.memory.manager_port);
        processes::spawn(&data, &["manager", "--data", &data.to_string_lossy(), "--listen", &listen])?;
        self.wait(&data, || self.sublet(0).run(&["server", "ls", "--json"]).is_ok())
    }

    /// Starts one server; see [`Playground::wait_for_server`].
    ///
    /// # Errors
    /// The process could not be started.
    pub fn spawn_server(&self, number: usize) -> Result<(), Refusal> {
        let home = self.home(number);
        let port = self.memory.server_ports.get(number).copied().unwrap_or_default();
        let listen = format!("127.0.0.1:{port}");
        let args = [
            "--manager",
            &self.url(),
            "server",
            "--data",
            &home.to_string_lossy(),
            "--listen",
            &listen,
            "--name",
            &server_name(number),
        ];
        processes::spawn(&home, &args)
    }

    /// Waits until a server has registered and serves its areas.
    ///
    /// # Errors
    /// It did not come up, with the end of its log.
    pub fn wait_for_server(&self, number: usize) -> Result<(), Refusal> {
        let sublet = self.sublet(number);
        self.wait(&self.home(number), || {
            let status = sublet.json(&["status", "--json"]);
            status.is_ok_and(|s| s.pointer("/server/manager_reached").and_then(serde_json::Value::as_bool) == Some(true))
        })
    }

    fn wait(&self, home: &Path, up: impl Fn() -> bool) -> Result<(), Refusal> {
        let begun = Instant::now();
        while !up() {
            interrupt::check()?;
            let dead = processes::pid_of(home).is_none() && begun.elapsed() > Duration::from_secs(2);
            if dead || begun.elapsed() > START_LIMIT {
                let log = home.join("log");
                let end = processes::end_of(&log);
                return Err(Refusal::new(
                    ErrorKind::TimedOut,
                    format!("{} did not come up; the end of its log:\n{end}", home.display()),
                )
                .hint(format!("see {}", log.display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Each server lends one area: `a1`, `b1`, ...
    fn lend_first_area(&self, number: usize, options: &args::Playground) -> Result<(), Refusal> {
        let sublet = self.sublet(number);
        let status = sublet.json(&["status", "--json"])?;
        if status.pointer("/server/areas").and_then(|a| a.as_array()).is_some_and(|areas| !areas.is_empty()) {
            return Ok(());
        }
        let folder = self.home(number).join("disk");
        std::fs::create_dir_all(&folder).map_err(|e| io_refusal("make", &folder, &e))?;
        let size = options.area_size.bytes().to_string();
        let name = format!("{}1", letter(number));
        let folder = folder.to_string_lossy();
        sublet.run(&["lend", &folder, "--size", &size, "--name", &name, "--sparse", "--keep-free", "0%"]).map(drop)
    }

    fn write_env(&self) -> Result<(), Refusal> {
        let path = self.dir.join("env");
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let text = format!(
            "export SUBLET_MANAGER={}\nexport SUBLET_HOME={}\n",
            quoted(&self.url()),
            quoted(&self.home(0).to_string_lossy())
        );
        std::fs::write(&path, text).map_err(|e| io_refusal("write", &path, &e))
    }
}

/// `sublet playground`.
///
/// # Errors
/// What did not come up or could not be stopped.
pub fn run(options: &args::Playground) -> Result<(), Refusal> {
    if options.stop {
        let dir = options.dir.canonicalize().map_err(|e| io_refusal("find", &options.dir, &e))?;
        return stop(&dir);
    }
    interrupt::watch()?;
    let playground = Playground::start(options)?;
    let dir = playground.dir().display();
    println!("manager   {}", playground.url());
    println!("servers   {} to {}", server_name(0), server_name(playground.servers().saturating_sub(1)));
    println!("to use it: . {dir}/env     to act as another server: sublet --home {dir}/server-b ...");
    if options.detach {
        println!("to end it: sublet playground --dir {dir} --stop");
    }
    println!("ready");
    if options.detach {
        return Ok(());
    }
    wait_for_the_end(playground.dir());
    println!("stopping");
    stop(playground.dir())
}

/// Waits for Ctrl-C, SIGTERM, or until every process has been ended from elsewhere.
fn wait_for_the_end(dir: &Path) {
    let (end, ended) = mpsc::channel();
    let wake = move || {
        // Nobody waits any more if it has ended by itself.
        let _ = end.send(());
    };
    interrupt::during(wake, || {
        while ended.recv_timeout(Duration::from_secs(1)).is_err() && processes::running(dir).next().is_some() {}
    });
}
