//! The long-running roles: `manager`, `server`, and the client that `mount` starts.

use sublet_agent::daemon::ServerArgs;
use sublet_api::{ErrorKind, Refusal};
use sublet_client::ClientArgs;
use sublet_manager::{ManagerArgs, Security};
use sublet_types::Address;
use sublet_types::limits::{AGENT_PORT, MANAGER_PORT};

use super::access::parsed;
use crate::args::{self, addresses};
use crate::context::Context;

fn read_addresses(texts: &[String], port: u16) -> Result<Vec<Address>, Refusal> {
    addresses(texts, port).map_err(|e| Refusal::new(ErrorKind::BadRequest, e))
}

pub(super) fn manager(options: args::Manager) -> Result<(), Refusal> {
    let listen = read_addresses(&options.listen, MANAGER_PORT)?;
    let missing = || Refusal::new(ErrorKind::BadRequest, "the manager needs a data directory").hint("name one with --data");
    let data = options.data.ok_or_else(missing)?;
    let security = options.secure.then_some(Security { lifetime: Some(options.certificate_lifetime) });
    sublet_manager::run(ManagerArgs { data, listen, urls: options.url, security })
}

/// Where the manager is as far as it was said. A server that joins or has joined knows it otherwise; any other one looks on this
/// machine.
fn managers(c: &Context, options: &args::ServerCommand) -> Vec<String> {
    let given = c.given_urls();
    let is_known = options.join.is_some() || options.rejoin.is_some() || c.home.credentials_path().exists();
    if !given.is_empty() || is_known { given } else { c.manager_urls() }
}

pub(super) fn server(c: &Context, options: args::ServerCommand) -> Result<(), Refusal> {
    let listen = if options.listen.is_empty() {
        vec![Address::new("127.0.0.1", AGENT_PORT)]
    } else {
        read_addresses(&options.listen, AGENT_PORT)?
    };
    sublet_agent::daemon::run(ServerArgs {
        data: c.home.root().to_owned(),
        managers: managers(c, &options),
        advertise: read_addresses(&options.advertise, AGENT_PORT)?,
        listen,
        zone: options.zone,
        name: options.name,
        join: options.join.as_deref().map(parsed).transpose()?,
        rejoin: options.rejoin.as_deref().map(parsed).transpose()?,
    })
}

pub(super) fn client(options: args::Client) -> Result<(), Refusal> {
    // A session of its own: the client outlives the terminal, the shell and the server's daemon. It fails only if the process
    // leads a session already, which is as good.
    let _ = rustix::process::setsid();
    sublet_client::run(ClientArgs {
        dir: options.dir,
        fuse: options.fuse,
        idle_close: options.idle_close,
        fail_after: options.fail_after,
        key_stdin: options.key_stdin,
        ready_fd: options.ready_fd,
    })
}
