//! The nouns of Sublet: ids, names, sizes, epochs, geometry, usage ways, addresses and limits.
//!
//! This crate does no I/O, reads no clock and draws no random numbers. Everything here is plain data with
//! checked conversions; every other crate builds on it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod address;
pub mod drawn;
pub mod epoch;
pub mod geometry;
pub mod id;
pub mod limits;
pub mod mutation;
pub mod name;
pub mod seal;
pub mod size;
pub mod way;

pub use address::Address;
pub use epoch::{Epoch, Generation, LeaseSecret, SessionNumber};
pub use geometry::{BlockIndex, BlockRange, ByteOffset, Piece, VolumeMap};
pub use id::{AreaId, ManagerId, OpenId, PersonId, PoolId, ServerId, SliceId, TaskId, TokenId, VolumeId};
pub use name::Name;
pub use seal::SealText;
pub use size::ByteSize;
pub use way::Way;
