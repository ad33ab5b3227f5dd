//! What a mount asks of the tree.

use std::io;
use std::sync::Arc;

use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::super::numbers::Key as NodeKey;
use super::super::object::figures;
use super::super::{
    Attributes, Kind, LONGEST_NAME, ListedEntry, Listing, NodeId, OpenedFile, Shown,
};
use super::entries::{Brief, Found, KnownBy};
use super::listing::Told;
use super::{BELIEVED, ObjectListing, Prefix, PrefixTree};
use crate::archive::{Content, Glance, Source, glance};
use crate::error::{Error, IoContext, Result};
use crate::identity::Identity;
use crate::remote::{Object, Plain};

impl Prefix {
    fn describe_directory(&self, node: NodeId) -> Attributes {
        Attributes {
            kind: Kind::Directory,
            mode: 0o555,
            nlink: 2,
            ..self.describe_file(node, 0, 0, self.mounted)
        }
    }

    fn describe_file(
        &self,
        node: NodeId,
        size: u64,
        stored: u64,
        modified: std::time::SystemTime,
    ) -> Attributes {
        Attributes {
            node,
            generation: 0,
            inode: node.0,
            kind: Kind::File,
            size,
            blocks: stored.div_ceil(512),
            block_size: 128 << 10,
            mode: 0o444,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            accessed: modified,
            modified,
            changed: modified,
        }
    }

    fn describe_object(&self, node: NodeId, brief: &Brief, packed: Option<Glance>) -> Attributes {
        let stored = brief.identity.size;
        let size = packed.map_or(stored, |glance| glance.original_size);
        self.describe_file(node, size, stored, brief.modified)
    }

    /// Enters what shows into the table of nodes, with one lookup more.
    fn enter(
        &self,
        parent: NodeId,
        location: &[u8],
        name: &str,
        object: Option<(Brief, Option<Glance>)>,
    ) -> Result<Attributes> {
        let (kind, key, identity) = match &object {
            None => {
                let identity = self.directory_identity(location, name);
                (
                    Kind::Directory,
                    self.directory_key(location, name),
                    identity,
                )
            }
            Some((brief, packed)) => {
                let key = NodeKey {
                    device: brief.identity.device,
                    inode: brief.identity.inode,
                    decoded: packed.is_some(),
                };
                self.memory.note_listed(*brief);
                (Kind::File, key, brief.identity)
            }
        };
        let node = self
            .nodes
            .look_up(key, kind, parent, name.as_bytes(), identity);
        let node =
            node.ok_or_else(|| Error::io("the directory is no longer known", Errno::STALE.into()))?;
        Ok(match object {
            None => self.describe_directory(node),
            Some((brief, packed)) => self.describe_object(node, &brief, packed),
        })
    }

    /// An object in its version now, or a moment ago, and how it shows.
    fn look_at(&self, key: &str, packed: bool) -> Result<(Brief, Option<Glance>)> {
        let known = self.store.identity(key, 0, None, std::time::UNIX_EPOCH);
        let known = self.memory.at((known.device, known.inode));
        let brief = match known {
            Some(seen) if seen.asked.elapsed() < BELIEVED => seen.brief,
            _ => {
                let version = self.store.head(&self.key(key)?);
                let version = version.context("cannot examine", &self.shown(key))?;
                let brief = Brief::new(&self.store, key, &version);
                self.memory.note(brief, None);
                brief
            }
        };
        match packed {
            true => self.header(key, brief),
            false => Ok((brief, None)),
        }
    }

    /// How large the original of an object is by the word of an index.
    fn indexed_size(&self, node: NodeId) -> Option<u64> {
        let index = self.index.as_ref()?;
        let known = self.nodes.get(node)?;
        let entries = index.entries(&known.location);
        let brief = entries.object(&String::from_utf8_lossy(&known.name))?;
        brief.indexed.map(|(_, original_size)| original_size)
    }

    /// Takes notice that the kernel is told of an object in this version; says whether it may be. Not of another than the node
    /// stands for; but it may learn the ETag of what it knew without.
    fn tell(&self, node: NodeId, key: &str, brief: &Brief) -> bool {
        let Some(told) = self.nodes.told(node) else {
            return false;
        };
        if told == brief.identity {
            return true;
        }
        let modified = brief.modified;
        let less = |known| {
            let version = crate::remote::Version {
                size: brief.identity.size,
                etag: None,
                modified,
            };
            Brief::known_by(known, &self.store, key, &version).identity
        };
        let same = told == less(KnownBy::Time) || told == less(KnownBy::Size);
        same && self.nodes.tell(node, brief.identity)
    }

    fn open(&self, node: NodeId) -> Result<OpenedFile> {
        let known = self.known(node)?;
        let key = self.key_in(&known.location, &String::from_utf8_lossy(&known.name));
        let path = self.shown(&key);
        if known.kind != Kind::File {
            return Err(Errno::ISDIR).context("cannot open", &path);
        }
        let told = self.nodes.told(node);
        let seen = told.and_then(|told| self.memory.at((told.device, told.inode)));
        if let Some(seen) = seen.filter(|_| known.key.decoded)
            && let Some(parts) = seen.packed.flatten().and_then(|it| it.likely_description())
        {
            for part in &parts {
                Object::expect(&self.store, &self.key(&key)?, seen.brief.identity, part);
            }
        }
        let empty = told.is_some_and(|told| told.size == 0);
        let opened = match empty {
            // There is no part of it to ask for.
            true => self
                .store
                .head(&self.key(&key)?)
                .map(|version| (version, None)),
            false => Object::open(&self.store, &self.key(&key)?)
                .map(|object| (object.version().clone(), Some(object))),
        };
        let (version, object) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disbelieve(&known.location);
                return Err(self.changed(&key));
            }
            Err(error) => return Err(Error::io("cannot open", error).in_file(&path)),
        };
        let brief = Brief::new(&self.store, &key, &version);
        self.memory.note(brief, None);
        if !self.tell(node, &key, &brief) {
            self.disbelieve(&known.location);
            return Err(self.changed(&key));
        }
        let object = match object {
            Some(object) => object,
            None => Object::listed(&self.store, &self.key(&key)?, version),
        };
        if known.key.decoded
            && self.index.is_some()
            && self.memory.packed(&brief).is_none()
            && let Ok(Some(found)) = glance(&object, &path, brief.identity.size)
        {
            // An index was believed so far. The first bytes are read anyway, and what is wrong with them is told by who reads on.
            self.memory.note(brief, Some(Some(found)));
        }
        Ok(OpenedFile {
            identity: object.identity().context("cannot examine", &path)?,
            content: match known.key.decoded {
                true => Content::Object(Arc::new(object)),
                false => Content::Plain(Arc::new(Plain::new(Arc::new(object)))),
            },
            packed: known.key.decoded,
            access: None,
            path,
        })
    }
}

impl Shown for PrefixTree {
    fn mounted_as(&self, _: (u32, u32)) {}

    fn root_kind(&self) -> Kind {
        Kind::Directory
    }

    fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>> {
        let prefix = &self.0;
        let location = prefix.location_of(parent)?;
        if name.len() > LONGEST_NAME {
            let path = prefix.shown(&prefix.beginning_of(&location));
            return Err(Errno::NAMETOOLONG).context("cannot look up", &path);
        }
        // Objects' names are UTF-8, without control characters.
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        if matches!(name, "" | "." | "..")
            || name.contains(|letter: char| letter == '/' || letter.is_ascii_control())
        {
            return Ok(None);
        }
        let entries = prefix.entries_for(&location, name)?;
        let is_packed = |name: &str, brief| prefix.is_packed(&location, name, brief);
        let (name, object) = match entries.shown_as(name, is_packed)? {
            None => return Ok(None),
            Some(Found::Directory) => (name, None),
            Some(Found::Plain(brief)) => (name, Some((prefix.memory.completed(brief), None))),
            Some(Found::Packed(long, brief)) => {
                let header = prefix.header(&prefix.key_in(&location, long), brief)?;
                (long, Some(header))
            }
        };
        prefix.enter(parent, &location, name, object).map(Some)
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        self.0.nodes.forget(node, lookups);
    }

    fn children(&self, directory: NodeId) -> usize {
        usize::try_from(self.0.nodes.children(directory)).unwrap_or(usize::MAX)
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        let prefix = &self.0;
        let known = prefix.known(node)?;
        if known.kind == Kind::Directory {
            return Ok(prefix.describe_directory(node));
        }
        let key = prefix.key_in(&known.location, &String::from_utf8_lossy(&known.name));
        let found = prefix.look_at(&key, known.key.decoded);
        let (brief, packed) =
            found.map_err(|error| match error.is_io(io::ErrorKind::NotFound) {
                true => prefix.changed(&key),
                false => error,
            })?;
        if packed.is_some() != known.key.decoded || !prefix.tell(node, &key, &brief) {
            prefix.disbelieve(&known.location);
            return Err(prefix.changed(&key));
        }
        Ok(prefix.describe_object(node, &brief, packed))
    }

    fn attributes_of_open(
        &self,
        node: NodeId,
        content: &Content,
        _: Identity,
        original_size: Option<u64>,
    ) -> Result<Attributes> {
        let Some(object) = content.object() else {
            return self.attributes(node);
        };
        let version = object.version();
        let size = original_size.unwrap_or(version.size);
        Ok(self
            .0
            .describe_file(node, size, version.size, version.modified))
    }

    fn read_link(&self, _: NodeId) -> Result<Vec<u8>> {
        Err(Errno::INVAL).context("cannot read the link", &self.0.location.shown())
    }

    fn open_file(&self, node: NodeId) -> Result<OpenedFile> {
        self.0.open(node)
    }

    fn check_user(&self, _: &OpenedFile, _: u32) -> Result<()> {
        Ok(())
    }

    fn hold(&self, node: NodeId, opened: &OpenedFile) -> Result<bool> {
        let held = self.0.nodes.hold(node, opened.identity);
        held.ok_or_else(|| Error::from(crate::error::ErrorKind::Changed).in_file(&opened.path))
    }

    fn has_another_size(&self, node: NodeId, opened: &OpenedFile) -> bool {
        let (device, inode) = (opened.identity.device, opened.identity.inode);
        let seen = self.0.memory.at((device, inode));
        let packed = seen.and_then(|seen| seen.packed.flatten());
        let size = packed.map(|glance| glance.original_size);
        // The kernel may have been told no more than the word of an index.
        let indexed = self.0.indexed_size(node).filter(|_| opened.packed);
        indexed.is_some_and(|indexed| size.is_some_and(|size| size != indexed))
    }

    fn let_go(&self, node: NodeId, identity: Identity) {
        self.0.nodes.let_go(node, identity);
    }

    fn description(&self, node: NodeId) -> Result<Option<Glance>> {
        let known = self.0.known(node)?;
        if !known.key.decoded {
            return Ok(None);
        }
        let key = self
            .0
            .key_in(&known.location, &String::from_utf8_lossy(&known.name));
        Ok(self.0.look_at(&key, true)?.1)
    }

    fn statfs(&self) -> Result<StatVfs> {
        Ok(figures())
    }

    fn memory(&self) -> usize {
        self.0.memory_used()
    }

    fn list(&self, directory: NodeId) -> Result<Listing> {
        let known = self.0.known(directory)?;
        let location = self.0.location_of(directory)?;
        let entries = self.0.entries(&location)?;
        let inodes = [directory.0, known.parent.0];
        let objects = ObjectListing::new(&self.0, location, entries, inodes);
        Ok(Listing::of_objects(directory, known.parent, objects))
    }

    fn lookup_listed(
        &self,
        listing: &Listing,
        index: usize,
        entry: &ListedEntry<'_>,
    ) -> Result<Option<Attributes>> {
        // What could not be found out is not asked again: it would not be the name that was told.
        if entry.stripped().is_none() {
            return Ok(None);
        }
        match index {
            0 => return self.attributes(listing.node()).map(Some),
            1 => return self.attributes(listing.parent()).map(Some),
            _ => {}
        }
        let Some(objects) = listing.objects() else {
            return Ok(None);
        };
        let location = objects.location();
        let (name, object) = match objects.told(index) {
            None => return Ok(None),
            Some(Told::Directory(name)) => (name, None),
            Some(Told::Object {
                name,
                brief,
                stripped,
            }) => {
                let Some(stripped) = stripped else {
                    return Ok(None);
                };
                let seen = match stripped {
                    true => self.0.header(&self.0.key_in(location, name), brief)?,
                    false => (self.0.memory.completed(brief), None),
                };
                if seen.1.is_some() != stripped {
                    return Ok(None);
                }
                (name, Some(seen))
            }
        };
        self.0
            .enter(listing.node(), location, name, object)
            .map(Some)
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
