//! Tests of image layouts, also hostile ones.

use std::fs;

use serde_json::{Value, json};

use super::*;

/// A layout that is made document by document.
struct Made(tempfile::TempDir);

impl Made {
    fn new() -> Made {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("blobs/sha256")).unwrap();
        let version = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        fs::write(home.path().join("oci-layout"), version).unwrap();
        Made(home)
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = hex(&Sha256::digest(bytes));
        fs::write(self.0.path().join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        })
    }

    fn document(&self, kind: &str, document: Value) -> Value {
        self.blob(kind, document.to_string().as_bytes())
    }

    /// An image with so many layers, of which the configuration names so many.
    fn image(&self, layers: usize, named: usize) -> Value {
        let layer = self.blob("layer.v1.tar", b"");
        let diff_ids = vec![layer["digest"].clone(); named];
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.document("config.v1+json", config);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": vec![layer; layers]});
        self.document("manifest.v1+json", manifest)
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        fs::write(self.0.path().join("index.json"), index).unwrap();
    }

    fn contents(&self, name: Option<&str>) -> Result<Contents, ImageError> {
        Layout::open(self.0.path())?.contents(name)
    }

    fn error(&self, name: Option<&str>) -> String {
        self.contents(name).unwrap_err().to_string()
    }
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({NAME: name});
    descriptor
}

#[test]
fn an_image_is_found_by_its_name_its_digest_or_alone() {
    let made = Made::new();
    let (one, two) = (made.image(1, 1), made.image(2, 2));
    made.index(std::slice::from_ref(&one));
    assert_eq!(made.contents(None).unwrap().layers.len(), 1);
    made.index(&[named(one.clone(), "one"), named(two.clone(), "two")]);
    assert_eq!(made.contents(Some("two")).unwrap().layers.len(), 2);
    let digest = one["digest"].as_str().unwrap();
    assert_eq!(made.contents(Some(digest)).unwrap().layers.len(), 1);
    assert!(made.error(None).contains("name one of one, two"));
    let missing = made.error(Some("three"));
    assert!(
        missing.contains("\"three\"") && missing.contains("one, two"),
        "{missing}"
    );
}

#[test]
fn an_image_of_several_platforms_gives_this_machines() {
    let made = Made::new();
    let mut other = made.image(1, 1);
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let mut mine = made.image(2, 2);
    mine["platform"] = json!({"os": "linux", "architecture": architecture()});
    let index = json!({"schemaVersion": 2, "manifests": [other, mine]});
    made.index(&[named(made.document("index.v1+json", index), "both")]);
    assert_eq!(made.contents(Some("both")).unwrap().layers.len(), 2);
}

#[test]
fn indexes_are_not_nested_endlessly() {
    let made = Made::new();
    let mut inner = made.image(1, 1);
    for _ in 0..10 {
        let index = json!({"schemaVersion": 2, "manifests": [inner]});
        inner = made.document("index.v1+json", index);
    }
    made.index(&[inner]);
    assert!(made.error(None).contains("nested deeper"));
}

#[test]
fn documents_that_are_not_what_their_digests_say_are_refused() {
    let made = Made::new();
    let image = made.image(1, 1);
    let digest = image["digest"]
        .as_str()
        .unwrap()
        .strip_prefix("sha256:")
        .unwrap();
    let path = made.0.path().join("blobs/sha256").join(digest);
    let mut text = fs::read(&path).unwrap();
    text[5] ^= 1;
    fs::write(&path, &text).unwrap();
    made.index(std::slice::from_ref(&image));
    assert!(made.error(None).contains("its sha256 is another"));
    text.push(b' ');
    fs::write(&path, &text).unwrap();
    assert!(made.error(None).contains("bytes, not"));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
    assert!(made.contents(None).is_err());
}

#[test]
fn digests_cannot_be_paths() {
    let made = Made::new();
    for digest in [
        "sha256:../../../etc/passwd",
        "sha256:",
        "md5:00",
        "/etc/passwd",
        "",
    ] {
        let mut image = made.image(1, 1);
        image["digest"] = digest.into();
        made.index(&[image]);
        assert!(made.contents(None).is_err(), "{digest}");
    }
}

#[test]
fn layers_are_counted_and_have_to_be_of_a_known_kind() {
    let made = Made::new();
    for (layers, named, why) in [
        (1, 2, "configuration names 2"),
        (0, 0, "has 0 layers"),
        (128, 128, "has 128 layers"),
    ] {
        made.index(&[made.image(layers, named)]);
        assert!(made.error(None).contains(why), "{why}");
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "0".repeat(64))]},
    });
    let config = made.document("config.v1+json", config);
    let layer = made.blob("layer.v1.tar+unknown", b"");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    made.index(&[made.document("manifest.v1+json", manifest)]);
    assert!(made.error(None).contains("layer of unknown kind"));
}

#[test]
fn what_is_no_layout_says_how_to_get_one() {
    let home = tempfile::tempdir().unwrap();
    for text in ["", "{}", "{\"imageLayoutVersion\": \"2.0.0\"}"] {
        fs::write(home.path().join("oci-layout"), text).unwrap();
        let error = Layout::open(home.path()).unwrap_err().to_string();
        assert!(error.contains("skopeo copy"), "{error}");
    }
    assert!(Layout::open(&home.path().join("none")).is_err());
}

#[test]
fn a_document_longer_than_may_be_is_not_read() {
    let made = Made::new();
    fs::write(
        made.0.path().join("index.json"),
        vec![b' '; (DOCUMENT + 1) as usize],
    )
    .unwrap();
    assert!(made.error(None).contains("longer than"));
    let mut image = made.image(1, 1);
    image["size"] = (DOCUMENT + 1).into();
    made.index(&[image]);
    assert!(made.error(None).contains("more than"));
}
