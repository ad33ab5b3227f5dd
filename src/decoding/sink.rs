//! Where decoded chunks go.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::digest::Content;
use crate::error::{Error, IoContext, Result};
use crate::zeros::is_zero;

/// The unit in which zeros are left out of a file, in bytes: what file systems make holes of.
const BLOCK_LEN: u64 = 4096;
/// How much is read at a time to be compared, in bytes.
const COMPARE_LEN: usize = 256 << 10;

/// Where the decoded bytes go.
pub(crate) enum Sink<'a> {
    /// They are only checked.
    Nowhere,
    /// Into a new file, each chunk at its place; where only zeros would be written the file keeps its holes.
    File(&'a File, &'a Path),
    /// Nowhere, but compared with a file that holds them already.
    Compare(&'a File, &'a Path),
    /// Out in order.
    Stream(&'a mut (dyn Write + Send), &'a Path),
}

/// What is done with a chunk's bytes by whoever decoded it.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Nowhere,
    Write(&'a File, &'a Path),
    Compare(&'a File, &'a Path),
}

impl Place<'_> {
    /// Takes a part of a chunk that belongs at `offset`.
    pub(super) fn take(self, content: Content<'_>, part: Range<u64>, offset: u64) -> Result<()> {
        match (self, content) {
            (Place::Nowhere, _) | (Place::Write(..), Content::Zeros(_)) => Ok(()),
            (Place::Write(file, path), Content::Bytes(bytes)) => {
                let bytes = bytes.get(part.start as usize..part.end as usize);
                write_around_zeros(file, bytes.unwrap_or(&[]), offset).context("cannot write", path)
            }
            (Place::Compare(file, path), content) => {
                compare_with_file(content, part, file, path, offset)
            }
        }
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
