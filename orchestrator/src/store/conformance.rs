//! What every engine must do. An engine's tests call [`suite`] with a way to open it, and to open it again
//! after it was closed.

use std::future::Future;
use std::time::{Duration, Instant};

use super::{AnyStore, Change, Expect, MAX_BATCH, MAX_VALUE, Revision, StoreError, Watch};

/// Opens an engine, with what it kept.
pub trait Open: Fn(&str) -> AnyStore {}
impl<F: Fn(&str) -> AnyStore> Open for F {}

/// All of it. `open` gets the name of a store.
pub fn suite(open: impl Open) {
    run(reads_and_writes(open("reads")));
    run(expectations(open("expectations")));
    run(batches(open("batches")));
    run(lists(open("lists")));
    run(watches(open("watches")));
    run(compaction(open("compaction")));
    run(leases(open("leases")));
    run(limits(open("limits")));
    run(writers(open("writers")));
    run(again(&open));
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work);
}

fn put(key: &str, value: &str) -> Change {
    Change::put(key, Expect::Anything, value.into())
}

async fn set(store: &AnyStore, key: &str, value: &str) -> Revision {
    store.commit(vec![put(key, value)]).await.expect("a commit")
}

async fn value(store: &AnyStore, key: &str) -> Option<String> {
    let entry = store.get(key).await.expect("read");
    entry.map(|entry| String::from_utf8(entry.value).expect("text"))
}

async fn reads_and_writes(store: AnyStore) {
    assert_eq!(value(&store, "a").await, None);
    let first = set(&store, "a", "1").await;
    let second = set(&store, "a", "2").await;
    assert!(second > first);
    let entry = store.get("a").await.expect("read").expect("there");
    assert_eq!((entry.created, entry.modified), (first, second));
    assert_eq!(entry.value, b"2");
    let gone = store
        .commit(vec![Change::delete("a", Expect::Anything)])
        .await;
    assert!(gone.expect("a commit") > second);
    assert_eq!(value(&store, "a").await, None);
    // What is gone already changes nothing.
    let again = store
        .commit(vec![Change::delete("a", Expect::Anything)])
        .await;
    assert_eq!(again.expect("a commit"), Revision(second.0 + 1));
    // A key that comes again is a new one.
    let third = set(&store, "a", "3").await;
    assert_eq!(
        store.get("a").await.expect("read").expect("there").created,
        third
    );
}

async fn expectations(store: AnyStore) {
    let new = |expect| vec![Change::put("a", expect, b"x".to_vec())];
    let at = store
        .commit(new(Expect::Absent))
        .await
        .expect("it was absent");
    let found = |result: Result<Revision, StoreError>| match result {
        Err(StoreError::Conflict { key, found }) => (key, found),
        other => panic!("no conflict: {other:?}"),
    };
    let there = ("a".to_owned(), Some(at));
    assert_eq!(found(store.commit(new(Expect::Absent)).await), there);
    assert_eq!(
        found(store.commit(new(Expect::At(Revision(at.0 + 1)))).await),
        there
    );
    let later = store
        .commit(new(Expect::At(at)))
        .await
        .expect("it was there");
    assert_eq!(
        found(store.commit(new(Expect::At(at))).await).1,
        Some(later)
    );
    let gone = vec![Change::delete("a", Expect::At(at))];
    assert_eq!(found(store.commit(gone).await).1, Some(later));
    let gone = vec![Change::delete("b", Expect::At(at))];
    assert_eq!(found(store.commit(gone).await), ("b".to_owned(), None));
}

async fn batches(store: AnyStore) {
    let at = store
        .commit(vec![put("a", "1"), put("b", "1")])
        .await
        .expect("a commit");
    for key in ["a", "b"] {
        assert_eq!(
            store.get(key).await.expect("read").expect("there").modified,
            at
        );
    }
    let half = vec![
        put("a", "2"),
        Change::put("b", Expect::Absent, b"2".to_vec()),
    ];
    assert!(
        matches!(store.commit(half).await, Err(StoreError::Conflict { key, .. }) if key == "b")
    );
    assert_eq!(value(&store, "a").await.as_deref(), Some("1"));
    let moved = vec![Change::delete("a", Expect::At(at)), put("c", "1")];
    store.commit(moved).await.expect("a commit");
    assert_eq!(
        (value(&store, "a").await, value(&store, "c").await),
        (None, Some("1".into()))
    );
}

async fn lists(store: AnyStore) {
    for key in ["p/b", "p/a", "p/c", "q/a", "o/z", "p"] {
        set(&store, key, key).await;
    }
    let last = set(&store, "p/d", "p/d").await;
    let page = store.list("p/", "", 3).await.expect("listed");
    let keys = |page: &super::Page| -> Vec<String> {
        page.entries.iter().map(|entry| entry.key.clone()).collect()
    };
    assert_eq!(keys(&page), ["p/a", "p/b", "p/c"]);
    assert_eq!((page.more, page.revision), (true, last));
    let rest = store.list("p/", "p/c", 3).await.expect("listed");
    assert_eq!((keys(&rest), rest.more), (vec!["p/d".to_owned()], false));
    let none = store.list("nothing", "", 3).await.expect("listed");
    assert_eq!((keys(&none).len(), none.more), (0, false));
    let all = store.list("", "", 100).await.expect("listed");
    assert_eq!(keys(&all), ["o/z", "p", "p/a", "p/b", "p/c", "p/d", "q/a"]);
}

/// The next changes, as (key, value, before).
async fn seen(watch: &mut Box<dyn Watch>) -> Vec<(String, Option<String>, Option<String>)> {
    let text = |bytes: Option<Vec<u8>>| bytes.map(|b| String::from_utf8(b).expect("text"));
    let next = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
    let (changes, _) = next.expect("in time").expect("changes");
    let changes = changes.into_iter();
    changes
        .map(|c| (c.key, text(c.value), text(c.before)))
        .collect()
}

fn made(key: &str, value: &str) -> (String, Option<String>, Option<String>) {
    (key.into(), Some(value.into()), None)
}

async fn watches(store: AnyStore) {
    let start = set(&store, "w/a", "1").await;
    set(&store, "other", "1").await;
    let mut watch = store.watch("w/", start).await.expect("a watch");
    let mut all = store.watch("", Revision(0)).await.expect("a watch");
    // What was before it came, in order.
    let changes = [seen(&mut all).await, Vec::new()].concat();
    assert_eq!(changes, [made("w/a", "1"), made("other", "1")]);
    // And what comes, of its prefix alone, whole commits at once.
    store
        .commit(vec![put("w/b", "1"), put("w/a", "2"), put("x", "1")])
        .await
        .expect("a commit");
    let mut changes = seen(&mut watch).await;
    changes.sort();
    let changed = ("w/a".to_owned(), Some("2".to_owned()), Some("1".to_owned()));
    assert_eq!(changes, [changed, made("w/b", "1")]);
    let waits = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        set(&store, "other", "2").await;
        store
            .commit(vec![Change::delete("w/b", Expect::Anything)])
            .await
            .expect("a commit");
    };
    let (changes, ()) = tokio::join!(seen(&mut watch), waits);
    assert_eq!(changes, [("w/b".to_owned(), None, Some("1".to_owned()))]);
    let future = store.watch("", Revision(1 << 40)).await;
    assert!(matches!(future, Err(StoreError::Future(_))));
}

async fn compaction(store: AnyStore) {
    let early = set(&store, "a", "1").await;
    let mut slow = store.watch("", early).await.expect("a watch");
    let late = {
        set(&store, "a", "2").await;
        set(&store, "a", "3").await
    };
    store.compact(late).await.expect("compacted");
    assert_eq!(value(&store, "a").await.as_deref(), Some("3"));
    let old = store.watch("", early).await;
    assert!(matches!(old, Err(StoreError::Compacted { oldest }) if oldest == late));
    assert!(matches!(
        slow.next().await,
        Err(StoreError::Compacted { .. })
    ));
    let mut watch = store.watch("", late).await.expect("a watch");
    set(&store, "a", "4").await;
    assert_eq!(seen(&mut watch).await.len(), 1);
}

async fn leases(store: AnyStore) {
    let short = Duration::from_millis(200);
    let lease = store.grant(short).await.expect("a lease");
    let kept = store
        .grant(Duration::from_secs(600))
        .await
        .expect("a lease");
    let with = |key: &str, lease| put(key, "1").leased(lease);
    store
        .commit(vec![with("a", lease), with("b", lease), with("c", kept)])
        .await
        .expect("a commit");
    // What is written again without it stays.
    let at = set(&store, "b", "2").await;
    let mut watch = store.watch("", at).await.expect("a watch");
    let begun = Instant::now();
    while begun.elapsed() < short * 3 {
        store.renew(lease).await.expect("it lasts");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(value(&store, "a").await.as_deref(), Some("1"));
    let gone = seen(&mut watch).await;
    assert_eq!(gone, [("a".to_owned(), None, Some("1".to_owned()))]);
    assert_eq!(value(&store, "b").await.as_deref(), Some("2"));
    assert!(matches!(
        store.renew(lease).await,
        Err(StoreError::Lease(_))
    ));
    let late = store.commit(vec![with("d", lease)]).await;
    assert!(matches!(late, Err(StoreError::Lease(_))));
    store.revoke(kept).await.expect("it lasts");
    assert_eq!(value(&store, "c").await, None);
    assert!(matches!(
        store.revoke(kept).await,
        Err(StoreError::Lease(_))
    ));
}

async fn limits(store: AnyStore) {
    let refused = |result: Result<Revision, StoreError>| result.expect_err("refused").to_string();
    let long = vec![b'x'; MAX_VALUE + 1];
    let text = refused(
        store
            .commit(vec![Change::put("big", Expect::Anything, long)])
            .await,
    );
    assert!(text.contains("`big`") && text.contains("1048577"), "{text}");
    assert!(refused(store.commit(vec![put("", "1")]).await).contains("0 bytes"));
    assert!(refused(store.commit(vec![put(&"k".repeat(2000), "1")]).await).contains("2000 bytes"));
    let twice = refused(store.commit(vec![put("a", "1"), put("a", "2")]).await);
    assert!(twice.contains("`a` twice"), "{twice}");
    assert!(refused(store.commit(Vec::new()).await).contains("batch of 0"));
    let many = (0..=MAX_BATCH).map(|n| put(&n.to_string(), "1")).collect();
    assert!(refused(store.commit(many).await).contains("1025"));
}

/// A number that many count up by compare-and-set comes out right.
async fn writers(store: AnyStore) {
    const WRITERS: usize = 8;
    const EACH: usize = 10;
    set(&store, "n", "0").await;
    let one = || async {
        for _ in 0..EACH {
            loop {
                let entry = store.get("n").await.expect("read").expect("there");
                let n: usize = String::from_utf8_lossy(&entry.value)
                    .parse()
                    .expect("a number");
                let next = (n + 1).to_string().into_bytes();
                let change = Change::put("n", Expect::At(entry.modified), next);
                match store.commit(vec![change]).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        }
    };
    let mut writers: Vec<_> = (0..WRITERS).map(|_| Box::pin(one())).collect();
    let all = std::future::poll_fn(|context| {
        writers.retain_mut(|writer| writer.as_mut().poll(context).is_pending());
        match writers.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    });
    all.await;
    assert_eq!(value(&store, "n").await, Some((WRITERS * EACH).to_string()));
}

/// What was answered is there when it is opened again, with its revisions and its log.
async fn again(open: &impl Open) {
    let store = open("again");
    let first = set(&store, "a", "1").await;
    let last = set(&store, "b", "1").await;
    let lease = store
        .grant(Duration::from_millis(300))
        .await
        .expect("a lease");
    store
        .commit(vec![put("l", "1").leased(lease)])
        .await
        .expect("a commit");
    drop(store);
    let store = open("again");
    let entry = store.get("b").await.expect("read").expect("there");
    assert_eq!((entry.modified, entry.value), (last, b"1".to_vec()));
    let mut watch = store.watch("", first).await.expect("a watch");
    assert_eq!(seen(&mut watch).await[0], made("b", "1"));
    assert!(set(&store, "c", "1").await > last);
    let begun = Instant::now();
    while value(&store, "l").await.is_some() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the lease never ends"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
