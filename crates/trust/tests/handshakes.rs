//! Whole handshakes in memory: who is let in, and what is said to who is not.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use sublet_trust::{
    Authority, Credentials, Fingerprint, Identity, NewKey, OwnCertificate, client_config, explain, newcomer_config, presented,
    server_config,
};
use sublet_types::{PersonId, PoolId, ServerId};

const DAY_MS: u64 = 24 * 3600 * 1000;

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn authority() -> Authority {
    Authority::create(PoolId::from_u128(1), now_ms()).unwrap()
}

fn server(id: u128) -> Identity {
    Identity::Server(ServerId::from_u128(id))
}

/// A server that is called, with a certificate of this identity.
fn called(authority: &Authority, identity: Identity, strangers: bool) -> Arc<ServerConfig> {
    let credentials = authority.issue(identity, now_ms(), DAY_MS).unwrap();
    server_config(&credentials, OwnCertificate::new(&credentials).unwrap(), strangers).unwrap()
}

fn caller(credentials: &Credentials) -> Arc<ClientConfig> {
    client_config(credentials).unwrap()
}

/// Brings every byte to the other end until nobody has anything to say; what the two ends found.
fn handshake(
    client: Arc<ClientConfig>,
    wanted: Identity,
    server: Arc<ServerConfig>,
) -> (Result<(), rustls::Error>, Result<Option<Identity>, rustls::Error>) {
    let mut client = ClientConnection::new(client, wanted.server_name().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_found, mut server_found) = (Ok(()), Ok(()));
    client.writer().write_all(b"hello").unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() && server_found.is_ok() {
            server.read_tls(&mut wire).unwrap();
            server_found = server.process_new_packets().map(drop);
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() && client_found.is_ok() {
            client.read_tls(&mut wire).unwrap();
            client_found = client.process_new_packets().map(drop);
        }
    }
    let who = server_found.map(|()| {
        assert!(!server.is_handshaking() || client_found.is_err());
        server.peer_certificates().and_then(|chain| chain.first()).map(|own| presented(own).unwrap().identity)
    });
    (client_found, who)
}

#[test]
fn both_ends_know_each_other_by_their_certificates() {
    let authority = authority();
    let credentials = authority.issue(server(5), now_ms(), DAY_MS).unwrap();
    let (client, who) = handshake(caller(&credentials), Identity::Manager, called(&authority, Identity::Manager, true));
    client.unwrap();
    assert_eq!(who.unwrap(), Some(server(5)));
    let person = Identity::Person(PersonId::from_u128(6));
    let credentials = authority.issue(person, now_ms(), DAY_MS).unwrap();
    let (client, who) = handshake(caller(&credentials), server(7), called(&authority, server(7), false));
    client.unwrap();
    assert_eq!(who.unwrap(), Some(person));
}

#[test]
fn a_newcomer_is_let_in_only_where_strangers_are_and_sees_the_pool_of_the_fingerprint_only() {
    let authority = authority();
    let right = newcomer_config(authority.fingerprint()).unwrap();
    let (client, who) = handshake(Arc::clone(&right), Identity::Manager, called(&authority, Identity::Manager, true));
    client.unwrap();
    assert_eq!(who.unwrap(), None);

    let (client, who) = handshake(right, Identity::Manager, called(&authority, Identity::Manager, false));
    assert!(who.is_err());
    assert!(explain(&client.unwrap_err(), "the manager").message().contains("wants to know who calls"));

    let wrong = newcomer_config(Fingerprint([3; 32])).unwrap();
    let (client, _) = handshake(wrong, Identity::Manager, called(&authority, Identity::Manager, true));
    assert!(explain(&client.unwrap_err(), "the manager").message().contains("another pool"));

    // An authority that is sent along counts only if it has signed.
    let other = self::authority();
    let mut forged = other.issue(Identity::Manager, now_ms(), DAY_MS).unwrap();
    forged.authority = authority.record().certificate.clone();
    let config = server_config(&forged, OwnCertificate::new(&forged).unwrap(), true).unwrap();
    let (client, _) = handshake(newcomer_config(authority.fingerprint()).unwrap(), Identity::Manager, config);
    assert!(client.is_err());
}

#[test]
fn whoever_is_somebody_else_is_told_so() {
    let authority = authority();
    let credentials = authority.issue(server(1), now_ms(), DAY_MS).unwrap();
    // Another server, and a server that plays the manager.
    for (wanted, is) in [(server(2), server(3)), (Identity::Manager, server(3))] {
        let (client, _) = handshake(caller(&credentials), wanted, called(&authority, is, true));
        assert!(explain(&client.unwrap_err(), "server-b").message().contains("somebody else of this pool"));
    }
    // A person's certificate is nobody's to be called at.
    let person = Identity::Person(PersonId::from_u128(4));
    let (client, _) = handshake(caller(&credentials), person, called(&authority, person, true));
    client.unwrap_err();
}

#[test]
fn two_pools_do_not_trust_each_other() {
    let (ours, theirs) = (authority(), authority());
    let credentials = ours.issue(server(1), now_ms(), DAY_MS).unwrap();
    let (client, _) = handshake(caller(&credentials), Identity::Manager, called(&theirs, Identity::Manager, true));
    assert!(explain(&client.unwrap_err(), "the manager").message().contains("another pool"));
    // The caller is deceived about the pool, the called is not.
    let mut deceived = credentials.clone();
    deceived.authority = theirs.record().certificate.clone();
    let (client, who) = handshake(caller(&deceived), Identity::Manager, called(&theirs, Identity::Manager, true));
    assert!(who.is_err());
    let told = explain(&client.unwrap_err(), "the manager");
    assert!(told.message().contains("another pool than this certificate"), "{told}");
    assert!(told.advice().contains("--rejoin"));
}

#[test]
fn what_is_out_of_date_is_told_at_both_ends() {
    let authority = authority();
    let now = now_ms();
    let old = authority.issue(server(1), now - 3 * DAY_MS, DAY_MS).unwrap();
    let (client, who) = handshake(caller(&old), Identity::Manager, called(&authority, Identity::Manager, true));
    assert!(who.is_err());
    assert!(explain(&client.unwrap_err(), "the manager").message().contains("out of date"));

    let good = authority.issue(server(1), now, DAY_MS).unwrap();
    for (issued, told) in [(now - 3 * DAY_MS, "has expired"), (now + 3 * DAY_MS, "is not valid yet")] {
        let manager = authority.issue(Identity::Manager, issued, DAY_MS).unwrap();
        let config = server_config(&manager, OwnCertificate::new(&manager).unwrap(), true).unwrap();
        let (client, _) = handshake(caller(&good), Identity::Manager, config);
        let error = explain(&client.unwrap_err(), "the manager");
        assert!(error.message().contains(told), "{error}");
        assert!(error.advice().contains("clock"), "{error}");
    }
}

#[test]
fn a_certificate_tells_when_it_was_issued_and_when_it_is_to_be_renewed() {
    let authority = authority();
    let now = now_ms();
    let found = authority.issue(server(1), now, 30 * DAY_MS).unwrap().presented().unwrap();
    assert_eq!((found.identity, found.issued_ms), (server(1), now));
    assert!(found.expires_ms.abs_diff(now + 30 * DAY_MS) <= 1000);
    assert!(found.renew_from_ms().abs_diff(now + 20 * DAY_MS) <= 1000);
}

#[test]
fn an_authority_and_credentials_are_found_again_as_they_were_and_hide_their_keys() {
    let authority = authority();
    let text = serde_json::to_string(authority.record()).unwrap();
    let again = Authority::load(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(again.fingerprint(), authority.fingerprint());
    let credentials = again.issue(server(1), now_ms(), DAY_MS).unwrap();
    let credentials: Credentials = serde_json::from_str(&serde_json::to_string(&credentials).unwrap()).unwrap();
    let (client, who) = handshake(caller(&credentials), Identity::Manager, called(&authority, Identity::Manager, true));
    client.unwrap();
    assert_eq!(who.unwrap(), Some(server(1)));
    for shown in [format!("{credentials:?}"), format!("{authority:?}"), format!("{:?}", authority.record())] {
        assert!(!shown.contains("PRIVATE"), "{shown}");
    }
    let mut other = self::authority().record().clone();
    other.certificate = authority.record().certificate.clone();
    assert!(Authority::load(other).unwrap_err().message().contains("does not belong"));
    let mut newer = authority.record().clone();
    newer.version += 1;
    assert!(Authority::load(newer).is_err());
}

#[test]
fn a_request_is_worth_its_key_and_nothing_that_it_asks_for() {
    let authority = authority();
    let key = NewKey::generate().unwrap();
    let certificate = authority.certify(server(1), key.request(), now_ms(), DAY_MS).unwrap();
    assert!(NewKey::generate().unwrap().with(authority.record().certificate.clone(), certificate.clone()).is_err());
    let credentials = key.with(authority.record().certificate.clone(), certificate).unwrap();
    assert_eq!(credentials.presented().unwrap().identity, server(1));

    // One that wants to be an authority, and the manager.
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut greedy = rcgen::CertificateParams::new(vec![Identity::Manager.to_string()]).unwrap();
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = greedy.serialize_request(&pair).unwrap().pem().unwrap();
    let certificate = authority.certify(server(2), &request, now_ms(), DAY_MS).unwrap();
    let der = rcgen_der(&certificate);
    assert_eq!(presented(&der).unwrap().identity, server(2));
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!parsed.is_ca());

    for damaged in ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
        assert!(authority.certify(server(1), damaged, now_ms(), DAY_MS).is_err());
    }
}

fn rcgen_der(pem: &str) -> rustls::pki_types::CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject as _;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_replaced_certificate_is_shown_by_the_next_connection() {
    let authority = authority();
    let old = authority.issue(Identity::Manager, now_ms() - 3 * DAY_MS, DAY_MS).unwrap();
    let own = OwnCertificate::new(&old).unwrap();
    let config = server_config(&old, Arc::clone(&own), true).unwrap();
    let client = newcomer_config(authority.fingerprint()).unwrap();
    assert!(handshake(Arc::clone(&client), Identity::Manager, Arc::clone(&config)).0.is_err());
    own.replace(&authority.issue(Identity::Manager, now_ms(), DAY_MS).unwrap()).unwrap();
    handshake(client, Identity::Manager, config).0.unwrap();
}
