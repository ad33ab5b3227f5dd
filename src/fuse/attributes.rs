//! Extended attributes: the source's, those a mount adds to packed files, and the one its root answers statistics by.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::filesystem::WarpFilesystem;
use crate::error::{Error, Result};
use crate::format::FixedHeader;
use crate::reader::Reader;
use crate::tree::NodeId;

/// What the names of all of them begin with.
const PREFIX: &str = "user.warpfs.";
/// The root's attribute whose value is the mount's statistics as JSON. It is not listed, so that nothing copies it.
pub(super) const STATS: &str = "user.warpfs.stats";

impl WarpFilesystem {
    /// The value of an extended attribute; `None` if there is none of that name.
    pub(super) fn attribute(&self, node: NodeId, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if node == NodeId::ROOT && name == STATS {
            return serde_json::to_vec(&self.stats())
                .map(Some)
                .map_err(|error| Error::io("cannot write down the statistics", error.into()));
        }
        // Asked for others, such as the access lists that every listing looks for, no file is opened.
        if is_ours(name.as_bytes()) {
            let shown = self.shown(node)?;
            let asked = shown.into_iter().find(|(shown, _)| *shown == name);
            return Ok(asked.map(|(_, value)| value.into_bytes()));
        }
        self.tree.extended_attribute(node, name.as_bytes())
    }

    /// The names of a node's extended attributes, each with a zero byte behind it.
    pub(super) fn attribute_names(&self, node: NodeId) -> Result<Vec<u8>> {
        let shown = self.shown(node)?;
        let mut names = Vec::new();
        for name in self.tree.extended_attribute_names(node)? {
            if !is_ours(&name) {
                names.extend(name);
                names.push(0);
            }
        }
        for (name, _) in shown {
            names.extend(name.as_bytes());
            names.push(0);
        }
        Ok(names)
    }

    fn shown(&self, node: NodeId) -> Result<Vec<(&'static str, String)>> {
        let Some(header) = self.tree.fixed_header(node)? else {
            return Ok(Vec::new());
        };
        // A file too damaged to open has a header all the same.
        let opened = self.tree.open_file(node);
        let reader = opened.and_then(|opened| self.open_reader(&opened));
        let reader = reader.ok().flatten();
        Ok(shown_attributes(&header, reader.as_ref()))
    }
}

/// Whether it is the mount alone that gives an attribute of this name. A copy of a mount's file, made with its attributes, brings
/// some along that are true no more, and a plain one has none.
fn is_ours(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// What `getfattr -d` shows of a packed file. What only an opened file tells is left out for one that cannot be opened.
fn shown_attributes(header: &FixedHeader, reader: Option<&Reader>) -> Vec<(&'static str, String)> {
    let mut shown = vec![
        ("user.warpfs.version", header.version.number().to_string()),
        ("user.warpfs.codec", header.codec.to_string()),
        ("user.warpfs.chunks", header.chunk_count.to_string()),
    ];
    if let Some(reader) = reader {
        let packed = reader.file_len().max(1) as f64;
        shown.push((
            "user.warpfs.ratio",
            format!("{:.2}", header.original_size as f64 / packed),
        ));
        let checksum = reader.checksum().map_or("none", |checksum| checksum.name());
        shown.push(("user.warpfs.checksum", checksum.to_owned()));
        shown.push(("user.warpfs.verified", reader.verified_by().to_owned()));
    }
    shown
}
