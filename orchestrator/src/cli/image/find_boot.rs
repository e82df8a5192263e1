//! `skerry image find-boot`: hidden, the agent starts it. What reads a hostile image's file system is a process that may die.

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skerry_images::chain::live::Progress;
use skerry_images::store::Hash;

use super::store::StoreFlag;
use super::{Failure, Outcome};

/// Bytes of memory that it may take.
const MEMORY: u64 = 1 << 30;
/// Seconds of a CPU.
const TIME: u64 = 120;

/// Find the kernel of a disk image of the store, and keep it beside the image.
#[derive(Debug, Args)]
pub struct FindBoot {
    #[command(flatten)]
    store: StoreFlag,
    /// The image's digest
    digest: Hash,
}

impl FindBoot {
    /// Does it.
    pub fn run(&self) -> Outcome {
        for (what, most) in [(Resource::As, MEMORY), (Resource::Cpu, TIME)] {
            let most = getrlimit(what).maximum.map_or(most, |max| max.min(most));
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            setrlimit(what, limit).map_err(|e| Failure::System {
                what: "limit",
                path: "/proc/self".into(),
                source: e.into(),
            })?;
        }
        let store = self.store.open()?;
        store.find_boot(self.digest, &Progress::default())?;
        Ok(0)
    }
}
