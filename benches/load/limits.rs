//! The limits: what the codecs can do with the same chunks in memory, with as many threads, and nothing else to be done.
//!
//! Chunks are dealt to the threads one after the other. Each thread has one context and one buffer, which it uses again.
//! With `hash`, the limit is that of who computes the original's BLAKE3 as well, in the groups that warpfs hashes by.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use serde_json::{Value, json};
use warpfs::error::{ErrorKind, Part};
use warpfs::format::{ChunkTable, Codec, FIXED_HEADER_LEN, FixedHeader, PayloadTable, Version};

use crate::{CodecName, Result};

/// What comes before the first block of an lz4 frame as warpfs writes it, in bytes: magic number, two bytes of flags, content size,
/// the header's checksum. Its blocks are independent, and no checksums follow them.
const LZ4_HEADER_LEN: usize = 15;
/// What its blocks hold, in bytes.
const LZ4_BLOCK_LEN: usize = 64 << 10;
/// Bit of a block's size that marks its data as not compressed.
const LZ4_STORED: u32 = 1 << 31;

/// What is hashed at a time, in bytes.
const GROUP_LEN: usize = 64 << 10;

/// Encodes the file's chunks as `warpfs pack` does.
pub(crate) fn encode(
    file: &Path,
    codec: CodecName,
    chunk_size: usize,
    zstd_level: i32,
    threads: usize,
    hash: bool,
) -> Result<Value> {
    let input = fs::read(file)?;
    let chunks: Vec<&[u8]> = input.chunks(chunk_size).collect();
    deal(&chunks, threads, input.len(), || {
        let mut encoder = zstd::bulk::Compressor::new(zstd_level)?;
        let mut output = Vec::with_capacity(2 * chunk_size + 1024);
        let mut table = CompressTable::large();
        Ok(move |chunk: &&[u8]| {
            if hash {
                hash_groups(chunk);
            }
            output.clear();
            match codec {
                CodecName::Zstd => {
                    encoder.compress_to_buffer(chunk, &mut output)?;
                }
                CodecName::Lz4 => {
                    output.resize(get_maximum_output_size(LZ4_BLOCK_LEN), 0);
                    for block in chunk.chunks(LZ4_BLOCK_LEN) {
                        compress_into_with_table(block, &mut output, &mut table)?;
                    }
                }
            }
            Ok(())
        })
    })
}

/// Decodes the chunks of a `.warp` file.
pub(crate) fn decode(file: &Path, threads: usize, hash: bool) -> Result<Value> {
    let packed = fs::read(file)?;
    let header = FixedHeader::parse(packed.get(..FIXED_HEADER_LEN).ok_or("no header")?)?;
    if header.version != Version::V2 {
        return Err("the table has no original sizes".into());
    }
    let mut rest = packed.get(FIXED_HEADER_LEN..).ok_or("no table")?;
    let mut fill = |block: &mut [u8]| {
        let ended = |_| ErrorKind::EndsInside(Part::ChunkTable);
        Ok(rest.read_exact(block).map_err(ended)?)
    };
    let payloads = PayloadTable::read(&header, &mut fill)?;
    let table = ChunkTable::read(&header, payloads, &mut fill)?;

    let mut chunks = Vec::new();
    let mut longest = 0;
    for chunk in 0..header.chunk_count {
        let place = table.compressed_range(chunk).ok_or("no such chunk")?;
        let original = table.original_range(chunk).ok_or("no such chunk")?;
        let payload = packed
            .get(usize::try_from(place.start)?..usize::try_from(place.end)?)
            .ok_or("the file is cut short")?;
        let len = usize::try_from(original.end - original.start)?;
        longest = longest.max(len);
        chunks.push((payload, len));
    }
    deal(
        &chunks,
        threads,
        usize::try_from(header.original_size)?,
        || {
            let mut decoder = zstd::bulk::Decompressor::new()?;
            let mut output = vec![0; longest];
            Ok(move |(payload, len): &(&[u8], usize)| {
                let output = output.get_mut(..*len).ok_or("no room")?;
                let written = match header.codec {
                    Codec::Zstd => decoder.decompress_to_buffer(payload, output)?,
                    Codec::Lz4 => decode_lz4(payload, output)?,
                    _ => return Err("only zstd and lz4 have a limit here".into()),
                };
                if written != *len {
                    return Err("a chunk has another size".into());
                }
                if hash {
                    hash_groups(output);
                }
                Ok(())
            })
        },
    )
}

fn hash_groups(bytes: &[u8]) {
    for group in bytes.chunks(GROUP_LEN) {
        std::hint::black_box(blake3::hash(group));
    }
}

/// Decodes an lz4 frame as warpfs writes it; says how many bytes it held.
fn decode_lz4(frame: &[u8], output: &mut [u8]) -> Result<usize> {
    let mut rest = frame.get(LZ4_HEADER_LEN..).ok_or("no frame")?;
    let mut written = 0;
    loop {
        let (size, behind) = rest.split_first_chunk().ok_or("the frame is cut short")?;
        let size = u32::from_le_bytes(*size);
        if size == 0 {
            return Ok(written);
        }
        let (block, behind) = behind
            .split_at_checked((size & !LZ4_STORED) as usize)
            .ok_or("the frame is cut short")?;
        rest = behind;
        let output = output.get_mut(written..).ok_or("no room")?;
        written += match size & LZ4_STORED {
            0 => lzzzz::lz4::decompress(block, output)?,
            _ => {
                output
                    .get_mut(..block.len())
                    .ok_or("no room")?
                    .copy_from_slice(block);
                block.len()
            }
        };
    }
}

/// Has `threads` threads work through the chunks, each with a worker of its own, and takes the time, not counting what the
/// workers take to be made; `bytes` is how much the chunks hold.
fn deal<Chunk, Worker>(
    chunks: &[Chunk],
    threads: usize,
    bytes: usize,
    make_worker: impl Fn() -> Result<Worker>,
) -> Result<Value>
where
    Chunk: Sync,
    Worker: FnMut(&Chunk) -> Result<()> + Send,
{
    let workers: Vec<Worker> = (0..threads).map(|_| make_worker()).collect::<Result<_>>()?;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|mut work| {
                let next = &next;
                scope.spawn(move || -> Result<()> {
                    while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        work(chunk)?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(json!({ "bytes": bytes, "seconds": start.elapsed().as_secs_f64() }))
}
