//! Blocking links of the processes of one machine: HTTP to the manager, JSON lines to the local control sockets, and the
//! paths of a state directory (`SUBLET_HOME`).
//!
//! Nothing here is on the data path. Callers are plain threads of the server, the client and the command line.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod entry;
pub mod guard;
pub mod home;
pub mod lines;
pub mod manager;
pub mod origin;
pub mod private;
mod questions;
pub mod route;
pub mod secure;
pub mod socket;

pub use guard::{hide_memory, private_dir, private_files, raise_file_limit};
pub use home::{Home, MountHome};
pub use lines::{AnswerLine, LineConn, ask};
pub use manager::ManagerLink;
pub use origin::machine_of;
pub use private::{PidFile, read_json, read_record, write_private};
pub use secure::{Access, read_credentials};
pub use socket::{connect, forget_directory, listen, socket_path};
