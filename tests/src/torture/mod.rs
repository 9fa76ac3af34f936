//! Process torture: everything is killed, frozen, restarted and cut off at random under verified load, then everything is
//! checked.

pub mod chaos;
pub mod nets;
pub mod site;
pub mod timeline;
pub mod window;
pub mod writer;
