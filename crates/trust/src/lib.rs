//! Who is who: the pool's certificate authority, certificates, and the strings that invite somebody into a pool.
//!
//! Every pool has an authority of its own, which its manager makes at its first start. What a certificate says is one
//! [`Identity`]; what its owner may do is decided by the manager's table. Certificates are X.509 (RFC 5280) with ECDSA P-256,
//! connections are TLS 1.3 (RFC 8446) by rustls. Nothing here does I/O, has a clock or draws its own ids: files, sockets and the
//! time are the caller's. Keys are drawn by the library that signs with them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod authority;
mod credentials;
mod fault;
mod identity;
mod invitation;
mod presented;
mod tls;

pub use authority::{Authority, AuthorityRecord, Fingerprint};
pub use credentials::{Credentials, NewKey};
pub use fault::{TrustError, explain};
pub use identity::Identity;
pub use invitation::{Invitation, InvitationKind, InvitationSecret};
pub use presented::{Presented, presented};
pub use tls::{OwnCertificate, client_config, newcomer_config, server_config};
