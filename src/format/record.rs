//! The record of digests behind the footer: its bytes as types.
//!
//! The record divides the original into *pages* of equal length, and says of each what its leaves' digests are and, with
//! BLAKE3, the chaining values of its groups. It is found from the file's end, by its *tail*: so it is there whatever may be
//! wrong with the table, and gone when the file was cut short. `docs/FORMAT.md` sets it down field by field.

use std::hash::Hasher;
use std::ops::Range;

use twox_hash::XxHash3_64;

use super::{Checksum, Fields};
use crate::digest::{ChainingValue, Leaf};
use crate::error::{ErrorKind, Part, Result};

/// The first four bytes of a record, and the last, with which its file ends: "WFD1".
pub const RECORD_MAGIC: [u8; 4] = 0x3144_4657_u32.to_le_bytes();
/// The version of the record that is written, and the only one that is read.
const VERSION: u8 = 1;
/// The length of a record's tail, in bytes.
pub(crate) const TAIL_LEN: usize = 40;
/// The length of the part of a tail that its digest is of, in bytes.
const SEALED_LEN: usize = TAIL_LEN - DIGEST_LEN - RECORD_MAGIC.len();
/// The longest page as it is stored, in bytes: who checks a chunk reads one as a rule.
pub(crate) const LONGEST_PAGE: usize = 64 << 10;
/// How many leaves of full length a page may have.
const MOST_LEAVES: u64 = 1024;
/// How many chunks a page may lie in, empty ones included: where its leaves begin is counted out for every check of uneven ones.
pub(crate) const MOST_CHUNKS: usize = 8192;
/// The smallest chunks that files with a record are made of, in bytes: to prove a group of many smaller ones would take as many
/// decodings for each of them.
pub(crate) const SMALLEST_CHUNK: u64 = 4 << 10;
/// Leaves and groups are no shorter and no longer than this, in bytes: pieces of chunks, which are 128 KiB long and
/// aligned as leaves are, are then whole numbers of both.
const LENGTHS: Range<u32> = 12..18;
/// The length of a chaining value, in bytes.
pub(crate) const VALUE_LEN: usize = size_of::<ChainingValue>();
/// The length of a leaf's digest, in bytes.
pub(crate) const DIGEST_LEN: usize = size_of::<u64>();

/// The lengths of what a record divides the original into, in bytes: powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Of a leaf.
    pub(crate) leaf_len: u64,
    /// Of a group of leaves that has a chaining value of BLAKE3, if there are any.
    pub(crate) group_len: Option<u64>,
    /// Of what a page describes.
    pub(crate) page_len: u64,
}

/// The length of the groups `pack` writes, in bytes.
pub(crate) const GROUP_LEN: u64 = 64 << 10;

impl Layout {
    /// What `pack` writes: 8 bytes for 32 KiB and 32 for 64 KiB, 0.075 % with everything, in pages of about 3 KiB.
    pub(crate) fn for_packing(checksum: Option<Checksum>) -> Self {
        Self {
            leaf_len: 32 << 10,
            group_len: (checksum == Some(Checksum::Blake3)).then_some(GROUP_LEN),
            page_len: 4 << 20,
        }
    }

    /// How many pages describe an original of so many bytes.
    pub(crate) fn page_count(&self, original_size: u64) -> u64 {
        original_size.div_ceil(self.page_len)
    }

    /// Which bytes of such an original a page describes.
    pub(crate) fn page_range(&self, page: u64, original_size: u64) -> Range<u64> {
        let start = page.saturating_mul(self.page_len).min(original_size);
        start..start.saturating_add(self.page_len).min(original_size)
    }

    /// The length of groups in a record of such an original, if it has chaining values: a lone group has none.
    pub(crate) fn groups_of(&self, original_size: u64) -> Option<u64> {
        self.group_len.filter(|&len| len < original_size)
    }

    /// Whether the directory has chaining values of such an original's pages: a lone page's is nobody's.
    pub(crate) fn pages_have_values(&self, original_size: u64) -> bool {
        self.groups_of(original_size).is_some() && self.page_count(original_size) > 1
    }

    fn parse([leaf, group, page]: [u8; 3]) -> Option<Self> {
        let [leaf, group, page] = [leaf, group, page].map(u32::from);
        let groups = group == 0 || (LENGTHS.contains(&group) && leaf <= group && group <= page);
        let pages = leaf <= page && page <= leaf + MOST_LEAVES.ilog2();
        (LENGTHS.contains(&leaf) && groups && pages).then(|| Self {
            leaf_len: 1 << leaf,
            group_len: (group > 0).then(|| 1 << group),
            page_len: 1 << page,
        })
    }

    fn to_bytes(self) -> [u8; 3] {
        let exponent = |len: u64| len.ilog2() as u8;
        [
            exponent(self.leaf_len),
            self.group_len.map_or(0, exponent),
            exponent(self.page_len),
        ]
    }
}

/// The end of a record, and of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) layout: Layout,
    /// The length of the whole record, in bytes.
    pub(crate) record_len: u64,
    /// XXH3 of all in front of the payloads, and of the footer behind them.
    pub(crate) beginning: u64,
    /// XXH3 of the directory.
    pub(crate) directory: u64,
}

impl Tail {
    /// Reads the tail from a file's last [`TAIL_LEN`] bytes. `None` if they are none, or one of a version to come: then
    /// the file has no record.
    ///
    /// # Errors
    /// [`ErrorKind::DamagedRecord`].
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let parts = bytes
            .split_first_chunk::<SEALED_LEN>()
            .and_then(|(sealed, rest)| Some((sealed, rest.split_first_chunk::<DIGEST_LEN>()?)));
        let Some((sealed, (seal, magic))) = parts else {
            return Ok(None);
        };
        if magic != RECORD_MAGIC {
            return Ok(None);
        }
        if *seal != XxHash3_64::oneshot(sealed).to_le_bytes() {
            return Err(ErrorKind::DamagedRecord("its tail").into());
        }
        let [.., version] = sealed;
        if *version != VERSION {
            return Ok(None);
        }
        let mut fields = Fields(sealed);
        let directory = u64::from_le_bytes(fields.take(Part::Record)?);
        let beginning = u64::from_le_bytes(fields.take(Part::Record)?);
        let record_len = u64::from_le_bytes(fields.take(Part::Record)?);
        let layout = Layout::parse(fields.take(Part::Record)?)
            .ok_or(ErrorKind::DamagedRecord("its layout is none"))?;
        Ok(Some(Self {
            layout,
            record_len,
            beginning,
            directory,
        }))
    }

    /// The tail as it stands in a file.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(TAIL_LEN);
        bytes.extend(self.directory.to_le_bytes());
        bytes.extend(self.beginning.to_le_bytes());
        bytes.extend(self.record_len.to_le_bytes());
        bytes.extend(self.layout.to_bytes());
        bytes.push(VERSION);
        bytes.extend(XxHash3_64::oneshot(&bytes).to_le_bytes());
        bytes.extend(RECORD_MAGIC);
        bytes
    }
}

/// XXH3 of what comes in parts.
#[derive(Default)]
pub(crate) struct Fingerprint(XxHash3_64);

impl Fingerprint {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(crate) fn digest(&self) -> u64 {
        self.0.finish()
    }
}

/// A leaf and where it begins in the original, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlacedLeaf {
    pub(crate) start: u64,
    pub(crate) leaf: Leaf,
}

/// A page as it is stored: nothing at all if it describes nothing but zeros. `values` are the chaining values of all the
/// groups that lie in it, or none.
pub(crate) fn encode_page(
    layout: &Layout,
    leaves: &[PlacedLeaf],
    values: &[ChainingValue],
) -> Vec<u8> {
    let mut flags = vec![0_u8; leaves.len().div_ceil(8)];
    let mut digests = Vec::with_capacity(leaves.len() * DIGEST_LEN);
    let mut with_data = vec![false; values.len()];
    for (number, placed) in leaves.iter().enumerate() {
        match placed.leaf {
            Leaf::Zeros => {
                if let Some(byte) = flags.get_mut(number / 8) {
                    *byte |= 1 << (number % 8);
                }
            }
            Leaf::Digest(digest) => {
                digests.extend(digest.to_le_bytes());
                let within = placed.start % layout.page_len;
                let group = layout.group_len.and_then(|len| within.checked_div(len));
                if let Some(seen) = group.and_then(|at| with_data.get_mut(at as usize)) {
                    *seen = true;
                }
            }
        }
    }
    if digests.is_empty() {
        return Vec::new();
    }
    let values = values.iter().zip(with_data);
    let values = values.filter(|(_, with_data)| *with_data);
    let body: Vec<u8> = flags
        .into_iter()
        .chain(digests)
        .chain(values.flat_map(|(value, _)| *value))
        .collect();
    let mut bytes = XxHash3_64::oneshot(&body).to_le_bytes().to_vec();
    bytes.extend(body);
    bytes
}

/// A page of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'a> {
    leaf_count: usize,
    /// `None` if there are no bytes: all leaves are zeros.
    stored: Option<Stored<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Stored<'a> {
    seal: [u8; DIGEST_LEN],
    body: &'a [u8],
    flags: &'a [u8],
    digests: &'a [[u8; DIGEST_LEN]],
    values: &'a [ChainingValue],
}

impl<'a> Page<'a> {
    /// Reads a page that describes so many leaves; `None` if its length and its flags contradict each other, or there are
    /// flags of leaves that do not exist: what these flag would be missing elsewhere.
    pub(crate) fn parse(bytes: &'a [u8], leaf_count: usize) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self {
                leaf_count,
                stored: None,
            });
        }
        let (seal, body) = bytes.split_first_chunk::<DIGEST_LEN>()?;
        let (flags, rest) = body.split_at_checked(leaf_count.div_ceil(8))?;
        let last_used = leaf_count.checked_sub(1)? % 8;
        if flags.last().is_some_and(|last| last >> last_used > 1) {
            return None;
        }
        let zeros: u32 = flags.iter().map(|byte| byte.count_ones()).sum();
        let with_data = leaf_count.checked_sub(zeros as usize)?;
        let (digests, values) = rest.split_at_checked(with_data.checked_mul(DIGEST_LEN)?)?;
        let (digests, _) = digests.as_chunks();
        let (values, left) = values.as_chunks();
        left.is_empty().then_some(Self {
            leaf_count,
            stored: Some(Stored {
                seal: *seal,
                body,
                flags,
                digests,
                values,
            }),
        })
    }

    /// Whether the page is what it was when it was written.
    pub(crate) fn is_whole(&self) -> bool {
        self.stored
            .is_none_or(|stored| XxHash3_64::oneshot(stored.body).to_le_bytes() == stored.seal)
    }

    /// What it says of each leaf, in order.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = Leaf> + use<'a> {
        let stored = self.stored;
        let mut digests = stored.map_or([].as_slice(), |stored| stored.digests).iter();
        (0..self.leaf_count).map_while(move |number| {
            let Some(stored) = stored else {
                return Some(Leaf::Zeros);
            };
            match stored.flags.get(number / 8)? >> (number % 8) & 1 {
                1 => Some(Leaf::Zeros),
                _ => digests
                    .next()
                    .map(|digest| Leaf::Digest(u64::from_le_bytes(*digest))),
            }
        })
    }

    /// The chaining values of the groups that hold anything but zeros, in order.
    pub(crate) fn values(&self) -> &'a [ChainingValue] {
        self.stored.map_or(&[], |stored| stored.values)
    }
}

/// The directory of a record as it stands in a file: the stored lengths of all pages, then their chaining values, if they
/// have any.
pub(crate) fn encode_directory(lengths: &[u32], values: &[ChainingValue]) -> Vec<u8> {
    let lengths = lengths.iter().flat_map(|length| length.to_le_bytes());
    lengths.chain(values.iter().flatten().copied()).collect()
}

/// The length of a directory, in bytes; `None` if it cannot be so long.
pub(crate) fn directory_len(layout: &Layout, original_size: u64) -> Option<u64> {
    let entry = match layout.pages_have_values(original_size) {
        true => 4 + VALUE_LEN,
        false => 4,
    };
    layout.page_count(original_size).checked_mul(entry as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(start: u64, leaf: Leaf) -> PlacedLeaf {
        PlacedLeaf { start, leaf }
    }

    #[test]
    fn a_tail_is_read_as_it_was_written_and_a_changed_one_is_not() {
        for checksum in [None, Some(Checksum::Blake3)] {
            let tail = Tail {
                layout: Layout::for_packing(checksum),
                record_len: 12345,
                beginning: 7,
                directory: u64::MAX,
            };
            let bytes = tail.to_bytes();
            assert_eq!(bytes.len(), TAIL_LEN);
            assert_eq!(Tail::parse(&bytes).unwrap(), Some(tail));
            for place in 0..TAIL_LEN {
                let mut changed = bytes.clone();
                changed[place] ^= 0x10;
                let damaged = Tail::parse(&changed);
                match place < TAIL_LEN - 4 {
                    true => assert!(damaged.unwrap_err().is_damage(), "byte {place}"),
                    false => assert_eq!(damaged.unwrap(), None, "byte {place}"),
                }
            }
            assert_eq!(Tail::parse(&bytes[1..]).unwrap(), None);
            assert_eq!(Tail::parse(&[]).unwrap(), None);
        }
    }

    #[test]
    fn layouts_no_reader_could_serve_are_refused() {
        assert!(Layout::parse([15, 16, 22]).is_some());
        assert!(Layout::parse([12, 0, 12]).is_some());
        for lengths in [
            [11, 0, 20],
            [18, 0, 20],
            [15, 14, 22],
            [15, 18, 22],
            [15, 16, 15],
            [15, 0, 14],
            [12, 12, 23],
            [255, 255, 255],
        ] {
            assert_eq!(Layout::parse(lengths), None, "{lengths:?}");
        }
    }

    #[test]
    fn a_page_leaves_out_zeros_and_is_read_as_it_was_written() {
        let layout = Layout::for_packing(Some(Checksum::Blake3));
        let kib = |kib: u64| kib << 10;
        let leaves = [
            leaf(0, Leaf::Digest(1)),
            leaf(kib(32), Leaf::Zeros),
            leaf(kib(64), Leaf::Zeros),
            leaf(kib(96), Leaf::Zeros),
            leaf(kib(128), Leaf::Zeros),
            leaf(kib(150), Leaf::Digest(u64::MAX)),
        ];
        let values = [[1; 32], [2; 32], [3; 32]];
        let bytes = encode_page(&layout, &leaves, &values);
        assert_eq!(bytes.len(), 8 + 1 + 2 * 8 + 2 * 32);
        let page = Page::parse(&bytes, leaves.len()).unwrap();
        assert!(page.is_whole());
        assert!(page.leaves().eq(leaves.iter().map(|placed| placed.leaf)));
        assert_eq!(page.values(), [[1; 32], [3; 32]]);
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(Page::parse(&changed, leaves.len()).is_none_or(|page| !page.is_whole()));
        }
        // A flag of no leaf would make up for a digest that is missing.
        let mut short = bytes.clone();
        short[8] |= 0xc0;
        short.drain(17..33);
        assert!(Page::parse(&short, leaves.len()).is_none());
        let zeros = encode_page(&layout, &leaves[1..4], &values);
        assert!(zeros.is_empty());
        let page = Page::parse(&zeros, 3).unwrap();
        assert!(page.is_whole() && page.leaves().eq([Leaf::Zeros; 3]));
    }

    #[test]
    fn a_page_with_flags_of_leaves_that_do_not_exist_is_none() {
        // Five leaves with data and four flags behind them: as long as one leaf with data and a chaining value.
        let page = |flags: u8| [&[0; 8][..], &[flags], &[7; 5 * 8]].concat();
        assert!(Page::parse(&page(0), 5).is_some());
        assert!(Page::parse(&page(0b1110_0000), 5).is_none());
        let four_more = [&[0; 8][..], &[0b1111_0000], &[7; 4 * 8]].concat();
        assert!(Page::parse(&four_more, 4).is_none());
    }
}
