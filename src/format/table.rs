//! The chunk table: where every chunk lies, in the file and in the original.
//!
//! Tables are read a block at a time and take memory only as far as what was read of them can be true: a sparse file costs
//! its author nothing, whatever its length.

use std::ops::Range;

use super::sums::Sums;
use super::{ChunkHeader, Encoding, FixedHeader, ReleaseHeader};
use crate::error::{Error, ErrorKind, Result};

/// How much of a table is read at a time, in bytes.
const TABLE_BLOCK_LEN: usize = 64 << 10;

/// Where every payload lies in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct PayloadTable {
    /// How much of the file lies in front of each payload that is none, in bytes: a chunk's header.
    gap: u64,
    sums: Sums,
}

impl PayloadTable {
    /// Reads the compressed sizes, with which every table begins. `fill` is given one block after the other to fill with
    /// the bytes that follow in the file.
    ///
    /// # Errors
    /// Those of `fill`; a size is 0, or the sizes overflow; there is no memory for the table.
    pub fn read(header: &FixedHeader, fill: impl FnMut(&mut [u8]) -> Result<()>) -> Result<Self> {
        let mut column = Column::new("compressed", header.payload_start(), header.chunk_count);
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
            gap: 0,
            sums: column.finish(),
        })
    }

    /// How many payloads there are.
    pub fn len(&self) -> u32 {
        // A header's count has 32 bits, so the cast loses nothing.
        self.sums.len() as u32
    }

    /// Whether there are no payloads.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a chunk's payload lies in the file, in bytes; `None` past the last chunk.
    pub fn range(&self, chunk: u32) -> Option<Range<u64>> {
        let with_gap = self.sums.range(chunk as usize)?;
        Some(with_gap.start.saturating_add(self.gap)..with_gap.end)
    }

    /// Where the last payload ends, in bytes from the start of the file.
    pub fn end(&self) -> u64 {
        self.sums.end()
    }
}

/// Where every chunk lies, in the file and in the original, and how it is encoded: usually 2.7 bytes a chunk, 17 at most.
///
/// Invariant: there are as many payloads as chunks.
#[derive(Debug, PartialEq, Eq)]
pub struct ChunkTable {
    payloads: PayloadTable,
    originals: Sums,
    encodings: EncodingColumn,
}

#[derive(Debug, PartialEq, Eq)]
enum EncodingColumn {
    /// All chunks have the same.
    One(Encoding),
    Each(Box<[Encoding]>),
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
        let mut column = Column::new("original", 0, header.chunk_count);
        read_sizes(header.chunk_count, fill, |size| column.push(size))?;
        let table = Self {
            payloads,
            originals: column.finish(),
            encodings: EncodingColumn::One(header.codec.into()),
        };
        table.check_sum(header)?;
        Ok(table)
    }

    /// A table of payloads whose original sizes, in bytes, were found in another way: as many as there are payloads.
    ///
    /// # Errors
    /// The sizes overflow, or do not add up to the header's.
    pub fn of_sizes(header: &FixedHeader, payloads: PayloadTable, sizes: Vec<u64>) -> Result<Self> {
        let mut column = Column::new("original", 0, payloads.len());
        sizes.into_iter().try_for_each(|size| column.push(size))?;
        let table = Self {
            payloads,
            originals: column.finish(),
            encodings: EncodingColumn::One(header.codec.into()),
        };
        table.check_sum(header)?;
        Ok(table)
    }

    /// The same table, of chunks that are all encoded like this.
    #[cfg(test)]
    pub(crate) fn encoded_as(mut self, encoding: Encoding) -> Self {
        self.encodings = EncodingColumn::One(encoding);
        self
    }

    /// A table of the given sizes, in bytes.
    #[cfg(test)]
    pub(crate) fn new(
        payload_start: u64,
        compressed_sizes: impl ExactSizeIterator<Item = u64>,
        original_sizes: impl ExactSizeIterator<Item = u64>,
    ) -> Result<Self> {
        let column = |name, start, sizes: &mut dyn ExactSizeIterator<Item = u64>| {
            let mut column = Column::new(name, start, sizes.len() as u32);
            for size in sizes {
                column.push(size)?;
            }
            Ok::<_, Error>(column.finish())
        };
        let (mut compressed_sizes, mut original_sizes) = (compressed_sizes, original_sizes);
        Ok(Self {
            payloads: PayloadTable {
                gap: 0,
                sums: column("compressed", payload_start, &mut compressed_sizes)?,
            },
            originals: column("original", 0, &mut original_sizes)?,
            encodings: EncodingColumn::One(Encoding::Zstd),
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
        self.originals.len() as u32
    }

    /// Whether there are no chunks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a chunk's payload lies in the file, in bytes; `None` past the last chunk.
    pub fn compressed_range(&self, chunk: u32) -> Option<Range<u64>> {
        self.payloads.range(chunk)
    }

    /// How a chunk is encoded; `None` past the last chunk.
    pub fn encoding(&self, chunk: u32) -> Option<Encoding> {
        match &self.encodings {
            EncodingColumn::One(encoding) => (chunk < self.len()).then_some(*encoding),
            EncodingColumn::Each(encodings) => encodings.get(chunk as usize).copied(),
        }
    }

    /// Which bytes of the original a chunk holds; `None` past the last chunk.
    pub fn original_range(&self, chunk: u32) -> Option<Range<u64>> {
        self.originals.range(chunk as usize)
    }

    /// The chunks that hold the original bytes of `range`; empty chunks among them are included.
    pub fn chunks_holding(&self, range: &Range<u64>) -> Range<u32> {
        if range.is_empty() {
            return 0..0;
        }
        let first = self.originals.count_up_to(range.start);
        let behind = self.originals.count_up_to(range.end - 1);
        let end = (behind + 1).min(self.originals.len());
        first as u32..end.max(first) as u32
    }

    /// How large each chunk is but for the last when decoded, in bytes, where all of those are of one size and the last is no larger.
    pub fn even_chunk_size(&self) -> Option<u64> {
        self.originals.even_size()
    }

    /// The size of all chunks together when decoded, in bytes.
    pub fn original_size(&self) -> u64 {
        self.originals.end()
    }

    /// Where the last payload ends and a footer may begin, in bytes from the start of the file.
    pub fn payload_end(&self) -> u64 {
        self.payloads.end()
    }

    /// The memory the table takes, in bytes.
    pub fn memory(&self) -> usize {
        let encodings = match &self.encodings {
            EncodingColumn::One(_) => 0,
            EncodingColumn::Each(encodings) => size_of_val(&**encodings),
        };
        self.payloads.sums.memory() + self.originals.memory() + encodings
    }
}

/// A table in the making, of chunks whose headers stand in front of their payloads.
#[derive(Debug)]
pub struct ReleaseTable {
    gap: u64,
    payloads: Column,
    originals: Column,
    encodings: Vec<Encoding>,
}

impl ReleaseTable {
    /// A table for `count` chunks.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(header: &ReleaseHeader, count: u32) -> Result<Self> {
        Ok(Self {
            gap: header.release.chunk_header_len() as u64,
            payloads: Column::new("compressed", header.chunks_start(), count),
            originals: Column::new("original", 0, count),
            encodings: room_for(count)?,
        })
    }

    /// Adds the next chunk.
    ///
    /// # Errors
    /// The sizes overflow.
    pub fn push(&mut self, chunk: &ChunkHeader) -> Result<()> {
        self.push_sizes(
            chunk.encoding,
            u64::from(chunk.packed_size),
            u64::from(chunk.original_size),
        )
    }

    /// Adds a chunk of `original` bytes at the end, which the file was cut off before: its payload lies behind the file's end.
    ///
    /// # Errors
    /// The sizes overflow.
    pub fn push_lost(&mut self, original: u64) -> Result<()> {
        self.push_sizes(Encoding::Stored, 1, original)
    }

    fn push_sizes(&mut self, encoding: Encoding, packed: u64, original: u64) -> Result<()> {
        self.payloads.push(self.gap.saturating_add(packed))?;
        self.originals.push(original)?;
        self.encodings.push(encoding);
        Ok(())
    }

    /// The table of all that was added.
    pub fn finish(self) -> ChunkTable {
        let encodings = match self.encodings.first() {
            Some(&first) if self.encodings.iter().all(|&other| other == first) => {
                EncodingColumn::One(first)
            }
            _ => EncodingColumn::Each(self.encodings.into_boxed_slice()),
        };
        ChunkTable {
            payloads: PayloadTable {
                gap: self.gap,
                sums: self.payloads.finish(),
            },
            originals: self.originals.finish(),
            encodings,
        }
    }
}

/// The running sums of one kind of size, as they are read.
#[derive(Debug)]
struct Column {
    name: &'static str,
    sums: Sums,
}

impl Column {
    /// A column of `count` sizes, whose sums begin at `start`. It takes memory as it grows.
    fn new(name: &'static str, start: u64, count: u32) -> Self {
        Self {
            name,
            sums: Sums::new(start, count as usize),
        }
    }

    fn push(&mut self, size: u64) -> Result<()> {
        if self.sums.push(size).is_some() {
            return Ok(());
        }
        let chunk = self.sums.len();
        Err(match self.sums.end().checked_add(size) {
            None => ErrorKind::SizesOverflow {
                chunk: chunk as u32,
                sizes: self.name,
            }
            .into(),
            Some(_) => no_memory(chunk),
        })
    }

    fn finish(mut self) -> Sums {
        self.sums.shrink();
        self.sums
    }
}

/// Room for something of each of so many chunks.
fn room_for<T>(count: u32) -> Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(count as usize)
        .map_err(|_| no_memory(count as usize))?;
    Ok(room)
}

fn no_memory(chunks: usize) -> Error {
    ErrorKind::NoMemory(format!("a table of {chunks} chunks")).into()
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
