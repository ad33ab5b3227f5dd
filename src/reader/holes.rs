//! Where an original has data and where it has holes, for SEEK_DATA and SEEK_HOLE.
//!
//! A record of digests says which leaves are zeros; where it is damaged, all is data. In a file without one, a chunk is a hole if it
//! decodes to nothing but zeros; most are known by their payloads ([`crate::zeros`]), so that no sparse disk image is decoded from end to
//! end for it. What is not proved to be a hole is data, which is always a right answer: what cannot be decoded too, because it is for
//! reading to say so.

use std::ops::Range;

use super::{Reader, Shared};
use crate::archive::Record;
use crate::error::{ErrorKind, Result};
use crate::memory::{Buffer, Urgency};
use crate::zeros::is_zero;

impl Reader {
    /// The first offset at or behind `offset` that may hold something else than zeros; `None` if there is none before
    /// the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        self.find(offset, false)
    }

    /// The first offset at or behind `offset` from which on a whole leaf of 32 KiB (of 64 KiB if reads are proved; without a record of
    /// digests a whole chunk) holds only zeros; the end of the file counts as such. `None` if `offset` is at or behind the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_hole(&self, offset: u64) -> Result<Option<u64>> {
        match offset < self.len() {
            true => Ok(Some(self.find(offset, true)?.unwrap_or(self.len()))),
            false => Ok(None),
        }
    }

    fn find(&self, offset: u64, hole: bool) -> Result<Option<u64>> {
        if offset >= self.len() {
            return Ok(None);
        }
        if let Some(record) = self.shared.archive.record() {
            self.shared.archive.check_unchanged()?;
            return self.find_in_record(record, offset, hole);
        }
        let table = self.shared.archive.table();
        for chunk in table.chunks_holding(&(offset..self.len())) {
            let bytes = table.original_range(chunk).unwrap_or_default();
            if !bytes.is_empty() && self.is_hole(chunk, &bytes)? == hole {
                return Ok(Some(bytes.start.max(offset)));
            }
        }
        Ok(None)
    }

    fn find_in_record(&self, record: &Record, offset: u64, hole: bool) -> Result<Option<u64>> {
        let layout = record.layout();
        for page in offset / layout.page_len..layout.page_count(self.len()) {
            let Some(leaves) = self.shared.archive.leaves_of_page(record, page)? else {
                match hole {
                    true => continue,
                    false => {
                        return Ok(Some(layout.page_range(page, self.len()).start.max(offset)));
                    }
                }
            };
            let found = leaves
                .into_iter()
                .find(|(range, zeros)| range.end > offset && *zeros == hole);
            if let Some((range, _)) = found {
                return Ok(Some(range.start.max(offset)));
            }
        }
        Ok(None)
    }

    fn is_hole(&self, chunk: u32, bytes: &Range<u64>) -> Result<bool> {
        let (shared, archive) = (&self.shared, &self.shared.archive);
        if !archive.may_be_zeros(chunk)? {
            return Ok(false);
        }
        let compare = || -> Result<bool> {
            let known = archive.is_zeros_by(chunk, &mut shared.room_for_payload(chunk)?)?;
            if let Some(known) = known {
                return Ok(known);
            }
            let mut offset = bytes.start;
            while offset < bytes.end
                && let Some(decoded) = shared.unit_holding(offset, |_| 0)?
            {
                if !is_zero(&decoded.unit) {
                    return Ok(false);
                }
                offset = decoded.bytes.end;
            }
            // Some of it may have been decoded before, and by several.
            archive.learn_zero_chunk_by(chunk, &mut shared.room_for_payload(chunk)?)?;
            Ok(true)
        };
        match compare() {
            Err(error)
                if error.is_damage() || matches!(error.kind(), ErrorKind::OverBudget { .. }) =>
            {
                Ok(false)
            }
            other => other,
        }
    }
}

impl Shared {
    /// Room to read a chunk's payload to at once: of what is far away, each step would be a request.
    fn room_for_payload(&self, chunk: u32) -> Result<Buffer> {
        let [length, _] = self.lengths(chunk);
        let room = self.engine.acquire([length], 0, Urgency::Demand)?;
        let ([room], _) = room.ok_or(ErrorKind::Cancelled)?;
        Ok(room)
    }
}

#[cfg(test)]
#[cfg(feature = "files")]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use crate::format::Codec;
    use crate::job::Control;
    use crate::pack::{PackOptions, pack_file};
    use crate::reader::{Engine, EngineOptions, Reader};

    const CODECS: [Codec; 4] = [Codec::Lz4, Codec::Zstd, Codec::Snappy, Codec::Brotli];
    /// Decoded by one call, and piece by piece.
    const CHUNKS: [usize; 2] = [64 << 10, 2 << 20];

    /// Two chunks of zeros, one of ones, whose payload is as long, another of zeros, and half of one.
    fn original(chunk: usize) -> Vec<u8> {
        let mut bytes = vec![0; 4 * chunk + chunk / 2];
        bytes[2 * chunk..3 * chunk].fill(1);
        bytes
    }

    fn packed(codec: Codec, chunk: usize) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let (plain, packed) = (directory.path().join("x"), directory.path().join("x.warp"));
        fs::write(&plain, original(chunk)).unwrap();
        let options = PackOptions {
            codec: Some(codec),
            chunk_size: Some(chunk as u64),
            ..PackOptions::default()
        };
        pack_file(&plain, &packed, &options, Control::default()).unwrap();
        (directory, packed)
    }

    fn open(path: &Path) -> Reader {
        let options = EngineOptions {
            cache_size: 16 << 20,
            threads: 1,
            prefetch: Some(0),
            ..EngineOptions::default()
        };
        Engine::new(&options).unwrap().open(path).unwrap()
    }

    fn known(reader: &Reader) -> Vec<Option<bool>> {
        let archive = &reader.shared.archive;
        (0..5)
            .map(|chunk| archive.is_zeros(chunk).unwrap())
            .collect()
    }

    #[test]
    fn what_is_read_of_one_chunk_of_zeros_makes_all_that_are_like_it_known_and_no_other() {
        for codec in CODECS {
            for chunk in CHUNKS {
                let (_directory, path) = packed(codec, chunk);
                let original = original(chunk);
                let reader = open(&path);
                let case = format!("{codec:?} {chunk}");
                assert_eq!(known(&reader)[1], None, "{case}");
                let mut bytes = vec![1; chunk];
                reader.read_at(&mut bytes, 0).unwrap();
                assert!(bytes == original[..chunk], "{case}");
                assert_eq!(
                    known(&reader),
                    [Some(true), Some(true), Some(false), Some(true), None],
                    "{case}"
                );
                let mut bytes = vec![1; original.len()];
                assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), original.len());
                assert!(bytes == original, "{case}");
                for offset in [3 * chunk - 2, 3 * chunk + 5, original.len() - 100] {
                    let mut bytes = [1; 90];
                    reader.read_at(&mut bytes, offset as u64).unwrap();
                    assert!(bytes == original[offset..offset + 90], "{case} {offset}");
                }
            }
        }
    }

    #[test]
    fn a_stream_of_known_zeros_has_no_decoder_and_begins_anywhere() {
        let (_directory, path) = packed(Codec::Zstd, CHUNKS[1]);
        let reader = open(&path);
        let archive = &reader.shared.archive;
        assert!(archive.plain_stream(1, true).unwrap().is_none());
        reader.read_at(&mut vec![1; CHUNKS[1]], 0).unwrap();
        let stream = archive.plain_stream(1, true).unwrap().unwrap();
        let mut output = [1; 9];
        let mut branch = stream.branch(&(1 << 20..(1 << 20) + 9)).unwrap();
        archive.decode_on(1, &mut branch, &mut output).unwrap();
        assert_eq!(output, [0; 9]);
    }
}
