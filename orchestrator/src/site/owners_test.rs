//! What belongs to others goes with them, and nothing else does.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::api::Propagation;
use crate::model::{BareMetal, Container, Host};
use crate::store::Embedded;

/// Objects whose owners are seen to. Hosts own and are owned here, as nobody else cleans them up.
struct Desk {
    _folder: tempfile::TempDir,
    objects: Objects,
}

impl Desk {
    async fn make(&self, name: &str, owners: &[(&Object, bool)]) -> Object {
        let references = owners.iter().map(|(owner, blocks)| {
            json!({
                "apiVersion": owner.kind.api_version(), "kind": owner.kind.kind,
                "name": owner.meta.name, "uid": owner.meta.uid, "blockOwnerDeletion": blocks,
            })
        });
        self.make_of(name, references.collect()).await
    }

    async fn make_of(&self, name: &str, references: Value) -> Object {
        let value = json!({
            "metadata": {"name": name, "ownerReferences": references},
            "spec": {},
        });
        let object = Object::from_value(kind_of::<Host>(), value).expect("an object");
        self.objects.create(object, false).await.expect("made")
    }

    async fn delete(&self, name: &str, propagation: Propagation) {
        let deletion = Deletion {
            propagation,
            ..Deletion::default()
        };
        let deleted = self
            .objects
            .delete_by(kind_of::<Host>(), "", name, &deletion);
        deleted.await.expect("deleted");
    }

    async fn names(&self) -> Vec<String> {
        let (hosts, _) = self.objects.all::<Host>().await.expect("hosts");
        hosts.into_iter().map(|host| host.meta.name).collect()
    }

    /// Waits until these are there and no others.
    async fn until(&self, names: &[&str]) {
        let mut found = Vec::new();
        for _ in 0..1000 {
            found = self.names().await;
            if found == names {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{found:?} are there, not {names:?}");
    }
}

/// What was made before it, and what was made while it works, is seen to.
fn run(test: impl AsyncFnOnce(Desk)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Embedded::open(&folder.path().join("store")).expect("a store");
        let objects = Objects::new(Arc::new(store));
        let desk = Desk {
            _folder: folder,
            objects,
        };
        test(desk).await;
    });
}

fn works(desk: &Desk) -> tokio::task::JoinHandle<()> {
    tokio::spawn(Owners::new(desk.objects.clone()).run())
}

#[test]
fn what_belongs_to_what_is_gone_goes_as_do_those_that_belong_to_it() {
    run(async |desk: Desk| {
        let top = desk.make("a-top", &[]).await;
        let other = desk.make("b-other", &[]).await;
        let one = desk.make("c-one", &[(&top, false)]).await;
        desk.make("d-below", &[(&one, false)]).await;
        desk.make("e-both", &[(&top, true), (&other, false)]).await;
        desk.make("f-free", &[]).await;
        // Its owner is gone before anybody looks.
        desk.delete("a-top", Propagation::Background).await;
        works(&desk);
        desk.until(&["b-other", "e-both", "f-free"]).await;
        desk.delete("b-other", Propagation::Background).await;
        desk.until(&["f-free"]).await;
        // Made with an owner that is gone already.
        desk.make("g-late", &[(&other, false)]).await;
        desk.until(&["f-free"]).await;
    });
}

#[test]
fn orphans_stay_and_belong_to_nobody() {
    run(async |desk: Desk| {
        works(&desk);
        let top = desk.make("a-top", &[]).await;
        desk.make("b-one", &[(&top, true)]).await;
        desk.delete("a-top", Propagation::Orphan).await;
        desk.until(&["b-one"]).await;
        let one = desk
            .objects
            .get(top.kind, "", "b-one")
            .await
            .expect("it is there");
        assert_eq!(one.meta.owner_references, []);
        assert!(one.meta.deletion_timestamp.is_none());
    });
}

#[test]
fn an_owner_that_goes_last_waits_for_those_that_hold_it() {
    run(async |desk: Desk| {
        works(&desk);
        let top = desk.make("a-top", &[]).await;
        let other = desk.make("b-other", &[]).await;
        let held = desk.make("c-held", &[(&top, true)]).await;
        desk.make("d-loose", &[(&top, false)]).await;
        desk.make("e-both", &[(&top, true), (&other, false)]).await;
        // Somebody cleans up after it.
        let change = |old: &Object| {
            let mut new = old.clone();
            new.meta.finalizers.push("somebody".to_owned());
            Ok(new)
        };
        let objects = &desk.objects;
        let marked = objects.change(top.kind, "", "c-held", Part::Spec, false, change);
        marked.await.expect("changed");
        desk.delete("a-top", Propagation::Foreground).await;
        desk.until(&["a-top", "b-other", "c-held", "e-both"]).await;
        let going = objects
            .get(top.kind, "", "c-held")
            .await
            .expect("it is there");
        assert!(going.meta.deletion_timestamp.is_some());
        objects.finalized(&held, "somebody").await.expect("changed");
        desk.until(&["b-other", "e-both"]).await;
        let both = objects
            .get(top.kind, "", "e-both")
            .await
            .expect("it is there");
        assert_eq!(both.meta.owner_references.len(), 1);
    });
}

#[test]
fn owners_of_kinds_that_others_serve_are_thought_to_be_there() {
    run(async |desk: Desk| {
        works(&desk);
        let reference = |version: &str, kind: &str| json!([{"apiVersion": version, "kind": kind, "name": "x", "uid": "x"}]);
        desk.make_of("a-foreign", reference("apps/v1", "Deployment"))
            .await;
        let ours = kind_of::<BareMetal>().api_version();
        desk.make_of("b-ours", reference(&ours, "BareMetal")).await;
        desk.until(&["a-foreign"]).await;
    });
}

#[test]
fn nobody_owns_what_is_another_tenants() {
    let known = |namespace: &str, name: &str, owners: Vec<OwnerReference>| Known {
        kind: kind_of::<Container>(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        revision: Revision(1),
        owners,
        going: false,
        held: None,
    };
    let reference = OwnerReference {
        api_version: kind_of::<Container>().api_version(),
        kind: "Container".to_owned(),
        name: "owner".to_owned(),
        uid: "uid-owner".to_owned(),
        ..OwnerReference::default()
    };
    let mut all = All::default();
    all.enter("b/owner".to_owned(), known("b", "owner", Vec::new()));
    for namespace in ["a", "b"] {
        let dependent = known(namespace, "dependent", vec![reference.clone()]);
        all.enter(format!("{namespace}/dependent"), dependent);
    }
    let named = |found: Vec<&Known>| -> Vec<String> {
        found.iter().map(|one| one.namespace.clone()).collect()
    };
    assert_eq!(named(all.left_behind()), ["a"]);
    assert_eq!(named(all.dependents(&all.known["b/owner"])), ["b"]);
}
