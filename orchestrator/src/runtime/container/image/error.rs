//! Why an image cannot be used.

use std::io;
use std::path::PathBuf;

/// Why an image, or a layer of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no OCI layout.
    #[error("{path} is no OCI image layout: it has no valid file oci-layout; give a directory made by `skopeo copy … oci:DIR` or `buildah push … oci:DIR`", path = path.display())]
    NoLayout {
        /// The directory.
        path: PathBuf,
    },
    /// The layout has several images.
    #[error("the layout holds several images: name one of {names}")]
    Ambiguous {
        /// Their names, with commas.
        names: String,
    },
    /// The layout has no such image.
    #[error("the layout has no image {name:?} for {platform}; it has {names}")]
    NoImage {
        /// What was asked for.
        name: String,
        /// This machine's platform.
        platform: String,
        /// What is there, with commas.
        names: String,
    },
    /// A document of the image is not what it should be.
    #[error("{what} {digest} of the image is wrong: {why}")]
    Document {
        /// Which document.
        what: &'static str,
        /// Its digest, or its name in the layout.
        digest: String,
        /// What is wrong.
        why: String,
    },
    /// A blob is not what its digest says.
    #[error("blob {digest} of the image holds something else: {why}; copy the image anew")]
    Digest {
        /// The digest that was expected.
        digest: String,
        /// How it differs.
        why: String,
    },
    /// A layer holds what is not unpacked.
    #[error("layer {layer} of the image: entry {entry:?} {why}")]
    Entry {
        /// The layer's digest.
        layer: String,
        /// The entry's path in the archive.
        entry: String,
        /// What is wrong.
        why: String,
    },
    /// A layer is more than it may be.
    #[error(
        "layer {layer} of the image has more than {limit} {what}: raise the limit if the image is trusted"
    )]
    TooMuch {
        /// The layer's digest.
        layer: String,
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// A layer's archive is broken.
    #[error("layer {layer} of the image cannot be read")]
    Archive {
        /// The layer's digest.
        layer: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {what} {path}", path = path.display())]
    System {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ImageError {
    /// The system's refusal to do something with a file.
    pub fn system(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.into();
        move |source| ImageError::System { what, path, source }
    }
}
