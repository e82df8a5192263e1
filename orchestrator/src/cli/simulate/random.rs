//! Numbers by chance that a seed repeats, the same on every machine.

/// SplitMix64: its state is a counter, so any seed will do.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of these, each as often as its weight says. There is at least one.
    pub fn pick<'a, T>(&mut self, choices: &'a [(T, f64)]) -> &'a T {
        let all: f64 = choices.iter().map(|(_, weight)| weight).sum();
        let mut rest = self.share() * all;
        for (choice, weight) in choices {
            rest -= weight;
            if rest < 0.0 {
                return choice;
            }
        }
        &choices[choices.len() - 1].0
    }

    /// A time until something that happens by chance, when it takes `mean` on average.
    pub fn wait(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.share()).ln()
    }
}
