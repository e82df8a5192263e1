//! Tokens: who may ask the API without a certificate, and for what.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Fields, Parts, Resource, Timestamp, is_name};

/// A token.
pub type Token = Parts<TokenSpec, TokenStatus>;

/// What a token is known by, and what whoever has it may do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TokenSpec {
    /// The SHA-256 of its secret, in hexadecimal. The secret itself is nowhere kept.
    pub sha256: String,
    /// From when on it is worth nothing; never if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// The only tenant that it is for; all, and what belongs to none, if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// It is for looking alone: get, list, watch and logs.
    pub read_only: bool,
}

/// Nothing is found out about tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenStatus {}

impl TokenSpec {
    /// Whether it is worth something at this moment.
    pub fn is_valid(&self) -> bool {
        self.expires.is_none_or(|end| end > Timestamp::now())
    }
}

/// Reads how long something lasts: `90s`, `30m`, `24h`, `7d`.
pub fn duration(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    // A century, beyond which moments cannot be reckoned with.
    const MOST: u64 = 36_500 * 86_400;
    let whole = number.checked_mul(seconds).filter(|all| *all <= MOST)?;
    Some(Duration::from_secs(whole))
}

impl Resource for Token {
    const KIND: &'static str = "Token";
    const PLURAL: &'static str = "tokens";
    const SINGULAR: &'static str = "token";
    const NAMESPACED: bool = false;
    const HAS_STATUS: bool = false;
    const COLUMNS: &'static [Column] = &[
        Column {
            name: "Namespace",
            wide: false,
            cell: &["spec", "namespace"],
        },
        Column {
            name: "Read-Only",
            wide: false,
            cell: &["spec", "readOnly"],
        },
        Column {
            name: "Expires",
            wide: false,
            cell: &["spec", "expires"],
        },
    ];

    fn check(&self, fields: &mut Fields) {
        let spec = &self.spec;
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if spec.sha256.len() != 64 || !spec.sha256.bytes().all(digit) {
            let what = "it must be 64 digits of 0-9 and a-f: `skerry token create` makes a token";
            fields.wrong("spec.sha256", what);
        }
        if let Some(namespace) = &spec.namespace
            && !is_name(namespace)
        {
            fields.wrong("spec.namespace", "it is no name of a namespace");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_nonsense_is_not() {
        assert_eq!(duration("24h"), Some(Duration::from_secs(86_400)));
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        for wrong in [
            "",
            "h",
            "1",
            "-1h",
            "1w",
            "1.5h",
            "99999999999999999999d",
            "40000d",
            "ä",
        ] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
