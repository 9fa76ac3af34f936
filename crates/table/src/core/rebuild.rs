//! An empty manager notices whose servers knock; an administrator has it take their pool over; labels become rows (R1, L5).

use std::collections::BTreeMap;

use sublet_api::rebuild::{AcceptVolume, Forget, KnockView, OfflineAreaView, Rebuild, RebuildView, UnsettledView};
use sublet_api::request::{Request, Response};
use sublet_api::server::{AreaReport, Register};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{PoolId, ServerId, VolumeId};

use super::{Core, Outside};
use crate::change::Change;
use crate::plan::rebuild::accept::{self, Choice};
use crate::plan::{self, Context, bad, conflict, listed, rebuild};
use crate::records::{PoolRow, RebuildRow, Row};
use crate::store::{Store, StoreError};
use crate::views;

/// Knocking servers that are remembered.
const KNOCKS_MAX: usize = 1000;

impl<S: Store> Core<S> {
    /// Nothing has ever been registered here.
    fn is_empty(&self) -> bool {
        let table = &self.table;
        table.servers.is_empty() && table.areas.is_empty() && table.volumes.is_empty() && table.wipes.is_empty()
    }

    fn session(&self) -> Option<&RebuildRow> {
        self.table.pool.as_ref().and_then(|row| row.rebuild.as_ref())
    }

    /// A server of another pool asks to be registered: remembered, and told once.
    pub(super) fn knock(&mut self, register: &Register) -> Result<(), Refusal> {
        let own = self.table.pool.as_ref().map(|row| row.pool);
        let Some(pool) = register.pool.filter(|pool| Some(*pool) != own) else { return Ok(()) };
        if !self.knocks.contains_key(&register.server) && self.knocks.len() >= KNOCKS_MAX {
            return Ok(());
        }
        let view = KnockView {
            pool,
            server: register.server,
            name: register.name.clone(),
            addresses: register.addresses.clone(),
            at_ms: self.now_ms,
        };
        self.knocks.insert(register.server, view);
        let mut change = Change::new();
        let hint = if self.is_empty() { "; if that pool's manager has lost its table: `sublet manager rebuild`" } else { "" };
        change.warning(register.name.as_str(), format!("a server of pool {pool} asks to be registered, and is refused{hint}"));
        self.commit_request(change)
    }

    /// Refuses what would place or delete anything while the table is being rebuilt: unseen slices may be there (R1).
    pub(super) fn check_rebuilt(&self, request: &Request) -> Result<(), Refusal> {
        let is_harmless = matches!(request, Request::Mount { .. } | Request::Unmount { .. });
        if self.session().is_none() || is_harmless {
            return Ok(());
        }
        let text = "the table is being rebuilt from the labels: not all that is lent may be known yet";
        Err(conflict(text, "see `sublet manager rebuild --show`; when all servers are there: `sublet manager rebuild --finish`"))
    }

    /// `POST /v1/rebuild`.
    pub(super) fn rebuild(&mut self, command: &Rebuild) -> Result<Response, Refusal> {
        let row = self.table.pool.clone().ok_or_else(|| Refusal::new(ErrorKind::Internal, "there is no pool row"))?;
        let mut change = Change::new();
        let mut begins = false;
        match (&row.rebuild, command.finish) {
            (None, true) => {
                return Err(conflict("no rebuild of the table is going on", "begin one: `sublet manager rebuild`"));
            }
            (Some(_), true) => {
                change.event("", "the rebuild of the table has ended; what is not settled stays frozen");
                change.put(Row::Pool(PoolRow { rebuild: None, ..row }));
            }
            // It was begun already: the answer tells how far it is.
            (Some(_), false) if command.pool.is_none_or(|pool| pool == row.pool) => {}
            (_, false) => {
                begins = true;
                let next = self.begin_rebuild(row, command)?;
                let what = if command.reconcile { "reconciled with" } else { "rebuilt from" };
                change.event(
                    "",
                    format!("the table of pool {} is being {what} the labels; nothing is placed meanwhile", next.pool),
                );
                change.put(Row::Pool(next));
            }
        }
        self.commit_request(change)?;
        self.relabel = true;
        self.knocks.retain(|_, knock| Some(knock.pool) != self.table.pool.as_ref().map(|row| row.pool));
        // What was reported before may be older than what was committed since: everybody tells the whole of it again.
        for server in self.peers.all.keys().copied().filter(|_| begins).collect::<Vec<_>>() {
            self.peers.ask_report(server);
        }
        Ok(Response::Rebuild(Box::new(self.rebuild_view()?)))
    }

    fn begin_rebuild(&self, row: PoolRow, command: &Rebuild) -> Result<PoolRow, Refusal> {
        let session = Some(RebuildRow { since_ms: self.now_ms, reconcile: command.reconcile });
        if command.reconcile {
            if command.pool.is_some_and(|pool| pool != row.pool) {
                return Err(bad(format!("this manager keeps pool {}", row.pool), "leave --pool away"));
            }
            return Ok(PoolRow { rebuild: session, ..row });
        }
        if !self.is_empty() {
            let text = format!("this manager's table is not empty: it keeps pool {}", row.pool);
            return Err(conflict(
                text,
                "start a manager with an empty --data folder; or take over what the labels have beyond this table: add --reconcile",
            ));
        }
        let mut pools: BTreeMap<PoolId, Vec<String>> = BTreeMap::new();
        for knock in self.knocks.values() {
            pools.entry(knock.pool).or_default().push(knock.name.to_string());
        }
        let pool = match (command.pool, pools.len()) {
            (Some(pool), _) => pool,
            (None, 1) => pools.keys().next().copied().unwrap_or(row.pool),
            (None, 0) => {
                return Err(conflict(
                    "no server of any pool has asked for this manager yet",
                    "start the servers with this manager's address, or name the pool with --pool",
                ));
            }
            (None, _) => {
                let all = listed(pools.iter().map(|(pool, names)| format!("{pool} ({})", listed(names.iter().cloned()))));
                return Err(conflict(format!("servers of several pools ask for this manager: {all}"), "name one with --pool"));
            }
        };
        Ok(PoolRow { pool, rebuild: session, ..row })
    }

    /// `GET /v1/rebuild`.
    pub(super) fn rebuild_view(&self) -> Result<RebuildView, Refusal> {
        let row = self.table.pool.as_ref().ok_or_else(|| Refusal::new(ErrorKind::Internal, "there is no pool row"))?;
        let has_reported = |id: &ServerId| self.peers.all.get(id).is_some_and(|peer| peer.reported_ms.is_some());
        let names = |told: bool| {
            let those = self.table.members().filter(|row| has_reported(&row.id) == told);
            those.map(|row| row.name.clone()).collect()
        };
        let frozen = self.table.volumes.values().filter_map(|row| {
            let reason = row.frozen.clone()?;
            Some(UnsettledView { volume: row.id, name: row.name.clone(), reason })
        });
        let unsettled: Vec<UnsettledView> = frozen.collect();
        let offline = self.table.areas.values().filter_map(|area| {
            let (reason, server) = (area.offline.clone()?, self.table.servers.get(&area.server)?.name.clone());
            Some(OfflineAreaView { area: area.name.clone(), server, reason })
        });
        Ok(RebuildView {
            pool: row.pool,
            open: row.rebuild.is_some(),
            since_ms: row.rebuild.as_ref().map_or(0, |session| session.since_ms),
            knocking: self.knocks.values().cloned().collect(),
            reported: names(true),
            silent: names(false),
            offline: offline.collect(),
            settled: self.table.volumes.len() - unsettled.len(),
            unsettled,
            wipes: self.table.wipes.len(),
            strangers: self.table.areas.values().map(|row| row.strangers.len()).sum(),
            damaged: self.table.damaged.clone(),
        })
    }

    /// The last reports of all servers, brought up to date with what they have done since.
    pub(super) fn labels(&self) -> Vec<(ServerId, &AreaReport)> {
        let all = self.peers.all.iter().flat_map(|(id, peer)| peer.reported.values().map(move |report| (*id, report)));
        rebuild::believed(&self.table, all)
    }

    /// Labels that are new here: tombstones are obeyed (R2), and what is not settled is looked at again (R1).
    pub(super) fn take_labels(&mut self, outside: &mut Outside<'_>) -> Result<bool, StoreError> {
        if !std::mem::take(&mut self.relabel) {
            return Ok(false);
        }
        let reachable = self.peers.reachable();
        let mut context = Context { now_ms: self.now_ms, random: &mut *outside.random, reachable: &reachable };
        let obeyed = rebuild::obey(&self.table, &self.labels(), &mut context);
        let mut moved = !obeyed.is_empty();
        self.commit(obeyed)?;
        let change = rebuild::plan(&self.table, &self.labels(), &mut context);
        moved |= !change.is_empty();
        self.commit(change)?;
        moved |= self.notice_vanished(outside)?;
        if moved {
            self.find_strangers()?;
        }
        Ok(moved)
    }

    /// Volumes of a table that is behind, and that are gone: looked for whenever labels have come or a task has ended. What a task
    /// is changing is left alone.
    pub(super) fn notice_vanished(&mut self, outside: &mut Outside<'_>) -> Result<bool, StoreError> {
        let reachable = self.peers.reachable();
        let mut context = Context { now_ms: self.now_ms, random: &mut *outside.random, reachable: &reachable };
        let change = rebuild::vanished::plan(&self.table, &self.labels(), &self.loaded, &mut context);
        let moved = !change.is_empty();
        self.commit(change)?;
        Ok(moved)
    }

    /// What areas that are not trusted mean for their volumes (L2).
    pub(super) fn distrust(&mut self, outside: &mut Outside<'_>) -> Result<(), StoreError> {
        if self.table.areas.values().all(|row| row.quarantined.is_none()) {
            return Ok(());
        }
        let reachable = self.peers.reachable();
        let mut context = Context { now_ms: self.now_ms, random: &mut *outside.random, reachable: &reachable };
        let change = plan::distrust::plan(&self.table, &mut context);
        self.commit(change)
    }

    /// Which slices the table does not know has changed with its volumes.
    fn find_strangers(&mut self) -> Result<(), StoreError> {
        let servers: Vec<ServerId> = self.peers.all.keys().copied().collect();
        for server in servers {
            let Some(peer) = self.peers.all.get(&server).filter(|peer| peer.reported_ms.is_some()) else { continue };
            let reports: Vec<AreaReport> = peer.reported.values().cloned().collect();
            let elsewhere = |area| self.peers.is_served_elsewhere(area, server);
            let change = plan::reconcile::report(&self.table, server, &reports, &elsewhere);
            self.commit(change)?;
        }
        Ok(())
    }

    /// Nothing shows that the table is older than the labels (L5): all of them were seen, and hold nothing that it lacks.
    pub(super) fn knows_all(&self) -> bool {
        let table = &self.table;
        let has_reported = |id: ServerId| self.peers.all.get(&id).is_some_and(|peer| peer.reported_ms.is_some());
        self.session().is_none()
            && table.damaged.is_empty()
            && table.members().all(|row| has_reported(row.id))
            && table.areas.values().all(|row| row.strangers.is_empty() && row.offline.is_none())
            && table.volumes.values().all(|row| row.frozen.is_none())
    }

    /// `POST /v1/volumes/{volume}/accept`.
    pub(super) fn accept_volume(
        &mut self,
        outside: &mut Outside<'_>,
        volume: &str,
        command: &AcceptVolume,
    ) -> Result<Response, Refusal> {
        let id = self.table.volume(volume)?.id;
        let reachable = self.peers.reachable();
        let mut context = Context { now_ms: self.now_ms, random: &mut *outside.random, reachable: &reachable };
        let choice = Choice { leg: &command.leg, stale: command.stale };
        let change = accept::plan(&self.table, &self.labels(), volume, &choice, &mut context)?;
        self.commit_request(change)?;
        self.find_strangers().map_err(|error| Refusal::new(ErrorKind::Internal, error.to_string()))?;
        let missing = || Refusal::new(ErrorKind::Internal, "the accepted volume is not in the table");
        let row = self.table.volumes.get(&id).ok_or_else(missing)?;
        Ok(Response::Volume(Box::new(views::volume(&self.table, row))))
    }

    /// What a client of a volume that is not in the table is told. `stale_epoch` ends it for good (F4), so only a manager that
    /// knows all there is to know says that.
    pub(super) fn no_volume(&self, id: VolumeId) -> Refusal {
        let unheard = |id: ServerId| self.peers.all.get(&id).is_none_or(|peer| peer.reported_ms.is_none());
        let may_come = self.is_empty()
            || self.session().is_some()
            || !self.table.damaged.is_empty()
            || self.table.areas.values().flat_map(|row| &row.strangers).any(|stranger| stranger.volume == id)
            // What the label of an area that is offline says is not known either.
            || self.table.areas.values().any(|row| row.offline.is_some())
            || self.table.members().any(|row| unheard(row.id));
        if may_come && self.table.wipes_of(id).next().is_none() {
            let text = format!("this manager does not know volume {} (yet)", id.short());
            return conflict(text, "if its table was lost: `sublet manager rebuild`");
        }
        Refusal::new(ErrorKind::StaleEpoch, format!("volume {} is no longer in the table", id.short()))
    }
}

/// The administrator's decisions about servers and areas.
impl<S: Store> Core<S> {
    /// `POST /v1/servers/{server}/forget`.
    pub(super) fn forget_server(
        &mut self,
        outside: &mut Outside<'_>,
        server: &str,
        command: &Forget,
    ) -> Result<Response, Refusal> {
        let row = self.table.server(server)?.clone();
        let view = plan::forget::view(&self.table, &row, command.confirm);
        let reachable = self.peers.reachable();
        let mut context = Context { now_ms: self.now_ms, random: &mut *outside.random, reachable: &reachable };
        // What would be refused is refused before anybody is frightened.
        let change = plan::forget::plan(&self.table, server, self.peers.is_reachable(row.id), &mut context)?;
        if command.confirm {
            self.commit_request(change)?;
        }
        Ok(Response::Forget(Box::new(view)))
    }

    /// `POST /v1/areas/{area}/accept`.
    pub(super) fn accept_area(&mut self, area: &str) -> Result<Response, Refusal> {
        let row = self.table.area(area)?.clone();
        let Some(why) = row.quarantined.clone() else {
            return Err(conflict(format!("area '{}' is not quarantined", row.name), "there is nothing to accept"));
        };
        let mut change = Change::new();
        change.event(row.name.as_str(), format!("accepted as it is; it was quarantined: {why}"));
        plan::distrust::accept(&self.table, &row, &mut change);
        self.commit_request(change)?;
        // Whoever was frozen because of it may have to be for another reason: what the labels say is looked at again (L5).
        self.find_strangers().map_err(|error| Refusal::new(ErrorKind::Internal, error.to_string()))?;
        let missing = || Refusal::new(ErrorKind::Internal, "the accepted area is not in the table");
        let row = self.table.areas.get(&row.id).ok_or_else(missing)?;
        Ok(Response::Area(Box::new(views::area(&self.table, row, &self.peers.heard()))))
    }
}
