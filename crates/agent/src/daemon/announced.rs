//! A manager whose address has changed looks for its servers: it is believed when it can be reached where it says, and is the
//! pool's.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};

use sublet_link::manager::base_url;
use sublet_link::{Access, ManagerLink};
use sublet_wire::message::Announce;

use super::state::Daemon;
use crate::agent::OnAnnounce;

/// The two ends: the agent's, which only looks at the pool, and the thread's.
pub(crate) fn channel(daemon: &Arc<Daemon>) -> (Box<OnAnnounce>, Receiver<Vec<String>>) {
    // One at a time: the manager announces itself again while it is not heard.
    let (sender, receiver) = sync_channel(1);
    let daemon = Arc::clone(daemon);
    let hear = move |announce: Announce| {
        if daemon.pool() != Some(announce.pool) {
            return Err("this server belongs to another pool");
        }
        if daemon.outgoing.manager_reached() {
            // The manager that is heard from tells its URLs with every poll.
            return Ok(());
        }
        match sender.try_send(announce.urls) {
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Disconnected(_)) => Err("this server is stopping"),
        }
    };
    (Box::new(hear), receiver)
}

/// The thread `announced`.
pub(crate) fn believe(daemon: &Arc<Daemon>, heard: &Receiver<Vec<String>>) {
    let access = || Access::Server(daemon.home.credentials_path());
    while let Ok(urls) = heard.recv() {
        let urls: Vec<String> = urls.iter().filter_map(|url| base_url(url).ok()).collect();
        for url in urls {
            let candidate = vec![url.clone()];
            match ManagerLink::new(candidate.clone()).with_access(access()).pool() {
                Ok(pool) if Some(pool.pool) == daemon.pool() => {
                    if daemon.link.learn(&candidate) {
                        tracing::info!(url, "the manager is found at another address");
                    }
                    // Clients of mounted volumes and the command line look there.
                    daemon.change_identity(|identity| identity.managers = daemon.link.urls());
                    break;
                }
                Ok(pool) => tracing::warn!(url, pool = %pool.pool.short(), "another pool's manager is there; not believed"),
                Err(refusal) => tracing::warn!(url, %refusal, "the manager says that it is there, and is not"),
            }
        }
    }
}
