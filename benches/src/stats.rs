//! Samples of each program, and how they are printed: side by side, as ratios to the first.

use anyhow::Result;
use serde::Serialize;

/// What was measured of one program.
pub struct Samples {
    name: &'static str,
    values: Vec<f64>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    runs: usize,
    min: f64,
    median: f64,
    p95: f64,
    ratio: f64,
}

impl Samples {
    /// None yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            values: Vec::new(),
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

    /// The value below which a share of the samples lies (nearest rank); NaN without samples.
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    fn row(&self, baseline: f64) -> Row {
        Row {
            name: self.name,
            runs: self.values.len(),
            min: self.quantile(0.0),
            median: self.median(),
            p95: self.quantile(0.95),
            ratio: self.median() / baseline,
        }
    }
}

/// Prints the samples of a benchmark; ratios are of medians, to the first program's.
pub fn report(benchmark: &str, unit: &str, samples: &[Samples], as_json: bool) -> Result<()> {
    let baseline = samples.first().map_or(f64::NAN, Samples::median);
    let rows: Vec<_> = samples
        .iter()
        .map(|samples| samples.row(baseline))
        .collect();
    if as_json {
        let document = serde_json::json!({ "benchmark": benchmark, "unit": unit, "results": rows });
        println!("{document:#}");
        return Ok(());
    }
    println!("{benchmark} ({unit})");
    println!(
        "{:<20}{:>6}{:>10}{:>10}{:>10}{:>8}",
        "", "runs", "min", "median", "p95", "ratio"
    );
    for Row {
        name,
        runs,
        min,
        median,
        p95,
        ratio,
    } in rows
    {
        println!("{name:<20}{runs:>6}{min:>10.2}{median:>10.2}{p95:>10.2}{ratio:>8.2}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples {
            name: "test",
            values: values.to_vec(),
        }
    }

    #[test]
    fn quantiles_are_samples_by_rank() {
        let samples = samples(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(samples.quantile(0.0), 1.0);
        assert_eq!(samples.median(), 3.0);
        assert_eq!(samples.quantile(0.95), 5.0);
    }

    #[test]
    fn nothing_measured_gives_no_number() {
        assert!(samples(&[]).median().is_nan());
    }

    #[test]
    fn ratio_is_to_the_baseline() {
        assert_eq!(samples(&[6.0]).row(2.0).ratio, 3.0);
    }
}
