//! A directory's entries as they show, at one moment.
//!
//! All names lie in one buffer, so that a directory of a million entries costs its names and 24 bytes an entry. The
//! directory stays open with it: attributes of listed entries are then one system call away.

use std::sync::Arc;

use super::names::SUFFIX;
use super::source::Directory;
use super::{Kind, NodeId};

/// A snapshot of a directory, `.` and `..` first.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(super) node: NodeId,
    pub(super) parent: NodeId,
    pub(super) directory: Arc<Directory>,
    names: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Debug)]
struct Record {
    name_end: usize,
    inode: u64,
    kind: Kind,
    stripped: bool,
}

/// One entry of a [`Listing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListedEntry<'a> {
    /// The name it shows under.
    pub(crate) name: &'a [u8],
    /// What it is.
    pub(crate) kind: Kind,
    /// Its inode number as stat will show it, as far as that could be known without reading more.
    pub(crate) inode: u64,
    /// Whether its name in the source has the suffix besides.
    pub(super) stripped: bool,
}

impl Listing {
    pub(super) fn new(node: NodeId, parent: NodeId, directory: Arc<Directory>) -> Self {
        Self {
            node,
            parent,
            directory,
            names: Vec::new(),
            records: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, name: &[u8], kind: Kind, inode: u64, stripped: bool) {
        self.names.extend_from_slice(name);
        self.records.push(Record {
            name_end: self.names.len(),
            inode,
            kind,
            stripped,
        });
    }

    /// Gives back what growing has left over.
    pub(super) fn shrink(&mut self) {
        self.names.shrink_to_fit();
        self.records.shrink_to_fit();
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The entry at `index`; `None` past the last.
    pub(crate) fn get(&self, index: usize) -> Option<ListedEntry<'_>> {
        let record = self.records.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => self.records.get(before)?.name_end,
            None => 0,
        };
        Some(ListedEntry {
            name: self.names.get(start..record.name_end)?,
            kind: record.kind,
            inode: record.inode,
            stripped: record.stripped,
        })
    }

    /// The memory it takes, in bytes.
    pub(crate) fn memory(&self) -> usize {
        size_of_val(self) + self.names.capacity() + self.records.capacity() * size_of::<Record>()
    }
}

impl ListedEntry<'_> {
    pub(super) fn source_name(&self) -> Vec<u8> {
        let suffix = if self.stripped { SUFFIX } else { b"" };
        [self.name, suffix].concat()
    }
}
