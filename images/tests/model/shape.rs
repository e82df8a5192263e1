//! What an image of a sequence is made with.

use std::path::Path;

use skerry_images::chain::{Format, LayerSpec};
use skerry_images::io::sim::Dice;
use skerry_images::io::{ImageFile, Port, block_on};
use skerry_images::qcow2::{Compression, CreateOptions, create};

/// An external data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    Inside,
    External,
    /// It can be read as a raw image.
    Raw,
}

/// What an image is made with.
#[derive(Debug, Clone)]
pub struct Shape {
    pub cluster_bits: u32,
    pub refcount_bits: u32,
    pub version: u32,
    pub extended: bool,
    pub lazy: bool,
    pub backing: bool,
    pub data: Data,
    pub zstd: bool,
    /// A bitmap tracks, of this granularity.
    pub bitmap: Option<u64>,
    pub cache: u64,
}

impl Shape {
    /// Every cluster size and refcount width comes with some seed.
    pub fn roll(seed: u64) -> Shape {
        let mut dice = Dice(seed ^ 0x5eed);
        let cluster_bits = 9 + (seed % 13) as u32;
        let version = if dice.one_in(5) { 2 } else { 3 };
        let modern = version == 3;
        let data = match dice.below(10) {
            0 if modern => Data::External,
            1 if modern => Data::Raw,
            _ => Data::Inside,
        };
        Shape {
            cluster_bits,
            refcount_bits: if modern { 1 << (seed / 13 % 7) } else { 16 },
            version,
            extended: modern && cluster_bits >= 14 && dice.one_in(2),
            lazy: modern && dice.one_in(4),
            backing: data != Data::Raw && dice.one_in(2),
            data,
            zstd: modern && dice.one_in(2),
            bitmap: (modern && dice.one_in(4)).then(|| 512 << dice.below(9)),
            cache: if dice.one_in(2) { 0 } else { 1 << 20 },
        }
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Makes the image in `dir`, and what is below it: the layers, and the disk's content.
    pub fn make(&self, dir: &Path, port: &Port, dice: &mut Dice) -> (Vec<LayerSpec>, Vec<u8>) {
        // A few tables' worth of clusters, and a few clusters of any size.
        let most = (self.cluster() * 200).min(4 << 20).max(self.cluster() * 8);
        let size = (most / 2 + dice.below(most / 2)) / 512 * 512;
        let mut model = vec![0; size as usize];
        let mut specs = vec![LayerSpec::new(Format::Qcow2, dir.join("top.qcow2"))];
        let mut options = CreateOptions {
            cluster_size: self.cluster(),
            refcount_bits: self.refcount_bits,
            version: self.version,
            extended_l2: self.extended,
            lazy_refcounts: self.lazy,
            data_file_raw: self.data == Data::Raw,
            ..CreateOptions::new(size)
        };
        if self.zstd {
            options.compression = Compression::Zstd;
        }
        let data = (self.data != Data::Inside).then(|| {
            let path = dir.join("data");
            options.data_file = Some(path.display().to_string());
            specs[0].data_file = Some(path.clone());
            ImageFile::create(&path).expect("a new file")
        });
        if self.backing {
            let path = dir.join("base.raw");
            let len = (size / 2 + dice.below(size)) / 512 * 512;
            let mut base = vec![0; len as usize];
            for chunk in base.chunks_mut(3000) {
                if dice.one_in(2) {
                    chunk.fill(dice.number() as u8 | 1);
                }
            }
            std::fs::write(&path, &base).expect("the base");
            let n = base.len().min(model.len());
            model[..n].copy_from_slice(&base[..n]);
            options.backing = Some((path.display().to_string(), "raw".into()));
            specs.push(LayerSpec::new(Format::Raw, path));
        }
        let file = ImageFile::create(&specs[0].path).expect("a new file");
        block_on(port, create(port, &file, data.as_ref(), &options)).expect("an image");
        (specs, model)
    }
}
