//! What another version of this program has written or speaks is refused, not guessed.

use crate::testing::doors::MemDoors;
use crate::testing::world::World;
use crate::{MOUNT_VERSIONS, VolumeErrorKind, VolumeOptions};
use sublet_wire::frame::PROTOCOL_VERSION;

#[test]
fn a_lender_that_answers_hello_with_another_protocol_version_gets_no_session() {
    for version in [0, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, u8::MAX] {
        MemDoors::run(1, move |doors| async move {
            let world = World::new(&doors, &[65536], 1);
            world.lenders[0].version.set(version);
            let error = world.open_with(VolumeOptions::default()).await.err().unwrap();
            assert_eq!(error.kind, VolumeErrorKind::LenderMissing, "{version}");
            assert!(error.text.contains("another protocol version"), "{}", error.text);
            assert_eq!(world.event(0, "open"), None, "{:?}", world.history.borrow());
        });
    }
}

#[test]
fn mounting_information_of_another_version_is_refused_before_any_lender_is_asked() {
    for version in [0, MOUNT_VERSIONS.end() + 1] {
        MemDoors::run(2, move |doors| async move {
            let mut world = World::new(&doors, &[65536], 1);
            world.info.version = version;
            let error = world.open_with(VolumeOptions::default()).await.err().unwrap();
            assert_eq!(error.kind, VolumeErrorKind::Protocol);
            assert!(error.text.contains(&format!("version {version}")), "{}", error.text);
            assert!(world.lenders[0].seen.borrow().is_empty());
        });
    }
}
