//! `sublet limits`.

use clap::Args;
use sublet_types::ByteSize;

/// How much servers may borrow: without a server, what is set for all of them.
#[derive(Args, Debug)]
pub struct Limits {
    /// Name or id of the server.
    pub server: Option<String>,
    /// Bytes in all its volumes at most, every copy counted, for example 500G; `none` is no limit.
    #[arg(long, value_parser = bytes, requires = "server")]
    pub bytes: Option<Limit<u64>>,
    /// Volumes at most; `none` is no limit.
    #[arg(long, value_parser = count, requires = "server")]
    pub volumes: Option<Limit<u32>>,
}

/// A limit, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit<T>(pub Option<T>);

fn bytes(text: &str) -> Result<Limit<u64>, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    let size: ByteSize = text.parse().map_err(|e| format!("{e}; write a size such as 500G, or none"))?;
    Ok(Limit(Some(size.bytes())))
}

fn count(text: &str) -> Result<Limit<u32>, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    text.parse().map(|count| Limit(Some(count))).map_err(|_| "write a number, or none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_sizes_and_numbers_or_none() {
        assert_eq!(bytes("500G"), Ok(Limit(Some(500 << 30))));
        assert_eq!((bytes("none"), count("none")), (Ok(Limit(None)), Ok(Limit(None))));
        assert_eq!((bytes("0"), count("0")), (Ok(Limit(Some(0))), Ok(Limit(Some(0)))));
        for bad in ["", "-1", "many", "None"] {
            assert!(bytes(bad).is_err() && count(bad).is_err(), "{bad}");
        }
    }
}
