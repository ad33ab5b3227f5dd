//! Builds a record of digests from leaves and groups that come in the order of the file.
//!
//! The same file gives the same record, byte for byte, whoever builds it: `pack` writes it, and `verify` builds it again
//! from what was decoded and compares. No more is in memory than the pages that are not complete, and 4 or 36 bytes of
//! directory for each that is.

use std::collections::VecDeque;
use std::ops::Range;

use crate::digest::{ChainingValue, Leaf, fold, leaf_ranges};
use crate::format::{Layout, PlacedLeaf, encode_directory, encode_page};

/// See the module's description.
pub(crate) struct Builder {
    layout: Layout,
    /// The leaves of the page that is being gathered.
    leaves: Vec<PlacedLeaf>,
    /// Gathered pages, whose groups have not all come.
    gathered: VecDeque<Vec<PlacedLeaf>>,
    groups: VecDeque<ChainingValue>,
    lengths: Vec<u32>,
    values: Vec<ChainingValue>,
}

impl Builder {
    /// An empty record of such a layout.
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            layout,
            leaves: Vec::new(),
            gathered: VecDeque::new(),
            groups: VecDeque::new(),
            lengths: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Adds the next chunk: which bytes of the original it holds, its leaves, and the groups that have become known with it.
    pub(crate) fn push(
        &mut self,
        chunk: Range<u64>,
        leaves: &[Leaf],
        groups: impl IntoIterator<Item = ChainingValue>,
    ) {
        let page_of = |start: u64| start / self.layout.page_len;
        for (range, leaf) in leaf_ranges(chunk, self.layout.leaf_len).zip(leaves) {
            let begins_page = self
                .leaves
                .last()
                .is_some_and(|last| page_of(last.start) != page_of(range.start));
            if begins_page {
                self.gathered.push_back(std::mem::take(&mut self.leaves));
            }
            self.leaves.push(PlacedLeaf {
                start: range.start,
                leaf: *leaf,
            });
        }
        self.add_groups(groups);
    }

    /// Keeps groups, if the layout has any: a checksum that is computed in groups need not be what the record is proved by.
    fn add_groups(&mut self, groups: impl IntoIterator<Item = ChainingValue>) {
        if self.layout.group_len.is_some() {
            self.groups.extend(groups);
        }
    }

    /// The next page that is complete, as it is stored.
    pub(crate) fn next_page(&mut self) -> Option<Vec<u8>> {
        let groups = self.layout.group_len;
        let groups = groups.map_or(0, |len| (self.layout.page_len / len) as usize);
        if self.groups.len() < groups {
            return None;
        }
        let leaves = self.gathered.pop_front()?;
        Some(self.encode(&leaves, groups))
    }

    fn encode(&mut self, leaves: &[PlacedLeaf], groups: usize) -> Vec<u8> {
        let values: Vec<ChainingValue> = self.groups.drain(..groups).collect();
        self.values.extend(fold(values.iter().copied()));
        let page = encode_page(&self.layout, leaves, &values);
        self.lengths
            .push(u32::try_from(page.len()).unwrap_or(u32::MAX));
        page
    }

    /// The pages that were left, and the directory; `groups` are the last of an original of so many bytes.
    pub(crate) fn finish(
        mut self,
        original_size: u64,
        groups: impl IntoIterator<Item = ChainingValue>,
    ) -> (Vec<Vec<u8>>, Vec<u8>) {
        self.add_groups(groups);
        if self.layout.groups_of(original_size).is_none() {
            self.groups.clear();
        }
        let mut pages = Vec::new();
        let last = std::mem::take(&mut self.leaves);
        for leaves in std::mem::take(&mut self.gathered).into_iter().chain([last]) {
            let range = leaves
                .first()
                .map(|first| first.start / self.layout.page_len)
                .map(|page| self.layout.page_range(page, original_size));
            let Some(range) = range else { continue };
            let groups = self
                .layout
                .group_len
                .map_or(0, |len| (range.end - range.start).div_ceil(len) as usize);
            let groups = groups.min(self.groups.len());
            pages.push(self.encode(&leaves, groups));
        }
        if !self.layout.pages_have_values(original_size) {
            self.values.clear();
        }
        (pages, encode_directory(&self.lengths, &self.values))
    }
}
