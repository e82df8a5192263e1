//! Durations by the TSC, counted in classes of about 6 %: adding one is a few instructions.

/// Classes of each power of two.
const FINE_BITS: u32 = 4;
const FINE: usize = 1 << FINE_BITS;
const CLASSES: usize = (64 - FINE_BITS as usize) * FINE;

/// How often each duration was seen.
pub struct Histogram {
    counts: [u32; CLASSES],
    total: u64,
}

impl Histogram {
    /// None seen.
    pub const fn new() -> Self {
        Self {
            counts: [0; CLASSES],
            total: 0,
        }
    }

    /// One more.
    #[inline]
    pub fn add(&mut self, ticks: u64) {
        self.counts[class(ticks)] += 1;
        self.total += 1;
    }

    /// The duration that `share` of 1000 do not exceed: the upper end of its class.
    pub fn permille(&self, share: u64) -> u64 {
        let wanted = (self.total * share).div_ceil(1000).max(1);
        let mut seen = 0;
        for (class, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return upper(class);
            }
        }
        0
    }
}

#[inline]
fn class(ticks: u64) -> usize {
    let exponent = (ticks | FINE as u64).ilog2() - FINE_BITS;
    // Small ones are classes of their own; of the others the leading bits count.
    let class = exponent as usize * FINE + (ticks >> exponent) as usize;
    class.min(CLASSES - 1)
}

fn upper(class: usize) -> u64 {
    if class < 2 * FINE {
        return class as u64;
    }
    let exponent = class / FINE - 1;
    (((class - exponent * FINE) as u64 + 1) << exponent) - 1
}
