//! What a workload is told of itself: on a disk that cloud-init reads (NoCloud), in files of a container, and by the
//! metadata service.
//!
//! | room | what |
//! |---|---|
//! | `seed` | the texts, whoever is told them |
//! | `disk` | a VM's disk with them |
//! | `files` | a container's files with them |

mod disk;
mod files;
mod seed;

pub use disk::write_disk;
pub use files::write_files;
pub use seed::{Seed, Told};

/// Why a workload cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The system refused.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}
