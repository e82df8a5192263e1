//! `skerry image gc`.

use std::time::Duration;

use clap::Args;

use super::output::{Output, print_json};
use super::store::StoreFlag;
use super::{Failure, Outcome, bytes};

/// Remove what no name and no workload needs from the store: images, chunks, flat copies of disks, and what was never
/// finished. It waits for imports that go on.
#[derive(Debug, Args)]
pub struct Gc {
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    output: Output,
    /// Seconds to wait for others who use the store
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u32,
}

impl Gc {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        let done = store.collect(Duration::from_secs(self.wait.into()))?;
        if self.output.json() {
            print_json(&serde_json::json!({
                "images": done.images,
                "chunks": done.chunks,
                "bases": done.bases,
                "bytes": done.bytes,
            }))?;
            return Ok::<_, Failure>(0);
        }
        println!(
            "Removed {} images, {} chunks and {} flat copies: {}",
            done.images,
            done.chunks,
            done.bases,
            bytes::show(done.bytes)
        );
        Ok(0)
    }
}
