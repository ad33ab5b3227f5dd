//! All chunks of an archive, or those of a range, decoded in parallel and checked: what `unpack` and `verify` share.
//!
//! A chunk whose payload is the very bytes that were found to be zeros before is not decoded again, so that what was a
//! hole costs its checksum only. A chunk announced to be huge, out of all proportion to its payload, is measured first, in
//! little memory: an announcement alone makes nobody allocate it.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::archive::Archive;
use crate::codec;
use crate::digest::{Assembler, Content, Subtrees, hashes_in_parallel, subtrees};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::Footer;
use crate::job::{ChunkReport, Control, threads_for};
use crate::ordered::{self, Buffers, resize};
use crate::output::Writeback;
use crate::zeros::is_zero;

/// From which announced size on a chunk is suspected to be announced only, in bytes.
const SUSPECT_FROM: u64 = 32 << 20;
/// How many times its payload's size such a chunk may have and is still believed. Measuring is decoding, so what data
/// compresses to is not to be measured; long runs of one byte do better than this, and are quick to decode.
const BELIEVED_RATIO: u64 = 1000;
/// The longest payload that is remembered as one of zeros, in bytes.
const LONGEST_ZERO_PAYLOAD: usize = 4 << 20;
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

/// Decodes every chunk, and checks the whole against `digest`.
///
/// # Errors
/// The first chunk's that is damaged or cannot be written, [`ErrorKind::ChecksumMismatch`], or [`ErrorKind::Cancelled`].
pub(crate) fn decode_all(
    archive: &Archive,
    digest: Option<&Footer>,
    threads: usize,
    control: Control<'_>,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let table = archive.table();
    let starts = || (0..table.len()).filter_map(|chunk| table.original_range(chunk));
    let mut checksum = digest.map(|footer| {
        let parallel = hashes_in_parallel(footer.checksum, starts().map(|range| range.start));
        (Assembler::new(footer.checksum, parallel), parallel)
    });
    let job = Decoder {
        archive,
        control,
        range: 0..table.original_size(),
        zeros: Mutex::default(),
        buffers: Buffers::default(),
    };
    job.run(0..table.len(), threads, sink, checksum.as_mut())?;
    if let Some((footer, (assembler, _))) = digest.zip(checksum) {
        compare(footer, &assembler.finish()).map_err(|error| error.in_file(archive.path()))?;
    }
    Ok(())
}

/// Decodes the chunks that hold `range` of the original, in bytes; the sink gets that range alone, from its own offset 0.
///
/// # Errors
/// As [`decode_all`], but for the checksum, which is the whole file's.
pub(crate) fn decode_range(
    archive: &Archive,
    range: Range<u64>,
    threads: usize,
    control: Control<'_>,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let chunks = archive.table().chunks_holding(&range);
    let job = Decoder {
        archive,
        control,
        range,
        zeros: Mutex::default(),
        buffers: Buffers::default(),
    };
    job.run(chunks, threads, sink, None)
}

fn compare(footer: &Footer, computed: &[u8]) -> Result<()> {
    if footer.digest == computed {
        return Ok(());
    }
    Err(ErrorKind::ChecksumMismatch {
        checksum: footer.checksum,
        stored: hexadecimal(&footer.digest),
        computed: hexadecimal(computed),
    }
    .into())
}

/// A digest as people write it.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Decoder<'a> {
    archive: &'a Archive,
    control: Control<'a>,
    /// The bytes of the original that are wanted.
    range: Range<u64>,
    /// The payload last found to be zeros, and of how many.
    zeros: Mutex<Option<Arc<ZeroChunk>>>,
    buffers: Buffers,
}

struct ZeroChunk {
    payload: Vec<u8>,
    len: u64,
}

/// A chunk decoded.
struct Decoded {
    chunk: u32,
    original_size: u64,
    packed_size: u64,
    content: Kept,
    subtrees: Option<Subtrees>,
    started: Instant,
}

/// What is done with a chunk's bytes by whoever decoded it.
#[derive(Clone, Copy)]
enum Place<'a> {
    Nowhere,
    Write(&'a File, &'a Path),
    Compare(&'a File, &'a Path),
}

/// What is kept of a chunk until its turn comes.
enum Kept {
    Nothing,
    Zeros(u64),
    Bytes(Vec<u8>),
}

impl Decoder<'_> {
    fn run(
        &self,
        chunks: Range<u32>,
        threads: usize,
        sink: &mut Sink<'_>,
        mut checksum: Option<&mut (Assembler, bool)>,
    ) -> Result<()> {
        let threads = threads_for(threads, chunks.len() as u64);
        let parallel_hash = checksum.as_ref().is_some_and(|(_, parallel)| *parallel);
        let ordered_hash = checksum.is_some() && !parallel_hash;
        let mut writeback = None;
        let (place, mut stream) = match sink {
            Sink::Nowhere => (Place::Nowhere, None),
            Sink::File(file, path) => {
                writeback = Some(Writeback::new(file));
                (Place::Write(file, path), None)
            }
            Sink::Compare(file, path) => (Place::Compare(file, path), None),
            Sink::Stream(stream, path) => (Place::Nowhere, Some((stream, *path))),
        };
        let keep = ordered_hash || stream.is_some();
        let mut chunks = chunks;
        ordered::run(
            threads,
            self.control.cancelled,
            Vec::new,
            || Ok(chunks.next()),
            |payload: &mut Vec<u8>, chunk| self.decode(chunk, payload, place, parallel_hash, keep),
            |decoded: Decoded| {
                let content = match &decoded.content {
                    Kept::Nothing => Content::Zeros(0),
                    Kept::Zeros(len) => Content::Zeros(*len),
                    Kept::Bytes(bytes) => Content::Bytes(bytes),
                };
                let wanted = self.wanted(decoded.chunk);
                if let Some(writeback) = &mut writeback {
                    writeback.written_up_to(self.sink_offset(decoded.chunk, wanted.end));
                }
                if let Some((stream, path)) = &mut stream {
                    content.pieces(wanted, |bytes| {
                        let written = stream.write_all(bytes);
                        // A stream that was given up because of the signal has not failed.
                        match written.is_err() && self.control.cancelled.load(Ordering::Relaxed) {
                            true => Err(ErrorKind::Cancelled.into()),
                            false => written.context("cannot write", path),
                        }
                    })?;
                }
                if let Some((assembler, _)) = &mut checksum {
                    match decoded.subtrees {
                        Some(subtrees) => assembler.push_subtrees(subtrees),
                        None => assembler.push_content(content),
                    }
                }
                self.control.observer.chunk(
                    self.archive.path(),
                    &ChunkReport {
                        chunk: decoded.chunk,
                        original_size: decoded.original_size,
                        packed_size: decoded.packed_size,
                        elapsed: decoded.started.elapsed(),
                    },
                );
                if let Kept::Bytes(bytes) = decoded.content {
                    self.buffers.give(bytes);
                }
                Ok(())
            },
        )
        .map_err(|error| error.in_file(self.archive.path()))
    }

    /// The part of a chunk that is wanted, counted from the chunk's own beginning.
    fn wanted(&self, chunk: u32) -> Range<u64> {
        let held = self.archive.table().original_range(chunk).unwrap_or(0..0);
        let start = self.range.start.clamp(held.start, held.end);
        let end = self.range.end.clamp(start, held.end);
        start - held.start..end - held.start
    }

    /// Where the sink has, or is to have, the byte at `within` of a chunk's wanted part.
    fn sink_offset(&self, chunk: u32, within: u64) -> u64 {
        let held = self.archive.table().original_range(chunk).unwrap_or(0..0);
        (held.start + within).saturating_sub(self.range.start)
    }

    fn decode(
        &self,
        chunk: u32,
        payload: &mut Vec<u8>,
        place: Place<'_>,
        parallel_hash: bool,
        keep: bool,
    ) -> Result<Decoded> {
        let started = Instant::now();
        let held = self.archive.table().original_range(chunk).unwrap_or(0..0);
        let len = held.end - held.start;
        self.archive.read_payload(chunk, payload)?;
        let bytes = match self.is_known_zeros(payload, len) {
            true => None,
            false => self
                .decode_bytes(payload, len)
                .map_err(|error| error.in_chunk(chunk, held.start))?,
        };
        let content = match &bytes {
            None => Content::Zeros(len),
            Some(bytes) => Content::Bytes(bytes),
        };
        let wanted = self.wanted(chunk);
        let offset = self.sink_offset(chunk, wanted.start);
        match (place, content) {
            (Place::Nowhere, _) | (Place::Write(..), Content::Zeros(_)) => {}
            (Place::Write(file, path), Content::Bytes(bytes)) => {
                let bytes = bytes.get(wanted.start as usize..wanted.end as usize);
                write_around_zeros(file, bytes.unwrap_or(&[]), offset)
                    .context("cannot write", path)?;
            }
            (Place::Compare(file, path), content) => {
                compare_with_file(content, wanted, file, path, offset)?;
            }
        }
        let subtrees = parallel_hash.then(|| subtrees(held.start, content));
        let content = match bytes {
            Some(bytes) if keep => Kept::Bytes(bytes),
            None if keep => Kept::Zeros(len),
            Some(bytes) => {
                self.buffers.give(bytes);
                Kept::Nothing
            }
            None => Kept::Nothing,
        };
        Ok(Decoded {
            chunk,
            original_size: len,
            packed_size: payload.len() as u64,
            content,
            subtrees,
            started,
        })
    }

    /// Decodes a payload; `None` if all of it is zeros.
    fn decode_bytes(&self, payload: &[u8], len: u64) -> Result<Option<Vec<u8>>> {
        let codec = self.archive.header().codec;
        if is_suspect(payload.len() as u64, len) {
            let found = codec::measure(codec, payload, len, self.control.cancelled)?;
            if found != len {
                return Err(Error::new(ErrorKind::DecodedSize {
                    codec,
                    announced: len,
                    found: found.to_string(),
                }));
            }
        }
        let mut bytes = self.buffers.take();
        resize(&mut bytes, len)?;
        codec::decode_into(codec, payload, &mut bytes)?;
        if !is_zero(&bytes) {
            return Ok(Some(bytes));
        }
        self.buffers.give(bytes);
        if payload.len() <= LONGEST_ZERO_PAYLOAD {
            let known = Arc::new(ZeroChunk {
                payload: payload.to_vec(),
                len,
            });
            *self.zeros.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        }
        Ok(None)
    }

    fn is_known_zeros(&self, payload: &[u8], len: u64) -> bool {
        let known = {
            let zeros = self.zeros.lock().unwrap_or_else(PoisonError::into_inner);
            zeros.clone()
        };
        known.is_some_and(|known| known.len == len && known.payload == payload)
    }
}

/// Whether a chunk of `len` bytes is to be measured before memory is taken for it.
fn is_suspect(payload_len: u64, len: u64) -> bool {
    len >= SUSPECT_FROM && len / BELIEVED_RATIO > payload_len
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

    #[test]
    fn a_large_chunk_of_data_is_decoded_once_and_a_bomb_measured_first() {
        // What `--level throughput` makes of large files: chunks of 32 MiB, text even at 200:1.
        assert!(!is_suspect(12 << 20, 32 << 20));
        assert!(!is_suspect(160 << 10, 32 << 20));
        assert!(!is_suspect(20 << 20, 1 << 30));
        assert!(is_suspect(2_000, 16 << 30));
    }

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
