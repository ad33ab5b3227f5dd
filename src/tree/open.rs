//! Opening a tree: what is the source, where will it be mounted, and what will that cover.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::headers::Headers;
use super::names::{self, file_type};
use super::nodes::Nodes;
use super::numbers::Key;
use super::recent::Recent;
use super::single::MountedFile;
use super::source::{Covered, Source};
use super::{Kind, Tree};

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::identity::Identity;
use crate::mount_table;

impl Tree {
    /// Opens `source`, a directory or one `.warp` file, to be mounted at `mountpoint`, a directory or, for a file, a regular
    /// file. The mount must not exist yet: what it will cover is taken hold of here. At most `remembered_headers` files'
    /// fixed headers are remembered.
    ///
    /// # Errors
    /// One of the two does not exist or cannot be used for this; a source file is no `.warp` file by its header.
    pub(crate) fn open(
        source: &Path,
        mountpoint: &Path,
        remembered_headers: NonZeroUsize,
    ) -> Result<Self> {
        let (root, root_type) = examine(source, "cannot use the source")?;
        let (target, target_type) = examine(mountpoint, "cannot use the mount point")?;
        let mountpoint_names = absolute_names(&target);
        if root_type.is_dir() {
            if !target_type.is_dir() {
                let why = "the mount point is not a directory, but SOURCE is: give a directory";
                return Err(Error::unusable(why).in_file(mountpoint));
            }
            let mut covered = Vec::new();
            for place in places_of(&target)? {
                let inside = place.strip_prefix(&root).map(Path::as_os_str);
                if let Ok(inside) = inside
                    && !inside.is_empty()
                {
                    let held = Covered::directory(&root, inside.as_bytes());
                    covered.push(held.context("cannot open the mount point", &place)?);
                }
            }
            let opened = Source::open(&root, source.to_path_buf(), covered)
                .context("cannot open the source", source)?;
            return Self::new(opened, remembered_headers, mountpoint_names, None, false);
        }
        if !root_type.is_file() {
            let why = "SOURCE is neither a directory nor a regular file: give one of these";
            return Err(Error::unusable(why).in_file(source));
        }
        if !target_type.is_dir() && !target_type.is_file() {
            let why =
                "the mount point is neither a directory nor a regular file: give one of these";
            return Err(Error::unusable(why).in_file(mountpoint));
        }
        let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
            return Err(
                Error::unusable("SOURCE has no name: give a directory or a file").in_file(source),
            );
        };
        if names::stripped(name.as_bytes()).is_none() {
            let why = "SOURCE is a file whose name does not end in .warp: give a directory or a .warp file";
            return Err(Error::unusable(why).in_file(source));
        }
        let mut covered = Vec::new();
        if places_of(&target)?.contains(&root) {
            let held = Covered::file(parent, name.as_bytes());
            covered.push(held.context("cannot open the source", source)?);
        }
        let shown_parent = match source.parent() {
            Some(shown) if source.file_name() == Some(name) => shown.to_path_buf(),
            // The source was given as a link.
            _ => parent.to_path_buf(),
        };
        let opened = Source::open(parent, shown_parent, covered)
            .context("cannot open the source", source)?;
        let onto_file = target_type.is_file();
        let only = Some(name);
        Self::new(
            opened,
            remembered_headers,
            mountpoint_names,
            only,
            onto_file,
        )
    }

    fn new(
        source: Source,
        remembered_headers: NonZeroUsize,
        mountpoint: Vec<Vec<u8>>,
        only: Option<&OsStr>,
        onto_file: bool,
    ) -> Result<Self> {
        let headers = Headers::new(remembered_headers);
        let root_path = source.path(b"", b"");
        let directory = source.directory(b"").context("cannot open", &root_path)?;
        let directory_stat = directory.stat().context("cannot examine", &root_path)?;
        let mut root = Identity::from(&directory_stat);
        let mut root_name: &[u8] = b"";
        let mut mounted_file = None;
        if let Some(name) = only.map(OsStrExt::as_bytes) {
            let path = source.path(b"", name);
            let found = source
                .stat(&directory, name)
                .context("cannot examine", &path)?;
            let found = found.filter(|stat| file_type(stat) == rustix::fs::FileType::RegularFile);
            let changed = || Error::from(ErrorKind::Changed).in_file(&path);
            let found = found.ok_or_else(changed)?;
            headers.require(&source, &directory, name)?;
            if onto_file {
                root = Identity::from(&found);
                root_name = name;
                mounted_file = Some(MountedFile::new(&found));
            }
        }
        let key = Key {
            device: root.device,
            inode: root.inode,
            decoded: onto_file,
        };
        let kind = if onto_file {
            Kind::File
        } else {
            Kind::Directory
        };
        Ok(Self {
            nodes: Nodes::new(key, kind, root_name),
            headers,
            recent: Recent::new(),
            mountpoint,
            only: only.map(|name| name.as_bytes().into()),
            mounted_file,
            source,
        })
    }
}

/// The path without links, and what it leads to.
fn examine(path: &Path, action: &'static str) -> Result<(PathBuf, fs::FileType)> {
    let found = path.canonicalize().and_then(|canonical| {
        let metadata = canonical.metadata()?;
        Ok((canonical, metadata.file_type()))
    });
    found.map_err(|error: io::Error| {
        let error = match Errno::from_io_error(&error) {
            Some(Errno::NOTCONN) => Error::unusable(
                "the server of what is mounted here is gone: clean it by 'warpfs umount'",
            ),
            _ => Error::io(action, error),
        };
        error.in_file(path)
    })
}

/// Where the mount is going to be: at `target`, and wherever else that can be found.
fn places_of(target: &Path) -> Result<Vec<PathBuf>> {
    let file_at = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino())).ok();
    let wanted = file_at(target);
    let mut places = mount_table::other_places(target)?;
    // Something else may be mounted over a place, or it may not be ours to see: then it is not reached either.
    places.retain(|place| file_at(place) == wanted);
    places.push(target.to_path_buf());
    Ok(places)
}

fn absolute_names(path: &Path) -> Vec<Vec<u8>> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes().to_vec()),
        _ => None,
    });
    names.collect()
}
