//! Whole-file checksums put together in the order of the file, and BLAKE3's tree.
//!
//! BLAKE3 is a tree, so the chunks of a file can be hashed by different threads at once: [`subtrees`] computes the
//! chaining values of a chunk wherever it lies, and [`Assembler`] merges them in order. XXH64 and BLAKE2b are chains: the
//! assembler hashes their bytes in order itself, and so it does with BLAKE3 if a chunk does not start at a multiple of 1024
//! bytes, the length of the tree's smallest nodes.
//!
//! A *group* is a subtree of a length its user chooses. The assembler gives out the groups' chaining values as it comes by
//! them: whoever keeps them can prove a part of the file to be what the checksum says without the rest ([`fold_root`]).
//!
//! The rules of the tree are those of section 2.1 of the BLAKE3 paper and of the `blake3` crate's `hazmat` module. A group
//! that is the whole file has no chaining value of use: the checksum itself is its proof.

use std::convert::Infallible;
use std::ops::Range;

use blake3::CHUNK_LEN;
pub(crate) use blake3::hazmat::ChainingValue;
use blake3::hazmat::{self, HasherExt, Mode};

use super::{Chain, Content};
use crate::format::Checksum;

/// The length of the tree's smallest nodes, in bytes.
const SMALLEST_LEN: u64 = CHUNK_LEN as u64;

/// A chaining value and how many bytes it stands for: a power of two, but for the file's last subtree.
struct Subtree {
    value: ChainingValue,
    len: u64,
}

/// What one chunk adds to BLAKE3's tree.
pub(crate) struct Subtrees {
    nodes: Vec<Subtree>,
    /// The hash, should the chunk turn out to be the whole file: kept for a first chunk of a single smallest node, whose
    /// chaining value cannot be turned into a root. Larger first chunks are cut in two or more subtrees for the same reason.
    alone: Option<blake3::Hash>,
}

/// Hashes the chunk that begins at `offset`, a multiple of 1024 bytes, into the largest subtrees that fit and are no longer
/// than a group. Any thread may do so, for any chunk; only the file's last may have a length that is no multiple of 1024.
pub(crate) fn subtrees(offset: u64, content: Content<'_>, group_len: u64) -> Subtrees {
    let hash_part = |hasher: &mut blake3::Hasher, part: Range<u64>| {
        let Ok(()) = content.pieces(part, |bytes| {
            hasher.update(bytes);
            Ok::<(), Infallible>(())
        });
    };
    let alone = (offset == 0 && content.len() <= SMALLEST_LEN).then(|| {
        let mut hasher = blake3::Hasher::new();
        hash_part(&mut hasher, 0..content.len());
        hasher.finalize()
    });
    let mut nodes = Vec::new();
    let mut done = 0;
    while done < content.len() {
        let rest = content.len() - done;
        // A subtree is full, or the last smallest node of all, and starts at a multiple of its own length.
        let mut len = match rest < SMALLEST_LEN {
            true => SMALLEST_LEN,
            false => (1 << rest.ilog2()).min(group_len),
        };
        match hazmat::max_subtree_len(offset + done) {
            Some(longest) => len = len.min(longest),
            // What begins the file may turn out to be all of it: then its topmost merge is the root's.
            None if len > SMALLEST_LEN && len == rest => len /= 2,
            None => {}
        }
        let len = len.min(rest);
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset + done);
        hash_part(&mut hasher, done..done + len);
        nodes.push(Subtree {
            value: hasher.finalize_non_root(),
            len,
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
    checksum == Checksum::Blake3 && starts.all(|start| start.is_multiple_of(SMALLEST_LEN))
}

/// The roots of full subtrees from left to right, each larger than the next but for those not merged yet: a merge is put
/// off until a further subtree shows that it is not the root.
#[derive(Default)]
struct Stack(Vec<Subtree>);

/// The topmost nodes of a tree.
enum Top {
    Nothing,
    One(ChainingValue),
    Two(ChainingValue, ChainingValue),
}

impl Stack {
    /// Adds a subtree on the right. Those before it of equal size are merged first: now that something follows them, none of
    /// these merges is the root's. `merged` is told of each.
    fn push(&mut self, node: Subtree, mut merged: impl FnMut(&Subtree)) {
        while let [.., left, right] = self.0.as_slice()
            && left.len == right.len
        {
            let both = Subtree {
                value: merge(&left.value, &right.value),
                len: left.len + right.len,
            };
            merged(&both);
            self.0.truncate(self.0.len().saturating_sub(2));
            self.0.push(both);
        }
        self.0.push(node);
    }

    fn top(&self) -> Top {
        let Some((first, rest)) = self.0.split_first() else {
            return Top::Nothing;
        };
        match merge_all(rest) {
            None => Top::One(first.value),
            Some(right) => Top::Two(first.value, right),
        }
    }
}

/// Merges subtrees into one, the small ones on the right first; `None` if there are none.
fn merge_all(nodes: &[Subtree]) -> Option<ChainingValue> {
    let values = nodes.iter().rev().map(|node| node.value);
    values.reduce(|right, left| merge(&left, &right))
}

fn merge(left: &ChainingValue, right: &ChainingValue) -> ChainingValue {
    hazmat::merge_subtrees_non_root(left, right, Mode::Hash)
}

fn top_of(values: impl IntoIterator<Item = ChainingValue>) -> Top {
    let mut stack = Stack::default();
    for value in values {
        stack.push(Subtree { value, len: 1 }, |_| {});
    }
    stack.top()
}

/// The chaining value of subtrees of one length that lie side by side, the last of which may be shorter; `None` if there are
/// none.
pub(crate) fn fold(values: impl IntoIterator<Item = ChainingValue>) -> Option<ChainingValue> {
    match top_of(values) {
        Top::Nothing => None,
        Top::One(value) => Some(value),
        Top::Two(left, right) => Some(merge(&left, &right)),
    }
}

/// The checksum of a file that consists of such subtrees; `None` if there are less than two.
pub(crate) fn fold_root(values: impl IntoIterator<Item = ChainingValue>) -> Option<ChainingValue> {
    match top_of(values) {
        Top::Two(left, right) => {
            Some(*hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
        }
        _ => None,
    }
}

/// Hashes one group, whose bytes come in order.
pub(crate) struct Group(blake3::Hasher);

impl Group {
    /// The group that begins at `offset`, a multiple of its length, in bytes.
    pub(crate) fn new(offset: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        Self(hasher)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The group's chaining value.
    pub(crate) fn value(&self) -> ChainingValue {
        self.0.finalize_non_root()
    }

    /// The checksum, if the group is the whole file.
    pub(crate) fn root(&self) -> ChainingValue {
        *self.0.finalize().as_bytes()
    }
}

/// Puts a file's checksum together, chunk by chunk in order.
pub(crate) struct Assembler {
    state: State,
    group_len: u64,
    groups: Vec<ChainingValue>,
}

enum State {
    Chain(Chain),
    /// BLAKE3 of chunks that are hashed in parallel.
    Tree {
        stack: Stack,
        alone: Option<blake3::Hash>,
    },
    /// BLAKE3 of bytes in order: the groups that something follows, and the one that is being hashed.
    Serial {
        stack: Stack,
        group: Box<Group>,
        hashed: u64,
        offset: u64,
    },
}

impl Assembler {
    /// An assembler that takes [`Subtrees`] if `parallel`, as [`hashes_in_parallel`] says, and bytes if not. `group_len` is in
    /// bytes, a power of two and a multiple of 1024.
    pub(crate) fn new(checksum: Checksum, parallel: bool, group_len: u64) -> Self {
        let state = match Chain::new(checksum) {
            Some(chain) => State::Chain(chain),
            None if parallel => State::Tree {
                stack: Stack::default(),
                alone: None,
            },
            None => State::Serial {
                stack: Stack::default(),
                group: Box::new(Group::new(0)),
                hashed: 0,
                offset: 0,
            },
        };
        Self {
            state,
            group_len,
            groups: Vec::new(),
        }
    }

    /// Adds the next chunk by its subtrees.
    pub(crate) fn push_subtrees(&mut self, subtrees: Subtrees) {
        let State::Tree { stack, alone } = &mut self.state else {
            debug_assert!(false, "this checksum is computed in order");
            return;
        };
        if stack.0.is_empty() {
            *alone = subtrees.alone;
        }
        for node in subtrees.nodes {
            push(stack, node, self.group_len, &mut self.groups);
        }
    }

    /// Adds the next chunk by its bytes.
    pub(crate) fn push_content(&mut self, content: Content<'_>) {
        let Ok(()) = content.pieces(0..content.len(), |bytes| {
            match &mut self.state {
                State::Chain(chain) => chain.update(bytes),
                State::Tree { .. } => debug_assert!(false, "this checksum is computed in parallel"),
                State::Serial {
                    stack,
                    group,
                    hashed,
                    offset,
                } => {
                    let mut rest = bytes;
                    while !rest.is_empty() {
                        if *hashed == self.group_len {
                            let node = Subtree {
                                value: group.value(),
                                len: *hashed,
                            };
                            push(stack, node, self.group_len, &mut self.groups);
                            *offset += *hashed;
                            **group = Group::new(*offset);
                            *hashed = 0;
                        }
                        let room = (self.group_len - *hashed).min(rest.len() as u64) as usize;
                        let (now, later) = rest.split_at(room);
                        group.update(now);
                        *hashed += room as u64;
                        rest = later;
                    }
                }
            }
            Ok::<(), Infallible>(())
        });
    }

    /// The chaining values of the groups that have become known since the last call, in order.
    pub(crate) fn take_groups(&mut self) -> Vec<ChainingValue> {
        std::mem::take(&mut self.groups)
    }

    /// The digest as a footer stores it, and the chaining values of the last groups.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<ChainingValue>) {
        let (stack, alone) = match self.state {
            State::Chain(chain) => return (chain.finish(), Vec::new()),
            State::Tree { stack, alone } => (stack, alone),
            State::Serial {
                mut stack,
                group,
                hashed,
                ..
            } => {
                if stack.0.is_empty() {
                    let groups = (hashed > 0).then(|| group.value());
                    return (group.root().to_vec(), groups.into_iter().collect());
                }
                let node = Subtree {
                    value: group.value(),
                    len: hashed,
                };
                push(&mut stack, node, self.group_len, &mut self.groups);
                (stack, None)
            }
        };
        let begun = stack.0.partition_point(|node| node.len >= self.group_len);
        let last = merge_all(stack.0.get(begun..).unwrap_or_default());
        self.groups.extend(last);
        let digest = match stack.top() {
            Top::Two(left, right) => hazmat::merge_subtrees_root(&left, &right, Mode::Hash),
            _ => alone.unwrap_or_else(|| blake3::hash(&[])),
        };
        (digest.as_bytes().to_vec(), self.groups)
    }
}

/// Adds a subtree on the right, and takes note of the groups.
fn push(stack: &mut Stack, node: Subtree, group_len: u64, groups: &mut Vec<ChainingValue>) {
    let is_group = node.len == group_len;
    let value = node.value;
    stack.push(node, |merged| {
        if merged.len == group_len {
            groups.push(merged.value);
        }
    });
    if is_group {
        groups.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GROUP_LEN: u64 = 4096;

    fn assembled(checksum: Checksum, chunks: &[&[u8]]) -> Vec<u8> {
        let parallel = hashes_in_parallel(checksum, starts(chunks).into_iter());
        let (digest, groups) = assembled_in(checksum, chunks, parallel);
        if checksum == Checksum::Blake3 {
            let total: usize = chunks.iter().map(|chunk| chunk.len()).sum();
            assert_eq!(
                groups.len(),
                total.div_ceil(GROUP_LEN as usize).max(groups.len().min(1))
            );
            // Whoever has the groups can prove them by the digest, on two levels or more.
            let above: Vec<_> = groups
                .chunks(4)
                .filter_map(|few| fold(few.iter().copied()))
                .collect();
            for values in [&groups, &above] {
                if let Some(root) = fold_root(values.iter().copied()) {
                    assert!(digest == root);
                }
            }
            let all = chunks.concat();
            for (number, value) in groups
                .iter()
                .enumerate()
                .skip(usize::from(groups.len() == 1))
            {
                let start = number * GROUP_LEN as usize;
                let mut group = Group::new(start as u64);
                group.update(&all[start..all.len().min(start + GROUP_LEN as usize)]);
                assert!(
                    group.value() == *value,
                    "group {number} of {}",
                    groups.len()
                );
            }
            // The other way comes to the same.
            let (serial, same) = assembled_in(checksum, chunks, false);
            assert!(serial == digest && (same == groups || groups.len() < 2));
        }
        digest
    }

    fn starts(chunks: &[&[u8]]) -> Vec<u64> {
        chunks
            .iter()
            .scan(0, |end, chunk| {
                let start = *end;
                *end += chunk.len() as u64;
                Some(start)
            })
            .collect()
    }

    fn assembled_in(
        checksum: Checksum,
        chunks: &[&[u8]],
        parallel: bool,
    ) -> (Vec<u8>, Vec<ChainingValue>) {
        let mut groups = Vec::new();
        let mut assembler = Assembler::new(checksum, parallel, GROUP_LEN);
        for (start, chunk) in starts(chunks).into_iter().zip(chunks) {
            let content = match chunk.iter().all(|&byte| byte == 0) {
                true => Content::Zeros(chunk.len() as u64),
                false => Content::Bytes(chunk),
            };
            match parallel {
                true => assembler.push_subtrees(subtrees(start, content, GROUP_LEN)),
                false => assembler.push_content(content),
            }
            groups.extend(assembler.take_groups());
        }
        let (digest, last) = assembler.finish();
        groups.extend(last);
        (digest, groups)
    }

    #[test]
    fn digests_are_the_published_ones() {
        // Of the empty input; BLAKE2b's with `digest_size=32`.
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(assembled(Checksum::Xxh64, &[])), "ef46db3751d8e999");
        assert_eq!(
            hex(assembled(Checksum::Blake2b, &[])),
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
                prop_assert_eq!(assembled(checksum, &chunks), assembled(checksum, &[&bytes]));
                if checksum == Checksum::Blake3 {
                    prop_assert!(assembled(checksum, &chunks) == blake3::hash(&bytes).as_bytes());
                }
            }
        }
    }
}
