//! The view with fixed input: what is shown, what keys do, and the picture in the documentation.

use std::path::Path;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::rates::Rates;
use super::*;

/// A sample at a moment, of which all that grows has grown in proportion to it.
fn at(moment: f64) -> Sample {
    let n = |a_second: f64| (a_second * moment) as u64;
    let vm = |name: &str, phase: &str, busy: f64| {
        json!({
            "kind": "microvm", "namespace": "default", "name": name, "uid": name, "phase": phase,
            "ready": phase == "Running", "restarts": 1,
            "usage": {
                "cpuSeconds": busy * moment, "memoryBytes": (180e6 * (1.0 + busy)) as u64,
                "vcpus": [
                    {"cpuSeconds": busy * moment * 0.6,
                     "exits": {"all": n(9000.0 * busy), "io": n(4000.0 * busy), "halt": n(3000.0 * busy), "mmio": n(900.0 * busy)}},
                    {"cpuSeconds": busy * moment * 0.3,
                     "exits": {"all": n(2000.0 * busy), "io": n(200.0 * busy), "halt": n(1700.0 * busy)}},
                ],
                "devices": {
                    "_disk0": {"read_bytes": n(3e6 * busy), "read_ops": n(700.0 * busy), "write_bytes": n(1e6 * busy), "write_ops": n(90.0)},
                    "_net1": {"rx_bytes": n(2e5 * busy), "rx_frames": n(200.0), "tx_bytes": n(9e5 * busy), "tx_frames": n(700.0)},
                },
                "workers": [{"name": "io", "sleeps": n(50.0), "polledSeconds": 0.004 * moment, "queues": [
                    {"name": "_disk0/0", "polled": busy > 0.5, "budgetNs": 24_000},
                    {"name": "_net1/0", "polled": false, "budgetNs": 0},
                    {"name": "_net1/1", "polled": false, "budgetNs": 8_000},
                ]}],
            },
        })
    };
    let container = |name: &str, busy: f64| {
        json!({
            "kind": "container", "namespace": "shop", "name": name, "uid": name, "phase": "Running", "ready": true,
            "usage": {
                "cpuSeconds": busy * moment, "memoryBytes": 24_000_000, "memoryLimitBytes": 67_108_864, "processes": 3,
                "block": {"readBytes": n(1000.0), "writtenBytes": n(4e5 * busy)},
            },
        })
    };
    let sample = json!({
        "at": moment,
        "host": {
            "name": "edge1", "cpus": 8, "cpuSeconds": {"user": 2.1 * moment, "system": 0.4 * moment, "idle": 5.5 * moment},
            "load": [2.31, 1.98, 1.75], "memoryBytes": 33_000_000_000u64, "memoryAvailableBytes": 21_000_000_000u64,
            "diskBytes": 480_000_000_000u64, "diskFreeBytes": 61_000_000_000u64, "agentCpuSeconds": 0.006 * moment,
        },
        "workloads": [
            vm("web", "Running", 1.2), vm("database", "Running", 0.7), vm("build", "Failing", 0.0),
            container("cart", 0.35), container("mail", 0.02),
        ],
    });
    serde_json::from_value(sample).expect("a sample")
}

fn view() -> View {
    let mut view = View::new(Column::Cpu);
    view.rates = between(Some(&at(100.0)), &at(102.0));
    view
}

fn screen(view: &View) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(116, 20)).expect("a terminal");
    terminal
        .draw(|frame| draw::draw(frame, view))
        .expect("drawn");
    terminal.backend().buffer().clone()
}

fn text(view: &View) -> String {
    let screen = screen(view);
    let lines = screen.content.chunks(screen.area.width.into());
    let lines = lines.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

fn press(view: &mut View, keys: &[KeyCode]) -> After {
    let mut after = After::Draw;
    for key in keys {
        after = view.event(&Event::Key(KeyEvent::new(*key, KeyModifiers::NONE)));
    }
    after
}

fn names(view: &View) -> Vec<&str> {
    view.rows().iter().map(|row| row.name.as_str()).collect()
}

#[test]
fn rates_are_what_lies_between_two_samples() {
    let view = view();
    let web = view.rows()[0];
    assert_eq!(web.name, "web");
    assert!((web.cpu_percent - 120.0).abs() < 0.5, "{web:?}");
    assert!((web.exits - 13_200.0).abs() < 10.0, "{web:?}");
    assert!((web.exit_kinds["io"] - 5_040.0).abs() < 10.0, "{web:?}");
    assert!((web.disk - 4.8e6).abs() < 100.0, "{web:?}");
    assert_eq!(web.polled_queues, [1, 3]);
    // One that began anew has counted less: no rate is below nothing.
    let anew = between(
        Some(&at(102.0)),
        &Sample {
            at: 104.0,
            ..at(1.0)
        },
    );
    assert!(anew.workloads.iter().all(|row| row.cpu_percent >= 0.0));
    // A first look has no rates, but all the rest.
    let first = between(None, &at(100.0));
    assert!(first.workloads[0].memory_bytes > 0 && first.workloads[0].exits == 0.0);
}

#[test]
fn lines_are_sorted_filtered_and_looked_into() {
    let mut view = view();
    assert_eq!(names(&view), ["web", "database", "cart", "mail", "build"]);
    press(&mut view, &[KeyCode::Char('r')]);
    assert_eq!(names(&view)[0], "build");
    press(&mut view, &[KeyCode::Char('r'), KeyCode::Left]);
    assert_eq!((view.sort, names(&view)[0]), (Column::Name, "build"));
    press(
        &mut view,
        &[
            KeyCode::Char('/'),
            KeyCode::Char('s'),
            KeyCode::Char('h'),
            KeyCode::Char('o'),
        ],
    );
    assert!(text(&view).contains("/sho█"));
    press(&mut view, &[KeyCode::Enter]);
    assert_eq!(names(&view), ["cart", "mail"]);
    // Keys are the view's again.
    press(&mut view, &[KeyCode::Down]);
    assert_eq!(view.chosen.as_deref(), Some("mail"));
    press(&mut view, &[KeyCode::Down]);
    assert_eq!(view.chosen.as_deref(), Some("mail"));
    press(&mut view, &[KeyCode::Esc]);
    assert_eq!(names(&view).len(), 5);
    // The chosen one stays it, wherever it is by now.
    assert_eq!(view.row().map(|row| row.name.as_str()), Some("mail"));
    press(&mut view, &[KeyCode::Home, KeyCode::Down]);
    assert_eq!(press(&mut view, &[KeyCode::Enter]), After::Look);
    let shown = text(&view);
    for words in [
        "vm/database of default",
        "vcpu0",
        "vcpu1",
        "halt 2.1k",
        "_disk0/0",
        "polled",
        "Events",
    ] {
        assert!(shown.contains(words), "{words}:\n{shown}");
    }
    press(&mut view, &[KeyCode::Esc]);
    assert!(!view.detail);
    assert_eq!(press(&mut view, &[KeyCode::Char('q')]), After::Quit);
}

#[test]
fn whatever_the_size_it_is_drawn() {
    let mut view = view();
    for detail in [false, true] {
        view.detail = detail;
        for (columns, rows) in [(1, 1), (10, 3), (40, 8), (300, 80)] {
            let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a terminal");
            terminal
                .draw(|frame| draw::draw(frame, &view))
                .expect("drawn");
        }
    }
    view.rates = Rates::default();
    text(&view);
}

#[test]
fn the_picture_in_the_documentation_is_what_is_drawn() {
    let made = picture::svg(&screen(&view()));
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    if let Some(folder) = std::env::var_os("SKERRY_SCREENSHOTS") {
        let folder = docs.join("..").join(folder);
        std::fs::write(folder.join("top.svg"), &made).expect("written");
    }
    let kept = std::fs::read_to_string(docs.join("top.svg")).unwrap_or_default();
    assert!(
        made == kept,
        "docs/top.svg is another: make it anew with SKERRY_SCREENSHOTS=docs"
    );
}
