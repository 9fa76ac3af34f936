//! Large volumes: the work of one event must not grow with the square of their legs.

use rustix::time::{ClockId, clock_gettime};
use sublet_api::request::{CreateVolume, Request};
use sublet_types::Way;

use crate::core::testing::{Pool, R, borrow, force_unmount, give_back, mount, name, on, task};

#[test]
fn a_volume_of_a_thousand_legs_is_defined_mounted_and_returned_in_seconds() {
    let mut pool = Pool::new(&[300, 300, 300, 300, 0]);
    let borrower = pool.id(4);
    // Background work is not what is measured here.
    pool.servers.iter_mut().for_each(|server| server.is_lazy = true);
    let shares: Vec<_> = (0..250).flat_map(|_| [("a1", Some(R)), ("b1", Some(R)), ("c1", Some(R)), ("d1", Some(R))]).collect();
    let begun = cpu_seconds();
    let create = CreateVolume { task: task(1), name: name("v"), way: Way::Doubled, on: on(&shares), copies: 4 };
    pool.done(Request::CreateVolume(create));
    pool.done(borrow(2, borrower, Some("v"), None, None));
    assert_eq!(pool.mounted(mount(3, borrower, "v")).segments.len(), 250);
    pool.kill(1);
    pool.done(force_unmount(4, "v"));
    pool.revive(1);
    pool.pass(10_000);
    pool.done(give_back(5, Some(borrower), "v", true));
    assert!(pool.core.table().wipes.is_empty());
    // Unoptimised: three seconds. With work in the square of the legs it takes minutes.
    let took = cpu_seconds() - begun;
    assert!(took < 30, "{took} s");
}

/// What this thread has used of the processor: other programs on the machine do not count.
fn cpu_seconds() -> i64 {
    clock_gettime(ClockId::ThreadCPUTime).tv_sec
}
