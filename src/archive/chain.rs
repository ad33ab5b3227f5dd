//! Files without a table: each chunk's header leads to the next.
//!
//! Following them takes a short read a chunk, and no memory. That is what a listing does where a file does not say how large
//! its original is, up to a number of chunks; opening a file does it twice, to know how many chunks there are before memory is taken for a table of them.
//!
//! What is behind the last whole chunk tells whether the file was cut short: in the middle of a header or of a payload. One cut
//! between two chunks is a shorter file, unless its header says how large the original is.

use std::path::Path;
use std::sync::atomic::AtomicBool;

#[cfg(feature = "remote")]
use super::outline::likely_description;
use super::outline::stop_if_set;
use super::source::Source;
use crate::error::{Error, ErrorKind, IoContext, Part, Result};
#[cfg(feature = "remote")]
use crate::format::FIXED_HEADER_LEN;
use crate::format::{
    CHUNK_PROBE_LEN, ChunkHeader, Container, Description, Encodings, FixedHeader,
    RELEASE_HEADER_LEN, RELEASE_MAGIC, ReleaseHeader,
};

/// How much is read at a time where the chunks are short, in bytes.
const BLOCK_LEN: usize = 4 << 10;

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Table(FixedHeader),
    Release(ReleaseHeader),
}

impl Header {
    /// Reads the header of a file of `file_len` bytes.
    ///
    /// # Errors
    /// The file is none of ours by its header, or its table cannot fit into it.
    pub(super) fn read(source: &dyn Source, path: &Path, file_len: u64) -> Result<Self> {
        let mut start = [0; RELEASE_HEADER_LEN];
        let read = source
            .read_description(&mut start, 0, 0)
            .context("cannot read", path)?;
        let start = start.get(..read).unwrap_or_default();
        if start.starts_with(&RELEASE_MAGIC) {
            return ReleaseHeader::parse(start).map(Header::Release);
        }
        let refused = match FixedHeader::parse(start) {
            Ok(header) => return header.check_room(file_len).map(|()| Header::Table(header)),
            Err(error) => error,
        };
        let behind = file_len.checked_sub(RELEASE_HEADER_LEN as u64);
        if let (ErrorKind::NotWarp, Some(behind)) = (refused.kind(), behind) {
            let mut end = [0; RELEASE_HEADER_LEN];
            let read = source
                .read_description(&mut end, behind, 0)
                .context("cannot read", path)?;
            let end = end.get(..read).unwrap_or_default();
            if let Some(header) = ReleaseHeader::parse_trailing(start, end) {
                return Ok(Header::Release(header));
            }
        }
        Err(refused)
    }
}

/// Checks that a file of `file_len` bytes is one of ours by its header.
///
/// # Errors
/// It is none, or cannot be read.
#[cfg(feature = "files")]
pub(crate) fn has_header(source: &dyn Source, path: &Path, file_len: u64) -> Result<()> {
    Header::read(source, path, file_len).map(|_| ())
}

/// What is known of a file that was not opened.
#[cfg(feature = "files")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Glance {
    /// The kind of container.
    pub(crate) container: Container,
    /// The file's size, in bytes.
    pub(crate) packed_size: u64,
    /// The original's size, in bytes.
    pub(crate) original_size: u64,
    /// How the chunks are encoded; `None` where it takes following them to know.
    pub(crate) encodings: Option<Encodings>,
    /// How many chunks there are; `None` as before.
    pub(crate) chunk_count: Option<u32>,
}

#[cfg(feature = "remote")]
impl Glance {
    /// Where all is that is read of the file when it is opened, its first bytes aside, as far as that can be told.
    pub(crate) fn likely_description(&self) -> Option<[std::ops::Range<u64>; 2]> {
        let Container::Table(version) = self.container else {
            return None;
        };
        let count = self.chunk_count?;
        let table_len = u64::from(count) * version.table_bytes_per_chunk();
        let payload_start = FIXED_HEADER_LEN as u64 + table_len;
        let (original, packed) = (self.original_size, self.packed_size);
        Some(likely_description(payload_start, original, count, packed))
    }
}

/// How many chunks are followed at most to find the size of an original: those of a terabyte in chunks of 256 KiB, which is
/// what the releases make, and a fraction of a second's work where they lie close together. A listing has to wait for it.
#[cfg(feature = "files")]
const MOST_FOLLOWED: u32 = 4 << 20;

/// Looks at a file of `file_len` bytes for a listing: at its header or, where that does not say the original's size, by its chunks'
/// headers, as far as they lead: what is wrong with them is found when it is opened. `None` if there are more chunks than
/// are followed.
///
/// # Errors
/// The file is none of ours by its header, or cannot be read.
#[cfg(feature = "files")]
pub(crate) fn glance(source: &dyn Source, path: &Path, file_len: u64) -> Result<Option<Glance>> {
    let of = |container, original_size, encodings, chunk_count| Glance {
        container,
        packed_size: file_len,
        original_size,
        encodings,
        chunk_count,
    };
    let header = match Header::read(source, path, file_len)? {
        Header::Table(header) => {
            let container = Container::Table(header.version);
            let encodings = Some(header.codec.into());
            let (size, count) = (header.original_size, Some(header.chunk_count));
            return Ok(Some(of(container, size, encodings, count)));
        }
        Header::Release(header) => header,
    };
    let container = Container::Release(header.release);
    let codec = header.codec.map(Encodings::from);
    if let Some(size) = header.original_size {
        return Ok(Some(of(container, size, codec, None)));
    }
    let (found, is_all) = survey(&header, source, path, file_len, MOST_FOLLOWED)?;
    let encodings = Some(codec.unwrap_or(found.encodings));
    let count = Some(found.chunk_count);
    Ok(is_all.then(|| of(container, found.original_size, encodings, count)))
}

/// Describes a file of `file_len` bytes by its header and, if it has no table, by its chunks' headers, as far as they lead:
/// what is wrong with them is found when it is opened.
///
/// # Errors
/// The file is none of ours by its header, or has more chunks than can be counted, or cannot be read.
#[cfg(feature = "files")]
pub(crate) fn describe(source: &dyn Source, path: &Path, file_len: u64) -> Result<Description> {
    match Header::read(source, path, file_len)? {
        Header::Table(header) => Ok(Description::from(&header)),
        Header::Release(header) => {
            let (found, _) = survey(&header, source, path, file_len, u32::MAX)?;
            Ok(found.describe(&header))
        }
    }
}

/// Sums up the chunks, as far as they lead and up to `most` of them, and says whether these are all.
#[cfg(feature = "files")]
fn survey(
    header: &ReleaseHeader,
    source: &dyn Source,
    path: &Path,
    file_len: u64,
    most: u32,
) -> Result<(Survey, bool)> {
    let mut found = Survey::default();
    let mut is_all = true;
    let never = AtomicBool::new(false);
    let followed = follow(header, source, path, file_len, &never, |chunk, _| {
        is_all = found.chunk_count < most;
        match is_all {
            true => found.push(chunk),
            false => Err(ErrorKind::Cancelled.into()),
        }
    });
    match followed {
        Err(error) if is_all && !error.is_damage() => Err(error),
        _ => Ok((found, is_all)),
    }
}

/// The sum of some chunks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Survey {
    pub(super) chunk_count: u32,
    pub(super) original_size: u64,
    /// Where the last chunk begins in the original, in bytes.
    pub(super) last_start: u64,
    encodings: Encodings,
}

impl Survey {
    /// Adds the next chunk.
    ///
    /// # Errors
    /// There are more than can be counted.
    pub(super) fn push(&mut self, chunk: &ChunkHeader) -> Result<()> {
        // One more there may be, if it was lost.
        if self.chunk_count >= u32::MAX - 1 {
            let why = "there are more chunks than 4,294,967,294, which are too many";
            return Err(Error::unusable(why));
        }
        self.chunk_count += 1;
        self.last_start = self.original_size;
        // That many times 32 bits are fewer than 64.
        self.original_size += u64::from(chunk.original_size);
        self.encodings.insert(chunk.encoding);
        Ok(())
    }

    /// The description of the file whose chunks these are.
    pub(super) fn describe(&self, header: &ReleaseHeader) -> Description {
        Description {
            container: Container::Release(header.release),
            encodings: header.codec.map_or(self.encodings, Encodings::from),
            original_size: header.original_size.unwrap_or(self.original_size),
            chunk_count: self.chunk_count,
        }
    }
}

/// Where a chain of chunks ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Where the file does.
    Whole,
    /// The file ends inside this part.
    Inside(Part),
}

/// Goes from chunk to chunk through a file of `file_len` bytes; `take` is given each with the place of its payload.
///
/// # Errors
/// A header is none; those of `take`; the file cannot be read; or [`ErrorKind::Cancelled`].
pub(super) fn follow(
    header: &ReleaseHeader,
    source: &dyn Source,
    path: &Path,
    file_len: u64,
    cancelled: &AtomicBool,
    mut take: impl FnMut(&ChunkHeader, u64) -> Result<()>,
) -> Result<End> {
    let header_len = header.release.chunk_header_len() as u64;
    let end = header.chunks_end(file_len);
    let mut block = Block::new(source, path);
    let mut offset = header.chunks_start();
    let (mut number, mut original) = (0, 0_u64);
    while offset < end {
        stop_if_set(cancelled)?;
        let payload = offset.saturating_add(header_len);
        if payload > end {
            return Ok(End::Inside(Part::ChunkHeader));
        }
        let wanted = (end - offset).min(CHUNK_PROBE_LEN as u64) as usize;
        let chunk = header
            .parse_chunk(block.at(offset, wanted)?)
            .map_err(|error| error.in_chunk(number, original))?;
        take(&chunk, payload)?;
        offset = payload.saturating_add(u64::from(chunk.packed_size));
        number = number.saturating_add(1);
        original = original.saturating_add(u64::from(chunk.original_size));
    }
    Ok(match offset > end {
        true => End::Inside(Part::Payload),
        false => End::Whole,
    })
}

/// The part of a file that was read last.
struct Block<'a> {
    source: &'a dyn Source,
    path: &'a Path,
    bytes: [u8; BLOCK_LEN],
    start: u64,
    held: usize,
}

impl<'a> Block<'a> {
    fn new(source: &'a dyn Source, path: &'a Path) -> Self {
        Self {
            source,
            path,
            bytes: [0; BLOCK_LEN],
            start: 0,
            held: 0,
        }
    }

    /// The `wanted` bytes at `offset`, fewer if the file has become shorter. It is gone through from front to back.
    fn at(&mut self, offset: u64, wanted: usize) -> Result<&[u8]> {
        let skip = offset.saturating_sub(self.start);
        let held = self.held as u64;
        if skip.saturating_add(wanted as u64) > held {
            // A payload longer than a block is passed over.
            let near = skip <= held.saturating_add(BLOCK_LEN as u64);
            let length = if near { BLOCK_LEN } else { wanted };
            let place = self.bytes.get_mut(..length).unwrap_or_default();
            self.held = self
                .source
                .read_description(place, offset, 0)
                .context("cannot read", self.path)?;
            self.start = offset;
        }
        let skip = offset.saturating_sub(self.start) as usize;
        let held = self.bytes.get(..self.held).unwrap_or_default();
        let held = held.get(skip..).unwrap_or_default();
        Ok(held.get(..wanted).unwrap_or(held))
    }
}
