//! A daemon without its threads: the data thread, and a test in the place of the control threads.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use sublet_api::control::Identity;
use sublet_doors::real::{self, RealDoors};
use sublet_link::{Home, ManagerLink};
use sublet_types::{PoolId, ServerId};

use super::data::DataHandle;
use super::state::{Daemon, Facts};
use crate::agent::Agent;

/// The pool of the daemon.
pub(crate) const POOL: PoolId = PoolId::from_u128(1);

/// Ends the data thread with the test, also one that failed.
struct Stop(Arc<Daemon>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.data.stop(Ok(()));
    }
}

/// Runs a test with a daemon that is registered at a manager which does not answer, and with a folder.
pub(crate) fn with_daemon(test: impl FnOnce(&Arc<Daemon>, &Path) + Send + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_owned();
    real::run(async |doors: RealDoors| {
        let server = ServerId::from_u128(3);
        let agent = Agent::new(doors, server);
        let (handle, mut commands) = DataHandle::new();
        let identity = Identity { version: 1, server, name: "s".parse().unwrap(), pool: Some(POOL), managers: Vec::new() };
        let facts = Facts { zone: String::new(), advertise: Vec::new(), listen: Vec::new(), run: 1, boot: 77 };
        let link = ManagerLink::new(vec!["http://127.0.0.1:9".to_owned()]);
        let daemon = Arc::new(Daemon::load(Home::new(&folder), identity, link, handle, facts).unwrap());
        let thread = thread::spawn(move || {
            let stop = Stop(daemon);
            test(&stop.0, &folder);
        });
        commands.run(&agent).await.unwrap();
        thread.join().unwrap();
    })
    .unwrap();
}
