//! The access protocol between client and agent: frames and codecs, without sockets.
//!
//! `docs/protocol.md` draws the frames byte by byte; `cargo xtask tidy` checks that it moves together with this crate.
//! A peer's bytes never panic anything here: every decoder returns [`Malformed`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod checksum;
pub mod codec;
pub mod frame;
pub mod message;
pub mod status;

pub use codec::Malformed;
pub use frame::{FRAME_SIZE, Flags, Op, ReplyFrame, RequestFrame};
pub use status::Status;
