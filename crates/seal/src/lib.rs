//! Encryption by the borrower: the lender gets bytes that mean nothing to it.
//!
//! A sealed volume has a random master key, made at the borrower, which never leaves it: what is kept elsewhere (in the manager's
//! table and in the last two blocks of the volume itself) is a [`Header`] that has it wrapped by a passphrase or a key file. Blocks
//! of 4 KiB are encrypted one by one with AES-256-XTS ([`Cipher`]).
//!
//! What it gives and what it does not is in docs/security.md: the lender sees which blocks are written and when, and can put back
//! an older state of a block, as with every encryption that keeps the length of what it encrypts.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cipher;
mod header;
mod text;
mod unlock;

pub use cipher::{Cipher, MasterKey};
pub use header::{Header, HeaderError};
pub use text::{open_text, seal_text};
pub use unlock::{Kind, Unlock};
