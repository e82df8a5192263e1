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
        let measured: Vec<&Samples> = samples.iter().filter(|s| !s.is_empty()).collect();
        let baseline = measured.first().map_or(f64::NAN, |s| s.median());
        let table = Table {
            title: title.to_owned(),
            unit: unit.to_owned(),
            better,
            rows: measured.iter().map(|s| s.row(baseline)).collect(),
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
        Ok(())
    }
}
