//! /proc/PID/smaps: what each of a process's mappings takes of the host's memory.

use anyhow::{Context, Result};

/// One mapping. Sizes are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// What is mapped; empty for anonymous memory.
    pub path: String,
    /// Addresses that it takes.
    pub size: u64,
    /// What is in memory of it.
    pub rss: u64,
    /// What is in memory of it, each page divided by those who map it.
    pub pss: u64,
    /// What is in memory of it and mapped by nobody else.
    pub private: u64,
}

/// The mappings of a process.
pub fn of(pid: u32) -> Result<Vec<Mapping>> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).context(path)?;
    parse(&text)
}

/// Reads the file's text.
pub fn parse(text: &str) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(size) = size_of(first) {
            let path = words.skip(4).collect::<Vec<_>>().join(" ");
            mappings.push(Mapping {
                path,
                size,
                ..Mapping::default()
            });
        } else if let Some(mapping) = mappings.last_mut() {
            let field = match first {
                "Rss:" => &mut mapping.rss,
                "Pss:" => &mut mapping.pss,
                "Private_Clean:" | "Private_Dirty:" | "Private_Hugetlb:" => &mut mapping.private,
                _ => continue,
            };
            let kib: u64 = words
                .next()
                .and_then(|kib| kib.parse().ok())
                .with_context(|| format!("smaps: {line}"))?;
            *field += kib << 10;
        }
    }
    Ok(mappings)
}

/// The size of the mapping that a line such as `7f00-7f80 rw-p …` starts.
fn size_of(word: &str) -> Option<u64> {
    let (start, end) = word.split_once('-')?;
    let (start, end) = (
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    );
    end.checked_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_and_dirty_pages_of_one_process_are_its_own() {
        let text = "\
7f0000000000-7f0008000000 rw-p 00000000 00:01 8    /snap shots/a/memory
Size:             131072 kB
Rss:                 424 kB
Pss:                 100 kB
Pss_Dirty:            50 kB
Shared_Clean:        400 kB
Private_Clean:         8 kB
Private_Dirty:        16 kB
VmFlags: rd wr
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
Pss:                   4 kB
";
        let mappings = parse(text).unwrap();
        let memory = Mapping {
            path: "/snap shots/a/memory".into(),
            size: 128 << 20,
            rss: 424 << 10,
            pss: 100 << 10,
            private: 24 << 10,
        };
        assert_eq!(mappings[0], memory);
        assert_eq!((mappings[1].path.as_str(), mappings[1].pss), ("", 4096));
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        let mappings = of(std::process::id()).unwrap();
        assert!(mappings.iter().map(|m| m.private).sum::<u64>() > 0);
    }
}
