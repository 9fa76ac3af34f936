//! An offline check of a table: whether every row can be read, and whether the rows fit each other.

use std::collections::{BTreeMap, BTreeSet};

use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE};
use sublet_types::{AreaId, ServerId, SliceId};

use crate::core::damaged;
use crate::records::{Row, VolumeRow};
use crate::store::Loaded;
use crate::table::Table;

/// What is wrong, one line each; empty if all is well.
pub fn check(loaded: &Loaded) -> Vec<String> {
    let mut findings = Vec::new();
    let mut table = Table::default();
    for raw in &loaded.rows {
        if let Some(text) = damaged::kept_aside(raw) {
            findings.push(format!("kept aside: {text}"));
            continue;
        }
        match Row::decode(raw) {
            Ok(row) => table.put(row),
            Err(error) => findings.push(format!("{}: {error}", raw.key)),
        }
    }
    if table.pool.is_none() {
        findings.push("the row of the pool is missing: nobody knows whose table this is".to_owned());
    }
    names(&table, &mut findings);
    for row in table.areas.values() {
        if table.member(row.server).is_none() {
            findings.push(format!("area {}: its server {} is not a member", row.name, row.server.short()));
        }
    }
    for row in table.volumes.values() {
        let mut found = Vec::new();
        volume(&table, row, &mut found);
        findings.extend(found.into_iter().map(|text| format!("volume {}: {text}", row.name)));
    }
    space(&table, &mut findings);
    findings
}

fn names(table: &Table, findings: &mut Vec<String>) {
    let kinds = [
        ("volumes", table.volumes.values().map(|row| row.name.as_str()).collect::<Vec<_>>()),
        ("areas", table.areas.values().map(|row| row.name.as_str()).collect()),
        ("servers", table.members().map(|row| row.name.as_str()).collect()),
    ];
    for (what, names) in kinds {
        let mut known = BTreeSet::new();
        for name in names.into_iter().filter(|name| !known.insert(*name)) {
            findings.push(format!("two {what} are called {name}"));
        }
    }
}

fn volume(table: &Table, row: &VolumeRow, findings: &mut Vec<String>) {
    if let Some(borrower) = row.borrower.filter(|id| table.member(*id).is_none()) {
        findings.push(format!("its borrower {} is not a member", borrower.short()));
    }
    if let Some(task) = row.task.filter(|id| !table.tasks.get(id).is_some_and(|task| task.is_running())) {
        findings.push(format!("task {task} that is changing it is missing or has ended"));
    }
    if let Some(lease) = row.lease.as_ref().filter(|lease| lease.epoch.number > row.epoch.number) {
        findings.push(format!("its lease has epoch {}, the volume {}", lease.epoch, row.epoch));
    }
    if row.frozen.is_some() {
        // What labels do not settle, or what was lost, is known already: its segments need not be whole.
        return;
    }
    let length: u64 = row.segments.iter().map(|segment| segment.length).sum();
    if length != row.size {
        findings.push(format!("its segments have {length} bytes, it has {}", row.size));
    }
    for (index, segment) in row.segments.iter().enumerate() {
        if !segment.legs.iter().any(|leg| leg.in_sync) {
            findings.push(format!("no copy of segment {index} is in sync"));
        }
        if segment.generation.number > segment.issued {
            findings.push(format!("segment {index} has generation {}, issued were {}", segment.generation, segment.issued));
        }
        let servers: Vec<ServerId> = segment.legs.iter().filter_map(|leg| table.lender(leg.area)).collect();
        if servers.iter().collect::<BTreeSet<_>>().len() < servers.len() {
            findings.push(format!("two copies of segment {index} are at one server (S6)"));
        }
        for leg in &segment.legs {
            if leg.length < segment.length || !segment.length.is_multiple_of(BLOCK_SIZE) {
                findings.push(format!("slice {} has no room for segment {index}", leg.slice.short()));
            }
        }
    }
}

/// Slices lie in their areas, on regions, and on nobody else's bytes (L5).
fn space(table: &Table, findings: &mut Vec<String>) {
    let mut owners: BTreeMap<SliceId, &str> = BTreeMap::new();
    let mut by_area: BTreeMap<AreaId, Vec<(u64, u64, SliceId)>> = BTreeMap::new();
    for volume in table.volumes.values() {
        for (_, leg) in volume.legs() {
            if owners.insert(leg.slice, volume.name.as_str()).is_some() {
                findings.push(format!("slice {} is in two places", leg.slice.short()));
            }
            by_area.entry(leg.area).or_default().push((leg.offset, leg.length, leg.slice));
        }
    }
    for row in table.wipes.values().filter(|row| !owners.contains_key(&row.slice)) {
        by_area.entry(row.area).or_default().push((row.offset, row.length, row.slice));
    }
    for (area, mut slices) in by_area {
        slices.sort_unstable();
        let Some(row) = table.areas.get(&area) else {
            // A lender that was forgotten: only what is to be wiped may be left there.
            if slices.iter().any(|(_, _, slice)| owners.contains_key(slice)) {
                findings.push(format!("area {} of a volume's slice is not in the table", area.short()));
            }
            continue;
        };
        let mut end = 0;
        for (offset, length, slice) in slices {
            let fits = offset.is_multiple_of(REGION_SIZE) && offset.checked_add(length).is_some_and(|end| end <= row.capacity);
            if !fits {
                findings.push(format!("area {}: slice {} does not lie in it", row.name, slice.short()));
            }
            // A slice to be wiped may lie where a changed volume's new one will (set-way).
            if offset < end && !table.wipes.contains_key(&slice) && !overlaps_wipe(table, area, offset) {
                findings.push(format!("area {}: slice {} overlaps another one (L5)", row.name, slice.short()));
            }
            end = end.max(offset.saturating_add(length));
        }
    }
}

fn overlaps_wipe(table: &Table, area: AreaId, offset: u64) -> bool {
    let mut wipes = table.wipes.values().filter(|row| row.area == area);
    wipes.any(|row| row.offset <= offset && offset < row.offset.saturating_add(row.length))
}

#[cfg(test)]
mod tests {
    use sublet_types::Way;

    use super::check;
    use crate::core::testing::{Pool, R, borrow, create};
    use crate::store::{RawRow, Store};

    fn findings(pool: &Pool, edit: impl Fn(&mut RawRow)) -> Vec<String> {
        let mut loaded = pool.store.clone().load().unwrap();
        loaded.rows.iter_mut().for_each(edit);
        check(&loaded)
    }

    fn replace(row: &mut RawRow, kind: &str, from: &str, to: &str) {
        if row.key.starts_with(kind) {
            row.json = String::from_utf8(row.json.clone()).unwrap().replacen(from, to, 1).into_bytes();
        }
    }

    #[test]
    fn a_table_in_order_has_no_findings_and_each_damage_has_one() {
        let mut pool = Pool::new(&[16, 16, 0]);
        pool.done(create(1, "free", Way::Doubled, &[("a1", Some(4 * R)), ("b1", Some(4 * R))]));
        let c = pool.id(2);
        pool.done(borrow(2, c, Some("v"), Some(2 * R), None));
        assert_eq!(findings(&pool, |_| {}), Vec::<String>::new());
        let pattern = format!("\"offset\":{}", 4 * R);
        let far = format!("\"offset\":{}", 400 * R);
        for (kind, from, to, expected) in [
            ("volume/", pattern.as_str(), "\"offset\":0", "overlaps another one"),
            ("volume/", pattern.as_str(), far.as_str(), "does not lie in it"),
            ("volume/", "\"in_sync\":true", "\"in_sync\":nonsense", "it is damaged"),
            ("volume/", "\"name\":\"v\"", "\"name\":\"free\"", "two volumes are called free"),
            ("volume/", "\"issued\":1", "\"issued\":0", "issued were 0"),
            ("pool/", "\"version\":3", "\"version\":4", "the row of the pool is missing"),
            ("server/", "\"left\":false", "\"left\":true", "is not a member"),
            ("area/", "\"version\":3", "\"version\":99", "has version 99"),
        ] {
            let found = findings(&pool, |row| replace(row, kind, from, to));
            assert!(found.iter().any(|text| text.contains(expected)), "{expected}: {found:?}");
        }
    }
}
