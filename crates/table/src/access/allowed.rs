//! Which request needs which rights.

use sublet_api::access::Role;
use sublet_api::request::Request;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{Epoch, ServerId, TaskId, VolumeId};

use super::Rights;
use crate::core::task_of;
use crate::records::VolumeRow;
use crate::table::Table;

/// Whether whoever has these rights may ask this.
///
/// # Errors
/// `Unauthenticated` for strangers, `Forbidden` for everybody else, with what is needed.
pub fn check(table: &Table, rights: Rights, request: &Request) -> Result<(), Refusal> {
    match rights {
        Rights::All => Ok(()),
        Rights::None if matches!(request, Request::Enter(_)) => Ok(()),
        Rights::None => Err(Refusal::new(ErrorKind::Unauthenticated, "this manager answers only to whom it knows")
            .hint("join the pool (`sublet server --join STRING`), or log in (`sublet login LINK`)")),
        Rights::Role(role) => check_role(role, request),
        Rights::Server(server) => check_server(table, server, request),
    }
}

fn check_role(role: Role, request: &Request) -> Result<(), Refusal> {
    let needed = needed(request)
        .ok_or_else(|| Refusal::new(ErrorKind::Forbidden, "only a server says this of itself").hint("do it at the server"))?;
    if role >= needed {
        return Ok(());
    }
    Err(Refusal::new(ErrorKind::Forbidden, format!("this takes the role {needed}, and yours is {role}"))
        .hint("ask an administrator, or log in as one (`sublet login LINK`)"))
}

/// The role that a person needs; none for what servers say of themselves.
fn needed(request: &Request) -> Option<Role> {
    let role = match request {
        Request::Pool
        | Request::Table { .. }
        | Request::Servers
        | Request::Areas
        | Request::Volumes
        | Request::Volume(_)
        | Request::Tasks
        | Request::Events { .. }
        | Request::RebuildState
        | Request::Renew(_) => Role::Viewer,
        Request::Unmount { unmount, .. } if unmount.force => Role::Administrator,
        Request::Transfer { transfer, .. } if transfer.force => Role::Administrator,
        Request::Return { give_back, .. } if give_back.server.is_none() || give_back.dissolve => Role::Administrator,
        Request::Borrow(_)
        | Request::Mount { .. }
        | Request::Unmount { .. }
        | Request::Return { .. }
        | Request::Transfer { .. }
        | Request::SetSeal { .. } => Role::Operator,
        Request::Register(_)
        | Request::Poll { .. }
        | Request::CheckArea { .. }
        | Request::ClientReport { .. }
        | Request::ChangeLeg { .. }
        | Request::Enter(_) => return None,
        Request::RenameServer { .. }
        | Request::SetLimits { .. }
        | Request::LeaveServer { .. }
        | Request::RevokeServer { .. }
        | Request::ForgetServer { .. }
        | Request::RenameArea { .. }
        | Request::AcceptArea { .. }
        | Request::Reclaim { .. }
        | Request::Rebuild(_)
        | Request::AcceptVolume { .. }
        | Request::CreateVolume(_)
        | Request::SetWay { .. }
        | Request::RenameVolume { .. }
        | Request::Replace { .. }
        | Request::Scrub { .. }
        | Request::ScrubEvery { .. }
        | Request::ControlTask { .. }
        | Request::CreateToken(_)
        | Request::Tokens
        | Request::RevokeToken { .. }
        | Request::AddPerson(_)
        | Request::People
        | Request::ChangePerson { .. }
        | Request::Audit { .. } => Role::Administrator,
    };
    Some(role)
}

fn check_server(table: &Table, me: ServerId, request: &Request) -> Result<(), Refusal> {
    // What else it says is not heard; that it is here again is, and it is told that it has left.
    let is_said = matches!(request, Request::Register(_) | Request::Poll { .. });
    if table.servers.get(&me).is_some_and(|row| row.left) && !is_said {
        let text = format!("{} has left this pool for good", table.server_name(me));
        return Err(Refusal::new(ErrorKind::Unauthenticated, text).hint("start it with an empty data folder and --join"));
    }
    let is_mine = |text: &str| table.server(text).is_ok_and(|row| row.id == me);
    let allowed = match request {
        // What it sees of these is its own.
        Request::Pool
        | Request::Table { .. }
        | Request::Servers
        | Request::Areas
        | Request::Volumes
        | Request::Tasks
        | Request::Events { .. }
        | Request::Renew(_) => true,
        Request::Register(register) => register.server == me,
        Request::Poll { server, .. } | Request::CheckArea { server, .. } => *server == me,
        Request::RenameServer { server, .. } | Request::LeaveServer { server } => is_mine(server),
        Request::RenameArea { area, .. } => table.area(area).map_or(true, |row| row.server == me),
        Request::Reclaim { area, .. } => is_known_task(table, request) || table.area(area).map_or(true, |row| row.server == me),
        Request::Borrow(borrow) => borrow.server == me,
        Request::Mount { volume, mount } => mount.server == me && is_owner(table, me, volume, request),
        Request::Return { volume, give_back } => {
            give_back.server == Some(me) && !give_back.dissolve && is_owner(table, me, volume, request)
        }
        Request::Transfer { volume, transfer } => !transfer.force && is_owner(table, me, volume, request),
        Request::Volume(volume) => table.volume(volume).map_or(true, |row| super::visible::is_visible(table, me, row)),
        Request::Unmount { volume, .. }
        | Request::RenameVolume { volume, .. }
        | Request::SetSeal { volume, .. }
        | Request::Replace { volume, .. }
        | Request::Scrub { volume, .. }
        | Request::ScrubEvery { volume, .. } => is_owner(table, me, volume, request),
        Request::ClientReport { volume, report } => is_holder(table, me, *volume, report.epoch),
        Request::ChangeLeg { volume, change } => is_holder(table, me, *volume, change.epoch),
        Request::SetLimits { .. }
        | Request::RevokeServer { .. }
        | Request::ForgetServer { .. }
        | Request::AcceptArea { .. }
        | Request::RebuildState
        | Request::Rebuild(_)
        | Request::AcceptVolume { .. }
        | Request::CreateVolume(_)
        | Request::SetWay { .. }
        | Request::ControlTask { .. }
        | Request::CreateToken(_)
        | Request::Tokens
        | Request::RevokeToken { .. }
        | Request::AddPerson(_)
        | Request::People
        | Request::ChangePerson { .. }
        | Request::Enter(_)
        | Request::Audit { .. } => false,
    };
    if allowed {
        return Ok(());
    }
    let text = format!("{} acts for itself only: this is not its own, or takes a person", table.server_name(me));
    Err(Refusal::new(ErrorKind::Forbidden, text).hint("log in with a role that may do it: `sublet login LINK`"))
}

/// Whether the task of this request has begun: whoever knows its id, 128 random bits, has begun it, and asks how it ends.
fn is_known_task(table: &Table, request: &Request) -> bool {
    task_of(request).is_some_and(|(id, _): (TaskId, _)| table.tasks.contains_key(&id))
}

fn is_owner(table: &Table, me: ServerId, volume: &str, request: &Request) -> bool {
    // That there is none is not a matter of rights.
    is_known_task(table, request) || table.volume(volume).map_or(true, |row| row.borrower == Some(me))
}

/// Whether a server speaks for the lease of this epoch. An epoch that is not the present one is let through: whoever has it
/// is to be told that it was fenced (F4), and what the epoch says is refused as it always was.
fn is_holder(table: &Table, me: ServerId, volume: VolumeId, epoch: Epoch) -> bool {
    let Some(row) = table.volumes.get(&volume) else { return true };
    row.holder_epoch() != Some(epoch) || holder(row) == Some(me)
}

/// Who holds the present lease: the borrower who has it mounted, or the coordinator of background work.
pub(super) fn holder(row: &VolumeRow) -> Option<ServerId> {
    match &row.lease {
        Some(_) => row.borrower,
        None => row.work.background.as_ref().map(|background| background.coordinator),
    }
}
