//! What an administrator needs when something was lost.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sublet_types::PoolId;

use super::Key;

/// `sublet manager rebuild|export|import|check`.
#[derive(Subcommand, Debug)]
pub enum TableCommand {
    /// Have an empty manager take over the pool of the servers that ask for it, and rebuild its table from their labels.
    Rebuild(Rebuild),
    /// Write the whole table as one JSON document, lease secrets included. The manager must be stopped.
    Export {
        /// The data directory.
        #[arg(long)]
        data: PathBuf,
        /// Where to write it (made anew, 0600); standard output otherwise.
        #[arg(long)]
        out: Option<PathBuf>,
        /// What seals the pool's authority in the document; without it the authority is left out.
        #[command(flatten)]
        key: Key,
    },
    /// Make a table from such a document in an empty data directory.
    Import {
        /// The document.
        file: PathBuf,
        /// The data directory.
        #[arg(long)]
        data: PathBuf,
        /// What opens the pool's authority in the document; without it the authority is left out.
        #[command(flatten)]
        key: Key,
    },
    /// Check the table in a data directory. The manager must be stopped. Exit code 1 if anything is wrong.
    Check {
        /// The data directory.
        #[arg(long)]
        data: PathBuf,
    },
}

/// `sublet manager rebuild`.
#[derive(Args, Debug)]
pub struct Rebuild {
    /// Which pool, if servers of several ask.
    #[arg(long)]
    pub pool: Option<PoolId>,
    /// The table is not empty (restored from an older copy): take over what the labels have beyond it.
    #[arg(long)]
    pub reconcile: bool,
    /// All servers are there: end the rebuild, so that space is given out again.
    #[arg(long, conflicts_with_all = ["pool", "reconcile"])]
    pub finish: bool,
    /// Only show how it is.
    #[arg(long, conflicts_with_all = ["pool", "reconcile", "finish"])]
    pub show: bool,
}

/// `sublet volume accept`.
#[derive(Args, Debug)]
pub struct AcceptVolume {
    /// Name or id of the volume.
    pub volume: String,
    /// The copies to go on with: name or id of their area or server, or the id of a slice.
    pub leg: String,
    /// Also if that copy is stale by its own label: newer writes are lost.
    #[arg(long)]
    pub stale: bool,
}

/// `sublet server forget`.
#[derive(Args, Debug)]
pub struct Forget {
    /// Name or id of the server.
    pub server: String,
    /// It is gone for good, with its disks.
    #[arg(long, required = true)]
    pub lost: bool,
    /// Do it; otherwise only show what is lost with it.
    #[arg(long)]
    pub yes: bool,
}
