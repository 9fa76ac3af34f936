//! `sublet manager` and `sublet server`: the long-running roles, and what is done with servers.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use sublet_types::Name;

use super::{Forget, TableCommand, duration};

/// `sublet manager`: runs the manager, or looks after its table.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Manager {
    /// Rebuild, export, import or check the table.
    #[command(subcommand)]
    pub command: Option<TableCommand>,
    /// Where the table is kept.
    #[arg(long, required = true)]
    pub data: Option<PathBuf>,
    /// Where to listen; loopback until told otherwise.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:7470")]
    pub listen: Vec<String>,
    /// URLs that servers shall use, where they differ from the listening addresses.
    #[arg(long, value_delimiter = ',')]
    pub url: Vec<String>,
    /// Know who asks: TLS with the pool's own certificates, joining, roles, and the audit log.
    #[arg(long)]
    pub secure: bool,
    /// How long certificates are valid; they are renewed when two thirds of it are over.
    #[arg(long, value_parser = duration, default_value = "90d", requires = "secure")]
    pub certificate_lifetime: Duration,
}

/// `sublet server`: runs the daemon, or looks at servers.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServerCommand {
    /// List, rename, leave.
    #[command(subcommand)]
    pub command: Option<Servers>,
    /// The state directory; the same as --home.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Where to listen; loopback until told otherwise.
    #[arg(long, value_delimiter = ',')]
    pub listen: Vec<String>,
    /// Addresses that borrowers shall use, tried in this order (a separate storage network); the listening ones otherwise.
    #[arg(long, value_delimiter = ',')]
    pub advertise: Vec<String>,
    /// The failure zone: a rack, a room, a power line.
    #[arg(long, default_value = "")]
    pub zone: String,
    /// The name at the first registration; the host name otherwise.
    #[arg(long)]
    pub name: Option<Name>,
    /// Come into the pool with a string from `sublet token create`; harmless for a server that is in it already.
    #[arg(long, value_name = "STRING")]
    pub join: Option<String>,
    /// Get a new certificate with such a string although the server has joined before.
    #[arg(long, value_name = "STRING", conflicts_with = "join")]
    pub rejoin: Option<String>,
}

/// `sublet server ls|rename|leave`.
#[derive(Subcommand, Debug)]
pub enum Servers {
    /// List the servers.
    Ls,
    /// Give a server another name.
    Rename {
        /// Name or id.
        server: String,
        /// The new name.
        name: Name,
    },
    /// Let a server leave the pool; refused while it lends or borrows.
    Leave {
        /// Name or id; this server otherwise.
        server: Option<String>,
    },
    /// A lender is gone for good: first shows what is lost with it, then forgets it.
    Forget(Forget),
    /// Cut a server off: no certificate that it has counts any more, and what it has mounted is fenced.
    Revoke {
        /// Name or id.
        server: String,
    },
}
