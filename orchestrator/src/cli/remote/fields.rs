//! What the fields of a kind are for, from its schema.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{Failure, kind};
use crate::api::document;

/// Columns of a description.
const WIDTH: usize = 96;

/// A field, as it is told.
pub struct Field {
    /// What it is: its path, type, description and fields.
    pub told: Value,
}

/// The field at a path such as `microvm.spec.disks`.
pub fn find(path: &str) -> Result<Field, Failure> {
    let mut names = path.split('.');
    let kind = kind(names.next().unwrap_or_default()).map_err(Failure::Asked)?;
    let document = document(kind.group);
    let schemas = &document["components"]["schemas"];
    let whole = schemas.as_object().and_then(|all| {
        let mut all = all.values();
        all.find(|schema| schema["x-kubernetes-group-version-kind"][0]["kind"] == kind.kind)
    });
    let mut found = whole.cloned().unwrap_or_default();
    let mut walked = kind.singular.to_owned();
    for name in names {
        let fields = fields_of(schemas, &found);
        let Some(next) = fields.get(name) else {
            let all: Vec<&str> = fields.keys().map(String::as_str).collect();
            return Err(Failure::Asked(match all.is_empty() {
                true => format!("{walked} has no fields, and so no `{name}`"),
                false => format!(
                    "{walked} has no field `{name}`: its fields are {}",
                    all.join(", ")
                ),
            }));
        };
        found = next.clone();
        walked = format!("{walked}.{name}");
    }
    let told = json!({
        "kind": kind.kind,
        "apiVersion": kind.api_version(),
        "field": walked,
        "type": type_of(schemas, &found),
        "description": description(schemas, &found),
        "values": values(schemas, &found),
        "fields": listed(schemas, &found),
    });
    Ok(Field { told })
}

impl Field {
    /// For people.
    pub fn text(&self) -> String {
        let told = |name: &str| self.told[name].as_str().unwrap_or_default();
        let mut text = String::new();
        let (version, field) = (told("apiVersion"), told("field"));
        let _ = writeln!(text, "KIND:     {}\nVERSION:  {version}", told("kind"));
        let _ = writeln!(text, "FIELD:    {field} <{}>\n", told("type"));
        wrap(&mut text, told("description"), "");
        let values = self.told["values"].as_array();
        for value in values.into_iter().flatten() {
            let of = |name: &str| value[name].as_str().unwrap_or_default();
            let _ = writeln!(text, "  {:12} {}", of("value"), of("description"));
        }
        let fields = self.told["fields"].as_array();
        for (n, field) in fields.into_iter().flatten().enumerate() {
            let of = |name: &str| field[name].as_str().unwrap_or_default();
            let more = match (&field["required"], &field["default"]) {
                (Value::Bool(true), _) => " -required-".to_owned(),
                (_, Value::Null) => String::new(),
                (_, default) => format!(" = {default}"),
            };
            text += if n == 0 { "\nFIELDS:\n" } else { "" };
            let _ = writeln!(text, "  {} <{}>{more}", of("name"), of("type"));
            wrap(&mut text, of("description"), "    ");
        }
        text
    }
}

/// Writes words in lines.
fn wrap(text: &mut String, words: &str, before: &str) {
    let mut line = before.to_owned();
    for word in words.split_whitespace() {
        if line.len() > before.len() && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            before.clone_into(&mut line);
        }
        if line.len() > before.len() {
            line.push(' ');
        }
        line += word;
    }
    if line.len() > before.len() {
        let _ = writeln!(text, "{line}");
    }
}

/// What a schema refers to; a list's and a map's is that of what is in it. Our schemas are no deeper than this.
fn resolved<'a>(schemas: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..8 {
        if schema["x-kubernetes-int-or-string"] == true {
            return schema;
        }
        let several = ["allOf", "anyOf"].map(|word| schema[word].as_array());
        let mut several = several.into_iter().flatten().flatten();
        let reference = schema["$ref"]
            .as_str()
            .and_then(|path| path.rsplit('/').next());
        schema = if let Some(name) = reference {
            &schemas[name]
        } else if let Some(only) = several.next() {
            only
        } else {
            return schema;
        };
    }
    schema
}

/// What is in a list or a map, if it is one.
fn inner<'a>(schemas: &'a Value, schema: &'a Value) -> &'a Value {
    let schema = resolved(schemas, schema);
    let within = [&schema["items"], &schema["additionalProperties"]];
    let within = within.into_iter().find(|within| within.is_object());
    within.map_or(schema, |within| resolved(schemas, within))
}

fn fields_of(schemas: &Value, schema: &Value) -> Map<String, Value> {
    let fields = inner(schemas, schema)["properties"].as_object();
    fields.cloned().unwrap_or_default()
}

fn type_of(schemas: &Value, schema: &Value) -> String {
    let schema = resolved(schemas, schema);
    if schema["x-kubernetes-int-or-string"] == true {
        return "Quantity".to_owned();
    }
    if schema["items"].is_object() {
        return format!("[]{}", type_of(schemas, &schema["items"]));
    }
    if schema["additionalProperties"].is_object() {
        return format!(
            "map of {}",
            type_of(schemas, &schema["additionalProperties"])
        );
    }
    let word = schema["type"].as_str();
    let other = match schema["oneOf"].is_array() || schema["enum"].is_array() {
        true => "string",
        false => "any",
    };
    word.unwrap_or(other).to_owned()
}

fn description(schemas: &Value, schema: &Value) -> String {
    let own = schema["description"].as_str();
    let text = own.or_else(|| resolved(schemas, schema)["description"].as_str());
    text.unwrap_or_default().replace('\n', " ")
}

/// What a field may be, where that is one of a few words.
fn values(schemas: &Value, schema: &Value) -> Vec<Value> {
    let schema = inner(schemas, schema);
    let words = schema["enum"].as_array().into_iter().flatten();
    let words = words.map(|word| json!({"value": word}));
    let told = schema["oneOf"].as_array().into_iter().flatten();
    let told = told.map(|one| json!({"value": one["enum"][0], "description": one["description"]}));
    words.chain(told).collect()
}

fn listed(schemas: &Value, schema: &Value) -> Vec<Value> {
    let required = inner(schemas, schema)["required"].as_array();
    let required = required.cloned().unwrap_or_default();
    let all = fields_of(schemas, schema);
    let all = all.iter().map(|(name, field)| {
        // An empty structure says nothing.
        let default = match &field["default"] {
            Value::Object(_) => &Value::Null,
            default => default,
        };
        json!({
            "name": name,
            "type": type_of(schemas, field),
            "required": required.iter().any(|one| one == name),
            "default": default,
            "description": description(schemas, field),
        })
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_structures_is_told_with_its_fields() {
        let field = find("vm.spec.disks").expect("it is there");
        let text = field.text();
        for part in [
            "KIND:     MicroVM\nVERSION:  skerry.io/v1\nFIELD:    microvm.spec.disks <[]object>",
            "Its disks, in order.",
            "  name <string> -required-\n    Its name, of which there is one a VM.\n",
            "  readonly <boolean> = false\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_may_be_left_out_and_what_is_one_of_a_few_words_is_told() {
        let probe = find("container.spec.livenessProbe.httpGet").expect("it is there");
        assert_eq!(probe.told["type"], "object");
        assert_eq!(probe.told["fields"][0]["name"], "path");
        let policy = find("vm.spec.restartPolicy").expect("it is there");
        let text = policy.text();
        assert!(text.contains("OnFailure"), "{text}");
        assert_eq!(
            find("vm.metadata.labels").expect("there").told["type"],
            "map of string"
        );
    }

    #[test]
    fn every_field_of_every_kind_has_a_type_and_a_description() {
        let mut paths: Vec<String> = crate::model::KINDS
            .iter()
            .flat_map(|kind| ["spec", "metadata"].map(|part| format!("{}.{part}", kind.singular)))
            .filter(|path| !path.starts_with("event.spec"))
            .collect();
        let mut seen = 0;
        while let Some(path) = paths.pop() {
            let told = find(&path).unwrap_or_else(|e| panic!("{path}: {e}")).told;
            assert!(told["type"].is_string(), "{path}: {told}");
            assert_ne!(told["description"], "", "{path}");
            let fields = told["fields"].as_array().into_iter().flatten();
            let names = fields.filter_map(|field| field["name"].as_str());
            paths.extend(names.map(|name| format!("{path}.{name}")));
            seen += 1;
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        let said = |path: &str| find(path).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said("vm.spec.disk").contains("microvm.spec has no field `disk`"));
        assert!(said("vm.spec.disk").contains("disks"));
        assert!(said("pod.spec").contains("there is no kind `pod`"));
        assert!(said("vm.spec.cpus.all").contains("has no fields"));
    }
}
