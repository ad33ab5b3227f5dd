//! The chunk map on a terminal: a character a cell, coloured where that is wanted.
//!
//! The character alone says all, so that the map is read without colours too: the tenths that are left of the original.

use std::fmt::Write;

use super::map::{Cell, Look, cells};
use crate::cli::size::human;
use warpfs::info::Info;

/// How many rows a map has at most.
const ROWS: u64 = 4;
/// What a row begins with: the offset of its first cell.
const LABEL: usize = 12;

/// The terminal a map is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminal {
    pub(super) columns: usize,
    pub(super) colours: bool,
}

/// The background, and the foreground that is read on it, in the palette of 256 colours: from dark for what is nearly
/// nothing to bright yellow, as in "viridis", which all eyes tell apart by brightness alone.
fn colours(look: Look) -> (u8, u8) {
    const WHITE: u8 = 231;
    const BLACK: u8 = 16;
    match look {
        Look::Zeros => (236, 250),
        Look::Tenths(0 | 1) => (54, WHITE),
        Look::Tenths(2 | 3) => (61, WHITE),
        Look::Tenths(4 | 5) => (30, WHITE),
        Look::Tenths(6 | 7) => (71, BLACK),
        Look::Tenths(_) => (220, BLACK),
        Look::NotShrunk => (160, WHITE),
        Look::Lost => (WHITE, 160),
    }
}

fn character(look: Look) -> char {
    match look {
        Look::Zeros => '.',
        Look::Tenths(tenths) => char::from(b'0' + tenths.min(9)),
        Look::NotShrunk => '#',
        Look::Lost => 'x',
    }
}

/// The map of a file, with its legend; `None` if there is nothing to show.
pub(super) fn strip(info: &Info, terminal: Terminal) -> Option<String> {
    let room = terminal.columns.saturating_sub(LABEL);
    let width = [128, 64, 32, 16].into_iter().find(|&width| width <= room)?;
    let cells = cells(info, width as u64 * ROWS)?;
    Some(draw(&cells, width, info.chunk_count(), terminal.colours))
}

fn draw(cells: &[Cell], width: usize, chunks: u32, colours: bool) -> String {
    let mut map = String::new();
    let mut line = |label: &str, looks: &mut dyn Iterator<Item = Look>| {
        let _ = write!(map, "{label:<LABEL$}");
        for look in looks {
            paint(&mut map, look, colours);
        }
        map.push('\n');
    };
    for row in cells.chunks(width) {
        let start = row.first().map_or(0, |cell| cell.original.start);
        line(&human(start), &mut row.iter().map(Cell::look));
    }
    let cell = cells.first().map_or(0, |cell| cell.original.end);
    let each = match chunks as usize > cells.len() {
        true => format!("{} of the original, several chunks", human(cell)),
        false => "a chunk".to_owned(),
    };
    let _ = write!(map, "{:LABEL$}a cell is {each}\n{:LABEL$}", "", "");
    for (look, meaning) in [
        (Look::Zeros, "zeros "),
        (Look::Tenths(0), ""),
        (Look::Tenths(3), ""),
        (Look::Tenths(5), ""),
        (Look::Tenths(7), ""),
        (Look::Tenths(9), "0 to 9 tenths left "),
        (Look::NotShrunk, "all "),
        (Look::Lost, "lost"),
    ] {
        if look == Look::Lost && !cells.iter().any(|cell| cell.lost) {
            continue;
        }
        if matches!(look, Look::Tenths(0 | 3 | 5 | 7)) && !colours {
            continue;
        }
        if look == Look::Tenths(9) && !colours {
            let _ = write!(map, "{meaning}");
            continue;
        }
        paint(&mut map, look, colours);
        if !meaning.is_empty() {
            let _ = write!(map, " {meaning}");
        }
    }
    map.truncate(map.trim_end().len());
    map.push('\n');
    map
}

fn paint(map: &mut String, look: Look, coloured: bool) {
    let character = character(look);
    let _ = match coloured {
        true => {
            let (background, foreground) = colours(look);
            write!(
                map,
                "\x1b[48;5;{background};38;5;{foreground}m{character}\x1b[0m"
            )
        }
        false => write!(map, "{character}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_cells() -> Vec<Cell> {
        let cell = |index: u64| Cell {
            original: index << 20..(index + 1) << 20,
            packed: (index << 20) as f64 / 20.0,
            zeros: index == 0,
            lost: false,
        };
        (0..21).map(cell).collect()
    }

    #[test]
    fn a_map_without_colours_is_read_by_its_characters() {
        let map = draw(&some_cells(), 16, 21, false);
        assert_eq!(
            map,
            "0 B         .011223344556677\n\
             16.00 MiB   8899#\n            a cell is a chunk\n            . zeros 0 to 9 tenths left # all\n"
        );
    }

    #[test]
    fn with_colours_it_has_the_same_characters() {
        let coloured = draw(&some_cells(), 16, 99, true);
        let mut plain = String::new();
        for piece in coloured.split('\x1b') {
            plain.push_str(
                piece
                    .split_once('m')
                    .filter(|_| piece.starts_with('['))
                    .map_or(piece, |(_, rest)| rest),
            );
        }
        assert!(
            plain.starts_with("0 B         .011223344556677\n16.00 MiB   8899#\n"),
            "{plain}"
        );
        assert!(
            plain.contains("1.00 MiB of the original, several chunks"),
            "{plain}"
        );
        assert!(
            coloured
                .lines()
                .all(|line| !line.contains('\x1b') || line.contains("\x1b[0m"))
        );
    }
}
