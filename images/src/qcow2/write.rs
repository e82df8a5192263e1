//! Writing, zeroing and discarding.

use super::Image;
use super::header::autoclear;
use super::state::{Plan, Space};
use crate::Result;
use crate::chain::Layer;
use crate::io::{Buffer, Port, Span};

impl Image {
    /// What has to happen before the first write.
    pub(super) async fn begin_writing(&self, port: &Port) -> Result<()> {
        let (dirty, unknown) = {
            let state = self.state();
            let known = autoclear::BITMAPS | autoclear::RAW_DATA;
            let dirty = state.header.needs(super::header::incompatible::DIRTY);
            (dirty, state.header.autoclear & !known != 0)
        };
        if dirty {
            log::warn!(
                "{} was not closed: its refcounts are rebuilt",
                self.path().display()
            );
            super::rebuild::rebuild(self, port).await?;
        }
        self.check_own_refcounts(port).await?;
        if unknown {
            self.change_header(port, |h| {
                h.autoclear &= autoclear::BITMAPS | autoclear::RAW_DATA;
            })
            .await?;
        }
        Ok(())
    }

    /// Writes `data` at `offset`. `layers` is this image and what is below it: a cluster that is
    /// written in part takes the rest of its content from there.
    pub(crate) async fn write(
        &self,
        port: &Port,
        offset: u64,
        data: &Span,
        layers: &[Layer],
    ) -> Result<()> {
        self.guard_bitmaps(port).await?;
        let _guard = self.guard();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done;
            let coverage = self.geometry().slice_coverage();
            let len = (data.len() - done).min(coverage - at % coverage);
            let part = data.slice(done, len);
            self.write_in_slice(port, at, &part, layers, true).await?;
            done += len;
        }
        Ok(())
    }

    /// Writes `data` where this layer and those below have no data of this image's own yet; leaves
    /// alone what was written meanwhile. For copying a lower layer up while the guest runs.
    pub(crate) async fn populate(
        &self,
        port: &Port,
        offset: u64,
        data: &Span,
        layers: &[Layer],
    ) -> Result<()> {
        self.guard_bitmaps(port).await?;
        let _guard = self.guard();
        let coverage = self.geometry().slice_coverage();
        debug_assert!(offset / coverage == (offset + data.len() - 1) / coverage);
        self.write_in_slice(port, offset, data, layers, false).await
    }

    async fn write_in_slice(
        &self,
        port: &Port,
        offset: u64,
        data: &Span,
        layers: &[Layer],
        overwrite: bool,
    ) -> Result<()> {
        let g = self.geometry();
        let len = data.len();
        let bits = g.cluster_bits;
        let (first, last) = (offset >> bits, (offset + len - 1) >> bits);
        let whole_units = offset.is_multiple_of(g.unit()) && len.is_multiple_of(g.unit());
        let shareable = overwrite && g.extended && whole_units;
        let mut lock = self.hold(Space::Cluster, first, last, !shareable).await;
        let mut shared = shareable;
        self.own_table(port, (offset / g.l2_coverage()) as usize)
            .await?;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            if !overwrite {
                let run = self.map(port, at, len - done).await?;
                if run.place != super::Place::Hole {
                    done += run.len;
                    continue;
                }
                let plan = self.with(port, |s| s.plan(at, run.len, false)).await?;
                let Some(plan) = plan else { continue };
                self.carry_out(port, at, &data.slice(done, plan.len), &plan, layers)
                    .await?;
                done += plan.len;
                continue;
            }
            match self.with(port, |s| s.plan(at, len - done, shared)).await? {
                Some(plan) => {
                    self.carry_out(port, at, &data.slice(done, plan.len), &plan, layers)
                        .await?;
                    done += plan.len;
                }
                None => {
                    drop(lock);
                    lock = self.hold(Space::Cluster, first, last, true).await;
                    shared = false;
                }
            }
        }
        drop(lock);
        Ok(())
    }

    /// Carries out a plan: copies what the write leaves of its units, writes, and then lets the
    /// entries say so.
    async fn carry_out(
        &self,
        port: &Port,
        at: u64,
        data: &Span,
        plan: &Plan,
        layers: &[Layer],
    ) -> Result<()> {
        let written = self.write_planned(port, at, data, plan, layers).await;
        if let Err(e) = written {
            if plan.new > 0 && !self.external() {
                let first = plan.host >> self.geometry().cluster_bits;
                self.give_back(port, first, plan.new).await;
            }
            return Err(e);
        }
        if plan.update {
            self.with(port, |s| s.carry_out(at, plan)).await?;
        }
        Ok(())
    }

    async fn write_planned(
        &self,
        port: &Port,
        at: u64,
        data: &Span,
        plan: &Plan,
        layers: &[Layer],
    ) -> Result<()> {
        let start = at & !(self.geometry().cluster() - 1);
        let mut host = plan.host + (at - start);
        let mut span = data.clone();
        if plan.head > 0 {
            let head = Buffer::new(plan.head as usize);
            let some = crate::chain::read(port, layers, at - plan.head, &head.span()).await?;
            if some || !plan.fresh {
                span = head.span().then(span);
                host -= plan.head;
            }
        }
        // A file of its own is as long as the disk, and reads as zeroes behind that.
        let tail = match self.external() {
            true => plan.tail.min(self.size().saturating_sub(at + data.len())),
            false => plan.tail,
        };
        if tail > 0 {
            let tail = Buffer::new(tail as usize);
            let some = crate::chain::read(port, layers, at + data.len(), &tail.span()).await?;
            if some || !plan.fresh {
                span = span.then(tail.span());
            }
        }
        port.write(self.data_file(), host, span).await
    }

    /// Makes a range read as zeroes. With `unmap` its space is given back.
    pub(crate) async fn zero(
        &self,
        port: &Port,
        offset: u64,
        len: u64,
        unmap: bool,
        layers: &[Layer],
    ) -> Result<()> {
        let g = self.geometry();
        let (version, raw) = {
            let state = self.state();
            let raw = state.header.autoclear & autoclear::RAW_DATA != 0;
            (state.header.version, self.external() && raw)
        };
        // Version 2 has no way to say zero but to have nothing, and no layer below.
        let expressible = !raw && (version >= 3 || layers.len() <= 1);
        let unit = g.unit();
        let end = offset + len;
        let from = offset.next_multiple_of(unit);
        // A disk may end within a unit.
        let to = if end >= self.size() {
            end
        } else {
            end & !(unit - 1)
        };
        if !expressible || from >= to {
            return self.write_zeroes(port, offset, len, layers).await;
        }
        if offset < from {
            self.write_zeroes(port, offset, from - offset, layers)
                .await?;
        }
        let (zero, unmap) = (version >= 3, unmap || version < 3);
        let done = self
            .clear(port, from, to - from, zero, unmap, layers)
            .await?;
        if done < end {
            self.write_zeroes(port, done, end - done, layers).await?;
        }
        Ok(())
    }

    /// Gives a range's space back, as far as it consists of whole units. It reads as zeroes then.
    pub(crate) async fn discard(
        &self,
        port: &Port,
        offset: u64,
        len: u64,
        layers: &[Layer],
    ) -> Result<()> {
        let unit = self.geometry().unit();
        let end = offset + len;
        let from = offset.next_multiple_of(unit);
        let to = if end >= self.size() {
            end
        } else {
            end & !(unit - 1)
        };
        let (version, raw) = {
            let state = self.state();
            (
                state.header.version,
                state.header.autoclear & autoclear::RAW_DATA != 0,
            )
        };
        let below = layers.len() > 1;
        if from >= to || raw && self.external() || version < 3 && below {
            return Ok(());
        }
        self.clear(port, from, to - from, below, true, layers)
            .await
            .map(drop)
    }

    /// Clears from `offset`, a unit's start. Within the last unit that succeeds only if the disk ends
    /// there, which it may cease to do at any time; where it was not done begins what comes back.
    async fn clear(
        &self,
        port: &Port,
        offset: u64,
        len: u64,
        zero: bool,
        unmap: bool,
        layers: &[Layer],
    ) -> Result<u64> {
        let g = self.geometry();
        let unit = g.unit();
        self.guard_bitmaps(port).await?;
        let _guard = self.guard();
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let coverage = g.slice_coverage();
            let stop = end.min((at / coverage + 1) * coverage);
            let index = (at / g.l2_coverage()) as usize;
            let table = self.state().l2_table(index) != 0;
            // Without a table all is a hole. That is zeroes unless something is below.
            if !table && layers.len() <= 1 {
                at = end.min((at / g.l2_coverage() + 1) * g.l2_coverage());
                continue;
            }
            let (first, last) = (at >> g.cluster_bits, (stop - 1) >> g.cluster_bits);
            let lock = self.hold(Space::Cluster, first, last, true).await;
            self.own_table(port, index).await?;
            // A part of a compressed cluster cannot be cleared.
            for edge in [at, stop & !(unit - 1), stop.next_multiple_of(unit)] {
                let start = edge & !(g.cluster() - 1);
                if edge == start {
                    continue;
                }
                let entry = self
                    .with(port, |s| s.entry(start))
                    .await?
                    .unwrap_or_default();
                if entry.compressed() {
                    self.unpack_in_place(port, start, layers).await?;
                }
            }
            // The size only changes between steps: who writes behind its old end comes later.
            let done = self
                .with(port, |s| {
                    let done = if stop.is_multiple_of(unit) || self.size() <= stop {
                        stop
                    } else {
                        stop & !(unit - 1)
                    };
                    if done > at {
                        s.clear(at, done.next_multiple_of(unit) - at, zero, unmap)?;
                    }
                    Ok(done)
                })
                .await?;
            drop(lock);
            if done < stop {
                return Ok(done);
            }
            at = stop;
        }
        Ok(end)
    }

    /// Replaces a compressed cluster by a plain one. The caller holds the cluster.
    async fn unpack_in_place(&self, port: &Port, start: u64, layers: &[Layer]) -> Result<()> {
        let buffer = Buffer::new(self.geometry().cluster() as usize);
        crate::chain::read(port, &layers[..1], start, &buffer.span()).await?;
        let plan = self
            .with(port, |s| s.plan(start, s.geometry.cluster(), false))
            .await?;
        match plan {
            Some(plan) => {
                self.carry_out(port, start, &buffer.span(), &plan, layers)
                    .await
            }
            None => Ok(()),
        }
    }

    pub(super) async fn write_zeroes(
        &self,
        port: &Port,
        offset: u64,
        len: u64,
        layers: &[Layer],
    ) -> Result<()> {
        const PIECE: u64 = 1 << 20;
        let zeroes = Buffer::new(len.min(PIECE) as usize);
        let mut done = 0;
        while done < len {
            let part = zeroes.part(0, (len - done).min(PIECE) as usize);
            let n = part.len();
            self.write(port, offset + done, &part, layers).await?;
            done += n;
        }
        Ok(())
    }

    /// Writes one whole cluster compressed, where nothing was written before. False, and nothing
    /// done, if it does not become smaller. For `convert`.
    pub async fn write_packed(&self, port: &Port, offset: u64, packed: &[u8]) -> Result<bool> {
        self.guard_bitmaps(port).await?;
        let g = self.geometry();
        let bits = g.cluster_bits;
        let _lock = self
            .hold(Space::Cluster, offset >> bits, offset >> bits, true)
            .await;
        self.own_table(port, (offset / g.l2_coverage()) as usize)
            .await?;
        self.forget_unpacked();
        let Some((at, entry)) = self.allocate_packed(port, packed.len() as u64).await? else {
            return Ok(false);
        };
        port.write(self.file(), at, Buffer::from_slice(packed).span())
            .await?;
        self.with(port, |s| {
            if let Some(old) = s.entry(offset)?
                && let Some((first, count)) = old.references(&g, false)
            {
                s.freed.push(super::state::Freed { first, count });
            }
            s.set_entry(offset, entry)
        })
        .await?;
        Ok(true)
    }
}
