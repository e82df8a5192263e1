//! The OpenAPI document (3.0) of each group, made from the types: `kubectl explain` and its validation read it.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::model::{GROUP, KINDS, Kind, Meta, VERSION};

/// Where the documents are.
pub fn index() -> Value {
    let path = |path: &str| json!({"serverRelativeURL": format!("/openapi/v3/{path}")});
    let (core, own) = ("api/v1".to_owned(), format!("apis/{GROUP}/{VERSION}"));
    let (there, here) = (path(&core), path(&own));
    json!({"paths": {core: there, own: here}})
}

/// The document of a group.
pub fn document(group: &str) -> Value {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let meta = generator.subschema_for::<Meta>().to_value();
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| kind.group == group).collect();
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for kind in &kinds {
        let name = name_of(kind);
        let rest = kind.schema(&mut generator).to_value();
        schemas.insert(name.clone(), whole(kind, rest, &meta));
        paths.extend(paths_of(kind, &name));
    }
    let definitions = generator.take_definitions(true);
    // What a kind's schema refers to is put in its place, so that its fields are its own.
    for schema in schemas.values_mut() {
        inline(schema, &definitions);
    }
    schemas.extend(definitions);
    schemas.values_mut().for_each(plain);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Skerry", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn name_of(kind: &Kind) -> String {
    match kind.group {
        "" => format!("io.k8s.api.core.{VERSION}.{}", kind.kind),
        _ => format!("io.skerry.{VERSION}.{}", kind.kind),
    }
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": VERSION, "kind": kind.kind})
}

/// A kind's schema: its rest, and what every object has.
fn whole(kind: &Kind, rest: Value, meta: &Value) -> Value {
    json!({
        "type": "object",
        "x-kubernetes-group-version-kind": [gvk(kind)],
        "x-rest": rest,
        "properties": {
            "apiVersion": {"type": "string", "description": "The group and version."},
            "kind": {"type": "string", "description": "The kind."},
            "metadata": {"description": "What every object has.", "allOf": [meta]},
        },
    })
}

/// Puts the properties of `x-rest` among a kind's own.
fn inline(schema: &mut Value, definitions: &Map<String, Value>) {
    let Some(rest) = schema.as_object_mut().and_then(|map| map.remove("x-rest")) else {
        return;
    };
    let name = rest.get("$ref").and_then(Value::as_str);
    let name = name.and_then(|name| name.rsplit('/').next());
    let rest = name.and_then(|name| definitions.get(name)).unwrap_or(&rest);
    for field in ["description", "required"] {
        if let Some(value) = rest.get(field) {
            schema[field] = value.clone();
        }
    }
    let fields = rest.get("properties").and_then(Value::as_object);
    if let (Some(fields), Some(own)) = (fields, schema["properties"].as_object_mut()) {
        own.extend(fields.clone());
    }
}

/// Says of what may be left out only what it is if it is not: clients that explain fields look no further than
/// that.
fn plain(schema: &mut Value) {
    let fields = schema.get_mut("properties").and_then(Value::as_object_mut);
    for field in fields.into_iter().flat_map(Map::values_mut) {
        let Some(one) = field["anyOf"].as_array().filter(|all| all.len() == 2) else {
            continue;
        };
        if one[1]["nullable"] != true {
            continue;
        }
        let one = json!([one[0]]);
        if let Some(field) = field.as_object_mut() {
            field.remove("anyOf");
            field.insert("allOf".to_owned(), one);
        }
    }
}

fn paths_of(kind: &Kind, name: &str) -> Vec<(String, Value)> {
    let root = match kind.group {
        "" => format!("/api/{VERSION}"),
        group => format!("/apis/{group}/{VERSION}"),
    };
    let scope = if kind.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let list = format!("{root}{scope}/{}", kind.plural);
    let operation = |action: &str, body: bool| {
        let parameters = ["dryRun", "fieldManager", "fieldValidation", "force"]
            .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}));
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        let content = json!({"application/json": {"schema": schema}});
        let mut value = json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk(kind),
            "parameters": parameters,
            "responses": {"200": {"description": "OK", "content": content}},
        });
        if body {
            value["requestBody"] = json!({"content": content});
        }
        value
    };
    vec![
        (
            list.clone(),
            json!({"get": operation("list", false), "post": operation("post", true)}),
        ),
        (
            format!("{list}/{{name}}"),
            json!({
                "get": operation("get", false),
                "put": operation("put", true),
                "patch": operation("patch", true),
                "delete": operation("delete", false),
            }),
        ),
    ]
}
