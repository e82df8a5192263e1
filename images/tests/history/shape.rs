//! What the images of histories are like.

use skerry_images::io::sim::Dice;
use skerry_images::qcow2::CreateOptions;

/// What a guest does most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// A bit of everything.
    Everything,
    /// Writes much where nothing was: each few writes take a new refblock.
    Fill,
    /// Discards and writes again while slow requests are under way: space is soon used again.
    Reuse,
}

/// What an image is made with. Sizes are in sectors of 512 bytes.
#[derive(Debug, Clone)]
pub struct Shape {
    pub cluster_bits: u32,
    pub refcount_bits: u32,
    pub version: u32,
    pub extended: bool,
    pub lazy: bool,
    /// Sectors of the layer below, if there is one.
    pub below: Option<u64>,
    pub cache: u64,
    pub sectors: u64,
    /// Sectors that are written before the history begins.
    pub filled: u64,
    /// Internal snapshots come and go.
    pub snapshots: bool,
    /// Tasks at the same time.
    pub width: usize,
    pub habit: Habit,
}

impl Shape {
    /// Every cluster size and refcount width comes with some seed.
    pub fn roll(seed: u64) -> Shape {
        let mut dice = Dice(seed ^ 0x0ff1_c1a1);
        let cluster_bits = 9 + (seed % 13) as u32;
        let version = if dice.one_in(5) { 2 } else { 3 };
        let modern = version == 3;
        let cluster = 1u64 << (cluster_bits - 9);
        let sectors = match cluster_bits {
            9..=13 => cluster * (4 + dice.below(120)),
            14..=16 => cluster * (2 + dice.below(20)),
            _ => cluster * (1 + dice.below(4)),
        };
        let sectors = (sectors + dice.below(cluster)).max(16);
        let mut shape = Shape {
            cluster_bits,
            refcount_bits: if modern { 1 << (seed / 13 % 7) } else { 16 },
            version,
            extended: modern && cluster_bits >= 14 && dice.one_in(2),
            lazy: modern && dice.one_in(4),
            below: dice.one_in(2).then(|| sectors / 2 + dice.below(sectors)),
            cache: if dice.one_in(4) { 1 << 20 } else { 0 },
            sectors,
            filled: if dice.one_in(3) {
                dice.below(sectors)
            } else {
                0
            },
            snapshots: dice.one_in(2),
            width: 1 + dice.below(7) as usize,
            habit: Habit::Everything,
        };
        // A refcount table of one cluster is nearly used up.
        if cluster_bits == 9 && shape.refcount_bits == 64 && dice.one_in(2) {
            shape.sectors = 3900;
            shape.filled = 3400 + dice.below(300);
        }
        match seed % 16 {
            // A refblock counts 64 clusters.
            5 => {
                shape = Shape {
                    cluster_bits: 9,
                    refcount_bits: 64,
                    version: 3,
                    extended: false,
                    lazy: false,
                    sectors: 3900,
                    filled: if dice.one_in(3) { 3400 } else { 0 },
                    width: 1 + dice.below(3) as usize,
                    habit: Habit::Fill,
                    ..shape
                }
            }
            11 => shape = Shape::reuse(seed),
            _ => {}
        }
        shape
    }

    /// A small disk whose space is used again and again while slow requests are under way.
    pub fn reuse(seed: u64) -> Shape {
        let mut dice = Dice(seed ^ 0x05ed);
        Shape {
            cluster_bits: 9 + (seed % 4) as u32,
            refcount_bits: 16,
            version: 3,
            extended: false,
            lazy: dice.one_in(4),
            below: None,
            cache: 1 << 20,
            sectors: 48,
            filled: 0,
            snapshots: false,
            width: 4 + dice.below(8) as usize,
            habit: Habit::Reuse,
        }
    }

    /// How to make it.
    pub fn options(&self) -> CreateOptions {
        CreateOptions {
            cluster_size: 1 << self.cluster_bits,
            refcount_bits: self.refcount_bits,
            version: self.version,
            extended_l2: self.extended,
            lazy_refcounts: self.lazy,
            backing: self.below.map(|_| ("below".into(), "raw".into())),
            ..CreateOptions::new(self.sectors * 512)
        }
    }
}
