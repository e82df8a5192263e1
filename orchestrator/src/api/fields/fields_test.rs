//! Who owns which field: applies, conflicts, what is taken over and what goes, also by chance.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::{Meta, MicroVM, kind_of};

fn object(spec: Value) -> Object {
    let mut body = Map::new();
    body.insert("spec".into(), spec);
    Object {
        kind: kind_of::<MicroVM>(),
        meta: Meta {
            name: "web".into(),
            ..Meta::default()
        },
        body,
    }
}

fn nothing() -> Object {
    Object {
        body: Map::new(),
        ..object(Value::Null)
    }
}

fn read(value: Value) -> Object {
    Object::from_value(kind_of::<MicroVM>(), value).expect("an object")
}

fn applied_by(old: &Object, spec: Value, owner: &str) -> Object {
    read(apply(old, &json!({"spec": spec}), owner, false).expect("no conflict"))
}

fn owners(object: &Object) -> Vec<&str> {
    let entries = object.meta.managed_fields.iter().flatten();
    entries.map(|entry| entry.manager.as_str()).collect()
}

#[test]
fn what_an_owner_does_not_say_any_more_goes_and_what_others_say_stays() {
    let one = applied_by(
        &nothing(),
        json!({"cpus": 2, "boot": {"kernel": "/k"}, "disks": [{"name": "a", "size": "1Gi"}, {"name": "b", "size": "2Gi"}]}),
        "one",
    );
    let both = applied_by(
        &one,
        json!({"disks": [{"name": "c", "size": "3Gi"}], "cpus": 2}),
        "two",
    );
    let names = |object: &Object| -> Vec<String> {
        let disks = object.body["spec"]["disks"].as_array().cloned();
        let disks = disks.unwrap_or_default().into_iter();
        disks
            .filter_map(|disk| Some(disk["name"].as_str()?.to_owned()))
            .collect()
    };
    assert_eq!(names(&both), ["a", "b", "c"]);
    // Of the first owner's, only what the second one does not say goes.
    let less = applied_by(
        &both,
        json!({"disks": [{"name": "b", "size": "2Gi"}]}),
        "one",
    );
    assert_eq!(names(&less), ["b", "c"]);
    assert_eq!(less.body["spec"]["cpus"], 2);
    assert!(less.body["spec"].get("boot").is_none());
    let gone = applied_by(&less, json!({}), "two");
    assert_eq!(
        gone.body["spec"],
        json!({"disks": [{"name": "b", "size": "2Gi"}]})
    );
    assert_eq!(owners(&gone), ["one"]);
}

#[test]
fn others_fields_are_taken_only_by_force() {
    let one = applied_by(&nothing(), json!({"cpus": 2, "memory": "1Gi"}), "one");
    let spec = json!({"spec": {"cpus": 3, "memory": "1Gi"}});
    let conflicts = apply(&one, &spec, "two", false).expect_err("it is one's");
    let fields: Vec<_> = conflicts
        .iter()
        .map(|c| (c.owner.as_str(), c.field.as_str()))
        .collect();
    assert_eq!(fields, [("one", ".spec.cpus")]);
    let two = read(apply(&one, &spec, "two", true).expect("forced"));
    assert_eq!(two.body["spec"]["cpus"], 3);
    // What both say the same is both's.
    let left = two.meta.managed_fields.as_ref().expect("owners");
    let left = &left
        .iter()
        .find(|entry| entry.manager == "one")
        .expect("one")
        .fields_v1;
    assert_eq!(*left, json!({"f:spec": {"f:memory": {}}}));
}

#[test]
fn whoever_changes_a_field_otherwise_has_it_from_then_on() {
    let one = applied_by(&nothing(), json!({"cpus": 2, "memory": "1Gi"}), "one");
    let mut new = object(json!({"cpus": 4, "memory": "1Gi"}));
    new.meta.managed_fields = Some(updated(Some(&one), &new, "edit"));
    assert_eq!(owners(&new), ["one", "edit"]);
    assert!(apply(&new, &json!({"spec": {"cpus": 2}}), "one", false).is_err());
    // Who says what is there already takes nothing.
    let same = applied_by(&new, json!({"cpus": 4, "memory": "1Gi"}), "one");
    assert_eq!(owners(&same), ["one", "edit"]);
    assert_eq!(
        updated(Some(&same), &same, "nobody"),
        same.meta.managed_fields.clone().expect("owners")
    );
}

#[test]
fn lists_without_names_are_one_value_and_finalizers_are_many() {
    let one = applied_by(&nothing(), json!({"command": ["a", "b"]}), "one");
    let other = applied_by(&one, json!({"command": ["b"]}), "one");
    assert_eq!(other.body["spec"]["command"], json!(["b"]));
    let mut held = one.clone();
    held.meta.finalizers = vec!["ours".to_owned()];
    let with = json!({"metadata": {"finalizers": ["theirs"]}});
    let both = read(apply(&held, &with, "two", false).expect("no conflict"));
    assert_eq!(both.meta.finalizers, ["ours", "theirs"]);
    let without = read(apply(&both, &json!({}), "two", false).expect("no conflict"));
    assert_eq!(without.meta.finalizers, ["ours"]);
}

#[test]
fn owners_are_written_as_kubernetes_writes_them() {
    let spec = json!({"cpus": 2, "disks": [{"name": "a", "size": "1Gi"}]});
    let one = applied_by(&nothing(), spec, "one");
    let entry = &one.meta.managed_fields.as_ref().expect("owners")[0];
    let written = json!({"f:spec": {
        "f:cpus": {},
        "f:disks": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:size": {}}},
    }});
    assert_eq!(entry.fields_v1, written);
    assert_eq!(
        (entry.operation.as_str(), entry.fields_type.as_str()),
        ("Apply", "FieldsV1")
    );
}

#[test]
fn there_are_never_many_owners_and_names_are_short() {
    let mut object = nothing();
    for n in 0..3 * OWNERS {
        object = applied_by(
            &object,
            json!({format!("field{n}"): n}),
            &format!("owner{n}"),
        );
        assert!(owners(&object).len() <= OWNERS + 1);
    }
    assert!(owners(&object).contains(&ANCIENT));
    assert_eq!(
        object.body["spec"].as_object().expect("fields").len(),
        3 * OWNERS
    );
    assert_eq!(owner_of("", "kubectl/v1.32 (linux)"), "kubectl");
    assert_eq!(owner_of(&"x".repeat(1000), "").len(), MAX_NAME);
    assert_eq!(owner_of(" ", ""), "unknown");
}

/// Specs of few fields, so that two of them have some in common.
fn spec() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![(0..3).prop_map(Value::from), "[ab]".prop_map(Value::from)];
    let disk = |scalar: BoxedStrategy<Value>| {
        prop::collection::btree_map(
            "[a-c]",
            prop::collection::btree_map("[xyz]", scalar, 0..3),
            1..3,
        )
        .prop_map(|disks| {
            let disks = disks.into_iter().map(|(name, fields)| {
                let mut disk: Map<String, Value> = fields.into_iter().collect();
                disk.insert("name".into(), name.into());
                Value::Object(disk)
            });
            Value::Array(disks.collect())
        })
    };
    let leaf = prop_oneof![
        4 => scalar.clone(),
        1 => prop::collection::vec(scalar.clone(), 1..3).prop_map(Value::Array),
        2 => disk(scalar.boxed()),
    ];
    let tree = leaf.prop_recursive(2, 12, 3, |inner| {
        prop::collection::btree_map("[a-d]", inner, 1..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    });
    prop::collection::btree_map("[a-d]", tree, 1..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

/// Any JSON.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("([fkv]:)?.{0,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Whether two say the same; the order of named items is nothing that is said.
fn same(one: &Value, other: &Value) -> bool {
    FieldSet::changed(one, other).is_empty()
}

proptest! {
    #[test]
    fn sets_come_back_as_they_were_written(value in anything()) {
        let set = FieldSet::of(&value);
        prop_assert_eq!(FieldSet::from_value(&set.to_value()), set);
    }

    #[test]
    fn whatever_somebody_writes_as_fields_is_no_panic(value in anything(), other in anything()) {
        let (one, two) = (FieldSet::from_value(&value), FieldSet::of(&other));
        let mut rest = other;
        one.or(&two).unowned(&one).take_from(&mut rest);
        one.take_from(&mut rest);
        let _ = one.and(&two).shown();
    }

    #[test]
    fn what_is_in_both_and_what_is_in_one_alone_are_all_of_it(one in spec(), two in spec()) {
        let (one, two) = (FieldSet::of(&one), FieldSet::of(&two));
        prop_assert_eq!(one.and(&two).or(&one.without(&two)), one.clone());
        prop_assert!(one.without(&two).and(&two).is_empty());
    }

    #[test]
    fn an_owner_alone_has_what_it_said_last(first in spec(), last in spec()) {
        let object = applied_by(&nothing(), first, "one");
        let object = applied_by(&object, last.clone(), "one");
        prop_assert!(same(&object.body["spec"], &last), "{}", object.body["spec"]);
    }

    #[test]
    fn what_is_applied_is_so_and_takes_from_others_only_by_force(first in spec(), second in spec()) {
        let object = applied_by(&nothing(), first.clone(), "one");
        let declared = json!({"spec": second});
        let Ok(value) = apply(&object, &declared, "two", false) else {
            // By force it is so all the same.
            let value = apply(&object, &declared, "two", true).expect("forced");
            let mut merged = value["spec"].clone();
            merge(&mut merged, &second);
            prop_assert!(same(&merged, &value["spec"]));
            return Ok(());
        };
        // Both have what they said.
        for said in [&first, &second] {
            let mut merged = value["spec"].clone();
            merge(&mut merged, said);
            prop_assert!(same(&merged, &value["spec"]), "{said} is not in {}", value["spec"]);
        }
        // And when the second one says nothing any more, all is as the first one had it.
        let back = applied_by(&read(value), json!({}), "two");
        prop_assert!(same(&back.body["spec"], &first), "{}", back.body["spec"]);
    }
}
