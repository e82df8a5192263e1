//! Lines of log: for people, or as JSON with OpenTelemetry's names (its log data model, "Log and Event Record
//! Definition"), a record a line.

use std::collections::BTreeMap;
use std::io::{self, Write};

use env_logger::fmt::Formatter;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Record};
use serde::Serialize;

/// How lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: a JSON object a line.
    Json,
}

/// A record.
#[derive(Debug, Serialize)]
struct Line<'a> {
    timestamp: String,
    severity_text: &'static str,
    severity_number: u8,
    body: String,
    attributes: BTreeMap<String, String>,
    resource: &'a BTreeMap<&'static str, String>,
}

/// The key-value pairs of a record.
struct Pairs<'a>(&'a mut BTreeMap<String, String>);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        self.0.insert(key.to_string(), value.to_string());
        Ok(())
    }
}

/// A level's name and number, as OpenTelemetry has them.
fn severity(level: Level) -> (&'static str, u8) {
    match level {
        Level::Error => ("ERROR", 17),
        Level::Warn => ("WARN", 13),
        Level::Info => ("INFO", 9),
        Level::Debug => ("DEBUG", 5),
        Level::Trace => ("TRACE", 1),
    }
}

/// Starts the log of this process, which is the agent of `host`. `RUST_LOG` chooses levels; they begin with `info`.
pub fn start(format: LogFormat, host: &str) {
    let filter = env_logger::Env::default().default_filter_or("info");
    let mut builder = env_logger::Builder::from_env(filter);
    if format == LogFormat::Json {
        let resource = BTreeMap::from([
            ("service.name", "skerry".to_owned()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("host.name", host.to_owned()),
            ("process.pid", std::process::id().to_string()),
        ]);
        builder.format(move |out: &mut Formatter, record: &Record| write(out, record, &resource));
    }
    builder.init();
}

fn write(
    out: &mut impl Write,
    record: &Record,
    resource: &BTreeMap<&'static str, String>,
) -> io::Result<()> {
    let (severity_text, severity_number) = severity(record.level());
    let mut attributes =
        BTreeMap::from([("code.namespace".to_owned(), record.target().to_owned())]);
    // What cannot be told is left out: the line is still worth having.
    let _ = record.key_values().visit(&mut Pairs(&mut attributes));
    let line = Line {
        timestamp: jiff::Timestamp::now().to_string(),
        severity_text,
        severity_number,
        body: record.args().to_string(),
        attributes,
        resource,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_line_with_opentelemetrys_names() {
        let pairs = [("namespace", "default"), ("name", "web")];
        let mut out = Vec::new();
        let mut builder = Record::builder();
        builder.level(Level::Warn).target("skerry::site");
        builder.key_values(&pairs);
        let resource = BTreeMap::from([("service.name", "skerry".to_owned())]);
        write(
            &mut out,
            &builder.args(format_args!("two\nlines")).build(),
            &resource,
        )
        .unwrap();
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["body"], "two\nlines");
        assert_eq!(
            (&line["severity_text"], &line["severity_number"]),
            (&"WARN".into(), &13.into())
        );
        assert_eq!(line["attributes"]["name"], "web");
        assert_eq!(line["resource"]["service.name"], "skerry");
        assert!(line["timestamp"].is_string());
    }
}
