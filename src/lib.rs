//! Random access to `.warp` files, compressed containers of independent chunks, and a FUSE file system that shows them
//! as the plain files they hold.
//!
//! The rooms, from bytes to people: [`mod@format`] knows the container's bytes, `codec` the four codecs, `digest` the
//! checksums; `archive` is an open file and decodes chunk *i*; `cache` keeps decoded chunks under the budget of
//! `memory`; `prefetch` names the chunks that come next; [`Reader`] puts them together and reads at any offset. `tree`
//! is a directory of such files as a mount shows it, [`fuse`] the mount.
//!
//! ```
//! use std::io::{Read, Seek, SeekFrom};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut log = warpfs::Reader::open("tests/data/v2-zstd-blake3.warp")?;
//! log.seek(SeekFrom::End(-20))?;
//! let mut last = Vec::new();
//! log.read_to_end(&mut last)?;
//! assert_eq!(last.len(), 20);
//! # Ok(())
//! # }
//! ```
//!
//! Beside them the jobs on whole files, in constant memory and parallel: [`pack`], [`unpack`], [`verify`], [`info`], and
//! [`recursive`] for trees; [`mod@estimate`] is for choosing how to pack. `ordered` is their engine, [`job`] what they are given
//! to report to and be stopped by.
//!
//! # Features
//! `cli` (default) is the command and brings `fuse`, the mount, which brings `files`: jobs that read and write files and trees
//! with all that belongs to them on Linux. `remote` (default) is for files in object stores and behind web servers. Without any of them (`default-features = false`) the library reads, verifies,
//! describes, packs from a reader to a writer, and needs no more than Rust's standard library of the system it runs on.
//!
//! # Versions
//! The API follows semantic versioning; before 1.0, minor versions may break it, and CHANGELOG.md says so. The oldest Rust it is
//! built and tested with is `rust-version` in Cargo.toml; a newer one is required by minor versions only.

#![cfg_attr(
    not(feature = "remote"),
    allow(
        dead_code,
        reason = "what only mounts, files and the network ask of the rooms below"
    )
)]

#[cfg(all(feature = "files", not(target_os = "linux")))]
compile_error!(
    "files and mounts need Linux; elsewhere, build the library with `default-features = false`"
);

mod archive;
mod cache;
mod codec;
mod decoding;
mod digest;
#[cfg(feature = "remote")]
mod disk_cache;
pub mod error;
#[cfg(feature = "files")]
pub mod estimate;
pub mod format;
#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(fuzzing)]
pub mod fuzzing;
mod identity;
mod in_turn;
#[cfg(feature = "files")]
pub mod index;
pub mod info;
pub mod job;
#[cfg(test)]
#[path = "../tests/common/left_out.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the tests of some features alone leave anything out"
)]
mod left_out;
mod machine;
mod memory;
#[cfg(feature = "fuse")]
mod mount_table;
mod occasionally;
mod ordered;
#[cfg(feature = "files")]
mod output;
pub mod pack;
#[cfg(feature = "files")]
mod place;
mod prefetch;
mod reader;
mod record;
#[cfg(feature = "files")]
pub mod recursive;
#[cfg(feature = "remote")]
pub mod remote;
pub mod stats;
mod sync;
#[cfg(feature = "fuse")]
mod tree;
pub mod unpack;
pub mod verify;
#[cfg(feature = "files")]
mod walk;
mod zeros;

pub use archive::Verify;
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "remote")]
pub use reader::DiskCacheOptions;
pub use reader::{Engine, EngineOptions, Reader};
