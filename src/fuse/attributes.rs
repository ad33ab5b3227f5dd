//! Extended attributes: the source's, those a mount adds to packed files, and those its root answers statistics by.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::filesystem::WarpFilesystem;
use super::handles::Handle;
use crate::archive::{Content, Glance};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Container;
use crate::reader::Reader;
use crate::tree::NodeId;

/// What the names of all of them begin with.
const PREFIX: &str = "user.warpfs.";
/// What a mount tells of a packed file.
#[derive(Debug, Clone, Copy)]
enum Told {
    Version,
    Codec,
    Chunks,
    Ratio,
    Checksum,
    Verified,
}

/// The names of all that is told, in the order of listings.
const TOLD: [(&str, Told); 6] = [
    ("user.warpfs.version", Told::Version),
    ("user.warpfs.codec", Told::Codec),
    ("user.warpfs.chunks", Told::Chunks),
    ("user.warpfs.ratio", Told::Ratio),
    ("user.warpfs.checksum", Told::Checksum),
    ("user.warpfs.verified", Told::Verified),
];

/// The root's attribute whose value is the mount's statistics as JSON. It is not listed, so that nothing copies it.
pub(super) const STATS: &str = "user.warpfs.stats";
/// The root's attribute whose value is the busiest files as JSON. The names of files that an asker could not list himself
/// are for those who see all of them anyway: root and the user who mounted.
pub(super) const BUSIEST: &str = "user.warpfs.busiest";

impl WarpFilesystem {
    /// The value of an extended attribute, for `user`; `None` if there is none of that name.
    pub(super) fn attribute(
        &self,
        node: NodeId,
        name: &OsStr,
        user: u32,
    ) -> Result<Option<Vec<u8>>> {
        if node == NodeId::ROOT && name == STATS {
            return serde_json::to_vec(&self.observation.stats())
                .map(Some)
                .map_err(|error| Error::io("cannot write down the statistics", error.into()));
        }
        if node == NodeId::ROOT && name == BUSIEST {
            if user != 0 && user != self.owner {
                let refused = rustix::io::Errno::ACCESS.into();
                return Err(Error::io("only for root and who mounted it", refused));
            }
            return self.observation.busiest().map(Some);
        }
        // Asked for others, such as the access lists that every listing looks for, no file is opened.
        if is_ours(name.as_bytes()) {
            let asked = TOLD.iter().find(|(told, _)| *told == name);
            let Some((_, told)) = asked else {
                return Ok(None);
            };
            return Ok(self.told(node, *told)?.map(String::into_bytes));
        }
        self.of_file(node, |open| {
            let open = open.map(|(content, _)| content);
            self.tree.extended_attribute(node, name.as_bytes(), open)
        })
    }

    /// Asks for something of a file: by its path first, and if that leads to another by now, of what somebody has open of it.
    fn of_file<T>(
        &self,
        node: NodeId,
        ask: impl Fn(Option<(&Content, Option<&Reader>)>) -> Result<T>,
    ) -> Result<T> {
        match ask(None) {
            Err(error) if matches!(error.kind(), ErrorKind::Changed) => {
                match self.handles.of_node(node).as_deref() {
                    Some(Handle::File {
                        content, reader, ..
                    }) => ask(Some((content, reader.as_ref()))),
                    _ => Err(error),
                }
            }
            told => told,
        }
    }

    /// The names of a node's extended attributes, each with a zero byte behind it. `ls -l` and `cp -a` ask for them for every
    /// file, so none is opened for it.
    pub(super) fn attribute_names(&self, node: NodeId) -> Result<Vec<u8>> {
        let packed = self.of_file(node, |open| match open {
            Some((_, reader)) => Ok(reader.is_some()),
            None => Ok(self.tree.description(node)?.is_some()),
        })?;
        let of_source = self.of_file(node, |open| {
            let open = open.map(|(content, _)| content);
            self.tree.extended_attribute_names(node, open)
        })?;
        let mut names = Vec::new();
        for name in of_source {
            if !is_ours(&name) {
                names.extend(name);
                names.push(0);
            }
        }
        for (name, _) in TOLD.iter().filter(|_| packed) {
            names.extend(name.as_bytes());
            names.push(0);
        }
        Ok(names)
    }

    /// What is told of a file; `None` if it is no packed one, or too damaged to be opened where it takes that to know.
    fn told(&self, node: NodeId, told: Told) -> Result<Option<String>> {
        self.of_file(node, |open| {
            if let Some((_, reader)) = open {
                return Ok(reader.map(|reader| told_by(reader, told)));
            }
            let Some(glance) = self.tree.description(node)? else {
                return Ok(None);
            };
            if let Some(value) = told_at_a_glance(&glance, told) {
                return Ok(Some(value));
            }
            let opened = self.tree.open_file(node);
            let reader = opened.and_then(|opened| self.open_reader(&opened));
            Ok(reader.ok().flatten().map(|reader| told_by(&reader, told)))
        })
    }
}

/// Whether it is the mount alone that gives an attribute of this name. A copy of a mount's file, made with its attributes, brings
/// some along that are true no more, and a plain one has none.
fn is_ours(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// What is known without opening the file. A file without a table has neither a checksum nor digests.
fn told_at_a_glance(glance: &Glance, told: Told) -> Option<String> {
    match (told, glance.container) {
        (Told::Version, container) => Some(container.to_string()),
        (Told::Codec, _) => glance.encodings.map(|encodings| encodings.to_string()),
        (Told::Chunks, _) => glance.chunk_count.map(|count| count.to_string()),
        (Told::Ratio, _) => Some(ratio(glance.original_size, glance.packed_size)),
        (Told::Checksum, Container::Release(_)) => Some("none".to_owned()),
        (Told::Verified, Container::Release(_)) => Some("codec".to_owned()),
        (Told::Checksum | Told::Verified, Container::Table(_)) => None,
    }
}

fn told_by(reader: &Reader, told: Told) -> String {
    let described = reader.description();
    match told {
        Told::Version => described.container.to_string(),
        Told::Codec => described.encodings.to_string(),
        Told::Chunks => described.chunk_count.to_string(),
        Told::Ratio => ratio(described.original_size, reader.file_len()),
        Told::Checksum => reader
            .checksum()
            .map_or("none", |checksum| checksum.name())
            .to_owned(),
        Told::Verified => reader.verified_by().to_owned(),
    }
}

fn ratio(original: u64, packed: u64) -> String {
    format!("{:.2}", original as f64 / packed.max(1) as f64)
}
