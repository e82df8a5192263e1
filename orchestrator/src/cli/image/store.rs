//! The image store on the command line.

use std::path::PathBuf;

use clap::Args;
use skerry_images::store::{Name, Store};

use super::Failure;

/// Which store.
#[derive(Debug, Clone, Args)]
pub struct StoreFlag {
    /// The image store: that of `skerry up --state DIR` is DIR/images
    #[arg(
        long = "store",
        value_name = "DIR",
        env = "SKERRY_IMAGES",
        default_value = "/var/lib/skerry/images"
    )]
    path: PathBuf,
}

impl StoreFlag {
    /// Opens it.
    pub fn open(&self) -> Result<Store, Failure> {
        Ok(Store::open(&self.path)?)
    }
}

/// An image's name.
pub fn name(text: &str) -> Result<Name, String> {
    text.parse::<Name>().map_err(|e| e.to_string())
}

/// The first digits of a digest, which tell it from others.
pub fn short(digest: impl ToString) -> String {
    let text = digest.to_string();
    text.chars().take(12).collect()
}
