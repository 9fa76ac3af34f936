//! Who asks, what they may do, and how somebody gets in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sublet_types::{Name, PersonId, PoolId, ServerId, TokenId};

/// What a person, or a program with a token, may do. Each may do what the ones before may, too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look.
    Viewer,
    /// Borrow, mount, unmount and return.
    Operator,
    /// Everything.
    Administrator,
}

impl Role {
    const ALL: [(Role, &'static str); 3] =
        [(Role::Viewer, "viewer"), (Role::Operator, "operator"), (Role::Administrator, "administrator")];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Role::ALL.iter().find(|(role, _)| role == self).map_or("", |(_, word)| word))
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Role::ALL.iter().find(|(_, word)| *word == text).map(|(role, _)| *role);
        found.ok_or_else(|| format!("'{}' is no role: it is viewer, operator or administrator", text.escape_default()))
    }
}

/// The certificate by which a caller is known: it was verified, and is not older than its expiry when the connection began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    /// When it was issued, in milliseconds since 1970.
    pub issued_ms: u64,
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// Who asks, as far as the connection proves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// The manager's own process: whoever started it may do everything.
    Manager,
    /// Somebody without a certificate or token.
    Stranger,
    /// A server of the pool.
    Server {
        /// Which.
        server: ServerId,
        /// How it is known.
        proof: Proof,
    },
    /// Somebody at a command line.
    Person {
        /// Who.
        person: PersonId,
        /// How it is known.
        proof: Proof,
    },
    /// A program with a token; the token itself is not told further.
    Token {
        /// SHA-256 of it, hexadecimal.
        digest: String,
    },
}

/// What a token is good for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "use", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenUse {
    /// A new server joins.
    Join,
    /// A server gets a new certificate; those that it had are void.
    Rejoin {
        /// Name or id of the server.
        server: String,
    },
    /// A person gets a certificate.
    Login {
        /// Name or id of the person.
        person: String,
    },
    /// A program asks with it, as `Authorization: Bearer`.
    Api {
        /// What it may do.
        role: Role,
        /// What it is called, for people.
        name: Name,
    },
}

impl fmt::Display for TokenUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenUse::Join => f.write_str("join"),
            TokenUse::Rejoin { server } => write!(f, "rejoin {server}"),
            TokenUse::Login { person } => write!(f, "login {person}"),
            TokenUse::Api { role, name } => write!(f, "{name}, {role}"),
        }
    }
}

/// `POST /v1/tokens`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it is good for.
    pub what: TokenUse,
    /// How long it is valid, in seconds.
    pub ttl_s: u64,
    /// How many may use it; of a token for the API it does not matter.
    #[serde(default = "one")]
    pub uses: u32,
}

const fn one() -> u32 {
    1
}

/// A token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenView {
    /// By which it is revoked.
    pub id: TokenId,
    /// What it is good for.
    pub what: TokenUse,
    /// Who made it.
    pub made_by: String,
    /// When, in milliseconds since 1970.
    pub made_ms: u64,
    /// Until when it is valid, in milliseconds since 1970.
    pub expires_ms: u64,
    /// How many may use it yet.
    pub uses_left: u32,
}

/// A new token: the only time that its secret is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewToken {
    /// The token.
    pub token: TokenView,
    /// What is given to whoever shall use it: the string for `sublet server --join` or `--rejoin`, the link for `sublet login`,
    /// or what belongs behind `Authorization: Bearer`.
    pub text: String,
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A token as the core makes it: its shell knows how it is written.
#[derive(Clone, PartialEq, Eq)]
pub struct DrawnToken {
    /// The token.
    pub token: TokenView,
    /// Its secret.
    pub secret: [u8; 16],
}

impl fmt::Debug for DrawnToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrawnToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// How somebody gets in: what the token must be for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A new server.
    Join,
    /// A server that is known already.
    Rejoin,
    /// A person.
    Login,
}

/// `POST /v1/enter`: a token against a certificate. The only request that a stranger may make.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enter {
    /// How.
    pub entry: Entry,
    /// The token's secret (base 64 for URLs, without padding).
    pub secret: String,
    /// The request for a certificate (PKCS 10, PEM), signed with the key that never leaves the caller. Who repeats it with the
    /// same request gets a certificate again, so that a lost answer does no harm.
    pub request: String,
    /// Which server; of a person none.
    #[serde(default)]
    pub server: Option<ServerId>,
}

impl fmt::Debug for Enter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enter").field("entry", &self.entry).field("server", &self.server).finish_non_exhaustive()
    }
}

/// `POST /v1/renew`: another certificate for the same caller, who has one that is still valid.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// The request for a certificate (PKCS 10, PEM).
    pub request: String,
}

/// Who gets a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admitted {
    /// A server.
    Server {
        /// Which.
        server: ServerId,
        /// When it is issued, in milliseconds since 1970.
        issued_ms: u64,
    },
    /// A person.
    Person {
        /// Who.
        person: PersonId,
        /// When it is issued, in milliseconds since 1970.
        issued_ms: u64,
    },
}

/// The answer to [`Enter`] and [`Renew`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Certified {
    /// The pool.
    pub pool: PoolId,
    /// The authority's certificate (PEM).
    pub authority: String,
    /// The caller's certificate (PEM).
    pub certificate: String,
    /// Where the manager can be reached.
    pub managers: Vec<String>,
}

/// `POST /v1/people`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddPerson {
    /// What they are called.
    pub name: Name,
    /// What they may do.
    pub role: Role,
}

/// `POST /v1/people/{person}`: a change of a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum ChangePerson {
    /// Give them another role.
    Role {
        /// Which.
        role: Role,
    },
    /// All certificates that they have are void: somebody else may have one.
    Revoke,
    /// Remove them.
    Remove,
}

/// Somebody who may use the command line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PersonView {
    /// Who.
    pub id: PersonId,
    /// What they are called.
    pub name: Name,
    /// What they may do.
    pub role: Role,
    /// When they got a certificate last, in milliseconds since 1970; none if they never did.
    pub entered_ms: Option<u64>,
}

/// One line of the audit log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditLine {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who: a name, and what they are.
    pub who: String,
    /// The address that the request came from; empty if it came from the manager itself.
    pub from: String,
    /// What was asked for.
    pub what: String,
    /// On what: a name or id.
    pub subject: String,
    /// How it ended: `done`, `begun`, or the kind and text of the refusal.
    pub result: String,
}
