//! The pool that is tortured: a manager and five servers, each in a network namespace of its own where this machine can make
//! them; server-a and server-b borrow volumes of all usage ways from the other three.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use super::nets::Nets;
use crate::pool::{Pool, free_port, name, scratch};
use crate::process::{Process, program, start_with};
use crate::wait::wait_for;

/// How many servers there are.
pub const SERVERS: usize = 5;
/// The lenders among them.
pub const LENDERS: std::ops::Range<usize> = 2..SERVERS;
/// How long a process may take until it is up again, on a busy machine.
const UP_LIMIT: Duration = Duration::from_secs(60);

/// A volume of the site.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// Its usage way.
    pub way: &'static str,
    /// Where it lies, as `volume create --on` takes it.
    pub on: &'static str,
    /// The server that borrows it.
    pub borrower: usize,
}

/// Volumes of all usage ways. Those of two copies go on whichever lender is away; `fio` is written by fio.
pub const VOLUMES: &[Plan] = &[
    Plan { name: "single", way: "single", on: "c2:16M", borrower: 0 },
    Plan { name: "integrated", way: "integrated", on: "c1:10M,d1:9M", borrower: 1 },
    Plan { name: "doubled", way: "doubled", on: "c1:24M,d1:24M", borrower: 0 },
    Plan { name: "both", way: "doubled", on: "d1:12M,e1:12M,e1:14M,c1:14M", borrower: 1 },
    Plan { name: "divided-1", way: "divided", on: "e2:12M", borrower: 0 },
    Plan { name: "divided-2", way: "divided", on: "e2:13M", borrower: 1 },
    Plan { name: "fio", way: "doubled", on: "d1:20M,e1:20M", borrower: 0 },
];

/// A process that can be tortured, apart from the clients of volumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Daemon {
    /// The manager.
    Manager,
    /// A server.
    Server(usize),
}

impl std::fmt::Display for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Manager => f.write_str("manager"),
            Self::Server(server) => f.write_str(&name(*server)),
        }
    }
}

/// The pool, and how its processes are started.
pub struct Site {
    /// The pool.
    pub pool: Pool,
    addresses: Vec<String>,
    /// The boot identity that each server is started with, once it has been "rebooted".
    boots: Mutex<BTreeMap<usize, u64>>,
}

impl Site {
    /// Starts a manager and so many servers that lend nothing.
    ///
    /// # Panics
    /// Something does not come up.
    pub fn bare(servers: usize) -> Self {
        let pool = if Nets::possible() {
            Pool::inside(Nets::new(servers + 1))
        } else {
            eprintln!("no network namespaces here (they need root, iproute2 and nftables): without partitions");
            Pool::empty(scratch())
        };
        let address = |node| match pool.nets() {
            Some(_) => format!("{}:7470", Nets::address(node)),
            None => format!("127.0.0.1:{}", free_port("127.0.0.1")),
        };
        let addresses = (0..=servers).map(address).collect();
        let site = Self { pool, addresses, boots: Mutex::default() };
        site.start(Daemon::Manager);
        for server in 0..servers {
            site.start(Daemon::Server(server));
        }
        for server in 0..servers {
            site.wait_up(server);
        }
        site
    }

    /// Starts everything, lends areas, makes the volumes and mounts them as sockets.
    ///
    /// # Panics
    /// Something does not come up.
    pub fn new() -> Self {
        let site = Self::bare(SERVERS);
        for server in LENDERS {
            let letter = char::from(b'a' + server as u8);
            for (number, size) in [(1, "80M"), (2, "28M")] {
                let folder = site.pool.home(server).join(format!("disk{number}"));
                std::fs::create_dir_all(&folder).unwrap();
                let line = format!("lend {} --size {size} --name {letter}{number} --sparse --keep-free 0%", folder.display());
                site.pool.ok(server, &line);
            }
        }
        for plan in VOLUMES {
            site.pool.ok(plan.borrower, &format!("volume create {} --way {} --on {}", plan.name, plan.way, plan.on));
            site.pool.ok(plan.borrower, &format!("borrow {}", plan.name));
            site.pool.ok(plan.borrower, &format!("mount {} --as socket", plan.name));
        }
        site
    }

    /// The state directory of a process.
    pub fn home(&self, daemon: Daemon) -> PathBuf {
        match daemon {
            Daemon::Manager => self.pool.manager_home(),
            Daemon::Server(server) => self.pool.home(server),
        }
    }

    /// Its number among the machines.
    pub fn node(daemon: Daemon) -> usize {
        match daemon {
            Daemon::Manager => 0,
            Daemon::Server(server) => server + 1,
        }
    }

    /// The running process, if there is one.
    pub fn process(&self, daemon: Daemon) -> Option<Process> {
        Process::of(&self.home(daemon))
    }

    /// From now on the server is started as after a restart of its machine.
    pub fn reboot(&self, server: usize, boot: u64) {
        self.boots.lock().unwrap().insert(server, boot);
    }

    /// Starts a process; it need not come up at once.
    pub fn start(&self, daemon: Daemon) {
        let node = Self::node(daemon);
        let home = self.home(daemon).to_string_lossy().into_owned();
        let program = program().to_string_lossy().into_owned();
        let (manager, own) = (&self.addresses[0], &self.addresses[node]);
        let mut line = self.pool.nets().map(|nets| nets.prefix(node)).unwrap_or_default();
        let mut env = Vec::new();
        match daemon {
            Daemon::Manager => {
                line.extend([&program, "manager", "--data", &home, "--listen", manager].map(str::to_owned));
            }
            Daemon::Server(server) => {
                let url = format!("http://{manager}");
                let words = ["--manager", &url, "server", "--data", &home, "--listen", own, "--name", &name(server)];
                line.push(program);
                line.extend(words.map(str::to_owned));
                if let Some(boot) = self.boots.lock().unwrap().get(&server) {
                    env.push(("SUBLET_BOOT_ID", format!("{boot:032x}")));
                }
            }
        }
        start_with(&self.home(daemon), &line, &env);
    }

    /// Starts a process unless it runs, and waits until it is up.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    pub fn revive(&self, daemon: Daemon) {
        if self.process(daemon).is_none() {
            self.start(daemon);
        }
        match daemon {
            Daemon::Manager => {
                wait_for("the manager to answer", UP_LIMIT, || self.pool.manager_answers());
            }
            Daemon::Server(server) => self.wait_up(server),
        }
    }

    #[track_caller]
    fn wait_up(&self, server: usize) {
        let home = self.pool.home(server);
        wait_for(&format!("{} to be up", name(server)), UP_LIMIT, || Process::of(&home).is_some() && self.pool.is_up(server));
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}
