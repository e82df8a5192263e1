//! Who a container runs as: names are looked up in its own `/etc/passwd` and `/etc/group`.

use std::io::{self, Read};
use std::path::Path;

use super::error::ContainerError;
use super::image::Rooted;

/// How much of a file of names is looked at, in bytes.
const LONGEST: u64 = 1 << 20;
/// How many groups somebody may be in beside their own.
const GROUPS: usize = 64;

/// Somebody, by numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
}

/// Finds out who `user` is: nothing for root, `uid`, `uid:gid`, or names in the place of numbers.
pub fn identity(root: &Rooted, user: &str) -> Result<Identity, ContainerError> {
    let wrong = |why: String| ContainerError::spec("user", user, why);
    if user.is_empty() {
        return Ok(Identity::default());
    }
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let read = |path: &str| {
        read(root, Path::new(path)).map_err(|e| wrong(format!("the image's /{path}: {e}")))
    };
    let passwd = read("etc/passwd")?;
    let known = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()?;
        let uid = fields.nth(1)?;
        let gid = fields.next()?.parse::<u32>().ok()?;
        (found == name || uid == name).then(|| Some((found.to_string(), uid.parse().ok()?, gid)))?
    });
    let (called, uid, primary) = match (known, name.parse::<u32>()) {
        (Some((called, uid, gid)), _) => (Some(called), uid, gid),
        (None, Ok(uid)) => (None, uid, 0),
        (None, Err(_)) => {
            return Err(wrong(
                "the image's /etc/passwd has no such user; give a number".into(),
            ));
        }
    };
    let groups = read("etc/group")?;
    let groups = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse::<u32>().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    });
    if let Some(group) = group {
        let found = groups.clone().find(|(name, ..)| *name == group);
        let gid = match (found, group.parse::<u32>()) {
            (Some((_, gid, _)), _) | (None, Ok(gid)) => gid,
            (None, Err(_)) => {
                return Err(wrong(
                    "the image's /etc/group has no such group; give a number".into(),
                ));
            }
        };
        return Ok(Identity {
            uid,
            gid,
            groups: Vec::new(),
        });
    }
    let member = |members: &str| {
        called
            .as_deref()
            .is_some_and(|name| members.split(',').any(|member| member == name))
    };
    let others = groups.filter(|(_, gid, members)| *gid != primary && member(members));
    Ok(Identity {
        uid,
        gid: primary,
        groups: others.map(|(_, gid, _)| gid).take(GROUPS).collect(),
    })
}

/// A file of the container, as far as it is text; nothing if it has none.
fn read(root: &Rooted, path: &Path) -> io::Result<String> {
    let file = match root.file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
#[path = "passwd_test.rs"]
mod tests;
