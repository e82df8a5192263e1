//! `cargo xtask soak`: the seeded tests for as long as it takes. Of the disk engine: power cuts, errors,
//! comparisons with `qemu-img`, broken images, and a fuzzer. Of a host: killed writers and power cuts of its
//! store, and whole histories in which everything is killed at some moment. Of a Linux guest: restores in a row.
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::progress::Step;
use crate::test::count::Report;
use crate::test::tiers::{self, Which};
use crate::{command, workspace};

/// What there is of each.
#[derive(clap::Args)]
pub struct Arguments {
    /// Power cuts; 0 for none
    #[arg(long, default_value_t = 1_000_000)]
    points: u64,
    /// Sequences of operations that are compared with qemu-img; 0 for none
    #[arg(long, default_value_t = 5000)]
    sequences: u64,
    /// Kills, power cuts and failures of a host's store; 0 for none
    #[arg(long, default_value_t = 5000)]
    kills: u64,
    /// Histories of a whole host, which need /dev/kvm and root; 0 for none
    #[arg(long, default_value_t = 1000)]
    histories: u64,
    /// The first history's seed
    #[arg(long, default_value_t = 1000)]
    seed: u64,
    /// Restores of a Linux guest in a row, in tens; 0 for none
    #[arg(long, default_value_t = 100)]
    restores: u64,
    /// Seconds of fuzzing; 0 for none
    #[arg(long, default_value_t = 300)]
    fuzz: u64,
}

/// What cargo-fuzz would give the compiler: coverage that libFuzzer reads.
const FUZZING: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table";

/// Runs all of it, and says in the end what failed.
///
/// # Errors
/// When something failed.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let sequences = ("SKERRY_SEQUENCES", arguments.sequences);
    let mut failed = Vec::new();
    for (name, variable) in [
        ("crash", ("SKERRY_CRASH_POINTS", arguments.points)),
        ("differential", sequences),
        ("faults", sequences),
        ("hostile", sequences),
    ] {
        if variable.1 == 0 {
            continue;
        }
        let step = Step::start(format!("{name}: {}={}", variable.0, variable.1));
        match test(name, variable) {
            Ok(()) => step.done(""),
            Err(error) => {
                println!("{name} FAILED: {error:#}");
                failed.push(name);
            }
        }
    }
    if arguments.kills > 0 {
        let step = Step::start(format!(
            "a host's store: {} kills and cuts",
            arguments.kills
        ));
        match store(arguments.kills) {
            Ok(()) => step.done(""),
            Err(error) => {
                println!("a host's store FAILED: {error:#}");
                failed.push("store");
            }
        }
    }
    if arguments.histories > 0 {
        let many = [
            ("SKERRY_HISTORIES", arguments.histories),
            ("SKERRY_SEED", arguments.seed),
        ];
        let done = tiers::kvm_with(
            Which::Like(Some("histories")),
            &many,
            &mut Report::default(),
        );
        if let Err(error) = done {
            println!("histories FAILED: {error:#}");
            failed.push("histories");
        }
    }
    if arguments.restores > 0 {
        let many = [("SKERRY_RESTORES", arguments.restores)];
        let which = Which::Like(Some("restored_again_and_again"));
        if let Err(error) = tiers::lab_with(which, false, &many, &mut Report::default()) {
            println!("restores FAILED: {error:#}");
            failed.push("restores");
        }
    }
    if arguments.fuzz > 0 {
        let step = Step::start(format!("fuzzing for {} s", arguments.fuzz));
        match fuzz(arguments.fuzz) {
            Ok(()) => step.done(""),
            Err(error) => {
                println!("fuzzing FAILED: {error:#}");
                failed.push("fuzzing");
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    println!("all of it passed");
    Ok(ExitCode::SUCCESS)
}

fn test(name: &str, (variable, value): (&str, u64)) -> Result<()> {
    let mut cargo = Command::new(workspace::cargo());
    // Optimised, but arithmetic that overflows is a failure as in debug builds.
    cargo
        .args(["test", "--release", "--package", "skerry-images", "--test"])
        .args([name, "--", "--nocapture"])
        .env(variable, value.to_string())
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .current_dir(workspace::root());
    command::run(&mut cargo)
}

fn store(kills: u64) -> Result<()> {
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .args(["test", "--package", "skerry", "--lib", "store::embedded"])
        .current_dir(workspace::root());
    for variable in ["SKERRY_KILLS", "SKERRY_CUTS", "SKERRY_FAILURES"] {
        cargo.env(variable, kills.to_string());
    }
    command::run(&mut cargo)
}

fn fuzz(seconds: u64) -> Result<()> {
    let directory = workspace::root().join("images/fuzz");
    let corpus = directory.join("corpus/open_image");
    std::fs::create_dir_all(&corpus)?;
    let mut seeds = Command::new(workspace::cargo());
    seeds
        .args(["test", "--release", "--package", "skerry-images", "--test"])
        .args(["hostile", "--", "the_fuzzer_has_small_images_to_begin_with"])
        .env("SKERRY_FUZZ_SEEDS", &corpus)
        .current_dir(workspace::root());
    command::run(&mut seeds)?;
    // Named, so that what runs while building is not instrumented.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // The nightly compiler is rustup's to find.
    let mut cargo = Command::new("cargo");
    cargo
        .args(["+nightly", "run", "--release", "--target", &target, "--"])
        .arg(&corpus)
        .args(["-max_len=65536", "-rss_limit_mb=2048", "-timeout=60"])
        .arg(format!("-max_total_time={seconds}"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env("RUSTFLAGS", FUZZING)
        .current_dir(directory);
    command::run(&mut cargo)
}
