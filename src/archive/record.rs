//! The record of digests of an open file: where its pages are, and what they are proved by.
//!
//! Tail and directory are read when the file is opened. Where the pages lie takes at most 8 bytes a page, and nothing where all are
//! of one length, as most are; with proofs 32 more stay in memory. The pages are read when they are needed.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::outline::{Conditions, Verify, stop_if_set};
use super::source::Source;
use crate::digest::{ChainingValue, fold_root};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::{
    Checksum, Fingerprint, FixedHeader, Footer, LONGEST_PAGE, Layout, RECORD_MAGIC, Sums, TAIL_LEN,
    Tail, directory_len,
};
use crate::memory::Charge;

/// How much of a directory is read at a time, in bytes: a multiple of the length of all its entries.
const BLOCK_LEN: usize = 64 << 10;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Record {
    layout: Layout,
    /// Where each page lies in the file, in bytes.
    pages: Sums,
    /// XXH3 of the directory.
    directory: u64,
    len: u64,
    /// What proofs are founded on, if they are wanted and can be had.
    pub(super) proof: Option<Proof>,
    charge: Charge,
}

/// The upper part of BLAKE3's tree.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) root: ChainingValue,
    /// The length of a group, in bytes; the whole original is one if it is no longer.
    pub(super) group_len: u64,
    /// The pages' chaining values, proved by the root; none if there is only one page.
    pub(super) pages: Box<[ChainingValue]>,
    /// The page proved last, and its groups' chaining values.
    last: Mutex<Option<(u64, Arc<[ChainingValue]>)>>,
}

impl Proof {
    /// The page proved last, and its groups' chaining values.
    pub(super) fn last(&self) -> MutexGuard<'_, Option<(u64, Arc<[ChainingValue]>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What precedes a record in its file.
pub(super) struct Beginning<'a> {
    pub(super) header: &'a FixedHeader,
    pub(super) footer: Option<&'a Footer>,
    /// Where the footer ends, or the payloads if there is none, in bytes.
    pub(super) end: u64,
    /// XXH3 of header, table and footer.
    pub(super) fingerprint: u64,
}

/// What a file's bytes can be checked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// BLAKE3, up to the footer's digest.
    Proof,
    /// XXH3 of each leaf.
    Leaves,
    /// Nothing but what the codec notices.
    Codec,
}

impl Record {
    /// The memory that what is kept of the record counts as, in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.charge.bytes()
    }

    /// Reads the tail and the directory of a file of `file_len` bytes; `None` if it has no record.
    ///
    /// # Errors
    /// The record is damaged, or what it describes is not what the file begins with.
    pub(super) fn read(
        source: &dyn Source,
        path: &Path,
        beginning: &Beginning<'_>,
        file_len: u64,
        conditions: &Conditions<'_>,
    ) -> Result<Option<Self>> {
        let mut tail = [0; TAIL_LEN];
        // Where the payloads are all there is, the last may be of a `.warp` that was packed again, and end with its tail.
        let behind = beginning.end != file_len;
        let tail_start = file_len.checked_sub(TAIL_LEN as u64);
        let Some(tail_start) = tail_start.filter(|_| behind) else {
            return Ok(None);
        };
        let read = source
            .read_description(&mut tail, tail_start, file_len)
            .context("cannot read", path)?;
        let Some(tail) = Tail::parse(tail.get(..read).unwrap_or_default())? else {
            return Ok(None);
        };
        let fits = file_len.checked_sub(tail.record_len) == Some(beginning.end);
        if !fits || tail.beginning != beginning.fingerprint {
            return Err(ErrorKind::DamagedBeginning.into());
        }
        let damaged = |what| Error::new(ErrorKind::DamagedRecord(what));
        let mut magic = [0; RECORD_MAGIC.len()];
        source
            .read_description(&mut magic, beginning.end, 0)
            .context("cannot read", path)?;
        if magic != RECORD_MAGIC {
            return Err(damaged("its beginning"));
        }
        let start = beginning.end.saturating_add(magic.len() as u64);
        let layout = tail.layout;
        let original_size = beginning.header.original_size;
        let pages = layout.page_count(original_size);
        let with_values = layout.pages_have_values(original_size);
        let directory_start = directory_len(&layout, original_size)
            .and_then(|length| tail_start.checked_sub(length))
            .filter(|&directory| directory >= start)
            .ok_or_else(|| damaged("it is too short for its directory"))?;

        let keeps_values = with_values && conditions.verify == Verify::Strict;
        let kept = 8 + if keeps_values { 32 } else { 0 };
        let mut charge = conditions
            .budget
            .charge(pages.saturating_mul(kept), conditions.make_room)?;
        let mut directory = Directory {
            source,
            path,
            cancelled: conditions.cancelled,
            offset: directory_start,
            end: tail_start,
            fingerprint: Fingerprint::default(),
        };
        // What no memory has room for in the worst case is not read through to find out whether it is as bad as that.
        drop(room_for::<u64>(pages)?);
        let count = usize::try_from(pages).map_err(|_| too_many(pages))?;
        let mut places = Sums::new(start, count);
        let (mut too_long, mut held) = (false, true);
        directory.read(pages, |length: [u8; 4]| {
            let length = u32::from_le_bytes(length);
            too_long |= length as usize > LONGEST_PAGE;
            held &= places.push(length.into()).is_some();
        })?;
        if !held {
            return Err(too_many(pages));
        }
        places.shrink();
        let mut values: Vec<ChainingValue> = room_for(if keeps_values { pages } else { 0 })?;
        if with_values {
            directory.read(pages, |value| {
                if keeps_values {
                    values.push(value);
                }
            })?;
        }
        if directory.fingerprint.digest() != tail.directory
            || too_long
            || places.end() != directory_start
        {
            return Err(damaged("its directory"));
        }
        let digest = beginning
            .footer
            .map(|footer| (footer.checksum, &footer.digest));
        let root = match digest {
            Some((Checksum::Blake3, digest)) => ChainingValue::try_from(digest.as_slice()).ok(),
            _ => None,
        };
        if layout.group_len.is_some() && root.is_none() {
            return Err(damaged("its groups, which no checksum proves"));
        }
        charge.shrink_to(places.memory() as u64 + pages.saturating_mul(kept - 8));
        let proof = match (conditions.verify, layout.group_len, root) {
            (Verify::Strict, Some(group_len), Some(root)) => {
                if with_values && fold_root(values.iter().copied()) != Some(root) {
                    return Err(damaged(
                        "its directory is not proved by the file's checksum",
                    ));
                }
                Some(Proof {
                    root,
                    group_len,
                    pages: values.into_boxed_slice(),
                    last: Mutex::default(),
                })
            }
            _ => None,
        };
        Ok(Some(Self {
            layout,
            pages: places,
            directory: tail.directory,
            len: tail.record_len,
            proof,
            charge,
        }))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether its directory is this one.
    pub(crate) fn has_directory(&self, bytes: &[u8]) -> bool {
        let mut fingerprint = Fingerprint::default();
        fingerprint.update(bytes);
        fingerprint.digest() == self.directory
    }

    /// The record's length in the file, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// How strong its checks are.
    pub(crate) fn evidence(&self) -> Evidence {
        match self.proof {
            Some(_) => Evidence::Proof,
            None => Evidence::Leaves,
        }
    }

    /// The groups that lie partly in a part of an original of so many bytes and partly outside of it, if proofs are wanted.
    pub(super) fn cut_groups(
        &self,
        part: &Range<u64>,
        original_size: u64,
    ) -> impl Iterator<Item = Range<u64>> {
        let (from, to) = (part.start, part.end);
        let group_at = move |proof: &Proof, offset: u64| {
            let start = offset - offset % proof.group_len;
            start..original_size.min(start.saturating_add(proof.group_len))
        };
        let first = self.proof.iter().map(move |proof| group_at(proof, from));
        let last = self
            .proof
            .iter()
            .map(move |proof| group_at(proof, to.saturating_sub(1)));
        first
            .chain(last)
            .filter(move |group| group.start < from || group.end > to)
    }

    /// Where a page is stored in the file, in bytes; empty if it describes zeros only.
    pub(super) fn page_place(&self, page: u64) -> Range<u64> {
        let place = usize::try_from(page).ok();
        let place = place.and_then(|page| self.pages.range(page));
        place.unwrap_or_default()
    }
}

/// Room for something of each of so many pages. A sparse file may announce any number of them for nothing.
fn room_for<T>(pages: u64) -> Result<Vec<T>> {
    let mut room = Vec::new();
    let reserved = usize::try_from(pages).map(|pages| room.try_reserve_exact(pages));
    match reserved {
        Ok(Ok(())) => Ok(room),
        _ => Err(too_many(pages)),
    }
}

fn too_many(pages: u64) -> Error {
    ErrorKind::NoMemory(format!("a record of digests of {pages} pages")).into()
}

/// The directory of a record, being read.
struct Directory<'a> {
    source: &'a dyn Source,
    path: &'a Path,
    cancelled: &'a AtomicBool,
    offset: u64,
    /// Where it ends in the file, in bytes.
    end: u64,
    fingerprint: Fingerprint,
}

impl Directory<'_> {
    /// Reads so many entries of `N` bytes each.
    fn read<const N: usize>(&mut self, count: u64, mut take: impl FnMut([u8; N])) -> Result<()> {
        let mut block = [0; BLOCK_LEN];
        let mut rest = count.saturating_mul(N as u64);
        while rest > 0 {
            stop_if_set(self.cancelled)?;
            let length = rest.min(BLOCK_LEN as u64) as usize;
            let wanted = block.get_mut(..length).unwrap_or_default();
            let read = self
                .source
                .read_description(wanted, self.offset, self.end)
                .context("cannot read", self.path)?;
            if read < length {
                return Err(ErrorKind::DamagedRecord("its directory is cut short").into());
            }
            self.fingerprint.update(wanted);
            let (entries, _) = wanted.as_chunks::<N>();
            for entry in entries {
                take(*entry);
            }
            self.offset += length as u64;
            rest -= length as u64;
        }
        Ok(())
    }
}
