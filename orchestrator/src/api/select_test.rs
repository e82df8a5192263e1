//! Tests of selectors: which objects they mean, and what is none.

use serde_json::json;

use super::*;
use crate::model::named;

fn object(labels: &[(&str, &str)]) -> Object {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let value = json!({
        "metadata": {"name": "web", "namespace": "shop", "labels": labels},
        "status": {"phase": "Running", "restarts": 3},
    });
    Object::from_value(named("vm").expect("a kind"), value).expect("an object")
}

#[test]
fn labels_select() {
    let object = object(&[("app", "web"), ("zone", "a")]);
    for (text, selected) in [
        ("", true),
        ("app=web", true),
        ("app==web,zone=a", true),
        ("app=web,zone=b", false),
        ("app!=web", false),
        ("other!=x", true),
        ("app", true),
        ("other", false),
        ("!other", true),
        ("!app", false),
        ("zone in (a, b)", true),
        ("zone in (b,c),app=web", false),
        ("zone notin (b,c)", true),
        ("other notin (a)", true),
    ] {
        let selector = Selector::parse(text, "").expect(text);
        assert_eq!(selector.selects(&object), selected, "{text}");
    }
}

#[test]
fn fields_select() {
    let object = object(&[]);
    for (text, selected) in [
        ("metadata.name=web", true),
        ("metadata.name=other", false),
        ("metadata.namespace=shop,status.phase!=Pending", true),
        ("status.restarts=3", true),
        ("status.nothing=", true),
    ] {
        let selector = Selector::parse("", text).expect(text);
        assert_eq!(selector.selects(&object), selected, "{text}");
    }
    let named = Selector::parse("", "metadata.name=web").expect("a selector");
    assert_eq!(named.name(), Some("web"));
}

#[test]
fn what_is_none_is_refused() {
    for text in ["=a", "a b", "in (a)", "x y in (z)"] {
        let wrong = Selector::parse(text, "").expect_err(text);
        assert!(wrong.contains("key=value"), "{wrong}");
    }
    assert!(Selector::parse(&"a,".repeat(100), "").is_err());
}
