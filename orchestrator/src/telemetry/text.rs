//! Prometheus's text, format 0.0.4: families with their samples.

use std::fmt::{Display, Write};

/// A text that grows.
#[derive(Debug, Default)]
pub struct Text(String);

/// What a family's numbers are.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    /// They only grow.
    Counter,
    /// They come and go.
    Gauge,
    /// How many took how long.
    Histogram,
}

/// A family in the making. Without a sample it is not written.
pub struct Family<'a> {
    text: &'a mut Text,
    name: &'static str,
    head: Option<String>,
}

/// Names of labels, and what they are.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a family.
    pub fn family(&mut self, name: &'static str, kind: Type, help: &str) -> Family<'_> {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        Family {
            text: self,
            name,
            head: Some(format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")),
        }
    }

    /// All of it.
    pub fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// One more sample.
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.part("", labels, value);
    }

    /// A sample of one of a histogram's parts.
    pub fn part(&mut self, suffix: &str, labels: Labels<'_>, value: impl Display) {
        let out = &mut self.text.0;
        if let Some(head) = self.head.take() {
            out.push_str(&head);
        }
        out.push_str(self.name);
        out.push_str(suffix);
        for (at, (name, label)) in labels.iter().enumerate() {
            out.push(if at == 0 { '{' } else { ',' });
            out.push_str(name);
            out.push_str("=\"");
            escape(out, label);
            out.push('"');
        }
        if !labels.is_empty() {
            out.push('}');
        }
        // Writing to a String does not fail.
        let _ = writeln!(out, " {value}");
    }
}

fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_a_head_and_labels_are_escaped() {
        let mut text = Text::default();
        text.family("empty", Type::Gauge, "Nothing.");
        let mut family = text.family("a_total", Type::Counter, "All.");
        family.sample(&[("name", "a\"b\\c\nd")], 1.5);
        family.sample(&[], 2);
        let wanted = "# HELP a_total All.\n# TYPE a_total counter\na_total{name=\"a\\\"b\\\\c\\nd\"} 1.5\na_total 2\n";
        assert_eq!(text.finish(), wanted);
    }
}
