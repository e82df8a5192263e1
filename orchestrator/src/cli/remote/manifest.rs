//! Manifests: objects in files of YAML or JSON, several in one if they like.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{Failure, kind};
use crate::model::Kind;

/// Bytes of a manifest.
const MOST: u64 = 8 << 20;

/// An object of a manifest.
pub struct Declared {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// It.
    pub value: Value,
}

/// The objects of a file; `-` is standard input. Those that name no namespace are of `namespace`.
pub fn read(path: &Path, namespace: &str) -> Result<Vec<Declared>, Failure> {
    let failed = |source| Failure::System {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let wrong = |what: String| Failure::Asked(format!("{}: {what}", path.display()));
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().take(MOST).read_to_string(&mut text),
        false => {
            std::fs::File::open(path).and_then(|file| file.take(MOST).read_to_string(&mut text))
        }
    };
    read.map_err(failed)?;
    let values: Vec<Value> =
        serde_saphyr::from_multiple(&text).map_err(|e| wrong(format!("it is no YAML: {e}")))?;
    let mut declared = Vec::new();
    for value in values {
        // A list is its items.
        match value.get("items").and_then(Value::as_array) {
            Some(items) => {
                for item in items {
                    declared.push(one(item.clone(), namespace).map_err(&wrong)?);
                }
            }
            None if value.is_null() => {}
            None => declared.push(one(value, namespace).map_err(&wrong)?),
        }
    }
    match declared.is_empty() {
        true => Err(wrong("there is no object in it".into())),
        false => Ok(declared),
    }
}

fn one(mut value: Value, namespace: &str) -> Result<Declared, String> {
    let text = |value: &Value, field: &str| {
        let found = value.get(field).and_then(Value::as_str);
        found.map(str::to_owned)
    };
    let called = text(&value, "kind").ok_or("an object has no `kind`")?;
    let kind = kind(&called)?;
    let meta = value.get_mut("metadata").and_then(Value::as_object_mut);
    let meta = meta.ok_or_else(|| format!("a {called} has no `metadata`"))?;
    let name = meta.get("name").and_then(Value::as_str).map(str::to_owned);
    let name = name.ok_or_else(|| format!("a {called} has no `metadata.name`"))?;
    let namespace = match kind.namespaced {
        false => String::new(),
        true => match meta.get("namespace").and_then(Value::as_str) {
            Some(own) => own.to_owned(),
            None => {
                meta.insert("namespace".into(), namespace.into());
                namespace.to_owned()
            }
        },
    };
    Ok(Declared {
        kind,
        namespace,
        name,
        value,
    })
}
