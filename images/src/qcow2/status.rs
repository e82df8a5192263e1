//! What an image says of a stretch of the guest's disk, for tools that show it.

use super::Image;
use super::entry::Place;
use crate::Result;
use crate::io::Port;

/// What one layer says of a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// What it is.
    pub place: Place,
    /// The host offset that is set aside for it, also where it is a hole or reads as zeroes.
    pub host: Option<u64>,
    /// For how many bytes that goes on.
    pub len: u64,
}

impl Image {
    /// What the image says of the bytes from `offset`, and for how many of `len` that goes on.
    /// Unlike [`map`](Self::map) this tells clusters that are set aside from those that are not.
    pub async fn status(&self, port: &Port, offset: u64, len: u64) -> Result<Status> {
        let g = self.geometry();
        let external = self.external();
        let end = offset + len;
        // Within one slice: the next call goes on.
        let stop = end.min((offset / g.slice_coverage() + 1) * g.slice_coverage());
        self.with(port, |s| {
            let mut found: Option<Status> = None;
            let mut at = offset;
            while at < stop {
                let Some(entry) = s.entry(at)? else {
                    let covered = (at / g.l2_coverage() + 1) * g.l2_coverage();
                    return Ok(Status {
                        place: Place::Hole,
                        host: None,
                        len: covered.min(end) - offset,
                    });
                };
                let inside = at % g.unit();
                let sub = if g.extended {
                    (at % g.cluster() / g.unit()) as u32
                } else {
                    0
                };
                let host = entry.host(external).map(|h| h + at % g.cluster());
                let (place, len) = match entry.place(&g, external, sub) {
                    place @ Place::Compressed(..) => (place, g.cluster() - at % g.cluster()),
                    Place::Data(host) => (Place::Data(host + inside), g.unit() - inside),
                    place => (place, g.unit() - inside),
                };
                let len = len.min(stop - at);
                match &mut found {
                    None => found = Some(Status { place, host, len }),
                    Some(found) => {
                        let kind = match (found.place, place) {
                            (Place::Compressed(..), _) | (_, Place::Compressed(..)) => false,
                            (Place::Data(_), Place::Data(_)) => true,
                            (a, b) => a == b,
                        };
                        if !kind || found.host.map(|h| h + found.len) != host {
                            break;
                        }
                        found.len += len;
                    }
                }
                at += len;
            }
            Ok(found.unwrap_or(Status {
                place: Place::Hole,
                host: None,
                len,
            }))
        })
        .await
    }

    /// Whether the file has markedly fewer blocks than its length says: clusters were set aside and
    /// never written, so what the file system calls a hole reads as zeroes.
    pub fn sparse(&self) -> bool {
        let bits = self.geometry().cluster_bits;
        let clusters = self.geometry().clusters(self.file().end());
        let blocks = self.file().allocated().unwrap_or(u64::MAX) >> bits;
        !self.external()
            && clusters >= (blocks.saturating_mul(10) / 9).max(blocks.saturating_add(2))
    }
}
