//! Where decoded chunks go.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use crate::digest::Content;
use crate::error::Result;

/// Where the decoded bytes go.
pub(crate) enum Sink<'a> {
    /// They are only checked.
    Nowhere,
    /// Each chunk to its place, from an offset of 0 on, in any order and by whoever decoded it.
    Placed(&'a dyn Placed),
    /// Out in order.
    Stream(&'a mut (dyn Write + Send), &'a Path),
}

/// Takes decoded bytes at their places, from many threads.
pub(crate) trait Placed: Sync {
    /// Takes a part of a chunk that belongs at `offset`.
    ///
    /// # Errors
    /// It is not taken.
    fn place(&self, content: Content<'_>, part: Range<u64>, offset: u64) -> Result<()>;

    /// Notes that all in front of `end` has been taken; called by one thread at a time, with ever larger ends.
    fn placed_up_to(&self, end: u64) {
        let _ = end;
    }
}
