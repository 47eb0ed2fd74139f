//! What every operation of the document has and no handler should have to repeat: path parameters, the error, the
//! credential, unique ids.

use serde_json::{Map, Value, json};
use utoipa::{
    OpenApi,
    openapi::{ContactBuilder, InfoBuilder, LicenseBuilder, OpenApiBuilder},
};

use crate::refusal::ErrorBody;

/// Operations that need no credential, each with the reason. Only shrinks.
pub const OPEN: [(&str, &str); 6] = [
    ("/v1/health/live", "a supervisor asks before there is any user"),
    ("/v1/health/ready", "a load balancer asks, and it tells no more than yes or which part is not"),
    ("/v1/openapi.json", "it is the same for everybody and in the source"),
    ("/v1/machines/install", "a script without a secret, typed by who has no key on that machine yet"),
    ("/v1/machines/binary", "the program itself, which is public"),
    ("/v1/machines/connect", "the machine proves itself within the connection, by token or key"),
];

#[derive(OpenApi)]
#[openapi(components(schemas(ErrorBody<'static>)))]
struct Shared;

/// The document before any route.
#[must_use]
pub fn base() -> utoipa::openapi::OpenApi {
    let info = InfoBuilder::new()
        .title("Ringfence")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Every user a place of their own: commands, files and streams in a sandbox or on the user's own machine.",
        ))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .contact(None::<ContactBuilder>.map(ContactBuilder::build))
        .build();
    OpenApiBuilder::new().info(info).components(Shared::openapi().components).build()
}

/// Completes the document and writes it as indented JSON.
#[must_use]
pub fn finish(api: utoipa::openapi::OpenApi) -> String {
    let mut document = serde_json::to_value(api).unwrap_or_default();
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        for (path, item) in paths {
            for (_, operation) in item.as_object_mut().into_iter().flatten() {
                if let Some(operation) = operation.as_object_mut() {
                    complete(path, operation);
                }
            }
        }
    }
    document["components"]["securitySchemes"] = json!({
        "bearer": { "type": "http", "scheme": "bearer", "description": "An API key, a session or a provider's JWT." },
        "api_key": { "type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key. With `Authorization` as well it must be the same key." },
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

fn complete(path: &str, operation: &mut Map<String, Value>) {
    let part = path.split('/').nth(2).unwrap_or("metrics");
    operation.insert("tags".to_owned(), json!([part]));
    // The file operations stand below three paths.
    let below = [("/v1/sandboxes/{id}/files", "sandbox_"), ("/v1/machines/{id}/files", "machine_")];
    if let Some((_, prefix)) = below.iter().find(|(below, _)| path.starts_with(below))
        && let Some(Value::String(id)) = operation.get_mut("operationId")
    {
        id.insert_str(0, prefix);
    }
    let named = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameters = operation.entry("parameters").or_insert_with(|| json!([]));
    if let Some(parameters) = parameters.as_array_mut() {
        for name in named {
            let there = parameters.iter().any(|parameter| parameter["name"] == name && parameter["in"] == "path");
            if !there {
                parameters.push(json!({
                    "name": name, "in": "path", "required": true, "schema": { "type": "string" },
                }));
            }
        }
    }
    if operation["parameters"].as_array().is_some_and(Vec::is_empty) {
        operation.remove("parameters");
    }
    let error = json!({
        "description": "Refused or failed, with a reason and what to do next.",
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } },
    });
    operation["responses"]["default"] = error;
    let security = if OPEN.iter().any(|(open, _)| *open == path) {
        json!([])
    } else {
        json!([{ "bearer": [] }, { "api_key": [] }])
    };
    operation.insert("security".to_owned(), security);
}
