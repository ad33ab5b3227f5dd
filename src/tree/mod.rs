//! The source tree as the mount shows it: names, attributes, links, inode numbers.
//!
//! A [`Tree`] answers the questions a file system is asked, about nodes that are named by number ([`NodeId`]), and knows
//! nothing of FUSE. What shows how:
//! - `names` decides under which name an entry shows and what a link's target becomes,
//! - `source` resolves paths beneath descriptors that were opened before the mount existed,
//! - `headers` remembers which files are packed, `listed` what a directory holds,
//! - `object` shows one object of a store instead, `prefix` all that begin alike,
//! - `recent` keeps the directories open that were listed last,
//! - `shown` is what a mount asks, of this tree or of one of objects,
//! - `single` keeps what replaces a file that is mounted onto a file from those it is not for,
//! - `nodes` knows which file a number stands for and where it was last seen, `numbers` gives the numbers out.
//!
//! Every answer comes from the source as it is now: a node is looked for at the path it was last seen at, and
//! [`ErrorKind::Changed`] says that something else is there, upon which the kernel has to look the name up again. All
//! methods may be called from several threads at once; no lock is held while the system is asked.

mod attributes;
mod extended;
mod headers;
mod listed;
mod listing;
mod names;
mod nodes;
mod numbers;
#[cfg(feature = "remote")]
mod object;
mod open;
#[cfg(feature = "remote")]
mod prefix;
mod recent;
mod shown;
mod single;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use crate::archive::{Content, Glance};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::identity::Identity;

pub(crate) use attributes::{Attributes, Kind};
pub(crate) use listing::{ListedEntry, Listing, MOST_THREADS as LISTING_THREADS};
#[cfg(feature = "remote")]
pub(crate) use object::ObjectTree;
#[cfg(feature = "remote")]
pub(crate) use prefix::PrefixTree;
pub(crate) use shown::Shown;

use headers::Headers;
use names::{Entries, Names, View, file_type};
use nodes::{Known, Nodes};
use numbers::Key;
use recent::Recent;
use single::{Access, MountedFile};
use source::{Directory, Patience, Source, join, stat_descriptor};

/// The longest name that an object may show under, in bytes: what Linux's own file systems have.
#[cfg(feature = "remote")]
const LONGEST_NAME: usize = 255;

/// A node's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(pub(crate) u64);

impl NodeId {
    /// The root's number, whatever its inode number is.
    pub(crate) const ROOT: NodeId = NodeId(1);
}

/// A source tree as the mount shows it.
#[derive(Debug)]
pub(crate) struct Tree {
    source: Source,
    headers: Headers,
    nodes: Nodes,
    recent: Recent,
    /// The mount point's absolute path, name by name.
    mountpoint: Vec<Vec<u8>>,
    /// The one entry of the root directory that shows, if the source is a file.
    only: Option<Arc<[u8]>>,
    /// The root, if it is a file.
    mounted_file: Option<MountedFile>,
}

/// A regular file, opened for reading.
#[derive(Debug)]
pub(crate) struct OpenedFile {
    /// The source file.
    pub(crate) content: Content,
    /// Its state when it was opened.
    pub(crate) identity: Identity,
    /// Whether it shows as its original.
    pub(crate) packed: bool,
    /// Who may open it, if the system says so.
    access: Option<Access>,
    /// Its path as the user knows it, for messages.
    pub(crate) path: PathBuf,
}

/// A node's file, looked at where it was last seen.
struct Entry {
    known: Known,
    view: View,
    stat: Statx,
}

impl Tree {
    /// Takes notice of the mount's device number, so that the mount is known wherever it comes to lie.
    pub(crate) fn mounted_as(&self, (major, minor): (u32, u32)) {
        self.source.mounted_as(rustix::fs::makedev(major, minor));
    }

    /// What the root is: a directory, or the one file that is mounted onto a file.
    pub(crate) fn root_kind(&self) -> Kind {
        match self.nodes.get(NodeId::ROOT) {
            Some(root) => root.kind,
            None => Kind::Directory,
        }
    }

    /// Finds the entry of `parent` that shows as `name`, and counts one lookup of its node; `None` if there is none.
    ///
    /// # Errors
    /// The source cannot be read, or the parent is gone or no longer the same directory.
    pub(crate) fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>> {
        let view = self.view(parent)?;
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Ok(None);
        }
        match self.names(Patience::ForLeases).shown_as(&view, name)? {
            Some(found) => self.enter(parent, &view, &found.source_name, &found.stat, found.header),
            None => Ok(None),
        }
    }

    /// Takes back `lookups` lookups of a node.
    pub(crate) fn forget(&self, node: NodeId, lookups: u64) {
        self.recent.forget(node);
        self.nodes.forget(node, lookups);
    }

    /// How many entries of a directory are known as nodes.
    pub(crate) fn children(&self, directory: NodeId) -> usize {
        usize::try_from(self.nodes.children(directory)).unwrap_or(usize::MAX)
    }

    /// A node's attributes.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if something else is where the node was last seen, or others hold a packed file as it was
    /// before it was changed; the source cannot be read.
    pub(crate) fn attributes(&self, node: NodeId) -> Result<Attributes> {
        let entry = self.entry(node)?;
        let header = self.description_of(&entry)?;
        let attributes =
            self.describe(node, &entry.view, &entry.known.name, &entry.stat, header)?;
        // Last, for what fails is not told.
        if !self.nodes.tell(node, Identity::from(&entry.stat)) {
            // A new size would cut off who holds the file as it was.
            return Err(Error::from(ErrorKind::Changed).in_file(&self.path_of(&entry.known)));
        }
        Ok(attributes)
    }

    /// The attributes of an open file's node, for when its path leads to another file already: `original_size` is that of a
    /// packed file's header, whose bytes and time stay those it was `held` with, whatever is done to the file.
    ///
    /// # Errors
    /// The file cannot be examined, or the node was forgotten.
    pub(crate) fn attributes_of_open(
        &self,
        node: NodeId,
        content: &Content,
        held: Identity,
        original_size: Option<u64>,
    ) -> Result<Attributes> {
        let known = self.known(node)?;
        let path = self.source.path(&known.location, &known.name);
        let Some(file) = content.file() else {
            return self.attributes(node);
        };
        let stat = stat_descriptor(file).context("cannot examine", &path)?;
        let mut attributes = Attributes::new(node, known.kind, &stat);
        if let Some(size) = original_size {
            attributes.size = size;
            attributes.modified = held.modified_time();
        }
        Ok(attributes)
    }

    /// A symlink's target, as it shows.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if something else is where the node was last seen; the source cannot be read.
    pub(crate) fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        let entry = self.entry(node)?;
        if file_type(&entry.stat) != FileType::Symlink {
            let path = self.path_of(&entry.known);
            return Err(Errno::INVAL).context("cannot read the link", &path);
        }
        self.target(&entry.view, &entry.known.name)
    }

    /// Checks that a directory is where it was last seen.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if something else is there, or nothing; the source cannot be read.
    pub(crate) fn check_directory(&self, node: NodeId) -> Result<()> {
        self.view(node).map(drop)
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if the path leads to another file, or to the same one shown differently. The source cannot be read.
    pub(crate) fn open_file(&self, node: NodeId) -> Result<OpenedFile> {
        let known = self.known(node)?;
        let path = self.path_of(&known);
        let changed = || Error::from(ErrorKind::Changed).in_file(&path);
        let view = self.view_at(&known.location)?;
        let file = match self.source.open_file(&view.directory, &known.name) {
            // A link or a socket is there instead, or nothing: the file may have another name.
            Err(Errno::LOOP | Errno::NXIO | Errno::NOENT) => return Err(changed()),
            opened => opened.context("cannot open", &path)?,
        };
        let stat = stat_descriptor(&file).context("cannot examine", &path)?;
        let identity = Identity::from(&stat);
        if !is_file_of(node, &known, &identity) || file_type(&stat) != FileType::RegularFile {
            return Err(changed());
        }
        if self
            .names(Patience::ForLeases)
            .shows_stripped(&view, &known.name)?
            != known.key.decoded
        {
            return Err(changed());
        }
        Ok(OpenedFile {
            content: Content::File(Arc::new(file)),
            identity,
            packed: known.key.decoded,
            access: Some(Access::from(&stat)),
            path,
        })
    }

    /// Checks that an opened file may be handed to `user`, whom the kernel has let open its node.
    ///
    /// # Errors
    /// The kernel may have been asked about another file (EACCES).
    pub(crate) fn check_user(&self, opened: &OpenedFile, user: u32) -> Result<()> {
        let file = self.mounted_file.as_ref();
        file.map_or(Ok(()), |file| file.check(opened, user))
    }

    /// Takes notice that somebody holds an opened file from now on; says whether the pages the kernel keeps of it are still
    /// right. Balanced by [`Tree::let_go`].
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] for a packed file that is not as the kernel was last told: it has to look again.
    pub(crate) fn hold(&self, node: NodeId, opened: &OpenedFile) -> Result<bool> {
        let held = self.nodes.hold(node, opened.identity);
        held.ok_or_else(|| Error::from(ErrorKind::Changed).in_file(&opened.path))
    }

    /// Whether the kernel may know another size of a file that was opened and is held: it is as much of it as would be read.
    pub(crate) fn has_another_size(&self, node: NodeId, opened: &OpenedFile) -> bool {
        self.nodes.may_know_another_size(node, opened.identity)
    }

    /// Takes notice that one of those who held a file, as `identity`, has closed it.
    pub(crate) fn let_go(&self, node: NodeId, identity: Identity) {
        self.nodes.let_go(node, identity);
    }

    /// The description of a node that shows as its original; `None` for any other.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if something else is where the node was last seen; the source cannot be read.
    pub(crate) fn description(&self, node: NodeId) -> Result<Option<Glance>> {
        self.description_of(&self.entry(node)?)
    }

    /// The source's file system.
    ///
    /// # Errors
    /// The system does not say.
    pub(crate) fn statfs(&self) -> Result<rustix::fs::StatVfs> {
        let path = self.source.path(b"", b"");
        self.source.statfs().context("cannot examine", &path)
    }

    /// The memory that what is remembered takes, in bytes: headers, and the nodes the kernel knows.
    pub(crate) fn memory(&self) -> usize {
        self.headers.memory() + self.nodes.memory()
    }

    fn names(&self, patience: Patience) -> Names<'_> {
        Names {
            patience,
            source: &self.source,
            headers: &self.headers,
            mountpoint: &self.mountpoint,
        }
    }

    fn known(&self, node: NodeId) -> Result<Known> {
        // The kernel asks about no node it has not looked up; a number from a file handle may be out of date.
        let forgotten = Errno::STALE.into();
        let known = self.nodes.get(node);
        let mut known = known.ok_or_else(|| Error::io("the file is no longer known", forgotten))?;
        // Who is in a directory cannot look it up again.
        if known.kind == Kind::Directory && !self.source.keeps_births(known.key.device) {
            known.born = None;
        }
        Ok(known)
    }

    fn path_of(&self, known: &Known) -> PathBuf {
        self.source.path(&known.location, &known.name)
    }

    /// The inode number shown for a node.
    fn inode_of(&self, node: NodeId) -> u64 {
        match self.nodes.get(node) {
            Some(root) if node == NodeId::ROOT => root.key.inode,
            _ => node.0,
        }
    }

    /// A directory node, opened and made sure of.
    fn view(&self, node: NodeId) -> Result<View> {
        let known = self.known(node)?;
        if known.kind != Kind::Directory {
            return Err(Errno::NOTDIR).context("cannot open", &self.path_of(&known));
        }
        let view = self.view_at(&join(&known.location, &known.name))?;
        self.identify_directory(node, &known, &view.directory)?;
        Ok(view)
    }

    fn view_at(&self, location: &[u8]) -> Result<View> {
        let opened = self.source.directory(location);
        let opened =
            opened.map_err(|error| cannot_enter(error, &self.source.path(location, b"")))?;
        let mut view = View::live(opened);
        if let Some(only) = &self.only
            && location.is_empty()
        {
            view.entries = Entries::Only(Arc::clone(only));
        }
        Ok(view)
    }

    /// Checks that an open directory is the node's, and says in which state it is.
    fn identify_directory(
        &self,
        node: NodeId,
        known: &Known,
        directory: &Directory,
    ) -> Result<Identity> {
        let path = || self.source.path(directory.location(), b"");
        let stat = directory.stat().context_with("cannot examine", path)?;
        let identity = Identity::from(&stat);
        if !is_file_of(node, known, &identity) {
            return Err(Error::from(ErrorKind::Changed).in_file(&path()));
        }
        Ok(identity)
    }

    /// A node's file, found where it was last seen and made sure of.
    fn entry(&self, node: NodeId) -> Result<Entry> {
        let known = self.known(node)?;
        let view = self.view_at(&known.location)?;
        let found = self.source.stat(&view.directory, &known.name);
        let path = || self.path_of(&known);
        let stat = found.context_with("cannot examine", path)?;
        let stat = stat.filter(|stat| is_file_of(node, &known, &Identity::from(stat)));
        let stat = stat.ok_or_else(|| Error::from(ErrorKind::Changed).in_file(&path()))?;
        Ok(Entry { known, view, stat })
    }

    /// The description of an entry whose node shows as its original.
    fn description_of(&self, entry: &Entry) -> Result<Option<Glance>> {
        if !entry.known.key.decoded {
            return Ok(None);
        }
        let name = &entry.known.name;
        match self
            .names(Patience::ForLeases)
            .header(&entry.view, name, &entry.stat)?
        {
            Some(header) => Ok(Some(header)),
            None => Err(Error::from(ErrorKind::Changed).in_file(&self.path_of(&entry.known))),
        }
    }

    /// Enters a source entry into the table of nodes. What Linux has no type for is not shown.
    fn enter(
        &self,
        parent: NodeId,
        view: &View,
        name: &[u8],
        stat: &Statx,
        described: Option<Glance>,
    ) -> Result<Option<Attributes>> {
        let Some(kind) = Kind::of(file_type(stat)) else {
            return Ok(None);
        };
        let identity = Identity::from(stat);
        let key = Key {
            device: identity.device,
            inode: identity.inode,
            decoded: described.is_some(),
        };
        // The root's id stands in for the node's, so that nothing can fail once the lookup is counted.
        let mut attributes = self.describe(NodeId::ROOT, view, name, stat, described)?;
        let found = self.nodes.look_up(key, kind, parent, name, identity);
        let Some(node) = found else {
            let forgotten = Errno::STALE.into();
            return Err(Error::io("the directory is no longer known", forgotten));
        };
        attributes.node = node;
        attributes.inode = node.0;
        Ok(Some(attributes))
    }

    fn describe(
        &self,
        node: NodeId,
        view: &View,
        name: &[u8],
        stat: &Statx,
        described: Option<Glance>,
    ) -> Result<Attributes> {
        let kind = Kind::of(file_type(stat)).unwrap_or(Kind::File);
        let mut attributes = Attributes::new(node, kind, stat);
        if let Some(described) = described {
            attributes.size = described.original_size;
        }
        if kind == Kind::Symlink {
            attributes.size = self.target(view, name)?.len() as u64;
        }
        if kind == Kind::Directory && name.is_empty() && self.only.is_some() {
            // The one file is all there is, whatever lies beside it.
            attributes.nlink = 2;
        }
        Ok(attributes)
    }

    /// The target of the link `name`, as it shows.
    fn target(&self, view: &View, name: &[u8]) -> Result<Vec<u8>> {
        let path = || self.source.path(view.directory.location(), name);
        let target = self.source.read_link(&view.directory, name);
        let target = target.context_with("cannot read the link", path)?;
        self.names(Patience::ForLeases).shown_target(view, target)
    }
}

/// What it means that a directory which was one cannot be opened: if nothing, a link or a file stands on the way to it, it
/// changed. The kernel has to look it up again, and learns then if it is gone.
fn cannot_enter(error: Errno, path: &Path) -> Error {
    match error {
        Errno::LOOP | Errno::NOTDIR | Errno::NOENT => ErrorKind::Changed.into(),
        error => Error::io("cannot open", error.into()),
    }
    .in_file(path)
}

/// Whether it is the system, or a server, that failed to tell what a file is, and may not fail the next time: not that the file is
/// none, or gone, or kept from us.
fn may_pass(error: &Error) -> bool {
    let ErrorKind::Io { source, .. } = error.kind() else {
        return false;
    };
    let stays = matches!(
        source.kind(),
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::NotFound
    );
    // A link, or something that is no file, has taken its place.
    let replaced = matches!(
        Errno::from_io_error(source),
        Some(Errno::LOOP | Errno::NXIO | Errno::NOTDIR)
    );
    !stays && !replaced
}

/// Whether this is the file a node stands for. The root is whatever is there: a directory is held, so it is always the
/// same; a file is known by its name alone, because the kernel never looks the root up again. Every other one is known by its
/// time of birth too: its inode number may be that of a file which is gone.
fn is_file_of(node: NodeId, known: &Known, identity: &Identity) -> bool {
    let numbers = (known.key.device, known.key.inode);
    node == NodeId::ROOT
        || numbers == (identity.device, identity.inode)
            && known.born.is_none_or(|born| born == identity.born)
}

/// [`IoContext`] for where the path costs something to put together.
trait IoContextWith<T> {
    fn context_with(self, action: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T>;
}

impl<T> IoContextWith<T> for rustix::io::Result<T> {
    fn context_with(self, action: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T> {
        self.map_err(|error| Error::io(action, error.into()).in_file(&path()))
    }
}

#[cfg(test)]
mod tests;
