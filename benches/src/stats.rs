//! Samples of each contestant, and what is said of them: median, spread, and the ratio to the first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What was measured of one contestant.
#[derive(Clone)]
pub struct Samples {
    name: String,
    values: Vec<f64>,
    /// What was measured beside it, by name.
    beside: BTreeMap<String, Vec<f64>>,
}

/// A line of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The contestant.
    pub name: String,
    /// Times it was measured.
    pub runs: usize,
    /// The smallest.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The value that 95 of 100 do not exceed.
    pub p95: f64,
    /// Its median as a multiple of the first line's.
    pub ratio: f64,
    /// Medians of what was measured beside it.
    #[serde(default)]
    pub beside: BTreeMap<String, f64>,
}

impl Samples {
    /// None yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            values: Vec::new(),
            beside: BTreeMap::new(),
        }
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// One more.
    pub fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// One more of what is measured beside it.
    pub fn add_beside(&mut self, name: &str, value: f64) {
        self.beside.entry(name.to_owned()).or_default().push(value);
    }

    /// The median.
    pub fn median(&self) -> f64 {
        quantile(&self.values, 0.5)
    }

    /// The line for it, in a table whose first line's median is `baseline`.
    pub fn row(&self, baseline: f64) -> Row {
        Row {
            name: self.name.clone(),
            runs: self.values.len(),
            min: quantile(&self.values, 0.0),
            median: self.median(),
            p95: quantile(&self.values, 0.95),
            // Of two that are nothing, neither is more.
            ratio: if baseline == 0.0 && self.median() == 0.0 {
                1.0
            } else {
                self.median() / baseline
            },
            beside: self
                .beside
                .iter()
                .map(|(name, values)| (name.clone(), quantile(values, 0.5)))
                .collect(),
        }
    }
}

/// The value below which a share of the samples lies (nearest rank); NaN without samples.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples {
            values: values.to_vec(),
            ..Samples::new("test")
        }
    }

    #[test]
    fn quantiles_are_samples_by_rank() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(samples(&values).median(), 3.0);
        assert_eq!(quantile(&values, 0.95), 5.0);
    }

    #[test]
    fn nothing_measured_gives_no_number() {
        assert!(samples(&[]).median().is_nan());
    }

    #[test]
    fn ratio_is_to_the_baseline() {
        let mut samples = samples(&[6.0]);
        samples.add_beside("cpu", 3.0);
        samples.add_beside("cpu", 5.0);
        samples.add_beside("cpu", 4.0);
        let row = samples.row(2.0);
        assert_eq!((row.ratio, row.beside["cpu"]), (3.0, 4.0));
    }
}
