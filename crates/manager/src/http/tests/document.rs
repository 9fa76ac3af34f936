//! The OpenAPI document says what the routes do.

use std::collections::BTreeSet;

use serde_json::Value;
use sublet_api::request::Response;
use sublet_api::{ErrorKind, Refusal};

use crate::http::routes;
use crate::testing::Manager;

fn served() -> Value {
    let manager = Manager::answering(|_| Response::Refused(Refusal::new(ErrorKind::Internal, "nobody asks the core")));
    let (status, document) = manager.ask("GET", "/v1/openapi.json", None);
    assert_eq!(status, 200);
    document
}

fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.push((method.to_uppercase(), path.clone(), operation));
        }
    }
    found
}

#[test]
fn the_document_has_every_route_and_no_other() {
    let document = served();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let documented: BTreeSet<_> = operations(&document).into_iter().map(|(method, path, _)| (method, path)).collect();
    let routed: BTreeSet<_> = routes::all().into_iter().map(|route| (route.method.to_string(), route.path.to_owned())).collect();
    assert_eq!(documented, routed);
    assert_eq!(routed.len(), 47);
}

#[test]
fn every_operation_describes_its_answer_its_refusals_and_its_body() {
    let document = served();
    for (method, path, operation) in operations(&document) {
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses["200"]["content"]["application/json"]["schema"].is_object(), "{method} {path}");
        for (status, response) in responses.iter().filter(|(status, _)| *status != "200") {
            let schema = &response["content"]["application/json"]["schema"]["$ref"];
            assert_eq!(schema, "#/components/schemas/Refusal", "{method} {path} {status}");
        }
        assert!(responses.contains_key("400") && responses.contains_key("503"), "{method} {path}");
        let has_body = method == "POST"
            && !["/leave", "/areas/{area}/accept", "/servers/{server}/revoke", "/tokens/{token}/revoke"]
                .iter()
                .any(|end| path.ends_with(end));
        assert_eq!(
            operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].is_string(),
            has_body,
            "{method} {path}"
        );
        let parameters = operation["parameters"].as_array().map_or(0, Vec::len);
        assert!(parameters >= path.matches('{').count(), "{method} {path}");
    }
}

fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_type_that_the_document_mentions_is_in_it() {
    let document = served();
    let mut mentioned = BTreeSet::new();
    references(&document, &mut mentioned);
    assert!(mentioned.len() > 30, "{mentioned:?}");
    for reference in mentioned {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}
