//! Who comes in, and who is put out: requests about tokens, people and certificates.

use sublet_api::Refusal;
use sublet_api::access::{Admitted, Caller, CreateToken, DrawnToken, Enter, TokenUse};
use sublet_api::request::{Request, Response};
use sublet_types::{ServerId, TaskId};

use super::{Core, Outside};
use crate::access;
use crate::change::Change;
use crate::plan::access::{enter, people, tokens};
use crate::plan::{self, Context};
use crate::records::{Command, Key};
use crate::store::{Store, StoreError};

/// How long the first administrator's link is valid, in seconds.
const FIRST_LINK_TTL_S: u64 = 24 * 3600;

impl<S: Store> Core<S> {
    /// Requests about who may come in; none if it is another one.
    pub(super) fn access_request(
        &mut self,
        outside: &mut Outside<'_>,
        caller: &Caller,
        request: &Request,
    ) -> Result<Option<Response>, Refusal> {
        let now_ms = self.now_ms;
        let reachable = std::collections::BTreeSet::new();
        let mut context = Context { now_ms, random: outside.random, reachable: &reachable };
        let response = match request {
            Request::CreateToken(command) => {
                let made_by = access::named(&self.table, caller);
                let (change, drawn) = tokens::create(&self.table, command, &made_by, &mut context)?;
                self.commit_request(change)?;
                Response::NewToken(Box::new(drawn))
            }
            Request::Tokens => Response::Tokens(tokens::views(&self.table, now_ms)),
            Request::RevokeToken { token } => {
                let made_by = access::named(&self.table, caller);
                let (change, view) = tokens::revoke(&self.table, token, &made_by)?;
                self.commit_request(change)?;
                Response::Token(Box::new(view))
            }
            Request::AddPerson(command) => {
                let (change, row) = people::add(&self.table, command, &mut context)?;
                self.commit_request(change)?;
                Response::Person(people::view(&row))
            }
            Request::People => Response::People(people::views(&self.table)),
            Request::ChangePerson { person, change } => {
                let (change, row) = people::change(&self.table, person, *change, now_ms)?;
                self.commit_request(change)?;
                Response::Person(people::view(&row))
            }
            Request::Enter(command) => self.enter(command)?,
            Request::Renew(_) => Response::Admitted(self.renewed(caller)?),
            Request::RevokeServer { server } => {
                let (change, id) = enter::revoke(&self.table, server)?;
                self.commit_request(change)?;
                // It is told by the end of its held poll, and hears nothing else.
                self.peers.tell(id);
                self.server_response(id)?
            }
            Request::Audit { .. } => Response::Allowed,
            _ => return Ok(None),
        };
        Ok(Some(response))
    }

    fn enter(&mut self, command: &Enter) -> Result<Response, Refusal> {
        let (change, admitted) = enter::plan(&self.table, command, self.now_ms)?;
        self.commit_request(change)?;
        Ok(Response::Admitted(admitted))
    }

    fn renewed(&self, caller: &Caller) -> Result<Admitted, Refusal> {
        match caller {
            Caller::Server { server, .. } => Ok(Admitted::Server { server: *server, issued_ms: self.now_ms }),
            Caller::Person { person, .. } => Ok(Admitted::Person { person: *person, issued_ms: self.now_ms }),
            Caller::Manager | Caller::Stranger | Caller::Token { .. } => {
                Err(plan::bad("only somebody with a certificate gets another one", "join, or log in"))
            }
        }
    }

    /// A link for an administrator, if nobody has ever come in who may do everything, or `anew`: whoever has is not known by
    /// the authority any more. Links that were made before are void.
    ///
    /// # Errors
    /// If the table cannot be written.
    pub fn first_link(&mut self, outside: &mut Outside<'_>, anew: bool) -> Result<Option<DrawnToken>, Refusal> {
        if self.table.has_administrator() && !anew {
            return Ok(None);
        }
        let reachable = std::collections::BTreeSet::new();
        let mut context = Context { now_ms: self.now_ms, random: outside.random, reachable: &reachable };
        let (change, row) = people::first_administrator(&self.table, &mut context);
        self.commit_request(change)?;
        let mut void = Change::new();
        people::links(&self.table, row.id).into_iter().for_each(|id| void.delete(Key::Token(id)));
        self.commit_request(void)?;
        let what = TokenUse::Login { person: row.id.to_string() };
        let command = CreateToken { what, ttl_s: FIRST_LINK_TTL_S, uses: 1 };
        let (change, drawn) = tokens::create(&self.table, &command, "the manager", &mut context)?;
        self.commit_request(change)?;
        Ok(Some(drawn))
    }

    /// What servers that were cut off have mounted, or coordinate, is fenced, also after a crash of the manager in between.
    pub(super) fn fence_revoked(&mut self, outside: &mut Outside<'_>) -> Result<(), StoreError> {
        let revoked: Vec<ServerId> = self.table.admissions.values().filter(|row| row.revoked).map(|row| row.server).collect();
        if revoked.is_empty() {
            return Ok(());
        }
        let is_theirs = |server: Option<ServerId>| server.is_some_and(|server| revoked.contains(&server));
        let mounted = self.table.volumes.values().filter(|row| row.lease.is_some() && is_theirs(row.borrower));
        // A task that is going on comes first; what it leaves mounted is looked at with the next event.
        let due: Vec<_> = mounted.filter(|row| row.task.is_none() && row.frozen.is_none()).map(|row| row.id).collect();
        for id in due {
            let Some(row) = self.table.volumes.get(&id) else { continue };
            let reachable = self.peers.reachable();
            let mut context = Context { now_ms: self.now_ms, random: outside.random, reachable: &reachable };
            let task = TaskId::from_u128((context.random)());
            let closed = plan::unmount::close(&self.table, row, (task, Command::Unmount { force: true }), &mut context);
            if let Some(mut change) = closed {
                change.event(row.name.as_str(), "is unmounted by force: its borrower was cut off");
                self.commit(change)?;
            }
        }
        let coordinated = self.table.volumes.values().filter(|row| row.lease.is_none() && row.task.is_none());
        let due: Vec<_> = coordinated
            .filter(|row| is_theirs(row.work.background.as_ref().map(|row| row.coordinator)))
            .map(|row| row.id)
            .collect();
        for id in due {
            let Some(row) = self.table.volumes.get(&id) else { continue };
            let reachable = std::collections::BTreeSet::new();
            let mut context = Context { now_ms: self.now_ms, random: outside.random, reachable: &reachable };
            let text = "background work has ended: its coordinator was cut off".to_owned();
            let change = plan::background::end(&plan::background::crashed(row), Some(text), &mut context);
            self.commit(change)?;
        }
        Ok(())
    }
}
