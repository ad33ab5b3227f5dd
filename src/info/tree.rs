//! What the files of a tree say of themselves, summed up.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::Info;
use crate::archive::Input;
use crate::error::{Error, ErrorKind, Result};
use crate::pack::open_entry;
use crate::place::inode_of;
use crate::recursive::is_named_packed;
use crate::walk::{Step, Walk};

/// How many files are named for what they are.
const NAMED: usize = 5;
/// From which size on a file is named for its ratio, in bytes: what does not fill a few blocks has nothing to save.
const WORTH_NAMING: u64 = 64 << 10;

/// A regular file of a tree.
#[derive(Debug)]
#[non_exhaustive]
pub enum Found {
    /// A file named `.warp`.
    Packed(Box<Info>),
    /// Any other, and its size in bytes.
    Plain(u64),
    /// A further name of a file that was found before: a hard link.
    Again,
}

/// Every regular file in the tree at `root`, in the order of names; nothing is read through a symbolic link.
pub fn survey(root: &Path) -> impl Iterator<Item = Result<Found>> {
    let mut several_names = HashSet::new();
    Walk::new(root, None).filter_map(move |step| match step {
        Ok(Step::Other(entry)) if entry.kind() == FileType::RegularFile => {
            if entry.stat.st_nlink > 1 && !several_names.insert(inode_of(&entry.stat)) {
                return Some(Ok(Found::Again));
            }
            if !is_named_packed(&entry.name) {
                let size = u64::try_from(entry.stat.st_size).unwrap_or(0);
                return Some(Ok(Found::Plain(size)));
            }
            let opened = open_entry(&*entry.directory, &entry.name, &entry.path);
            let info = opened.and_then(|(file, _)| {
                Info::from_input(&Input {
                    path: entry.path.clone(),
                    content: file.into(),
                })
            });
            Some(info.map(|info| Found::Packed(Box::new(info))))
        }
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

/// Some of the packed files of a tree, together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Share {
    /// How many they are.
    pub files: u64,
    /// The size of their originals, in bytes.
    pub original_size: u64,
    /// Their own size, in bytes.
    pub packed_size: u64,
}

impl Share {
    fn add(&mut self, info: &Info) {
        self.files += 1;
        // Sizes that a header may claim.
        self.original_size = self.original_size.saturating_add(info.original_size());
        self.packed_size = self.packed_size.saturating_add(info.packed_size());
    }
}

/// The files of a tree, summed up.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TreeInfo {
    /// The packed files.
    pub packed: Share,
    /// How many others there are.
    pub plain_files: u64,
    /// The size of the others, in bytes.
    pub plain_size: u64,
    /// How many names there are of files that are counted already: hard links.
    pub further_names: u64,
    /// The packed files by their codecs' names.
    pub by_codec: BTreeMap<String, Share>,
    /// The packed files by their checksums' names, or "none".
    pub by_checksum: BTreeMap<String, Share>,
    /// Packed files that carry no record of digests: what is read of them is checked by nothing but their codec.
    pub unverified: Share,
    /// Packed files whose record of digests is damaged.
    pub record_damaged: u64,
    /// Files named `.warp` whose header, table or footer is damaged, or that are cut short: they are in no other sum.
    pub damaged: u64,
    /// Files named `.warp` that are none.
    pub foreign: u64,
    /// What could not be read.
    pub unreadable: u64,
    /// The largest originals, the largest first: path, original size and packed size.
    pub largest: Vec<(PathBuf, u64, u64)>,
    /// Those that shrank least, the worst first; only originals of 64 KiB or more.
    pub least_shrunk: Vec<(PathBuf, u64, u64)>,
}

impl TreeInfo {
    /// Takes notice of what was found.
    pub fn add(&mut self, found: &Result<Found>) {
        match found {
            Ok(Found::Packed(info)) if info.cut().is_some() => self.damaged += 1,
            Ok(Found::Packed(info)) => self.add_packed(info),
            Ok(Found::Again) => self.further_names += 1,
            Ok(Found::Plain(size)) => {
                self.plain_files += 1;
                self.plain_size = self.plain_size.saturating_add(*size);
            }
            Err(error) => *self.failures(error) += 1,
        }
    }

    fn failures(&mut self, error: &Error) -> &mut u64 {
        match error.kind() {
            ErrorKind::NotWarp => &mut self.foreign,
            _ if error.is_damage() => &mut self.damaged,
            _ => &mut self.unreadable,
        }
    }

    fn add_packed(&mut self, info: &Info) {
        self.packed.add(info);
        self.by_codec
            .entry(info.encodings().to_string())
            .or_default()
            .add(info);
        let checksum = info
            .checksum()
            .map_or("none", |(checksum, _)| checksum.name());
        self.by_checksum
            .entry(checksum.to_owned())
            .or_default()
            .add(info);
        match (info.record_damage(), info.record_len()) {
            (Some(_), _) => self.record_damaged += 1,
            // Of nothing, there is nothing to check.
            (None, None) if info.chunk_count() > 0 => self.unverified.add(info),
            _ => {}
        }
        let (original, packed) = (info.original_size(), info.packed_size());
        keep(&mut self.largest, info, |&(_, original, _)| original as f64);
        if original >= WORTH_NAMING && packed > 0 {
            keep(&mut self.least_shrunk, info, |&(_, original, packed)| {
                packed as f64 / original as f64
            });
        }
    }
}

/// Puts a file among those that are named, if it ranks high enough.
fn keep(
    named: &mut Vec<(PathBuf, u64, u64)>,
    info: &Info,
    rank: impl Fn(&(PathBuf, u64, u64)) -> f64,
) {
    let new = (PathBuf::new(), info.original_size(), info.packed_size());
    let place = named.partition_point(|known| rank(known) >= rank(&new));
    if place < NAMED {
        named.insert(place, (info.path().to_owned(), new.1, new.2));
        named.truncate(NAMED);
    }
}
