//! Under which URLs the manager tells others to find it.

use std::net::IpAddr;

use sublet_api::{ErrorKind, Refusal};
use sublet_types::Address;
use sublet_types::limits::MANAGER_PORT;

/// The URLs to announce: those that the administrator gave, or one for each address on which the manager listens. A
/// wildcard address is nobody's address, so the machine's host name stands in for it.
///
/// `bound` holds each wish with the port that it really got.
///
/// # Errors
/// `bad_request` if a given URL is none.
pub(crate) fn announced(given: &[String], bound: &[Address], host_name: &str, scheme: &str) -> Result<Vec<String>, Refusal> {
    let urls = if given.is_empty() {
        bound.iter().map(|address| url_of(address, host_name, scheme)).collect()
    } else {
        given.iter().map(|text| parse_url(text, scheme)).collect::<Result<Vec<_>, _>>()?
    };
    let mut seen = Vec::new();
    for url in urls {
        if !seen.contains(&url) {
            seen.push(url);
        }
    }
    Ok(seen)
}

fn url_of(address: &Address, host_name: &str, scheme: &str) -> String {
    let wildcard = address.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    let shown = if wildcard { Address::new(host_name, address.port()) } else { address.clone() };
    format!("{scheme}://{shown}")
}

/// Reads `SCHEME://HOST[:PORT]` or `HOST[:PORT]`.
fn parse_url(text: &str, spoken: &str) -> Result<String, Refusal> {
    let fail = |why: String| {
        Refusal::new(ErrorKind::BadRequest, format!("'{}' cannot be the manager's URL: {why}", text.escape_default()))
            .hint(format!("write for example --url {spoken}://manager.example:7470"))
    };
    let rest = text.trim_end_matches('/');
    let rest = match rest.split_once("://") {
        Some((scheme, rest)) if scheme == spoken => rest,
        Some((scheme, _)) => return Err(fail(format!("{spoken} is spoken here, not {}", scheme.escape_default()))),
        None => rest,
    };
    // A URL without a port means the manager's port everywhere in Sublet, not HTTP's.
    let address = Address::parse_with_port(rest, MANAGER_PORT).map_err(|error| fail(error.to_string()))?;
    if address.port() == 0 {
        return Err(fail("port 0 cannot be reached".to_owned()));
    }
    Ok(format!("{spoken}://{address}"))
}

/// The machine's host name, or `localhost` if it has none.
pub(crate) fn host_name() -> String {
    let uname = rustix::system::uname();
    match uname.nodename().to_str() {
        Ok(name) if !name.is_empty() && name != "(none)" => name.to_owned(),
        _ => {
            tracing::warn!("this machine has no host name; give --url so that others find the manager");
            "localhost".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_wildcard_is_announced_once_by_host_name() {
        let addresses = bound(&["0.0.0.0:7470", "[::]:7470", "192.0.2.1:9", "[2001:db8::1]:9", "store:9"]);
        assert_eq!(
            announced(&[], &addresses, "box", "http").unwrap(),
            ["http://box:7470", "http://192.0.2.1:9", "http://[2001:db8::1]:9", "http://store:9"]
        );
    }

    #[test]
    fn given_urls_replace_the_addresses() {
        let given = ["http://m.example:7470/".to_owned(), "m2".to_owned(), "http://[::1]".to_owned()];
        assert_eq!(
            announced(&given, &bound(&["127.0.0.1:1"]), "box", "http").unwrap(),
            ["http://m.example:7470", "http://m2:7470", "http://[::1]:7470"]
        );
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in ["", "http://", "https://m:1", "ftp://m", "http://m:0", "http://m:x", "http://a b", "http://m/v1", "://m"] {
            let refusal = announced(&[text.to_owned()], &[], "box", "http").unwrap_err();
            assert_eq!(refusal.kind, ErrorKind::BadRequest, "{text}");
        }
    }
}
