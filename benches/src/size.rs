//! Sizes on the command line: bytes, or with a suffix K, M or G.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    /// So many MiB.
    pub const fn mib(number: u64) -> Self {
        Size(number << 20)
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.chars().last() {
            Some('K') => (&text[..text.len() - 1], 10),
            Some('M') => (&text[..text.len() - 1], 20),
            Some('G') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| format!("`{text}` is not a size such as 128M"))?;
        number
            .checked_mul(1 << shift)
            .map(Size)
            .ok_or_else(|| format!("`{text}` is too large"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffixes = [(30, "G"), (20, "M"), (10, "K")];
        let whole = |shift: u32| self.0 > 0 && self.0.is_multiple_of(1 << shift);
        match suffixes.into_iter().find(|(shift, _)| whole(*shift)) {
            Some((shift, suffix)) => write!(f, "{}{suffix}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_two() {
        assert_eq!("128M".parse(), Ok(Size(128 << 20)));
        assert_eq!("4096".parse(), Ok(Size(4096)));
    }

    #[test]
    fn a_size_is_written_as_it_is_read() {
        for text in ["256M", "8G", "1536M", "3K", "4097", "0"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in ["", "M", "-1M", "1T", "99999999999G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
