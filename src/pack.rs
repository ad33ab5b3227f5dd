//! From a file to its `.warp` file: the chunks encoded in parallel, written in order, hashed on the way.
//!
//! The table of a file of known size has a known length, so payloads go straight to their place behind it and the table
//! is written last. A stream's payloads are spooled, compressed, to an unnamed file. Either way no more than a few chunks
//! per thread are in memory. The same input, codec, level, chunk size and Zstandard threads give the same bytes whatever
//! the number of threads.

mod choice;
mod chunks;
#[cfg(feature = "files")]
mod files;
#[cfg(feature = "files")]
mod input;
mod record;
mod spool;
#[cfg(feature = "remote")]
mod store;
mod stream;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

#[cfg(feature = "files")]
pub(crate) use choice::{ARCHIVE, Purpose, RANDOM, SAMPLE_LEN, smaller_of_two, usual_chunk_size};
pub use choice::{
    DEFAULT_BROTLI_QUALITY, DEFAULT_CHUNK_SIZE, DEFAULT_ZSTD_LEVEL, Level, MAX_CHUNK_SIZE,
    MIN_CHUNK_SIZE,
};
#[cfg(feature = "files")]
pub(crate) use files::{is_packed, open_entry, pack_opened, packed_description, prove_packed};
#[cfg(feature = "files")]
pub use files::{pack_file, pack_standard_input};
#[cfg(feature = "files")]
pub(crate) use input::{SizedInput, check_unchanged};

use self::spool::Unnamed;
use crate::error::{IoContext, Result};
use crate::format::{Checksum, Codec, Encodings};
use crate::job::Control;

/// How to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackOptions {
    /// What chooses where nothing is asked for.
    pub level: Level,
    /// The codec, if not the level's.
    pub codec: Option<Codec>,
    /// The chunk size in bytes, if not the level's: [`MIN_CHUNK_SIZE`] to [`MAX_CHUNK_SIZE`].
    pub chunk_size: Option<u64>,
    /// How many chunks to work on at once; as many as there are cores by default.
    pub threads: Option<usize>,
    /// Zstandard's level, from -7 to 22.
    pub zstd_level: i32,
    /// Zstandard's own threads within a chunk; none by default, but for [`Level::Throughput`].
    pub zstd_threads: Option<u32>,
    /// Brotli's quality, from 0 to 11.
    pub brotli_quality: u32,
    /// The checksum of the whole file, if any.
    pub checksum: Option<Checksum>,
    /// Replace files that exist, pack what is packed already, and remove inputs that have further names.
    pub force: bool,
    /// Remove the input once the output has been read back and verified.
    pub remove: bool,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            level: Level::Auto,
            codec: None,
            chunk_size: None,
            threads: None,
            zstd_level: DEFAULT_ZSTD_LEVEL,
            zstd_threads: None,
            brotli_quality: DEFAULT_BROTLI_QUALITY,
            checksum: Some(Checksum::Blake3),
            force: false,
            remove: false,
        }
    }
}

/// What a job made of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// How its chunks are encoded.
    pub encodings: Encodings,
    /// How many chunks it has.
    pub chunks: u32,
    /// The original's size, in bytes.
    pub original_size: u64,
    /// The `.warp` file's size, in bytes.
    pub packed_size: u64,
    /// How many bytes of the original are damaged and could not be saved. Only a job that keeps going ends with more than 0.
    pub lost: u64,
}

/// The name a packed file has by default: its own and `.warp`.
pub fn packed_name(input: &Path) -> PathBuf {
    let mut name = input.as_os_str().to_owned();
    name.push(".warp");
    PathBuf::from(name)
}

/// Packs all that `input` has, from wherever it comes to wherever it goes, in order; messages call them input and output.
/// What is packed waits in an unnamed temporary file until all of it is known, because the table of sizes goes in front.
/// [`PackOptions::force`] and [`PackOptions::remove`] mean nothing here.
///
/// ```
/// use warpfs::job::Control;
/// use warpfs::pack::{PackOptions, pack_to};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let original = b"to be or not to be".repeat(10_000);
/// let mut packed = Vec::new();
/// let summary = pack_to(&mut original.as_slice(), &mut packed, &PackOptions::default(), Control::default())?;
/// assert_eq!(summary.original_size, 180_000);
/// assert_eq!(summary.packed_size, packed.len() as u64);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The input cannot be read, or the output or the temporary file not written. What was written to `output` by then has been
/// written.
pub fn pack_to(
    input: &mut (dyn Read + Send),
    output: &mut (dyn Write + Send),
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let path = Path::new("input");
    let aside = Unnamed(Path::new("output"));
    control.observer.begin(path, None);
    let packed = stream::pack_stream(input, None, path, &mut *output, &aside, options, control);
    control.observer.end(path);
    let packed = packed?;
    output.flush().context("cannot write", aside.0)?;
    Ok(packed.summary)
}
