//! One object of a store, as a mount shows it: alone in a directory, or in the place of a file.
//!
//! Every version of the object is a node of its own, so that whoever holds one open goes on seeing it as it was, and whoever
//! opens it anew sees what is there now. In the place of a file there is but one node: there the kernel is told nothing new
//! while somebody holds the old version.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{StatVfs, StatVfsMountFlags};
use rustix::io::Errno;

use super::names::stripped;
use super::prefix::too_many_chunks;
use super::{Attributes, Kind, ListedEntry, Listing, NodeId, OpenedFile, Shown};
use crate::archive::{Content, Glance, Source, glance};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::identity::Identity;
use crate::remote::{Location, Object, Store};

/// For how long what the store has said of the object is believed without asking again, but by those who open it.
const BELIEVED: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug)]
pub(crate) struct ObjectTree {
    store: Arc<Store>,
    location: Location,
    shown: PathBuf,
    /// The name it shows under.
    name: Box<[u8]>,
    onto_file: bool,
    owner: (u32, u32),
    mounted: SystemTime,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: Arc<Seen>,
    asked: Instant,
    /// The versions that the kernel knows, and how often it has looked each up.
    known: HashMap<NodeId, (Arc<Seen>, u64)>,
    last_node: u64,
    /// The versions that are held open, and how often.
    held: HashMap<Identity, u64>,
}

/// A version of the object, as it was seen.
#[derive(Debug)]
struct Seen {
    node: NodeId,
    object: Arc<Object>,
    identity: Identity,
    /// What it is packed of.
    glance: Glance,
}

impl ObjectTree {
    /// Looks at the object at `location`, to be mounted onto a file or on a directory.
    ///
    /// # Errors
    /// There is no such object, it is no `.warp` file, or the store does not answer.
    pub(crate) fn open(store: &Arc<Store>, location: &Location, onto_file: bool) -> Result<Self> {
        let shown = location.shown();
        let name = location.name().filter(|_| !location.is_prefix());
        let name = name.ok_or_else(|| {
            Error::unusable("names no object: give the URL of a .warp file").in_file(&shown)
        })?;
        let name = stripped(name.as_bytes()).unwrap_or(name.as_bytes());
        let node = match onto_file {
            true => NodeId::ROOT,
            false => NodeId(NodeId::ROOT.0 + 1),
        };
        let current = look(store, location, node)?;
        Ok(Self {
            store: Arc::clone(store),
            location: location.clone(),
            name: name.into(),
            onto_file,
            owner: (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            ),
            mounted: SystemTime::now(),
            state: Mutex::new(State {
                last_node: node.0,
                current: Arc::new(current),
                asked: Instant::now(),
                known: HashMap::new(),
                held: HashMap::new(),
            }),
            shown,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object as it is now, or was when it was asked for a moment ago, if that is enough.
    fn now(&self, at_once: bool) -> Result<Arc<Seen>> {
        let (before, asked) = {
            let state = self.state();
            (Arc::clone(&state.current), state.asked)
        };
        if !at_once && asked.elapsed() < BELIEVED {
            return Ok(before);
        }
        let began = Instant::now();
        let found = self.store.head(self.location.key());
        let version = found.context("cannot examine", &self.shown)?;
        if version.is_same(before.object.version()) {
            self.state().asked = began;
            return Ok(before);
        }
        let node = match self.onto_file {
            true => NodeId::ROOT,
            false => {
                let mut state = self.state();
                state.last_node += 1;
                NodeId(state.last_node)
            }
        };
        let seen = Arc::new(look(&self.store, &self.location, node)?);
        let mut state = self.state();
        if state.current.identity == seen.identity {
            // Somebody else has seen it meanwhile, and given it a number.
            return Ok(Arc::clone(&state.current));
        }
        state.current = Arc::clone(&seen);
        state.asked = began;
        Ok(seen)
    }

    fn changed(&self) -> Error {
        Error::from(ErrorKind::Changed).in_file(&self.shown)
    }

    /// A node that is a version of the object.
    fn seen(&self, node: NodeId) -> Result<Arc<Seen>> {
        if node == NodeId::ROOT && self.onto_file {
            let seen = self.now(false)?;
            let state = self.state();
            return match state.held.keys().all(|held| *held == seen.identity) {
                true => Ok(seen),
                false => Err(self.changed()),
            };
        }
        let state = self.state();
        if state.current.node == node {
            return Ok(Arc::clone(&state.current));
        }
        let known = state.known.get(&node).map(|(seen, _)| Arc::clone(seen));
        known.ok_or_else(|| Error::io("the file is no longer known", Errno::STALE.into()))
    }

    fn is_root(&self, node: NodeId) -> bool {
        node == NodeId::ROOT && !self.onto_file
    }

    fn describe(&self, seen: Option<&Seen>) -> Attributes {
        let modified = seen.map_or(self.mounted, |seen| seen.object.version().modified);
        let node = seen.map_or(NodeId::ROOT, |seen| seen.node);
        Attributes {
            node,
            generation: 0,
            inode: node.0,
            kind: match seen {
                Some(_) => Kind::File,
                None => Kind::Directory,
            },
            size: seen.map_or(0, |seen| seen.glance.original_size),
            blocks: seen.map_or(0, |seen| seen.glance.packed_size.div_ceil(512)),
            block_size: 128 << 10,
            mode: if seen.is_some() { 0o444 } else { 0o555 },
            nlink: if seen.is_some() { 1 } else { 2 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            accessed: modified,
            modified,
            changed: modified,
        }
    }
}

/// Looks at the object as it is now.
fn look(store: &Arc<Store>, location: &Location, node: NodeId) -> Result<Seen> {
    let shown = location.shown();
    let object = Object::open(store, location.key()).context("cannot open", &shown)?;
    let identity = object.identity().context("cannot examine", &shown)?;
    let found = glance(&object, &shown, object.version().size);
    let found = found.inspect_err(|_| object.doubt(None));
    let glance = found.map_err(|error| error.in_file(&shown))?;
    let glance = glance.ok_or_else(|| too_many_chunks(&shown))?;
    Ok(Seen {
        node,
        object: Arc::new(object),
        identity,
        glance,
    })
}

impl Shown for ObjectTree {
    fn mounted_as(&self, _: (u32, u32)) {}

    fn root_kind(&self) -> Kind {
        match self.onto_file {
            true => Kind::File,
            false => Kind::Directory,
        }
    }

    fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>> {
        if !self.is_root(parent) {
            return Err(Errno::NOTDIR).context("cannot look up", &self.shown);
        }
        if *name != *self.name {
            return Ok(None);
        }
        let seen = match self.now(false) {
            Ok(seen) => seen,
            Err(error) if error.is_io(io::ErrorKind::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut state = self.state();
        let known = state.known.entry(seen.node);
        known.or_insert_with(|| (Arc::clone(&seen), 0)).1 += 1;
        drop(state);
        Ok(Some(self.describe(Some(&seen))))
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        let mut state = self.state();
        if let Some((_, count)) = state.known.get_mut(&node) {
            *count = count.saturating_sub(lookups);
            if *count == 0 {
                state.known.remove(&node);
            }
        }
    }

    fn children(&self, _: NodeId) -> usize {
        1
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        match self.is_root(node) {
            true => Ok(self.describe(None)),
            false => Ok(self.describe(Some(&*self.seen(node)?))),
        }
    }

    fn attributes_of_open(
        &self,
        node: NodeId,
        content: &Content,
        _: Identity,
        original_size: Option<u64>,
    ) -> Result<Attributes> {
        let Content::Object(object) = content else {
            return self.attributes(node);
        };
        let version = object.version();
        Ok(Attributes {
            node,
            inode: node.0,
            kind: Kind::File,
            size: original_size.unwrap_or(version.size),
            blocks: version.size.div_ceil(512),
            mode: 0o444,
            nlink: 1,
            accessed: version.modified,
            modified: version.modified,
            changed: version.modified,
            ..self.describe(None)
        })
    }

    fn read_link(&self, _: NodeId) -> Result<Vec<u8>> {
        Err(Errno::INVAL).context("cannot read the link", &self.shown)
    }

    fn open_file(&self, node: NodeId) -> Result<OpenedFile> {
        if self.is_root(node) {
            return Err(Errno::ISDIR).context("cannot open", &self.shown);
        }
        let before = Arc::clone(&self.state().current);
        for part in before.glance.likely_description().iter().flatten() {
            Object::expect(&self.store, self.location.key(), before.identity, part);
        }
        let seen = self
            .now(true)
            .map_err(|error| match error.is_io(io::ErrorKind::NotFound) {
                true => self.changed(),
                false => error,
            })?;
        if seen.node != node {
            return Err(self.changed());
        }
        Ok(OpenedFile {
            content: Content::Object(Arc::clone(&seen.object)),
            identity: seen.identity,
            packed: true,
            access: None,
            path: self.shown.clone(),
        })
    }

    fn check_user(&self, _: &OpenedFile, _: u32) -> Result<()> {
        Ok(())
    }

    fn hold(&self, _: NodeId, opened: &OpenedFile) -> Result<bool> {
        let mut state = self.state();
        if self.onto_file && state.held.keys().any(|held| *held != opened.identity) {
            return Err(self.changed());
        }
        *state.held.entry(opened.identity).or_default() += 1;
        // In the place of a file, the pages are those of whatever was read last.
        Ok(!self.onto_file)
    }

    fn let_go(&self, _: NodeId, identity: Identity) {
        let mut state = self.state();
        if let Some(count) = state.held.get_mut(&identity) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.held.remove(&identity);
            }
        }
    }

    fn description(&self, node: NodeId) -> Result<Option<Glance>> {
        match self.is_root(node) {
            true => Ok(None),
            false => Ok(Some(self.seen(node)?.glance)),
        }
    }

    fn statfs(&self) -> Result<StatVfs> {
        Ok(figures())
    }

    fn memory(&self) -> usize {
        let known = self.state().known.len();
        known * (size_of::<Seen>() + (64 << 10))
    }

    fn list(&self, directory: NodeId) -> Result<Listing> {
        if !self.is_root(directory) {
            return Err(Errno::NOTDIR).context("cannot list", &self.shown);
        }
        let root = NodeId::ROOT;
        let mut listing = Listing::new(root, root, None);
        listing.push(b".", Kind::Directory, root.0, Some(false));
        listing.push(b"..", Kind::Directory, root.0, Some(false));
        match self.now(false) {
            Ok(seen) => listing.push(&self.name, Kind::File, seen.node.0, Some(false)),
            Err(error) if error.is_io(io::ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
        Ok(listing)
    }

    fn lookup_listed(
        &self,
        _: &Listing,
        _: usize,
        entry: &ListedEntry<'_>,
    ) -> Result<Option<Attributes>> {
        match entry.name {
            b"." | b".." => self.attributes(NodeId::ROOT).map(Some),
            name => self.lookup(NodeId::ROOT, name),
        }
    }

    fn extended_attribute(
        &self,
        _: NodeId,
        _: &[u8],
        _: Option<&Content>,
    ) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn extended_attribute_names(&self, _: NodeId, _: Option<&Content>) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
}

/// A store's figures: it is as large as it is made.
pub(super) fn figures() -> StatVfs {
    StatVfs {
        f_bsize: 4096,
        f_frsize: 4096,
        f_blocks: 0,
        f_bfree: 0,
        f_bavail: 0,
        f_files: 0,
        f_ffree: 0,
        f_favail: 0,
        f_fsid: 0,
        f_flag: StatVfsMountFlags::RDONLY,
        f_namemax: 255,
    }
}
