//! A screen as SVG, for the documentation.

use std::fmt::Write;

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

/// Pixels of a character.
const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 18.0;
const PAPER: &str = "#14171c";
const INK: &str = "#d7dce2";

fn name(color: Color, otherwise: &str) -> String {
    let found = match color {
        Color::Green => "#58b368",
        Color::Red => "#e5534b",
        Color::Yellow => "#d9a840",
        Color::DarkGray => "#7d8590",
        _ => otherwise,
    };
    found.to_owned()
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    // Spaces in a row would be one.
    text.replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace(' ', "\u{a0}")
}

/// A screen's picture, the same for the same screen.
pub fn svg(screen: &Buffer) -> String {
    let area = screen.area;
    let (width, height) = (
        f64::from(area.width) * WIDTH,
        f64::from(area.height) * HEIGHT,
    );
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" role=\"img\">\n\
         <title>skerry top</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"{PAPER}\"/>\n\
         <g font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"14\">\n"
    );
    for y in 0..area.height {
        let mut x = 0;
        while x < area.width {
            let style = |x: u16| {
                let cell = &screen[(x, y)];
                (cell.fg, cell.bg, cell.modifier)
            };
            let begin = x;
            let mut text = String::new();
            while x < area.width && style(x) == style(begin) {
                text.push_str(screen[(x, y)].symbol());
                x += 1;
            }
            run(&mut out, [begin, y], x - begin, style(begin), &text);
        }
    }
    out.push_str("</g>\n</svg>\n");
    out
}

fn run(
    out: &mut String,
    [x, y]: [u16; 2],
    cells: u16,
    style: (Color, Color, Modifier),
    text: &str,
) {
    let (left, top) = (f64::from(x) * WIDTH, f64::from(y) * HEIGHT);
    let (mut ink, mut paper) = (name(style.0, INK), name(style.1, PAPER));
    if style.2.contains(Modifier::REVERSED) {
        std::mem::swap(&mut ink, &mut paper);
    }
    let width = f64::from(cells) * WIDTH;
    if paper != PAPER {
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{HEIGHT:.1}\" fill=\"{paper}\"/>"
        );
    }
    if text.trim().is_empty() {
        return;
    }
    let bold = match style.2.contains(Modifier::BOLD) {
        true => " font-weight=\"bold\"",
        false => "",
    };
    let base = top + HEIGHT - 5.0;
    let _ = writeln!(
        out,
        "<text x=\"{left:.1}\" y=\"{base:.1}\" textLength=\"{width:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
         fill=\"{ink}\"{bold}>{}</text>",
        escaped(text)
    );
}
