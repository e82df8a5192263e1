//! What a workload is told when it starts for the first time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fields, is_name};

/// What a guest's cloud-init, or a container, is told of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FirstBoot {
    /// Its name; that of the object if left out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Keys whose owners may log in by SSH, each a line as in `authorized_keys`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// What cloud-init is told to do: a text that begins with `#cloud-config`, `#!` or another of its headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// It is told its addresses.
    pub network_config: bool,
}

/// Keys of a workload, and bytes of each.
const MOST_KEYS: usize = 32;
const KEY_BYTES: usize = 8 << 10;
/// Bytes of user data.
const USER_DATA_BYTES: usize = 64 << 10;

impl Default for FirstBoot {
    fn default() -> FirstBoot {
        FirstBoot {
            hostname: String::new(),
            ssh_keys: Vec::new(),
            user_data: None,
            network_config: true,
        }
    }
}

impl FirstBoot {
    pub(super) fn check(&self, fields: &mut Fields) {
        let label = is_name(&self.hostname) && self.hostname.len() <= 63;
        fields.must(
            self.hostname.is_empty() || label && !self.hostname.contains('.'),
            "spec.firstBoot.hostname",
            "it must be a name of at most 63 of a-z, 0-9 and -",
        );
        fields.must(
            self.ssh_keys.len() <= MOST_KEYS,
            "spec.firstBoot.sshKeys",
            "there may be 32",
        );
        for (n, key) in self.ssh_keys.iter().take(MOST_KEYS).enumerate() {
            let line = key.len() <= KEY_BYTES && !key.contains(|c: char| c.is_control());
            fields.must(
                line && key.split(' ').filter(|word| !word.is_empty()).count() >= 2,
                &format!("spec.firstBoot.sshKeys[{n}]"),
                "it must be a public key on one line, such as `ssh-ed25519 AAAA… me@here`",
            );
        }
        let length = self.user_data.as_ref().map_or(0, String::len);
        fields.must(
            length <= USER_DATA_BYTES,
            "spec.firstBoot.userData",
            "it may have 64 KiB",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_more_than_a_line_or_a_name_is_refused() {
        let wrong = |first: FirstBoot| {
            let mut fields = Fields::default();
            first.check(&mut fields);
            fields.errors.len()
        };
        let key = |text: &str| FirstBoot {
            ssh_keys: vec![text.to_owned()],
            ..FirstBoot::default()
        };
        assert_eq!(wrong(key("ssh-ed25519 AAAA me@here")), 0);
        for text in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA\nssh-rsa BBBB",
            &"a b".repeat(8 << 10),
        ] {
            assert_eq!(wrong(key(text)), 1, "{text:.20}");
        }
        for name in ["a.b", "-a", "A", &"a".repeat(64)] {
            let first = FirstBoot {
                hostname: name.to_owned(),
                ..FirstBoot::default()
            };
            assert_eq!(wrong(first), 1, "{name}");
        }
    }
}
