//! Moments, as Kubernetes writes them: RFC 3339 in UTC, whole seconds.

use jiff::fmt::temporal::DateTimeParser;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// This moment.
    pub fn now() -> Timestamp {
        Timestamp(jiff::Timestamp::now())
    }

    /// That long after now.
    pub fn after(time: std::time::Duration) -> Timestamp {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let then = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_secs(seconds));
        Timestamp(then.unwrap_or(jiff::Timestamp::MAX))
    }

    /// In seconds since 1970.
    pub fn unix_seconds(self) -> f64 {
        self.0.as_second() as f64
    }

    /// Seconds since then; none if it is to come.
    pub fn seconds_ago(self) -> u64 {
        let since = jiff::Timestamp::now().as_second() - self.0.as_second();
        u64::try_from(since).unwrap_or(0)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let moment = DateTimeParser::new().parse_timestamp(&text);
        moment.map(Timestamp).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "date-time"})
    }
}

/// How long ago that was, in short: `7s`, `4m`, `3h`, `2d`.
pub fn age(since: Option<Timestamp>) -> String {
    match since.map(Timestamp::seconds_ago) {
        None => "<unknown>".to_owned(),
        Some(s @ 0..120) => format!("{s}s"),
        Some(s @ 120..7200) => format!("{}m", s / 60),
        Some(s @ 7200..172_800) => format!("{}h", s / 3600),
        Some(s) => format!("{}d", s / 86_400),
    }
}
