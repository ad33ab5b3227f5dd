//! What a `.warp` file says of itself: header, table and footer, or the headers of its chunks. Nothing is decoded: version 1 says too little, and where its chunks' own headers
//! do not tell their original sizes either, these stay unknown.

#[cfg(feature = "files")]
mod tree;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::archive::{Conditions, Cut, Input, Outline, Record, Verify, ends_early};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Checksum, Container, Encoding, Encodings, FIXED_HEADER_LEN, RELEASE_MAGIC};
use crate::memory::Budget;
use crate::zeros::may_be_zeros;

#[cfg(feature = "files")]
pub use tree::{Found, Share, TreeInfo, survey};

/// A file's header, table and footer.
#[derive(Debug)]
pub struct Info {
    path: PathBuf,
    outline: Outline,
    /// What is wrong with the record of digests.
    record_damage: Option<Error>,
    /// Where the file ends too early.
    cut: Option<Error>,
}

/// One chunk's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Its number, counted from 0.
    pub chunk: u32,
    /// How its payload holds it.
    pub encoding: Encoding,
    /// Where its payload begins, in bytes from the start of the file.
    pub packed_offset: u64,
    /// Its payload's size, in bytes.
    pub packed_size: u64,
    /// Where it begins in the original, in bytes, if that is known without decoding.
    pub original_offset: Option<u64>,
    /// Its size in the original, in bytes, if that is known without decoding.
    pub original_size: Option<u64>,
    /// Whether its payload is as short as that of so many zeros, which it then holds, or something as monotonous.
    pub may_be_zeros: bool,
    /// Whether the file ends before its payload does, so that it is lost.
    pub lost: bool,
}

/// Whether it is only the record of digests, or what it tells, that makes a file unreadable.
fn is_told_by_record(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DamagedRecord(_) | ErrorKind::DamagedBeginning
    )
}

/// Whether a file may have had a table, by its length and its first bytes, which may be damaged themselves: those of older
/// releases have none.
pub fn may_have_a_table(path: impl AsRef<Path>) -> bool {
    let mut header = [0; FIXED_HEADER_LEN];
    let read = Input::open(path.as_ref()).map(|input| input.content.read_at(&mut header, 0));
    matches!(read, Ok(Ok(FIXED_HEADER_LEN))) && !header.starts_with(&RELEASE_MAGIC)
}

impl Info {
    /// Reads what there is to know of a file.
    ///
    /// # Errors
    /// Header, table or footer is damaged, or it cannot be read. A damaged record of digests is none: the file is read without
    /// it (see [`Info::record_damage`]); nor is it that the file was cut short behind its table (see [`Info::cut`]).
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_input(&Input::open(path.as_ref())?)
    }

    /// As [`Info::read`], for what is open.
    pub(crate) fn from_input(input: &Input) -> Result<Self> {
        let path = &*input.path;
        let source = input.content.source();
        let read = |verify, cut| {
            let conditions = Conditions {
                cut,
                verify,
                budget: &Budget::unlimited(),
                make_room: &|| false,
                cancelled: &AtomicBool::new(false),
            };
            Outline::read(&*source, path, &conditions).map_err(|error| error.in_file(path))
        };
        let (outline, record_damage, cut) = match read(Verify::Fast, Cut::Refuse) {
            Err(error) if is_told_by_record(&error) => {
                (read(Verify::Off, Cut::Refuse)?, Some(error), None)
            }
            Err(error) if ends_early(&error) => match read(Verify::Fast, Cut::Accept) {
                Ok(outline) => (outline, None, Some(error)),
                // What its table says is wrong as well: it is none that was cut off.
                Err(_) => return Err(error),
            },
            read => (read?, None, None),
        };
        Ok(Self {
            path: path.to_owned(),
            outline,
            record_damage,
            cut,
        })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of container.
    pub fn container(&self) -> Container {
        self.outline.description.container
    }

    /// How the chunks are encoded.
    pub fn encodings(&self) -> Encodings {
        self.outline.description.encodings
    }

    /// The original's size, in bytes.
    pub fn original_size(&self) -> u64 {
        self.outline.description.original_size
    }

    /// The file's own size, in bytes.
    pub fn packed_size(&self) -> u64 {
        self.outline.identity.size
    }

    /// How many chunks there are.
    pub fn chunk_count(&self) -> u32 {
        self.outline.description.chunk_count
    }

    /// The size of the largest chunk's original, in bytes: what a random read costs at most. 0 if there is no chunk,
    /// `None` if the sizes are not known without decoding.
    pub fn largest_chunk(&self) -> Option<u64> {
        self.chunks()
            .try_fold(0, |largest, chunk| Some(chunk.original_size?.max(largest)))
    }

    /// The stored checksum and its digest in hexadecimal, if there is one.
    pub fn checksum(&self) -> Option<(Checksum, String)> {
        let footer = self.outline.footer.as_ref()?;
        Some((
            footer.checksum,
            crate::decoding::hexadecimal(&footer.digest),
        ))
    }

    /// The length of the record of digests at the file's end, in bytes, if there is one.
    pub fn record_len(&self) -> Option<u64> {
        self.outline.record.as_ref().map(Record::len)
    }

    /// What is wrong with the record of digests, or with what it was made of: header, chunk table and footer.
    pub fn record_damage(&self) -> Option<&Error> {
        self.record_damage.as_ref()
    }

    /// Where the file ends too early, if it was cut short. What it would hold were it whole is all that is told then.
    pub fn cut(&self) -> Option<&Error> {
        self.cut.as_ref()
    }

    /// How much of the original's beginning the file still holds, in bytes: all of it, unless it was cut short. `None` if only
    /// decoding tells.
    pub fn held(&self) -> Option<u64> {
        match self.chunks().find(|chunk| chunk.lost) {
            Some(lost) => lost.original_offset,
            None => Some(self.original_size()),
        }
    }

    /// The chunks, in order.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkInfo> + '_ {
        let chunks = &self.outline.chunks;
        (0..self.chunk_count()).filter_map(move |chunk| {
            let packed = chunks.payload(chunk)?;
            let original = chunks.original(chunk);
            let packed_size = packed.end - packed.start;
            let original_size = original.as_ref().map(|range| range.end - range.start);
            let encoding = chunks.encoding(chunk)?;
            Some(ChunkInfo {
                chunk,
                encoding,
                packed_offset: packed.start,
                packed_size,
                original_offset: original.as_ref().map(|range| range.start),
                original_size,
                may_be_zeros: original_size
                    .is_some_and(|size| may_be_zeros(encoding, packed_size, size)),
                lost: packed.end > self.packed_size(),
            })
        })
    }
}
