//! The messages between the manager, the servers, the clients and the command line.
//!
//! Plain data with JSON forms. HTTP is a thin shell over these types (section 10 of the design): the manager answers
//! a [`Request`](request::Request) with a [`Response`](request::Response), whatever carried it. No I/O, no clock.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod control;
pub mod error;
pub mod lending;
pub mod mount;
mod naming;
pub mod order;
pub mod rebuild;
pub mod request;
pub mod server;
pub mod view;
pub mod work;

pub use error::{ErrorKind, Refusal};
