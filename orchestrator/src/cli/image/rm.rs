//! `skerry image rm`.

use clap::Args;
use skerry_images::store::Name;

use super::store::StoreFlag;
use super::{Failure, Outcome};

/// Take images' names away. Their space comes back with `skerry image gc`, when nothing uses them.
#[derive(Debug, Args)]
pub struct Rm {
    #[command(flatten)]
    store: StoreFlag,
    /// What is removed was made by `skerry image prepare`. Clones of it that run go on, and cannot start again
    #[arg(long)]
    prepared: bool,
    /// The images
    #[arg(value_name = "NAME[:TAG]", required = true)]
    names: Vec<String>,
}

impl Rm {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        for name in &self.names {
            match self.prepared {
                false => {
                    let name: Name = name.parse()?;
                    store.remove(&name)?;
                    println!("{name} is removed");
                }
                true => {
                    let _use = store.share()?;
                    if !crate::model::is_name(name) || !store.remove_prepared(name)? {
                        return Err(Failure::Asked(format!("nothing is prepared as {name:?}")));
                    }
                    println!("{name} is removed");
                }
            }
        }
        Ok(0)
    }
}
