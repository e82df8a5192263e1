//! Operations on the layer below: another takes its place, or it takes what is above.

use skerry_images::chain::live::Progress;
use skerry_images::chain::{Format, Layer, LayerSpec};
use skerry_images::io::{FileOptions, block_on};
use skerry_images::ops::{merge, rebase};

use super::{Case, Data};

impl Case {
    /// Opens a layer by itself.
    fn layer(&self, spec: &LayerSpec, readonly: bool) -> Layer {
        let options = FileOptions {
            readonly,
            unlocked: true,
            ..FileOptions::default()
        };
        self.must(block_on(
            &self.port,
            spec.open(&self.port, &options, self.shape.cache),
        ))
    }

    /// Puts the image on another raw layer. The disk stays what it is.
    pub fn rebase(&mut self) {
        // What a snapshot shows of the layer below would change.
        if self.shape.data == Data::Raw || !self.kept.is_empty() {
            return;
        }
        let len = self.dice.below(self.model.len() as u64 * 3 / 2) / 512 * 512;
        let path = self.dir.path().join(format!("base-{}.raw", self.log.len()));
        self.log.push(format!("rebase to {len:#x}"));
        let mut base = vec![0; len as usize];
        for (i, chunk) in base.chunks_mut(5000).enumerate() {
            match self.dice.below(3) {
                0 => chunk.fill(self.dice.number() as u8),
                // As it is already.
                1 => {
                    let same = &self.model[(i * 5000).min(self.model.len())..];
                    let n = same.len().min(chunk.len());
                    chunk[..n].copy_from_slice(&same[..n]);
                }
                _ => {}
            }
        }
        std::fs::write(&path, &base).expect("the base");
        let spec = LayerSpec::new(Format::Raw, path);
        let new = [self.layer(&spec, true)];
        let (port, stack, image) = (self.port.clone(), self.stack(), self.image());
        let old = &stack.layers()[1..];
        let progress = Progress::default();
        self.must(block_on(
            &port,
            rebase(&port, stack.top(), old, &new, &progress),
        ));
        self.must(block_on(&port, image.set_backing(&port, Some(&new[0]))));
        drop((stack, image));
        self.specs.truncate(1);
        self.specs.push(spec);
        self.reopen();
        self.compare();
    }

    /// Merges the closed image into the layer below, which is the disk then.
    pub fn merge(&mut self) {
        let [top, below] = &self.specs[..] else {
            return;
        };
        let before = std::fs::read(&below.path).expect("the base");
        let layers = [self.layer(top, true), self.layer(below, false)];
        let progress = Progress::default();
        self.must(block_on(&self.port, merge(&self.port, &layers, &progress)));
        let after = std::fs::read(&below.path).expect("the base");
        let size = self.model.len();
        if after.len() != before.len().max(size) || after[..size] != self.model {
            self.fail("merged, the layer below is not the disk");
        }
        if after.len() > size && after[size..] != before[size..] {
            self.fail("merging changed what is beyond the disk's end");
        }
    }
}
