//! Tables: what `kubectl get` shows, made here so that every client shows a kind in the same way.

use serde_json::{Map, Value, json};

use crate::model::{Column, Kind, Object, age};

/// How a client wants objects: whole, or as a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Whole.
    Objects,
    /// As a table, with their metadata beside it.
    Table,
}

impl Form {
    /// What an `Accept` header asks for.
    pub fn of(accept: &str) -> Form {
        let wanted = accept.split(',').map(str::trim).find_map(|one| {
            let mut parts = one.split(';').map(str::trim);
            let media = parts.next()?;
            let known = matches!(media, "application/json" | "*/*" | "application/*");
            known.then(|| match parts.any(|part| part == "as=Table") {
                true => Form::Table,
                false => Form::Objects,
            })
        });
        wanted.unwrap_or(Form::Objects)
    }
}

/// The table of some objects; `heads` are left out of all but the first of a watch.
pub fn table(kind: &Kind, objects: &[Object], meta: Value, heads: bool) -> Value {
    let rows = objects.iter().map(|object| {
        let mut part = Map::new();
        part.insert("kind".into(), "PartialObjectMetadata".into());
        part.insert("apiVersion".into(), "meta.k8s.io/v1".into());
        let metadata = serde_json::to_value(&object.meta).unwrap_or_default();
        part.insert("metadata".into(), metadata);
        json!({"cells": cells(object), "object": part})
    });
    let mut value = json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": [],
        "rows": rows.collect::<Vec<_>>(),
    });
    if heads {
        value["columnDefinitions"] = columns(kind);
    }
    value
}

fn columns(kind: &Kind) -> Value {
    let column = |name: &str, format: &str, priority: u32, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": priority});
    let mut all = vec![column("Name", "name", 0, "Its name.")];
    for Column { name, wide, cell } in kind.columns {
        all.push(column(name, "", u32::from(*wide), &cell.join(".")));
    }
    all.push(column("Age", "", 0, "Since when it is there."));
    Value::Array(all)
}

/// What is in an object's row.
pub fn cells(object: &Object) -> Vec<String> {
    let mut all = vec![object.meta.name.clone()];
    all.extend(
        object
            .kind
            .columns
            .iter()
            .map(|column| cell(object, column)),
    );
    all.push(age(object.meta.creation_timestamp));
    all
}

fn cell(object: &Object, column: &Column) -> String {
    let Some((first, rest)) = column.cell.split_first() else {
        return String::new();
    };
    let first = object.body.get(*first);
    show(first.and_then(|first| rest.iter().try_fold(first, |value, word| value.get(word))))
}

/// A value as a cell has it.
fn show(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(values)) => {
            let texts: Vec<String> = values.iter().map(|value| show(Some(value))).collect();
            texts.join(",")
        }
        Some(other) => other.to_string(),
    }
}
