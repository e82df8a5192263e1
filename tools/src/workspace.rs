//! Where things are: the workspace, its target folder, and this program itself.
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The workspace's root folder: the one above this crate's.
pub fn root() -> PathBuf {
    let tools = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    tools.parent().map_or(tools.clone(), Path::to_path_buf)
}

/// The folder for everything that xtask makes and keeps: `target/` in the workspace, wherever cargo puts its own output.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The recipes of the demo's guest.
pub fn recipes() -> PathBuf {
    root().join("images/guest")
}

/// What commands in a guest go over: its agent is made of it, too.
pub fn exec() -> PathBuf {
    root().join("orchestrator/exec")
}

/// The program that is running now.
///
/// # Errors
/// When the system cannot name it, for example because a rebuild replaced it meanwhile.
pub fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find xtask's own executable: run `cargo xtask` again")
}

/// The cargo that started this program, or the one in `PATH`.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Makes a folder and keeps other xtasks from working in it for as long as the result lives.
///
/// # Errors
/// When the folder or its lock file cannot be made.
pub fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(lock)
}
