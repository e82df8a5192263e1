//! What of its own a host shares with workloads: what is below the directories that `skerry up --share` names, however
//! the path there is written. Whoever may declare a workload could read all of the host's files otherwise.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::{RuntimeError, system};

/// A path of the host's, without links, if it is shared, and the directory that it is below.
fn find<'a>(roots: &'a [PathBuf], source: &Path) -> Result<(PathBuf, PathBuf), RuntimeError> {
    let shown = source.display();
    let found = fs::canonicalize(source).map_err(system(format!("find {shown}")))?;
    let canonical = |root: &'a PathBuf| fs::canonicalize(root).ok();
    let mut roots = roots.iter().filter_map(canonical);
    match roots.find(|root| found.starts_with(root)) {
        Some(root) => Ok((found, root)),
        None => Err(RuntimeError::Unfit(format!(
            "the host does not share {shown}: start `skerry up` with --share and a directory above it"
        ))),
    }
}

/// A path of the host's, without links, if it is shared.
///
/// # Errors
/// If it is not.
pub fn path(roots: &[PathBuf], source: &Path) -> Result<PathBuf, RuntimeError> {
    find(roots, source).map(|(found, _)| found)
}

/// A directory of the host's, if it is shared: also if somebody puts a link in its path's way meanwhile.
///
/// # Errors
/// If it is not, or is no directory.
pub fn open(roots: &[PathBuf], source: &Path) -> Result<OwnedFd, RuntimeError> {
    let (found, root) = find(roots, source)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = || {
        let top = openat(CWD, &root, flags, Mode::empty())?;
        let below = match found.strip_prefix(&root) {
            Ok(below) if below != Path::new("") => below,
            _ => return Ok(top),
        };
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(openat2(&top, below, flags, Mode::empty(), within)?)
    };
    opened().map_err(system(format!("open the directory {}", source.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_out_of_nothing_that_is_shared() {
        let folder = tempfile::tempdir().expect("a folder");
        let shared = folder.path().join("shared");
        fs::create_dir_all(shared.join("inner")).expect("a folder");
        fs::write(shared.join("file"), "").expect("a file");
        std::os::unix::fs::symlink(folder.path(), shared.join("out")).expect("a link");
        std::os::unix::fs::symlink("inner", shared.join("in")).expect("a link");
        let roots = [shared.clone()];
        for inside in [shared.clone(), shared.join("inner"), shared.join("in")] {
            assert!(path(&roots, &inside).is_ok() && open(&roots, &inside).is_ok());
        }
        for outside in [shared.join("out"), shared.join("inner/../.."), "/".into()] {
            let refused = open(&roots, &outside).expect_err("it is not shared");
            assert!(refused.to_string().contains("--share"), "{refused}");
            assert!(path(&roots, &outside).is_err() && open(&[], &outside).is_err());
        }
        assert!(open(&roots, &shared.join("none")).is_err());
        // It is no directory.
        assert!(path(&roots, &shared.join("file")).is_ok());
        assert!(open(&roots, &shared.join("file")).is_err());
    }
}
