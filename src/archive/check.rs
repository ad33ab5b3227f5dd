//! Whether decoded bytes are those that were packed, by the record of digests.
//!
//! The pages of a record are read again for every check, by whoever decodes: nothing that was read once is trusted later, and
//! nothing of them has to be kept. A digest that matches is proof enough, also in a page that is damaged elsewhere; a
//! page's own digest tells, when one does not match, which of the two is damaged.
//!
//! A file that was cut short while it was open has lost its record with its end: what it still holds is served with the
//! codec's own checks.

use std::cell::Cell;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use super::Archive;
use super::record::{Evidence, Proof, Record};
use crate::digest::{
    ChainingValue, Content, Group, Leaf, fold, fold_root, leaf_count, leaf_count_of_chunks,
    leaf_digests, leaf_ranges,
};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::{MOST_CHUNKS, Page, SMALLEST_CHUNK};

thread_local! {
    /// Room for a page, which has 64 KiB at most. Whoever uses it takes it.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A leaf of a page: where it lies in the original, in bytes, and what the page says of it.
type StoredLeaf = (Range<u64>, Leaf);

/// A leaf: where it lies in the original, in bytes, and whether it is zeros for sure.
type KnownLeaf = (Range<u64>, bool);

fn damaged_page() -> Error {
    ErrorKind::DamagedRecord("a page of it").into()
}

impl Archive {
    /// The record of digests, if the file has one and it is wanted.
    pub(crate) fn record(&self) -> Option<&Record> {
        self.contents.record.as_ref()
    }

    /// What decoded bytes are checked by.
    pub(crate) fn evidence(&self) -> Evidence {
        self.record().map_or(Evidence::Codec, Record::evidence)
    }

    /// How much room [`Archive::check`] needs beside a part, in bytes: to prove a group that reaches into other chunks,
    /// these are decoded too, one at a time. None as a rule.
    pub(crate) fn room_beside(&self, part: &Range<u64>) -> usize {
        let table = self.table();
        let mut longest = 0;
        let Some(record) = self.record() else {
            return longest;
        };
        for group in record.cut_groups(part, table.original_size()) {
            for chunk in table.chunks_holding(&group) {
                let original = table.original_range(chunk).unwrap_or_default();
                if overlaps(&original, part) {
                    continue;
                }
                let payload = table.compressed_range(chunk).unwrap_or_default();
                let length =
                    (payload.end - payload.start).checked_add(original.end - original.start);
                let length = length.and_then(|length| usize::try_from(length).ok());
                longest = length.unwrap_or(usize::MAX).max(longest);
            }
        }
        longest
    }

    /// Checks decoded bytes, `part` of the original, which is a chunk or a piece of one that begins and ends where leaves do.
    /// `room` is as long as [`Archive::room_beside`] says, or longer.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`], [`ErrorKind::DamagedRecord`], or those of reading.
    pub(crate) fn check(&self, part: &Range<u64>, bytes: &[u8], room: &mut [u8]) -> Result<()> {
        let Some(record) = self.record() else {
            return Ok(());
        };
        match &record.proof {
            Some(proof) => self
                .prove(record, proof, part, bytes, room)
                // Of a file that was changed meanwhile nothing can be said but that.
                .or_else(|error| self.check_unchanged().and(Err(error))),
            None => {
                let leaf_len = record.layout().leaf_len;
                let leaves = leaf_digests(part.start, Content::Bytes(bytes), leaf_len);
                self.compare_leaves(part, &leaves)
            }
        }
    }

    /// Compares the leaves of a part of the original, cut as for [`Archive::check`], with what the record says of them.
    ///
    /// # Errors
    /// As [`Archive::check`].
    pub(crate) fn compare_leaves(&self, part: &Range<u64>, leaves: &[Leaf]) -> Result<()> {
        let Some(record) = self.record() else {
            return Ok(());
        };
        let layout = record.layout();
        let original_size = self.table().original_size();
        let mut leaves = leaves.iter();
        let mut start = part.start;
        while start < part.end {
            let number = start / layout.page_len;
            let described = layout.page_range(number, original_size);
            let end = part.end.min(described.end);
            let compare = |page: Page<'_>| {
                let before = self.leaf_count(record, &(described.start..start));
                let ranges = leaf_ranges(start..end, layout.leaf_len);
                for (range, stored) in ranges.zip(page.leaves().skip(before)) {
                    if leaves.next() != Some(&stored) {
                        return Err(match page.is_whole() {
                            true => mismatch("xxh3", range),
                            false => damaged_page(),
                        });
                    }
                }
                Ok(())
            };
            match self.with_page(record, number, compare) {
                Ok(Some(())) => {}
                Ok(None) => return Ok(()),
                Err(error) => return self.check_unchanged().and(Err(error)),
            }
            start = end;
        }
        Ok(())
    }

    /// Which leaves a page describes, in order, and whether they are zeros for sure; `None` if it cannot be believed, or had better
    /// not be.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn leaves_of_page(
        &self,
        record: &Record,
        number: u64,
    ) -> Result<Option<Vec<KnownLeaf>>> {
        if record.proof.is_none() && record.page_place(number).is_empty() {
            let described = record
                .layout()
                .page_range(number, self.table().original_size());
            return Ok(Some(vec![(described, true)]));
        }
        let believable = match &record.proof {
            Some(proof) => self
                .proved_groups(record, proof, number)
                .map(|groups| groups.is_some()),
            None => Ok(true),
        };
        let found = match believable {
            Ok(true) => self.with_page(record, number, |page| match page.is_whole() {
                true => Ok(self.zeros_of(record, number, page)),
                false => Err(damaged_page()),
            }),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        self.check_unchanged()?;
        match found {
            Err(error) if error.is_damage() => Ok(None),
            found => found,
        }
    }

    fn zeros_of(&self, record: &Record, number: u64, page: Page<'_>) -> Vec<KnownLeaf> {
        let leaves = self.stored_leaves(record, number, page);
        let mut leaves: Vec<_> = leaves
            .map(|(range, leaf)| (range, leaf == Leaf::Zeros))
            .collect();
        if let Some(proof) = &record.proof {
            // That there is something in a group is proved, and not where in it.
            let group = |(range, _): &KnownLeaf| range.start / proof.group_len;
            for leaves in leaves.chunk_by_mut(|one, next| group(one) == group(next)) {
                let all = leaves.iter().all(|(_, zeros)| *zeros);
                leaves.iter_mut().for_each(|(_, zeros)| *zeros = all);
            }
        }
        leaves
    }

    /// Whether a page is stored as these bytes; also if the file was cut short and has lost it.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn page_is(&self, record: &Record, number: u64, bytes: &[u8]) -> Result<bool> {
        let same = self.with_stored_page(record, number, |stored| Ok(stored == bytes))?;
        Ok(same.unwrap_or(true))
    }

    fn leaf_ranges(&self, record: &Record, part: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let leaf_len = record.layout().leaf_len;
        self.chunk_parts(part)
            .flat_map(move |part| leaf_ranges(part, leaf_len))
    }

    /// How many leaves a part of the original has that begins where a page does.
    fn leaf_count(&self, record: &Record, part: &Range<u64>) -> usize {
        let leaf_len = record.layout().leaf_len;
        // What is read at random has two parts counted for each check.
        if let Some(chunk_size) = self.table().even_chunk_size().filter(|size| *size > 0) {
            return leaf_count_of_chunks(part, leaf_len, chunk_size) as usize;
        }
        let counts = self
            .chunk_parts(part.clone())
            .map(|part| leaf_count(&part, leaf_len) as usize);
        counts.sum()
    }

    /// The parts of a part of the original, cut where chunks end.
    fn chunk_parts(&self, part: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let table = self.table();
        table
            .chunks_holding(&part)
            .filter_map(|chunk| table.original_range(chunk))
            .map(move |chunk| chunk.start.max(part.start)..chunk.end.min(part.end))
            .filter(|part| !part.is_empty())
    }

    fn stored_leaves(
        &self,
        record: &Record,
        number: u64,
        page: Page<'_>,
    ) -> impl Iterator<Item = StoredLeaf> {
        let original_size = self.table().original_size();
        let described = record.layout().page_range(number, original_size);
        let stored = page.leaves();
        self.leaf_ranges(record, described).zip(stored)
    }

    /// Reads a page and does something with it; `None` if the file was cut short and has lost it.
    fn with_page<T>(
        &self,
        record: &Record,
        number: u64,
        work: impl FnOnce(Page<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.with_stored_page(record, number, |bytes| {
            let original_size = self.table().original_size();
            let described = record.layout().page_range(number, original_size);
            if self.table().chunks_holding(&described).len() > MOST_CHUNKS {
                return Err(ErrorKind::DamagedRecord("a page of too many chunks").into());
            }
            let leaf_count = self.leaf_count(record, &described);
            work(Page::parse(bytes, leaf_count).ok_or_else(damaged_page)?)
        })
    }

    /// Takes notice that these bytes of the original are going to be checked.
    pub(crate) fn expect_checks(&self, original: &Range<u64>) {
        let size = self.table().original_size();
        if let Some(record) = &self.contents.record
            && original.start < original.end.min(size)
        {
            let page_len = record.layout().page_len;
            let first = record.page_place(original.start / page_len);
            let last = record.page_place((original.end.min(size) - 1) / page_len);
            self.source.expect_description(first.start..last.end);
        }
    }

    /// As [`Archive::with_page`], with the page's bytes as they are stored.
    fn with_stored_page<T>(
        &self,
        record: &Record,
        number: u64,
        work: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<Option<T>> {
        let place = record.page_place(number);
        let length = (place.end - place.start) as usize;
        let mut room = ROOM.take();
        room.resize(length.max(room.len()), 0);
        let wanted = room.get_mut(..length).unwrap_or_default();
        let read = self
            .source
            .read_description(wanted, place.start, 0)
            .context("cannot read", &self.path);
        let outcome = match read {
            Err(error) => Err(error),
            // If it was not cut short, it was changed.
            Ok(read) if read < length => self.check_unchanged().map(|()| None),
            Ok(_) => work(wanted).map(Some),
        };
        ROOM.set(room);
        outcome
    }

    /// Proves decoded bytes, group by group, up to the file's checksum.
    fn prove(
        &self,
        record: &Record,
        proof: &Proof,
        part: &Range<u64>,
        bytes: &[u8],
        room: &mut [u8],
    ) -> Result<()> {
        let layout = record.layout();
        let size = self.table().original_size();
        let mut start = part.start - part.start % proof.group_len;
        while start < part.end {
            let range = start..size.min(start.saturating_add(proof.group_len));
            let group = self.hash_group(&range, part, bytes, room)?;
            let proved = match layout.groups_of(size) {
                None => group.root() == proof.root,
                Some(_) => {
                    let page = start / layout.page_len;
                    let Some(groups) = self.proved_groups(record, proof, page)? else {
                        return Ok(());
                    };
                    let number = start % layout.page_len / proof.group_len;
                    groups.get(number as usize) == Some(&group.value())
                }
            };
            if !proved {
                return Err(mismatch(
                    "blake3",
                    range.start.max(part.start)..range.end.min(part.end),
                ));
            }
            start = range.end;
        }
        Ok(())
    }

    /// Hashes a group of which `part` is at hand; other chunks may hold the rest.
    fn hash_group(
        &self,
        range: &Range<u64>,
        part: &Range<u64>,
        bytes: &[u8],
        room: &mut [u8],
    ) -> Result<Group> {
        let mut group = Group::new(range.start);
        let table = self.table();
        let chunks = table.chunks_holding(range);
        if chunks.len() as u64 > (range.end - range.start) / SMALLEST_CHUNK + 2 {
            return Err(ErrorKind::DamagedRecord("a group of too many chunks").into());
        }
        for chunk in chunks {
            let held = table.original_range(chunk).unwrap_or_default();
            let wanted = held.start.max(range.start)..held.end.min(range.end);
            if wanted.is_empty() {
                continue;
            }
            let (bytes, start) = if overlaps(&held, part) {
                (bytes, part.start)
            } else {
                let packed = table.compressed_range(chunk).unwrap_or_default();
                let packed_len = (packed.end - packed.start) as usize;
                let (payload, rest) = room.split_at_mut_checked(packed_len).unwrap_or_default();
                let original = rest.get_mut(..(held.end - held.start) as usize);
                let original = original.unwrap_or_default();
                self.decode(chunk, payload, original)?;
                (&*original, held.start)
            };
            let from = wanted.start.saturating_sub(start) as usize;
            let to = wanted.end.saturating_sub(start) as usize;
            group.update(bytes.get(from..to).unwrap_or_default());
        }
        Ok(group)
    }

    /// The chaining values of all the groups of a page, proved by the checksum; `None` if the file was cut short and has lost
    /// them.
    fn proved_groups(
        &self,
        record: &Record,
        proof: &Proof,
        number: u64,
    ) -> Result<Option<Arc<[ChainingValue]>>> {
        if let Some((page, groups)) = &*proof.last()
            && *page == number
        {
            return Ok(Some(Arc::clone(groups)));
        }
        let groups = self.with_page(record, number, |page| {
            self.groups_of_page(record, proof, number, page)
        })?;
        let Some(groups) = groups else {
            return Ok(None);
        };
        let proved = match proof.pages.get(number as usize) {
            Some(value) => fold(groups.iter().copied()).as_ref() == Some(value),
            None => fold_root(groups.iter().copied()).as_ref() == Some(&proof.root),
        };
        if !proved {
            return Err(damaged_page());
        }
        let groups: Arc<[ChainingValue]> = groups.into();
        *proof.last() = Some((number, Arc::clone(&groups)));
        Ok(Some(groups))
    }

    /// The chaining values of all the groups of a page. Those of zeros are not stored: they are computed.
    fn groups_of_page(
        &self,
        record: &Record,
        proof: &Proof,
        number: u64,
        page: Page<'_>,
    ) -> Result<Vec<ChainingValue>> {
        let layout = record.layout();
        let described = layout.page_range(number, self.table().original_size());
        let mut values = page.values().iter();
        let mut leaves = self.stored_leaves(record, number, page).peekable();
        let mut groups = Vec::new();
        let mut start = described.start;
        while start < described.end {
            let end = described.end.min(start.saturating_add(proof.group_len));
            let mut zeros = true;
            while let Some((_, leaf)) = leaves.next_if(|(range, _)| range.start < end) {
                zeros &= leaf == Leaf::Zeros;
            }
            groups.push(match zeros {
                false => *values.next().ok_or_else(damaged_page)?,
                true => {
                    let mut group = Group::new(start);
                    let Ok(()) = Content::Zeros(end - start).pieces(0..end - start, |bytes| {
                        group.update(bytes);
                        Ok::<(), Infallible>(())
                    });
                    group.value()
                }
            });
            start = end;
        }
        match values.next() {
            Some(_) => Err(damaged_page()),
            None => Ok(groups),
        }
    }
}

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn mismatch(algorithm: &'static str, bytes: Range<u64>) -> Error {
    let Range { start, end } = bytes;
    Error::new(ErrorKind::DigestMismatch {
        algorithm,
        start,
        end,
    })
}
