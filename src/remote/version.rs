//! What a store says of its objects: which state of one is meant, and what there is.

use std::time::SystemTime;

use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectMeta};

use super::fault::{Fault, FaultKind};

/// Which state of an object is meant: equal ones have the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Version {
    /// The object's length, in bytes.
    pub(crate) size: u64,
    /// Its ETag, as the server gives it.
    pub(crate) etag: Option<String>,
    /// When it was last modified.
    pub(crate) modified: SystemTime,
}

impl Version {
    /// What the library says of an object.
    ///
    /// # Errors
    /// The server has said nothing by which one that takes its place could be told from it.
    pub(super) fn of(meta: ObjectMeta) -> Result<Self, Fault> {
        let version = Self::listed(meta);
        // It is what the library takes for the time that it was not told.
        if version.etag.is_none() && version.modified == SystemTime::UNIX_EPOCH {
            let what = "the server says nothing by which a replaced file is told: neither ETag nor Last-Modified";
            return Err(Fault::new(FaultKind::Unable, what));
        }
        Ok(version)
    }

    /// What a listing says of an object: there is always a time.
    pub(super) fn listed(meta: ObjectMeta) -> Self {
        // Some stores leave the quotes out of their listings.
        let quoted = |etag: String| match etag.ends_with('"') {
            true => etag,
            false => format!("\"{etag}\""),
        };
        Self {
            size: meta.size,
            etag: meta.e_tag.map(quoted),
            modified: meta.last_modified.into(),
        }
    }

    /// Whether what was answered is what is meant. Where there are ETags, they decide: times are given in seconds here and more
    /// finely there.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.etag, &other.etag) {
            (Some(ours), Some(theirs)) => ours == theirs && self.size == other.size,
            (None, None) => self == other,
            _ => false,
        }
    }

    /// Asks for this version and no other.
    pub(super) fn require(&self, options: &mut GetOptions) {
        match &self.etag {
            // A weak one never matches; what comes is looked at all the same.
            Some(weak) if weak.starts_with("W/") => {}
            Some(etag) => options.if_match = Some(etag.clone()),
            None => options.if_unmodified_since = Some(self.modified.into()),
        }
    }
}

/// An entry of a listing.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// Its whole name in the store.
    pub(crate) key: Key,
    /// What it was when it was listed.
    pub(crate) version: Version,
}

/// A part of a listing.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// The objects whose names go on behind the prefix without another slash.
    pub(crate) objects: Vec<Listed>,
    /// The prefixes directly beneath the one that was listed, without their last slash.
    pub(crate) prefixes: Vec<Key>,
    /// How many names are left out because no file can have them.
    pub(crate) left_out: u64,
    /// What to ask for the next page with; `None` behind the last.
    pub(crate) next: Option<String>,
}
