//! What the view is at: which lines are shown in which order, which one is chosen, and what keys do.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::rates::{Rates, Row};

/// What lines are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Column {
    /// Namespace, kind and name
    Name,
    /// CPU time
    Cpu,
    /// Memory
    Memory,
    /// Exits
    Exits,
    /// Disks
    Disk,
    /// Networks
    Network,
}

/// All columns, as they stand.
pub const COLUMNS: [Column; 6] = [
    Column::Name,
    Column::Cpu,
    Column::Memory,
    Column::Exits,
    Column::Disk,
    Column::Network,
];

/// The state of the view.
#[derive(Debug, Clone)]
pub struct View {
    /// What there is.
    pub rates: Rates,
    /// What lines are sorted by.
    pub sort: Column,
    /// The other way round.
    pub reverse: bool,
    /// What lines must have in them.
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// The uid of the chosen line.
    pub chosen: Option<String>,
    /// The chosen one is shown alone.
    pub detail: bool,
    /// What happened to it, newest first.
    pub events: Vec<String>,
    /// Why nothing new comes, if nothing does.
    pub trouble: Option<String>,
}

/// What comes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Another picture.
    Draw,
    /// Events of the chosen one, too.
    Look,
    /// The end.
    Quit,
}

impl View {
    /// Nothing yet.
    pub fn new(sort: Column) -> View {
        View {
            rates: Rates::default(),
            sort,
            reverse: false,
            filter: String::new(),
            typing: false,
            chosen: None,
            detail: false,
            events: Vec::new(),
            trouble: None,
        }
    }

    /// The lines that are shown, in order.
    pub fn rows(&self) -> Vec<&Row> {
        let wanted = self.filter.to_lowercase();
        let all = self.rates.workloads.iter();
        let mut rows: Vec<&Row> = all
            .filter(|row| {
                let text = format!("{}/{}/{} {}", row.namespace, row.kind, row.name, row.phase);
                text.to_lowercase().contains(&wanted)
            })
            .collect();
        let name = |row: &Row| (row.namespace.clone(), row.kind.clone(), row.name.clone());
        let number = |row: &Row| match self.sort {
            Column::Name => 0.0,
            Column::Cpu => row.cpu_percent,
            Column::Memory => row.memory_bytes as f64,
            Column::Exits => row.exits,
            Column::Disk => row.disk,
            Column::Network => row.network,
        };
        // The largest come first, and equal ones by name.
        rows.sort_by(|a, b| {
            let by_number = number(b).total_cmp(&number(a));
            by_number.then_with(|| name(a).cmp(&name(b)))
        });
        if self.reverse {
            rows.reverse();
        }
        rows
    }

    /// Where the chosen line is among those that are shown.
    pub fn at(&self) -> usize {
        let rows = self.rows();
        let found = rows
            .iter()
            .position(|row| Some(&row.uid) == self.chosen.as_ref());
        found.unwrap_or(0)
    }

    /// The chosen workload, if there is any.
    pub fn row(&self) -> Option<&Row> {
        self.rows().get(self.at()).copied()
    }

    fn choose(&mut self, at: usize) {
        let rows = self.rows();
        let at = at.min(rows.len().saturating_sub(1));
        self.chosen = rows.get(at).map(|row| row.uid.clone());
    }

    /// Does what a key asks for.
    pub fn event(&mut self, event: &Event) -> After {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            _ => After::Draw,
        }
    }

    fn key(&mut self, key: KeyEvent) -> After {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return After::Quit;
        }
        if self.typing {
            match key.code {
                KeyCode::Char(c) => self.filter.push(c),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => {
                    self.typing = false;
                    self.filter.clear();
                }
                _ => {}
            }
            return After::Draw;
        }
        match key.code {
            KeyCode::Char('q') => return After::Quit,
            KeyCode::Esc if self.detail => self.detail = false,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Char('s') | KeyCode::Right => self.sort_by(1),
            KeyCode::Left => self.sort_by(COLUMNS.len() - 1),
            KeyCode::Up | KeyCode::Char('k') => self.choose(self.at().saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.choose(self.at() + 1),
            KeyCode::PageUp => self.choose(self.at().saturating_sub(10)),
            KeyCode::PageDown => self.choose(self.at() + 10),
            KeyCode::Home => self.choose(0),
            KeyCode::End => self.choose(usize::MAX),
            KeyCode::Enter => {
                self.choose(self.at());
                self.detail = self.chosen.is_some();
                self.events.clear();
                return After::Look;
            }
            _ => {}
        }
        After::Draw
    }

    fn sort_by(&mut self, step: usize) {
        let at = COLUMNS.iter().position(|column| *column == self.sort);
        self.sort = COLUMNS[(at.unwrap_or(0) + step) % COLUMNS.len()];
    }
}
