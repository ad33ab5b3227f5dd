//! Random access to `.warp` files, compressed containers of independent chunks, and a FUSE file system that shows them
//! as the plain files they hold.
//!
//! The rooms, from bytes to people: [`format`] knows the container's bytes, `codec` the four codecs, `digest` the
//! checksums; `archive` is an open file and decodes chunk *i*. `tree` is a directory of such files as a mount shows it.

pub mod error;
pub mod format;
mod identity;
mod tree;

pub use error::{Error, ErrorKind, Result};
