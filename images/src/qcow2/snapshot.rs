//! Internal snapshots: copies of the L1 table that keep what it refers to (qcow2 specification,
//! "Snapshots").
//!
//! Every change is one write of the header's first sector. What it needs is durable before; what it
//! makes superfluous is given back after. Meanwhile a version 3 image is marked dirty, so a power cut
//! leads to the rebuild of all refcounts at the next open; a version 2 image is left with leaks.

use super::Image;
use super::entry::COPIED;
use super::header::{MAX_L1, be32, be64, incompatible};
use super::image::read_table;
use crate::io::{Buffer, Port};
use crate::{Error, Result};

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Offset of its L1 table.
    pub l1_offset: u64,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// When it was made: seconds and nanoseconds since 1970.
    pub date: (u32, u32),
    /// How long the guest had run, in nanoseconds.
    pub clock: u64,
    /// Bytes of the guest's saved memory.
    pub vm_state: u64,
    /// The guest disk's size then.
    pub size: u64,
    /// Extra data behind what is known, as it is.
    pub extra: Vec<u8>,
}

/// The most bytes of a snapshot table, and of what is read at first.
const MAX_TABLE: u64 = 64 << 20;
const FIRST_READ: u64 = 64 << 10;
/// The most snapshots, as in QEMU.
const MAX_SNAPSHOTS: usize = 65536;
/// The longest name that is given to a new snapshot: QEMU shows no more.
const MAX_NAME: usize = 255;
/// Bytes of an entry before its extra data.
const FIXED: usize = 40;

impl Snapshot {
    /// Parses the entry at the start of `bytes`, and how long it is. None if it ends too early.
    fn parse(bytes: &[u8], disk: u64) -> Option<(Snapshot, usize)> {
        let fixed = bytes.get(..FIXED)?;
        let length = |at: usize| usize::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
        let (id_len, name_len, extra_len) = (length(12), length(14), be32(fixed, 36) as usize);
        let end = extra_len.checked_add(FIXED + id_len + name_len)?;
        let rest = bytes.get(FIXED..end)?;
        let (extra, rest) = rest.split_at_checked(extra_len)?;
        let (id, name) = rest.split_at_checked(id_len)?;
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let snapshot = Snapshot {
            id: text(id),
            name: text(name),
            l1_offset: be64(fixed, 0),
            l1_entries: be32(fixed, 8),
            date: (be32(fixed, 16), be32(fixed, 20)),
            clock: be64(fixed, 24),
            vm_state: if extra_len >= 8 {
                be64(extra, 0)
            } else {
                be32(fixed, 32).into()
            },
            size: if extra_len >= 16 {
                be64(extra, 8)
            } else {
                disk
            },
            extra: extra.get(16..).unwrap_or_default().to_vec(),
        };
        Some((snapshot, end.checked_next_multiple_of(8)?))
    }

    fn store(&self, out: &mut Vec<u8>) {
        let (id, name) = (self.id.as_bytes(), self.name.as_bytes());
        out.extend_from_slice(&self.l1_offset.to_be_bytes());
        out.extend_from_slice(&self.l1_entries.to_be_bytes());
        out.extend_from_slice(&(id.len() as u16).to_be_bytes());
        out.extend_from_slice(&(name.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.date.0.to_be_bytes());
        out.extend_from_slice(&self.date.1.to_be_bytes());
        out.extend_from_slice(&self.clock.to_be_bytes());
        // The old field holds what fits; readers of today take the wide one.
        let narrow = u32::try_from(self.vm_state).unwrap_or(0);
        out.extend_from_slice(&narrow.to_be_bytes());
        out.extend_from_slice(&(16 + self.extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.vm_state.to_be_bytes());
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(id);
        out.extend_from_slice(name);
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// Reads the list of snapshots, and how many bytes of the file it takes.
pub(super) async fn read_list(image: &Image, port: &Port) -> Result<(Vec<Snapshot>, u64)> {
    let header = image.header();
    if header.snapshots == 0 {
        return Ok((Vec::new(), 0));
    }
    let offset = header.snapshots_offset;
    let there = image.file().end().saturating_sub(offset);
    let mut len = FIRST_READ;
    loop {
        let buffer = Buffer::new(len.min(there) as usize);
        if buffer.bytes().is_empty() {
            return Err(image.corrupt("the snapshot table is beyond the file's end"));
        }
        port.read(image.file(), offset, buffer.span()).await?;
        let mut list = Vec::new();
        let mut at = 0;
        while list.len() < header.snapshots as usize {
            let rest = buffer.bytes().get(at..).unwrap_or_default();
            let Some((snapshot, n)) = Snapshot::parse(rest, header.size) else {
                break;
            };
            list.push(snapshot);
            at += n;
        }
        if list.len() == header.snapshots as usize {
            return Ok((list, at as u64));
        }
        if len >= there || len >= MAX_TABLE {
            return Err(image.corrupt(format!(
                "the snapshot table ends in snapshot {} of {}",
                list.len() + 1,
                header.snapshots
            )));
        }
        len = (len * 8).min(MAX_TABLE);
    }
}

/// What the header's switch changes.
struct Switch {
    /// The snapshot table: how many, and its offset.
    table: (u32, u64),
    /// The active L1 table: its offset and entries.
    l1: (u64, u32),
    /// The guest disk's size.
    size: u64,
}

impl Image {
    /// The internal snapshots, in the order in which they were made.
    pub async fn snapshots(&self, port: &Port) -> Result<Vec<Snapshot>> {
        Ok(read_list(self, port).await?.0)
    }

    /// Makes an internal snapshot of the disk as it is. `date` is in seconds and nanoseconds since
    /// 1970. Nobody else uses the image meanwhile.
    pub async fn snapshot_create(
        &self,
        port: &Port,
        name: &str,
        date: (u32, u32),
    ) -> Result<Snapshot> {
        let (mut list, old_bytes) = self.prepare(port).await?;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(self.invalid(format!(
                "a snapshot's name has 1 to {MAX_NAME} bytes, and this one has {}",
                name.len()
            )));
        }
        if list.iter().any(|s| s.name == name || s.id == name) {
            return Err(self.invalid(format!(
                "there is a snapshot \u{201c}{}\u{201d} already: delete it first, or take another name",
                name.escape_debug()
            )));
        }
        if list.len() >= MAX_SNAPSHOTS {
            return Err(self.invalid(format!("it has {MAX_SNAPSHOTS} snapshots, the most")));
        }
        let l1: Vec<u64> = self.state().l1.iter().map(|e| e & !COPIED).collect();
        let tree = self.count_tree(port, &l1).await?;
        self.check_room(port, &tree).await?;
        let header = self.header();
        let id = list.iter().filter_map(|s| s.id.parse::<u64>().ok()).max();
        let mut snapshot = Snapshot {
            id: id.unwrap_or(0).saturating_add(1).to_string(),
            name: name.to_owned(),
            l1_offset: 0,
            l1_entries: l1.len() as u32,
            date,
            clock: 0,
            vm_state: 0,
            size: header.size,
            extra: Vec::new(),
        };
        let work = async {
            self.mark_dirty(port).await?;
            self.change_refcounts(port, &tree, true).await?;
            self.set_copied(port).await?;
            snapshot.l1_offset = self.write_entries(port, &l1).await?;
            list.push(snapshot.clone());
            let table = self.write_list(port, &list).await?;
            self.switch(
                port,
                Switch {
                    table,
                    l1: (header.l1_offset, header.l1_entries),
                    size: header.size,
                },
            )
            .await?;
            self.drop_range(port, header.snapshots_offset, old_bytes)
                .await
        };
        let result = work.await;
        self.settle(port, result).await?;
        Ok(snapshot)
    }

    /// Makes the disk what it was when a snapshot was made, also its size. What was written since is
    /// gone. The snapshot stays. Nobody else uses the image meanwhile.
    pub async fn snapshot_apply(&self, port: &Port, name_or_id: &str) -> Result<()> {
        let (list, _) = self.prepare(port).await?;
        let snapshot = &list[self.find(&list, name_or_id)?];
        let g = self.geometry();
        let mut l1 = self.snapshot_l1(port, snapshot).await?;
        let needed = g.l1_entries(snapshot.size);
        if snapshot.size > i64::MAX as u64 || needed * 8 > MAX_L1 {
            return Err(self.corrupt(format!(
                "snapshot {}'s disk size is {} bytes",
                snapshot.id, snapshot.size
            )));
        }
        l1.resize(l1.len().max(needed as usize), 0);
        let tree = self.count_tree(port, &l1).await?;
        self.check_room(port, &tree).await?;
        let active = self.state().l1.clone();
        let old_tree = self.count_tree(port, &active).await?;
        // Every bitmap lies about the disk that appears: see `bitmaps_rest`.
        let trackers = self.bitmaps_rest(port).await?;
        let header = self.header();
        let work = async {
            self.mark_dirty(port).await?;
            self.change_refcounts(port, &tree, true).await?;
            let offset = self.write_entries(port, &l1).await?;
            self.switch(
                port,
                Switch {
                    table: (header.snapshots, header.snapshots_offset),
                    l1: (offset, l1.len() as u32),
                    size: snapshot.size,
                },
            )
            .await?;
            self.state().l1 = l1.clone();
            self.set_size(snapshot.size);
            self.change_refcounts(port, &old_tree, false).await?;
            self.drop_range(port, header.l1_offset, active.len() as u64 * 8)
                .await?;
            self.set_copied(port).await
        };
        let result = work.await;
        let settled = self.settle(port, result).await;
        let woken = self.bitmaps_wake(port, trackers, true).await;
        settled.and(woken)
    }

    /// Deletes a snapshot. Nobody else uses the image meanwhile.
    pub async fn snapshot_delete(&self, port: &Port, name_or_id: &str) -> Result<()> {
        let (mut list, old_bytes) = self.prepare(port).await?;
        // What is to go is named; only who names none may mean a number.
        let named = list.iter().position(|s| s.name == name_or_id);
        let index = match named {
            Some(index) => index,
            None => self.find(&list, name_or_id)?,
        };
        let snapshot = list.remove(index);
        let l1 = self.snapshot_l1(port, &snapshot).await?;
        let tree = self.count_tree(port, &l1).await?;
        let header = self.header();
        let work = async {
            self.mark_dirty(port).await?;
            let table = self.write_list(port, &list).await?;
            self.switch(
                port,
                Switch {
                    table,
                    l1: (header.l1_offset, header.l1_entries),
                    size: header.size,
                },
            )
            .await?;
            self.drop_range(port, header.snapshots_offset, old_bytes)
                .await?;
            self.change_refcounts(port, &tree, false).await?;
            self.drop_range(port, snapshot.l1_offset, l1.len() as u64 * 8)
                .await?;
            self.set_copied(port).await
        };
        let result = work.await;
        self.settle(port, result).await
    }

    /// Brings everything to the file and reads the list.
    async fn prepare(&self, port: &Port) -> Result<(Vec<Snapshot>, u64)> {
        if self.file().readonly() {
            return Err(Error::ReadOnly {
                path: self.path().to_owned(),
            });
        }
        if self.external() {
            return Err(Error::Unsupported {
                path: self.path().to_owned(),
                what: "its data is in an external file, which internal snapshots cannot keep"
                    .into(),
            });
        }
        self.close(port).await?;
        read_list(self, port).await
    }

    /// The snapshot of this number, or else of this name.
    fn find(&self, list: &[Snapshot], name_or_id: &str) -> Result<usize> {
        list.iter()
            .position(|s| s.id == name_or_id)
            .or_else(|| list.iter().position(|s| s.name == name_or_id))
            .ok_or_else(|| {
                self.invalid(format!(
                    "there is no snapshot \u{201c}{}\u{201d}",
                    name_or_id.escape_debug()
                ))
            })
    }

    async fn snapshot_l1(&self, port: &Port, snapshot: &Snapshot) -> Result<Vec<u64>> {
        let bytes = u64::from(snapshot.l1_entries) * 8;
        let aligned = snapshot.l1_offset.is_multiple_of(self.geometry().cluster());
        if !aligned || bytes > MAX_L1 {
            return Err(self.corrupt(format!(
                "snapshot {}'s L1 table has {} entries at {:#x}",
                snapshot.id, snapshot.l1_entries, snapshot.l1_offset
            )));
        }
        let mut l1 = read_table(port, self.file(), snapshot.l1_offset, bytes).await?;
        l1.iter_mut().for_each(|e| *e &= !COPIED);
        Ok(l1)
    }

    /// From here to [`settle`](Self::settle), a power cut leads to a rebuild of the refcounts.
    async fn mark_dirty(&self, port: &Port) -> Result<()> {
        if self.header().version < 3 {
            return Ok(());
        }
        self.change_header(port, |h| h.incompatible |= incompatible::DIRTY)
            .await
    }

    /// Leaves the image clean: also one whose change failed half-way.
    async fn settle(&self, port: &Port, result: Result<()>) -> Result<()> {
        {
            let mut state = self.state();
            state.l2.clear();
            state.packed_end = 0;
        }
        self.forget_unpacked();
        match result {
            Ok(()) => self.close(port).await,
            Err(e) => {
                // What cannot be mended now is mended at the next open.
                if let Err(again) = super::rebuild::rebuild(self, port).await {
                    log::warn!("the refcounts cannot be rebuilt now: {again}");
                }
                Err(e)
            }
        }
    }

    async fn write_entries(&self, port: &Port, table: &[u64]) -> Result<u64> {
        let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_be_bytes()).collect();
        self.write_new(port, &bytes).await
    }

    async fn write_list(&self, port: &Port, list: &[Snapshot]) -> Result<(u32, u64)> {
        let mut bytes = Vec::new();
        list.iter().for_each(|s| s.store(&mut bytes));
        if bytes.len() as u64 > MAX_TABLE {
            return Err(self.invalid("its snapshot table is full"));
        }
        Ok((list.len() as u32, self.write_new(port, &bytes).await?))
    }

    /// Makes the header name other tables, when these are durable.
    async fn switch(&self, port: &Port, to: Switch) -> Result<()> {
        self.commit(port, true, true).await?;
        self.change_header(port, |header| {
            (header.snapshots, header.snapshots_offset) = to.table;
            (header.l1_offset, header.l1_entries) = to.l1;
            header.size = to.size;
        })
        .await
    }
}
