//! `sublet token`, `sublet person`, `sublet login`, `sublet audit`: who may come in.

use std::time::Duration;

use clap::{Args, Subcommand};
use sublet_api::access::Role;
use sublet_types::Name;

use super::duration;

/// `sublet token create|ls|revoke`.
#[derive(Subcommand, Debug)]
pub enum Token {
    /// Make a string that lets a server in, or a token for a program.
    Create(CreateToken),
    /// List the tokens that can still be used.
    Ls,
    /// Make a token useless.
    Revoke {
        /// Its id, or the first digits of it.
        token: String,
    },
}

/// `sublet token create`.
#[derive(Args, Debug)]
pub struct CreateToken {
    /// How long it is valid: 1h for strings that let a server in, 90d for tokens of programs.
    #[arg(long, value_parser = duration)]
    pub ttl: Option<Duration>,
    /// How many servers may use it.
    #[arg(long, default_value_t = 1, conflicts_with_all = ["rejoin", "role"])]
    pub uses: u32,
    /// Let this server in again, with a new certificate; those that it has are void then.
    #[arg(long, value_name = "SERVER", conflicts_with = "role")]
    pub rejoin: Option<String>,
    /// Make a token for a program that asks the manager's HTTP interface in this role.
    #[arg(long, requires = "name")]
    pub role: Option<Role>,
    /// What such a token is called.
    #[arg(long, requires = "role")]
    pub name: Option<Name>,
}

/// `sublet person add|ls|login|role|revoke|rm`.
#[derive(Subcommand, Debug)]
pub enum Person {
    /// Add somebody, and print the link by which they log in.
    Add {
        /// What they are called.
        name: Name,
        /// What they may do: viewer, operator or administrator.
        #[arg(long)]
        role: Role,
        /// How long the link is valid.
        #[arg(long, value_parser = duration, default_value = "1d")]
        ttl: Duration,
    },
    /// List the people.
    Ls,
    /// Print another link by which somebody logs in, on another machine or again.
    Login {
        /// Name or id.
        person: String,
        /// How long the link is valid.
        #[arg(long, value_parser = duration, default_value = "1d")]
        ttl: Duration,
    },
    /// Give somebody another role.
    Role {
        /// Name or id.
        person: String,
        /// Viewer, operator or administrator.
        role: Role,
    },
    /// Make all certificates of somebody void: they have to log in again, wherever they are.
    Revoke {
        /// Name or id.
        person: String,
    },
    /// Remove somebody.
    Rm {
        /// Name or id.
        person: String,
    },
}
