//! Checksums that people give: `sha256:…` or `sha512:…`.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest, Sha256, Sha512};

use super::Failure;

/// A checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// `sha256` or `sha512`.
    pub algorithm: &'static str,
    /// In hexadecimal digits.
    pub digits: String,
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Checksum, String> {
        let (algorithm, digits) = text.split_once(':').unwrap_or(("", text));
        let (algorithm, length) = match algorithm {
            "sha256" => ("sha256", 64),
            "sha512" => ("sha512", 128),
            _ => {
                return Err(format!(
                    "{text:?} is no checksum: give sha256:… or sha512:…"
                ));
            }
        };
        match digits.len() == length && digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            true => Ok(Checksum {
                algorithm,
                digits: digits.to_ascii_lowercase(),
            }),
            false => Err(format!(
                "{algorithm} has {length} hexadecimal digits, {text:?} has others"
            )),
        }
    }
}

impl Checksum {
    /// Refuses a file that has another checksum.
    pub fn check(&self, path: &Path) -> Result<(), Failure> {
        let failed = |source| Failure::System {
            what: "read",
            path: path.into(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let found = match self.algorithm {
            "sha512" => sum::<Sha512>(&mut file),
            _ => sum::<Sha256>(&mut file),
        };
        let found = found.map_err(failed)?;
        match found == self.digits {
            true => Ok(()),
            false => Err(Failure::Asked(format!(
                "{} is not what the checksum says: its {} is {found}; get it anew, or correct --checksum",
                path.display(),
                self.algorithm
            ))),
        }
    }
}

fn sum<D: Digest>(file: &mut File) -> std::io::Result<String> {
    let (mut sum, mut buffer) = (D::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => sum.update(&buffer[..n]),
        }
    }
    Ok(sum.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_compared_with_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").expect("written");
        let good = "sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        let good: Checksum = good.parse().expect("a checksum");
        good.check(&path).expect("it is that");
        std::fs::write(&path, "abd").expect("written");
        let said = good.check(&path).expect_err("it is another").to_string();
        assert!(said.contains("sha256 is"), "{said}");
        for text in ["md5:00", "sha256:00", "abc", "sha512:zz"] {
            assert!(text.parse::<Checksum>().is_err(), "{text}");
        }
    }
}
