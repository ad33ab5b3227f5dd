//! Digests: checksums of whole files, and of the parts that are checked by themselves.
//!
//! What is hashed comes as bytes or as the knowledge that they are zeros; where they come from is other rooms' affair. A
//! whole file's checksum is put together in the order of the file, BLAKE3's from parts that were hashed in parallel
//! (`tree`). A leaf's digest is for itself (`leaves`).

mod leaves;
mod tree;

use std::hash::Hasher as _;
use std::ops::Range;

use blake2::Blake2b256;
use blake2::digest::Digest;
use twox_hash::XxHash64;

pub(crate) use leaves::{Leaf, leaf_count, leaf_count_of_chunks, leaf_digests, leaf_ranges};
pub(crate) use tree::{
    Assembler, ChainingValue, Group, Subtrees, fold, fold_root, hashes_in_parallel, subtrees,
};

use crate::format::Checksum;

/// A run of zeros to hash from, short enough to stay in a core's own cache.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// A chunk's bytes, or the knowledge that they are all zero, which spares holding them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    /// Any bytes.
    Bytes(&'a [u8]),
    /// As many zeros.
    Zeros(u64),
}

impl Content<'_> {
    /// The length in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Zeros(len) => *len,
        }
    }

    /// Calls `take` with the bytes of a part of the content, piece by piece.
    pub(crate) fn pieces<E>(
        &self,
        part: Range<u64>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Content::Bytes(bytes) => take(
                bytes
                    .get(part.start as usize..part.end as usize)
                    .unwrap_or(&[]),
            ),
            Content::Zeros(_) => {
                let mut rest = part.end.saturating_sub(part.start);
                while rest > 0 {
                    let len = rest.min(ZEROS.len() as u64);
                    take(ZEROS.get(..len as usize).unwrap_or(&[]))?;
                    rest -= len;
                }
                Ok(())
            }
        }
    }
}

/// A checksum that is a chain over the bytes in order.
enum Chain {
    /// XXH64 with seed 0.
    Xxh64(XxHash64),
    /// BLAKE2b parametrised for 32 bytes.
    Blake2b(Box<Blake2b256>),
}

impl Chain {
    /// `None` for BLAKE3, which is a tree.
    fn new(checksum: Checksum) -> Option<Self> {
        match checksum {
            Checksum::Xxh64 => Some(Chain::Xxh64(XxHash64::with_seed(0))),
            Checksum::Blake2b => Some(Chain::Blake2b(Box::default())),
            Checksum::Blake3 => None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Chain::Xxh64(hasher) => hasher.write(bytes),
            Chain::Blake2b(hasher) => hasher.update(bytes),
        }
    }

    /// The digest as a footer stores it.
    fn finish(self) -> Vec<u8> {
        match self {
            Chain::Xxh64(hasher) => hasher.finish().to_be_bytes().to_vec(),
            Chain::Blake2b(hasher) => hasher.finalize().to_vec(),
        }
    }
}
