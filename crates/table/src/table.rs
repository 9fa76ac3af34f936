//! The table in memory: rows by id, lookups by name, and the space of areas.

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::{REGION_SIZE, SLICES_PER_AREA_MAX};
use sublet_types::{AreaId, Name, PersonId, ServerId, SliceId, TaskId, TokenId, VolumeId, Way};

use crate::records::{
    AdmissionRow, AreaRow, Command, EventRow, Key, PersonRow, PoolRow, Row, ServerRow, TaskRow, TokenRow, VolumeRow, WipeRow,
};

/// A part of an area that is not free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Taken {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The slice.
    pub slice: SliceId,
}

/// A free part of an area, 4 MiB aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// All rows, with indexes.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Whose table it is; always there once the manager has loaded.
    pub pool: Option<PoolRow>,
    /// Servers.
    pub servers: BTreeMap<ServerId, ServerRow>,
    /// Areas.
    pub areas: BTreeMap<AreaId, AreaRow>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, VolumeRow>,
    /// Slices to be wiped.
    pub wipes: BTreeMap<SliceId, WipeRow>,
    /// Tasks.
    pub tasks: BTreeMap<TaskId, TaskRow>,
    /// Events.
    pub events: BTreeMap<u64, EventRow>,
    /// People.
    pub people: BTreeMap<PersonId, PersonRow>,
    /// Tokens.
    pub tokens: BTreeMap<TokenId, TokenRow>,
    /// What is to be known of servers' certificates.
    pub admissions: BTreeMap<ServerId, AdmissionRow>,
    /// Stored rows that cannot be read and are kept aside: their keys, and why.
    pub damaged: Vec<String>,
    /// Slices of whose wipes nothing but the key is left: the row could not be read.
    pub lost_wipes: BTreeSet<SliceId>,
    /// Volumes that have slices in an area.
    in_area: BTreeMap<AreaId, BTreeSet<VolumeId>>,
}

impl Table {
    /// Inserts or replaces a row.
    pub fn put(&mut self, row: Row) {
        match row {
            Row::Pool(row) => self.pool = Some(row),
            Row::Server(row) => {
                self.servers.insert(row.id, row);
            }
            Row::Area(row) => {
                self.areas.insert(row.id, row);
            }
            Row::Volume(row) => {
                self.unindex(row.id);
                for (_, leg) in row.legs() {
                    self.in_area.entry(leg.area).or_default().insert(row.id);
                }
                self.volumes.insert(row.id, *row);
            }
            Row::Wipe(row) => {
                self.wipes.insert(row.slice, row);
            }
            Row::Task(row) => {
                self.tasks.insert(row.id, *row);
            }
            Row::Event(row) => {
                self.events.insert(row.number, row);
            }
            Row::Person(row) => {
                self.people.insert(row.id, row);
            }
            Row::Token(row) => {
                self.tokens.insert(row.id, row);
            }
            Row::Admission(row) => {
                self.admissions.insert(row.server, row);
            }
        }
    }

    /// Removes a row, if it is there.
    pub fn delete(&mut self, key: Key) {
        match key {
            Key::Pool => self.pool = None,
            Key::Server(id) => {
                self.servers.remove(&id);
            }
            Key::Area(id) => {
                self.areas.remove(&id);
            }
            Key::Volume(id) => {
                self.unindex(id);
                self.volumes.remove(&id);
            }
            Key::Wipe(id) => {
                self.wipes.remove(&id);
            }
            Key::Task(id) => {
                self.tasks.remove(&id);
            }
            Key::Event(number) => {
                self.events.remove(&number);
            }
            Key::Person(id) => {
                self.people.remove(&id);
            }
            Key::Token(id) => {
                self.tokens.remove(&id);
            }
            Key::Admission(id) => {
                self.admissions.remove(&id);
            }
        }
    }

    fn unindex(&mut self, id: VolumeId) {
        let Some(old) = self.volumes.get(&id) else { return };
        for (_, leg) in old.legs() {
            if let Some(volumes) = self.in_area.get_mut(&leg.area) {
                volumes.remove(&id);
            }
        }
    }

    /// The members, without those that have left.
    pub fn members(&self) -> impl Iterator<Item = &ServerRow> {
        self.servers.values().filter(|row| !row.left)
    }

    /// A member by id.
    pub fn member(&self, id: ServerId) -> Option<&ServerRow> {
        self.servers.get(&id).filter(|row| !row.left)
    }

    /// A server's name, also of one that is gone.
    pub fn server_name(&self, id: ServerId) -> String {
        self.servers.get(&id).map_or_else(|| format!("server {}", id.short()), |row| row.name.to_string())
    }

    /// An area's lender.
    pub fn lender(&self, area: AreaId) -> Option<ServerId> {
        self.areas.get(&area).map(|row| row.server)
    }

    /// The name of an area's lender, for messages.
    pub fn lender_name(&self, area: AreaId) -> String {
        self.lender(area).map_or_else(|| format!("the lender of area {}", area.short()), |server| self.server_name(server))
    }

    /// How many volumes a server has borrowed, or is about to get, and how many bytes in all, every copy counted.
    pub fn borrowed_by(&self, server: ServerId) -> (usize, u64) {
        let is_coming = |row: &VolumeRow| {
            let task = row.task.and_then(|task| self.tasks.get(&task)).filter(|task| task.is_running());
            task.is_some_and(|task| task.command == Command::Transfer { to: server })
        };
        let volumes = self.volumes.values().filter(|row| row.borrower == Some(server) || is_coming(row));
        volumes.fold((0, 0), |(count, bytes), row| (count + 1, bytes + row.taken()))
    }

    /// The areas that a server lends.
    pub fn areas_of(&self, server: ServerId) -> impl Iterator<Item = &AreaRow> {
        self.areas.values().filter(move |row| row.server == server)
    }

    /// The volumes with slices in an area.
    pub fn volumes_in(&self, area: AreaId) -> impl Iterator<Item = &VolumeRow> {
        self.in_area.get(&area).into_iter().flatten().filter_map(|id| self.volumes.get(id))
    }

    /// Wipes of one volume's former slices, without those of lost legs that were replaced: nobody waits for them.
    pub fn wipes_of(&self, volume: VolumeId) -> impl Iterator<Item = &WipeRow> {
        self.wipes.values().filter(move |row| row.volume == volume && !row.replaced)
    }

    /// The volume that holds `area` for itself (way single).
    pub fn sole_holder(&self, area: AreaId) -> Option<&VolumeRow> {
        self.volumes_in(area).find(|volume| volume.way == Way::Single)
    }

    /// Everything in an area that is not free, by offset: volumes' slices, slices to be wiped, slices that only the label knows.
    pub fn taken(&self, area: AreaId) -> Vec<Taken> {
        let mut taken: Vec<Taken> = self
            .volumes_in(area)
            .flat_map(VolumeRow::legs)
            .filter(|(_, leg)| leg.area == area)
            .map(|(_, leg)| Taken { offset: leg.offset, length: leg.length, slice: leg.slice })
            .collect();
        let wipes = self.wipes.values().filter(|row| row.area == area);
        taken.extend(wipes.map(|row| Taken { offset: row.offset, length: row.length, slice: row.slice }));
        if let Some(row) = self.areas.get(&area) {
            taken.extend(row.strangers.iter().map(|row| Taken { offset: row.offset, length: row.length, slice: row.slice }));
        }
        taken.sort_unstable();
        taken
    }

    /// The free stretches of an area, by offset. Empty for an area that one volume has to itself, or whose label is full.
    pub fn free_stretches(&self, area: AreaId) -> Vec<Stretch> {
        let Some(row) = self.areas.get(&area) else { return Vec::new() };
        let taken = self.taken(area);
        if self.sole_holder(area).is_some() || row.quarantined.is_some() || taken.len() >= SLICES_PER_AREA_MAX {
            return Vec::new();
        }
        stretches(row.capacity, &taken)
    }

    /// A volume by name or id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn volume(&self, text: &str) -> Result<&VolumeRow, Refusal> {
        let by_name = self.volumes.values().find(|row| row.name.as_str() == text);
        let found = by_name.or_else(|| text.parse().ok().and_then(|id| self.volumes.get(&id)));
        found.ok_or_else(|| not_found("volume", text, "see `sublet volume ls`"))
    }

    /// An area by name or id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn area(&self, text: &str) -> Result<&AreaRow, Refusal> {
        let by_name = self.areas.values().find(|row| row.name.as_str() == text);
        let found = by_name.or_else(|| text.parse().ok().and_then(|id| self.areas.get(&id)));
        found.ok_or_else(|| not_found("area", text, "see `sublet area ls`"))
    }

    /// A member by name or id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn server(&self, text: &str) -> Result<&ServerRow, Refusal> {
        let by_name = self.members().find(|row| row.name.as_str() == text);
        let found = by_name.or_else(|| text.parse().ok().and_then(|id| self.member(id)));
        found.ok_or_else(|| not_found("server", text, "see `sublet server ls`"))
    }

    /// The first of `wish`, `wish-2`, `wish-3`, ... that `taken` does not know.
    pub fn free_name(wish: &Name, taken: impl Fn(&Name) -> bool) -> Name {
        if !taken(wish) {
            return wish.clone();
        }
        let stem: String = wish.as_str().chars().take(50).collect();
        (2u32..).filter_map(|n| format!("{stem}-{n}").parse().ok()).find(|name| !taken(name)).unwrap_or_else(|| wish.clone())
    }

    /// Whether an area other than `except` has this name.
    pub fn area_name_taken(&self, name: &Name, except: Option<AreaId>) -> bool {
        self.areas.values().any(|row| row.name == *name && Some(row.id) != except)
    }

    /// Whether a member other than `except` has this name.
    pub fn server_name_taken(&self, name: &Name, except: ServerId) -> bool {
        self.members().any(|row| row.name == *name && row.id != except)
    }

    /// Whether a volume has this name.
    pub fn volume_name_taken(&self, name: &Name) -> bool {
        self.volumes.values().any(|row| row.name == *name)
    }
}

pub(crate) fn not_found(what: &str, text: &str, hint: &str) -> Refusal {
    let shown: String = text.chars().take(80).collect();
    Refusal::new(ErrorKind::NotFound, format!("there is no {what} '{}'", shown.escape_default())).hint(hint)
}

/// The gaps between `taken` (sorted by offset; may overlap), cut to whole regions.
pub fn stretches(capacity: u64, taken: &[Taken]) -> Vec<Stretch> {
    let mut free = Vec::new();
    let mut at = 0u64;
    let ends = taken.iter().map(|part| (part.offset, part.offset.saturating_add(part.length)));
    for (start, end) in ends.chain([(capacity, capacity)]) {
        let (from, to) = (at.next_multiple_of(REGION_SIZE), start.min(capacity) / REGION_SIZE * REGION_SIZE);
        if to > from {
            free.push(Stretch { offset: from, length: to - from });
        }
        at = at.max(end.min(capacity));
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: u64 = REGION_SIZE;

    fn taken(offset: u64, length: u64) -> Taken {
        Taken { offset, length, slice: SliceId::from_u128(1) }
    }

    #[test]
    fn free_stretches_are_the_gaps_in_whole_regions() {
        type Case<'a> = (u64, &'a [Taken], &'a [(u64, u64)]);
        let cases: &[Case<'_>] = &[
            (10 * R, &[], &[(0, 10 * R)]),
            (10 * R, &[taken(0, 10 * R)], &[]),
            (10 * R, &[taken(2 * R, R), taken(5 * R, 2 * R)], &[(0, 2 * R), (3 * R, 2 * R), (7 * R, 3 * R)]),
            // Former slices still to be wiped may overlap the slices that will take their place (set-way).
            (10 * R, &[taken(0, 4 * R), taken(2 * R, R)], &[(4 * R, 6 * R)]),
            // A stranger that is not aligned takes the regions that it touches.
            (10 * R, &[taken(R + 1, 2)], &[(0, R), (2 * R, 8 * R)]),
            // Nothing behind the end of a shrunken area is free.
            (3 * R + 5, &[taken(2 * R, 9 * R)], &[(0, 2 * R)]),
            (3 * R + 5, &[], &[(0, 3 * R)]),
        ];
        for (capacity, taken, expected) in cases {
            let found: Vec<_> = stretches(*capacity, taken).iter().map(|s| (s.offset, s.length)).collect();
            assert_eq!(found, *expected, "{taken:?}");
        }
    }

    #[test]
    fn a_taken_name_gets_the_next_free_number() {
        let name: Name = "a1".parse().unwrap();
        assert_eq!(Table::free_name(&name, |_| false), name);
        assert_eq!(Table::free_name(&name, |n| n.as_str() == "a1" || n.as_str() == "a1-2").as_str(), "a1-3");
        let longest: Name = "a".repeat(63).parse().unwrap();
        assert_ne!(Table::free_name(&longest, |n| *n == longest), longest);
    }
}
