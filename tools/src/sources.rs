//! apt's sources: reads the machine's own entries (both formats) and derives the backports entry from them.
//!
//! The location and the key are taken over, never written down here: a mirror stays the mirror.
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// One enabled archive: what a `deb` line or one deb822 stanza says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Archive {
    uris: String,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

/// The deb822 stanza for `<codename>-backports`, derived from the archive that serves `codename` on this machine.
///
/// # Errors
/// When no enabled source serves the suite's `main` component.
pub fn backports_stanza(apt: &Path, codename: &str) -> Result<String> {
    let suite = format!("{codename}-backports");
    Ok(stanza(&base(apt, codename)?, &suite))
}

/// The deb822 stanza for `codename` itself, as this machine has it.
///
/// # Errors
/// When no enabled source serves the suite's `main` component.
pub fn own_stanza(apt: &Path, codename: &str) -> Result<String> {
    Ok(stanza(&base(apt, codename)?, codename))
}

fn base(apt: &Path, codename: &str) -> Result<Archive> {
    let archives = read_all(apt)?;
    let serves = |archive: &&Archive| {
        archive.suites.iter().any(|suite| suite == codename)
            && archive.components.iter().any(|c| c == "main")
    };
    let Some(base) = archives.iter().find(serves) else {
        bail!(
            "no source under {} serves {codename} main: add it, or what is wanted of it, by hand",
            apt.display()
        );
    };
    Ok(base.clone())
}

fn stanza(base: &Archive, suite: &str) -> String {
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
        base.uris
    );
    if let Some(key) = &base.signed_by {
        // An inline key keeps its continuation lines, and starts on the line after the field's name.
        let space = if key.starts_with('\n') { "" } else { " " };
        text.push_str(&format!("Signed-By:{space}{key}\n"));
    }
    text
}

fn read_all(apt: &Path) -> Result<Vec<Archive>> {
    let mut files = vec![apt.join("sources.list")];
    let parts = apt.join("sources.list.d");
    if parts.is_dir() {
        let entries =
            fs::read_dir(&parts).with_context(|| format!("cannot list {}", parts.display()))?;
        files.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    files.sort();
    let mut archives = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let parse = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => parse_list,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        archives.extend(parse(&text));
    }
    Ok(archives)
}

/// `deb [option=value …] URI suite component …`, one a line (sources.list(5)).
fn parse_list(text: &str) -> Vec<Archive> {
    text.lines().filter_map(parse_list_line).collect()
}

fn parse_list_line(line: &str) -> Option<Archive> {
    let line = line.split('#').next()?.trim();
    let rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="));
    Some(Archive {
        uris: uri.to_owned(),
        suites: vec![suite.to_owned()],
        components: words.map(str::to_owned).collect(),
        signed_by: signed_by.map(str::to_owned),
    })
}

/// Stanzas of `Field: value` with continuation lines, separated by empty lines (deb822(5)).
fn parse_deb822(text: &str) -> Vec<Archive> {
    let mut archives = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain(std::iter::once("")) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            archives.extend(archive_of(&std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    archives
}

fn archive_of(fields: &[(String, String)]) -> Option<Archive> {
    let field = |wanted: &str| {
        fields
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.clone())
    };
    let words = |value: String| {
        value
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let disabled = field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    let binary = words(field("types")?).iter().any(|kind| kind == "deb");
    if disabled || !binary {
        return None;
    }
    Some(Archive {
        uris: field("uris")?,
        suites: words(field("suites")?),
        components: words(field("components").unwrap_or_default()),
        signed_by: field("signed-by"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(file: &str, text: &str) -> Result<String> {
        let apt = tempfile::tempdir().expect("a temporary directory");
        let path = apt.path().join(file);
        fs::create_dir_all(path.parent().expect("the file is below the directory"))
            .expect("a directory");
        fs::write(path, text).expect("a file");
        backports_stanza(apt.path(), "bookworm")
    }

    #[test]
    fn a_deb822_source_lends_its_location_and_key() {
        let text = "# a mirror\nTypes: deb deb-src\nURIs: mirror://one\nSuites: bookworm bookworm-updates\n\
                    Components: main contrib\nSigned-By: /keys/a.gpg\n";
        let stanza = derived("sources.list.d/debian.sources", text).expect("a stanza");
        assert_eq!(
            stanza,
            "Types: deb\nURIs: mirror://one\nSuites: bookworm-backports\nComponents: main\nSigned-By: /keys/a.gpg\n"
        );
    }

    #[test]
    fn an_inline_key_keeps_its_lines() {
        let text = "Types: deb\nURIs: mirror://one\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN\n .\n AbC\n";
        let stanza = derived("sources.list.d/debian.sources", text).expect("a stanza");
        assert!(
            stanza.ends_with("Signed-By:\n -----BEGIN\n .\n AbC\n"),
            "{stanza}"
        );
    }

    #[test]
    fn a_one_line_source_lends_its_location_and_key() {
        let text = "# deb mirror://no bookworm main\ndeb [arch=amd64 signed-by=/keys/b.gpg] mirror://two bookworm main\n";
        let stanza = derived("sources.list", text).expect("a stanza");
        assert!(stanza.contains("URIs: mirror://two\n"), "{stanza}");
        assert!(stanza.contains("Signed-By: /keys/b.gpg\n"), "{stanza}");
    }

    #[test]
    fn a_source_of_another_suite_lends_nothing() {
        let text = "deb mirror://two trixie main\ndeb-src mirror://two bookworm main\n";
        let error = derived("sources.list", text).expect_err("no source serves bookworm");
        assert!(
            error.to_string().contains("bookworm-backports by hand"),
            "{error}"
        );
    }

    #[test]
    fn a_disabled_source_lends_nothing() {
        let text =
            "Enabled: no\nTypes: deb\nURIs: mirror://one\nSuites: bookworm\nComponents: main\n";
        assert!(derived("sources.list.d/debian.sources", text).is_err());
    }
}
