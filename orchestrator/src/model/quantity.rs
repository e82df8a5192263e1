//! Amounts as Kubernetes writes them: `512Mi`, `2Gi`, `1500m`, `3`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount, in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

/// Suffixes and what they stand for, in thousandths; the first that divides an amount is how it is written.
const SUFFIXES: [(&str, i128); 11] = [
    ("Ti", 1000 << 40),
    ("Gi", 1000 << 30),
    ("Mi", 1000 << 20),
    ("Ki", 1000 << 10),
    ("", 1000),
    ("m", 1),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("Pi", 1000 << 50),
];
/// More than any host has.
const MOST: i128 = 1000 << 60;

impl Quantity {
    /// So many whole ones.
    pub const fn of(whole: u64) -> Quantity {
        Quantity(whole as i128 * 1000)
    }

    /// So many thousandths.
    pub const fn of_milli(milli: u64) -> Quantity {
        Quantity(milli as i128)
    }

    /// Whole ones, such as bytes; a part of one counts as one.
    pub fn whole(self) -> u64 {
        u64::try_from((self.0 + 999) / 1000).unwrap_or(0)
    }

    /// Thousandths, such as those of a CPU.
    pub fn milli(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0)
    }
}

/// It is no amount.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no amount: write a number and one of m, k, M, G, T, Ki, Mi, Gi, Ti, as in 512Mi")]
pub struct NoQuantity(String);

impl FromStr for Quantity {
    type Err = NoQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NoQuantity(text.chars().take(40).collect());
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, suffix) = text.split_at(digits.unwrap_or(text.len()));
        let unit = SUFFIXES.iter().find(|(name, _)| *name == suffix);
        let (_, unit) = unit.ok_or_else(wrong)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || whole.len() > 20 || part.len() > 9 || number.ends_with('.') {
            return Err(wrong());
        }
        let parse = |digits: &str| match digits {
            "" => Ok(0),
            digits => digits.parse::<i128>().map_err(|_| wrong()),
        };
        let scale = 10i128.pow(part.len() as u32);
        let amount = (parse(whole)? * scale + parse(part)?) * unit;
        // What is finer than a thousandth is rounded up.
        let amount = (amount + scale - 1) / scale;
        (amount <= MOST)
            .then_some(Quantity(amount))
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let fits = |(_, unit): &&(&str, i128)| self.0 % unit == 0 && self.0 >= *unit;
        match SUFFIXES.iter().find(fits) {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => f.write_str("0"),
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an amount such as 512Mi or 2")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "An amount: a number and one of m, k, M, G, T, Ki, Mi, Gi, Ti.",
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Quantity {
        text.parse().expect("an amount")
    }

    #[test]
    fn amounts_are_read_and_written() {
        for (text, milli, again) in [
            ("512Mi", 1000 * (512 << 20), "512Mi"),
            ("1024Mi", 1000 << 30, "1Gi"),
            ("0.5", 500, "500m"),
            ("1500m", 1500, "1500m"),
            ("2", 2000, "2"),
            ("1k", 1_000_000, "1000"),
            ("1.5Gi", 1000 * (3 << 29), "1536Mi"),
            ("0", 0, "0"),
            ("0.0001", 1, "1m"),
        ] {
            assert_eq!(parsed(text).milli(), milli, "{text}");
            assert_eq!(parsed(text).to_string(), again);
        }
        assert_eq!(parsed("1500m").whole(), 2);
    }

    #[test]
    fn what_is_none_is_refused_with_what_it_should_be() {
        for text in [
            "",
            "Mi",
            "1.",
            ".5",
            "-1",
            "1 Gi",
            "1Xi",
            "99999999999Ti",
            "1.2.3",
            "1e3",
        ] {
            let wrong = text.parse::<Quantity>().expect_err(text).to_string();
            assert!(wrong.contains("as in 512Mi"), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(milli in 0u64..) {
            let amount = Quantity(milli.into());
            prop_assert_eq!(parsed(&amount.to_string()), amount);
        }

        #[test]
        fn no_text_is_a_panic(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
