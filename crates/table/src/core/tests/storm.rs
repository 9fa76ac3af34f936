//! Random requests while lenders die, hang and return, and the manager is killed: what must always hold, holds.

use sublet_api::request::{LegChange, Request, Response, TaskOutcome};
use sublet_types::Way;

use crate::core::testing::{Pool, R, borrow, create, force_unmount, give_back, mount, set_way, transfer, unmount};
use crate::records::LeaseState;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// What the answer to a mount promises: every copy that is said to be in sync admits this borrower, epoch and generation.
fn check_mounted(pool: &Pool, mounting: &sublet_api::mount::MountingInformation) {
    for segment in &mounting.segments {
        assert!(segment.legs.iter().any(|leg| leg.in_sync));
        for leg in segment.legs.iter().filter(|leg| leg.in_sync) {
            let server = pool.servers.iter().find(|server| server.id == leg.server).unwrap();
            let slice = &server.areas[&leg.area].slices[&leg.slice];
            assert_eq!((slice.epoch, slice.admitted, slice.borrower), (mounting.epoch, true, Some(mounting.borrower)));
            assert_eq!(slice.facts.generation, segment.generation);
        }
    }
}

fn check_space(pool: &mut Pool) {
    let in_task: Vec<_> = pool.core.table().volumes.values().filter(|v| v.task.is_some()).map(|v| v.name.clone()).collect();
    for area in &pool.table().areas {
        let mut end = 0;
        // A volume whose way is being changed has its new slices where its former ones are still to be wiped.
        for slice in area.slices.iter().filter(|slice| !in_task.contains(&slice.volume)) {
            assert!(slice.offset >= end && slice.offset + slice.length <= area.capacity, "{area:?}");
            end = slice.offset + slice.length;
        }
    }
}

fn random_request(pool: &Pool, dice: &mut Dice, id: u128) -> Request {
    let names = ["u", "v", "w", "x"];
    let volume = names[dice.roll(4) as usize];
    let server = pool.id(dice.roll(5) as usize);
    let ways = [Way::Single, Way::Integrated, Way::Doubled, Way::Doubled, Way::Divided];
    let way = ways[dice.roll(5) as usize];
    let epoch = pool.core.table().volume(volume).map(|row| row.epoch).unwrap_or_default();
    let holder = pool.core.table().volume(volume).ok().and_then(|row| row.borrower).unwrap_or(server);
    let areas = [("a1", Some(R)), ("b1", Some(R))];
    match dice.roll(12) {
        0 => create(id, volume, way, &areas[..if matches!(way, Way::Single | Way::Divided) { 1 } else { 2 }]),
        1 => borrow(id, server, Some(volume), None, None),
        2 | 3 => borrow(id, server, Some(volume), Some(1 + dice.roll(6 * R)), Some(way)),
        4..=6 => mount(id, holder, volume),
        7 => unmount(id, holder, volume, epoch),
        8 => force_unmount(id, volume),
        9 => give_back(id, Some(holder), volume, dice.roll(2) == 0),
        10 => transfer(id, volume, ["server-d", "server-e"][dice.roll(2) as usize], dice.roll(2) == 0),
        _ => set_way(id, volume, way, &areas[..if matches!(way, Way::Single | Way::Divided) { 1 } else { 2 }]),
    }
}

fn disturb(pool: &mut Pool, dice: &mut Dice) {
    let index = dice.roll(3) as usize;
    let is_alive = pool.servers[index].alive;
    let is_stopped = !is_alive && pool.servers[index].conn.is_some();
    match dice.roll(11) {
        0 if is_alive => pool.kill(index),
        1 | 2 if is_stopped => pool.go_on(index),
        1 | 2 if !is_alive => pool.revive(index),
        7 | 8 => pool.server(index).alive = false,
        9 if is_alive => pool.lose_answer(index),
        3 => pool.server(index).stuck ^= true,
        4 => pool.server(index).stuck = false,
        5 => pool.crash_after = Some(1 + dice.roll(8) as usize),
        6 => pool.pass(dice.roll(20_000)),
        _ => {}
    }
}

fn storm(seed: u64) {
    let mut dice = Dice(seed);
    let mut pool = Pool::new(&[16, 16, 16, 0, 0]);
    let mut mounted = Vec::new();
    for round in 0..60u128 {
        disturb(&mut pool, &mut dice);
        let request = random_request(&pool, &mut dice, 1000 + round);
        if matches!(request, Request::SetWay { .. }) {
            // It waits for its lenders however long that takes, so nobody waits for it here.
            pool.send(request);
            pool.pass(1000);
        } else if let Response::Task(answer) = pool.ask(request)
            && let TaskOutcome::Mounted { mounting } = answer.outcome
        {
            check_mounted(&pool, &mounting);
            mounted.push(*mounting);
        }
        if let Some(mounting) = mounted.last().cloned()
            && dice.roll(2) == 0
        {
            let leg = dice.roll(mounting.segments[0].legs.len() as u64) as usize;
            let row = pool.core.table().volumes.get(&mounting.volume).map(|row| row.segments[0].generation);
            let change = [LegChange::Stale, LegChange::Returning, LegChange::InSync, LegChange::Withdrawn][dice.roll(4) as usize];
            if let Some(generation) = row {
                pool.change_leg(&mounting, leg, generation, change);
            }
        }
        check_space(&mut pool);
        for volume in pool.core.table().volumes.values() {
            assert!(volume.segments.iter().all(|segment| segment.legs.iter().any(|leg| leg.in_sync)), "the last leg left");
        }
    }
    settle_at_last(&mut pool, seed);
}

/// When all lenders are well again, everything comes to its end.
fn settle_at_last(pool: &mut Pool, seed: u64) {
    pool.crash_after = None;
    for index in 0..3 {
        pool.server(index).stuck = false;
        if pool.servers[index].conn.is_some() {
            pool.go_on(index);
        } else if !pool.servers[index].alive {
            pool.revive(index);
        }
    }
    pool.pass(300_000);
    let table = pool.core.table();
    assert!(table.tasks.values().all(|task| !task.is_running()), "seed {seed}");
    assert!(table.wipes.is_empty(), "seed {seed}: {:?}", table.wipes);
    let mut known = std::collections::BTreeSet::new();
    for volume in table.volumes.values() {
        assert_eq!(volume.frozen, None, "seed {seed}");
        let is_mounted = volume.lease.as_ref().is_some_and(|lease| lease.state == LeaseState::Active);
        for (_, leg) in volume.legs() {
            known.insert(leg.slice);
            let server = pool.servers.iter().find(|server| server.areas.contains_key(&leg.area)).unwrap();
            let slice = &server.areas[&leg.area].slices[&leg.slice];
            assert_eq!((slice.admitted, slice.epoch.number), (is_mounted, volume.epoch.number), "seed {seed}: {}", volume.name);
        }
    }
    for slice in pool.servers.iter().flat_map(|server| server.areas.values()).flat_map(|area| area.slices.keys()) {
        assert!(known.contains(slice), "seed {seed}: a slice is left over in a label");
    }
}

#[test]
fn whatever_fails_in_between_everything_comes_to_its_end_and_nothing_overlaps() {
    for seed in 0..60 {
        storm(seed);
    }
}
