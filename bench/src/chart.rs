//! A chart of one load: a bar for each target, with its spread.

use std::fmt::Write as _;

use crate::load::Figure;
use crate::matrix::Row;
use crate::report::{figures, short, spread};
use crate::target::{Kind, Medium};

const BAR: f64 = 22.0;
const LEFT: f64 = 150.0;
const WIDTH: f64 = 480.0;
const TOP: f64 = 46.0;

/// The chart as SVG, readable on light and dark pages.
pub fn svg(medium: Medium, row: &Row) -> String {
    let bars: Vec<_> = row.cells.iter().map(|cell| (cell, spread(&figures(row, cell)))).collect();
    let largest = bars.iter().map(|(_, (_, _, most))| *most).fold(f64::MIN_POSITIVE, f64::max);
    let height = TOP + BAR * bars.len() as f64 + 12.0;
    let (whole, better) = (LEFT + WIDTH + 90.0, if row.load.figure == Figure::Latency { "less" } else { "more" });
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{whole}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"18\" font-size=\"14\">{}, files {}</text>\n\
         <text x=\"10\" y=\"35\" fill=\"#555\">{}: {better} is better</text>\n",
        row.load.words(),
        medium.words(),
        row.load.figure.unit()
    );
    for (index, (cell, (median, least, most))) in bars.iter().enumerate() {
        let (y, scale) = (TOP + BAR * index as f64, WIDTH / largest);
        let color = match cell.kind {
            Kind::Raw => "#999",
            Kind::Peer => "#7fa8d1",
            Kind::Own => "#d1763f",
        };
        let (middle, from, to) = (y + BAR * 0.65, LEFT + least * scale, LEFT + most * scale);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{color}\"/>\
             <path d=\"M{from:.1} {}H{to:.1}\" stroke=\"#333\"/>\
             <text x=\"{:.1}\" y=\"{middle}\">{}</text>",
            LEFT - 8.0,
            cell.target,
            y + 3.0,
            median * scale,
            BAR - 6.0,
            y + BAR / 2.0,
            to + 6.0,
            short(*median)
        );
    }
    out + "</svg>\n"
}
