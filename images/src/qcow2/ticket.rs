//! A first write without a task: where nothing has to be read, copied or waited for, a place is
//! taken at once, and the entry changes when the caller has written there.

use super::Image;
use super::state::{Held, Plan, Space, State};

/// A write under way to a place that no entry leads to yet. It must be given back with
/// [`Image::end_write`].
#[derive(Debug)]
pub struct Ticket {
    offset: u64,
    plan: Plan,
    held: Held,
    slice: u64,
    side: u8,
}

impl Image {
    /// Takes a place for the write of `len` bytes at `offset`, whole units within one table's slice.
    /// Where in the data file that is; none if it takes a task. Nothing has changed then.
    pub fn begin_write(&self, offset: u64, len: u64) -> Option<(u64, Ticket)> {
        let g = self.geometry();
        let unit = g.unit();
        if !offset.is_multiple_of(unit)
            || !len.is_multiple_of(unit)
            || len == 0
            || offset / g.slice_coverage() != (offset + len - 1) / g.slice_coverage()
        {
            return None;
        }
        let mut state = self.state();
        let (plan, held) = state.take_place(offset, len)?;
        let slice = offset / g.slice_coverage();
        state.l2.pin(slice);
        let side = self.enter_locked(&state);
        let host = plan.host + offset % g.cluster();
        let ticket = Ticket {
            offset,
            plan,
            held,
            slice,
            side,
        };
        Some((host, ticket))
    }

    /// The write of a ticket has ended, well or not: the entry leads there, or the place is given
    /// back.
    pub fn end_write(&self, ticket: Ticket, written: bool) {
        let Ticket {
            offset,
            plan,
            held,
            slice,
            side,
        } = ticket;
        {
            let mut state = self.state();
            if written {
                // The slice was pinned, so this lacks nothing.
                let done = state.carry_out(offset, &plan);
                debug_assert!(done.is_ok());
            } else if !self.external() {
                let first = plan.host >> self.geometry().cluster_bits;
                for cluster in first..first + plan.new {
                    // If the refcounts are not in memory now, the cluster is leaked, which
                    // `check -r leaks` mends.
                    let _ = state.set_refcount(cluster, 0);
                }
            }
            state.l2.unpin(slice);
            state.let_go(held);
        }
        self.leave(side);
    }
}

impl State {
    /// Plans a write that copies nothing, and locks its clusters. Changes nothing if there is none.
    fn take_place(&mut self, offset: u64, len: u64) -> Option<(Plan, Held)> {
        let g = self.geometry;
        let table = (offset / g.l2_coverage()) as usize;
        let ours = self.l1.get(table)? & super::entry::COPIED != 0;
        if self.unguarded || !ours {
            return None;
        }
        let held = |exclusive| Held {
            space: Space::Cluster,
            first: offset >> g.cluster_bits,
            last: (offset + len - 1) >> g.cluster_bits,
            exclusive,
        };
        // Subclusters of a cluster that is ours may be written side by side.
        if g.extended
            && !self.blocked(held(false))
            && let Some(plan) = self.plan(offset, len, true).ok()?
        {
            return (plan.len == len).then(|| (plan, self.hold(held(false))));
        }
        if self.blocked(held(true)) || !self.takes_one_run(offset, len) {
            return None;
        }
        let plan = self.plan(offset, len, false).ok()??;
        if plan.len < len || plan.head != 0 || plan.tail != 0 || plan.whole {
            // It was looked at before; should it be otherwise all the same, nothing is kept.
            for i in 0..if self.external { 0 } else { plan.new } {
                let _ = self.set_refcount((plan.host >> g.cluster_bits) + i, 0);
            }
            return None;
        }
        Some((plan, self.hold(held(true))))
    }

    /// Whether all clusters of a range have nothing that would have to be moved, so that one new run
    /// can take them.
    fn takes_one_run(&mut self, offset: u64, len: u64) -> bool {
        let g = self.geometry;
        let mut at = offset & !(g.cluster() - 1);
        while at < offset + len {
            match self.entry(at) {
                Ok(Some(entry)) if !entry.compressed() && entry.host(self.external).is_none() => {}
                _ => return false,
            }
            at += g.cluster();
        }
        true
    }

    fn hold(&mut self, held: Held) -> Held {
        self.held.push(held);
        held
    }
}
