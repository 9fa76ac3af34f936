//! The OpenAPI document, made from the handlers and the message types.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use sublet_api::{ErrorKind, Refusal};
use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::{access, areas, reading, rebuild, servers, volumes, work};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sublet manager",
        description = "Servers lend the disk space that they do not need, and borrow each other's as volumes. \
            Every refusal is a `Refusal` in JSON, whatever its status. Requests that are tasks carry a task id chosen by the caller; \
            the same request is repeated until its outcome is no longer `running`."
    ),
    paths(
        serve,
        reading::pool,
        reading::table,
        reading::servers,
        reading::areas,
        reading::volumes,
        reading::volume,
        reading::tasks,
        reading::events,
        rebuild::state,
        rebuild::rebuild,
        rebuild::accept_volume,
        rebuild::accept_area,
        rebuild::forget_server,
        servers::register,
        servers::poll,
        servers::rename_server,
        servers::set_limits,
        servers::leave,
        servers::check_area,
        areas::rename_area,
        areas::reclaim,
        volumes::create_volume,
        volumes::set_way,
        volumes::rename_volume,
        volumes::borrow,
        volumes::mount,
        volumes::unmount,
        volumes::return_volume,
        volumes::transfer,
        work::replace,
        work::scrub,
        work::scrub_every,
        volumes::seal,
        work::control_task,
        access::revoke_server,
        access::create_token,
        access::tokens,
        access::revoke_token,
        access::add_person,
        access::people,
        access::change_person,
        access::enter,
        access::renew,
        access::audit,
        volumes::client_report,
        volumes::change_leg,
    ),
    components(schemas(Refusal, ErrorKind)),
    tags(
        (name = "reading", description = "The table as data"),
        (name = "servers", description = "What servers tell the manager, and what is done with servers"),
        (name = "areas", description = "What is done with areas"),
        (name = "volumes", description = "What is done with volumes"),
        (name = "work", description = "Background work"),
        (name = "access", description = "Who may come in, and who has asked for what"),
        (name = "rebuild", description = "The table from the labels, and what only an administrator can decide"),
        (name = "clients", description = "What the client of a mounted volume, or the coordinator of background work, tells the manager"),
    ),
    modifiers(&Refusals)
)]
struct Api;

/// Adds the refusals to every operation: any of them may be refused, and always in the same form.
struct Refusals;

impl Modify for Refusals {
    fn modify(&self, document: &mut Document) {
        for item in document.paths.paths.values_mut() {
            for operation in [item.get.as_mut(), item.post.as_mut()].into_iter().flatten() {
                add_refusals(operation);
            }
        }
    }
}

fn add_refusals(operation: &mut Operation) {
    let mut refusals = vec![
        (ErrorKind::BadRequest.http_status(), "Malformed: a name, an id, a size, a field, the JSON itself"),
        (ErrorKind::Internal.http_status(), "An I/O error or a defect of the manager"),
        (
            ErrorKind::Unreachable.http_status(),
            "The manager is stopping or overloaded, or a lender that is needed does not answer",
        ),
    ];
    refusals.push((ErrorKind::Unauthenticated.http_status(), "Nobody knows who asks: a certificate or token is missing or void"));
    refusals.push((ErrorKind::Forbidden.http_status(), "Whoever asks may not do that"));
    refusals.push((ErrorKind::TooMany.http_status(), "Too many tries that proved nothing"));
    if operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty()) || operation.request_body.is_some() {
        refusals.push((ErrorKind::NotFound.http_status(), "No server, area, volume or task of that name or id"));
    }
    if operation.request_body.is_some() {
        refusals.push((408, "The body did not arrive in time"));
        refusals.push((
            ErrorKind::Conflict.http_status(),
            "The name is taken, somebody else holds it, its state forbids it, or the caller was fenced",
        ));
        refusals.push((413, "The body is too large"));
        refusals.push((415, "The body is not declared as JSON"));
        refusals.push((ErrorKind::TimedOut.http_status(), "It did not finish in time"));
        refusals.push((ErrorKind::NoSpace.http_status(), "Not enough free space or not enough servers"));
    }
    for (status, description) in refusals {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Refusal"))).build();
        let response = ResponseBuilder::new().description(description).content("application/json", content).build();
        operation.responses.responses.insert(status.to_string(), response.into());
    }
}

/// The document; the version in it is the software's.
pub fn document() -> Document {
    Api::openapi()
}

/// Built once: it does not change while the manager runs.
static JSON: LazyLock<String> = LazyLock::new(|| {
    document().to_json().unwrap_or_else(|error| {
        tracing::error!(%error, "the OpenAPI document has no JSON form");
        String::from("{}")
    })
});

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "reading",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = serde_json::Value)))]
pub(crate) async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], JSON.as_str())
}
