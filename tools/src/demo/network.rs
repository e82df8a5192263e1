//! The demo's network: one tap with a name and an address of its own, gone when the demo is over.
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// A tap interface with the host's address on it. Removed when dropped.
pub struct Tap {
    /// The interface's name.
    pub name: String,
    network: String,
}

impl Tap {
    /// Makes a tap whose name and network derive from this process's number.
    ///
    /// # Errors
    /// When the kernel refuses: it needs root, and the tun driver.
    pub fn create() -> Result<Self> {
        let process = std::process::id();
        let network = format!("10.{}.{}", 200 + process / 256 % 50, process % 256);
        let tap = Self {
            name: format!("skerry{process}"),
            network,
        };
        let made = ip(&["tuntap", "add", "mode", "tap", "name", &tap.name]);
        made.context(
            "cannot make a tap interface: this needs root (sudo) and the kernel's module tun",
        )?;
        ip(&["address", "add", &tap.host_with_prefix(), "dev", &tap.name])?;
        ip(&["link", "set", &tap.name, "up"])?;
        Ok(tap)
    }

    /// The host's address.
    pub fn host(&self) -> String {
        format!("{}.1", self.network)
    }

    /// The guest's address.
    pub fn guest(&self) -> String {
        format!("{}.2", self.network)
    }

    /// The guest's address with its prefix length.
    pub fn guest_with_prefix(&self) -> String {
        format!("{}/24", self.guest())
    }

    fn host_with_prefix(&self) -> String {
        format!("{}/24", self.host())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(error) = ip(&["link", "delete", &self.name]) {
            eprintln!("xtask: cannot remove the tap {}: {error:#}", self.name);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    command::read(Command::new("ip").args(arguments)).map(drop)
}
