//! A folder with snapshots of a small machine.
#![allow(dead_code, reason = "each test file uses its part")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use skerry_snapshot::{
    Chain, CpuFacts, Directory, Header, MachineFacts, MemoryFacts, MemoryFile, MemoryKind, Parent,
    Partial, Range, Records, SnapshotError, coalesce,
};
use skerry_vmm_api::VmConfig;
use tempfile::TempDir;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// A folder with snapshots, by name.
pub struct Shelf {
    folder: TempDir,
    /// Pages of the machine's memory.
    pages: u64,
}

impl Shelf {
    pub fn new(pages: u64) -> Shelf {
        Shelf {
            folder: TempDir::new().expect("a folder"),
            pages,
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub fn directory(&self, name: &str) -> Directory {
        Directory::new(self.path(name))
    }

    /// Names of all that is there, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder()).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string())
            .map(|name| name.expect("text"))
            .collect();
        names.sort();
        names
    }

    /// Describes a snapshot of this name, which is also its id.
    pub fn header(&self, name: &str, parent: Option<&str>) -> Header {
        Header {
            id: name.to_owned(),
            parent: parent.map(|p| Parent::new(p, &self.path(p), &self.path(name))),
            disks_go_on: false,
            created: 1_795_426_550,
            monitor: "0.1.0".into(),
            machine: MachineFacts {
                arch: "x86_64".into(),
                cpus: 1,
                tsc_khz: 0,
            },
            cpu: CpuFacts {
                vendor: "GenuineIntel".into(),
                model: "A model".into(),
                cpuid: Vec::new(),
            },
            devices: Vec::new(),
            config: VmConfig::default(),
            memory: MemoryFacts {
                kind: match parent {
                    Some(_) => MemoryKind::Diff,
                    None => MemoryKind::Full,
                },
                size: self.pages * PAGE,
                data: 0,
            },
            records: Vec::new(),
        }
    }

    /// Writes the memory of a snapshot: pages, each full of a byte.
    pub fn fill(
        &self,
        partial: &Partial,
        header: &mut Header,
        writes: &[(u64, u8)],
    ) -> Result<Records, SnapshotError> {
        let memory = partial.create_memory(header.memory.size)?;
        for (page, byte) in writes {
            let written = memory.write_all_at(&[*byte; PAGE as usize], page * PAGE);
            written.expect("a page");
        }
        let pages = writes.iter().map(|(page, _)| Range {
            start: page * PAGE,
            len: PAGE,
        });
        let ranges = coalesce(pages.collect());
        header.memory.data = ranges.iter().map(|r| r.len).sum();
        let mut records = Records::default();
        records.put(
            "cpu",
            "0",
            1,
            format!("the CPU of {}", header.id).as_bytes(),
        );
        let path = partial.directory().memory();
        MemoryFile::record(&mut records, &path, &memory, &ranges)?;
        Ok(records)
    }

    /// Takes a snapshot on a parent, or a full one.
    pub fn take(&self, name: &str, parent: Option<&str>, writes: &[(u64, u8)]) {
        self.take_as(name, self.header(name, parent), writes);
    }

    /// Takes one that says this of itself.
    pub fn take_as(&self, name: &str, mut header: Header, writes: &[(u64, u8)]) {
        let partial = Partial::create(&self.path(name)).expect("a directory");
        let records = self.fill(&partial, &mut header, writes).expect("memory");
        partial.complete(records, header).expect("a snapshot");
    }

    /// A full snapshot and two diffs, each on the one before.
    pub fn three() -> Shelf {
        let shelf = Shelf::new(8);
        shelf.take("base", None, &[(0, 1), (1, 1), (2, 1)]);
        shelf.take("one", Some("base"), &[(1, 2), (5, 2)]);
        shelf.take("two", Some("one"), &[(2, 3)]);
        shelf
    }

    pub fn open(&self, name: &str) -> Result<Chain, SnapshotError> {
        Chain::open(&self.directory(name))
    }

    /// The first byte of each page of a snapshot, as a guest would see it.
    pub fn seen(&self, name: &str) -> Vec<u8> {
        let chain = self.open(name).expect("a chain");
        chain.verify().expect("a sound chain");
        let mut seen = vec![0; self.pages as usize];
        for layer in &chain.memory {
            for range in layer.ranges() {
                for page in range.start / PAGE..range.end() / PAGE {
                    let place = &mut seen[page as usize..][..1];
                    let read = layer.file().read_exact_at(place, page * PAGE);
                    read.expect("a byte");
                }
            }
        }
        seen
    }
}

/// What a refusal says.
pub fn message<T>(result: Result<T, SnapshotError>) -> String {
    result.err().expect("a refusal").to_string()
}
