//! Decoded bytes and a file: written around its holes, or compared with what it holds.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::writeback::Writeback;
use crate::decoding::Placed;
use crate::digest::Content;
use crate::error::{Error, IoContext, Result};
use crate::zeros::is_zero;

/// The unit in which zeros are left out of a file, in bytes: what file systems make holes of.
const BLOCK_LEN: u64 = 4096;
/// How much is read at a time to be compared, in bytes.
const COMPARE_LEN: usize = 256 << 10;

/// A new file, extended to its length and not written to yet: where only zeros would be written it keeps its holes.
pub(crate) struct Filled<'a> {
    file: &'a File,
    path: &'a Path,
    writeback: Mutex<Writeback<'a>>,
}

impl<'a> Filled<'a> {
    /// `path` is what the file is called in messages.
    pub(crate) fn new(file: &'a File, path: &'a Path) -> Self {
        Self {
            file,
            path,
            writeback: Mutex::new(Writeback::new(file)),
        }
    }
}

impl Placed for Filled<'_> {
    fn place(&self, content: Content<'_>, part: Range<u64>, offset: u64) -> Result<()> {
        let Content::Bytes(bytes) = content else {
            return Ok(());
        };
        let bytes = bytes.get(part.start as usize..part.end as usize);
        write_around_zeros(self.file, bytes.unwrap_or(&[]), offset)
            .context("cannot write", self.path)
    }

    fn placed_up_to(&self, end: u64) {
        let writeback = self.writeback.lock();
        writeback
            .unwrap_or_else(PoisonError::into_inner)
            .written_up_to(end);
    }
}

/// A file that has to hold what was decoded.
pub(crate) struct Compared<'a> {
    pub(crate) file: &'a File,
    /// What it is called in messages.
    pub(crate) path: &'a Path,
}

impl Placed for Compared<'_> {
    fn place(&self, content: Content<'_>, part: Range<u64>, offset: u64) -> Result<()> {
        compare_with_file(content, part, self.file, self.path, offset)
    }
}

/// Writes `bytes` at `offset` but for the aligned blocks of them that are all zero: a file that was extended without
/// being written has these already, as holes.
fn write_around_zeros(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let mut pending = 0..0_usize;
    let mut end = 0;
    while end < bytes.len() {
        let start = end;
        let to_boundary = BLOCK_LEN - (offset + start as u64) % BLOCK_LEN;
        end = bytes.len().min(start + to_boundary as usize);
        let block = bytes.get(start..end).unwrap_or(&[]);
        match (is_zero(block), pending.is_empty()) {
            (true, true) => {}
            (true, false) => {
                write_part(file, bytes, &pending, offset)?;
                pending = 0..0;
            }
            (false, true) => pending = start..end,
            (false, false) => pending.end = end,
        }
    }
    write_part(file, bytes, &pending, offset)
}

fn write_part(file: &File, bytes: &[u8], part: &Range<usize>, offset: u64) -> std::io::Result<()> {
    let bytes = bytes.get(part.clone()).unwrap_or(&[]);
    file.write_all_at(bytes, offset + part.start as u64)
}

/// Checks that a file holds a part of a chunk at `offset`.
fn compare_with_file(
    content: Content<'_>,
    part: Range<u64>,
    file: &File,
    path: &Path,
    offset: u64,
) -> Result<()> {
    let mut offset = offset;
    let mut read = vec![0; COMPARE_LEN];
    content.pieces(part, |bytes| {
        for bytes in bytes.chunks(COMPARE_LEN) {
            let read = read.get_mut(..bytes.len()).unwrap_or(&mut []);
            file.read_exact_at(read, offset)
                .context("cannot read back", path)?;
            if read != bytes {
                let why = format!("reads back other bytes than were written, from byte {offset}");
                return Err(Error::unusable(why).in_file(path));
            }
            offset += bytes.len() as u64;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn writing_around_zeros_leaves_the_same_bytes(
            runs in proptest::collection::vec((any::<bool>(), 0_usize..20_000), 0..8),
            offset in 0_u64..10_000,
        ) {
            let bytes: Vec<u8> = runs
                .iter()
                .flat_map(|&(zero, len)| std::iter::repeat_n(if zero { 0 } else { 9 }, len))
                .collect();
            let file = tempfile::tempfile().unwrap();
            file.set_len(offset + bytes.len() as u64).unwrap();
            write_around_zeros(&file, &bytes, offset).unwrap();
            let mut read = vec![1; bytes.len()];
            file.read_exact_at(&mut read, offset).unwrap();
            prop_assert!(read == bytes);
        }
    }
}
