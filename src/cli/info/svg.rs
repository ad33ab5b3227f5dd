//! The chunk map as a picture: what is left of each part of the original, and where in the file it lies.
//!
//! Bars stand along the original, as high as what is left; the line climbs through the packed file, from its first payload
//! to its last. The colours are those of the terminal's map; text takes the reader's scheme, light or dark. A picture has
//! some 300 cells and some 30 KB, however many chunks there are.

use std::fmt::Write;

use warpfs::error::OneLine;
use warpfs::info::Info;

use super::map::{Cell, Look, cells};
use crate::cli::size::{human, percent};

/// How many cells there are at most.
const CELLS: u64 = 320;
/// The picture, and the chart within it.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 52.0;
const CHART_WIDTH: f64 = 640.0;
const CHART_HEIGHT: f64 = 180.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#333}.h{font-weight:bold}.g{stroke:#8886;fill:none}\
    .v,.w{fill:none;stroke:#fff;stroke-width:4}.w{stroke:#111;stroke-width:1.5}.z{fill:#999}.a{fill:#440154}\
    .b{fill:#3b528b}.c{fill:#21918c}.d{fill:#5ec962}.e{fill:#e0c31a}.f{fill:#d62728}.x{fill:none;stroke:#d62728;stroke-dasharray:2}\
    @media(prefers-color-scheme:dark){text{fill:#ddd}.a{fill:#8b4fa0}.b{fill:#6a83c4}}";

fn class(look: Look) -> char {
    match look {
        Look::Zeros => 'z',
        Look::Tenths(0 | 1) => 'a',
        Look::Tenths(2 | 3) => 'b',
        Look::Tenths(4 | 5) => 'c',
        Look::Tenths(6 | 7) => 'd',
        Look::Tenths(_) => 'e',
        Look::NotShrunk => 'f',
        Look::Lost => 'x',
    }
}

/// The picture of a file; `None` if there is nothing to show.
pub(super) fn svg(info: &Info) -> Option<String> {
    let cells = cells(info, CELLS)?;
    let name = info.path().file_name().unwrap_or(info.path().as_os_str());
    let name = escape(&OneLine(name.display()).to_string());
    let (original, packed) = (info.original_size(), info.packed_size());
    let summary = format!(
        "{}, {} chunks, {} packed into {} ({})",
        info.encodings(),
        info.chunk_count(),
        human(original),
        human(packed),
        percent(packed, original)
    );
    Some(draw(&cells, &name, &summary, original))
}

fn draw(cells: &[Cell], name: &str, summary: &str, size: u64) -> String {
    let x = |offset: u64| LEFT + CHART_WIDTH * offset as f64 / size as f64;
    let bottom = TOP + CHART_HEIGHT;
    let right = LEFT + CHART_WIDTH;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-labelledby=\"t d\">\n<title id=\"t\">Chunk map of {name}</title>\n<desc id=\"d\">{summary}. Bars: what is left \
         of each part of the original. Line: where it lies in the packed file.</desc>\n<style>{STYLE}</style>\n\
         <text class=\"h\" x=\"{LEFT}\" y=\"20\">{name}</text>\n<text x=\"{LEFT}\" y=\"38\">{summary}</text>\n"
    );
    let payload: f64 = cells.iter().map(|cell| cell.packed).sum();
    // What grew is as high as what did not shrink.
    let height = |cell: &Cell| (cell.ratio().min(1.0) * CHART_HEIGHT).max(1.0);
    for percent in [0, 25, 50, 75, 100] {
        let y = bottom - CHART_HEIGHT * f64::from(percent) / 100.0;
        let _ = writeln!(
            svg,
            "<path class=\"g\" d=\"M{LEFT} {y}H{right}\"/><text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{percent}%</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    let mut line = format!("M{LEFT} {bottom}");
    let mut before = 0.0;
    for cell in cells {
        let (from, to) = (x(cell.original.start), x(cell.original.end));
        let tall = height(cell);
        let left = match cell.look() {
            Look::Zeros => "zeros".to_owned(),
            Look::Lost => "lost".to_owned(),
            _ => format!("{:.0}%", cell.ratio() * 100.0),
        };
        let _ = writeln!(
            svg,
            "<rect class=\"{}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\"><title>{}: {left}</title></rect>",
            class(cell.look()),
            bottom - tall,
            to - from,
            human(cell.original.start),
        );
        before += cell.packed;
        let climbed = if payload > 0.0 { before / payload } else { 0.0 };
        let _ = write!(line, "L{to:.0} {:.0}", bottom - CHART_HEIGHT * climbed);
    }
    // Twice, so that it is seen on every colour.
    let _ = writeln!(
        svg,
        "<defs><path id=\"l\" d=\"{line}\"/></defs><use href=\"#l\" class=\"v\"/><use href=\"#l\" class=\"w\"/>"
    );
    for (quarter, anchor) in [
        (0, "start"),
        (1, "middle"),
        (2, "middle"),
        (3, "middle"),
        (4, "end"),
    ] {
        let offset = (u128::from(size) * quarter / 4) as u64;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"{anchor}\">{}</text>",
            x(offset),
            bottom + 18.0,
            human(offset)
        );
    }
    for (at, text) in [(0.0, human(0)), (1.0, human(payload as u64))] {
        let y = bottom - CHART_HEIGHT * at + 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{y:.0}\">{text}</text>",
            right + 6.0
        );
    }
    let dashed = match cells.iter().any(|cell| cell.lost) {
        true => ", dashed: lost",
        false => "",
    };
    let legend = format!(
        "bars: what is left of the original (grey: zeros, red: nothing saved{dashed}); line: its place in the payloads"
    );
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.0}\">{legend}</text>\n</svg>",
        bottom + 42.0
    );
    svg
}

/// Text as XML has it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Neither is a character to XML.
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_small_and_its_text_is_escaped() {
        let cells: Vec<Cell> = (0..CELLS)
            .map(|index| Cell {
                original: index << 40..(index + 1) << 40,
                packed: (index << 40) as f64 / CELLS as f64,
                zeros: index == 5,
                lost: false,
            })
            .collect();
        let svg = draw(&cells, &escape("<a & \"b\">.warp"), "zstd", CELLS << 40);
        assert!(svg.len() < 40_000, "{}", svg.len());
        assert!(svg.contains("Chunk map of &lt;a &amp; &quot;b&quot;&gt;.warp"));
        assert_eq!(svg.matches("<rect").count() as u64, CELLS);
        assert_eq!(svg.matches(": zeros</title>").count(), 1);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
