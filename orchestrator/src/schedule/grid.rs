//! Hosts by what is free on them: a grid of classes of CPU and memory, walked from the tightest on.
//!
//! Classes are half octaves, so that sixty-four of them reach from a sixteenth of a CPU and from
//! 16 MiB to more than any host has. A host in a higher class than the demand's has enough for certain; one in the same
//! class may not.

use super::demand::MICRO;
use super::hostset::{HostIndex, HostSet};
use super::ledger::Amounts;

const CLASSES: usize = 64;

/// Hosts by free CPU and memory.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    /// Row by row of CPU; a set that was never used takes no memory.
    cells: Vec<HostSet>,
    /// Of each row the columns that are not empty.
    columns: [u64; CLASSES],
    /// The rows that are not empty.
    rows: u64,
}

/// A host's place in the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    row: usize,
    column: usize,
}

impl Cell {
    /// The place of these amounts.
    pub fn of(cpu: u64, memory: u64) -> Cell {
        Cell {
            row: class(cpu / (MICRO / 16)),
            column: class(memory >> 24),
        }
    }

    /// The place of a host with so much free.
    pub fn free(free: &Amounts) -> Cell {
        Cell::of(free.cpu, free.memory)
    }

    fn at(self) -> usize {
        self.row * CLASSES + self.column
    }
}

/// The half octave of a number: monotone, from 0.
fn class(number: u64) -> usize {
    let number = number + 1;
    let octave = number.ilog2();
    let half = match octave {
        0 => 0,
        _ => number >> (octave - 1) & 1,
    };
    (2 * octave as usize + half as usize).min(CLASSES - 1)
}

impl Grid {
    /// An empty one.
    pub fn new() -> Self {
        Grid {
            cells: vec![HostSet::default(); CLASSES * CLASSES],
            columns: [0; CLASSES],
            rows: 0,
        }
    }

    /// Adds a host.
    pub fn insert(&mut self, cell: Cell, host: HostIndex) {
        self.cells[cell.at()].insert(host);
        self.columns[cell.row] |= 1 << cell.column;
        self.rows |= 1 << cell.row;
    }

    /// Takes a host out.
    pub fn remove(&mut self, cell: Cell, host: HostIndex) {
        let set = &mut self.cells[cell.at()];
        set.remove(host);
        if set.is_empty() {
            self.columns[cell.row] &= !(1 << cell.column);
            if self.columns[cell.row] == 0 {
                self.rows &= !(1 << cell.row);
            }
        }
    }

    /// Hosts that may have as much free as `least` says: all that have, those with little left first.
    pub fn from(&self, least: Cell) -> impl Iterator<Item = HostIndex> {
        let first = least.row + least.column;
        (first..=2 * (CLASSES - 1)).flat_map(move |diagonal| {
            let mut rows = self.rows >> least.row << least.row;
            std::iter::from_fn(move || {
                while rows != 0 {
                    let row = rows.trailing_zeros() as usize;
                    if row + least.column > diagonal {
                        return None;
                    }
                    rows &= rows - 1;
                    let column = diagonal - row;
                    if column < CLASSES && self.columns[row] >> column & 1 == 1 {
                        return Some(Cell { row, column });
                    }
                }
                None
            })
            .flat_map(|cell| self.cells[cell.at()].iter())
        })
    }
}

#[cfg(test)]
#[path = "grid_test.rs"]
mod tests;
