//! Lists: those whose items have names are merged item by item, the others are one value.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::set::Step;

/// What tells a list's items apart, if anything does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A field of each.
    Keyed(&'static str),
    /// They are different words.
    Words,
    /// Nothing: it is one value.
    Whole,
}

/// The field whose list is of different words, in no order that matters.
const WORDS: &str = "finalizers";
/// Fields that tell items apart, in the order in which they are tried.
const KEYS: [&str; 2] = ["name", "type"];

/// How the items of a field's list are told apart.
pub fn shape(field: &str, list: &Value) -> Shape {
    let Some(list) = list.as_array().filter(|list| !list.is_empty()) else {
        return Shape::Whole;
    };
    let differ = |words: Option<Vec<&str>>| {
        words.is_some_and(|mut words| {
            let all = words.len();
            words.sort_unstable();
            words.dedup();
            words.len() == all
        })
    };
    if field == WORDS && differ(list.iter().map(Value::as_str).collect()) {
        return Shape::Words;
    }
    let by = |key: &&str| {
        let fields = list
            .iter()
            .map(|item| item.get(key).and_then(Value::as_str));
        differ(fields.collect())
    };
    KEYS.into_iter().find(by).map_or(Shape::Whole, Shape::Keyed)
}

/// The step to an item.
pub fn item(key: &str, item: &Value) -> Option<Step> {
    let name = item.get(key)?.as_str()?;
    Some(Step::Item(key.to_owned(), name.to_owned()))
}

/// What a step leads to.
pub fn value_of<'a>(value: &'a mut Value, step: &Step) -> Option<&'a mut Value> {
    match (value, step) {
        (Value::Object(map), Step::Field(name)) => map.get_mut(name),
        (Value::Array(list), Step::Item(key, wanted)) => list
            .iter_mut()
            .find(|item| item.get(key).and_then(Value::as_str) == Some(wanted)),
        _ => None,
    }
}

/// Puts what one value says into another one: fields into fields, items into items, all else in its place.
pub fn merge(into: &mut Value, new: &Value) {
    merge_at("", into, new);
}

fn merge_at(field: &str, into: &mut Value, new: &Value) {
    let (old_shape, new_shape) = (shape(field, into), shape(field, new));
    match (into, new) {
        (Value::Object(into), Value::Object(new)) => {
            for (name, value) in new {
                merge_at(name, into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        // Whose items they are is another question.
        (Value::Array(_), Value::Array(new)) if new.is_empty() && old_shape != Shape::Whole => {}
        (Value::Array(into), Value::Array(new)) if old_shape == new_shape => match new_shape {
            Shape::Keyed(key) => {
                let name =
                    |value: &Value| value.get(key).and_then(Value::as_str).map(str::to_owned);
                let places = into.iter().enumerate();
                let places: HashMap<_, _> = places.map(|(at, value)| (name(value), at)).collect();
                for value in new {
                    let old = places.get(&name(value)).and_then(|at| into.get_mut(*at));
                    match old {
                        Some(old) => merge_at("", old, value),
                        None => into.push(value.clone()),
                    }
                }
            }
            Shape::Words => {
                let there: HashSet<_> = into.iter().filter_map(Value::as_str).collect();
                let more = new
                    .iter()
                    .filter(|word| !word.as_str().is_some_and(|word| there.contains(word)));
                let more: Vec<Value> = more.cloned().collect();
                into.extend(more);
            }
            Shape::Whole => new.clone_into(into),
        },
        (into, new) => new.clone_into(into),
    }
}
