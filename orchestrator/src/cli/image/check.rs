//! `skerry image check`.

use std::path::Path;

use clap::{Args, ValueEnum};
use serde::Serialize;
use skerry_images::chain::{Format, Layer};
use skerry_images::io::{Port, block_on};
use skerry_images::qcow2::check::{Repair, Report, check};

use super::layers::Source;
use super::output::{Output, print_json};
use super::{Failure, Outcome};

/// Look for damage and leaked space. Exits with 0: none, 1: could not look, 2: damage, 3: leaks
/// only, 63: the format has nothing to look at.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    source: Source,

    /// Mend leaks, or all that can be mended
    #[arg(short, long, value_name = "WHAT")]
    repair: Option<What>,

    #[command(flatten)]
    output: Output,

    /// Say nothing but what is wrong
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Leaks,
    All,
}

/// The JSON answer; counts that are 0 are left out.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Answer<'a> {
    filename: &'a Path,
    format: &'static str,
    check_errors: u64,
    #[serde(skip_serializing_if = "zero")]
    image_end_offset: u64,
    #[serde(skip_serializing_if = "zero")]
    corruptions: u64,
    #[serde(skip_serializing_if = "zero")]
    leaks: u64,
    #[serde(skip_serializing_if = "zero")]
    corruptions_fixed: u64,
    #[serde(skip_serializing_if = "zero")]
    leaks_fixed: u64,
    #[serde(skip_serializing_if = "zero")]
    total_clusters: u64,
    #[serde(skip_serializing_if = "zero")]
    allocated_clusters: u64,
    #[serde(skip_serializing_if = "zero")]
    fragmented_clusters: u64,
    #[serde(skip_serializing_if = "zero")]
    compressed_clusters: u64,
}

fn zero(n: &u64) -> bool {
    *n == 0
}

impl Check {
    /// Does it.
    pub fn run(&self) -> Outcome {
        if self.source.format == Format::Raw {
            eprintln!("skerry: a raw image has nothing that could be checked");
            return Ok(63);
        }
        let repair = match self.repair {
            None => Repair::None,
            Some(What::Leaks) => Repair::Leaks,
            Some(What::All) => Repair::All,
        };
        let mut report = self.look(repair)?;
        let (fixed, leaks_fixed) = (report.corruptions_fixed, report.leaks_fixed);
        if !self.output.json() {
            for message in &report.messages {
                eprintln!("{message}");
            }
        }
        if fixed + leaks_fixed > 0 {
            // What is left is what another look finds.
            report = self.look(Repair::None)?;
            report.corruptions_fixed = fixed;
            report.leaks_fixed = leaks_fixed;
        }
        self.answer(&report)?;
        Ok(match &report {
            r if r.corruptions > 0 => 2,
            r if r.leaks > 0 => 3,
            _ => 0,
        })
    }

    fn look(&self, repair: Repair) -> Result<Report, Failure> {
        let port = Port::new();
        block_on(&port, async {
            let readonly = repair == Repair::None;
            match self.source.open_alone(&port, readonly, true).await? {
                Layer::Qcow2(image) => Ok(check(&image, &port, repair).await?),
                Layer::Raw(_) => Ok(Report::default()),
            }
        })
    }

    fn answer(&self, report: &Report) -> Result<(), Failure> {
        if self.output.json() {
            return print_json(&Answer {
                filename: &self.source.file,
                format: self.source.format.name(),
                check_errors: 0,
                image_end_offset: report.image_end,
                corruptions: report.corruptions,
                leaks: report.leaks,
                corruptions_fixed: report.corruptions_fixed,
                leaks_fixed: report.leaks_fixed,
                total_clusters: report.total_clusters,
                allocated_clusters: report.allocated_clusters,
                fragmented_clusters: report.fragmented_clusters,
                compressed_clusters: report.compressed_clusters,
            });
        }
        if self.quiet {
            return Ok(());
        }
        if report.corruptions_fixed + report.leaks_fixed > 0 {
            println!(
                "Repaired: {} leaked clusters, {} corruptions. What is left:",
                report.leaks_fixed, report.corruptions_fixed
            );
        }
        match (report.corruptions, report.leaks) {
            (0, 0) => println!("No errors were found on the image."),
            (0, leaks) => println!(
                "{leaks} leaked clusters: space is wasted, no data is in danger. `-r leaks` frees it."
            ),
            (corruptions, leaks) => println!(
                "{corruptions} errors, {leaks} leaked clusters: data may be damaged, and using the image may damage more. Copy it, then try `-r all`."
            ),
        }
        if report.allocated_clusters > 0 && report.total_clusters > 0 {
            let percent = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
            let (total, allocated) = (report.total_clusters, report.allocated_clusters);
            println!(
                "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
                percent(allocated, total),
                percent(report.fragmented_clusters, allocated),
                percent(report.compressed_clusters, allocated),
            );
        }
        println!("Image end offset: {}", report.image_end);
        Ok(())
    }
}
