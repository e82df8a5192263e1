//! `skerry image verify`.

use clap::Args;
use serde_json::json;

use super::Outcome;
use super::output::{Output, on_a_line, print_json};
use super::progress::Bar;
use super::store::StoreFlag;

/// Read all of the store and compare it with its names. Ends with 1 if something is damaged.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    bar: Bar,
    /// Remove what is damaged, so that an import or a pull brings it anew
    #[arg(long)]
    drop: bool,
}

impl Verify {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        let found = self
            .bar
            .watch("Verifying", |progress| store.verify(progress))?;
        let good = found.damages.is_empty();
        let dropped = match self.drop {
            true => store.drop_damaged(&found)?,
            false => 0,
        };
        if self.output.json() {
            let damages = found.damages.iter();
            let damages = damages.map(|d| json!({"image": d.image, "damage": d.error.to_string()}));
            print_json(&json!({
                "images": found.images,
                "chunks": found.chunks,
                "damages": damages.collect::<Vec<_>>(),
                "dropped": dropped,
            }))?;
        } else {
            for damage in &found.damages {
                println!(
                    "{}: {}",
                    on_a_line(&damage.image),
                    on_a_line(&damage.error.to_string())
                );
            }
            let judged = match found.damages.len() {
                0 => "all is well".to_owned(),
                n => format!("{n} damages, {dropped} files removed"),
            };
            println!("{} images, {} chunks: {judged}", found.images, found.chunks);
        }
        Ok(u8::from(!good))
    }
}
