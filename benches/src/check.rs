//! Two runs compared by their ratios of our lines to the peers' lines: machines differ, ratios less so.

use crate::report::{Better, Table};
use crate::stats::Row;

/// What our lines' names begin with.
pub const OURS: &str = "skerry";

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Compared {
    /// Ratios that both runs have.
    pub ratios: usize,
    /// Those that are worse, each with its figures.
    pub worse: Vec<String>,
}

fn ours(row: &&Row) -> bool {
    row.name.starts_with(OURS)
}

/// How much better `our` is than `peer`: above 1 is better.
fn advantage(better: Better, our: &Row, peer: &Row) -> f64 {
    match better {
        Better::Higher => our.median / peer.median,
        Better::Lower => peer.median / our.median,
    }
}

/// Compares all ratios that both runs have; `tolerance` is the share by which one may be worse.
pub fn compare(before: &[Table], now: &[Table], tolerance: f64) -> Compared {
    let mut compared = Compared::default();
    for table in now {
        let Some(old) = before.iter().find(|t| t.title == table.title) else {
            continue;
        };
        let same = |row: &Row| old.rows.iter().find(|r| r.name == row.name);
        for our in table.rows.iter().filter(ours) {
            for peer in table.rows.iter().filter(|row| !ours(row)) {
                let (Some(our_before), Some(peer_before)) = (same(our), same(peer)) else {
                    continue;
                };
                let was = advantage(table.better, our_before, peer_before);
                let is = advantage(table.better, our, peer);
                if !was.is_finite() || !is.is_finite() {
                    continue;
                }
                compared.ratios += 1;
                if is < was * (1.0 - tolerance) {
                    compared.worse.push(format!(
                        "{}: {} is {is:.2} times as good as {}, and was {was:.2} times",
                        table.title, our.name, peer.name
                    ));
                }
            }
        }
    }
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(better: Better, values: &[(&str, f64)]) -> Table {
        let row = |(name, median): &(&str, f64)| Row {
            name: (*name).to_owned(),
            runs: 1,
            min: *median,
            median: *median,
            p95: *median,
            ratio: 1.0,
            beside: Default::default(),
        };
        Table {
            title: "t".into(),
            unit: "u".into(),
            better,
            rows: values.iter().map(row).collect(),
            left_out: Vec::new(),
            targets: Vec::new(),
        }
    }

    #[test]
    fn a_slower_machine_is_not_worse_and_a_worse_ratio_is() {
        let before = [table(
            Better::Higher,
            &[("skerry polled", 200.0), ("qemu", 100.0)],
        )];
        let slow = [table(
            Better::Higher,
            &[("skerry polled", 20.0), ("qemu", 10.0)],
        )];
        let compared = compare(&before, &slow, 0.1);
        assert_eq!((compared.ratios, compared.worse.len()), (1, 0));
        let worse = [table(
            Better::Higher,
            &[("skerry polled", 150.0), ("qemu", 100.0)],
        )];
        let compared = compare(&before, &worse, 0.1);
        assert_eq!(compared.worse.len(), 1);
        assert!(
            compared.worse[0].contains("skerry polled is 1.50"),
            "{compared:?}"
        );
    }

    #[test]
    fn times_are_better_when_they_are_shorter() {
        let before = [table(Better::Lower, &[("skerry", 2.0), ("qemu", 4.0)])];
        let now = [table(Better::Lower, &[("skerry", 3.0), ("qemu", 4.0)])];
        assert_eq!(compare(&before, &now, 0.1).worse.len(), 1);
        let now = [table(Better::Lower, &[("skerry", 1.0), ("qemu", 4.0)])];
        assert_eq!(compare(&before, &now, 0.1).worse.len(), 0);
    }

    #[test]
    fn what_only_one_run_has_is_not_compared() {
        let before = [table(Better::Higher, &[("skerry", 2.0)])];
        let now = [table(Better::Higher, &[("skerry", 1.0), ("qemu", 4.0)])];
        assert_eq!(compare(&before, &now, 0.1).ratios, 0);
    }
}
