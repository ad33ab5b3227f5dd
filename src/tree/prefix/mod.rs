//! All objects of a store whose names begin alike, shown as a tree.
//!
//! - `entries` decides what shows under which name,
//! - `headers` finds out which objects are packed, many at a time, and `memory` remembers it by version,
//! - `indexed` is a tree whose index says what there is, where nobody else does,
//! - `listing` tells a directory, a part at a time,
//! - `questions` answers what a mount asks.
//!
//! Where a store is asked, a lookup costs one request, or three where a thousand names and more begin so (and as many more as it takes
//! to tell those that go on from the name with its suffix), and what was listed in many is believed the longer for it: ten times as long
//! as it took. Opening a file asks for the object itself, always. Names lead nowhere but beneath the prefix: each is a part of an
//! object's name that a listing has told, and `.`, `..` and slashes are none.

mod entries;
mod headers;
mod indexed;
mod listing;
mod memory;
mod questions;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::nodes::Nodes;
use super::numbers::Key as NodeKey;
use super::source::join;
use super::{Kind, NodeId, may_pass};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::identity::Identity;
use crate::index::INDEX_NAME;
use crate::occasionally::Occasionally;
use crate::remote::{Location, Store};

use entries::{Brief, Entries, long_of, shortest_of};
pub(super) use headers::too_many_chunks;
use indexed::Index;
pub(super) use listing::ObjectListing;
use memory::Memory;

/// For how many times as long as a listing took it is believed.
const BELIEVED_TIMES: u32 = 10;
/// For how long what the store has said is believed at least, but by those who open a file.
const BELIEVED: Duration = Duration::from_secs(1);
/// How often it is told at most that something cannot be shown for now.
const TOLD_AGAIN: Duration = Duration::from_secs(1);
/// How many listings are kept at most, and how many entries in all of them but one.
const KEPT_LISTINGS: NonZeroUsize = NonZeroUsize::new(64).unwrap();
const KEPT_ENTRIES: usize = 100_000;

/// How many names a store may tell of one directory: they stay in memory. As docs/SEMANTICS.md says.
const MOST_TOLD: u64 = 2_000_000;
/// How many parts of a listing may tell no name, one behind the other.
const MOST_EMPTY: u32 = 1000;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct PrefixTree(Arc<Prefix>);

/// What all listings share with the tree.
#[derive(Debug)]
struct Prefix {
    store: Arc<Store>,
    /// What all names begin with: nothing, or something that ends in a slash.
    beginning: String,
    location: Location,
    nodes: Nodes,
    memory: Memory,
    /// What every directory holds, if an index says so.
    index: Option<Index>,
    /// What directories held when they were listed last.
    listed: Mutex<LruCache<Vec<u8>, Listed>>,
    owner: (u32, u32),
    mounted: SystemTime,
    /// When it is time to tell that something cannot be shown for now.
    told: Occasionally,
}

#[derive(Debug, Clone)]
struct Listed {
    entries: Arc<Entries>,
    until: Instant,
}

/// How far a listing has come that goes on.
#[derive(Debug, Default)]
struct Extent {
    told: u64,
    /// How many parts in a row have told nothing.
    empty: u32,
}

impl Extent {
    /// Takes notice of a part, with which `told` names were told.
    ///
    /// # Errors
    /// Why no more of it is asked for.
    fn grow(&mut self, told: u64) -> std::result::Result<(), String> {
        self.empty = match told > self.told {
            true => 0,
            false => self.empty + 1,
        };
        self.told = told;
        if told > MOST_TOLD {
            return Err(format!("there are more than {MOST_TOLD} names"));
        }
        match self.empty < MOST_EMPTY {
            true => Ok(()),
            false => Err("the store goes on and tells no names".to_owned()),
        }
    }
}

impl PrefixTree {
    /// The tree of what lies beneath `location`; of at most `remembered` objects it is remembered what they are. Makes one request,
    /// however much there is.
    ///
    /// # Errors
    /// There is nothing beneath it, though it is no whole bucket; or the store does not answer.
    pub(crate) fn open(
        store: &Arc<Store>,
        location: &Location,
        remembered: NonZeroUsize,
    ) -> Result<Self> {
        let key = location.key().as_ref();
        let beginning = match key {
            "" => String::new(),
            key => format!("{key}/"),
        };
        let first = store.list(&beginning, None);
        let first = first.context("cannot list", &location.shown())?;
        let is_empty = first.objects.is_empty() && first.prefixes.is_empty();
        if is_empty && first.left_out == 0 && first.next.is_none() && !beginning.is_empty() {
            let gone = std::io::ErrorKind::NotFound.into();
            return Err(
                Error::io("there is no object of this name or beneath it", gone)
                    .in_file(&location.shown()),
            );
        }
        Ok(Self::new(store, location, beginning, None, remembered))
    }

    /// The tree at `location` as the index that lies in it says.
    ///
    /// # Errors
    /// There is no index, it cannot be read or is none, or the server does not answer.
    pub(crate) fn of_index(
        store: &Arc<Store>,
        location: &Location,
        remembered: NonZeroUsize,
    ) -> Result<Self> {
        let index = Index::read(store, &location.shown().join(INDEX_NAME))?;
        let beginning = String::new();
        Ok(Self::new(
            store,
            location,
            beginning,
            Some(index),
            remembered,
        ))
    }

    fn new(
        store: &Arc<Store>,
        location: &Location,
        beginning: String,
        index: Option<Index>,
        remembered: NonZeroUsize,
    ) -> Self {
        let root = NodeKey {
            device: 0,
            inode: NodeId::ROOT.0,
            decoded: false,
        };
        Self(Arc::new(Prefix {
            nodes: Nodes::new(root, Kind::Directory, b""),
            store: Arc::clone(store),
            beginning,
            location: location.clone(),
            memory: Memory::new(remembered),
            index,
            listed: Mutex::new(LruCache::new(KEPT_LISTINGS)),
            owner: (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            ),
            mounted: SystemTime::now(),
            told: Occasionally::every(TOLD_AGAIN),
        }))
    }
}

impl Prefix {
    /// What the names of all begin with that lie in the directory at `location`.
    fn beginning_of(&self, location: &[u8]) -> String {
        let location = String::from_utf8_lossy(location);
        let slash = if location.is_empty() { "" } else { "/" };
        format!("{}{location}{slash}", self.beginning)
    }

    /// The whole name of an object.
    fn key_in(&self, location: &[u8], name: &str) -> String {
        format!("{}{name}", self.beginning_of(location))
    }

    /// An object's name for messages.
    fn shown(&self, key: &str) -> PathBuf {
        let beneath = key.strip_prefix(&self.beginning).unwrap_or(key);
        self.location.shown().join(beneath)
    }

    /// What the node of a directory stands for.
    fn directory_key(&self, location: &[u8], name: &str) -> NodeKey {
        let identity = self.directory_identity(location, name);
        NodeKey {
            device: identity.device,
            inode: identity.inode,
            decoded: false,
        }
    }

    fn directory_identity(&self, location: &[u8], name: &str) -> Identity {
        let key = format!("{}/", self.key_in(location, name));
        self.store.identity(&key, 0, None, SystemTime::UNIX_EPOCH)
    }

    fn changed(&self, key: &str) -> Error {
        Error::from(ErrorKind::Changed).in_file(&self.shown(key))
    }

    /// All that lies in a directory, as it was listed last if that is to be believed.
    fn entries(&self, location: &[u8]) -> Result<Arc<Entries>> {
        if let Some(entries) = self.believed(location) {
            return Ok(entries);
        }
        let began = Instant::now();
        let beginning = self.beginning_of(location);
        let mut entries = Entries::default();
        self.read_pages(&beginning, &beginning, &mut entries, |_| false)?;
        if entries.left_out > 0 {
            tracing::warn!(
                "{}: {} names do not show, for no file can have them",
                self.shown(&beginning).display(),
                entries.left_out
            );
        }
        let entries = Arc::new(entries);
        self.keep(location, &entries, began.elapsed());
        Ok(entries)
    }

    /// Those entries of a directory that decide what shows under `name`, and perhaps others.
    fn entries_for(&self, location: &[u8], name: &str) -> Result<Arc<Entries>> {
        if let Some(entries) = self.believed(location) {
            return Ok(entries);
        }
        let beginning = self.beginning_of(location);
        let shortest = shortest_of(name);
        // Names are listed in order, and a slash comes behind the dot of a suffix.
        let is_past = |entries: &Entries, name: &str| {
            let last = format!("{name}/");
            entries.last().is_some_and(|name| *name >= *last)
        };
        let mut entries = Entries::default();
        let asked = format!("{beginning}{shortest}");
        // What is called just so comes first.
        let is_told = |entries: &Entries| entries.told() > 0;
        let is_all = self.read_pages(&asked, &beginning, &mut entries, is_told)?;
        if is_all || is_past(&entries, shortest) {
            return Ok(Arc::new(entries));
        }
        // Any number may go on with a letter that comes before those, as `x-1` does.
        let packed = long_of(shortest);
        let asked = format!("{beginning}{packed}");
        self.read_pages(&asked, &beginning, &mut entries, |entries| {
            is_past(entries, &packed)
        })?;
        // Whatever there is beneath, with a slash in its name, and be it what only marks the directory.
        let mut beneath = Entries::default();
        let asked = format!("{beginning}{shortest}/");
        self.read_pages(&asked, &beginning, &mut beneath, is_told)?;
        if is_told(&beneath) {
            entries.push(shortest, None);
            entries.sort();
        }
        Ok(Arc::new(entries))
    }

    /// Reads the pages of what is called like this up to where it is `enough`, and says whether they were all.
    fn read_pages(
        &self,
        asked: &str,
        beginning: &str,
        entries: &mut Entries,
        enough: impl Fn(&Entries) -> bool,
    ) -> Result<bool> {
        let mut next = None;
        let mut extent = Extent::default();
        loop {
            let page = self.store.list(asked, next.as_deref());
            let mut page = page.context("cannot list", &self.shown(beginning))?;
            let before = std::mem::replace(&mut next, page.next.take());
            entries.add(&self.store, beginning, page);
            if next.is_none() || enough(entries) {
                break;
            }
            let end = match next == before {
                true => Err("the store sends the same part again and again".to_owned()),
                false => extent.grow(entries.told()),
            };
            if let Err(why) = end {
                let error = Error::io("cannot list", std::io::Error::other(why));
                let error = error.in_file(&self.shown(beginning));
                self.tell_of(&error);
                return Err(error);
            }
        }
        entries.sort();
        Ok(next.is_none())
    }

    fn believed(&self, location: &[u8]) -> Option<Arc<Entries>> {
        if let Some(index) = &self.index {
            return Some(index.entries(location));
        }
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let found = listed.get(location)?;
        if Instant::now() < found.until {
            return Some(Arc::clone(&found.entries));
        }
        let given_up = listed.pop(location);
        drop(listed);
        drop(given_up);
        None
    }

    fn keep(&self, location: &[u8], entries: &Arc<Entries>, took: Duration) {
        let until = Instant::now() + BELIEVED.max(took * BELIEVED_TIMES);
        let entries = Arc::clone(entries);
        let mut given_up = Vec::new();
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.extend(listed.push(location.to_vec(), Listed { entries, until }));
        let total = |listed: &LruCache<Vec<u8>, Listed>| -> usize {
            listed.iter().map(|(_, listed)| listed.entries.len()).sum()
        };
        while listed.len() > 1 && total(&listed) > KEPT_ENTRIES {
            given_up.extend(listed.pop_lru());
        }
        drop(listed);
        // Large ones take their time.
        drop(given_up);
    }

    /// Forgets how a directory was listed: something there is known to be another by now.
    fn disbelieve(&self, location: &[u8]) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let given_up = listed.pop(location);
        drop(listed);
        drop(given_up);
    }

    /// Whether an object is packed. One that is kept from us counts as plain, and the log says why.
    ///
    /// # Errors
    /// The store does not say what it is.
    fn is_packed(&self, location: &[u8], name: &str, brief: Brief) -> Result<bool> {
        match self.header(&self.key_in(location, name), brief) {
            Ok((_, packed)) => Ok(packed.is_some()),
            Err(error) if may_pass(&error) => {
                self.tell_of(&error);
                Err(error)
            }
            Err(error) => {
                tracing::warn!("shown as it is: {error}");
                Ok(false)
            }
        }
    }

    /// Lets the log say why something cannot be shown for now.
    fn tell_of(&self, error: &Error) {
        // Where a store is gone, that goes for all that a listing names.
        match self.told.is_due() {
            true => tracing::warn!("cannot be shown for now: {error}"),
            false => tracing::debug!("cannot be shown for now: {error}"),
        }
    }

    /// The memory that what is remembered takes, in bytes.
    fn memory_used(&self) -> usize {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let listings: usize = listed
            .iter()
            .map(|(_, listed)| listed.entries.memory())
            .sum();
        drop(listed);
        let index = self.index.as_ref().map_or(0, Index::memory);
        self.nodes.memory() + self.memory.memory() + listings + index
    }

    /// The location of a directory node.
    fn location_of(&self, node: NodeId) -> Result<Vec<u8>> {
        let known = self.known(node)?;
        let location = join(&known.location, &known.name);
        match known.kind {
            Kind::Directory => Ok(location),
            _ => {
                let path = self
                    .shown(&self.key_in(&known.location, &String::from_utf8_lossy(&known.name)));
                Err(rustix::io::Errno::NOTDIR).context("cannot open", &path)
            }
        }
    }

    fn known(&self, node: NodeId) -> Result<super::nodes::Known> {
        let forgotten = rustix::io::Errno::STALE.into();
        let known = self.nodes.get(node);
        known.ok_or_else(|| Error::io("the file is no longer known", forgotten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_only_grows_has_an_end() {
        let mut extent = Extent::default();
        for part in 1..=MOST_TOLD / 1000 {
            extent.grow(part * 1000).unwrap();
        }
        for _ in 1..MOST_EMPTY {
            extent.grow(MOST_TOLD).unwrap();
        }
        assert!(extent.grow(MOST_TOLD).is_err());
        assert!(extent.grow(MOST_TOLD + 1).is_err());
    }
}
