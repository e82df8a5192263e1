//! Selectors: which objects of a list are meant, by labels (`app=web,tier!=db,!old,zone in (a,b)`) and by
//! fields (`metadata.name=web`).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::Object;

/// Which objects are meant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selector {
    labels: Vec<(String, Demand)>,
    fields: Vec<(String, Demand)>,
}

/// What is demanded of a value.
#[derive(Debug, Clone, PartialEq)]
enum Demand {
    In(Vec<String>),
    NotIn(Vec<String>),
    There,
    Absent,
}

impl Demand {
    fn met(&self, value: Option<&str>) -> bool {
        let among = |values: &[String]| value.is_some_and(|v| values.iter().any(|w| w == v));
        match self {
            Demand::In(values) => among(values),
            Demand::NotIn(values) => !among(values),
            Demand::There => value.is_some(),
            Demand::Absent => value.is_none(),
        }
    }
}

/// Demands of a selector.
const MOST: usize = 64;

impl Selector {
    /// From a request's `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn parse(labels: &str, fields: &str) -> Result<Selector, String> {
        Ok(Selector {
            labels: demands(labels)?,
            fields: demands(fields)?,
        })
    }

    /// Whether an object is meant.
    pub fn selects(&self, object: &Object) -> bool {
        self.selects_labels(&object.meta.labels)
            && self.fields.iter().all(|(path, demand)| {
                let value = field(object, path);
                demand.met(Some(value.as_deref().unwrap_or("")))
            })
    }

    fn selects_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut all = self.labels.iter();
        all.all(|(key, demand)| demand.met(labels.get(key).map(String::as_str)))
    }

    /// The name that alone can be meant.
    pub fn name(&self) -> Option<&str> {
        self.fields.iter().find_map(|(path, demand)| match demand {
            Demand::In(values) if path == "metadata.name" && values.len() == 1 => {
                values.first().map(String::as_str)
            }
            _ => None,
        })
    }
}

/// What an object has at a path, as text.
fn field(object: &Object, path: &str) -> Option<String> {
    match path {
        "metadata.name" => return Some(object.meta.name.clone()),
        "metadata.namespace" => return Some(object.meta.namespace.clone()),
        _ => {}
    }
    let mut words = path.split('.');
    let first = object.body.get(words.next()?)?;
    let found = words.try_fold(first, |value, word| value.get(word))?;
    Some(match found {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

fn demands(text: &str) -> Result<Vec<(String, Demand)>, String> {
    let mut found = Vec::new();
    for part in parts(text) {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        if found.len() == MOST {
            return Err(format!("the selector has more than {MOST} parts"));
        }
        found.push(demand(part)?);
    }
    Ok(found)
}

/// Parts between commas, of which those in brackets are none.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn demand(part: &str) -> Result<(String, Demand), String> {
    let of = |key: &str, demand| {
        let key = key.trim();
        match key.is_empty() || key.contains(char::is_whitespace) {
            true => Err(format!(
                "`{part}` is no selector: write key=value, key!=value, key in (a,b), key or !key"
            )),
            false => Ok((key.to_owned(), demand)),
        }
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((key, value)) = part.split_once("!=") {
        return of(key, Demand::NotIn(one(value)));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return of(key, Demand::In(one(value)));
    }
    if let Some(set) = part.strip_suffix(')')
        && let Some((head, values)) = set.split_once('(')
    {
        let values = values
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        let head = head.trim();
        if let Some(key) = head.strip_suffix(" notin") {
            return of(key, Demand::NotIn(values));
        }
        if let Some(key) = head.strip_suffix(" in") {
            return of(key, Demand::In(values));
        }
    }
    match part.strip_prefix('!') {
        Some(key) => of(key, Demand::Absent),
        None => of(part, Demand::There),
    }
}

#[cfg(test)]
#[path = "select_test.rs"]
mod tests;
