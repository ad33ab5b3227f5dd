//! What a directory was listed to hold, before it is decided how it shows.
//!
//! All names lie in one buffer, and each is found by its hash: a directory of a million entries costs no allocation for each.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use rustix::fs::FileType;

/// Names, in one buffer.
#[derive(Debug, Default)]
pub(super) struct NameList {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl NameList {
    pub(super) fn push(&mut self, name: &[u8]) {
        self.bytes.extend_from_slice(name);
        self.ends.push(self.bytes.len());
    }

    /// The name at `index`; `None` past the last.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..end)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Gives back what growing has left over.
    pub(super) fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// The memory that they take, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>()
    }
}

/// See the module's description.
pub(super) struct ListedEntries {
    /// The device of the directory.
    pub(super) device: u64,
    names: NameList,
    /// The type and the inode number of each.
    entries: Vec<(FileType, u64)>,
    /// Where each is among the names.
    places: HashTable<usize>,
    hasher: DefaultHashBuilder,
}

impl ListedEntries {
    /// The entries of a directory on `device`: the name, the type and the inode number of each.
    pub(super) fn new(device: u64, names: NameList, entries: Vec<(FileType, u64)>) -> Self {
        let hasher = DefaultHashBuilder::default();
        let mut places = HashTable::with_capacity(names.len());
        let hash = |place: &usize| hasher.hash_one(names.get(*place));
        for place in 0..names.len() {
            places.insert_unique(hash(&place), place, hash);
        }
        Self {
            device,
            names,
            entries,
            places,
            hasher,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The name, the type and the inode number of the one at `place`; `None` past the last.
    pub(super) fn get(&self, place: usize) -> Option<(&[u8], FileType, u64)> {
        let (file_type, inode) = *self.entries.get(place)?;
        Some((self.names.get(place)?, file_type, inode))
    }

    /// The type and the inode number of the one that is called `name`.
    pub(super) fn find(&self, name: &[u8]) -> Option<(FileType, u64)> {
        let is_it = |place: &usize| self.names.get(*place) == Some(name);
        let place = self.places.find(self.hasher.hash_one(Some(name)), is_it)?;
        self.entries.get(*place).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn each_listed_entry_is_found_by_its_name_and_no_other(
            listed: BTreeMap<Vec<u8>, u64>,
            another: Vec<u8>,
        ) {
            let mut names = NameList::default();
            let mut entries = Vec::new();
            for (name, inode) in &listed {
                names.push(name);
                entries.push((FileType::RegularFile, *inode));
            }
            let found = ListedEntries::new(7, names, entries);
            prop_assert_eq!(found.len(), listed.len());
            for (place, (name, inode)) in listed.iter().enumerate() {
                let file = (FileType::RegularFile, *inode);
                prop_assert_eq!(found.find(name), Some(file));
                prop_assert_eq!(found.get(place), Some((&name[..], file.0, file.1)));
            }
            prop_assert_eq!(found.get(listed.len()), None);
            let inode = found.find(&another).map(|(_, inode)| inode);
            prop_assert_eq!(inode, listed.get(&another).copied());
        }
    }
}
