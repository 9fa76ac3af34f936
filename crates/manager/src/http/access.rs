//! Paths for who may come in: tokens, people, certificates, and the audit log.

use serde::Deserialize;
use sublet_api::access::{
    AddPerson, AuditLine, Certified, ChangePerson, CreateToken, Enter, NewToken, PersonView, Renew, TokenUse, TokenView,
};
use sublet_api::request::{Request, Response};
use sublet_api::view::ServerView;
use sublet_api::{ErrorKind, Refusal};
use sublet_trust::{InvitationKind, InvitationSecret};
use utoipa::IntoParams;

use super::answer::Answer;
use super::body::Payload;
use super::path::{Asked, It, NameOrId};
use super::{Core, ask};
use crate::audit;
use crate::caller::TOKEN_PREFIX;

/// So many lines of the audit log are shown if nobody says how many.
const AUDIT_DEFAULT: usize = 100;
/// So many are shown at most.
const AUDIT_MAX: usize = 10_000;

/// Cuts a server off: no certificate that it has counts any more, and what it has mounted is fenced. Has no body.
#[utoipa::path(post, path = "/v1/servers/{server}/revoke", tag = "access",
    params(("server" = String, Path, description = "Name or id of the server")),
    responses((status = 200, description = "The server", body = ServerView)))]
pub(crate) async fn revoke_server(core: Core, It(server): It<NameOrId>) -> Answer {
    ask(core, Request::RevokeServer { server: server.0 }).await
}

/// Makes a token. The answer is the only time that it is shown.
#[utoipa::path(post, path = "/v1/tokens", tag = "access", request_body = CreateToken,
    responses((status = 200, description = "The token", body = NewToken)))]
pub(crate) async fn create_token(core: Core, Payload(create): Payload<CreateToken>) -> Answer {
    let app = core.app.clone();
    match core.ask(Request::CreateToken(create)).await {
        Response::NewToken(drawn) => {
            let Some(authority) = &app.authority else { return Answer::from(insecure()) };
            let kind = match &drawn.token.what {
                TokenUse::Join => Some(InvitationKind::Join),
                TokenUse::Rejoin { .. } => Some(InvitationKind::Rejoin),
                TokenUse::Login { .. } => Some(InvitationKind::Login),
                TokenUse::Api { .. } => None,
            };
            let text = match kind {
                Some(kind) => authority.invitation(kind, drawn.secret),
                None => format!("{TOKEN_PREFIX}{}", InvitationSecret(drawn.secret).text()),
            };
            Answer::ok(&NewToken { token: drawn.token, text })
        }
        other => Answer::from(other),
    }
}

/// The tokens that can still be used.
#[utoipa::path(get, path = "/v1/tokens", tag = "access", responses((status = 200, description = "The tokens", body = [TokenView])))]
pub(crate) async fn tokens(core: Core) -> Answer {
    ask(core, Request::Tokens).await
}

/// Makes a token useless. Has no body.
#[utoipa::path(post, path = "/v1/tokens/{token}/revoke", tag = "access",
    params(("token" = String, Path, description = "Id of the token, or the first digits of it")),
    responses((status = 200, description = "What it was", body = TokenView)))]
pub(crate) async fn revoke_token(core: Core, It(token): It<NameOrId>) -> Answer {
    ask(core, Request::RevokeToken { token: token.0 }).await
}

/// Adds a person, who then needs a link to log in.
#[utoipa::path(post, path = "/v1/people", tag = "access", request_body = AddPerson,
    responses((status = 200, description = "The person", body = PersonView)))]
pub(crate) async fn add_person(core: Core, Payload(add): Payload<AddPerson>) -> Answer {
    ask(core, Request::AddPerson(add)).await
}

/// The people, by name.
#[utoipa::path(get, path = "/v1/people", tag = "access", responses((status = 200, description = "The people", body = [PersonView])))]
pub(crate) async fn people(core: Core) -> Answer {
    ask(core, Request::People).await
}

/// Gives a person another role, makes their certificates void, or removes them.
#[utoipa::path(post, path = "/v1/people/{person}", tag = "access", request_body = ChangePerson,
    params(("person" = String, Path, description = "Name or id of the person")),
    responses((status = 200, description = "The person", body = PersonView)))]
pub(crate) async fn change_person(core: Core, It(person): It<NameOrId>, Payload(change): Payload<ChangePerson>) -> Answer {
    ask(core, Request::ChangePerson { person: person.0, change }).await
}

/// A token against a certificate: the only request that a stranger may make.
#[utoipa::path(post, path = "/v1/enter", tag = "access", request_body = Enter,
    responses((status = 200, description = "The certificate", body = Certified)))]
pub(crate) async fn enter(core: Core, Payload(enter): Payload<Enter>) -> Answer {
    let request = enter.request.clone();
    certified(core, Request::Enter(enter), &request).await
}

/// Another certificate for a caller who has one that is still valid.
#[utoipa::path(post, path = "/v1/renew", tag = "access", request_body = Renew,
    responses((status = 200, description = "The certificate", body = Certified)))]
pub(crate) async fn renew(core: Core, Payload(renew): Payload<Renew>) -> Answer {
    let request = renew.request.clone();
    certified(core, Request::Renew(renew), &request).await
}

async fn certified(core: Core, request: Request, key: &str) -> Answer {
    let app = core.app.clone();
    match core.ask(request).await {
        Response::Admitted(admitted) => {
            let authority = app.authority.as_ref().ok_or_else(insecure);
            match authority.and_then(|authority| authority.certify(admitted, key)) {
                Ok(certified) => Answer::ok(&certified),
                Err(refusal) => Answer::from(refusal),
            }
        }
        other => Answer::from(other),
    }
}

fn insecure() -> Refusal {
    Refusal::new(ErrorKind::Conflict, "this manager runs without security, and has no certificates to give")
        .hint("start it with --secure")
}

/// Query of [`audit`].
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// At most so many lines, the newest; 100 if not given, and 10000 at most.
    limit: Option<usize>,
}

/// The audit log: who has asked for which change, and how it ended.
#[utoipa::path(get, path = "/v1/audit", tag = "access", params(AuditQuery),
    responses((status = 200, description = "The newest lines, oldest first", body = [AuditLine])))]
pub(crate) async fn audit(core: Core, Asked(query): Asked<AuditQuery>) -> Answer {
    let app = core.app.clone();
    let limit = query.limit.unwrap_or(AUDIT_DEFAULT).min(AUDIT_MAX);
    match core.ask(Request::Audit { limit }).await {
        Response::Allowed => match audit::tail(&app.audit, limit) {
            Ok(lines) => Answer::ok(&lines),
            Err(error) => Answer::from(Refusal::new(ErrorKind::Io, format!("the audit log cannot be read: {error}"))),
        },
        other => Answer::from(other),
    }
}
