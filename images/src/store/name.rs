//! Names of images: `NAME[:TAG]`, as people know them from containers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::StoreError;

/// Characters of the longest name: a file's name, in which each `/` takes three.
const LONGEST: usize = 180;

/// An image's name, with its tag: `latest` if none is said. It may begin with a registry: `host:5000/debian:12`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(String);

impl Name {
    /// The name of its file.
    pub(super) fn file(&self) -> String {
        format!("{}.json", self.0.replace('/', "%2F"))
    }

    /// The name of a file that names an image.
    pub(super) fn of_file(file: &str) -> Option<Name> {
        file.strip_suffix(".json")?.replace("%2F", "/").parse().ok()
    }
}

impl FromStr for Name {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Name, StoreError> {
        let wrong = |why| {
            Err(StoreError::Name {
                name: text.chars().take(200).collect(),
                why,
            })
        };
        if text.is_empty() || text.len() > LONGEST {
            return wrong("it must have 1 to 180 characters");
        }
        let good = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
        if !text.chars().all(good) {
            return wrong("it has another character");
        }
        let parts: Vec<&str> = text.split('/').collect();
        let (last, before) = parts.split_last().unwrap_or((&"", &[]));
        let begins = |part: &&str| part.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !parts.iter().all(begins) {
            return wrong("each part must begin with a letter or a digit");
        }
        // A registry's port is the only other colon.
        let ports = before.iter().skip(1).any(|part| part.contains(':'));
        let port = before.first().and_then(|part| part.split_once(':'));
        let bad_port = port.is_some_and(|(_, port)| port.parse::<u16>().is_err());
        match last.split_once(':') {
            _ if ports || bad_port => wrong("it has a colon too many"),
            Some((_, tag)) if tag.is_empty() || tag.contains(':') => wrong("its tag is empty"),
            Some(_) => Ok(Name(text.to_owned())),
            None => Ok(Name(format!("{text}:latest"))),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl TryFrom<String> for Name {
    type Error = StoreError;

    fn try_from(text: String) -> Result<Name, StoreError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_tag_and_goes_through_its_file() {
        for (text, whole) in [
            ("debian", "debian:latest"),
            ("debian:12", "debian:12"),
            ("host:5000/a/b", "host:5000/a/b:latest"),
            (
                "registry.example/a_b/c-d:v1.2",
                "registry.example/a_b/c-d:v1.2",
            ),
        ] {
            let name: Name = text.parse().expect(text);
            assert_eq!(name.to_string(), whole);
            assert_eq!(Name::of_file(&name.file()), Some(name));
        }
    }

    #[test]
    fn what_would_leave_its_folder_is_no_name() {
        for text in [
            "", "..", "../a", "a/../b", "/a", "a//b", "a:", "a:b:c", "x:y/a", "ä", "a b", "a\0",
            ".a",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }
}
