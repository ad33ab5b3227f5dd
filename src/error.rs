//! The library's one error type.
//!
//! An [`Error`] says what went wrong ([`ErrorKind`]) and where: which file, which chunk, which offset of the original
//! bytes. The room that notices a fault knows *what*; the rooms above it add *where* on the way up
//! ([`Error::in_file`], [`Error::in_chunk`]). Errors are cheap to clone, because everyone who waits for one decode gets
//! the same one. What a kind means to the kernel (its errno) is decided at the FUSE edge, nowhere else.

use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::{Checksum, Encoding};

/// What the library's fallible functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault, and the file, chunk and offset it was met at, as far as they are known.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    path: Option<Arc<Path>>,
    chunk: Option<u32>,
    offset: Option<u64>,
}

/// What went wrong.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The first four bytes are not the container's.
    #[error("not a .warp file: wrong magic")]
    NotWarp,
    /// A version this library does not know.
    #[error("unsupported version {0}")]
    UnsupportedVersion(u8),
    /// A file like those of later releases of the Python package, of a layout this library does not know.
    #[error("a .warp file of an unknown release (starts with WARP, version byte {version}{})", then(*kind))]
    UnknownRelease {
        /// The byte behind the magic.
        version: u8,
        /// The byte behind that, where it would tell the layout.
        kind: Option<u8>,
    },
    /// A chunk's header with sizes that no such chunk has.
    #[error("a chunk of {original} bytes cannot have a payload of {packed} bytes ({encoding})")]
    ChunkSizes {
        /// How the chunk is encoded.
        encoding: Encoding,
        /// Its announced size in the original, in bytes.
        original: u32,
        /// Its payload's announced size, in bytes.
        packed: u32,
    },
    /// A codec number this library does not know.
    #[error("unknown codec id {0}")]
    UnknownCodec(u8),
    /// A checksum number this library does not know.
    #[error("unknown checksum id {0} in the footer")]
    UnknownChecksum(u8),
    /// The footer's digest is not as long as its algorithm's.
    #[error("the footer's {checksum} digest has {length} bytes, it must have {}", checksum.digest_len())]
    DigestLength {
        /// The algorithm the footer names.
        checksum: Checksum,
        /// The digest's length in the footer, in bytes.
        length: u16,
    },
    /// The file ends too early.
    #[error("file ends inside {0}")]
    EndsInside(Part),
    /// The header announces more chunks than the file has room to describe.
    #[error("chunk count {count} does not fit in a file of {file_len} bytes")]
    ChunkCount {
        /// The announced number of chunks.
        count: u32,
        /// The file's length, in bytes.
        file_len: u64,
    },
    /// The table's sizes overflow 64 bits.
    #[error(
        "chunk {chunk}'s {sizes} size runs past the file: the sizes add up to more than 64 bits hold"
    )]
    SizesOverflow {
        /// The first chunk at which the sum overflows.
        chunk: u32,
        /// Which of the table's two columns: "compressed" or "original".
        sizes: &'static str,
    },
    /// The table has a payload of no bytes, which no codec makes.
    #[error("chunk {chunk}'s compressed size is 0: there is no chunk without a payload")]
    EmptyPayload {
        /// The first such chunk.
        chunk: u32,
    },
    /// The chunks' original sizes are not the whole file's.
    #[error("chunk sizes add up to {sum}, header says {header}")]
    SizeSum {
        /// The sum of the chunks' original sizes, in bytes.
        sum: u64,
        /// The original size the header gives, in bytes.
        header: u64,
    },
    /// A payload that its codec refuses.
    #[error("damaged {codec} data: {detail}")]
    Decode {
        /// The codec that refused it.
        codec: Encoding,
        /// The codec's own words.
        detail: String,
    },
    /// A payload that decodes to another size than announced.
    #[error("damaged {codec} data: {announced} bytes announced, it decodes to {found}")]
    DecodedSize {
        /// The codec.
        codec: Encoding,
        /// The size the table announces, in bytes.
        announced: u64,
        /// What was found: a size in bytes, or "more".
        found: String,
    },
    /// A chunk that was to be decoded a piece at a time, and whose payload cannot be: decoded whole it may be sound.
    #[error("this {codec} chunk can only be decoded whole")]
    Unstreamable {
        /// The codec.
        codec: Encoding,
    },
    /// The whole file's checksum is not the stored one.
    #[error("{checksum} checksum mismatch: stored {stored}, computed {computed}")]
    ChecksumMismatch {
        /// The algorithm.
        checksum: Checksum,
        /// The footer's digest, in hexadecimal.
        stored: String,
        /// The digest of the decoded bytes, in hexadecimal.
        computed: String,
    },
    /// Decoded bytes that are not those that were packed.
    #[error(
        "damaged data: bytes {start}..{end} have another {algorithm} digest than when they were packed"
    )]
    DigestMismatch {
        /// What the digest was computed with.
        algorithm: &'static str,
        /// Where the bytes begin in the original, in bytes.
        start: u64,
        /// Where they end in the original, in bytes.
        end: u64,
    },
    /// The header, the chunk table or the footer is not what it was when the record of digests was written.
    #[error("header, chunk table or footer is damaged: the record of digests is of others")]
    DamagedBeginning,
    /// The record of digests is damaged itself. The text says where.
    #[error(
        "the record of digests is damaged ({0}): a mount with --verify off reads the file without it, and unpack proves it by its checksum"
    )]
    DamagedRecord(&'static str),
    /// The source is no longer the file that was opened.
    #[error("the file was changed while it was open; open it again")]
    Changed,
    /// An input changed while it was read as a whole.
    #[error(
        "the file changed while it was being read; nothing was kept, try again when it is at rest"
    )]
    InputChanged,
    /// A chunk, or an open file's table, needs more memory than the budget could ever give it.
    #[error(
        "this takes {needed} bytes of memory, more than the budget of {budget} has room for: mount with a larger --cache-size"
    )]
    OverBudget {
        /// What is needed, in bytes.
        needed: u64,
        /// The whole budget, in bytes.
        budget: u64,
    },
    /// Something needs more memory than the process can have; the text says what.
    #[error("{0} is more than there is memory for")]
    NoMemory(String),
    /// A mount has as many files open as its server can have.
    #[error(
        "{open} files are open, and the server may have {limit} descriptors: close some, or allow it more (ulimit -n, \
         LimitNOFILE= of a service)"
    )]
    TooManyOpen {
        /// How many files are open.
        open: u64,
        /// How many descriptors the server may have.
        limit: u64,
    },
    /// The output exists and may not be replaced.
    #[error("exists already; add --force to replace it")]
    Exists,
    /// The input cannot be used this way; the text says why and what to do.
    #[error("{0}")]
    Unusable(String),
    /// The job was asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// A job panicked; the panic's text is on standard error or in the log.
    #[error("the work on it stopped unexpectedly; please report this file")]
    Panicked,
    /// The system said no.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, as in "cannot read".
        action: &'static str,
        /// The system's answer.
        source: Arc<io::Error>,
    },
}

/// A part of a `.warp` file, in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The bytes every file begins with.
    FixedHeader,
    /// The chunk sizes.
    ChunkTable,
    /// What stands in front of a chunk's payload, in files that have no table.
    ChunkHeader,
    /// A chunk's compressed bytes.
    Payload,
    /// The checksum behind the payloads.
    Footer,
    /// The record of digests at the end.
    Record,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::FixedHeader => "the fixed header",
            Part::ChunkTable => "the chunk table",
            Part::ChunkHeader => "a chunk's header",
            Part::Payload => "a chunk's payload",
            Part::Footer => "the footer's digest",
            Part::Record => "the record of digests",
        })
    }
}

fn then(kind: Option<u8>) -> String {
    kind.map_or(String::new(), |kind| format!(", then {kind}"))
}

impl Error {
    /// An error with nothing known of its place yet.
    pub fn new(kind: ErrorKind) -> Self {
        Self {
            kind,
            path: None,
            chunk: None,
            offset: None,
        }
    }

    /// The system's refusal of `action`, given as in "cannot read".
    pub fn io(action: &'static str, source: io::Error) -> Self {
        Self::new(ErrorKind::Io {
            action,
            source: Arc::new(source),
        })
    }

    /// An input that cannot be used; `why` also says what to do.
    pub fn unusable(why: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unusable(why.into()))
    }

    /// Adds the file's name, unless one is there.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        if self.path.is_none() {
            self.path = Some(path.into());
        }
        self
    }

    /// Adds the chunk's number and the offset of its first original byte, unless they are there.
    #[must_use]
    pub fn in_chunk(mut self, chunk: u32, offset: u64) -> Self {
        if self.chunk.is_none() {
            self.chunk = Some(chunk);
            self.offset = Some(offset);
        }
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Whether the system, or a store, has said this.
    #[cfg(feature = "remote")]
    pub(crate) fn is_io(&self, kind: io::ErrorKind) -> bool {
        matches!(&self.kind, ErrorKind::Io { source, .. } if source.kind() == kind)
    }

    /// The file it went wrong in.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The number of the chunk it went wrong in, counted from 0.
    pub fn chunk(&self) -> Option<u32> {
        self.chunk
    }

    /// Where that chunk begins in the original file, in bytes.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Whether the file's own bytes are at fault: not a `.warp` file, damaged, or cut short.
    pub fn is_damage(&self) -> bool {
        use ErrorKind as K;
        match &self.kind {
            K::NotWarp
            | K::UnsupportedVersion(_)
            | K::UnknownRelease { .. }
            | K::ChunkSizes { .. }
            | K::UnknownCodec(_)
            | K::UnknownChecksum(_)
            | K::DigestLength { .. }
            | K::EndsInside(_)
            | K::ChunkCount { .. }
            | K::SizesOverflow { .. }
            | K::EmptyPayload { .. }
            | K::SizeSum { .. }
            | K::Decode { .. }
            | K::DecodedSize { .. }
            | K::ChecksumMismatch { .. }
            | K::DigestMismatch { .. }
            | K::DamagedBeginning
            | K::DamagedRecord(_) => true,
            K::Changed
            | K::InputChanged
            | K::OverBudget { .. }
            | K::NoMemory(_)
            | K::Unstreamable { .. }
            | K::TooManyOpen { .. }
            | K::Exists
            | K::Unusable(_)
            | K::Cancelled
            | K::Panicked
            | K::Io { .. } => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Escaping(f);
        if let Some(path) = &self.path {
            write!(line, "{}: ", path.display())?;
        }
        if let Some(chunk) = self.chunk {
            write!(line, "chunk {chunk}")?;
            if let Some(offset) = self.offset {
                write!(line, " (from byte {offset})")?;
            }
            line.write_str(": ")?;
        }
        write!(line, "{}", self.kind)
    }
}

/// Shows something on one line, whatever is in it: names may hold line feeds, and what a terminal takes for commands.
/// Control characters are shown as they are written in a program.
#[derive(Debug, Clone, Copy)]
pub struct OneLine<T>(pub T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// Passes on all but control characters.
struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(char::is_control) {
            let plain = piece.trim_end_matches(char::is_control);
            self.0.write_str(plain)?;
            for control in piece.get(plain.len()..).unwrap_or_default().chars() {
                write!(self.0, "{}", control.escape_default())?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.kind)
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

/// Turns a system call's result into ours, naming what was done and to which file.
pub(crate) trait IoContext<T> {
    /// Names the action, as in "cannot read", and the file.
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| {
            let error = error.into();
            let error = match error.kind() {
                // It is not there any more, as it was: so say stores of an object, and servers of NFS of a file.
                io::ErrorKind::StaleNetworkFileHandle => Error::new(ErrorKind::Changed),
                _ => Error::io(action, error),
            };
            error.in_file(path)
        })
    }
}

/// The path as an owned, shareable name for errors.
pub(crate) fn shared_path(path: impl Into<PathBuf>) -> Arc<Path> {
    Arc::from(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_file_chunk_and_offset_on_one_line() {
        let error = Error::new(ErrorKind::UnknownCodec(77))
            .in_chunk(3, 12288)
            .in_file(Path::new("a/b.warp"))
            .in_file(Path::new("other"));
        assert_eq!(
            error.to_string(),
            "a/b.warp: chunk 3 (from byte 12288): unknown codec id 77"
        );
        assert!(error.is_damage());
    }

    #[test]
    fn control_characters_in_a_name_do_not_reach_the_terminal() {
        let error = Error::new(ErrorKind::NotWarp).in_file(Path::new("a\nb\x1b[2Jü\t.warp"));
        assert_eq!(
            error.to_string(),
            "a\\nb\\u{1b}[2Jü\\t.warp: not a .warp file: wrong magic"
        );
    }

    #[test]
    fn the_systems_answer_stays_reachable_as_the_cause() {
        let error = Error::io("cannot read", io::Error::from_raw_os_error(5));
        assert!(std::error::Error::source(&error).is_some());
        assert!(!error.is_damage());
    }
}
