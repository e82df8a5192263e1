//! Reading a test program's output as it passes by: how many cases there were, which failed, and what those said.
use std::io::{Read, Write};
use std::ops::AddAssign;

/// So much of the end of what a failed case said is kept.
const KEPT: usize = 4096;

/// Cases of one or more test programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Cases that passed.
    pub passed: u64,
    /// Cases that failed.
    pub failed: u64,
    /// Cases that were there but not run.
    pub ignored: u64,
}

impl Count {
    /// All cases that were run.
    pub fn cases(self) -> u64 {
        self.passed + self.failed
    }

    /// All cases that had their turn.
    pub fn all(self) -> usize {
        usize::try_from(self.cases() + self.ignored).unwrap_or(usize::MAX)
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// A case that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// The end of what it said.
    pub said: String,
}

/// What test programs reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many cases there were.
    pub count: Count,
    /// Those that failed.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Adds what another program reported.
    pub fn add(&mut self, other: Report) {
        self.count += other.count;
        self.failures.extend(other.failures);
    }
}

/// Copies a test program's output as it comes, and reads libtest's report out of it.
///
/// # Errors
/// When the stream breaks.
pub fn pass_on(mut from: impl Read, mut to: impl Write) -> std::io::Result<Report> {
    let mut reader = Reader::default();
    let mut line = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let size = match from.read(&mut buffer) {
            Ok(size) => size,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = &buffer[..size];
        to.write_all(bytes)?;
        to.flush()?;
        for byte in bytes {
            if *byte == b'\n' {
                reader.read(&String::from_utf8_lossy(&line));
                line.clear();
            } else {
                line.push(*byte);
            }
        }
        if size == 0 {
            reader.read(&String::from_utf8_lossy(&line));
            return Ok(reader.report);
        }
    }
}

/// Where in libtest's report we are: `failures:` comes twice, first with what each one said, then with their names.
#[derive(Default)]
struct Reader {
    report: Report,
    /// Whose words these are, and what they are.
    said: Vec<Failure>,
    /// What is said while no case is named: of a program whose output is not captured.
    loose: String,
    names: Vec<String>,
    in_failures: bool,
}

impl Reader {
    fn read(&mut self, line: &str) {
        if let Some(count) = result_of(line) {
            self.report.count += count;
            self.finish();
            return;
        }
        if line == "failures:" {
            self.in_failures = true;
            self.names.clear();
            return;
        }
        if !self.in_failures {
            append(&mut self.loose, line);
            return;
        }
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            let (name, said) = (name.to_owned(), String::new());
            self.said.push(Failure { name, said });
        } else if let Some(last) = self.said.last_mut() {
            append(&mut last.said, line);
        }
        match line.strip_prefix("    ") {
            Some(name) if !name.is_empty() && !name.contains(' ') => {
                self.names.push(name.to_owned());
            }
            _ => {}
        }
    }

    /// A program has ended: what it said belongs to those that it names at last.
    fn finish(&mut self) {
        for name in self.names.drain(..) {
            let said = self.said.iter().find(|failure| failure.name == name);
            let said = said.map_or(&self.loose, |failure| &failure.said).clone();
            self.report.failures.push(Failure { name, said });
        }
        self.said.clear();
        self.loose.clear();
        self.in_failures = false;
    }
}

/// Adds a line, and forgets what is too long ago.
fn append(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
    if text.len() > 2 * KEPT {
        let from = text.ceil_char_boundary(text.len() - KEPT);
        text.drain(..from);
    }
}

/// `test result: ok. 20 passed; 0 failed; 1 ignored; 0 measured; …`, possibly after what a test printed without a line's end.
fn result_of(line: &str) -> Option<Count> {
    let (_, result) = line.split_once("test result: ")?;
    let (_, numbers) = result.split_once(". ")?;
    let number = |word: &str| {
        let mut parts = numbers.split(';').map(str::trim);
        parts.find_map(|part| part.strip_suffix(word)?.trim().parse::<u64>().ok())
    };
    Some(Count {
        passed: number("passed")?,
        failed: number("failed")?,
        ignored: number("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up_and_passed_on() {
        let text = "running 3 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; in 0.04s\n\
                    half a linetest result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; in 1s";
        let mut copied = Vec::new();
        let report = pass_on(text.as_bytes(), &mut copied).expect("memory");
        assert_eq!(
            report.count,
            Count {
                passed: 7,
                failed: 2,
                ignored: 1
            }
        );
        assert_eq!(copied, text.as_bytes());
    }

    #[test]
    fn other_lines_count_nothing() {
        let report = pass_on(&b"test result: hm\n3 passed; 4 failed\n"[..], Vec::new());
        assert_eq!(report.expect("memory"), Report::default());
    }

    #[test]
    fn failures_are_known_by_name_with_what_they_said() {
        let text = "\
running 3 tests
test a::one ... FAILED
test a::two ... ok
test b::three ... FAILED

failures:

---- a::one stdout ----
it said
    this
---- b::three stdout ----
and that

failures:
    a::one
    b::three

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
";
        let report = pass_on(text.as_bytes(), Vec::new()).expect("memory");
        let names: Vec<&str> = report.failures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["a::one", "b::three"]);
        assert_eq!(report.failures[0].said, "it said\n    this\n");
        assert!(report.failures[1].said.contains("and that"));
    }

    #[test]
    fn what_was_not_captured_is_told_of_the_one_that_failed() {
        let text = "\
running 1 test
test a::one ... it said this
FAILED

failures:

failures:
    a::one

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1.00s
";
        let report = pass_on(text.as_bytes(), Vec::new()).expect("memory");
        assert_eq!(report.failures.len(), 1);
        assert!(report.failures[0].said.contains("it said this"));
    }

    #[test]
    fn of_long_words_the_end_is_kept() {
        let mut text = String::new();
        for n in 0..10_000 {
            append(&mut text, &format!("line {n} — of many"));
        }
        assert!(text.len() <= 2 * KEPT && text.ends_with("line 9999 — of many\n"));
    }
}
