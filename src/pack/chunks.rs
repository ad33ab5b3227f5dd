//! The chunks of one input, from its bytes to the finished container.

use std::io::{BufWriter, Write};
use std::mem::take;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::choice::Choice;
use super::record::Record;
use super::spool::{Aside, Fingerprinted, Gathered};
use super::{PackOptions, Summary};
use crate::codec;
use crate::digest::{
    Assembler, Content, Leaf, Subtrees, hashes_in_parallel, leaf_digests, subtrees,
};
use crate::error::{IoContext, Result};
use crate::format::{Checksum, Fingerprint, FixedHeader, Footer, GROUP_LEN, Layout};
use crate::job::{ChunkReport, Control, thread_count};
use crate::ordered::{self, Buffers, Lent, resize};
use crate::zeros::is_zero;

/// How much is gathered before it is written, in bytes: chunks of zeros have payloads of a few bytes. To copy
/// the longer ones takes less than the more writes it would take to write each from where it is.
const WRITE_BUFFER_LEN: usize = 256 << 10;

/// A container written, and what its bytes hash to, which with `--checksum none` is not stored.
pub(super) struct Packed {
    pub(super) summary: Summary,
    pub(super) digest: Option<Footer>,
}

/// A chunk to be encoded: where it lies, and how to come by its bytes.
pub(super) struct Item {
    pub(super) range: Range<u64>,
    pub(super) load: Load,
}

pub(super) enum Load {
    /// It is to be read.
    Data,
    /// It lies in a hole.
    Hole,
    /// It has been read.
    Loaded(Lent),
}

/// A chunk encoded, on its way into the file.
struct Encoded {
    range: Range<u64>,
    payload: Payload,
    leaves: Vec<Leaf>,
    hash: Hash,
    started: Instant,
}

enum Payload {
    Own(Lent),
    /// That of all chunks of zeros of this size.
    Shared(Arc<[u8]>),
}

/// What the checksum needs of a chunk.
enum Hash {
    None,
    Subtrees(Subtrees),
    Bytes(Lent),
    Zeros(u64),
}

/// Encodes the chunks of one input.
pub(super) struct Encoder<'a> {
    choice: Choice,
    /// The checksum to compute, and whether it goes into the file.
    checksum: Option<(Checksum, bool)>,
    parallel_hash: bool,
    layout: Layout,
    pub(super) threads: usize,
    path: &'a Path,
    control: Control<'a>,
    /// For what is read, and for what it is encoded to.
    pub(super) inputs: Buffers,
    payloads: Buffers,
    /// The payload of a whole chunk of zeros, and that of a shorter one at the end.
    zeros: [OnceLock<Arc<[u8]>>; 2],
}

/// All chunks encoded and written.
pub(super) struct Done {
    /// How many they are.
    pub(super) count: u32,
    /// The payloads' sizes in bytes, as they stand in the table.
    sizes: Gathered,
    /// How many bytes all payloads take.
    pub(super) payload_len: u64,
    chunk_size: u64,
    pub(super) original_size: u64,
    digest: Option<Footer>,
    store_digest: bool,
    record: Record,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(
        choice: Choice,
        options: &PackOptions,
        path: &'a Path,
        control: Control<'a>,
    ) -> Self {
        // What is to be verified against the input needs a digest, whether or not the file is to have one.
        let unstored = options.remove.then_some((Checksum::Blake3, false));
        let checksum = options
            .checksum
            .map(|checksum| (checksum, true))
            .or(unstored);
        let starts = [0, choice.chunk_size];
        let threads = match options.threads {
            Some(threads) => threads,
            None => thread_count(None)
                .div_ceil(choice.threads_within_a_chunk())
                .min(choice.max_threads),
        };
        Self {
            choice,
            checksum,
            parallel_hash: checksum
                .is_some_and(|(checksum, _)| hashes_in_parallel(checksum, starts.into_iter())),
            layout: Layout::for_packing(options.checksum),
            threads,
            path,
            control,
            inputs: Buffers::default(),
            payloads: Buffers::default(),
            zeros: Default::default(),
        }
    }

    /// Encodes all items and writes their payloads to `target`, one behind the other.
    pub(super) fn run(
        &self,
        threads: usize,
        next: impl FnMut() -> Result<Option<Item>> + Send,
        read: impl Fn(&Range<u64>, &mut [u8]) -> Result<()> + Sync,
        target: impl Write + Send,
        aside: &dyn Aside,
    ) -> Result<Done> {
        let target_path = aside.result();
        let mut record = Record::new(self.layout);
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_LEN, target);
        let mut sizes = Gathered::default();
        let (mut count, mut payload_len) = (0_u32, 0_u64);
        let mut original_size = 0;
        let mut assembler = self
            .checksum
            .map(|(checksum, _)| Assembler::new(checksum, self.parallel_hash, GROUP_LEN));
        ordered::run(
            threads,
            self.control.cancelled,
            || (),
            next,
            |(), item| self.encode(item, &read),
            |encoded: Encoded| {
                let payload: &[u8] = match &encoded.payload {
                    Payload::Own(payload) => payload,
                    Payload::Shared(payload) => payload,
                };
                writer
                    .write_all(payload)
                    .context("cannot write", target_path)?;
                self.control.observer.chunk(
                    self.path,
                    &ChunkReport {
                        chunk: count,
                        original_size: encoded.range.end - encoded.range.start,
                        packed_size: payload.len() as u64,
                        elapsed: encoded.started.elapsed(),
                    },
                );
                let size = payload.len() as u64;
                sizes.push(&size.to_le_bytes(), aside)?;
                payload_len += size;
                count = count.saturating_add(1);
                original_size = encoded.range.end;
                if let Payload::Own(payload) = encoded.payload {
                    self.payloads.give(payload);
                }
                let mut groups = Vec::new();
                if let Some(assembler) = &mut assembler {
                    match encoded.hash {
                        Hash::None => {}
                        Hash::Subtrees(subtrees) => assembler.push_subtrees(subtrees),
                        Hash::Zeros(len) => assembler.push_content(Content::Zeros(len)),
                        Hash::Bytes(bytes) => {
                            assembler.push_content(Content::Bytes(&bytes));
                            self.inputs.give(bytes);
                        }
                    }
                    groups = assembler.take_groups();
                }
                record.push(encoded.range, &encoded.leaves, groups, aside)
            },
        )
        .map_err(|error| error.in_file(self.path))?;
        writer.flush().context("cannot write", target_path)?;
        drop(writer);
        let mut last_groups = Vec::new();
        let digest = self
            .checksum
            .zip(assembler)
            .map(|((checksum, _), assembler)| {
                let (digest, groups) = assembler.finish();
                last_groups = groups;
                Footer { checksum, digest }
            });
        record.finish(original_size, last_groups, aside)?;
        Ok(Done {
            count,
            sizes,
            payload_len,
            chunk_size: self.choice.chunk_size,
            original_size,
            store_digest: self.checksum.is_some_and(|(_, stored)| stored),
            digest,
            record,
        })
    }

    fn encode(
        &self,
        item: Item,
        read: &impl Fn(&Range<u64>, &mut [u8]) -> Result<()>,
    ) -> Result<Encoded> {
        let started = Instant::now();
        let len = item.range.end - item.range.start;
        let bytes = match item.load {
            Load::Hole => None,
            Load::Loaded(bytes) => Some(bytes),
            Load::Data => {
                let mut bytes = self.inputs.take();
                resize(&mut bytes, len)?;
                read(&item.range, &mut bytes)?;
                Some(bytes)
            }
        };
        let content = match &bytes {
            Some(bytes) if !is_zero(bytes) => Content::Bytes(bytes),
            _ => Content::Zeros(len),
        };
        let leaves = leaf_digests(item.range.start, content, self.layout.leaf_len);
        // `None` where the bytes themselves are needed when the chunk's turn comes.
        let hash = match (self.checksum, content) {
            (None, _) => Some(Hash::None),
            (Some(_), content) if self.parallel_hash => Some(Hash::Subtrees(subtrees(
                item.range.start,
                content,
                GROUP_LEN,
            ))),
            (Some(_), Content::Zeros(len)) => Some(Hash::Zeros(len)),
            (Some(_), Content::Bytes(_)) => None,
        };
        let payload = match content {
            Content::Zeros(len) => Payload::Shared(self.encode_zeros(len)?),
            Content::Bytes(bytes) => {
                let mut payload = self.payloads.take();
                codec::encode(
                    self.choice.codec,
                    bytes,
                    &self.choice.settings,
                    &mut payload,
                )?;
                Payload::Own(payload)
            }
        };
        let hash = match (hash, bytes) {
            (None, Some(bytes)) => Hash::Bytes(bytes),
            (hash, bytes) => {
                if let Some(bytes) = bytes {
                    self.inputs.give(bytes);
                }
                hash.unwrap_or(Hash::None)
            }
        };
        Ok(Encoded {
            range: item.range,
            payload,
            leaves,
            hash,
            started,
        })
    }

    /// Encodes a chunk of zeros, once for each of the sizes there may be.
    fn encode_zeros(&self, len: u64) -> Result<Arc<[u8]>> {
        let [whole, last] = &self.zeros;
        let known = match len == self.choice.chunk_size {
            true => whole,
            false => last,
        };
        if let Some(payload) = known.get() {
            return Ok(payload.clone());
        }
        // Two threads may come here at once; they come to the same result, and none waits for the other.
        let mut zeros = Vec::new();
        resize(&mut zeros, len)?;
        zeros.fill(0);
        let mut payload = Vec::new();
        codec::encode(
            self.choice.codec,
            &zeros,
            &self.choice.settings,
            &mut payload,
        )?;
        Ok(known.get_or_init(|| payload.into()).clone())
    }
}

impl Done {
    /// Writes what goes in front of the payloads, the header and the table; gives its fingerprint.
    pub(super) fn write_beginning(
        &mut self,
        header: &FixedHeader,
        output: impl Write,
        path: &Path,
    ) -> Result<Fingerprint> {
        let mut output = Fingerprinted::new(output);
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_LEN, &mut output);
        let written = writer.write_all(&header.to_bytes());
        written.context("cannot write", path)?;
        take(&mut self.sizes).copy_to(&mut writer, path)?;
        let mut originals = || {
            let mut left = self.original_size;
            for _ in 0..self.count {
                let size = left.min(self.chunk_size);
                writer.write_all(&size.to_le_bytes())?;
                left -= size;
            }
            writer.flush()
        };
        originals().context("cannot write", path)?;
        drop(writer);
        Ok(output.fingerprint)
    }

    /// Writes what goes behind the payloads, the footer and the record of digests; `beginning` is the fingerprint of what is in
    /// front of them.
    pub(super) fn write_ending(
        self,
        header: &FixedHeader,
        beginning: Fingerprint,
        mut output: impl Write,
        path: &Path,
    ) -> Result<Packed> {
        let mut packed_size = header.payload_start() + self.payload_len;
        // An empty file is a bare header.
        if self.count > 0 {
            let footer = match &self.digest {
                Some(footer) if self.store_digest => footer.to_bytes(),
                _ => Vec::new(),
            };
            let mut fingerprint = beginning;
            fingerprint.update(&footer);
            output.write_all(&footer).context("cannot write", path)?;
            packed_size += footer.len() as u64;
            packed_size += self.record.write(output, path, fingerprint.digest())?;
        }
        Ok(Packed {
            summary: Summary {
                encodings: header.codec.into(),
                chunks: header.chunk_count,
                original_size: header.original_size,
                packed_size,
                lost: 0,
            },
            digest: self.digest,
        })
    }
}
