//! The container's bytes: header, chunk table, footer and the record behind it, as types.
//!
//! Everything here is parsing and writing of byte slices. Nothing is allocated before [`FixedHeader::check_room`] has
//! compared what the header announces with the length of the file, and every sum is checked. All integers are
//! little-endian. The layout is set down in `docs/FORMAT.md`.
//!
//! Files that begin with "WARP" have other layouts, which are only read: `release`.

mod encoding;
mod record;
mod release;
mod sums;
mod table;

use std::fmt;

pub use encoding::{Encoding, Encodings};
pub use record::RECORD_MAGIC;
#[cfg(feature = "files")]
pub(crate) use record::VALUE_LEN;
pub(crate) use record::{
    DIGEST_LEN, Fingerprint, GROUP_LEN, LONGEST_PAGE, Layout, MOST_CHUNKS, Page, PlacedLeaf,
    SMALLEST_CHUNK, TAIL_LEN, Tail, directory_len, encode_directory, encode_page,
};
pub use release::{
    CHUNK_PROBE_LEN, ChunkHeader, RELEASE_HEADER_LEN, RELEASE_MAGIC, Release, ReleaseHeader,
};
pub(crate) use sums::Sums;
pub use table::{ChunkTable, PayloadTable, ReleaseTable};

use crate::error::{Error, ErrorKind, Part, Result};

/// The first four bytes of a file, "PRAW": the number 0x57415250 in little-endian order.
pub const MAGIC: [u8; 4] = 0x5741_5250_u32.to_le_bytes();
/// The length of [`FixedHeader`], in bytes.
pub const FIXED_HEADER_LEN: usize = 18;
/// The first four bytes of a footer, "WFT1".
pub const FOOTER_MAGIC: [u8; 4] = 0x3154_4657_u32.to_le_bytes();
/// The length of a footer before its digest, in bytes.
pub const FOOTER_HEAD_LEN: usize = 7;
/// The length of the longest footer, in bytes.
pub const FOOTER_MAX_LEN: usize = FOOTER_HEAD_LEN + 32;

/// How a file's chunks are compressed; in versions 1 and 2, one codec serves a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// LZ4 frames.
    Lz4,
    /// Zstandard frames.
    Zstd,
    /// Raw Snappy blocks.
    Snappy,
    /// Raw Brotli streams.
    Brotli,
}

impl Codec {
    /// Every codec, in the order of their numbers.
    pub const ALL: [Codec; 4] = [Codec::Lz4, Codec::Zstd, Codec::Snappy, Codec::Brotli];

    /// The codec of a number in a header.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownCodec`] for a number that is none.
    pub fn from_id(id: u8) -> Result<Self> {
        match id {
            0 => Ok(Codec::Lz4),
            1 => Ok(Codec::Zstd),
            2 => Ok(Codec::Snappy),
            3 => Ok(Codec::Brotli),
            _ => Err(ErrorKind::UnknownCodec(id).into()),
        }
    }

    /// The number that stands for it in a header.
    pub fn id(self) -> u8 {
        match self {
            Codec::Lz4 => 0,
            Codec::Zstd => 1,
            Codec::Snappy => 2,
            Codec::Brotli => 3,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
            Codec::Snappy => "snappy",
            Codec::Brotli => "brotli",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The algorithm of a whole-file checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// BLAKE3 with 32 bytes.
    Blake3,
    /// XXH64 with seed 0, stored big-endian.
    Xxh64,
    /// BLAKE2b parametrised for 32 bytes.
    Blake2b,
}

impl Checksum {
    /// Every checksum, in the order of their numbers.
    pub const ALL: [Checksum; 3] = [Checksum::Blake3, Checksum::Xxh64, Checksum::Blake2b];

    /// The checksum of a number in a footer.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownChecksum`] for a number that is none.
    pub fn from_id(id: u8) -> Result<Self> {
        match id {
            1 => Ok(Checksum::Blake3),
            2 => Ok(Checksum::Xxh64),
            3 => Ok(Checksum::Blake2b),
            _ => Err(ErrorKind::UnknownChecksum(id).into()),
        }
    }

    /// The number that stands for it in a footer.
    pub fn id(self) -> u8 {
        match self {
            Checksum::Blake3 => 1,
            Checksum::Xxh64 => 2,
            Checksum::Blake2b => 3,
        }
    }

    /// The length of its digest, in bytes.
    pub fn digest_len(self) -> usize {
        match self {
            Checksum::Blake3 | Checksum::Blake2b => 32,
            Checksum::Xxh64 => 8,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Checksum::Blake3 => "blake3",
            Checksum::Xxh64 => "xxh64",
            Checksum::Blake2b => "blake2b",
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The container's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Compressed sizes only.
    V1,
    /// Compressed and original sizes; what writers write.
    V2,
}

impl Version {
    /// The number that stands for it in a header.
    pub fn number(self) -> u8 {
        match self {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }

    /// How many bytes of the table describe one chunk.
    pub(crate) fn table_bytes_per_chunk(self) -> u64 {
        match self {
            Version::V1 => 8,
            Version::V2 => 16,
        }
    }
}

/// What kind of container a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Container {
    /// One with a table, which begins with "PRAW".
    Table(Version),
    /// One that begins with "WARP", in the layout of some releases.
    Release(Release),
}

/// "1", "2", or the first release that wrote the layout, as in "0.7.1".
impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Container::Table(Version::V1) => f.pad("1"),
            Container::Table(Version::V2) => f.pad("2"),
            Container::Release(release) => release.fmt(f),
        }
    }
}

/// What a file is as a whole, whatever its layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// The kind of container.
    pub container: Container,
    /// How its chunks are encoded.
    pub encodings: Encodings,
    /// The original file's size, in bytes.
    pub original_size: u64,
    /// How many chunks there are.
    pub chunk_count: u32,
}

impl From<&FixedHeader> for Description {
    fn from(header: &FixedHeader) -> Self {
        Self {
            container: Container::Table(header.version),
            encodings: header.codec.into(),
            original_size: header.original_size,
            chunk_count: header.chunk_count,
        }
    }
}

/// The 18 bytes every file of version 1 and 2 begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedHeader {
    /// The container's version.
    pub version: Version,
    /// The codec of every chunk.
    pub codec: Codec,
    /// The original file's size, in bytes.
    pub original_size: u64,
    /// How many chunks there are.
    pub chunk_count: u32,
}

impl FixedHeader {
    /// Reads the header from a file's first bytes; more than [`FIXED_HEADER_LEN`] of them do no harm.
    ///
    /// # Errors
    /// The magic, the version or the codec is not one of ours, or there are too few bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields(bytes);
        let magic: [u8; 4] = fields.take(Part::FixedHeader)?;
        if magic != MAGIC {
            return Err(ErrorKind::NotWarp.into());
        }
        let [version, codec] = fields.take(Part::FixedHeader)?;
        let original_size = u64::from_le_bytes(fields.take(Part::FixedHeader)?);
        let chunk_count = u32::from_le_bytes(fields.take(Part::FixedHeader)?);
        let version = match version {
            1 => Version::V1,
            2 => Version::V2,
            other => return Err(ErrorKind::UnsupportedVersion(other).into()),
        };
        Ok(Self {
            version,
            codec: Codec::from_id(codec)?,
            original_size,
            chunk_count,
        })
    }

    /// The header as it stands in a file.
    pub fn to_bytes(&self) -> [u8; FIXED_HEADER_LEN] {
        let mut bytes = [0; FIXED_HEADER_LEN];
        let fields = MAGIC
            .into_iter()
            .chain([self.version.number(), self.codec.id()])
            .chain(self.original_size.to_le_bytes())
            .chain(self.chunk_count.to_le_bytes());
        for (place, byte) in bytes.iter_mut().zip(fields) {
            *place = byte;
        }
        bytes
    }

    /// The length of the chunk table, in bytes: at most 64 GiB, whatever the header says.
    pub fn table_len(&self) -> u64 {
        u64::from(self.chunk_count) * self.version.table_bytes_per_chunk()
    }

    /// Where the payloads begin, in bytes from the start of the file.
    pub fn payload_start(&self) -> u64 {
        FIXED_HEADER_LEN as u64 + self.table_len()
    }

    /// Checks that a file of `file_len` bytes has room for the announced table. With this, a header alone decides
    /// whether a file is shown as its original.
    ///
    /// # Errors
    /// [`ErrorKind::ChunkCount`] if the count cannot be true, [`ErrorKind::EndsInside`] if the file was cut inside its
    /// table.
    pub fn check_room(&self, file_len: u64) -> Result<()> {
        if self.payload_start() <= file_len {
            return Ok(());
        }
        // A table cut short and a count that is a lie look alike. A chunk of a real file takes a payload byte at the
        // least, and few files are cut by more than the half: so a count that would need a table of more than twice
        // the file's length is called what it probably is.
        if self.table_len() / 2 > file_len {
            return Err(ErrorKind::ChunkCount {
                count: self.chunk_count,
                file_len,
            }
            .into());
        }
        Err(ErrorKind::EndsInside(Part::ChunkTable).into())
    }
}

/// The checksum behind the payloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The algorithm.
    pub checksum: Checksum,
    /// The digest of the original file; as long as the algorithm's digests are.
    pub digest: Vec<u8>,
}

impl Footer {
    /// Reads the footer from the bytes behind the last payload: all of them, or at least [`FOOTER_MAX_LEN`].
    /// `None` if they are no footer: what stands there then is somebody else's, and ignored.
    ///
    /// # Errors
    /// The footer is cut short, names no known algorithm, or its digest has another length than the algorithm's.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let mut fields = Fields(bytes);
        if fields.take(Part::Footer) != Ok(FOOTER_MAGIC) {
            return Ok(None);
        }
        let [id] = fields.take(Part::Footer)?;
        let length = u16::from_le_bytes(fields.take(Part::Footer)?);
        let checksum = Checksum::from_id(id)?;
        if usize::from(length) != checksum.digest_len() {
            return Err(ErrorKind::DigestLength { checksum, length }.into());
        }
        let digest = fields
            .0
            .get(..usize::from(length))
            .ok_or(ErrorKind::EndsInside(Part::Footer))?;
        Ok(Some(Self {
            checksum,
            digest: digest.to_vec(),
        }))
    }

    /// The footer as it stands in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = FOOTER_MAGIC.to_vec();
        bytes.push(self.checksum.id());
        bytes.extend((self.checksum.digest_len() as u16).to_le_bytes());
        bytes.extend(&self.digest);
        bytes
    }
}

/// A cursor over the fields of a structure.
struct Fields<'a>(&'a [u8]);

/// The structure ended before the field did.
#[derive(Debug, PartialEq, Eq)]
struct Ended(Part);

impl From<Ended> for Error {
    fn from(Ended(part): Ended) -> Self {
        ErrorKind::EndsInside(part).into()
    }
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self, part: Part) -> std::result::Result<[u8; N], Ended> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Ended(part))?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(chunk_count: u32, original_size: u64) -> FixedHeader {
        FixedHeader {
            version: Version::V2,
            codec: Codec::Zstd,
            original_size,
            chunk_count,
        }
    }

    /// The table that stands in `bytes`.
    fn parse(header: &FixedHeader, bytes: &[u8]) -> Result<ChunkTable> {
        let mut rest = bytes;
        let mut fill = |block: &mut [u8]| {
            let (taken, behind) = rest
                .split_at_checked(block.len())
                .ok_or(ErrorKind::EndsInside(Part::ChunkTable))?;
            block.copy_from_slice(taken);
            rest = behind;
            Ok(())
        };
        let payloads = PayloadTable::read(header, &mut fill)?;
        ChunkTable::read(header, payloads, &mut fill)
    }

    #[test]
    fn an_empty_file_is_a_bare_header() {
        let empty = FixedHeader {
            codec: Codec::Snappy,
            ..header(0, 0)
        };
        let vector = include_bytes!("../tests/data/v2-empty.warp");
        assert_eq!(empty.to_bytes(), *vector);
        assert_eq!(FixedHeader::parse(vector).unwrap(), empty);
        let table = parse(&empty, &[]).unwrap();
        assert_eq!(table.chunks_holding(&(0..1)), 0..0);
        assert_eq!(table.payload_end(), 18);
    }

    #[test]
    fn header_and_footer_of_a_foreign_file_are_written_back_byte_by_byte() {
        let vector = include_bytes!("../tests/data/v2-zstd-blake3.warp");
        let header = FixedHeader::parse(vector).unwrap();
        let table_bytes = &vector[FIXED_HEADER_LEN..header.payload_start() as usize];
        let table = parse(&header, table_bytes).unwrap();
        assert_eq!(header.to_bytes(), vector[..FIXED_HEADER_LEN]);
        assert_eq!(table.len(), header.chunk_count);
        let footer_bytes = &vector[table.payload_end() as usize..];
        let footer = Footer::parse(footer_bytes).unwrap().unwrap();
        assert_eq!(footer.checksum, Checksum::Blake3);
        assert_eq!(footer.to_bytes(), footer_bytes);
    }

    #[test]
    fn a_count_beyond_the_file_is_refused_before_a_table_is_read() {
        let lie = header(u32::MAX, 1);
        let error = lie.check_room(43731).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ChunkCount { .. }));
        let cut = header(4, 1);
        let error = cut.check_room(77).unwrap_err();
        assert_eq!(error.to_string(), "file ends inside the chunk table");
        assert!(cut.check_room(82).is_ok());
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let sizes = [1_u64 << 63, 1 << 63];
        let error = ChunkTable::new(18, sizes.into_iter(), [1, 1].into_iter()).unwrap_err();
        assert!(matches!(
            error.kind(),
            ErrorKind::SizesOverflow { chunk: 1, .. }
        ));
    }

    #[test]
    fn a_payload_of_no_bytes_is_refused_before_the_rest_of_the_table_is_read() {
        // What a table in a hole of a sparse file looks like.
        let mut blocks = 0;
        let error = PayloadTable::read(&header(1 << 26, 1), |_| {
            blocks += 1;
            Ok(())
        });
        let error = error.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::EmptyPayload { chunk: 0 }));
        assert_eq!(blocks, 1);
    }

    #[test]
    fn what_is_no_footer_is_ignored_and_half_a_footer_refused() {
        assert_eq!(Footer::parse(b"").unwrap(), None);
        assert_eq!(Footer::parse(b"WFT").unwrap(), None);
        assert_eq!(Footer::parse(b"something else").unwrap(), None);
        assert!(Footer::parse(b"WFT1").is_err());
        assert!(Footer::parse(b"WFT1\x02\x08\x00abc").is_err());
        assert!(Footer::parse(b"WFT1\x02\x04\x00abcd").is_err());
        assert!(
            Footer::parse(b"WFT1\x02\x08\x00abcdefgh, and a record")
                .unwrap()
                .is_some()
        );
    }

    proptest! {
        #[test]
        fn chunks_holding_agrees_with_a_walk(
            sizes in proptest::collection::vec(0_u64..5, 0..12),
            start in 0_u64..40,
            len in 0_u64..20,
        ) {
            let table = ChunkTable::new(18, sizes.iter().map(|_| 1), sizes.iter().copied()).unwrap();
            let range = start..start + len;
            let held = table.chunks_holding(&range);
            for chunk in 0..table.len() {
                let bytes = table.original_range(chunk).unwrap();
                let overlaps = bytes.start.max(range.start) < bytes.end.min(range.end);
                // Empty chunks may be named or not; others exactly when they overlap.
                if !bytes.is_empty() {
                    prop_assert_eq!(held.contains(&chunk), overlaps, "chunk {}", chunk);
                }
            }
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Footer::parse(&bytes);
            if let Ok(header) = FixedHeader::parse(&bytes)
                && header.check_room(bytes.len() as u64).is_ok()
            {
                let _ = parse(&header, &bytes[FIXED_HEADER_LEN..]);
            }
        }
    }
}
