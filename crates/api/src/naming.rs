//! Names of areas that are about to be lent.

use serde::{Deserialize, Serialize};
use sublet_types::{AreaId, Name};

/// `POST /v1/servers/{server}/areas/check`: may this server register an area of that name?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckArea {
    /// The wished name; none asks for a proposal.
    #[serde(default)]
    pub name: Option<Name>,
    /// The area's id, if its label already has one.
    #[serde(default)]
    pub area: Option<AreaId>,
}

/// The answer to [`CheckArea`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AreaName {
    /// The name to use.
    pub name: Name,
}
