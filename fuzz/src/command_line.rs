//! The words of the command line. The program has no library, so its description of them is taken from its source.

use clap::Parser as _;

#[allow(dead_code, unused_imports, missing_docs, reason = "here it is only read into")]
#[path = "../../crates/cli/src"]
mod program {
    pub mod args;
}

use program::args::{Cli, addresses, duration};

/// Words, one a line.
pub fn words(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    if let Ok(time) = duration(text) {
        assert!(!time.is_zero() && time.as_secs() < 1 << 31);
    }
    if let Ok(found) = addresses(&[text.to_owned()], 7471) {
        assert_eq!(found.len(), 1);
    }
    let words: Vec<&str> = std::iter::once("sublet").chain(text.lines()).collect();
    let (first, second) = (Cli::try_parse_from(&words), Cli::try_parse_from(&words));
    match (first, second) {
        (Ok(first), Ok(second)) => {
            assert_eq!(format!("{first:?}"), format!("{second:?}"));
            true
        }
        (Err(error), Err(_)) => {
            // A mistake is told, and with the status for wrong usage.
            assert!(!error.to_string().is_empty() && [0, 2].contains(&error.exit_code()));
            false
        }
        _ => panic!("the same words are read and not read"),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let lines = [
        "playground --servers 5 --area-size 512M --dir d --detach",
        "manager --data d --listen 127.0.0.1:0",
        "manager rebuild --pool 0123456789abcdef0123456789abcdef",
        "server --data d --manager http://m:7470 --listen [::1]:0 --advertise 10.0.0.1,10.1.0.1 --zone r1",
        "server ls --json",
        "server forget server-b --lost --yes",
        "lend /srv --size 10G --name a2 --sparse --keep-free 20% --force",
        "lend --suggest",
        "volume create v --way integrated --on a2,b2:10G",
        "volume set-way v --way divided --on a2:1G",
        "volume accept v a2 --stale",
        "borrow v --size 10G --way doubled --copies 2 --local --encrypt",
        "borrow --size 1G --way auto",
        "limits server-a --bytes 500G --volumes none",
        "mount v /mnt --as fuse --mkfs ext4 --read-only --idle-close 30s --fail-after 1m",
        "search v pattern --limit 3 --count",
        "task limit 0123abcd 50M",
        "volume replace v --lost server-b --on c1",
        "volume scrub v --every 7d",
        "events --limit 5 --after 7",
        "30s",
        "500ms",
    ];
    lines.iter().map(|line| line.replace(' ', "\n").into_bytes()).collect()
}
