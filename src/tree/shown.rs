//! What a mount asks of what it shows: the same of a tree of files as of objects in a store.

use std::fmt::Debug;

use rustix::fs::{SeekFrom, StatVfs};
#[cfg(feature = "remote")]
use rustix::io::Errno;

use super::{Attributes, Kind, ListedEntry, Listing, NodeId, OpenedFile, Tree};
use crate::archive::{Content, Glance};
use crate::error::Result;
use crate::identity::Identity;

impl Content {
    /// Where data begins or ends; an object has no holes.
    ///
    /// # Errors
    /// There is nothing behind the place (`ENXIO`), or the system's.
    pub(crate) fn seek(&self, to: SeekFrom) -> rustix::io::Result<u64> {
        match self {
            Content::File(file) => rustix::fs::seek(file, to),
            #[cfg(feature = "remote")]
            Content::Object(_) | Content::Plain(_) => {
                let size = self.object().map_or(0, |object| object.version().size);
                match to {
                    SeekFrom::Data(offset) if offset < size => Ok(offset),
                    SeekFrom::Hole(offset) if offset < size => Ok(size),
                    _ => Err(Errno::NXIO),
                }
            }
        }
    }
}

/// See the methods of [`Tree`] of these names.
pub(crate) trait Shown: Debug + Send + Sync {
    fn mounted_as(&self, device: (u32, u32));
    fn root_kind(&self) -> Kind;
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>>;
    fn forget(&self, node: NodeId, lookups: u64);
    fn children(&self, directory: NodeId) -> usize;
    fn attributes(&self, node: NodeId) -> Result<Attributes>;
    fn attributes_of_open(
        &self,
        node: NodeId,
        content: &Content,
        held: Identity,
        original_size: Option<u64>,
    ) -> Result<Attributes>;
    fn read_link(&self, node: NodeId) -> Result<Vec<u8>>;
    fn open_file(&self, node: NodeId) -> Result<OpenedFile>;
    fn check_user(&self, opened: &OpenedFile, user: u32) -> Result<()>;
    fn hold(&self, node: NodeId, opened: &OpenedFile) -> Result<bool>;
    /// Of a version of an object there is one size, which is told with it; and one that is opened is the one that was told.
    fn has_another_size(&self, _node: NodeId, _opened: &OpenedFile) -> bool {
        false
    }
    fn let_go(&self, node: NodeId, identity: Identity);
    fn description(&self, node: NodeId) -> Result<Option<Glance>>;
    fn statfs(&self) -> Result<StatVfs>;
    fn memory(&self) -> usize;
    /// Objects' directories are nothing but the beginnings of names: there is none to be another.
    fn check_directory(&self, _directory: NodeId) -> Result<()> {
        Ok(())
    }
    fn list(&self, directory: NodeId) -> Result<Listing>;
    fn lookup_listed(
        &self,
        listing: &Listing,
        index: usize,
        entry: &ListedEntry<'_>,
    ) -> Result<Option<Attributes>>;
    fn extended_attribute(
        &self,
        node: NodeId,
        name: &[u8],
        open: Option<&Content>,
    ) -> Result<Option<Vec<u8>>>;
    fn extended_attribute_names(
        &self,
        node: NodeId,
        open: Option<&Content>,
    ) -> Result<Vec<Vec<u8>>>;
}

/// Passes each on to the method of the same name.
macro_rules! as_it_is {
    ($($name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)+) => {
        $(fn $name(&self $(, $argument: $type)*) $(-> $result)? {
            Tree::$name(self $(, $argument)*)
        })+
    };
}

impl Shown for Tree {
    as_it_is! {
        mounted_as(&self, device: (u32, u32));
        root_kind(&self) -> Kind;
        lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>>;
        forget(&self, node: NodeId, lookups: u64);
        children(&self, directory: NodeId) -> usize;
        attributes(&self, node: NodeId) -> Result<Attributes>;
        attributes_of_open(&self, node: NodeId, content: &Content, held: Identity, original_size: Option<u64>) -> Result<Attributes>;
        read_link(&self, node: NodeId) -> Result<Vec<u8>>;
        open_file(&self, node: NodeId) -> Result<OpenedFile>;
        check_user(&self, opened: &OpenedFile, user: u32) -> Result<()>;
        hold(&self, node: NodeId, opened: &OpenedFile) -> Result<bool>;
        has_another_size(&self, node: NodeId, opened: &OpenedFile) -> bool;
        let_go(&self, node: NodeId, identity: Identity);
        description(&self, node: NodeId) -> Result<Option<Glance>>;
        statfs(&self) -> Result<StatVfs>;
        memory(&self) -> usize;
        check_directory(&self, directory: NodeId) -> Result<()>;
        list(&self, directory: NodeId) -> Result<Listing>;
        lookup_listed(&self, listing: &Listing, index: usize, entry: &ListedEntry<'_>) -> Result<Option<Attributes>>;
        extended_attribute(&self, node: NodeId, name: &[u8], open: Option<&Content>) -> Result<Option<Vec<u8>>>;
        extended_attribute_names(&self, node: NodeId, open: Option<&Content>) -> Result<Vec<Vec<u8>>>;
    }
}
