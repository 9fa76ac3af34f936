//! The command line, as section 12 of the design fixes it. Scripts rely on these words.

mod access;
mod daemons;
mod key;
mod limits;
mod recovery;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sublet_types::{Address, ByteSize, Name, Way};

pub use self::access::{CreateToken, Person, Token};
pub use self::key::{Key, Rekey};
pub use self::limits::{Limit, Limits};
pub use self::work::{Every, Rate, Replace, Scrub, Task};

/// Servers with disks of their own lend their spare space to each other.
#[derive(Parser, Debug)]
#[command(name = "sublet", version, propagate_version = true, infer_subcommands = false)]
pub struct Cli {
    /// The manager's URL, for example http://manager1:7470 (several: comma).
    #[arg(long, global = true, env = "SUBLET_MANAGER", value_name = "URL", value_delimiter = ',')]
    pub manager: Vec<String>,
    /// The local server's state directory.
    #[arg(long, global = true, env = "SUBLET_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// The certificate to ask the manager with, in a file that `sublet login` makes; otherwise the user's, or the local server's.
    #[arg(long, global = true, env = "SUBLET_CREDENTIALS", value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// Answer in JSON, for machines.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// A whole pool on this machine, real processes, until Ctrl-C.
    Playground(Playground),
    /// The story of the pool on a playground, step by step, with the table shown.
    Demo(Demo),
    /// Run the management server.
    Manager(Manager),
    /// Run this machine's server: it registers, lends and borrows.
    Server(ServerCommand),
    /// Register an area that others may borrow.
    Lend(Lend),
    /// Take an area back that nobody uses.
    Reclaim {
        /// Name or id of the area.
        area: String,
    },
    /// Volumes: create, set-way, init, ls, show, rename.
    #[command(subcommand)]
    Volume(Volume),
    /// Borrow a volume: the free one of that name, the best-fitting one, or a new one.
    Borrow(Borrow),
    /// Hand a volume with its bytes to another server.
    Transfer {
        /// Name or id of the volume.
        volume: String,
        /// The new borrower's name or id.
        #[arg(long)]
        to: String,
        /// Fence the present borrower first if it has the volume mounted.
        #[arg(long)]
        force: bool,
    },
    /// Mount a borrowed volume: make the path to its lenders and serve it here.
    Mount(Mount),
    /// Unmount: close the path and clean up, also after a crash of the client.
    Unmount {
        /// Name or id of the volume.
        volume: String,
        /// Fence the present client, wherever it is.
        #[arg(long)]
        force: bool,
    },
    /// Return a borrowed volume; its bytes are wiped.
    Return {
        /// Name or id of the volume.
        volume: String,
        /// Dissolve a defined volume instead of making it free again.
        #[arg(long)]
        dissolve: bool,
    },
    /// Strings that let servers in, and tokens for programs: create, ls, revoke.
    #[command(subcommand)]
    Token(Token),
    /// People: add, ls, login, role, revoke, rm.
    #[command(subcommand)]
    Person(Person),
    /// Set up the command line of this user, with a link from `sublet person add` or the manager's first start.
    Login {
        /// The link.
        link: String,
    },
    /// Who has asked for which change, and how it ended; newest last.
    Audit {
        /// Show at most so many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// How much servers may borrow.
    Limits(Limits),
    /// Find a byte pattern in a borrowed volume; the lenders search, only offsets travel.
    Search(Search),
    /// Show the virtual disk management table.
    Table {
        /// Show it again whenever it changes, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Areas: ls, rename.
    #[command(subcommand)]
    Area(Area),
    /// Tasks and background work: ls, pause, resume, cancel, limit.
    #[command(subcommand)]
    Task(Task),
    /// What happened, newest last.
    Events {
        /// Show at most so many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Show only events with a higher number.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
    /// This server: its identity, areas and mounted volumes.
    Status,
    /// The client of one mounted volume; started by `mount`.
    #[command(hide = true)]
    Client(Client),
}

/// `sublet playground`.
#[derive(Args, Debug, Clone)]
pub struct Playground {
    /// How many servers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=26))]
    pub servers: u8,
    /// Room for data in each server's area.
    #[arg(long, default_value = "1G")]
    pub area_size: ByteSize,
    /// Where the pool lives.
    #[arg(long, default_value = "sublet-playground")]
    pub dir: PathBuf,
    /// Lend nothing yet.
    #[arg(long)]
    pub no_areas: bool,
    /// Return once everything is up.
    #[arg(long)]
    pub detach: bool,
    /// End the playground in DIR.
    #[arg(long, conflicts_with_all = ["detach", "no_areas"])]
    pub stop: bool,
    /// The manager's port; a free one otherwise.
    #[arg(long)]
    pub manager_port: Option<u16>,
    /// The servers' ports, counted up from this one; free ones otherwise.
    #[arg(long)]
    pub server_port: Option<u16>,
}

/// `sublet demo`.
#[derive(Args, Debug)]
pub struct Demo {
    /// Where the demo's pool lives; a temporary directory otherwise. It is removed at the end.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Leave the pool's directory in place at the end.
    #[arg(long)]
    pub keep: bool,
}

pub use self::daemons::{Manager, ServerCommand, Servers};
pub use recovery::{AcceptVolume, Forget, Rebuild, TableCommand};

/// `sublet lend`.
#[derive(Args, Debug)]
pub struct Lend {
    /// A folder (a file is made in it), a file, a partition or a disk; several are joined into one area.
    #[arg(required_unless_present = "suggest")]
    pub paths: Vec<PathBuf>,
    /// Room for data (folder), or length of the part that is lent (file, partition, disk).
    #[arg(long)]
    pub size: Option<ByteSize>,
    /// Where the part begins.
    #[arg(long)]
    pub offset: Option<ByteSize>,
    /// The area's name.
    #[arg(long)]
    pub name: Option<Name>,
    /// Do not preallocate: a borrower may meet a full disk.
    #[arg(long)]
    pub sparse: bool,
    /// Part of the folder's file system that stays free.
    #[arg(long, default_value = "10%", value_parser = percent)]
    pub keep_free: u8,
    /// Lend it although there is something on it, which is lost then.
    #[arg(long)]
    pub force: bool,
    /// List what could be lent, and the command for each.
    #[arg(long, conflicts_with = "paths")]
    pub suggest: bool,
}

/// `sublet borrow`.
#[derive(Args, Debug)]
pub struct Borrow {
    /// Without --size: exactly that free volume. With it: the name of the new volume.
    #[arg(required_unless_present = "size")]
    pub name: Option<Name>,
    /// How much is needed.
    #[arg(long)]
    pub size: Option<ByteSize>,
    /// The usage way; the simplest that fits otherwise.
    #[arg(long, value_parser = way_or_auto)]
    pub way: Option<WayChoice>,
    /// Copies on different servers.
    #[arg(long)]
    pub copies: Option<u32>,
    /// Allow areas of this very server.
    #[arg(long)]
    pub local: bool,
    /// Encrypt it here: its lenders get bytes that mean nothing to them. Without the key nobody ever reads it again.
    #[arg(long)]
    pub encrypt: bool,
    /// The key to be.
    #[command(flatten)]
    pub key: Key,
}

/// `auto`, or a usage way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayChoice {
    /// The simplest that fits.
    Auto,
    /// This one.
    Way(Way),
}

/// `sublet mount`.
#[derive(Args, Debug)]
pub struct Mount {
    /// Name or id of the volume.
    pub volume: String,
    /// Mount its file system here.
    pub dir: Option<PathBuf>,
    /// What to serve it as.
    #[arg(long = "as", value_enum, default_value_t = FrontEnd::Auto)]
    pub front_end: FrontEnd,
    /// Make a file system if the volume holds nothing yet.
    #[arg(long, value_enum)]
    pub mkfs: Option<FileSystem>,
    /// Refuse writes.
    #[arg(long)]
    pub read_only: bool,
    /// Close the path when it was not used for so long, for example 30s. A path with a stale copy stays open for it.
    #[arg(long, value_parser = duration)]
    pub idle_close: Option<Duration>,
    /// Fail I/O when a lender has been missing for so long; it waits for ever otherwise.
    #[arg(long, value_parser = duration)]
    pub fail_after: Option<Duration>,
    /// What opens it if it is encrypted.
    #[command(flatten)]
    pub key: Key,
}

/// How a volume appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FrontEnd {
    /// A block device where that is possible, else the socket.
    Auto,
    /// A block device through FUSE and loop, and the socket.
    Fuse,
    /// An NBD server on a Unix socket.
    Socket,
}

/// File systems that `mount --mkfs` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// xfs (needs 300 MiB).
    Xfs,
}

/// `sublet search`.
#[derive(Args, Debug)]
pub struct Search {
    /// Name or id of the volume.
    pub volume: String,
    /// The text to find.
    pub pattern: String,
    /// The pattern is in hexadecimal digits.
    #[arg(long)]
    pub hex: bool,
    /// Stop after so many matches.
    #[arg(long)]
    pub limit: Option<u64>,
    /// Print only how many matches there are.
    #[arg(long)]
    pub count: bool,
    /// What opens it if it is encrypted and not mounted.
    #[command(flatten)]
    pub key: Key,
}

/// `sublet volume ...`.
#[derive(Subcommand, Debug)]
pub enum Volume {
    /// Define a free volume.
    Create {
        /// The new volume's name.
        name: Name,
        /// The usage way.
        #[arg(long)]
        way: Way,
        /// Areas, in the order of the volume, each with a size if not all of it: a2,b2:10G.
        #[arg(long, value_delimiter = ',', required = true)]
        on: Vec<String>,
        /// Copies of each segment (doubled).
        #[arg(long, default_value_t = 2)]
        copies: u32,
    },
    /// Give a free defined volume another usage way or other areas.
    SetWay {
        /// Name or id.
        volume: String,
        /// The usage way.
        #[arg(long)]
        way: Way,
        /// Areas as in create; the present ones otherwise.
        #[arg(long, value_delimiter = ',')]
        on: Vec<String>,
        /// Copies of each segment (doubled).
        #[arg(long, default_value_t = 2)]
        copies: u32,
    },
    /// Make every byte of a borrowed volume read as zero.
    Init {
        /// Name or id.
        volume: String,
        /// What opens it if it is encrypted and not mounted.
        #[command(flatten)]
        key: Key,
    },
    /// Let an encrypted volume be opened with another passphrase or key file.
    Rekey(Rekey),
    /// Make the copies of a lost server anew on free space.
    Replace(Replace),
    /// Check and compare the checksums of all copies.
    Scrub(Scrub),
    /// List the volumes.
    Ls,
    /// Show one volume with its segments and legs.
    Show {
        /// Name or id.
        volume: String,
    },
    /// Go on with the copies of a frozen volume that are there: whatever another copy has more is lost.
    Accept(AcceptVolume),
    /// Give a volume another name.
    Rename {
        /// Name or id.
        volume: String,
        /// The new name.
        name: Name,
    },
}

/// `sublet area ...`.
#[derive(Subcommand, Debug)]
pub enum Area {
    /// List the areas with their slices.
    Ls,
    /// Trust a quarantined area again as it is: writes that were in it when it was set back are gone; its copies stay stale
    /// until they have been copied anew, and a volume that has no other copy goes on with the older bytes.
    Accept {
        /// Name or id.
        area: String,
    },
    /// Give an area another name.
    Rename {
        /// Name or id.
        area: String,
        /// The new name.
        name: Name,
    },
}

/// `sublet client`, started by `mount`.
#[derive(Args, Debug)]
pub struct Client {
    /// The mount's directory.
    #[arg(long)]
    pub dir: PathBuf,
    /// Serve a block device, too.
    #[arg(long)]
    pub fuse: bool,
    /// See `mount`.
    #[arg(long, value_parser = duration)]
    pub idle_close: Option<Duration>,
    /// See `mount`.
    #[arg(long, value_parser = duration)]
    pub fail_after: Option<Duration>,
    /// What opens the key of an encrypted volume comes as a line on the standard input.
    #[arg(long)]
    pub key_stdin: bool,
    /// A file descriptor on which to say that everything is up.
    #[arg(long)]
    pub ready_fd: Option<i32>,
}

fn percent(text: &str) -> Result<u8, String> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    match digits.parse() {
        Ok(n) if n <= 90 => Ok(n),
        _ => Err("write a percentage from 0% to 90%, for example 10%".to_owned()),
    }
}

fn way_or_auto(text: &str) -> Result<WayChoice, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(WayChoice::Auto);
    }
    text.parse().map(WayChoice::Way).map_err(|e: sublet_types::way::WayError| format!("{e}, or auto"))
}

/// Reads `30s`, `5m`, `2h`, `500ms` or plain seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let hint = || "write a time such as 500ms, 30s, 5m, 2h or 7d".to_owned();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let n: u64 = digits.parse().map_err(|_| hint())?;
    let ms = match unit {
        "ms" => Some(n),
        "" | "s" => n.checked_mul(1000),
        "m" => n.checked_mul(60_000),
        "h" => n.checked_mul(3_600_000),
        "d" => n.checked_mul(24 * 3_600_000),
        _ => None,
    };
    ms.filter(|ms| *ms > 0 && *ms < 1 << 40).map(Duration::from_millis).ok_or_else(hint)
}

/// Reads listening or advertised addresses, with a port for those that name none.
///
/// # Errors
/// A text that names the wrong one.
pub fn addresses(texts: &[String], port: u16) -> Result<Vec<Address>, String> {
    texts.iter().map(|text| Address::parse_with_port(text, port).map_err(|e| e.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_forms_are_read() {
        for line in [
            "playground --servers 5 --area-size 512M --dir d --detach",
            "playground --dir d --stop",
            "demo",
            "manager --data d --listen 127.0.0.1:0",
            "server --data d --manager http://m:7470 --listen [::1]:0 --advertise 10.0.0.1,10.1.0.1 --zone r1",
            "server ls --json",
            "server rename a b",
            "server leave",
            "lend /srv --size 10G --name a2 --sparse --keep-free 20% --force",
            "lend /dev/sdb --offset 1G --size 2G",
            "lend --suggest",
            "reclaim a2",
            "volume create v --way integrated --on a2,b2:10G",
            "volume set-way v --way divided --on a2:1G",
            "volume init v",
            "borrow v",
            "borrow v --size 10G --way doubled --copies 2 --local",
            "borrow --size 1G --way auto",
            "transfer v --to server-b --force",
            "mount v /mnt --as fuse --mkfs ext4 --read-only --idle-close 30s --fail-after 1m",
            "unmount v --force",
            "return v",
            "search v pattern --limit 3 --count",
            "table --watch",
            "area ls",
            "area rename a b",
            "task ls",
            "task pause 0123abcd",
            "task resume 0123abcd",
            "task cancel 0123abcd",
            "task limit 0123abcd 50M",
            "volume replace v --lost server-b --on c1",
            "volume scrub v --rate 50M",
            "volume scrub v --every 7d",
            "volume scrub v --every off",
            "events",
            "status --json",
        ] {
            let words = std::iter::once("sublet").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "borrow",
            "borrow v --size 10 potatoes",
            "borrow v --size -1",
            "borrow v_1",
            "lend",
            "mount",
            "mount v --idle-close 0",
            "mount v --as tape",
            "volume create v --way raid --on a",
            "volume replace v",
            "volume scrub v --every off --rate 5M",
            "task limit 0123abcd",
            "playground --servers 0",
            "vault",
        ] {
            let words = std::iter::once("sublet").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(duration("s").is_err());
        assert!(duration("99999999999999999999s").is_err());
    }
}
