//! Directories of the host's that a VM shares (virtio-fs).

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Fields;

/// Shares of one VM: each is a device, and a process of the host's.
pub const MOST_SHARES: usize = 16;
/// Bytes of a tag (virtio 1.3 §5.11.4).
const TAG: usize = 36;

/// A directory of the host's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Share {
    /// What the guest mounts it by: `mount -t virtiofs TAG /mnt`.
    pub tag: String,
    /// The directory, below one that `skerry up --share` names.
    pub source: PathBuf,
    /// The guest only reads it.
    #[serde(default)]
    pub read_only: bool,
}

impl Share {
    /// Says what is wrong with a VM's shares.
    pub(super) fn check_all(shares: &[Share], fields: &mut Fields) {
        let few = shares.len() <= MOST_SHARES;
        fields.must(few, "spec.shares", "there may be 16");
        for (n, share) in shares.iter().take(MOST_SHARES).enumerate() {
            let at = format!("spec.shares[{n}]");
            let tag = format!("{at}.tag");
            fields.must(
                super::is_name(&share.tag) && share.tag.len() <= TAG,
                &tag,
                "it must be of a-z, 0-9 and -, and at most 36 of them",
            );
            let twice = shares[..n].iter().any(|other| other.tag == share.tag);
            fields.must(!twice, &tag, "another share has this tag");
            fields.must(
                share.source.is_absolute(),
                &format!("{at}.source"),
                "it must be an absolute path",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wrong(shares: Value) -> Vec<String> {
        let shares: Vec<Share> = serde_json::from_value(shares).expect("shares");
        let mut fields = Fields::default();
        Share::check_all(&shares, &mut fields);
        fields.errors.into_iter().map(|one| one.field).collect()
    }

    #[test]
    fn tags_are_short_names_of_one_share_each() {
        let good =
            json!([{"tag": "a", "source": "/a"}, {"tag": "b", "source": "/a", "readOnly": true}]);
        assert!(wrong(good).is_empty());
        let twice = json!([{"tag": "a", "source": "/a"}, {"tag": "a", "source": "/b"}]);
        assert_eq!(wrong(twice), ["spec.shares[1].tag"]);
        let long = "a".repeat(37);
        for tag in ["", "a/b", "a,socket=b", long.as_str()] {
            let shares = json!([{"tag": tag, "source": "/a"}]);
            assert_eq!(wrong(shares), ["spec.shares[0].tag"], "{tag}");
        }
        let here = json!([{"tag": "a", "source": "a"}]);
        assert_eq!(wrong(here), ["spec.shares[0].source"]);
        let many = (0..17).map(|n| json!({"tag": format!("a{n}"), "source": "/a"}));
        assert_eq!(wrong(many.collect()), ["spec.shares"]);
    }
}
