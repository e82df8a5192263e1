//! `skerry image rm`.

use clap::Args;
use skerry_images::store::Name;

use super::Outcome;
use super::store::{StoreFlag, name};

/// Take images' names away. Their space comes back with `skerry image gc`, when nothing uses them.
#[derive(Debug, Args)]
pub struct Rm {
    #[command(flatten)]
    store: StoreFlag,
    /// The images
    #[arg(value_name = "NAME[:TAG]", value_parser = name, required = true)]
    names: Vec<Name>,
}

impl Rm {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        for name in &self.names {
            store.remove(name)?;
            println!("{name} is removed");
        }
        Ok(0)
    }
}
