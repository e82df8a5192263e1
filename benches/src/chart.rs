//! Tables as bars, in SVG: a picture that needs nothing to look at it but a browser.

use std::fmt::Write;

use crate::check::OURS;
use crate::report::Table;

const WIDTH: f64 = 760.0;
const NAMES: f64 = 190.0;
const NUMBERS: f64 = 90.0;
const LINE: f64 = 20.0;
const HEAD: f64 = 34.0;

/// Draws all tables, one below the other.
pub fn draw(tables: &[Table]) -> String {
    let height: f64 = tables
        .iter()
        .map(|t| HEAD + LINE * t.rows.len() as f64 + LINE)
        .sum();
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut top = 0.0;
    for table in tables {
        top = draw_table(&mut svg, table, top);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_table(svg: &mut String, table: &Table, top: f64) -> f64 {
    let title = escaped(&format!("{} ({})", table.title, table.unit));
    let _ = writeln!(
        svg,
        "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{title}</text>",
        top + 20.0
    );
    let most = table.rows.iter().map(|r| r.median).fold(0.0, f64::max);
    let room = WIDTH - NAMES - NUMBERS;
    let mut y = top + HEAD;
    for row in &table.rows {
        let share = if most > 0.0 { row.median / most } else { 0.0 };
        let colour = if row.name.starts_with(OURS) {
            "#1b6ca8"
        } else {
            "#a8b3bd"
        };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{:.1}</text>",
            NAMES - 6.0,
            y + 13.0,
            escaped(&row.name),
            y + 2.0,
            share * room,
            LINE - 5.0,
            NAMES + share * room + 5.0,
            y + 13.0,
            row.median
        );
        y += LINE;
    }
    y + LINE
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Better;
    use crate::stats::Samples;

    #[test]
    fn every_line_is_drawn_and_text_is_escaped() {
        let mut samples = Samples::new("skerry <polled>");
        samples.add(4.0);
        let mut peer = Samples::new("qemu");
        peer.add(2.0);
        let table = Table {
            title: "reads & writes".into(),
            unit: "1000 a second".into(),
            better: Better::Higher,
            rows: vec![samples.row(4.0), peer.row(4.0)],
            left_out: Vec::new(),
            targets: Vec::new(),
        };
        let svg = draw(&[table]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("skerry &lt;polled&gt;") && svg.contains("reads &amp; writes"));
        let full = format!("width=\"{:.1}\"", WIDTH - NAMES - NUMBERS);
        let half = format!("width=\"{:.1}\"", (WIDTH - NAMES - NUMBERS) / 2.0);
        assert!(svg.contains(&full) && svg.contains(&half), "{svg}");
    }
}
