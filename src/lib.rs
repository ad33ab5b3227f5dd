//! Random access to `.warp` files, compressed containers of independent chunks, and a FUSE file system that shows them
//! as the plain files they hold.
//!
//! The rooms, from bytes to people: [`format`] knows the container's bytes, `codec` the four codecs, `digest` the
//! checksums; `archive` is an open file and decodes chunk *i*.

mod cache;
mod codec;
mod digest;
pub mod error;
pub mod format;
mod memory;
pub mod stats;

pub use error::{Error, ErrorKind, Result};
