//! Random access to `.warp` files, compressed containers of independent chunks, and a FUSE file system that shows them
//! as the plain files they hold.
//!
//! The rooms, from bytes to people: [`mod@format`] knows the container's bytes, `codec` the four codecs, `digest` the
//! checksums; `archive` is an open file and decodes chunk *i*; `cache` keeps decoded chunks under the budget of
//! `memory`; `prefetch` names the chunks that come next; [`Reader`] puts them together and reads at any offset. `tree`
//! is a directory of such files as a mount shows it, [`fuse`] the mount.
//!
//! Beside them the jobs on whole files, in constant memory and parallel: [`pack`], [`unpack`], [`verify`], [`info`], and
//! [`recursive`] for trees, [`mod@estimate`] for choosing how to pack. `ordered` is their engine, [`job`] what they are given to report to and be stopped by.

mod archive;
mod cache;
mod codec;
mod decoding;
mod digest;
pub mod error;
pub mod estimate;
pub mod format;
pub mod fuse;
#[cfg(fuzzing)]
pub mod fuzzing;
mod identity;
pub mod info;
pub mod job;
mod machine;
mod memory;
mod mount_table;
mod occasionally;
mod ordered;
mod output;
pub mod pack;
mod place;
mod prefetch;
mod reader;
mod record;
pub mod recursive;
pub mod stats;
mod sync;
mod tree;
pub mod unpack;
pub mod verify;
mod walk;
mod zeros;

pub use archive::Verify;
pub use error::{Error, ErrorKind, Result};
pub use reader::{Engine, EngineOptions, Reader};
