//! Counting test cases: reads libtest's result lines out of a stream that is passed on unchanged.
use std::io::{Read, Write};
use std::ops::AddAssign;

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

/// Copies a test program's output as it comes, and adds up its result lines.
///
/// # Errors
/// When the stream breaks.
pub fn pass_on(mut from: impl Read, mut to: impl Write) -> std::io::Result<Count> {
    let mut count = Count::default();
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
                count += result_of(&String::from_utf8_lossy(&line)).unwrap_or_default();
                line.clear();
            } else {
                line.push(*byte);
            }
        }
        if size == 0 {
            count += result_of(&String::from_utf8_lossy(&line)).unwrap_or_default();
            return Ok(count);
        }
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
        let count = pass_on(text.as_bytes(), &mut copied).expect("memory");
        assert_eq!(
            count,
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
        assert_eq!(
            pass_on(&b"test result: hm\n3 passed; 4 failed\n"[..], Vec::new()).expect("memory"),
            Count::default()
        );
    }
}
