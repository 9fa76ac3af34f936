//! The NBD front end: a server for one volume on a Unix socket (fixed newstyle, structured replies, `base:allocation`).
//!
//! [`protocol`], [`negotiation`] and [`request`] are pure codecs; [`server`] and [`connection`](self) are short shells.

mod connection;
mod outbox;
mod receiver;

pub mod negotiation;
pub mod protocol;
pub mod request;
pub mod server;

pub use server::Server;

#[cfg(test)]
mod tests;
