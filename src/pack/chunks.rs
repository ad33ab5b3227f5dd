//! The chunks of one input, from its bytes to the finished container.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustix::fs::Stat;

use super::choice::{Choice, SAMPLE_LEN, choose};
use super::input::{SizedInput, fill};
use super::record::Record;
use super::spool::Spool;
use super::{PackOptions, Summary};
use crate::codec;
use crate::digest::{
    Assembler, Content, Leaf, Subtrees, hashes_in_parallel, leaf_digests, subtrees,
};
use crate::error::{Error, IoContext, Result};
use crate::format::{
    Checksum, Codec, Fingerprint, FixedHeader, Footer, GROUP_LEN, Layout, Version,
};
use crate::job::{ChunkReport, Control, thread_count, threads_for};
use crate::ordered::{self, Buffers, resize};
use crate::output::{Appender, NewFile};
use crate::zeros::is_zero;

/// How much is gathered before it is written, in bytes: chunks of zeros have payloads of a few bytes.
const WRITE_BUFFER_LEN: usize = 256 << 10;

/// A container written, and what its bytes hash to, which with `--checksum none` is not stored.
pub(super) struct Packed {
    pub(super) summary: Summary,
    pub(super) digest: Option<Footer>,
}

/// Packs a file of known size.
pub(super) fn pack_sized(
    file: &File,
    path: &Path,
    stat: Stat,
    new: &mut NewFile,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Packed> {
    let input = SizedInput::new(file, path, stat);
    let size = input.size();
    let choice = choose(options, Some(size), thread_count(None), || {
        let mut sample = vec![0; size.min(SAMPLE_LEN as u64) as usize];
        input.read(&(0..sample.len() as u64), &mut sample)?;
        Ok(sample)
    })
    .map_err(|error| error.in_file(path))?;
    let chunk_count = size.div_ceil(choice.chunk_size);
    let header = FixedHeader {
        version: Version::V2,
        codec: choice.codec,
        original_size: size,
        // The choice made sure that it fits.
        chunk_count: u32::try_from(chunk_count).unwrap_or(u32::MAX),
    };
    let mut offset = 0;
    let mut data = 0;
    let next = || {
        if offset >= size {
            return Ok(None);
        }
        let range = offset..size.min(offset + choice.chunk_size);
        if data < range.end && data <= offset {
            data = input.next_data(offset)?.unwrap_or(size);
        }
        offset = range.end;
        let load = match data >= range.end {
            true => Load::Hole,
            false => Load::Data,
        };
        Ok(Some(Item { range, load }))
    };
    let read = |range: &Range<u64>, buffer: &mut [u8]| input.read(range, buffer);
    let target = Appender::new(new.file(), header.payload_start());
    let encoder = Encoder::new(choice, options, path, control);
    let threads = threads_for(encoder.threads, chunk_count);
    let encoded = encoder.run(threads, next, read, target, new)?;
    input.check_unchanged()?;
    encoded.finish(header, new)
}

/// Packs what can only be read once, in order, to its end.
pub(super) fn pack_stream(
    file: &File,
    path: &Path,
    new: &mut NewFile,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Packed> {
    let mut stream = file;
    let mut sample = vec![0; SAMPLE_LEN];
    let sample_len = fill(&mut stream, &mut sample, control.cancelled, path)?;
    sample.truncate(sample_len);
    let choice = match sample.is_empty() {
        // An empty file is a bare header with this codec.
        true => choose(options, Some(0), 1, || Ok(Vec::new())).map(|choice| Choice {
            codec: Codec::Snappy,
            ..choice
        }),
        false => choose(options, None, thread_count(None), || Ok(sample.clone())),
    }
    .map_err(|error| error.in_file(path))?;
    let mut spool = Spool::new(new)?;
    let encoder = Encoder::new(choice, options, path, control);
    let mut offset = 0_u64;
    let mut count = 0_u32;
    let next = || {
        let mut bytes = encoder.buffers.take();
        resize(&mut bytes, choice.chunk_size)?;
        // The sample first, then what follows it.
        let begun = sample.len().min(bytes.len());
        let (sampled, room) = bytes.split_at_mut(begun);
        sampled.copy_from_slice(sample.get(..begun).unwrap_or(&[]));
        sample.drain(..begun);
        let read = fill(&mut stream, room, control.cancelled, path)?;
        bytes.truncate(begun + read);
        if bytes.is_empty() {
            return Ok(None);
        }
        count = count.checked_add(1).ok_or_else(|| {
            Error::unusable("more chunks than can be counted: choose a larger --chunk-size")
                .in_file(path)
        })?;
        let range = offset..offset + bytes.len() as u64;
        offset = range.end;
        Ok(Some(Item {
            range,
            load: Load::Loaded(bytes),
        }))
    };
    // Nothing is left to be read: the items bring their bytes.
    let read = |_: &Range<u64>, _: &mut [u8]| Ok(());
    let encoded = encoder.run(encoder.threads, next, read, &mut spool, new)?;
    let header = FixedHeader {
        version: Version::V2,
        codec: choice.codec,
        original_size: encoded.original_size,
        chunk_count: u32::try_from(encoded.sizes.len()).unwrap_or(u32::MAX),
    };
    let mut target = new.file();
    target
        .seek(SeekFrom::Start(header.payload_start()))
        .context("cannot write", new.target())?;
    spool.copy_to(target, new.target())?;
    encoded.finish(header, new)
}

/// A chunk to be encoded: where it lies, and how to come by its bytes.
struct Item {
    range: Range<u64>,
    load: Load,
}

enum Load {
    /// It is to be read.
    Data,
    /// It lies in a hole.
    Hole,
    /// It has been read.
    Loaded(Vec<u8>),
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
    Own(Vec<u8>),
    /// That of all chunks of zeros of this size.
    Shared(Arc<[u8]>),
}

/// What the checksum needs of a chunk.
enum Hash {
    None,
    Subtrees(Subtrees),
    Bytes(Vec<u8>),
    Zeros(u64),
}

/// Encodes the chunks of one input.
struct Encoder<'a> {
    choice: Choice,
    /// The checksum to compute, and whether it goes into the file.
    checksum: Option<(Checksum, bool)>,
    parallel_hash: bool,
    layout: Layout,
    threads: usize,
    path: &'a Path,
    control: Control<'a>,
    buffers: Buffers,
    /// The payload of a whole chunk of zeros, and that of a shorter one at the end.
    zeros: [OnceLock<Arc<[u8]>>; 2],
}

/// All chunks encoded and written.
struct Done {
    /// The payloads' sizes in bytes, for the table; 4 bytes a chunk, for there may be 2^32 of them.
    sizes: Vec<u32>,
    chunk_size: u64,
    original_size: u64,
    digest: Option<Footer>,
    store_digest: bool,
    record: Record,
}

impl<'a> Encoder<'a> {
    fn new(choice: Choice, options: &PackOptions, path: &'a Path, control: Control<'a>) -> Self {
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
            buffers: Buffers::default(),
            zeros: Default::default(),
        }
    }

    /// Encodes all items and writes their payloads to `target`, one behind the other.
    fn run(
        &self,
        threads: usize,
        next: impl FnMut() -> Result<Option<Item>> + Send,
        read: impl Fn(&Range<u64>, &mut [u8]) -> Result<()> + Sync,
        target: impl Write + Send,
        new: &NewFile,
    ) -> Result<Done> {
        let target_path = new.target();
        let mut record = Record::new(self.layout);
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_LEN, target);
        let mut sizes = Vec::new();
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
                        chunk: u32::try_from(sizes.len()).unwrap_or(u32::MAX),
                        original_size: encoded.range.end - encoded.range.start,
                        packed_size: payload.len() as u64,
                        elapsed: encoded.started.elapsed(),
                    },
                );
                sizes.push(u32::try_from(payload.len()).map_err(|_| {
                    Error::unusable("a chunk takes more than 4 GiB: choose a smaller --chunk-size")
                })?);
                original_size = encoded.range.end;
                if let Payload::Own(payload) = encoded.payload {
                    self.buffers.give(payload);
                }
                let mut groups = Vec::new();
                if let Some(assembler) = &mut assembler {
                    match encoded.hash {
                        Hash::None => {}
                        Hash::Subtrees(subtrees) => assembler.push_subtrees(subtrees),
                        Hash::Zeros(len) => assembler.push_content(Content::Zeros(len)),
                        Hash::Bytes(bytes) => {
                            assembler.push_content(Content::Bytes(&bytes));
                            self.buffers.give(bytes);
                        }
                    }
                    groups = assembler.take_groups();
                }
                groups.retain(|_| self.layout.group_len.is_some());
                record.push(encoded.range, &encoded.leaves, groups, new)
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
        last_groups.retain(|_| self.layout.group_len.is_some());
        record.finish(original_size, last_groups, new)?;
        Ok(Done {
            sizes,
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
                let mut bytes = self.buffers.take();
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
        let mut hash = match (self.checksum, content) {
            (None, _) => Hash::None,
            (Some(_), content) if self.parallel_hash => {
                Hash::Subtrees(subtrees(item.range.start, content, GROUP_LEN))
            }
            (Some(_), Content::Zeros(len)) => Hash::Zeros(len),
            (Some(_), Content::Bytes(_)) => Hash::Bytes(Vec::new()),
        };
        let payload = match content {
            Content::Zeros(len) => Payload::Shared(self.encode_zeros(len)?),
            Content::Bytes(bytes) => {
                let mut payload = self.buffers.take();
                codec::encode(
                    self.choice.codec,
                    bytes,
                    &self.choice.settings,
                    &mut payload,
                )?;
                Payload::Own(payload)
            }
        };
        if let Some(bytes) = bytes {
            match &mut hash {
                Hash::Bytes(place) => *place = bytes,
                _ => self.buffers.give(bytes),
            }
        }
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
    /// Writes the header and the table in front of the payloads, the footer and the record of digests behind them.
    fn finish(self, header: FixedHeader, new: &NewFile) -> Result<Packed> {
        let payload_len: u64 = self.sizes.iter().map(|&size| u64::from(size)).sum();
        let payload_end = header.payload_start() + payload_len;
        let mut packed_size = payload_end;
        let mut fingerprint = Fingerprint::default();
        self.write_beginning(&header, new.file(), &mut fingerprint)
            .context("cannot write", new.target())?;
        // An empty file is a bare header.
        if !self.sizes.is_empty() {
            let footer = match &self.digest {
                Some(footer) if self.store_digest => footer.to_bytes(),
                _ => Vec::new(),
            };
            fingerprint.update(&footer);
            packed_size += footer.len() as u64;
            let mut end = new.file();
            end.seek(SeekFrom::Start(payload_end))
                .and_then(|_| end.write_all(&footer))
                .context("cannot write", new.target())?;
            packed_size += self.record.write(new, fingerprint.digest())?;
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

    fn write_beginning(
        &self,
        header: &FixedHeader,
        mut file: &File,
        fingerprint: &mut Fingerprint,
    ) -> std::io::Result<()> {
        file.rewind()?;
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_LEN, file);
        let mut write = |bytes: &[u8]| {
            fingerprint.update(bytes);
            writer.write_all(bytes)
        };
        write(&header.to_bytes())?;
        for &size in &self.sizes {
            write(&u64::from(size).to_le_bytes())?;
        }
        let mut left = self.original_size;
        for _ in &self.sizes {
            let size = left.min(self.chunk_size);
            write(&size.to_le_bytes())?;
            left -= size;
        }
        writer.flush()
    }
}
