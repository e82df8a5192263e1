//! Sizes as people write and read them.

/// Bytes from a number with a suffix: b, k, M, G, T, P or E, by powers of 1024. Without one, bytes.
pub fn parse(text: &str) -> Result<u64, String> {
    const SUFFIXES: &str = "bkmgtpe";
    let wrong = || {
        format!("{text:?} is no size: give a number, and k, M, G, T, P or E behind it if you like")
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text[digits.len()..].to_ascii_lowercase();
    let suffix = suffix.trim_end_matches("ib");
    let power = match suffix {
        "" => 0,
        one => SUFFIXES
            .find(one)
            .filter(|_| one.len() == 1)
            .ok_or_else(wrong)? as u32,
    };
    let unit = 1u64 << (10 * power);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let mut bytes = whole.checked_mul(unit).ok_or_else(wrong)?;
    if !fraction.is_empty() {
        let part: f64 = format!("0.{fraction}").parse().map_err(|_| wrong())?;
        bytes = bytes
            .checked_add((part * unit as f64) as u64)
            .ok_or_else(wrong)?;
    }
    if bytes > i64::MAX as u64 {
        return Err(wrong());
    }
    Ok(bytes)
}

/// Bytes with a unit and three digits.
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    let number = format!("{value:.digits$}");
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => &number,
    };
    format!("{number} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("3k", 3 << 10),
            ("2M", 2 << 20),
            ("1.5G", 3 << 29),
            ("1GiB", 1 << 30),
            ("7T", 7 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "-1", "1q", "1kk", "9E", "99999999999E"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        let cases = [
            (0, "0 B"),
            (512, "512 B"),
            (200_704, "196 KiB"),
            (1 << 30, "1 GiB"),
            (1000, "0.977 KiB"),
            (3 << 29, "1.5 GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(show(bytes), text);
        }
    }
}
