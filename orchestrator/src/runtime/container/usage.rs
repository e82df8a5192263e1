//! What containers use, as their cgroups of version 1 or 2 say.

use std::path::PathBuf;

use super::cgroup::{Cgroup, read};
use crate::runtime::usage::{Transfers, Usage};

/// A limit above this is none: version 1 has the largest number that it knows instead.
const NO_LIMIT: u64 = 1 << 60;

/// What the processes in a cgroup use; none if it is not there.
pub fn of(cgroup: &Cgroup) -> Option<Usage> {
    let folders = cgroup.directories();
    if folders.is_empty() {
        return None;
    }
    let number = |names: &[&str]| first(&folders, names).and_then(|text| text.trim().parse().ok());
    let nanoseconds = number(&["cpuacct.usage"]).map(|ns: u64| ns as f64 / 1e9);
    let cpu = nanoseconds.or_else(|| {
        let stat = first(&folders, &["cpu.stat"])?;
        let usage = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        Some(usage?.trim().parse::<u64>().ok()? as f64 / 1e6)
    });
    let limit = number(&["memory.max", "memory.limit_in_bytes"]);
    Some(Usage {
        cpu_seconds: cpu.unwrap_or_default(),
        memory_bytes: number(&["memory.current", "memory.usage_in_bytes"]).unwrap_or_default(),
        memory_limit_bytes: limit.filter(|limit| *limit < NO_LIMIT),
        processes: number(&["pids.current"]),
        block: block(&folders),
        ..Usage::default()
    })
}

/// The first of these files that is in one of these folders.
fn first(folders: &[PathBuf], names: &[&str]) -> Option<String> {
    let paths = names
        .iter()
        .flat_map(|name| folders.iter().map(|folder| folder.join(*name)));
    paths.map(|path| read(&path)).find_map(Result::ok)
}

/// All that went from and to block devices.
fn block(folders: &[PathBuf]) -> Option<Transfers> {
    let mut all = Transfers::default();
    if let Some(text) = first(folders, &["io.stat"]) {
        for word in text.split_whitespace() {
            let Some((name, n)) = word.split_once('=') else {
                continue;
            };
            let n: u64 = n.parse().unwrap_or_default();
            match name {
                "rbytes" => all.read_bytes += n,
                "wbytes" => all.written_bytes += n,
                "rios" => all.reads += n,
                "wios" => all.writes += n,
                _ => {}
            }
        }
        return Some(all);
    }
    let names = [
        "blkio.throttle.io_service_bytes",
        "blkio.throttle.io_serviced",
    ];
    let [bytes, times] = names.map(|name| first(folders, &[name]));
    (all.read_bytes, all.written_bytes) = old(&bytes?);
    (all.reads, all.writes) = old(&times?);
    Some(all)
}

/// Reads and writes of a file of version 1: `8:0 Read 4096`.
fn old(text: &str) -> (u64, u64) {
    let sum = |what: &str| {
        let lines = text.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            (words.next()? == what).then(|| words.next()?.parse::<u64>().ok())?
        });
        lines.sum()
    };
    (sum("Read"), sum("Write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_of_both_versions_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let here = vec![folder.path().to_owned()];
        assert_eq!(block(&here), None);
        let old = "8:0 Read 4096\n8:0 Write 512\n8:16 Read 1\nTotal 4609\n";
        std::fs::write(folder.path().join("blkio.throttle.io_service_bytes"), old).unwrap();
        std::fs::write(
            folder.path().join("blkio.throttle.io_serviced"),
            "8:0 Read 2\n",
        )
        .unwrap();
        let seen = block(&here).unwrap();
        assert_eq!((seen.read_bytes, seen.written_bytes), (4097, 512));
        assert_eq!((seen.reads, seen.writes), (2, 0));
        let new = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n";
        std::fs::write(folder.path().join("io.stat"), new).unwrap();
        let seen = block(&here).unwrap();
        assert_eq!((seen.read_bytes, seen.writes), (10, 2));
    }
}
