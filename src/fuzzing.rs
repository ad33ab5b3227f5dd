//! What the fuzz targets under `tests/fuzz` reach of the library beside what everybody does: one chunk's payload, decoded
//! in each of the ways there are. Compiled with `--cfg fuzzing` alone, which `cargo fuzz` sets; no promise to anybody else.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use crate::codec::{self, Payload, Settings, Stream};
use crate::digest::Leaf;
use crate::error::Result;
use crate::format::{Codec, Encoding, Page, Tail};

/// Reads the tail of a record of digests, and a page of so many leaves; what is read must be what stands there. Says whether
/// there was either.
pub fn record(bytes: &[u8], leaf_count: usize) -> bool {
    let tail = Tail::parse(bytes).ok().flatten();
    if let Some(tail) = &tail {
        assert!(bytes.starts_with(&tail.to_bytes()));
    }
    let page = Page::parse(bytes, leaf_count);
    if let Some(page) = &page {
        let _ = page.is_whole();
        assert_eq!(page.leaves().count(), leaf_count);
        let told = page.leaves().filter(|leaf| matches!(leaf, Leaf::Digest(_)));
        let stored_len = page.values().len() * 32 + told.count() * 8;
        assert!(stored_len <= bytes.len());
    }
    tail.is_some() || page.is_some()
}

/// Encodes a chunk as a packed file has it.
///
/// # Errors
/// The codec cannot take it.
pub fn encode(codec: Codec, input: &[u8], zstd_level: i32, brotli_quality: u32) -> Result<Vec<u8>> {
    let settings = Settings {
        zstd_level,
        zstd_threads: 0,
        brotli_quality,
        lz4_thoroughness: None,
    };
    let mut payload = Vec::new();
    codec::encode(codec, input, &settings, &mut payload)?;
    Ok(payload)
}

/// Decodes a payload in one call, as short chunks are read.
///
/// # Errors
/// The payload is not one of `output.len()` bytes.
pub fn decode_whole(codec: Encoding, payload: &[u8], output: &mut [u8]) -> Result<()> {
    codec::check_payload_len(codec, payload.len() as u64, output.len() as u64)?;
    codec::decode_into(codec, payload, output)
}

/// The length that the payload's first bytes claim it decodes to, in bytes.
pub fn told_len(codec: Encoding, payload: &[u8]) -> Option<u64> {
    let beginning = payload.get(..codec::SIZE_PROBE_LEN).unwrap_or(payload);
    codec::decoded_len(codec, beginning)
}

/// The length that the payload decodes to, at most `limit`, both in bytes, found in constant memory.
///
/// # Errors
/// It is damaged, or decodes to more.
pub fn measure(codec: Encoding, payload: &[u8], limit: u64) -> Result<u64> {
    codec::measure(codec, payload, limit, &AtomicBool::new(false))
}

/// A payload decoded piece by piece, as long chunks are read.
#[derive(Debug)]
pub struct Pieces<'a> {
    payload: InMemory<'a>,
    stream: Stream,
}

impl<'a> Pieces<'a> {
    /// The memory this is going to take at most, in bytes; `None` if the payload can only be decoded whole.
    ///
    /// # Errors
    /// The payload begins like none.
    pub fn memory(codec: Encoding, payload: &[u8], announced: u64) -> Result<Option<u64>> {
        Stream::memory(codec, &InMemory(payload), announced)
    }

    /// Starts at the beginning of a chunk of `announced` bytes; without a decoder if it can be, and is wanted `plain`.
    ///
    /// # Errors
    /// The payload begins like none, or claims another length.
    pub fn open(codec: Encoding, payload: &'a [u8], announced: u64, plain: bool) -> Result<Self> {
        let payload = InMemory(payload);
        codec::check_payload_len(codec, payload.len(), announced)?;
        let found = match plain {
            true => Stream::of_what_lies_as_it_is(codec, &payload, announced)?,
            false => None,
        };
        let stream = match found {
            Some(stream) => stream,
            None => Stream::open(codec, &payload, announced)?,
        };
        Ok(Self { payload, stream })
    }

    /// Where the next byte lies in the chunk, in bytes.
    pub fn position(&self) -> u64 {
        self.stream.position()
    }

    /// Moves towards `offset`, in bytes, as far as nothing has to be decoded for it; says where it stands then.
    ///
    /// # Errors
    /// The payload cannot be read.
    pub fn seek(&mut self, offset: u64) -> Result<u64> {
        self.stream.seek(&self.payload, offset)
    }

    /// Decoded apart from these, the `bytes` of the chunk; `None` if they cannot be.
    ///
    /// # Errors
    /// The payload cannot be read.
    pub fn branch(&mut self, bytes: &Range<u64>) -> Result<Option<Self>> {
        self.stream.survey(&self.payload)?;
        Ok(self.stream.branch(bytes).map(|stream| Self {
            payload: InMemory(self.payload.0),
            stream,
        }))
    }

    /// Decodes the next `output.len()` bytes, not beyond the chunk's end.
    ///
    /// # Errors
    /// The payload is damaged, or can only be decoded whole.
    pub fn decode(&mut self, output: &mut [u8]) -> Result<()> {
        self.stream.decode(&self.payload, output)
    }
}

#[derive(Debug)]
struct InMemory<'a>(&'a [u8]);

impl Payload for InMemory<'_> {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Panics where a decoder asks for what the payload does not have, which none may.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let bytes = rest.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.unwrap_or_default());
        Ok(())
    }
}
