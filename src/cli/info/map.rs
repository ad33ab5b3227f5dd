//! The map of a file's chunks: how much of each part of the original is left, in cells of equal size.
//!
//! Cells are whole multiples of the largest chunk, as small as the picture has room for. A chunk that lies in several cells
//! (chunks need not be of one size) is divided among them by its length.

use std::ops::Range;

use warpfs::info::Info;

/// From which ratio on a part counts as not shrunk at all.
const NOT_SHRUNK: f64 = 0.99;

/// A part of the original.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    /// Its bytes in the original.
    pub(super) original: Range<u64>,
    /// The bytes it takes packed.
    pub(super) packed: f64,
    /// Whether all of it may be zeros.
    pub(super) zeros: bool,
    /// Whether some of it is lost, because the file was cut short.
    pub(super) lost: bool,
}

/// What a cell looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Zeros,
    /// So many tenths of the original are left, rounded down.
    Tenths(u8),
    NotShrunk,
    Lost,
}

impl Cell {
    /// The packed part of the original, 1 if nothing was saved.
    pub(super) fn ratio(&self) -> f64 {
        let original = self.original.end - self.original.start;
        self.packed / (original.max(1) as f64)
    }

    pub(super) fn look(&self) -> Look {
        match self.ratio() {
            _ if self.lost => Look::Lost,
            _ if self.zeros => Look::Zeros,
            ratio if ratio >= NOT_SHRUNK => Look::NotShrunk,
            ratio => Look::Tenths((ratio * 10.0) as u8),
        }
    }
}

/// A file's map of at most so many cells; `None` if the file is empty or only decoding tells where its chunks begin.
pub(super) fn cells(info: &Info, most: u64) -> Option<Vec<Cell>> {
    let chunks = info.chunks().map(|chunk| {
        let start = chunk.original_offset?;
        let end = start.checked_add(chunk.original_size?)?;
        Some(Part {
            original: start..end,
            packed: chunk.packed_size,
            zeros: chunk.may_be_zeros,
            lost: chunk.lost,
        })
    });
    cells_of(chunks, info.original_size(), info.largest_chunk()?, most)
}

/// What a map takes notice of in a chunk.
struct Part {
    original: Range<u64>,
    packed: u64,
    zeros: bool,
    lost: bool,
}

fn cells_of(
    chunks: impl Iterator<Item = Option<Part>>,
    size: u64,
    largest_chunk: u64,
    most: u64,
) -> Option<Vec<Cell>> {
    if size == 0 {
        return None;
    }
    let largest_chunk = largest_chunk.max(1);
    let chunks_in_a_cell = size.div_ceil(most).div_ceil(largest_chunk);
    let cell_len = chunks_in_a_cell
        .checked_next_power_of_two()
        .and_then(|count| count.checked_mul(largest_chunk))
        .unwrap_or(size);
    let mut cells: Vec<Cell> = (0..size.div_ceil(cell_len))
        .map(|cell| {
            let start = cell * cell_len;
            Cell {
                original: start..start.saturating_add(cell_len).min(size),
                packed: 0.0,
                zeros: true,
                lost: false,
            }
        })
        .collect();
    for chunk in chunks {
        let Part {
            original,
            packed,
            zeros,
            lost,
        } = chunk?;
        let mut start = original.start;
        while start < original.end {
            let at = usize::try_from(start / cell_len).ok()?;
            let cell = cells.get_mut(at)?;
            let end = original.end.min(cell.original.end);
            let length = (original.end - original.start) as f64;
            cell.packed += packed as f64 * ((end - start) as f64 / length);
            cell.zeros &= zeros;
            cell.lost |= lost;
            start = end;
        }
    }
    Some(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lengths: &[(u64, u64)], most: u64) -> Vec<Cell> {
        let mut at = 0;
        let chunks = lengths.iter().map(|&(original, packed)| {
            at += original;
            Some(Part {
                original: at - original..at,
                packed,
                zeros: packed == 0,
                lost: false,
            })
        });
        let chunks: Vec<_> = chunks.collect();
        let largest = lengths.iter().map(|&(original, _)| original).max().unwrap();
        cells_of(chunks.into_iter(), at, largest, most).unwrap()
    }

    #[test]
    fn few_chunks_have_a_cell_each() {
        let cells = map(&[(100, 50), (100, 0), (30, 30)], 64);
        let looks: Vec<_> = cells.iter().map(Cell::look).collect();
        assert_eq!(looks, [Look::Tenths(5), Look::Zeros, Look::NotShrunk]);
        assert_eq!(cells[2].original, 200..230);
    }

    #[test]
    fn many_chunks_are_averaged_and_nothing_is_lost() {
        let lengths: Vec<_> = (0..100_000_u64).map(|chunk| (64, chunk % 64)).collect();
        let cells = map(&lengths, 256);
        assert!(cells.len() > 128 && cells.len() <= 256, "{}", cells.len());
        let packed: f64 = cells.iter().map(|cell| cell.packed).sum();
        assert_eq!(
            packed as u64,
            lengths.iter().map(|(_, packed)| packed).sum::<u64>()
        );
        assert!(cells.iter().all(|cell| cell.look() == Look::Tenths(4)));
    }

    #[test]
    fn chunks_of_all_sizes_are_divided_among_cells() {
        let cells = map(&[(10, 10), (7, 0), (0, 3), (13, 1)], 2);
        let packed: f64 = cells.iter().map(|cell| cell.packed).sum();
        assert!((packed - 11.0).abs() < 1e-6, "{packed}");
        assert_eq!(cells.last().unwrap().original.end, 30);
    }
}
