//! What lies in one directory of a store, as a listing told, and under which name each entry shows.
//!
//! A store has no directories: `a/b` is a name with a slash in it. What has something behind the slash is a directory here. So one
//! name can be an object and a directory at once; then the directory has the name, for else all beneath it could not be reached,
//! and the object shows only if it is packed and its short name is free. All else is as for files (see `names`): `x.warp` shows as
//! `x` if it is packed and there is no `x` that needs the name itself. What no file system has a name for does not show.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::LONGEST_NAME;
use super::super::names::{SUFFIX, stripped};
use crate::error::Result;
use crate::format::Container;
use crate::identity::Identity;
use crate::remote::{Page, Store, Version};

/// An object as a listing or a server's answer has told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Brief {
    /// Which object, in which state.
    pub(super) identity: Identity,
    /// When it was last modified.
    pub(super) modified: SystemTime,
    /// How its state is known.
    pub(super) known: KnownBy,
    /// What it is packed of, if an index says so.
    pub(super) indexed: Option<(Container, u64)>,
}

/// By what the states of an object are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownBy {
    /// Its ETag.
    Tag,
    /// Size and time: listings of some stores have no ETags, and some web servers give none.
    Time,
    /// Its size: all that an index is sure of.
    Size,
}

impl Brief {
    /// Of a version of the object `key` of a store.
    pub(super) fn new(store: &Store, key: &str, version: &Version) -> Self {
        let known = match version.etag {
            Some(_) => KnownBy::Tag,
            None => KnownBy::Time,
        };
        Self::known_by(known, store, key, version)
    }

    /// The same, as one would see it who knows no more.
    pub(super) fn known_by(known: KnownBy, store: &Store, key: &str, version: &Version) -> Self {
        let (etag, modified) = match known {
            KnownBy::Tag => (version.etag.as_deref(), version.modified),
            // Listings tell it finely, answers in seconds.
            KnownBy::Time => (None, whole_seconds(version.modified)),
            KnownBy::Size => (None, UNIX_EPOCH),
        };
        Self {
            identity: store.identity(key, version.size, etag, modified),
            modified: version.modified,
            known,
            indexed: None,
        }
    }

    /// Whether this may well be of the same version as `other`, of which more is known.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        let size = self.identity.size == other.identity.size;
        match self.known {
            KnownBy::Tag => false,
            KnownBy::Time => size && whole_seconds(self.modified) == whole_seconds(other.modified),
            KnownBy::Size => size,
        }
    }
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// See the module's description. Sorted by name.
#[derive(Debug, Default)]
pub(super) struct Entries {
    records: Vec<Record>,
    /// How many do not show because no file can have their name.
    pub(super) left_out: u64,
}

/// Directories come before objects of the same name.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) name: Box<str>,
    pub(super) object: Option<Brief>,
}

/// What shows under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Directory,
    /// An object as it is.
    Plain(Brief),
    /// The original of the packed object of this name.
    Packed(&'a str, Brief),
}

impl Entries {
    /// Adds a page's entries, which lie in the directory whose names begin with `beginning`.
    pub(super) fn add(&mut self, store: &Store, beginning: &str, page: Page) {
        let name_of = |key: &str| {
            let name = key
                .strip_prefix(beginning)
                .filter(|name| !name.is_empty())?;
            Some(Box::<str>::from(name))
        };
        let objects = page.objects.iter().filter_map(|listed| {
            let key = listed.key.as_ref();
            let object = Some(Brief::new(store, key, &listed.version));
            Some(Record {
                name: name_of(key)?,
                object,
            })
        });
        let prefixes = page.prefixes.iter();
        let directories = prefixes.filter_map(|prefix| {
            let name = name_of(prefix.as_ref())?;
            Some(Record { name, object: None })
        });
        for record in objects.chain(directories) {
            match is_name(&record.name) {
                true => self.records.push(record),
                false => self.left_out += 1,
            }
        }
        self.left_out += page.left_out;
    }

    /// Adds an entry.
    pub(super) fn push(&mut self, name: &str, object: Option<Brief>) {
        match is_name(name) {
            true => self.records.push(Record {
                name: name.into(),
                object,
            }),
            false => self.left_out += 1,
        }
    }

    /// Puts them in order when all are there.
    pub(super) fn sort(&mut self) {
        let order = |record: &Record| {
            (
                record.object.is_some(),
                record.object.map(|object| object.modified),
            )
        };
        self.records.sort_by(|one, other| {
            one.name
                .cmp(&other.name)
                .then_with(|| order(one).cmp(&order(other)))
        });
        self.records.dedup_by(|one, other| {
            one.name == other.name && one.object.is_some() == other.object.is_some()
        });
        self.records.shrink_to_fit();
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Record> {
        self.records.get(index)
    }

    /// How many names were told, those included that do not show.
    pub(super) fn told(&self) -> u64 {
        self.left_out.saturating_add(self.records.len() as u64)
    }

    /// The last name there is.
    pub(super) fn last(&self) -> Option<&str> {
        self.records.iter().map(|record| &*record.name).max()
    }

    /// The memory in use, in bytes, roughly.
    pub(super) fn memory(&self) -> usize {
        // Names are mostly short.
        self.records.len() * (size_of::<Record>() + 32)
    }

    fn of_name(&self, name: &str) -> &[Record] {
        let start = self.records.partition_point(|record| *record.name < *name);
        let rest = self.records.get(start..).unwrap_or_default();
        let length = rest
            .iter()
            .take_while(|record| *record.name == *name)
            .count();
        rest.get(..length).unwrap_or_default()
    }

    /// Whether there is a directory of this name.
    pub(super) fn has_directory(&self, name: &str) -> bool {
        self.of_name(name)
            .iter()
            .any(|record| record.object.is_none())
    }

    /// The object of this name.
    pub(super) fn object(&self, name: &str) -> Option<Brief> {
        self.of_name(name).iter().find_map(|record| record.object)
    }

    /// Whether the object `name` shows under its short name; `is_packed` knows the objects that are packed.
    ///
    /// # Errors
    /// Those of `is_packed`.
    pub(super) fn shows_stripped(
        &self,
        name: &str,
        is_packed: impl Fn(&str, Brief) -> Result<bool>,
    ) -> Result<bool> {
        let mut name = name;
        loop {
            let Some(short) = short_of(name) else {
                return Ok(false);
            };
            let Some(object) = self.object(name) else {
                return Ok(false);
            };
            let taken = self.object(short).is_some();
            // What keeps its own name leaves it to none, whatever that holds.
            let stays = self.has_directory(short) || (taken && short_of(short).is_none());
            if stays || !is_packed(name, object)? {
                return Ok(false);
            }
            if !taken {
                return Ok(true);
            }
            name = short;
        }
    }

    /// What shows under `name`.
    ///
    /// # Errors
    /// Those of `is_packed`.
    pub(super) fn shown_as(
        &self,
        name: &str,
        is_packed: impl Fn(&str, Brief) -> Result<bool>,
    ) -> Result<Option<Found<'_>>> {
        if self.has_directory(name) {
            return Ok(Some(Found::Directory));
        }
        if let Some(object) = self.object(name)
            && !self.shows_stripped(name, &is_packed)?
        {
            return Ok(Some(Found::Plain(object)));
        }
        let long = long_of(name);
        let mut named = self.of_name(&long).iter();
        let found = named.find_map(|record| Some((&record.name, record.object?)));
        let Some((long, object)) = found else {
            return Ok(None);
        };
        let shows = self.shows_stripped(long, is_packed)?;
        Ok(shows.then_some(Found::Packed(long, object)))
    }
}

/// A name without its suffix, if that leaves one.
pub(super) fn short_of(name: &str) -> Option<&str> {
    stripped(name.as_bytes()).and_then(|short| name.get(..short.len()))
}

/// A name with the suffix.
pub(super) fn long_of(name: &str) -> String {
    format!("{name}{}", String::from_utf8_lossy(SUFFIX))
}

/// A name without all its suffixes.
pub(super) fn shortest_of(mut name: &str) -> &str {
    while let Some(short) = short_of(name) {
        name = short;
    }
    name
}

/// Whether a file can have this name.
fn is_name(name: &str) -> bool {
    let odd = matches!(name, "" | "." | "..") || name.contains(['/', '\0']);
    !odd && name.len() <= LONGEST_NAME
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[&str]) -> Entries {
        let mut entries = Entries::default();
        for name in names {
            let identity = Identity {
                device: 1,
                inode: 1,
                born: (0, 0),
                size: 1,
                modified: (0, 0),
            };
            let object = Brief {
                identity,
                modified: UNIX_EPOCH,
                known: KnownBy::Tag,
                indexed: None,
            };
            match name.strip_suffix('/') {
                Some(directory) => entries.push(directory, None),
                None => entries.push(name, Some(object)),
            }
        }
        entries.sort();
        entries
    }

    /// What shows, in order: directories with a slash behind, what is packed with a colon and the object's name.
    fn shown(names: &[&str], packed: &[&str]) -> Vec<String> {
        let entries = entries(names);
        let is_packed = |name: &str, _: Brief| Ok(packed.contains(&name));
        let mut asked: Vec<String> = names
            .iter()
            .map(|name| name.trim_end_matches('/').to_owned())
            .collect();
        asked.extend(
            asked
                .clone()
                .iter()
                .filter_map(|name| short_of(name).map(str::to_owned)),
        );
        asked.sort();
        asked.dedup();
        asked
            .iter()
            .filter_map(|name| {
                Some(match entries.shown_as(name, is_packed).unwrap()? {
                    Found::Directory => format!("{name}/"),
                    Found::Plain(_) => name.clone(),
                    Found::Packed(long, _) => format!("{name}:{long}"),
                })
            })
            .collect()
    }

    #[test]
    fn names_are_those_a_directory_of_files_would_show() {
        assert_eq!(shown(&["x.warp", "y"], &["x.warp"]), ["x:x.warp", "y"]);
        assert_eq!(shown(&["x.warp"], &[]), ["x.warp"]);
        assert_eq!(shown(&["a", "a.warp"], &["a.warp"]), ["a", "a.warp"]);
        let twice = ["b.warp", "b.warp.warp"];
        assert_eq!(shown(&twice, &twice), ["b:b.warp", "b.warp:b.warp.warp"]);
        assert_eq!(
            shown(&[".warp", "...warp"], &[".warp", "...warp"]),
            ["...warp", ".warp"]
        );
    }

    #[test]
    fn a_directory_keeps_its_name_before_an_object() {
        assert_eq!(shown(&["x", "x/"], &[]), ["x/"]);
        assert_eq!(shown(&["x.warp", "x/"], &["x.warp"]), ["x/", "x.warp"]);
        assert_eq!(
            shown(&["x.warp", "x.warp/"], &["x.warp"]),
            ["x:x.warp", "x.warp/"]
        );
        assert_eq!(shown(&["x.warp", "x.warp/"], &[]), ["x.warp/"]);
    }

    #[test]
    fn what_no_file_can_be_called_is_left_out() {
        let long = "n".repeat(256);
        let entries = entries(&[".", "..", "a/b", "a\0", &long, &long[1..], "..."]);
        assert_eq!(entries.left_out, 5);
        assert_eq!(entries.len(), 2);
    }
}
