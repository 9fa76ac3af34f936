//! The process `sublet server`.

use std::path::PathBuf;

use sublet_api::{ErrorKind, Refusal};
use sublet_types::{Address, Name};

/// How to run a server.
#[derive(Clone, Debug)]
pub struct ServerArgs {
    /// The state directory.
    pub data: PathBuf,
    /// URLs of the manager.
    pub managers: Vec<String>,
    /// Where the agent listens; empty is loopback.
    pub listen: Vec<Address>,
    /// What borrowers are told, tried in this order; empty is where it listens.
    pub advertise: Vec<Address>,
    /// The failure zone; empty if none.
    pub zone: String,
    /// The wished name at the first registration; none takes the host's name.
    pub name: Option<Name>,
}

/// Runs a server until it is told to stop.
///
/// # Errors
/// Why it could not start or go on.
pub fn run(args: ServerArgs) -> Result<(), Refusal> {
    Err(Refusal::new(ErrorKind::Internal, format!("not yet: {}", args.data.display())))
}
