//! Answers: for people, or as JSON.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::failure::Failure;

/// How to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Human,
    /// For programs.
    Json,
}

/// The flag that says how to answer.
#[derive(Debug, Clone, Args)]
pub struct Output {
    /// How to answer
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: Form,
}

impl Output {
    /// Whether JSON is wanted.
    pub fn json(&self) -> bool {
        self.output == Form::Json
    }
}

/// Prints an answer as JSON.
pub fn print_json(answer: &impl Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string_pretty(answer)?);
    Ok(())
}

/// Text without control characters. It may come from an image or a snapshot: whatever is in it, it
/// stays on its line.
pub fn on_a_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}
