//! Who is at the other end of a connection.

use std::net::SocketAddr;

use axum::http::{HeaderMap, header};
use rustls::pki_types::CertificateDer;
use sublet_api::access::{Caller, Proof};
use sublet_api::{ErrorKind, Refusal};
use sublet_table::plan::access::digest;
use sublet_trust::{Identity, InvitationSecret, presented};

/// What a connection proves, for every request on it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it comes from.
    pub(crate) from: SocketAddr,
    /// Who it is by its certificate. A manager without security takes everybody for whom it trusts.
    pub(crate) caller: Caller,
}

/// What stands before an API token's secret, so that such tokens are recognised where they do not belong.
pub(crate) const TOKEN_PREFIX: &str = "sublet_";

/// Who a verified certificate is for; without one, a stranger.
///
/// # Errors
/// If it says something that no certificate of this pool does.
pub(crate) fn certified(chain: Option<&[CertificateDer<'_>]>) -> Result<Caller, Refusal> {
    let Some(own) = chain.and_then(<[_]>::first) else { return Ok(Caller::Stranger) };
    let found = presented(own).map_err(|error| Refusal::new(ErrorKind::Unauthenticated, error.to_string()))?;
    let proof = Proof { issued_ms: found.issued_ms, expires_ms: found.expires_ms };
    Ok(match found.identity {
        Identity::Server(server) => Caller::Server { server, proof },
        Identity::Person(person) => Caller::Person { person, proof },
        // It has no reason to call itself; whoever has its key has the authority's, too.
        Identity::Manager => Caller::Stranger,
    })
}

/// Who asks, when a request has a token: that counts for whoever has no certificate.
pub(crate) fn with_token(caller: Caller, headers: &HeaderMap) -> Caller {
    if caller != Caller::Stranger {
        return caller;
    }
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = text.and_then(|text| text.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token.and_then(|(_, token)| token.trim().strip_prefix(TOKEN_PREFIX)) {
        // What is no token at all is looked for in vain, as one that was made up is.
        Some(secret) => {
            let bytes = secret.parse::<InvitationSecret>().map(|secret| secret.0.to_vec()).unwrap_or_default();
            Caller::Token { digest: digest(&bytes) }
        }
        None => Caller::Stranger,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_from_the_header_and_only_from_strangers() {
        let mut headers = HeaderMap::new();
        assert_eq!(with_token(Caller::Stranger, &headers), Caller::Stranger);
        let secret = InvitationSecret([7; 16]);
        headers.insert(header::AUTHORIZATION, format!("Bearer {TOKEN_PREFIX}{}", secret.text()).parse().unwrap());
        assert_eq!(with_token(Caller::Stranger, &headers), Caller::Token { digest: digest(&secret.0) });
        assert_eq!(with_token(Caller::Manager, &headers), Caller::Manager);
        for odd in ["Basic x", "Bearer", "Bearer other_x", "bearer sublet_"] {
            headers.insert(header::AUTHORIZATION, odd.parse().unwrap());
            assert_ne!(with_token(Caller::Stranger, &headers), Caller::Token { digest: digest(&secret.0) }, "{odd}");
        }
    }
}
