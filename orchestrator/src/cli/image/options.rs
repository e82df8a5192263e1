//! `-o`: what a new image is to be.

use std::path::{Path, PathBuf};

use skerry_images::chain::Format;
use skerry_images::qcow2::{Compression, CreateOptions, Preallocation};

use super::{Failure, bytes};

/// Everything that `-o` can say. What is not said is absent.
#[derive(Debug, Clone, Default)]
pub struct Options {
    cluster_size: Option<u64>,
    refcount_bits: Option<u32>,
    version: Option<u32>,
    extended_l2: Option<bool>,
    lazy_refcounts: Option<bool>,
    compression: Option<Compression>,
    preallocation: Option<Preallocation>,
    /// The external data file.
    pub data_file: Option<PathBuf>,
    data_file_raw: Option<bool>,
}

/// The flag's help.
pub const HELP: &str = "cluster_size=N,refcount_bits=N,compat=0.10|1.1,extended_l2=on|off,lazy_refcounts=on|off,compression_type=zlib|zstd,preallocation=off|metadata|falloc|full,data_file=PATH,data_file_raw=on|off; repeatable";

/// One `-o`: settings with commas between them.
pub fn parse(text: &str) -> Result<Options, String> {
    let mut options = Options::default();
    for setting in text.split(',').filter(|s| !s.is_empty()) {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| format!("{setting:?} has no value: give {setting}=…"))?;
        options.set(name, value)?;
    }
    Ok(options)
}

fn switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err(format!("{name} is on or off, not {value:?}")),
    }
}

impl Options {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{name} is {what}, not {value:?}"));
        match name {
            "cluster_size" => self.cluster_size = Some(bytes::parse(value)?),
            "refcount_bits" => match value.parse() {
                Ok(bits) => self.refcount_bits = Some(bits),
                Err(_) => return wrong("a number"),
            },
            "compat" => {
                self.version = Some(match value {
                    "0.10" | "v2" => 2,
                    "1.1" | "v3" => 3,
                    _ => return wrong("0.10 (v2) or 1.1 (v3)"),
                });
            }
            "extended_l2" => self.extended_l2 = Some(switch(name, value)?),
            "lazy_refcounts" => self.lazy_refcounts = Some(switch(name, value)?),
            "compression_type" => {
                self.compression = Some(match value {
                    "zlib" => Compression::Zlib,
                    "zstd" => Compression::Zstd,
                    _ => return wrong("zlib or zstd"),
                });
            }
            "preallocation" => {
                self.preallocation = Some(match value {
                    "off" => Preallocation::Off,
                    "metadata" => Preallocation::Metadata,
                    "falloc" => Preallocation::Falloc,
                    "full" => Preallocation::Full,
                    _ => return wrong("off, metadata, falloc or full"),
                });
            }
            "data_file" => self.data_file = Some(value.into()),
            "data_file_raw" => self.data_file_raw = Some(switch(name, value)?),
            "backing_file" | "backing_fmt" => {
                return Err("the layer below is given by --backing FORMAT:PATH".into());
            }
            "size" => return Err("the size is given behind the file".into()),
            _ => return Err(format!("there is no option {name:?}; there are: {HELP}")),
        }
        Ok(())
    }

    /// Several `-o` as one: the later wins.
    pub fn merged(all: &[Options]) -> Options {
        all.iter().fold(Options::default(), |before, o| {
            let o = o.clone();
            Options {
                cluster_size: o.cluster_size.or(before.cluster_size),
                refcount_bits: o.refcount_bits.or(before.refcount_bits),
                version: o.version.or(before.version),
                extended_l2: o.extended_l2.or(before.extended_l2),
                lazy_refcounts: o.lazy_refcounts.or(before.lazy_refcounts),
                compression: o.compression.or(before.compression),
                preallocation: o.preallocation.or(before.preallocation),
                data_file: o.data_file.or(before.data_file),
                data_file_raw: o.data_file_raw.or(before.data_file_raw),
            }
        })
    }

    /// The space to take at once.
    pub fn preallocation(&self) -> Preallocation {
        self.preallocation.unwrap_or_default()
    }

    /// What a new qcow2 image at `path` is to be. `backing` is the layer below: its name and format.
    pub fn qcow2(
        &self,
        path: &Path,
        size: u64,
        backing: Option<(&Path, Format)>,
    ) -> Result<CreateOptions, Failure> {
        let mut options = match backing {
            Some((below, format)) => {
                let name = name_for(path, below)?;
                CreateOptions::overlay(size, (name, format.name().to_owned()))
            }
            None => CreateOptions::new(size),
        };
        if let Some(version) = self.version {
            options.version = version;
        }
        // What is only a default gives way to what was asked for.
        if options.version < 3 || self.cluster_size.is_some_and(|n| n < 16 << 10) {
            options.extended_l2 = false;
        }
        if let Some(extended) = self.extended_l2 {
            options.extended_l2 = extended;
        }
        if backing.is_some() && !options.extended_l2 {
            options.cluster_size = 64 << 10;
        }
        if let Some(size) = self.cluster_size {
            options.cluster_size = size;
        }
        if let Some(bits) = self.refcount_bits {
            options.refcount_bits = bits;
        }
        if let Some(lazy) = self.lazy_refcounts {
            options.lazy_refcounts = lazy;
        }
        if let Some(compression) = self.compression {
            options.compression = compression;
        }
        options.preallocation = self.preallocation();
        options.data_file_raw = self.data_file_raw.unwrap_or(false);
        if let Some(data) = &self.data_file {
            options.data_file = Some(name_for(path, data)?);
        }
        options.check(path)?;
        Ok(options)
    }

    /// Refuses what a raw image cannot be.
    pub fn check_raw(&self) -> Result<(), Failure> {
        let qcow2_only = self.cluster_size.is_some()
            || self.refcount_bits.is_some()
            || self.version.is_some()
            || self.extended_l2.is_some()
            || self.lazy_refcounts.is_some()
            || self.compression.is_some()
            || self.data_file.is_some()
            || self.data_file_raw.is_some();
        if qcow2_only {
            return Err(Failure::Asked(
                "a raw image has no option but preallocation: make it qcow2, or leave the others out"
                    .into(),
            ));
        }
        Ok(())
    }
}

/// The name by which the image at `path` calls another file. A relative name is relative to the
/// image that says it, so it is only kept where both are in the same place.
pub fn name_for(path: &Path, other: &Path) -> Result<String, Failure> {
    let here = path.parent().is_none_or(|p| p.as_os_str().is_empty());
    let name = if other.is_absolute() || here {
        other.to_owned()
    } else {
        std::path::absolute(other).map_err(|source| Failure::System {
            what: "resolve",
            path: other.to_owned(),
            source,
        })?
    };
    name.into_os_string().into_string().map_err(|name| {
        Failure::Asked(format!(
            "the name {name:?} is not UTF-8, so an image cannot say it: rename the file"
        ))
    })
}
