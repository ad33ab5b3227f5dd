//! What an index says of a tree whose server cannot list it. It is read once, when the tree is mounted.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::entries::{Brief, Entries, KnownBy};
use crate::archive::Source;
use crate::error::{Error, Result};
use crate::format::{Container, Version as Layout};
use crate::index::{self, INDEX_NAME, Indexed};
use crate::remote::{Key, Object, Store, Version};

/// How long an index may be, in bytes; it stays in memory.
const LONGEST_INDEX: u64 = 256 << 20;
/// The longest path that programs can ask for, in bytes (PATH_MAX).
const LONGEST_PATH: usize = 4096;
/// How much of it is read at a time, in bytes.
const PART: usize = 1 << 20;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Index {
    /// By location.
    directories: HashMap<Vec<u8>, Arc<Entries>>,
    memory: usize,
}

impl Index {
    pub(super) fn read(store: &Arc<Store>, shown: &Path) -> Result<Self> {
        let object = Object::open(store, &Key::from(INDEX_NAME));
        let object = object.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::unusable(
                "there is no index to show a tree by: \"warpfs pack -r --index\" writes one into what is put there",
            )
            .in_file(shown),
            _ => Error::io("cannot read the index", error).in_file(shown),
        })?;
        let size = object.version().size;
        if size > LONGEST_INDEX {
            let why =
                format!("an index of {size} bytes is longer than what is read: {LONGEST_INDEX}");
            return Err(Error::unusable(why).in_file(shown));
        }
        let text = Text { object, offset: 0 };
        let mut directories = HashMap::new();
        directories.insert(Vec::new(), Entries::default());
        let mut odd = 0_u64;
        let mut room = LONGEST_INDEX;
        index::read(BufReader::with_capacity(PART, text), shown, |indexed| {
            odd += u64::from(!add(&mut directories, &mut room, store, &indexed));
        })?;
        if odd > 0 {
            tracing::warn!(
                "{}: {odd} paths do not show, for no file can have them",
                shown.display()
            );
        }
        for entries in directories.values_mut() {
            entries.sort();
        }
        let memory = directories.values().map(Entries::memory).sum();
        let shared = directories
            .into_iter()
            .map(|(location, entries)| (location, Arc::new(entries)));
        Ok(Self {
            directories: shared.collect(),
            memory,
        })
    }

    pub(super) fn entries(&self, location: &[u8]) -> Arc<Entries> {
        self.directories.get(location).cloned().unwrap_or_default()
    }

    pub(super) fn memory(&self) -> usize {
        self.memory
    }
}

/// Adds a file and the directories on the way to it; says whether it is one that there can be. `room` is what the names of
/// directories may still take, in bytes: a short path can name many.
fn add(
    directories: &mut HashMap<Vec<u8>, Entries>,
    room: &mut u64,
    store: &Store,
    indexed: &Indexed,
) -> bool {
    let is_odd = |name: &str| {
        matches!(name, "" | "." | "..") || name.chars().any(|letter| letter.is_ascii_control())
    };
    if indexed.path.len() > LONGEST_PATH || indexed.path.split('/').any(is_odd) {
        return false;
    }
    let mut version = Version {
        size: indexed.size,
        etag: None,
        modified: UNIX_EPOCH,
    };
    version.modified = UNIX_EPOCH
        .checked_add(Duration::from_secs(indexed.modified))
        .unwrap_or(UNIX_EPOCH);
    let mut brief = Brief::known_by(KnownBy::Size, store, &indexed.path, &version);
    let layout = match indexed.version {
        Some(1) => Some(Layout::V1),
        Some(2) => Some(Layout::V2),
        _ => None,
    };
    brief.indexed = layout.map(Container::Table).zip(indexed.original);
    let (mut location, mut name) = match indexed.path.rsplit_once('/') {
        Some((location, name)) => (location, name),
        None => ("", indexed.path.as_str()),
    };
    let mut object = Some(brief);
    loop {
        let is_new = !directories.contains_key(location.as_bytes());
        if is_new {
            match room.checked_sub(location.len() as u64) {
                Some(rest) => *room = rest,
                None => return false,
            }
        }
        let entries = directories.entry(location.as_bytes().to_vec()).or_default();
        entries.push(name, object.take());
        if !is_new || location.is_empty() {
            return true;
        }
        (location, name) = location.rsplit_once('/').unwrap_or(("", location));
    }
}

/// An object read from front to back.
struct Text {
    object: Object,
    offset: u64,
}

impl Read for Text {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.object.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
