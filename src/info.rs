//! What a `.warp` file says of itself. Nothing is decoded: version 1 says too little, and where its chunks' own headers
//! do not tell their original sizes either, these stay unknown.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::archive::{Conditions, Cut, Outline, Record, Verify, open_regular};
use crate::error::Result;
use crate::format::{Checksum, Codec, Version};
use crate::memory::Budget;

/// A file's header, table and footer.
#[derive(Debug)]
pub struct Info {
    path: PathBuf,
    outline: Outline,
}

/// One chunk's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Its number, counted from 0.
    pub chunk: u32,
    /// Where its payload begins, in bytes from the start of the file.
    pub packed_offset: u64,
    /// Its payload's size, in bytes.
    pub packed_size: u64,
    /// Where it begins in the original, in bytes, if that is known without decoding.
    pub original_offset: Option<u64>,
    /// Its size in the original, in bytes, if that is known without decoding.
    pub original_size: Option<u64>,
}

impl Info {
    /// Reads what there is to know of a file.
    ///
    /// # Errors
    /// Header, table or footer is damaged, the file was cut short, or it cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_file(open_regular(path)?, path)
    }

    /// As [`Info::read`], for a regular file that is open; `path` is its name in messages.
    pub(crate) fn from_file(file: File, path: &Path) -> Result<Self> {
        let conditions = Conditions {
            cut: Cut::Refuse,
            verify: Verify::Fast,
            budget: &Budget::unlimited(),
            make_room: &|| false,
            cancelled: &AtomicBool::new(false),
        };
        let outline =
            Outline::read(&file, path, &conditions).map_err(|error| error.in_file(path))?;
        Ok(Self {
            path: path.to_owned(),
            outline,
        })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container's version.
    pub fn version(&self) -> Version {
        self.outline.header.version
    }

    /// The codec of all chunks.
    pub fn codec(&self) -> Codec {
        self.outline.header.codec
    }

    /// The original's size, in bytes.
    pub fn original_size(&self) -> u64 {
        self.outline.header.original_size
    }

    /// The file's own size, in bytes.
    pub fn packed_size(&self) -> u64 {
        self.outline.identity.size
    }

    /// How many chunks there are.
    pub fn chunk_count(&self) -> u32 {
        self.outline.header.chunk_count
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

    /// The chunks, in order.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkInfo> + '_ {
        let chunks = &self.outline.chunks;
        (0..self.chunk_count()).filter_map(move |chunk| {
            let packed = chunks.payload(chunk)?;
            let original = chunks.original(chunk);
            Some(ChunkInfo {
                chunk,
                packed_offset: packed.start,
                packed_size: packed.end - packed.start,
                original_offset: original.as_ref().map(|range| range.start),
                original_size: original.map(|range| range.end - range.start),
            })
        })
    }
}
