//! Kernel modules of an unpacked kernel package: which files a driver needs, in the order to load them.
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// The modules of one kernel release.
pub struct Modules {
    root: PathBuf,
    builtin: HashSet<String>,
    /// Module name → its file and the files that it needs, relative to `root`.
    files: HashMap<String, (String, Vec<String>)>,
}

impl Modules {
    /// Reads the module tree below `unpacked/lib/modules`, after making `modules.dep` with busybox's depmod if it isn't there
    /// (the package leaves that to its installation).
    ///
    /// # Errors
    /// When there isn't exactly one kernel release, or its files cannot be read.
    pub fn open(unpacked: &Path, busybox: &Path) -> Result<Self> {
        let release = release(unpacked)?;
        let root = unpacked.join("lib/modules").join(&release);
        let dep = root.join("modules.dep");
        if !dep.exists() {
            command::read(
                Command::new(busybox)
                    .arg("depmod")
                    .arg("-b")
                    .arg(unpacked)
                    .arg(&release),
            )?;
        }
        let read = |path: PathBuf| {
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let builtin = read(root.join("modules.builtin"))?
            .lines()
            .map(name_of)
            .collect();
        Ok(Self {
            files: parse_dep(&read(dep)?),
            root,
            builtin,
        })
    }

    /// The files to load, in order, so that every one of `names` works; what is built into the kernel needs none.
    ///
    /// # Errors
    /// When this kernel has no such module.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(&normal(name), &mut order)?;
        }
        Ok(order.iter().map(|file| self.root.join(file)).collect())
    }

    fn visit(&self, name: &str, order: &mut Vec<String>) -> Result<()> {
        let Some((file, needs)) = self.files.get(name) else {
            if self.builtin.contains(name) {
                return Ok(());
            }
            bail!("the kernel in {} has no module {name}", self.root.display());
        };
        if order.contains(file) {
            return Ok(());
        }
        for need in needs {
            self.visit(&name_of(need), order)?;
        }
        if !order.contains(file) {
            order.push(file.clone());
        }
        Ok(())
    }
}

/// The one kernel release below `unpacked/lib/modules`.
///
/// # Errors
/// When there is none, or more than one.
pub fn release(unpacked: &Path) -> Result<String> {
    let folder = unpacked.join("lib/modules");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        _ => bail!(
            "{} holds {} kernel releases instead of one: remove it and try again",
            folder.display(),
            names.len()
        ),
    }
}

fn parse_dep(text: &str) -> HashMap<String, (String, Vec<String>)> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let owned = lines.map(|(file, needs)| {
        (
            file.to_owned(),
            needs.split_whitespace().map(str::to_owned).collect(),
        )
    });
    owned
        .map(|(file, needs)| (name_of(&file), (file, needs)))
        .collect()
}

/// `kernel/net/9p/9pnet_virtio.ko.xz` → `9pnet_virtio`.
fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    normal(base.split(".ko").next().unwrap_or(base))
}

/// The kernel takes `-` and `_` in module names for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        let dep =
            "kernel/b-two.ko.xz: kernel/c.ko kernel/d.ko\nkernel/c.ko: kernel/d.ko\nkernel/d.ko:\n";
        Modules {
            root: PathBuf::from("/m"),
            builtin: HashSet::from(["built_in".into()]),
            files: parse_dep(dep),
        }
    }

    #[test]
    fn what_a_module_needs_comes_first() {
        let order = modules()
            .load_order(&["b_two", "c"])
            .expect("known modules");
        assert_eq!(
            order,
            ["/m/kernel/d.ko", "/m/kernel/c.ko", "/m/kernel/b-two.ko.xz"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_builtin_needs_no_file() {
        assert!(
            modules()
                .load_order(&["built-in"])
                .expect("a builtin")
                .is_empty()
        );
    }

    #[test]
    fn an_unknown_module_is_named() {
        assert!(
            modules()
                .load_order(&["zzz"])
                .expect_err("unknown")
                .to_string()
                .contains("no module zzz")
        );
    }
}
