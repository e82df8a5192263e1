//! The picture: the host, its workloads, and one of them by itself.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Gauge, Paragraph, Row as TableRow, Table, TableState};

use super::rates::{HostRow, Row};
use super::state::{COLUMNS, Column, View};
use crate::cli::bytes::show;
use crate::cli::output::on_a_line;

/// Kinds of exits in a line.
const KINDS: usize = 3;

/// Draws all of it.
pub fn draw(frame: &mut Frame, view: &View) {
    let height = if view.rates.host.is_some() { 3 } else { 0 };
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(height),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    if let Some(row) = &view.rates.host {
        host(frame, top, row);
    }
    match view.row().filter(|_| view.detail) {
        Some(row) => detail(frame, middle, row, &view.events),
        None => list(frame, middle, view),
    }
    frame.render_widget(keys(view), bottom);
}

fn part(of: [u64; 2]) -> f64 {
    match of[0] {
        0 => 0.0,
        all => (of[1] as f64 / all as f64).clamp(0.0, 1.0),
    }
}

fn host(frame: &mut Frame, area: Rect, host: &HostRow) {
    let [words, cpu, memory, disk] = Layout::horizontal([
        Constraint::Fill(4),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Fill(3),
    ])
    .areas(area);
    let load = host.load.map(|load| format!("{load:.2}")).join(" ");
    let text = format!("load {load}  agent {:.1} %", host.agent_percent);
    let title = format!(" {} ", on_a_line(&host.name));
    frame.render_widget(
        Paragraph::new(text).block(Block::bordered().title(title)),
        words,
    );
    for (area, name, ratio, label) in [
        (
            cpu,
            "CPU",
            (host.cpu_percent / 100.0).clamp(0.0, 1.0),
            format!("{:.0} % of {}", host.cpu_percent, host.cpus),
        ),
        (memory, "memory", part(host.memory), used(host.memory)),
        (disk, "disk", part(host.disk), used(host.disk)),
    ] {
        let color = match ratio {
            0.9.. => Color::Red,
            0.75.. => Color::Yellow,
            _ => Color::Green,
        };
        let gauge = Gauge::default()
            .block(Block::bordered().title(format!(" {name} ")))
            .gauge_style(color)
            .ratio(ratio)
            .label(label);
        frame.render_widget(gauge, area);
    }
}

fn used([all, used]: [u64; 2]) -> String {
    format!("{} of {}", show(used), show(all))
}

/// A number of things a second.
fn count(n: f64) -> String {
    match n {
        1_000_000.0.. => format!("{:.1}M", n / 1e6),
        10_000.0.. => format!("{:.0}k", n / 1e3),
        1_000.0.. => format!("{:.1}k", n / 1e3),
        _ => format!("{n:.0}"),
    }
}

fn speed(bytes: f64) -> String {
    match bytes < 1.0 {
        true => "-".to_owned(),
        false => format!("{}/s", show(bytes as u64)),
    }
}

/// The most frequent kinds of exits.
fn kinds(row: &Row) -> String {
    let mut all: Vec<(&String, &f64)> = row.exit_kinds.iter().filter(|(_, n)| **n >= 1.0).collect();
    all.sort_by(|a, b| b.1.total_cmp(a.1));
    let words = all.iter().take(KINDS);
    let words = words.map(|(kind, n)| format!("{kind} {}", count(**n)));
    words.collect::<Vec<_>>().join(" ")
}

fn color(row: &Row) -> Color {
    match (row.phase.as_str(), row.ready) {
        ("Running", true) => Color::Green,
        ("Failing" | "Failed", _) => Color::Red,
        ("Stopped" | "Succeeded", _) => Color::DarkGray,
        _ => Color::Yellow,
    }
}

fn list(frame: &mut Frame, area: Rect, view: &View) {
    let rows = view.rows();
    let head = |name: &'static str, column: Option<Column>| {
        let sorted = column == Some(view.sort);
        let arrow = if view.reverse { "▲" } else { "▼" };
        match sorted {
            true => Cell::from(format!("{name}{arrow}"))
                .style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)),
            false => Cell::from(name).style(Modifier::BOLD),
        }
    };
    let [name, cpu, memory, exits, disk, network] = COLUMNS.map(Some);
    let heads = TableRow::new([
        head("WORKLOAD", name),
        head("PHASE", None),
        head("CPU %", cpu),
        head("MEMORY", memory),
        head("EXITS/S", exits),
        head("DISK", disk),
        head("NET", network),
        head("POLLED", None),
        head("MOST EXITS", None),
    ]);
    let lines = rows.iter().map(|row| {
        let name = format!("{}/{}/{}", row.namespace, short(&row.kind), row.name);
        let polled = match row.polled_queues {
            [_, 0] => "-".to_owned(),
            [polled, all] => format!("{polled}/{all}"),
        };
        let exits = match row.vcpus.is_empty() {
            true => "-".to_owned(),
            false => count(row.exits),
        };
        TableRow::new([
            Cell::from(on_a_line(&name)),
            Cell::from(row.phase.clone()).style(color(row)),
            Cell::from(format!("{:5.1}", row.cpu_percent)),
            Cell::from(show(row.memory_bytes)),
            Cell::from(exits),
            Cell::from(speed(row.disk)),
            Cell::from(speed(row.network)),
            Cell::from(polled),
            Cell::from(kinds(row)),
        ])
    });
    let widths = [
        Constraint::Min(18),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(6),
        Constraint::Fill(1),
    ];
    let title = format!(
        " {} of {} workloads ",
        rows.len(),
        view.rates.workloads.len()
    );
    let table = Table::new(lines, widths)
        .header(heads)
        .block(Block::bordered().title(title))
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::default();
    if !rows.is_empty() {
        state.select(Some(view.at()));
    }
    frame.render_stateful_widget(table, area, &mut state);
}

/// The short name of a kind.
fn short(kind: &str) -> &str {
    match kind {
        "microvm" => "vm",
        kind => kind,
    }
}

fn detail(frame: &mut Frame, area: Rect, row: &Row, events: &[String]) {
    let mut lines = vec![
        Line::from(vec![
            Span::from("phase "),
            Span::styled(row.phase.clone(), color(row)),
            Span::from(format!(
                "   restarts {}   CPU {:.1} %   memory {}   polling in vain {:.1} %",
                row.restarts,
                row.cpu_percent,
                show(row.memory_bytes),
                row.polling_percent
            )),
        ]),
        Line::default(),
    ];
    let head = |text: &str| Line::from(Span::styled(text.to_owned(), Modifier::BOLD));
    if !row.vcpus.is_empty() {
        lines.push(head("CPUs: percent, exits a second by kind"));
        for (index, cpu) in row.vcpus.iter().enumerate() {
            let exits = cpu.exits.iter().filter(|(_, n)| **n >= 0.5);
            let exits: Vec<_> = exits
                .map(|(kind, n)| format!("{kind} {}", count(*n)))
                .collect();
            let text = format!(
                "  vcpu{index:<3} {:5.1} %  {}",
                cpu.cpu_percent,
                exits.join("  ")
            );
            lines.push(Line::from(text));
        }
    }
    if !row.devices.is_empty() {
        lines.push(head("Devices, a second"));
        for (device, numbers) in &row.devices {
            let shown = numbers
                .iter()
                .map(|(name, n)| match name.ends_with("bytes") {
                    true => format!("{name} {}", show(*n as u64)),
                    false => format!("{name} {}", count(*n)),
                });
            let shown = shown.collect::<Vec<_>>().join("  ");
            lines.push(Line::from(format!("  {device:<8} {shown}")));
        }
    }
    if !row.queues.is_empty() {
        lines.push(head("Queues"));
        for (queue, worker, polled, budget) in &row.queues {
            let how = match polled {
                true => "polled",
                false => "waits",
            };
            let text = format!(
                "  {queue:<12} worker {worker:<8} {how:<7} budget {:.1} us",
                *budget as f64 / 1e3
            );
            lines.push(Line::from(text));
        }
    }
    lines.push(head("Events"));
    if events.is_empty() {
        lines.push(Line::from("  none in the last hour"));
    }
    lines.extend(events.iter().map(|text| Line::from(format!("  {text}"))));
    let title = format!(" {}/{} of {} ", short(&row.kind), row.name, row.namespace);
    let block = Block::bordered().title(on_a_line(&title));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn keys(view: &View) -> Line<'_> {
    let gray = Style::new().fg(Color::DarkGray);
    match (&view.trouble, view.typing) {
        (_, true) => Line::from(format!("/{}█", view.filter)),
        (Some(trouble), _) => Line::from(Span::styled(on_a_line(trouble), Color::Red)),
        _ if view.detail => Line::from(Span::styled("esc back   q quit", gray)),
        _ => {
            let filter = match view.filter.is_empty() {
                true => "/ filter".to_owned(),
                false => format!("/{} (esc: all)", view.filter),
            };
            let text =
                format!("{filter}   ←→ sort   r reverse   ↑↓ choose   enter look into   q quit");
            Line::from(Span::styled(text, gray))
        }
    }
}
