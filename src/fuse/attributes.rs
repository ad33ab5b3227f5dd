//! The extended attributes a mount adds to packed files, and the one its root answers statistics by.

use crate::format::FixedHeader;
use crate::reader::Reader;

/// The root's attribute whose value is the mount's statistics as JSON. It is not listed, so that nothing copies it.
pub(super) const STATS: &str = "user.warpfs.stats";

/// What the names of all of them begin with.
pub(super) const PREFIX: &[u8] = b"user.warpfs.";

/// What `getfattr -d` shows of a packed file. What only an opened file tells is left out for one that cannot be opened.
pub(super) fn shown_attributes(
    header: &FixedHeader,
    reader: Option<&Reader>,
) -> Vec<(&'static str, String)> {
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
    }
    shown
}
