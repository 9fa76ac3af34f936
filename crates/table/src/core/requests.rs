//! Requests, one by one: answered at once, or held.

use sublet_api::access::Caller;
use sublet_api::request::{AreaName, Request, Response};
use sublet_api::view::{PoolView, TableView};
use sublet_api::{ErrorKind, Refusal};

use super::tasks::task_of;
use super::{Core, Outside, TABLE_HOLD_MAX_MS, TableWaiter};
use crate::access::{self, Rights};
use crate::plan::{self, Context};
use crate::store::Store;
use crate::views;

impl<S: Store> Core<S> {
    pub(super) fn request(&mut self, outside: &mut Outside<'_>, conn: u64, caller: &Caller, request: Request) {
        self.audit_asked(conn, caller, &request);
        let rights = access::rights(&self.table, caller, self.now_ms);
        let checked = rights.and_then(|rights| access::check(&self.table, rights, &request).map(|()| rights));
        let answer = match (checked, request) {
            (Err(refusal), _) => Err(refusal),
            (Ok(rights), Request::Table { after, wait_ms }) => Ok(self.table_request(conn, rights, after, wait_ms)),
            (Ok(rights), request) => match self.access_request(outside, caller, &request) {
                Ok(None) => self.answer(outside, conn, request).map(|answer| answer.map(|response| self.shown(rights, response))),
                other => other,
            },
        };
        self.finish(conn, answer);
    }

    /// What is left of an answer for whoever has these rights.
    fn shown(&self, rights: Rights, mut response: Response) -> Response {
        if let Rights::Server(server) = rights {
            let is_list = matches!(
                response,
                Response::Table(_)
                    | Response::Servers(_)
                    | Response::Areas(_)
                    | Response::Volumes(_)
                    | Response::Tasks(_)
                    | Response::Events(_)
            );
            if is_list {
                access::restrict(&mut response, &access::Visible::of(&self.table, server));
            }
        }
        response
    }

    /// A request that was looked at before, and held, is carried out.
    pub(super) fn again(&mut self, outside: &mut Outside<'_>, conn: u64, request: Request) {
        let answer = self.answer(outside, conn, request);
        self.finish(conn, answer);
    }

    fn finish(&mut self, conn: u64, answer: Result<Option<Response>, Refusal>) {
        match answer {
            Ok(Some(response)) => self.reply(conn, response),
            // It is held.
            Ok(None) => {}
            Err(refusal) => self.reply(conn, Response::Refused(refusal)),
        }
    }

    fn answer(&mut self, outside: &mut Outside<'_>, conn: u64, request: Request) -> Result<Option<Response>, Refusal> {
        if task_of(&request).is_some() {
            self.check_rebuilt(&request)?;
            return self.task_request(outside, conn, &request);
        }
        let table = &self.table;
        let response = match request {
            Request::Pool => Response::Pool(self.pool_view()?),
            Request::Servers => Response::Servers(views::servers(table, &self.peers.heard())),
            Request::Areas => Response::Areas(views::areas(table, &self.peers.heard())),
            Request::Volumes => Response::Volumes(self.volume_views()),
            Request::Volume(volume) => Response::Volume(Box::new(self.volume_view(table.volume(&volume)?))),
            Request::Tasks => Response::Tasks(self.task_views()),
            Request::Events { after, limit } => {
                let mut newest: Vec<_> =
                    table.events.range(after.saturating_add(1)..).rev().take(limit).map(|(_, row)| views::event(row)).collect();
                newest.reverse();
                Response::Events(newest)
            }
            Request::Register(register) => self.register(&register)?,
            Request::Poll { server, poll } => return self.poll(conn, server, poll),
            Request::RenameServer { server, rename } => {
                let id = table.server(&server)?.id;
                let change = plan::rename::server(table, &server, &rename.name)?;
                self.commit_request(change)?;
                self.server_response(id)?
            }
            Request::SetLimits { server, limits } => {
                let id = table.server(&server)?.id;
                let change = plan::limits::plan(table, &server, &limits)?;
                self.commit_request(change)?;
                self.server_response(id)?
            }
            Request::LeaveServer { server } => {
                let id = table.server(&server)?.id;
                let change = plan::leave::plan(table, &server)?;
                self.commit_request(change)?;
                self.server_response(id)?
            }
            Request::ForgetServer { server, forget } => self.forget_server(outside, &server, &forget)?,
            Request::AcceptArea { area } => self.accept_area(&area)?,
            Request::RebuildState => Response::Rebuild(Box::new(self.rebuild_view()?)),
            Request::Rebuild(command) => self.rebuild(&command)?,
            Request::AcceptVolume { volume, accept } => self.accept_volume(outside, &volume, &accept)?,
            Request::CheckArea { server, check } => {
                Response::AreaName(AreaName { name: plan::register::area_name(table, server, &check)? })
            }
            Request::RenameArea { area, rename } => {
                let id = table.area(&area)?.id;
                let change = plan::rename::area(table, &area, &rename.name)?;
                self.commit_request(change)?;
                let row = self.table.areas.get(&id).ok_or_else(vanished)?;
                Response::Area(Box::new(views::area(&self.table, row, &self.peers.heard())))
            }
            Request::RenameVolume { volume, rename } => {
                let id = table.volume(&volume)?.id;
                let change = plan::rename::volume(table, &volume, &rename.name)?;
                self.commit_request(change)?;
                self.volume_response(id)?
            }
            Request::SetSeal { volume, seal } => {
                let id = table.volume(&volume)?.id;
                let change = plan::seal::plan(table, &volume, &seal)?;
                self.commit_request(change)?;
                self.volume_response(id)?
            }
            Request::ScrubEvery { volume, every } => self.scrub_every(&volume, &every)?,
            Request::ControlTask { task, control } => self.control_task(outside, &task, control)?,
            Request::ClientReport { volume, report } => return self.client_report(conn, volume, report),
            Request::ChangeLeg { volume, change } => {
                if !table.volumes.contains_key(&volume) {
                    return Err(self.no_volume(volume));
                }
                let reachable = self.peers.reachable();
                let mut context = Context { now_ms: self.now_ms, random: outside.random, reachable: &reachable };
                let (rows, answer) = plan::leg::plan(table, volume, &change, &mut context)?;
                let request = Request::ChangeLeg { volume, change: change.clone() };
                if !rows.is_empty() && self.is_early(&request) {
                    self.early.push((conn, request));
                    return Ok(None);
                }
                self.check_replaced(volume, &change)?;
                self.commit_request(rows)?;
                Response::Leg(answer)
            }
            Request::CreateVolume(_)
            | Request::SetWay { .. }
            | Request::Borrow(_)
            | Request::Mount { .. }
            | Request::Unmount { .. }
            | Request::Return { .. }
            | Request::Transfer { .. }
            | Request::Replace { .. }
            | Request::Scrub { .. }
            | Request::Reclaim { .. }
            | Request::Table { .. }
            | Request::RevokeServer { .. }
            | Request::CreateToken(_)
            | Request::Tokens
            | Request::RevokeToken { .. }
            | Request::AddPerson(_)
            | Request::People
            | Request::ChangePerson { .. }
            | Request::Enter(_)
            | Request::Renew(_)
            | Request::Audit { .. } => return Err(vanished()),
        };
        Ok(Some(response))
    }

    fn volume_response(&self, id: sublet_types::VolumeId) -> Result<Response, Refusal> {
        let row = self.table.volumes.get(&id).ok_or_else(vanished)?;
        Ok(Response::Volume(Box::new(self.volume_view(row))))
    }

    pub(super) fn server_response(&self, id: sublet_types::ServerId) -> Result<Response, Refusal> {
        let row = self.table.servers.get(&id).ok_or_else(vanished)?;
        let heard = self.peers.heard().get(&id).copied();
        Ok(Response::Server(Box::new(views::server(&self.table, row, heard))))
    }

    fn pool_view(&self) -> Result<PoolView, Refusal> {
        let pool = self.table.pool.as_ref().ok_or_else(vanished)?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(PoolView { pool: pool.pool, manager: pool.manager, version, urls: self.urls.clone(), revision: self.shown_revision })
    }

    fn table_request(&mut self, conn: u64, rights: Rights, after: Option<u64>, wait_ms: u64) -> Option<Response> {
        match after {
            Some(after) if after == self.shown_revision && wait_ms > 0 => {
                let until_ms = self.now_ms + wait_ms.min(TABLE_HOLD_MAX_MS);
                self.table_waiters.push(TableWaiter { conn, rights, after, until_ms });
                None
            }
            _ => Some(self.shown(rights, Response::Table(Box::new(self.table_view())))),
        }
    }

    fn table_view(&self) -> TableView {
        let heard = self.peers.heard();
        TableView {
            revision: self.shown_revision,
            volumes: self.volume_views(),
            areas: views::areas(&self.table, &heard),
            servers: views::servers(&self.table, &heard),
        }
    }

    /// Answers those who wait for a change of the table.
    pub(super) fn answer_table(&mut self) {
        for waiter in std::mem::take(&mut self.table_waiters) {
            if waiter.after == self.shown_revision && waiter.until_ms > self.now_ms {
                self.table_waiters.push(waiter);
            } else {
                let view = self.shown(waiter.rights, Response::Table(Box::new(self.table_view())));
                self.reply(waiter.conn, view);
            }
        }
    }
}

fn vanished() -> Refusal {
    Refusal::new(ErrorKind::Internal, "a row that was just there is missing").hint("this is a defect, please report it")
}
