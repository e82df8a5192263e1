//! What arrives and when: a trace of Azure's packing schema, read from two files.
//!
//! The schema is that of "Azure Trace for Packing 2020": table `vm` (vmId, tenantId, vmTypeId, priority,
//! starttime, endtime) and table `vmType` (id, vmTypeId, machineId, core, memory, hdd, ssd, nic), where
//! sizes are fractions of a machine and times are days. It is distributed as one SQLite file; what is read
//! here are its tables as CSV with a header. The table of types may have one more column, `tier`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::schedule::Tier;

/// Rows of a file.
const ROWS: usize = 20_000_000;
/// Types, each of which every policy is asked about when it is measured.
const TYPES: usize = 10_000;
/// Bytes of a line.
const LINE: u64 = 4096;

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system refused.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{}, line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what should be there.
        what: String,
    },
    /// The tables do not go together.
    #[error("{0}")]
    Tables(String),
}

/// A size of workloads, as fractions of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Type {
    /// Its number in the files.
    pub id: u64,
    /// How it runs. Fractions of CPUs are those of real ones, whatever the tier.
    pub tier: Tier,
    /// Fractions.
    pub core: f64,
    pub memory: f64,
    pub hdd: f64,
    pub ssd: f64,
    pub nic: f64,
}

/// A workload that arrives.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Its number in the files.
    pub id: u64,
    /// Whose it is.
    pub tenant: u64,
    /// Its type, as an index.
    pub size: usize,
    /// It may be evicted.
    pub low: bool,
    /// When it comes, in days; before the beginning if less than 0.
    pub start: f64,
    /// When it goes, in days; none if it stays.
    pub end: Option<f64>,
}

/// What arrives and when.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// The sizes.
    pub types: Vec<Type>,
    /// By the time of arrival.
    pub arrivals: Vec<Arrival>,
    /// Rows whose type does not run on the machine.
    pub skipped: usize,
}

/// The machine whose fractions are read.
pub type Machine = Option<u64>;

impl Trace {
    /// Reads both tables. Without `machine`, the one that most types run on is taken, of several the one
    /// with the smallest number.
    pub fn read(vms: &Path, types: &Path, machine: Machine) -> Result<Trace, TraceError> {
        let (types, known) = read_types(types, machine)?;
        let by_id: HashMap<u64, usize> = types.iter().enumerate().map(|(i, t)| (t.id, i)).collect();
        let mut trace = Trace {
            types,
            ..Trace::default()
        };
        let names = [
            "vmId",
            "tenantId",
            "vmTypeId",
            "priority",
            "starttime",
            "endtime",
        ];
        Table::open(vms, names)?.rows(|row| {
            let kind = row.number(2)?;
            let Some(&size) = by_id.get(&kind) else {
                if !known.contains(&kind) {
                    return Err(format!("vmTypeId {kind} is not in the table of types: give the table that belongs to this one"));
                }
                trace.skipped += 1;
                return Ok(());
            };
            let start = row.day(4)?.ok_or("there is no starttime: give one in days")?;
            let end = row.day(5)?;
            if end.is_some_and(|end| end < start) {
                return Err("it ends before it starts: give an endtime after the starttime, or none".into());
            }
            trace.arrivals.push(Arrival {
                id: row.number(0)?,
                tenant: row.number(1)?,
                size,
                low: row.number(3)? != 0,
                start,
                end,
            });
            Ok(())
        })?;
        trace.sort();
        match trace.arrivals.is_empty() {
            true => Err(TraceError::Tables(format!(
                "no workload of {} runs on this machine: give another --machine",
                vms.display()
            ))),
            false => Ok(trace),
        }
    }

    /// Brings arrivals into their order.
    pub fn sort(&mut self) {
        let order = |a: &Arrival, b: &Arrival| a.start.total_cmp(&b.start).then(a.id.cmp(&b.id));
        self.arrivals.sort_by(order);
    }
}

/// The types that run on the machine, and all types that there are.
fn read_types(path: &Path, machine: Machine) -> Result<(Vec<Type>, BTreeSet<u64>), TraceError> {
    let names = [
        "vmTypeId",
        "machineId",
        "core",
        "memory",
        "hdd",
        "ssd",
        "nic",
    ];
    let mut by_machine: BTreeMap<u64, BTreeMap<u64, Type>> = BTreeMap::new();
    let mut known = BTreeSet::new();
    let table = Table::open(path, names)?;
    let tier = table.extra("tier");
    table.rows(|row| {
        let id = row.number(0)?;
        known.insert(id);
        if known.len() > TYPES {
            return Err(format!(
                "there are more than {TYPES} types: give a smaller table"
            ));
        }
        let tier = match tier.map(|column| row.text(column)) {
            None | Some("" | "burst") => Tier::Burst,
            Some("dedicated") => Tier::Dedicated,
            Some("dense") => Tier::Dense,
            Some(other) => {
                return Err(format!("tier {other:?} is none: dedicated, burst or dense"));
            }
        };
        let size = Type {
            id,
            tier,
            core: row.fraction(2)?,
            memory: row.fraction(3)?,
            hdd: row.fraction(4)?,
            ssd: row.fraction(5)?,
            nic: row.fraction(6)?,
        };
        by_machine
            .entry(row.number(1)?)
            .or_default()
            .insert(id, size);
        Ok(())
    })?;
    let chosen = match machine {
        Some(machine) => by_machine.remove_entry(&machine),
        // Of equals max_by_key gives the last.
        None => by_machine
            .into_iter()
            .rev()
            .max_by_key(|(_, types)| types.len()),
    };
    match chosen {
        Some((_, types)) => Ok((types.into_values().collect(), known)),
        None => Err(TraceError::Tables(match machine {
            Some(machine) => format!(
                "{} has no machineId {machine}: give one that it has",
                path.display()
            ),
            None => format!(
                "{} has no types: give a table with at least one",
                path.display()
            ),
        })),
    }
}

/// A file with a header and rows.
struct Table<'a> {
    path: &'a Path,
    file: BufReader<File>,
    header: Vec<String>,
    /// Where each wanted column is.
    columns: Vec<usize>,
}

/// A row, by the wanted columns.
struct Row<'a> {
    cells: Vec<&'a str>,
    columns: &'a [usize],
    header: &'a [String],
}

impl<'a> Table<'a> {
    fn open<const N: usize>(path: &'a Path, names: [&str; N]) -> Result<Self, TraceError> {
        let read = |source| TraceError::Read {
            path: path.into(),
            source,
        };
        let mut file = BufReader::new(File::open(path).map_err(read)?);
        let mut line = String::new();
        next_line(&mut file, &mut line).map_err(read)?;
        let header: Vec<String> = cells(&line).into_iter().map(str::to_owned).collect();
        let place = |name: &&str| {
            let found = header
                .iter()
                .position(|cell| cell.eq_ignore_ascii_case(name));
            found.ok_or_else(|| TraceError::Line {
                path: path.into(),
                line: 1,
                what: format!(
                    "there is no column {name}: the first line names {}",
                    names.join(", ")
                ),
            })
        };
        let columns = names.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Table {
            path,
            file,
            header,
            columns,
        })
    }

    /// Where a column is that need not be there.
    fn extra(&self, name: &str) -> Option<usize> {
        self.header
            .iter()
            .position(|cell| cell.eq_ignore_ascii_case(name))
    }

    fn rows(mut self, mut each: impl FnMut(&Row) -> Result<(), String>) -> Result<(), TraceError> {
        let mut line = String::new();
        for number in 2.. {
            let path = self.path;
            let wrong = |what| TraceError::Line {
                path: path.into(),
                line: number,
                what,
            };
            let read = |source| TraceError::Read {
                path: path.into(),
                source,
            };
            if !next_line(&mut self.file, &mut line).map_err(read)? {
                break;
            }
            if number > ROWS {
                return Err(wrong(format!(
                    "there are more than {ROWS} rows: give a shorter trace"
                )));
            }
            if line.trim().is_empty() {
                continue;
            }
            let cells = cells(&line);
            if cells.len() != self.header.len() {
                return Err(wrong(format!(
                    "it has {} cells and the first line has {}: give each column a cell",
                    cells.len(),
                    self.header.len()
                )));
            }
            let row = Row {
                cells,
                columns: &self.columns,
                header: &self.header,
            };
            each(&row).map_err(wrong)?;
        }
        Ok(())
    }
}

/// Reads a line; whether there was one.
fn next_line(file: &mut BufReader<File>, line: &mut String) -> Result<bool, std::io::Error> {
    line.clear();
    let read = file.by_ref().take(LINE).read_line(line)?;
    if read as u64 == LINE && !line.ends_with('\n') {
        let what = format!("a line is longer than {LINE} bytes: is it CSV?");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    Ok(read > 0)
}

fn cells(line: &str) -> Vec<&str> {
    let line = line.trim_start_matches('\u{feff}').trim_end();
    line.split(',')
        .map(|cell| cell.trim().trim_matches('"'))
        .collect()
}

impl Row<'_> {
    fn text(&self, column: usize) -> &str {
        self.cells[column]
    }

    fn wrong(&self, wanted: usize, should: &str) -> String {
        let column = self.columns[wanted];
        let cell: String = self.cells[column].chars().take(40).collect();
        format!("{} is {cell:?}: it must be {should}", self.header[column])
    }

    fn number(&self, wanted: usize) -> Result<u64, String> {
        let cell = self.cells[self.columns[wanted]];
        cell.parse()
            .map_err(|_| self.wrong(wanted, "a whole number"))
    }

    fn float(&self, wanted: usize, least: f64, most: f64, should: &str) -> Result<f64, String> {
        let number = self.cells[self.columns[wanted]].parse::<f64>().ok();
        let number = number.filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| self.wrong(wanted, should))
    }

    /// A fraction; nothing is 0.
    fn fraction(&self, wanted: usize) -> Result<f64, String> {
        match self.missing(wanted) {
            true => Ok(0.0),
            false => self.float(wanted, 0.0, 1.0, "a fraction from 0 to 1"),
        }
    }

    /// A time in days, if there is one.
    fn day(&self, wanted: usize) -> Result<Option<f64>, String> {
        match self.missing(wanted) {
            true => Ok(None),
            false => self
                .float(wanted, -1e6, 1e6, "a time in days, or empty")
                .map(Some),
        }
    }

    fn missing(&self, wanted: usize) -> bool {
        let cell = self.cells[self.columns[wanted]];
        cell.is_empty() || cell.eq_ignore_ascii_case("null") || cell.eq_ignore_ascii_case("none")
    }
}

#[cfg(test)]
#[path = "trace_test.rs"]
mod tests;
