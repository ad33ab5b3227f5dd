//! The chunks of an archive, decoded in parallel and given out in order.
//!
//! A chunk whose payload is the very bytes that were found to be zeros before is not decoded again, so that what was a
//! hole costs its checksum only. A chunk announced to be huge beside its payload is measured first, in little memory: an
//! announcement alone makes nobody allocate it.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::proof::Proof;
use super::salvage::{Loss, salvage};
use super::sink::{Placed, Sink};
use super::{Decoding, is_of_record};
use crate::codec;
use crate::digest::{Content, Leaf, Subtrees, leaf_digests, subtrees};
use crate::error::{Error, ErrorKind, IoContext, Part, Result};
use crate::format::Encoding;
use crate::job::{ChunkReport, threads_for};
use crate::ordered::{self, Buffers, Lent, resize};
use crate::zeros::is_zero;

/// How many bytes more than its payload has a chunk may be announced to have and is believed. Measuring is decoding, so what
/// there is usually is not to be measured: the chunks of the largest size that any writer makes by itself are just not.
const BELIEVED_EXCESS: u64 = 32 << 20;

/// See the module's description.
pub(super) struct Decoder<'a> {
    job: &'a Decoding<'a>,
    /// The bytes of the original that are wanted.
    range: Range<u64>,
    buffers: Buffers,
}

/// A chunk decoded.
pub(super) struct Decoded {
    pub(super) chunk: u32,
    pub(super) original_size: u64,
    pub(super) packed_size: u64,
    pub(super) content: Kept,
    pub(super) leaves: Vec<Leaf>,
    pub(super) subtrees: Option<Subtrees>,
    pub(super) lost: Vec<Loss>,
    pub(super) started: Instant,
}

/// What is kept of a chunk until its turn comes.
pub(super) enum Kept {
    Nothing,
    Zeros(u64),
    Bytes(Lent),
}

/// What whoever decodes a chunk has to know.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// Where its bytes go, if they do not go out in order.
    placed: Option<&'a dyn Placed>,
    /// The length of the groups to hash the chunk by, in bytes, if it is to be hashed right away.
    hash: Option<u64>,
    /// Whether the bytes are needed when the chunk's turn comes.
    keep: bool,
    /// Whether the checksum proves the whole before anybody gets it, so that a damaged record may be passed over.
    proved_later: bool,
}

impl<'a> Decoder<'a> {
    /// Decodes for this job, of which `range` is wanted, in bytes of the original.
    pub(super) fn new(job: &'a Decoding<'a>, range: Range<u64>) -> Self {
        Self {
            job,
            range,
            buffers: Buffers::default(),
        }
    }

    /// Decodes these chunks, and says how many bytes were lost, and what else could not be checked.
    pub(super) fn run(
        &self,
        chunks: Range<u32>,
        sink: &mut Sink<'_>,
        proof: &mut Proof,
    ) -> Result<(u64, Vec<Loss>)> {
        let (archive, control) = (self.job.archive, self.job.control);
        archive.expect(chunks.clone());
        let threads = threads_for(self.job.threads, chunks.len() as u64);
        let (placed, mut stream) = match sink {
            Sink::Nowhere => (None, None),
            Sink::Placed(placed) => (Some(*placed), None),
            Sink::Stream(stream, path) => (None, Some((stream, *path))),
        };
        let wanted = Wanted {
            placed,
            hash: proof.parallel.then_some(proof.group_len),
            keep: proof.needs_bytes() || stream.is_some(),
            proved_later: proof.checksum.is_some()
                && proof.record.is_none()
                && !proof.streams
                && !self.job.keep_going,
        };
        let mut chunks = chunks;
        let mut lost = 0;
        let mut unchecked: Vec<Loss> = Vec::new();
        // All behind the end of a file that was cut short is one loss.
        let mut behind_the_end: Option<Loss> = None;
        ordered::run(
            threads,
            control.cancelled,
            Vec::new,
            || Ok(chunks.next()),
            |payload: &mut Vec<u8>, chunk| self.decode(chunk, payload, wanted),
            |mut decoded: Decoded| {
                let kept = std::mem::replace(&mut decoded.content, Kept::Nothing);
                let content = match &kept {
                    Kept::Nothing => Content::Zeros(0),
                    Kept::Zeros(len) => Content::Zeros(*len),
                    Kept::Bytes(bytes) => Content::Bytes(bytes),
                };
                let part = self.wanted(decoded.chunk);
                if let Some(placed) = placed {
                    placed.placed_up_to(self.sink_offset(decoded.chunk, part.end));
                }
                if let Some((stream, path)) = &mut stream {
                    content.pieces(part, |bytes| {
                        let written = stream.write_all(bytes);
                        // A stream that was given up because of the signal has not failed.
                        match written.is_err() && control.cancelled.load(Ordering::Relaxed) {
                            true => Err(ErrorKind::Cancelled.into()),
                            false => written.context("cannot write", path),
                        }
                    })?;
                }
                for loss in &decoded.lost {
                    match (loss.kept, unchecked.last_mut()) {
                        (false, _) => {
                            lost += loss.bytes.end - loss.bytes.start;
                            match &mut behind_the_end {
                                Some(behind) => behind.bytes.end = loss.bytes.end,
                                None if is_behind_the_end(&loss.why) => {
                                    behind_the_end = Some(loss.clone());
                                }
                                None => control.observer.lost(archive.path(), loss),
                            }
                        }
                        (true, Some(last)) if last.bytes.end == loss.bytes.start => {
                            last.bytes.end = loss.bytes.end;
                        }
                        (true, _) => unchecked.push(loss.clone()),
                    }
                }
                // What is not whole cannot be proved to be.
                if lost == 0 {
                    proof.push(self.job, &mut decoded, content)?;
                }
                control.observer.chunk(
                    archive.path(),
                    &ChunkReport {
                        chunk: decoded.chunk,
                        original_size: decoded.original_size,
                        packed_size: decoded.packed_size,
                        elapsed: decoded.started.elapsed(),
                    },
                );
                if let Kept::Bytes(bytes) = kept {
                    self.buffers.give(bytes);
                }
                Ok(())
            },
        )
        .map_err(|error| error.in_file(archive.path()))?;
        if let Some(behind) = behind_the_end {
            control.observer.lost(archive.path(), &behind);
        }
        Ok((lost, unchecked))
    }

    /// Which bytes of the original a chunk holds.
    fn held(&self, chunk: u32) -> Range<u64> {
        let range = self.job.archive.table().original_range(chunk);
        range.unwrap_or_default()
    }

    /// The part of a chunk that is wanted, counted from the chunk's own beginning.
    fn wanted(&self, chunk: u32) -> Range<u64> {
        let held = self.held(chunk);
        let start = self.range.start.clamp(held.start, held.end);
        let end = self.range.end.clamp(start, held.end);
        start - held.start..end - held.start
    }

    /// Where the sink has, or is to have, the byte at `within` of a chunk's wanted part.
    fn sink_offset(&self, chunk: u32, within: u64) -> u64 {
        let held = self.held(chunk);
        (held.start + within).saturating_sub(self.range.start)
    }

    fn decode(&self, chunk: u32, payload: &mut Vec<u8>, wanted: Wanted<'_>) -> Result<Decoded> {
        let started = Instant::now();
        let archive = self.job.archive;
        let held = self.held(chunk);
        let len = held.end - held.start;
        let mut lost = Vec::new();
        let mut decoded = self.decode_payload(chunk, payload, len);
        let checked = match &decoded {
            Ok(bytes) => self.check(&held, bytes.as_deref().map(Vec::as_slice), wanted),
            Err(error) => Err(error.clone()),
        };
        let leaves = match checked.map_err(|error| error.in_chunk(chunk, held.start)) {
            Err(error) if self.job.keep_going && is_loss(&error) => {
                let error = error.in_file(archive.path());
                let whole = decoded.is_ok();
                let mut bytes = match decoded {
                    Ok(Some(bytes)) => bytes,
                    _ => {
                        let mut bytes = self.buffers.take();
                        if whole {
                            resize(&mut bytes, len)?;
                            bytes.fill(0);
                        }
                        bytes
                    }
                };
                let cancelled = self.job.control.cancelled;
                lost = salvage(archive, chunk, &held, &error, &mut bytes, whole, cancelled)?;
                let all = lost.iter().any(|loss| loss.bytes == held && !loss.kept);
                lost = self.wanted_losses(lost);
                decoded = Ok(match all {
                    true => {
                        self.buffers.give(bytes);
                        None
                    }
                    false => Some(bytes),
                });
                Vec::new()
            }
            checked => checked?,
        };
        let bytes = decoded?;
        let content = match &bytes {
            None => Content::Zeros(len),
            Some(bytes) => Content::Bytes(bytes),
        };
        let part = self.wanted(chunk);
        let offset = self.sink_offset(chunk, part.start);
        if let Some(placed) = wanted.placed {
            placed.place(content, part, offset)?;
        }
        let hash = wanted.hash.filter(|_| lost.iter().all(|loss| loss.kept));
        let subtrees = hash.map(|group_len| subtrees(held.start, content, group_len));
        let content = match bytes {
            Some(bytes) if wanted.keep => Kept::Bytes(bytes),
            None if wanted.keep => Kept::Zeros(len),
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
            leaves,
            subtrees,
            lost,
            started,
        })
    }

    /// The losses that lie in the wanted range.
    fn wanted_losses(&self, lost: Vec<Loss>) -> Vec<Loss> {
        let clip = |loss: Loss| Loss {
            bytes: loss.bytes.start.max(self.range.start)..loss.bytes.end.min(self.range.end),
            ..loss
        };
        let lost = lost.into_iter().map(clip);
        lost.filter(|loss| !loss.bytes.is_empty()).collect()
    }

    /// Decodes a chunk of `len` bytes; `None` if all of it is zeros.
    fn decode_payload(&self, chunk: u32, payload: &mut Vec<u8>, len: u64) -> Result<Option<Lent>> {
        let archive = self.job.archive;
        archive.read_payload(chunk, payload)?;
        let encoding = archive.encoding(chunk)?;
        match encoding == Encoding::Zeros || archive.is_known_zeros(encoding, payload, len) {
            true => Ok(None),
            false => self.decode_bytes(encoding, payload, len),
        }
    }

    /// Compares the leaves of a decoded chunk, `held` of the original, with the record.
    fn check(
        &self,
        held: &Range<u64>,
        bytes: Option<&[u8]>,
        wanted: Wanted<'_>,
    ) -> Result<Vec<Leaf>> {
        let archive = self.job.archive;
        let Some(record) = archive.record() else {
            return Ok(Vec::new());
        };
        let content = bytes.map_or(Content::Zeros(held.end - held.start), Content::Bytes);
        let leaves = leaf_digests(held.start, content, record.layout().leaf_len);
        match archive.compare_leaves(held, &leaves) {
            Err(error) if wanted.proved_later && is_of_record(&error) => {}
            checked => checked?,
        }
        Ok(leaves)
    }

    /// Decodes a payload; `None` if all of it is zeros.
    fn decode_bytes(&self, encoding: Encoding, payload: &[u8], len: u64) -> Result<Option<Lent>> {
        if is_suspect(payload.len() as u64, len) {
            let found = codec::measure(encoding, payload, len, self.job.control.cancelled)?;
            if found != len {
                return Err(Error::new(ErrorKind::DecodedSize {
                    codec: encoding,
                    announced: len,
                    found: found.to_string(),
                }));
            }
        }
        let mut bytes = self.buffers.take();
        resize(&mut bytes, len)?;
        codec::decode_into(encoding, payload, &mut bytes)?;
        if !is_zero(&bytes) {
            return Ok(Some(bytes));
        }
        self.buffers.give(bytes);
        self.job.archive.learn_zeros(encoding, payload, len);
        Ok(None)
    }
}

/// Whether an error is one of the file's bytes, or of the disk they are on, and not of what is done with them.
fn is_loss(error: &Error) -> bool {
    error.is_damage() || matches!(error.kind(), ErrorKind::Io { .. })
}

/// Whether bytes are lost because the file ends before them: then all that follow are, too.
fn is_behind_the_end(why: &Error) -> bool {
    matches!(why.kind(), ErrorKind::EndsInside(Part::Payload))
}

/// Whether a chunk of `len` bytes is to be measured before memory is taken for it.
pub(super) fn is_suspect(payload_len: u64, len: u64) -> bool {
    len > BELIEVED_EXCESS.saturating_add(payload_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_ordinary_sizes_are_decoded_once_and_what_may_be_a_bomb_is_measured_first() {
        // What `--level throughput` makes of large files: chunks of 32 MiB, text even at 200:1.
        assert!(!is_suspect(12 << 20, 32 << 20));
        assert!(!is_suspect(2_000, 32 << 20));
        assert!(!is_suspect(1 << 30, 1 << 30));
        assert!(is_suspect(20 << 20, 1 << 30));
        assert!(is_suspect(2_000, 16 << 30));
    }
}
