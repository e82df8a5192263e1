//! What the store knows of an image: what it consists of, by its digest, and what is said of it, by its name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Content, Hash, Name};

/// The version of stores, manifests, names and leases that is written here. The first one had a file for each chunk.
pub const VERSION: u32 = 2;
/// Bytes of the longest manifest.
pub const LONGEST: u64 = 16 << 20;
/// Blobs of an OCI image: its configuration, and its layers.
pub const BLOBS: usize = 256;

/// What an image consists of. Its digest is the hash of its JSON, so the same content has one digest, wherever it came
/// from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// 2.
    pub version: u32,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// A disk, as its guest sees it.
    Disk {
        /// Its bytes.
        disk: Content,
    },
    /// An OCI image.
    Oci {
        /// The digest of its OCI manifest: `sha256:` and 64 hexadecimal digits.
        manifest: String,
        /// Everything that its manifest names, and the manifest itself, by such digests.
        blobs: BTreeMap<String, Content>,
    },
}

impl Kind {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Disk { .. } => "disk",
            Kind::Oci { .. } => "oci",
        }
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.contents().map(|content| content.size).sum()
    }

    /// All that it consists of.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        let (disk, blobs) = match self {
            Kind::Disk { disk } => (Some(disk), None),
            Kind::Oci { blobs, .. } => (None, Some(blobs)),
        };
        disk.into_iter()
            .chain(blobs.into_iter().flat_map(BTreeMap::values))
    }
}

/// What is said of an image by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// 2.
    pub version: u32,
    /// The image.
    pub digest: Hash,
    /// Where it came from.
    pub source: String,
    /// What it was compared with there, by algorithm.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checksums: BTreeMap<String, String>,
    /// When it came, in seconds since 1970.
    pub created: u64,
}

/// What keeps images in the store though their names may go or mean others: somebody's use of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// 2.
    pub version: u32,
    /// The images, by what the holder calls them.
    pub images: BTreeMap<String, Hash>,
}

/// An image of the store, by its name.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name.
    pub name: Name,
    /// What is said of it.
    pub named: Named,
    /// What it consists of.
    pub manifest: Manifest,
}
