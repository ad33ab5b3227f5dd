//! What a `.warp` file says of itself, without decoding it. (Version 1 says too little: where its chunks' headers do not
//! tell their sizes either, they are decoded once to be measured.)

use std::fs::File;
use std::path::Path;

use crate::archive::Archive;
use crate::error::{IoContext, Result};
use crate::format::{Checksum, Codec, Version};

/// A file's header, table and footer.
#[derive(Debug)]
pub struct Info {
    archive: Archive,
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
    /// Where it begins in the original, in bytes.
    pub original_offset: u64,
    /// Its size in the original, in bytes.
    pub original_size: u64,
}

impl Info {
    /// Reads what there is to know of a file.
    ///
    /// # Errors
    /// Header, table or footer is damaged, the file was cut short, or it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).context("cannot open", path)?;
        Self::from_file(file, path)
    }

    /// As [`Info::read`], for a file that is open; `path` is its name in messages.
    pub(crate) fn from_file(file: File, path: &Path) -> Result<Self> {
        let archive = Archive::from_file(file, path)?;
        Ok(Self { archive })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        self.archive.path()
    }

    /// The container's version.
    pub fn version(&self) -> Version {
        self.archive.header().version
    }

    /// The codec of all chunks.
    pub fn codec(&self) -> Codec {
        self.archive.header().codec
    }

    /// The original's size, in bytes.
    pub fn original_size(&self) -> u64 {
        self.archive.header().original_size
    }

    /// The file's own size, in bytes.
    pub fn packed_size(&self) -> u64 {
        self.archive.file_len()
    }

    /// How many chunks there are.
    pub fn chunk_count(&self) -> u32 {
        self.archive.table().len()
    }

    /// The size of the largest chunk's original, in bytes: what a random read costs at most. 0 if there is none.
    pub fn largest_chunk(&self) -> u64 {
        self.chunks()
            .map(|chunk| chunk.original_size)
            .max()
            .unwrap_or(0)
    }

    /// The stored checksum and its digest in hexadecimal, if there is one.
    pub fn checksum(&self) -> Option<(Checksum, String)> {
        let footer = self.archive.footer()?;
        Some((
            footer.checksum,
            crate::decoding::hexadecimal(&footer.digest),
        ))
    }

    /// The chunks, in order.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkInfo> + '_ {
        let table = self.archive.table();
        (0..table.len()).filter_map(move |chunk| {
            let packed = table.compressed_range(chunk)?;
            let original = table.original_range(chunk)?;
            Some(ChunkInfo {
                chunk,
                packed_offset: packed.start,
                packed_size: packed.end - packed.start,
                original_offset: original.start,
                original_size: original.end - original.start,
            })
        })
    }
}
