//! Volumes and their snapshots: who has which, what is made, frozen, enlarged and removed.
//!
//! | room | what |
//! |---|---|
//! | `folder` | the layers of one volume or snapshot, and what says which they are |
//! | `blocks` | all of a host: who has a volume, and a volume in use |
//! | `plug` | volumes that come to VMs that run, and go |
//! | `keeper` | looks at what is declared and does the next step |

mod blocks;
mod error;
mod folder;
mod keeper;
mod plug;

pub use blocks::{Blocks, Chains};
pub use error::VolumeError;
pub use keeper::Keeper;
