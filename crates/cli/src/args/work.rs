//! Background work: `task ...`, `volume replace`, `volume scrub`.

use std::time::Duration;

use clap::{Args, Subcommand};
use sublet_types::{ByteSize, Name};

/// `sublet task ...`.
#[derive(Subcommand, Debug)]
pub enum Task {
    /// List the tasks, and all background work.
    Ls,
    /// Do nothing for a resync, scrub or replace until it is resumed.
    Pause {
        /// Its id, or the first digits of it.
        task: String,
    },
    /// Go on with it.
    Resume {
        /// Its id, or the first digits of it.
        task: String,
    },
    /// End a scrub, or a replace that has not begun.
    Cancel {
        /// Its id, or the first digits of it.
        task: String,
    },
    /// Change its limit.
    Limit {
        /// Its id, or the first digits of it.
        task: String,
        /// Bytes a second, for example 50M; `default` lifts the limit.
        #[arg(value_parser = rate)]
        rate: Rate,
    },
}

/// Bytes a second; 0 is the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate(pub u64);

/// Reads `50M` or `default`.
fn rate(text: &str) -> Result<Rate, String> {
    if text == "default" {
        return Ok(Rate(0));
    }
    let size: ByteSize = text.parse().map_err(|e| format!("{e}; write a rate such as 50M (a second), or default"))?;
    if size.bytes() == 0 {
        return Err("nothing is done at that rate; pause it instead".to_owned());
    }
    Ok(Rate(size.bytes()))
}

/// `sublet volume replace`.
#[derive(Args, Debug)]
pub struct Replace {
    /// Name or id.
    pub volume: String,
    /// The server that is lost; its copies of this volume are given up.
    #[arg(long, value_name = "SERVER")]
    pub lost: String,
    /// The area that gets the new copy; the best-fitting free space otherwise.
    #[arg(long, value_name = "AREA")]
    pub on: Option<Name>,
    /// Wait until the new copy is in sync.
    #[arg(long)]
    pub wait: bool,
}

/// `sublet volume scrub`.
#[derive(Args, Debug)]
pub struct Scrub {
    /// Name or id.
    pub volume: String,
    /// At most so many bytes a second, for example 50M.
    #[arg(long, value_parser = rate)]
    pub rate: Option<Rate>,
    /// Wait until it has ended.
    #[arg(long)]
    pub wait: bool,
    /// Do not scrub now, but every so often without being asked: 7d, off, or default.
    #[arg(long, value_name = "TIME", value_parser = every, conflicts_with_all = ["rate", "wait"])]
    pub every: Option<Every>,
}

/// How often a volume is scrubbed without being asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Every {
    /// So often.
    Time(Duration),
    /// Never.
    Off,
    /// As often as any other volume.
    Default,
}

/// Reads `7d`, `off` or `default`.
fn every(text: &str) -> Result<Every, String> {
    match text {
        "off" => Ok(Every::Off),
        "default" => Ok(Every::Default),
        time => match super::duration(time) {
            Ok(time) if time.as_secs() > 0 => Ok(Every::Time(time)),
            _ => Err("write a time such as 12h or 7d, or off, or default".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times_between_scrubs_are_read() {
        assert_eq!(rate("50M"), Ok(Rate(50 << 20)));
        assert_eq!(rate("default"), Ok(Rate(0)));
        assert!(rate("0").is_err() && rate("fast").is_err());
        assert_eq!(every("7d"), Ok(Every::Time(Duration::from_secs(7 * 24 * 3600))));
        assert_eq!((every("off"), every("default")), (Ok(Every::Off), Ok(Every::Default)));
        assert!(every("0d").is_err() && every("10ms").is_err() && every("often").is_err());
    }
}
