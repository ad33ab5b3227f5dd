//! Extended attributes of the source: what users set and the access control lists pass through, nothing else.
//!
//! They are read through `/proc/self/fd`, by a descriptor that only stands for its file. So they can be read of what cannot
//! be opened or must not be, as of a pipe, and of the very file that was made sure of.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::nodes::Known;
use super::source::stat_descriptor;
use super::{IoContextWith, NodeId, Tree, cannot_enter, is_file_of};
use crate::archive::Content;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::identity::Identity;

/// The longest value of an extended attribute, and the longest list of their names, in bytes
/// (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LONGEST_EXTENDED_ATTRIBUTE: usize = 64 << 10;

/// What most of them fit into, in bytes: the kernel clears as much memory as it is offered, at every question.
const USUAL_EXTENDED_ATTRIBUTE: usize = 512;

impl Tree {
    /// An extended attribute of the source file; `None` if it has none of that name or the name is not passed through. What is `open`
    /// is asked instead of the path, which may lead to another file by now.
    ///
    /// # Errors
    /// As for [`Tree::attributes`].
    pub(crate) fn extended_attribute(
        &self,
        node: NodeId,
        name: &[u8],
        open: Option<&Content>,
    ) -> Result<Option<Vec<u8>>> {
        if !Self::has_attributes_like(name) {
            return Ok(None);
        }
        let (known, held) = self.descriptor_of(node, open)?;
        let path = by_descriptor(&held);
        let read = |room| {
            let mut value = Vec::with_capacity(room);
            rustix::fs::getxattr(&path, name, spare_capacity(&mut value)).map(|_| value)
        };
        let value = match read(USUAL_EXTENDED_ATTRIBUTE) {
            Err(Errno::RANGE) => read(LONGEST_EXTENDED_ATTRIBUTE),
            value => value,
        };
        match value {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(error) => {
                Err(error).context("cannot read an extended attribute", &self.path_of(&known))
            }
        }
    }

    /// The names of the source file's extended attributes that are passed through; `open` as in [`Tree::extended_attribute`].
    ///
    /// # Errors
    /// As for [`Tree::attributes`].
    pub(crate) fn extended_attribute_names(
        &self,
        node: NodeId,
        open: Option<&Content>,
    ) -> Result<Vec<Vec<u8>>> {
        let (known, held) = self.descriptor_of(node, open)?;
        let mut list = Vec::with_capacity(LONGEST_EXTENDED_ATTRIBUTE);
        match rustix::fs::listxattr(by_descriptor(&held), spare_capacity(&mut list)) {
            Ok(_) | Err(Errno::NOTSUP) => {}
            Err(error) => {
                let path = self.path_of(&known);
                return Err(error).context("cannot list extended attributes", &path);
            }
        }
        let names = list.split(|&byte| byte == 0);
        Ok(names
            .filter(|name| Self::has_attributes_like(name))
            .map(<[u8]>::to_vec)
            .collect())
    }

    /// Whether extended attributes of this name are shown: what users set, and the access control lists.
    pub(crate) fn has_attributes_like(name: &[u8]) -> bool {
        name.starts_with(b"user.")
            || name == b"system.posix_acl_access"
            || name == b"system.posix_acl_default"
    }

    /// A node's file, as a descriptor that says which file is meant and nothing more, or as what is `open` of it.
    fn descriptor_of(&self, node: NodeId, open: Option<&Content>) -> Result<(Known, OwnedFd)> {
        let known = self.known(node)?;
        let path = || self.path_of(&known);
        if let Some(file) = open.and_then(Content::file) {
            let held = rustix::io::fcntl_dupfd_cloexec(file, 0);
            let held = held.context_with("cannot examine", path)?;
            return Ok((known, held));
        }
        let directory = match self.recent.of(known.parent) {
            Some(directory) if !known.name.is_empty() => directory,
            _ => self.view_at(&known.location)?.directory,
        };
        let held = if known.name.is_empty() {
            self.source.hold_directory(&directory)
        } else {
            self.source.hold(&directory, &known.name)
        };
        let held = held.map_err(|error| cannot_enter(error, &path()))?;
        let stat = stat_descriptor(&held).context_with("cannot examine", path)?;
        if !is_file_of(node, &known, &Identity::from(&stat)) {
            return Err(Error::from(ErrorKind::Changed).in_file(&path()));
        }
        Ok((known, held))
    }
}

/// The path that leads to an open descriptor's file. Extended attributes can be read through it even where the
/// descriptor only stands for its file, which may be one that cannot be opened.
fn by_descriptor(held: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", held.as_raw_fd())
}
