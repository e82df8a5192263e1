//! `skerry explain`: why a workload is where it is, or what a field is for.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::client::{Client, JSON};
use super::fields;
use super::get::yaml;
use super::{Failure, Remote, ask, kind_and_name};
use crate::api::{Explanation, Judged};
use crate::cli::output::on_a_line;

/// Tell why a workload is where it is or nowhere, host by host; or what a field is for
#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    remote: Remote,
    /// A workload's kind and name: vm web, vm/web; or a field: microvm.spec.disks
    #[arg(value_name = "KIND NAME | FIELD", required = true, num_args = 1..=2)]
    what: Vec<String>,
    /// How it is told
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

/// How something is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// As JSON.
    Json,
    /// As YAML.
    Yaml,
}

impl Form {
    fn print(self, value: &Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
        match self {
            Form::Text => print!("{}", text()),
            Form::Json => println!("{}", serde_json::to_string_pretty(value)?),
            Form::Yaml => print!("{}", yaml(value)?),
        }
        Ok(())
    }
}

impl Explain {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            if let [path] = self.what.as_slice()
                && !path.contains('/')
            {
                let field = fields::find(path)?;
                self.output.print(&field.told, || field.text())?;
                return Ok(0);
            }
            let (kind, name) = kind_and_name(&self.what)?;
            let path = Client::path(kind, &self.remote.namespace, name);
            let value = client.get(&format!("{path}/explanation"), JSON).await?;
            let explanation: Explanation = serde_json::from_value(value.clone())?;
            let shown = format!("{}/{}", kind.singular, name.unwrap_or_default());
            self.output.print(&value, || told(&shown, &explanation))?;
            Ok(0)
        })
    }
}

/// An explanation for people.
fn told(shown: &str, explanation: &Explanation) -> String {
    // What is so now is more than what was said before.
    let message = match explanation.host.is_empty() && !explanation.refusal.is_empty() {
        true => on_a_line(&explanation.refusal),
        false => on_a_line(&explanation.message),
    };
    let mut text = match (explanation.host.as_str(), message.as_str()) {
        ("", "") => format!("{shown} has no place yet"),
        ("", message) => format!("{shown} has no place: {message}"),
        (host, "") => format!("{shown} has its place on {}", on_a_line(host)),
        (host, message) => format!("{shown} has its place on {}, {message}", on_a_line(host)),
    };
    text += &format!("\nIts priority is {}.\n", explanation.priority);
    let without = match explanation.host.is_empty() {
        true => "",
        false => ", if it had none",
    };
    if !explanation.hosts.is_empty() {
        text += &format!("What the hosts would be to it now{without}:\n");
    }
    for judged in &explanation.hosts {
        text += &line(judged);
    }
    if explanation.more > 0 {
        text += &format!("  and {} more\n", explanation.more);
    }
    if !explanation.victims.is_empty() {
        let victims = on_a_line(&explanation.victims.join(", "));
        text += &format!("It would take the place of {victims}, less important.\n");
    }
    text
}

fn line(judged: &Judged) -> String {
    let terms: Vec<String> = judged
        .terms
        .iter()
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    let host = on_a_line(&judged.host);
    let why = match (judged.able, judged.score) {
        (false, _) => format!("no: {}", on_a_line(&judged.why)),
        (true, Some(score)) => format!("yes, score {score:.4} ({})", terms.join(", ")),
        (true, None) if judged.why.is_empty() => "yes".to_owned(),
        (true, None) => format!("yes, but {}", on_a_line(&judged.why)),
    };
    format!("  {host:16} {why}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(host: &str, able: bool, score: Option<f64>, why: &str) -> Judged {
        Judged {
            host: host.to_owned(),
            able,
            score,
            why: why.to_owned(),
            ..Judged::default()
        }
    }

    #[test]
    fn a_place_is_told_with_each_host_and_stays_on_its_lines() {
        let placed = Explanation {
            host: "a".to_owned(),
            message: "in the place of vm x\nand y".to_owned(),
            priority: 3,
            hosts: vec![
                judged("a", true, Some(0.5), ""),
                judged("b", true, None, "one workload would have to go"),
                judged("c", false, None, "cordoned"),
            ],
            more: 2,
            refusal: "not told".to_owned(),
            ..Explanation::default()
        };
        let text = told("vm/web", &placed);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "vm/web has its place on a, in the place of vm x\\nand y",
                "Its priority is 3.",
                "What the hosts would be to it now, if it had none:",
                "  a                yes, score 0.5000 ()",
                "  b                yes, but one workload would have to go",
                "  c                no: cordoned",
                "  and 2 more",
            ]
        );
    }

    #[test]
    fn what_has_no_place_is_told_why_now_and_who_would_have_to_go() {
        let mut waits = Explanation {
            message: "old".to_owned(),
            refusal: "no host".to_owned(),
            ..Explanation::default()
        };
        assert!(told("vm/web", &waits).starts_with("vm/web has no place: no host\n"));
        waits.refusal.clear();
        waits.victims = vec!["microvm default/low".to_owned()];
        let text = told("vm/web", &waits);
        assert!(text.starts_with("vm/web has no place: old\n"), "{text}");
        assert!(
            text.contains("take the place of microvm default/low, less"),
            "{text}"
        );
    }
}
