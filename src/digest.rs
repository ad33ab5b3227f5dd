//! Whole-file checksums, computed while the bytes go by.
//!
//! BLAKE3 is a tree, so the chunks of a file can be hashed by different threads at once: [`subtrees`] computes the
//! chaining values of a chunk wherever it lies, and [`Assembler`] merges them in the order of the file. XXH64 and
//! BLAKE2b are chains: the assembler hashes their chunks in order itself, and so it does with BLAKE3 if a chunk does
//! not start at a multiple of 1024 bytes, where the leaves of the tree start.
//!
//! The rules of the tree are those of section 2.1 of the BLAKE3 paper and of the `blake3` crate's `hazmat` module.

use std::convert::Infallible;
use std::ops::Range;

use blake2::Blake2b256;
use blake2::digest::Digest;
use blake3::CHUNK_LEN as LEAF_LEN;
use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use xxhash_rust::xxh64::Xxh64;

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

/// A checksum over bytes that come in order.
pub(crate) enum Hasher {
    /// XXH64 with seed 0.
    Xxh64(Box<Xxh64>),
    /// BLAKE2b parametrised for 32 bytes.
    Blake2b(Box<Blake2b256>),
    /// BLAKE3.
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub(crate) fn new(checksum: Checksum) -> Self {
        match checksum {
            Checksum::Xxh64 => Hasher::Xxh64(Box::new(Xxh64::new(0))),
            Checksum::Blake2b => Hasher::Blake2b(Box::default()),
            Checksum::Blake3 => Hasher::Blake3(Box::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Xxh64(hasher) => hasher.update(bytes),
            Hasher::Blake2b(hasher) => hasher.update(bytes),
            Hasher::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest as a footer stores it.
    pub(crate) fn finish(self) -> Vec<u8> {
        match self {
            Hasher::Xxh64(hasher) => hasher.digest().to_be_bytes().to_vec(),
            Hasher::Blake2b(hasher) => hasher.finalize().to_vec(),
            Hasher::Blake3(hasher) => hasher.finalize().as_bytes().to_vec(),
        }
    }
}

/// A chaining value of BLAKE3's tree and how many leaves it stands for.
struct Subtree {
    value: ChainingValue,
    leaves: u64,
}

/// What one chunk adds to BLAKE3's tree.
pub(crate) struct Subtrees {
    nodes: Vec<Subtree>,
    /// The hash, should the chunk turn out to be the whole file: kept for a first chunk of a single leaf, whose chaining
    /// value cannot be turned into a root. Larger first chunks are cut in two or more subtrees for the same reason.
    alone: Option<blake3::Hash>,
}

/// Hashes the chunk that begins at `offset`, a multiple of 1024 bytes, into the largest subtrees that fit. Any thread
/// may do so, for any chunk; only the file's last may have a length that is no multiple of 1024.
pub(crate) fn subtrees(offset: u64, content: Content<'_>) -> Subtrees {
    let leaf_len = LEAF_LEN as u64;
    let hash_part = |hasher: &mut blake3::Hasher, part: Range<u64>| {
        let Ok(()) = content.pieces(part, |bytes| {
            hasher.update(bytes);
            Ok::<(), Infallible>(())
        });
    };
    let alone = (offset == 0 && content.len() <= leaf_len).then(|| {
        let mut hasher = blake3::Hasher::new();
        hash_part(&mut hasher, 0..content.len());
        hasher.finalize()
    });
    let mut nodes = Vec::new();
    let mut done = 0;
    while done < content.len() {
        let rest = content.len() - done;
        // A subtree is full, or the last leaf of all, and starts at a multiple of its own length.
        let mut leaves = match rest / leaf_len {
            0 => 1,
            full => 1_u64 << full.ilog2(),
        };
        match hazmat::max_subtree_len(offset + done) {
            Some(longest) => leaves = leaves.min(longest / leaf_len),
            // What begins the file may turn out to be all of it: then its topmost merge is the root's.
            None if leaves > 1 && leaves * leaf_len == rest => leaves /= 2,
            None => {}
        }
        let len = (leaves * leaf_len).min(rest);
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset + done);
        hash_part(&mut hasher, done..done + len);
        nodes.push(Subtree {
            value: hasher.finalize_non_root(),
            leaves,
        });
        done += len;
    }
    Subtrees { nodes, alone }
}

/// Whether [`subtrees`] can hash a chunk wherever it lies, given where the chunks start.
pub(crate) fn hashes_in_parallel(
    checksum: Checksum,
    mut starts: impl Iterator<Item = u64>,
) -> bool {
    checksum == Checksum::Blake3 && starts.all(|start| start.is_multiple_of(LEAF_LEN as u64))
}

/// Puts a file's checksum together, chunk by chunk in order.
///
/// Invariant of the tree: `stack` holds the roots of full subtrees from left to right, each larger than the next but
/// for those not merged yet. A merge is put off until a further subtree shows that it is not the root.
pub(crate) struct Assembler {
    state: State,
}

enum State {
    Ordered(Hasher),
    Tree {
        stack: Vec<Subtree>,
        alone: Option<blake3::Hash>,
    },
}

impl Assembler {
    /// An assembler that takes [`Subtrees`] if `parallel`, as [`hashes_in_parallel`] says, and bytes if not.
    pub(crate) fn new(checksum: Checksum, parallel: bool) -> Self {
        Self {
            state: match parallel {
                true => State::Tree {
                    stack: Vec::new(),
                    alone: None,
                },
                false => State::Ordered(Hasher::new(checksum)),
            },
        }
    }

    /// Adds the next chunk by its subtrees.
    pub(crate) fn push_subtrees(&mut self, subtrees: Subtrees) {
        let State::Tree { stack, alone } = &mut self.state else {
            debug_assert!(false, "this checksum is computed in order");
            return;
        };
        if stack.is_empty() {
            *alone = subtrees.alone;
        }
        for node in subtrees.nodes {
            push_subtree(stack, node);
        }
    }

    /// Adds the next chunk by its bytes.
    pub(crate) fn push_content(&mut self, content: Content<'_>) {
        let State::Ordered(hasher) = &mut self.state else {
            debug_assert!(false, "this checksum is computed in parallel");
            return;
        };
        let Ok(()) = content.pieces(0..content.len(), |bytes| {
            hasher.update(bytes);
            Ok::<(), Infallible>(())
        });
    }

    /// The digest as a footer stores it.
    pub(crate) fn finish(self) -> Vec<u8> {
        let (mut stack, alone) = match self.state {
            State::Ordered(hasher) => return hasher.finish(),
            State::Tree { stack, alone } => (stack, alone),
        };
        let whole = |alone: Option<blake3::Hash>| alone.unwrap_or_else(|| blake3::hash(&[]));
        let Some(mut right) = stack.pop() else {
            return whole(alone).as_bytes().to_vec();
        };
        let Some(first) = stack.first() else {
            return whole(alone).as_bytes().to_vec();
        };
        let first = first.value;
        while stack.len() > 1
            && let Some(left) = stack.pop()
        {
            right = merge(&left, &right);
        }
        hazmat::merge_subtrees_root(&first, &right.value, Mode::Hash)
            .as_bytes()
            .to_vec()
    }
}

/// Adds a subtree on the right. Those before it of equal size are merged first: now that something follows them, none of
/// these merges is the root's.
fn push_subtree(stack: &mut Vec<Subtree>, node: Subtree) {
    while let [.., left, right] = stack.as_slice()
        && left.leaves == right.leaves
    {
        let merged = merge(left, right);
        stack.truncate(stack.len().saturating_sub(2));
        stack.push(merged);
    }
    stack.push(node);
}

fn merge(left: &Subtree, right: &Subtree) -> Subtree {
    Subtree {
        value: hazmat::merge_subtrees_non_root(&left.value, &right.value, Mode::Hash),
        leaves: left.leaves + right.leaves,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assembled(checksum: Checksum, chunks: &[&[u8]]) -> Vec<u8> {
        let starts: Vec<u64> = chunks
            .iter()
            .scan(0, |end, chunk| {
                let start = *end;
                *end += chunk.len() as u64;
                Some(start)
            })
            .collect();
        let parallel = hashes_in_parallel(checksum, starts.iter().copied());
        let mut assembler = Assembler::new(checksum, parallel);
        for (&start, chunk) in starts.iter().zip(chunks) {
            let content = match chunk.iter().all(|&byte| byte == 0) {
                true => Content::Zeros(chunk.len() as u64),
                false => Content::Bytes(chunk),
            };
            match parallel {
                true => assembler.push_subtrees(subtrees(start, content)),
                false => assembler.push_content(content),
            }
        }
        assembler.finish()
    }

    #[test]
    fn digests_are_the_published_ones() {
        // Of the empty input; BLAKE2b's with `digest_size=32`.
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(Hasher::new(Checksum::Xxh64).finish()),
            "ef46db3751d8e999"
        );
        assert_eq!(
            hex(Hasher::new(Checksum::Blake2b).finish()),
            "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"
        );
        assert_eq!(
            hex(assembled(Checksum::Blake3, &[])),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn every_length_around_a_leaf_and_a_power_of_two_gives_the_plain_hash() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|n| (n % 251) as u8).collect();
        for chunk_len in [1024, 2048, 3072, 4096, 65_536, 100_000_000] {
            for leaves in [0_usize, 1, 2, 3, 4, 5, 8, 16, 17, 32, 64] {
                for len in [
                    leaves * 1024,
                    leaves * 1024 + 1,
                    (leaves * 1024).saturating_sub(1),
                ] {
                    let chunks: Vec<&[u8]> = bytes[..len].chunks(chunk_len).collect();
                    assert_eq!(
                        assembled(Checksum::Blake3, &chunks),
                        blake3::hash(&bytes[..len]).as_bytes(),
                        "{len} bytes in chunks of {chunk_len}"
                    );
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn any_chunks_give_the_hash_of_the_whole(
            lens in proptest::collection::vec(
                prop_oneof![
                    3 => (0_usize..80).prop_map(|leaves| leaves * 1024),
                    1 => 0_usize..5_000,
                ],
                0..12,
            ),
            last in 0_usize..5_000,
            seed in any::<u8>(),
            zeros in any::<bool>(),
        ) {
            let total = lens.iter().sum::<usize>() + last;
            let bytes: Vec<u8> = (0..total)
                .map(|n| if zeros && n % 150_000 > 2_000 { 0 } else { (n / 3) as u8 ^ seed })
                .collect();
            let mut rest = &bytes[..];
            let mut chunks = Vec::new();
            for len in lens.into_iter().chain([last]) {
                let (chunk, behind) = rest.split_at(len);
                chunks.push(chunk);
                rest = behind;
            }
            for checksum in Checksum::ALL {
                let mut plain = Hasher::new(checksum);
                plain.update(&bytes);
                prop_assert_eq!(assembled(checksum, &chunks), plain.finish());
            }
        }
    }
}
