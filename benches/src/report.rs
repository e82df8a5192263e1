//! What a run found: tables on the terminal, JSON, a chart, and a comparison with a run before.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::machine::Host;
use crate::stats::{Row, Samples};
use crate::{chart, check};

/// Where results go.
#[derive(Args)]
pub struct ReportArguments {
    /// Print the results as JSON, and nothing else
    #[arg(long)]
    json: bool,
    /// Also write the results as JSON to this file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Also draw the results as bars, in an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Compare with a run that was saved, by ratios to the peers: exit code 1 if one is worse
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// How much worse a ratio may be for --check, in percent
    #[arg(long, default_value_t = 20.0)]
    tolerance: f64,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Rates.
    Higher,
    /// Times, bytes.
    Lower,
}

/// One benchmark's results, the lines side by side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// What was measured.
    pub title: String,
    /// In what.
    pub unit: String,
    /// Which way is good.
    pub better: Better,
    /// A line for each contestant.
    pub rows: Vec<Row>,
    /// Who was left out, and why.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// What was aimed at, and whether it was met.
    #[serde(default)]
    pub targets: Vec<String>,
}

/// What a line is aimed to stay under.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The line.
    row: String,
    limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    /// Of its median.
    Median(f64),
    /// Of all but a twentieth.
    P95(f64),
    /// Of its median as a multiple of the first line's.
    Ratio(f64),
}

impl Target {
    /// The median of `row` stays under `limit`, in the table's unit.
    pub fn median(row: impl Into<String>, limit: f64) -> Self {
        let (row, limit) = (row.into(), Limit::Median(limit));
        Self { row, limit }
    }

    /// All but a twentieth of `row` stay under `limit`, in the table's unit.
    pub fn p95(row: impl Into<String>, limit: f64) -> Self {
        let (row, limit) = (row.into(), Limit::P95(limit));
        Self { row, limit }
    }

    /// The ratio of `row` to the first line stays under `limit`.
    pub fn ratio(row: impl Into<String>, limit: f64) -> Self {
        let (row, limit) = (row.into(), Limit::Ratio(limit));
        Self { row, limit }
    }

    /// What is said of it; nothing if the line is not there.
    fn verdict(&self, rows: &[Row]) -> Option<String> {
        let row = rows.iter().find(|row| row.name == self.row)?;
        let (what, found, limit) = match self.limit {
            Limit::Median(limit) => ("median", row.median, limit),
            Limit::P95(limit) => ("p95", row.p95, limit),
            Limit::Ratio(limit) => ("ratio", row.ratio, limit),
        };
        let verdict = if found < limit { "met" } else { "missed" };
        Some(format!(
            "{}: {what} {found:.2}, under {limit:.2}: {verdict}",
            self.row
        ))
    }
}

/// All that a run found, and where.
#[derive(Debug, Serialize, Deserialize)]
pub struct Document {
    /// The machine and the programs.
    pub host: Host,
    /// The tables.
    pub tables: Vec<Table>,
}

/// A run's results as they come.
pub struct Report<'a> {
    arguments: &'a ReportArguments,
    document: Document,
}

impl<'a> Report<'a> {
    /// An empty one. What is known of the host is printed first.
    pub fn new(arguments: &'a ReportArguments, host: Host) -> Self {
        if !arguments.json {
            println!("{host}");
        }
        let tables = Vec::new();
        let document = Document { host, tables };
        Self {
            arguments,
            document,
        }
    }

    /// Adds a table and prints it. Contestants without samples are left out; ratios are to the first
    /// that is there.
    pub fn add(
        &mut self,
        title: &str,
        unit: &str,
        better: Better,
        samples: &[Samples],
        left_out: Vec<String>,
    ) {
        self.add_aimed(title, unit, better, samples, left_out, &[]);
    }

    /// The same, with what is aimed at.
    pub fn add_aimed(
        &mut self,
        title: &str,
        unit: &str,
        better: Better,
        samples: &[Samples],
        left_out: Vec<String>,
        targets: &[Target],
    ) {
        let measured: Vec<&Samples> = samples.iter().filter(|s| !s.is_empty()).collect();
        let baseline = measured.first().map_or(f64::NAN, |s| s.median());
        let rows: Vec<Row> = measured.iter().map(|s| s.row(baseline)).collect();
        let table = Table {
            title: title.to_owned(),
            unit: unit.to_owned(),
            better,
            targets: targets.iter().filter_map(|t| t.verdict(&rows)).collect(),
            rows,
            left_out,
        };
        if !self.arguments.json {
            println!("{table}");
        }
        self.document.tables.push(table);
    }

    /// Writes what was asked for, and compares.
    pub fn finish(self) -> Result<()> {
        let (arguments, document) = (self.arguments, self.document);
        let text = serde_json::to_string_pretty(&document).context("results as JSON")?;
        if arguments.json {
            println!("{text}");
        }
        if let Some(path) = &arguments.save {
            std::fs::write(path, &text).with_context(|| path.display().to_string())?;
        }
        if let Some(path) = &arguments.svg {
            let drawn = chart::draw(&document.tables);
            std::fs::write(path, drawn).with_context(|| path.display().to_string())?;
        }
        let Some(path) = &arguments.check else {
            return Ok(());
        };
        let before = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let before: Document = serde_json::from_str(&before)
            .with_context(|| format!("{} is no saved run", path.display()))?;
        let compared = check::compare(
            &before.tables,
            &document.tables,
            arguments.tolerance / 100.0,
        );
        eprintln!(
            "--check: {} ratios compared with {}",
            compared.ratios,
            path.display()
        );
        if compared.ratios == 0 {
            bail!("the two runs have no ratio in common: give the same peers and cases");
        }
        if !compared.worse.is_empty() {
            bail!("worse than before:\n  {}", compared.worse.join("\n  "));
        }
        Ok(())
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} ({})", self.title, self.unit)?;
        let beside: Vec<&String> = self
            .rows
            .iter()
            .max_by_key(|row| row.beside.len())
            .map(|row| row.beside.keys().collect())
            .unwrap_or_default();
        write!(
            f,
            "{:<22}{:>5}{:>10}{:>10}{:>10}{:>7}",
            "", "runs", "min", "median", "p95", "ratio"
        )?;
        for name in &beside {
            write!(f, "{name:>12}")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            let Row {
                name,
                runs,
                min,
                median,
                p95,
                ratio,
                ..
            } = row;
            write!(
                f,
                "{name:<22}{runs:>5}{min:>10.2}{median:>10.2}{p95:>10.2}{ratio:>7.2}"
            )?;
            for name in &beside {
                match row.beside.get(*name) {
                    Some(value) => write!(f, "{value:>12.2}")?,
                    None => write!(f, "{:>12}", "")?,
                }
            }
            writeln!(f)?;
        }
        for why in &self.left_out {
            writeln!(f, "left out: {why}")?;
        }
        for verdict in &self.targets {
            writeln!(f, "target: {verdict}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_met_or_missed_and_unmeasured_lines_have_none() {
        let mut samples = Samples::new("skerry 8G");
        samples.add(6.0);
        let rows = [samples.row(4.0)];
        let verdict = |target: Target| target.verdict(&rows);
        assert_eq!(
            verdict(Target::median("skerry 8G", 8.0)).as_deref(),
            Some("skerry 8G: median 6.00, under 8.00: met")
        );
        let ratio = verdict(Target::ratio("skerry 8G", 1.2)).unwrap();
        assert!(ratio.ends_with("ratio 1.50, under 1.20: missed"), "{ratio}");
        assert_eq!(verdict(Target::median("skerry 4G", 8.0)), None);
    }
}
