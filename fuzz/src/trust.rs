//! What lets somebody in: invitations, identities, certificates, and requests for certificates.

use rustls::pki_types::CertificateDer;
use sublet_trust::{Identity, Invitation, presented};

/// An invitation or identity is printed as one that reads the same, and the message of an error tells nothing of what may be a
/// secret.
pub fn invitations(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let identity = text.parse::<Identity>();
    if let Ok(identity) = &identity {
        assert_eq!(identity.to_string(), text);
    }
    match text.parse::<Invitation>() {
        Ok(invitation) => {
            assert_eq!(invitation.to_string().parse::<Invitation>().as_ref(), Ok(&invitation));
            // Unless somebody has put it where the address belongs.
            let (shown, secret) = (format!("{invitation:?}"), invitation.secret.text());
            assert!(!shown.contains(&secret) || text.matches(&secret).count() > 1);
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 400, "{error}");
            identity.is_ok()
        }
    }
}

/// Whatever is shown as a certificate is read without harm; what is read names one identity.
pub fn certificates(input: &[u8]) -> bool {
    match presented(&CertificateDer::from(input.to_vec())) {
        Ok(found) => found.identity.to_string().parse::<Identity>().is_ok_and(|again| again == found.identity),
        Err(error) => {
            assert!(!error.message().is_empty());
            false
        }
    }
}

pub fn invitation_seeds() -> Vec<Vec<u8>> {
    let secrets = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc.CQkJCQkJCQkJCQkJCQkJCQ";
    let texts = [
        format!("https://m.example:7470/join#{secrets}"),
        format!("https://127.0.0.1:7470,[::1]:7470/rejoin#{secrets}"),
        format!("https://m/login#{secrets}"),
        "manager.sublet.internal".to_owned(),
        "0123456789abcdef0123456789abcdef.server.sublet.internal".to_owned(),
        "0123456789abcdef0123456789abcdef.person.sublet.internal".to_owned(),
    ];
    texts.map(String::into_bytes).into()
}

/// A server's certificate, made once by this project's own authority: keys are drawn, so that no other is ever the same.
pub fn certificate_seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("trust/server.der").to_vec()]
}
