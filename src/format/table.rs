//! The chunk table: where every chunk lies, in the file and in the original.
//!
//! Tables are read a block at a time and take memory only as far as what was read of them can be true: a sparse file costs
//! its author nothing, whatever its length.

use std::ops::Range;

use super::FixedHeader;
use crate::error::{Error, ErrorKind, Result};

/// How much of a table is read at a time, in bytes.
const TABLE_BLOCK_LEN: usize = 64 << 10;

/// Where every payload lies in the file: a column of running sums, 8 bytes a chunk.
///
/// Invariant: the column ascends.
#[derive(Debug, PartialEq, Eq)]
pub struct PayloadTable {
    start: u64,
    ends: Box<[u64]>,
}

impl PayloadTable {
    /// Reads the compressed sizes, with which every table begins. `fill` is given one block after the other to fill with
    /// the bytes that follow in the file.
    ///
    /// # Errors
    /// Those of `fill`; a size is 0, or the sizes overflow; there is no memory for the table.
    pub fn read(header: &FixedHeader, fill: impl FnMut(&mut [u8]) -> Result<()>) -> Result<Self> {
        let start = header.payload_start();
        let mut column = Column::new("compressed", start, header.chunk_count)?;
        let mut chunk = 0;
        read_sizes(header.chunk_count, fill, |size| {
            // Not even a chunk of no bytes has an empty payload, in any codec.
            if size == 0 {
                return Err(ErrorKind::EmptyPayload { chunk }.into());
            }
            chunk += 1;
            column.push(size)
        })?;
        Ok(Self {
            start,
            ends: column.finish(),
        })
    }

    /// How many payloads there are.
    pub fn len(&self) -> u32 {
        // A header's count has 32 bits, so the cast loses nothing.
        self.ends.len() as u32
    }

    /// Whether there are no payloads.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Where a chunk's payload lies in the file, in bytes; `None` past the last chunk.
    pub fn range(&self, chunk: u32) -> Option<Range<u64>> {
        range_between(&self.ends, self.start, chunk)
    }

    /// Where the last payload ends, in bytes from the start of the file.
    pub fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(self.start)
    }
}

/// Where every chunk lies, in the file and in the original: two columns of running sums, 16 bytes a chunk.
///
/// Invariant: both columns ascend (not strictly: chunks may be empty) and have the same length.
#[derive(Debug, PartialEq, Eq)]
pub struct ChunkTable {
    payloads: PayloadTable,
    original_ends: Box<[u64]>,
}

impl ChunkTable {
    /// Reads the second column of a version 2 table; `fill` as in [`PayloadTable::read`], and behind what that has read.
    ///
    /// # Errors
    /// Those of `fill`; the sizes overflow, or do not add up to the header's; there is no memory for the table.
    pub fn read(
        header: &FixedHeader,
        payloads: PayloadTable,
        fill: impl FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let mut column = Column::new("original", 0, header.chunk_count)?;
        read_sizes(header.chunk_count, fill, |size| column.push(size))?;
        let table = Self {
            payloads,
            original_ends: column.finish(),
        };
        table.check_sum(header)?;
        Ok(table)
    }

    /// A table of payloads whose original sizes, in bytes, were found in another way: as many as there are payloads.
    ///
    /// # Errors
    /// The sizes overflow, or do not add up to the header's.
    pub fn of_sizes(
        header: &FixedHeader,
        payloads: PayloadTable,
        mut sizes: Vec<u64>,
    ) -> Result<Self> {
        let mut end = 0;
        for (chunk, size) in sizes.iter_mut().enumerate() {
            end = add("original", end, *size, chunk)?;
            *size = end;
        }
        let table = Self {
            payloads,
            original_ends: sizes.into_boxed_slice(),
        };
        table.check_sum(header)?;
        Ok(table)
    }

    /// A table of the given sizes, in bytes.
    #[cfg(test)]
    pub(crate) fn new(
        payload_start: u64,
        compressed_sizes: impl ExactSizeIterator<Item = u64>,
        original_sizes: impl ExactSizeIterator<Item = u64>,
    ) -> Result<Self> {
        let column = |name, start, sizes: &mut dyn ExactSizeIterator<Item = u64>| {
            let mut column = Column::new(name, start, sizes.len() as u32)?;
            for size in sizes {
                column.push(size)?;
            }
            Ok::<_, Error>(column.finish())
        };
        let (mut compressed_sizes, mut original_sizes) = (compressed_sizes, original_sizes);
        Ok(Self {
            payloads: PayloadTable {
                start: payload_start,
                ends: column("compressed", payload_start, &mut compressed_sizes)?,
            },
            original_ends: column("original", 0, &mut original_sizes)?,
        })
    }

    /// Checks that the chunks make up the file the header announces.
    ///
    /// # Errors
    /// [`ErrorKind::SizeSum`] if they do not.
    fn check_sum(&self, header: &FixedHeader) -> Result<()> {
        if self.original_size() != header.original_size {
            return Err(ErrorKind::SizeSum {
                sum: self.original_size(),
                header: header.original_size,
            }
            .into());
        }
        Ok(())
    }

    /// How many chunks there are.
    pub fn len(&self) -> u32 {
        // A header's count has 32 bits, so the cast loses nothing.
        self.original_ends.len() as u32
    }

    /// Whether there are no chunks.
    pub fn is_empty(&self) -> bool {
        self.original_ends.is_empty()
    }

    /// Where a chunk's payload lies in the file, in bytes; `None` past the last chunk.
    pub fn compressed_range(&self, chunk: u32) -> Option<Range<u64>> {
        self.payloads.range(chunk)
    }

    /// Which bytes of the original a chunk holds; `None` past the last chunk.
    pub fn original_range(&self, chunk: u32) -> Option<Range<u64>> {
        range_between(&self.original_ends, 0, chunk)
    }

    /// The chunks that hold the original bytes of `range`; empty chunks among them are included.
    pub fn chunks_holding(&self, range: &Range<u64>) -> Range<u32> {
        if range.is_empty() {
            return 0..0;
        }
        let first = self
            .original_ends
            .partition_point(|&end| end <= range.start);
        let behind = self.original_ends.partition_point(|&end| end < range.end);
        let end = (behind + 1).min(self.original_ends.len());
        first as u32..end.max(first) as u32
    }

    /// The size of all chunks together when decoded, in bytes.
    pub fn original_size(&self) -> u64 {
        self.original_ends.last().copied().unwrap_or(0)
    }

    /// Where the last payload ends and a footer may begin, in bytes from the start of the file.
    pub fn payload_end(&self) -> u64 {
        self.payloads.end()
    }

    /// The memory the table takes, in bytes.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.payloads.ends) + size_of_val(&*self.original_ends)
    }
}

/// The running sums of one kind of size, as they are read.
struct Column {
    name: &'static str,
    end: u64,
    ends: Vec<u64>,
}

impl Column {
    /// A column for `count` sizes, whose sums begin at `start`. It takes memory as it grows.
    fn new(name: &'static str, start: u64, count: u32) -> Result<Self> {
        let mut ends = Vec::new();
        ends.try_reserve_exact(count as usize).map_err(|_| {
            Error::unusable(format!(
                "a table of {count} chunks is more than there is memory for"
            ))
        })?;
        Ok(Self {
            name,
            end: start,
            ends,
        })
    }

    fn push(&mut self, size: u64) -> Result<()> {
        self.end = add(self.name, self.end, size, self.ends.len())?;
        self.ends.push(self.end);
        Ok(())
    }

    fn finish(self) -> Box<[u64]> {
        self.ends.into_boxed_slice()
    }
}

fn add(column: &'static str, end: u64, size: u64, chunk: usize) -> Result<u64> {
    let sum = end.checked_add(size).ok_or(ErrorKind::SizesOverflow {
        chunk: chunk as u32,
        sizes: column,
    })?;
    Ok(sum)
}

/// Hands the next `count` sizes of a table to `take`.
fn read_sizes(
    count: u32,
    mut fill: impl FnMut(&mut [u8]) -> Result<()>,
    mut take: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut block = [[0; 8]; TABLE_BLOCK_LEN / 8];
    let mut left = count as usize;
    while left > 0 {
        let wanted = left.min(block.len());
        let sizes = block.get_mut(..wanted).unwrap_or_default();
        fill(sizes.as_flattened_mut())?;
        for size in sizes {
            take(u64::from_le_bytes(*size))?;
        }
        left -= wanted;
    }
    Ok(())
}

fn range_between(ends: &[u64], start: u64, chunk: u32) -> Option<Range<u64>> {
    let chunk = chunk as usize;
    let end = *ends.get(chunk)?;
    let begin = match chunk.checked_sub(1) {
        Some(before) => *ends.get(before)?,
        None => start,
    };
    Some(begin..end)
}
