//! What a workload finds at which path.

use crate::firstboot::Seed;

/// What is told of a workload.
pub struct About {
    /// What its cloud-init is told.
    pub seed: Seed,
    /// Its address.
    pub address: String,
    /// The host that it runs on.
    pub host: String,
}

/// What cloud-init's oldest versions ask for, and what all have.
const VERSIONS: [&str; 2] = ["2009-04-04", "latest"];

impl About {
    /// The page at a path; none if there is none. Folders list what is in them.
    pub fn page(&self, path: &str) -> Option<String> {
        let path = path.trim_matches('/');
        let mut words = path.split('/');
        let rest: Vec<&str> = match words.next() {
            Some("") => return Some(VERSIONS.join("\n")),
            Some("nocloud") => return self.nocloud(words.next(), words.next()),
            Some(version) if VERSIONS.contains(&version) || is_date(version) => words.collect(),
            _ => return None,
        };
        match rest.as_slice() {
            [] => Some("meta-data\nuser-data".to_owned()),
            ["user-data"] if !self.seed.user_data.is_empty() => Some(self.seed.user_data.clone()),
            ["meta-data", rest @ ..] => self.meta_data(rest),
            _ => None,
        }
    }

    fn meta_data(&self, path: &[&str]) -> Option<String> {
        let seed = &self.seed;
        let key = |n: &str| seed.ssh_keys.get(n.parse::<usize>().ok()?).cloned();
        match path {
            [] => {
                let mut all = vec![
                    "hostname",
                    "instance-id",
                    "local-hostname",
                    "local-ipv4",
                    "placement/",
                ];
                if !seed.ssh_keys.is_empty() {
                    all.push("public-keys/");
                }
                Some(all.join("\n"))
            }
            ["hostname" | "local-hostname"] => Some(seed.hostname.clone()),
            ["instance-id"] => Some(seed.instance_id.clone()),
            ["local-ipv4"] => Some(self.address.clone()),
            ["placement"] => Some("availability-zone".to_owned()),
            ["placement", "availability-zone"] => Some(self.host.clone()),
            ["public-keys"] => {
                let keys = 0..seed.ssh_keys.len();
                let lines = keys.map(|n| format!("{n}=key{n}"));
                Some(lines.collect::<Vec<_>>().join("\n"))
            }
            ["public-keys", n] => key(n).map(|_| "openssh-key".to_owned()),
            ["public-keys", n, "openssh-key"] => key(n),
            _ => None,
        }
    }

    /// The files of cloud-init's NoCloud source.
    fn nocloud(&self, name: Option<&str>, more: Option<&str>) -> Option<String> {
        let files = self.seed.files();
        match (name, more) {
            (None, _) => {
                let names = files.into_iter().map(|(name, _)| name);
                Some(names.collect::<Vec<_>>().join("\n"))
            }
            (Some(name), None) => {
                let mut files = files.into_iter();
                files.find(|(one, _)| *one == name).map(|(_, text)| text)
            }
            _ => None,
        }
    }
}

/// Whether it is a version of the service: all of them are alike here.
fn is_date(word: &str) -> bool {
    let parts: Vec<&str> = word.split('-').collect();
    let digits = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    parts.iter().all(digits)
        && matches!(parts.as_slice(), [y, m, d] if (y.len(), m.len(), d.len()) == (4, 2, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            seed: Seed {
                instance_id: "an-uid".to_owned(),
                hostname: "harbour".to_owned(),
                ssh_keys: vec!["ssh-ed25519 AAAA me".to_owned()],
                user_data: "#!/bin/sh\n".to_owned(),
                ..Seed::default()
            },
            address: "10.88.0.2".to_owned(),
            host: "edge1".to_owned(),
        }
    }

    #[test]
    fn pages_are_where_clouds_have_them() {
        let about = about();
        for (path, page) in [
            ("/", "2009-04-04\nlatest"),
            ("/latest/", "meta-data\nuser-data"),
            ("/latest/meta-data/instance-id", "an-uid"),
            ("/2021-03-23/meta-data/local-hostname", "harbour"),
            ("/latest/meta-data/local-ipv4", "10.88.0.2"),
            ("/latest/meta-data/placement/availability-zone", "edge1"),
            ("/latest/meta-data/public-keys/", "0=key0"),
            (
                "/latest/meta-data/public-keys/0/openssh-key",
                "ssh-ed25519 AAAA me",
            ),
            ("/latest/user-data", "#!/bin/sh\n"),
            ("/nocloud/user-data", "#!/bin/sh\n"),
            ("/nocloud/", "meta-data\nuser-data"),
        ] {
            assert_eq!(about.page(path).as_deref(), Some(page), "{path}");
        }
        for path in [
            "/else",
            "/latest/meta-data/public-keys/1/openssh-key",
            "/latest/meta-data/../user-data",
            "/20-21-0323/meta-data",
            "/nocloud/meta-data/more",
        ] {
            assert_eq!(about.page(path), None, "{path}");
        }
    }

    #[test]
    fn without_user_data_there_is_no_such_page() {
        let mut about = about();
        about.seed.user_data.clear();
        assert_eq!(about.page("/latest/user-data"), None);
    }
}
