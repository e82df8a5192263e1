//! Sets of fields, as Kubernetes writes them (`FieldsV1`): a tree of steps, each of a field's name, an item's
//! key, or a value in a list.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::lists::{Shape, item, shape, value_of};

/// A step on the way to a field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A field, by its name: `f:cpus`.
    Field(String),
    /// An item of a list, by the field that is its key and that field's value: `k:{"name":"root"}`.
    Item(String, String),
    /// An item of a list of different words: `v:"skerry.io/agent"`.
    Word(String),
}

/// What is in a set at a place, and below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The place itself is.
    pub here: bool,
    /// What is below.
    pub below: BTreeMap<Step, FieldSet>,
}

impl Step {
    fn written(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        match self {
            Step::Field(name) => format!("f:{name}"),
            Step::Item(key, value) => format!("k:{{{}:{}}}", quoted(key), quoted(value)),
            Step::Word(word) => format!("v:{}", quoted(word)),
        }
    }

    fn read(text: &str) -> Option<Step> {
        match text.split_at_checked(2)? {
            ("f:", name) => Some(Step::Field(name.to_owned())),
            ("k:", keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
                let (key, value) = keys.iter().next().filter(|_| keys.len() == 1)?;
                Some(Step::Item(key.clone(), value.as_str()?.to_owned()))
            }
            ("v:", word) => Some(Step::Word(serde_json::from_str(word).ok()?)),
            _ => None,
        }
    }
}

impl FieldSet {
    /// All that a value says.
    pub fn of(value: &Value) -> FieldSet {
        FieldSet::at("", value)
    }

    fn at(field: &str, value: &Value) -> FieldSet {
        let mut set = FieldSet::default();
        match (value, shape(field, value)) {
            (Value::Object(map), _) if !map.is_empty() => {
                for (name, value) in map {
                    let below = FieldSet::at(name, value);
                    set.below.insert(Step::Field(name.clone()), below);
                }
            }
            (Value::Array(list), Shape::Keyed(key)) => {
                for value in list {
                    let mut below = FieldSet::of(value);
                    below.here = true;
                    set.below.extend(item(key, value).map(|step| (step, below)));
                }
            }
            (Value::Array(list), Shape::Words) => {
                let words = list.iter().filter_map(Value::as_str);
                let leaf = FieldSet::leaf;
                set.below
                    .extend(words.map(|word| (Step::Word(word.to_owned()), leaf())));
            }
            _ => set.here = true,
        }
        set
    }

    fn leaf() -> FieldSet {
        FieldSet {
            here: true,
            below: BTreeMap::new(),
        }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    /// What is in both.
    pub fn and(&self, other: &FieldSet) -> FieldSet {
        let shared = self.below.iter().filter_map(|(step, set)| {
            let both = set.and(other.below.get(step)?);
            (!both.is_empty()).then(|| (step.clone(), both))
        });
        FieldSet {
            here: self.here && other.here,
            below: shared.collect(),
        }
    }

    /// What is in either.
    pub fn or(&self, other: &FieldSet) -> FieldSet {
        let mut all = self.clone();
        all.here |= other.here;
        for (step, set) in &other.below {
            let mine = all.below.entry(step.clone()).or_default();
            *mine = mine.or(set);
        }
        all
    }

    /// What is in this one alone.
    pub fn without(&self, other: &FieldSet) -> FieldSet {
        let left = self.below.iter().filter_map(|(step, set)| {
            let left = match other.below.get(step) {
                Some(other) => set.without(other),
                None => set.clone(),
            };
            (!left.is_empty()).then(|| (step.clone(), left))
        });
        FieldSet {
            here: self.here && !other.here,
            below: left.collect(),
        }
    }

    /// The places at which two values are not the same, and what either has alone.
    pub fn changed(old: &Value, new: &Value) -> FieldSet {
        FieldSet::changed_at("", old, new)
    }

    fn changed_at(field: &str, old: &Value, new: &Value) -> FieldSet {
        if old == new {
            return FieldSet::default();
        }
        let mut set = FieldSet::default();
        let shapes = (shape(field, old), shape(field, new));
        let mut compare = |step: Step, name: &str, old: Option<&Value>, new: Option<&Value>| {
            let below = match (old, new) {
                (Some(old), Some(new)) => FieldSet::changed_at(name, old, new),
                (Some(one), None) | (None, Some(one)) => {
                    let mut all = FieldSet::at(name, one);
                    all.here |= matches!(step, Step::Item(..));
                    all
                }
                (None, None) => return,
            };
            if !below.is_empty() {
                set.below.insert(step, below);
            }
        };
        match (old, new, shapes) {
            (Value::Object(old), Value::Object(new), _) if !old.is_empty() && !new.is_empty() => {
                for name in old.keys().chain(new.keys()) {
                    compare(
                        Step::Field(name.clone()),
                        name,
                        old.get(name),
                        new.get(name),
                    );
                }
            }
            (Value::Array(old), Value::Array(new), (Shape::Keyed(one), Shape::Keyed(other)))
                if one == other =>
            {
                let mut items: BTreeMap<Step, [Option<&Value>; 2]> = BTreeMap::new();
                for (side, list) in [old, new].into_iter().enumerate() {
                    for value in list {
                        let step = item(one, value);
                        let found = step.map(|step| items.entry(step).or_default());
                        found.into_iter().for_each(|both| both[side] = Some(value));
                    }
                }
                for (step, [old, new]) in items {
                    compare(step, "", old, new);
                }
            }
            // One of both may have items, the other none.
            _ => return FieldSet::at(field, old).or(&FieldSet::at(field, new)),
        }
        set
    }

    /// What is in this one and nobody else's: an item of which others have a part stays, with its name.
    pub fn unowned(&self, others: &FieldSet) -> FieldSet {
        let left = self.below.iter().filter_map(|(step, set)| {
            let mut left = match others.below.get(step) {
                None => set.clone(),
                Some(others) => set.unowned(others),
            };
            if let (Step::Item(key, _), false) = (step, left.here) {
                left.below.remove(&Step::Field(key.clone()));
            }
            (!left.is_empty()).then(|| (step.clone(), left))
        });
        FieldSet {
            here: self.here && others.is_empty(),
            below: left.collect(),
        }
    }

    /// The places in it, as they are shown: `.spec.disks[name="root"].size`.
    pub fn shown(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.show("", &mut all);
        all
    }

    fn show(&self, at: &str, all: &mut Vec<String>) {
        if self.here {
            all.push(at.to_owned());
        }
        for (step, set) in &self.below {
            let step = match step {
                Step::Field(name) => format!(".{name}"),
                Step::Item(key, value) => format!("[{key}={value:?}]"),
                Step::Word(word) => format!("[={word:?}]"),
            };
            set.show(&format!("{at}{step}"), all);
        }
    }

    /// As Kubernetes writes it.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.here && !self.below.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (step, set) in &self.below {
            map.insert(step.written(), set.to_value());
        }
        Value::Object(map)
    }

    /// What Kubernetes, or we, have written. What is not understood is not in it.
    pub fn from_value(value: &Value) -> FieldSet {
        let mut set = FieldSet::default();
        let Some(map) = value.as_object() else {
            return set;
        };
        set.here = map.is_empty() || map.contains_key(".");
        for (step, value) in map {
            let step = Step::read(step);
            set.below
                .extend(step.map(|step| (step, FieldSet::from_value(value))));
        }
        set
    }

    /// Takes out of a value what is in the set; an item that is in it goes as a whole.
    pub fn take_from(&self, value: &mut Value) {
        for (step, set) in &self.below {
            if set.here {
                remove(value, step);
            } else if let Some(below) = value_of(value, step) {
                set.take_from(below);
                // A map that only held what went goes, too.
                if matches!(below, Value::Object(map) if map.is_empty())
                    || matches!(below, Value::Array(list) if list.is_empty())
                {
                    remove(value, step);
                }
            }
        }
    }
}

fn remove(value: &mut Value, step: &Step) {
    match (value, step) {
        (Value::Object(map), Step::Field(name)) => drop(map.remove(name)),
        (Value::Array(list), Step::Item(key, wanted)) => {
            list.retain(|item| item.get(key).and_then(Value::as_str) != Some(wanted));
        }
        (Value::Array(list), Step::Word(word)) => list.retain(|item| item != word),
        _ => {}
    }
}
