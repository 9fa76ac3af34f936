//! What people and the manager are told of the path.

use sublet_api::request::ResyncReport;
use sublet_api::view::PathState;

/// How the path is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PathStatus {
    /// Open, idle or lost; none once it is closed.
    pub path: PathState,
    /// What is the matter, for people; empty if nothing is.
    pub reason: String,
    /// Lenders that do not answer, by name.
    pub missing: Vec<String>,
    /// Copies to stale legs that are going on.
    pub resync: Vec<ResyncReport>,
}
