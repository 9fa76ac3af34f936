//! The audit log: who has asked for which change, and how it ended. Written by the shell, one line each, before the answer
//! leaves.

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::access::{AuditLine, Caller, ChangePerson, Entry};
use sublet_api::request::{Request, Response, TaskOutcome};
use sublet_types::TaskId;

use super::{Action, Core};
use crate::access;
use crate::store::Store;

/// Tasks that were asked for and have not ended, so that their repeated requests are told once; more are told again.
const BEGUN_MAX: usize = 10_000;

/// What a server asks for at every start.
const REGISTER: &str = "register";

/// Changes that are asked for and not answered yet.
#[derive(Default)]
pub(super) struct Audit {
    asked: BTreeMap<u64, Asked>,
    begun: BTreeSet<TaskId>,
}

struct Asked {
    who: String,
    what: &'static str,
    subject: String,
}

impl<S: Store> Core<S> {
    /// Notes who asks for a change; the line is written when it is answered.
    pub(super) fn audit_asked(&mut self, conn: u64, caller: &Caller, request: &Request) {
        if matches!(caller, Caller::Manager) {
            return;
        }
        if let Some((what, subject)) = change(request) {
            let who = access::named(&self.table, caller);
            self.audit.asked.insert(conn, Asked { who, what, subject });
        }
    }

    /// It is answered.
    pub(super) fn audit_answered(&mut self, conn: u64, response: &Response) {
        let Some(asked) = self.audit.asked.remove(&conn) else { return };
        if asked.what == REGISTER && matches!(response, Response::Refused(_)) {
            // It tries again and again, and the manager's log has it.
            return;
        }
        let result = match response {
            Response::Refused(refusal) => format!("refused: {refusal}"),
            Response::Task(answer) => {
                let id = answer.task.id;
                let is_new = !self.audit.begun.contains(&id);
                match &answer.outcome {
                    TaskOutcome::Running if !is_new => return,
                    TaskOutcome::Running => {
                        if self.audit.begun.len() >= BEGUN_MAX {
                            self.audit.begun.clear();
                        }
                        self.audit.begun.insert(id);
                        "begun".to_owned()
                    }
                    outcome => {
                        self.audit.begun.remove(&id);
                        match outcome {
                            TaskOutcome::Failed { refusal } => format!("failed: {refusal}"),
                            _ => "done".to_owned(),
                        }
                    }
                }
            }
            _ => "done".to_owned(),
        };
        self.audit_line(conn, asked, result);
    }

    /// Whoever asked does not wait for the answer.
    pub(super) fn audit_gone(&mut self, conn: u64) {
        if let Some(asked) = self.audit.asked.remove(&conn) {
            self.audit_line(conn, asked, "begun; whoever asked is gone".to_owned());
        }
    }

    fn audit_line(&mut self, conn: u64, asked: Asked, result: String) {
        let Asked { who, what, subject } = asked;
        let line = AuditLine { at_ms: self.now_ms, who, from: String::new(), what: what.to_owned(), subject, result };
        self.actions.push(Action::Audit { conn, line });
    }
}

/// What a request changes, and of what; nothing if it only looks, or is what servers and clients say of themselves all the time.
fn change(request: &Request) -> Option<(&'static str, String)> {
    Some(match request {
        Request::Pool
        | Request::Table { .. }
        | Request::Servers
        | Request::Areas
        | Request::Volumes
        | Request::Volume(_)
        | Request::Tasks
        | Request::Events { .. }
        | Request::RebuildState
        | Request::Tokens
        | Request::People
        | Request::Audit { .. }
        | Request::CheckArea { .. }
        | Request::Poll { .. }
        | Request::ClientReport { .. } => return None,
        Request::Register(register) => (REGISTER, register.name.to_string()),
        Request::RenameServer { server, rename } => ("rename server", format!("{server} to {}", rename.name)),
        Request::SetLimits { server, .. } => ("limits", server.clone()),
        Request::LeaveServer { server } => ("leave", server.clone()),
        Request::RevokeServer { server } => ("revoke server", server.clone()),
        Request::ForgetServer { server, forget } => {
            (if forget.confirm { "forget server" } else { "ask what goes with a server" }, server.clone())
        }
        Request::RenameArea { area, rename } => ("rename area", format!("{area} to {}", rename.name)),
        Request::AcceptArea { area } => ("accept area", area.clone()),
        Request::Reclaim { area, .. } => ("reclaim", area.clone()),
        Request::Rebuild(_) => ("rebuild", String::new()),
        Request::AcceptVolume { volume, .. } => ("accept volume", volume.clone()),
        Request::CreateVolume(create) => ("create volume", create.name.to_string()),
        Request::SetWay { volume, .. } => ("set way", volume.clone()),
        Request::RenameVolume { volume, rename } => ("rename volume", format!("{volume} to {}", rename.name)),
        Request::Borrow(borrow) => ("borrow", borrow.name.as_ref().map(ToString::to_string).unwrap_or_default()),
        Request::Mount { volume, .. } => ("mount", volume.clone()),
        Request::Unmount { volume, unmount } => (if unmount.force { "unmount by force" } else { "unmount" }, volume.clone()),
        Request::Return { volume, .. } => ("return", volume.clone()),
        Request::Transfer { volume, transfer } => {
            (if transfer.force { "transfer by force" } else { "transfer" }, format!("{volume} to {}", transfer.to))
        }
        Request::Replace { volume, replace } => ("replace", format!("{volume} without {}", replace.lost)),
        Request::Scrub { volume, .. } => ("scrub", volume.clone()),
        Request::ScrubEvery { volume, .. } => ("scrub every", volume.clone()),
        Request::SetSeal { volume, .. } => ("rekey", volume.clone()),
        Request::ControlTask { task, control } => ("task", format!("{task} {}", control.word())),
        Request::ChangeLeg { volume, change } => ("change copy", format!("{volume} {:?}", change.change)),
        Request::CreateToken(create) => ("create token", create.what.to_string()),
        Request::RevokeToken { token } => ("revoke token", token.clone()),
        Request::AddPerson(person) => ("add person", format!("{} as {}", person.name, person.role)),
        Request::ChangePerson { person, change } => {
            let how = match change {
                ChangePerson::Role { role } => format!("is {role}"),
                ChangePerson::Revoke => "has to log in again".to_owned(),
                ChangePerson::Remove => "is removed".to_owned(),
            };
            ("change person", format!("{person} {how}"))
        }
        Request::Enter(enter) => {
            let how = match enter.entry {
                Entry::Join => "join",
                Entry::Rejoin => "rejoin",
                Entry::Login => "log in",
            };
            (how, enter.server.map(|id| id.to_string()).unwrap_or_default())
        }
        Request::Renew(_) => ("renew certificate", String::new()),
    })
}
