//! The layouts that releases 0.1.2 to 0.7.5 of the Python package wrote: files that begin with "WARP".
//!
//! None of them has a table. A short header stands in front of each payload and says how long that is, so the chunks are
//! found by following these headers from one to the next; here they are bytes, the following is `archive`'s. They are only
//! read. `docs/OLDER_FORMATS.md` sets down each layout and who wrote it.

use std::fmt;

use super::{Codec, Encoding, Fields, MAGIC};
use crate::error::{ErrorKind, Part, Result};

/// The first four bytes of the files of these releases.
pub const RELEASE_MAGIC: [u8; 4] = *b"WARP";
/// The length of the longest header of a file, in bytes.
pub const RELEASE_HEADER_LEN: usize = 18;
/// The most of a file's bytes that [`ReleaseHeader::parse_chunk`] looks at: a chunk's header and the beginning of its payload.
pub const CHUNK_PROBE_LEN: usize = 9 + LZ4_FRAME_MAGIC.len();

/// What 0.7.0 has in the place of the file's codec: every chunk names its own.
const MIXED: u8 = 255;
/// The first four bytes of an LZ4 frame. A bare block cannot begin with them: it would begin with a match, and there is nothing
/// before it to match.
const LZ4_FRAME_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();

/// A layout, named by the first release that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Release {
    /// 0.1.2 to 0.1.5: big-endian, one codec for the whole file.
    V0_1_2,
    /// 0.7.0: big-endian, every chunk names its codec.
    V0_7_0,
    /// 0.7.1 to 0.7.5: little-endian, every chunk names its codec, and nothing the original's size.
    V0_7_1,
}

impl Release {
    /// The first release that wrote it.
    pub fn name(self) -> &'static str {
        match self {
            Release::V0_1_2 => "0.1.2",
            Release::V0_7_0 => "0.7.0",
            Release::V0_7_1 => "0.7.1",
        }
    }

    /// The length of a chunk's header, in bytes.
    pub fn chunk_header_len(self) -> usize {
        match self {
            Release::V0_1_2 => 8,
            Release::V0_7_0 | Release::V0_7_1 => 9,
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseHeader {
    /// The layout.
    pub release: Release,
    /// The codec of every chunk, where the file has one.
    pub codec: Option<Codec>,
    /// The original's size in bytes, where the file says it.
    pub original_size: Option<u64>,
    /// Whether the header stands behind the last payload instead of in front of the first.
    pub trails: bool,
}

impl ReleaseHeader {
    /// Reads the header from a file's first bytes; more than [`RELEASE_HEADER_LEN`] of them do no harm.
    ///
    /// # Errors
    /// [`ErrorKind::NotWarp`] if the magic is another, [`ErrorKind::UnknownRelease`] if what follows it is of none of these
    /// layouts, or there are too few bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields(bytes);
        let magic: [u8; 4] = fields.take(Part::FixedHeader)?;
        if magic != RELEASE_MAGIC {
            return Err(ErrorKind::NotWarp.into());
        }
        let [version, kind] = fields.take(Part::FixedHeader)?;
        let unknown = |kind| ErrorKind::UnknownRelease { version, kind };
        let (release, codec) = match (version, kind) {
            (1, id) => (Release::V0_1_2, Some(codec_of_file(id)?)),
            (2, MIXED) => (Release::V0_7_0, None),
            (2, 0) => (Release::V0_7_1, None),
            (2, kind) => return Err(unknown(Some(kind)).into()),
            _ => return Err(unknown(None).into()),
        };
        // How long chunks were meant to be; each says how long it is.
        let _chunk_size: [u8; 4] = fields.take(Part::FixedHeader)?;
        let original_size = match release {
            Release::V0_1_2 | Release::V0_7_0 => {
                Some(u64::from_be_bytes(fields.take(Part::FixedHeader)?))
            }
            Release::V0_7_1 => {
                let _reserved: [u8; 4] = fields.take(Part::FixedHeader)?;
                None
            }
        };
        Ok(Self {
            release,
            codec,
            original_size,
            trails: false,
        })
    }

    /// Reads the header from the last [`RELEASE_HEADER_LEN`] bytes of a file that begins with `first`: there 0.7.0 left it,
    /// because it wrote the chunks past the buffer that the header waited in. `None` if these are no such file's.
    pub fn parse_trailing(first: &[u8], last: &[u8]) -> Option<Self> {
        let header = Self::parse(last).ok()?;
        let begins_with_chunk = matches!(first.first(), Some(0..=5)) && !first.starts_with(&MAGIC);
        let found = header.release == Release::V0_7_0 && last.len() == RELEASE_HEADER_LEN;
        (found && begins_with_chunk).then_some(Self {
            trails: true,
            ..header
        })
    }

    /// The header's length, in bytes.
    pub fn header_len(&self) -> u64 {
        match self.release {
            Release::V0_1_2 | Release::V0_7_0 => RELEASE_HEADER_LEN as u64,
            Release::V0_7_1 => 14,
        }
    }

    /// Where the first chunk's header begins, in bytes from the start of the file.
    pub fn chunks_start(&self) -> u64 {
        match self.trails {
            true => 0,
            false => self.header_len(),
        }
    }

    /// Where the chunks end in a file of `file_len` bytes.
    pub fn chunks_end(&self, file_len: u64) -> u64 {
        match self.trails {
            true => file_len.saturating_sub(self.header_len()),
            false => file_len,
        }
    }

    /// Reads the header of a chunk from the bytes that begin with it: [`CHUNK_PROBE_LEN`] of them, or all there are.
    ///
    /// # Errors
    /// There are too few bytes; or it names no encoding of this layout, or sizes that no such chunk has.
    pub fn parse_chunk(&self, bytes: &[u8]) -> Result<ChunkHeader> {
        let mut fields = Fields(bytes);
        let [id] = match self.codec {
            Some(_) => [0],
            None => fields.take(Part::ChunkHeader)?,
        };
        let original = fields.take(Part::ChunkHeader)?;
        let packed = fields.take(Part::ChunkHeader)?;
        let number = match self.release {
            Release::V0_1_2 | Release::V0_7_0 => u32::from_be_bytes,
            Release::V0_7_1 => u32::from_le_bytes,
        };
        let chunk = ChunkHeader {
            encoding: match self.codec {
                Some(codec) => codec.into(),
                None => self.encoding(id, fields.0)?,
            },
            original_size: number(original),
            packed_size: number(packed),
        };
        let holds = match chunk.encoding {
            Encoding::Zeros => chunk.packed_size == 0,
            Encoding::Stored => chunk.packed_size == chunk.original_size,
            _ => chunk.packed_size > 0,
        };
        // None of the writers made a chunk of nothing; and in the hole of a sparse file there are any number of them.
        match holds && chunk.original_size > 0 {
            true => Ok(chunk),
            false => Err(ErrorKind::ChunkSizes {
                encoding: chunk.encoding,
                original: chunk.original_size,
                packed: chunk.packed_size,
            }
            .into()),
        }
    }

    /// The encoding of a chunk's number; `payload` is the beginning of what it encodes.
    fn encoding(&self, id: u8, payload: &[u8]) -> Result<Encoding> {
        let encoding = match self.release {
            Release::V0_1_2 => codec_of_file(id)?.into(),
            Release::V0_7_0 => match id {
                0 => Encoding::Stored,
                1 => Encoding::Snappy,
                2 => Encoding::Lz4Block,
                3 => Encoding::Zstd,
                4 => Encoding::Brotli,
                5 => Encoding::Zeros,
                _ => return Err(ErrorKind::UnknownCodec(id).into()),
            },
            Release::V0_7_1 => match id {
                1 => Encoding::Zstd,
                // 0.7.5 wrote bare blocks under the number that frames had.
                2 if payload.starts_with(&LZ4_FRAME_MAGIC) => Encoding::Lz4,
                2 => Encoding::Lz4Block,
                3 => Encoding::Snappy,
                4 => Encoding::Stored,
                5 => Encoding::Zeros,
                _ => return Err(ErrorKind::UnknownCodec(id).into()),
            },
        };
        Ok(encoding)
    }
}

/// The codec of a number in the header of 0.1.2 to 0.1.5.
fn codec_of_file(id: u8) -> Result<Codec> {
    match id {
        1 => Ok(Codec::Snappy),
        2 => Ok(Codec::Lz4),
        3 => Ok(Codec::Zstd),
        4 => Ok(Codec::Brotli),
        _ => Err(ErrorKind::UnknownCodec(id).into()),
    }
}

/// What stands in front of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// How the payload holds the chunk.
    pub encoding: Encoding,
    /// The chunk's size in the original, in bytes; not 0.
    pub original_size: u32,
    /// The payload's size, in bytes.
    pub packed_size: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8]) -> ReleaseHeader {
        ReleaseHeader::parse(bytes).unwrap()
    }

    fn refusal(bytes: &[u8]) -> String {
        ReleaseHeader::parse(bytes).unwrap_err().to_string()
    }

    const V0_1_2: &[u8; 18] = b"WARP\x01\x03\0\x20\0\0\0\0\0\0\0\0\x12\x34";
    const V0_7_0: &[u8; 18] = b"WARP\x02\xff\0\x10\0\0\0\0\0\0\0\0\0\x07";
    const V0_7_1: &[u8; 14] = b"WARP\x02\0\0\0\x10\0\0\0\0\0";

    #[test]
    fn the_layout_is_told_by_two_bytes_behind_the_magic() {
        let found = header(V0_1_2);
        assert_eq!(found.release, Release::V0_1_2);
        assert_eq!(found.codec, Some(Codec::Zstd));
        assert_eq!(found.original_size, Some(0x1234));
        assert_eq!(found.chunks_start(), 18);
        let found = header(V0_7_0);
        assert_eq!((found.release, found.codec), (Release::V0_7_0, None));
        assert_eq!(found.original_size, Some(7));
        let found = header(V0_7_1);
        assert_eq!((found.release, found.codec), (Release::V0_7_1, None));
        assert_eq!((found.original_size, found.chunks_start()), (None, 14));
    }

    #[test]
    fn what_is_of_no_known_release_is_refused_by_name() {
        assert_eq!(
            refusal(b"WARP\x09\0\0\0\x10\0\0\0\0\0"),
            "a .warp file of an unknown release (starts with WARP, version byte 9)"
        );
        assert_eq!(
            refusal(b"WARP\x02\x07\0\0\x10\0\0\0\0\0"),
            "a .warp file of an unknown release (starts with WARP, version byte 2, then 7)"
        );
        assert_eq!(refusal(b"WARP\x01\x05"), "unknown codec id 5");
        assert_eq!(refusal(&V0_7_1[..13]), "file ends inside the fixed header");
        assert_eq!(refusal(b"PRAW\x01"), "not a .warp file: wrong magic");
    }

    #[test]
    fn a_header_at_the_end_is_taken_only_behind_chunks_of_its_release() {
        let found = ReleaseHeader::parse_trailing(b"\x05\0\0", V0_7_0).unwrap();
        assert_eq!((found.chunks_start(), found.chunks_end(118)), (0, 100));
        assert_eq!(found.original_size, Some(7));
        assert_eq!(ReleaseHeader::parse_trailing(b"\x06\0\0", V0_7_0), None);
        assert_eq!(ReleaseHeader::parse_trailing(b"", V0_7_0), None);
        assert_eq!(ReleaseHeader::parse_trailing(b"\x01", V0_1_2), None);
        assert_eq!(ReleaseHeader::parse_trailing(b"\x01", V0_7_1), None);
    }

    #[test]
    fn a_chunks_sizes_are_those_of_its_layout_and_none_is_of_nothing() {
        let chunk = header(V0_1_2)
            .parse_chunk(b"\0\0\x01\0\0\0\0\x10rest")
            .unwrap();
        assert_eq!((chunk.original_size, chunk.packed_size), (256, 16));
        assert_eq!(chunk.encoding, Encoding::Zstd);
        let chunk = header(V0_7_0)
            .parse_chunk(b"\x02\0\0\x01\0\0\0\0\x10rest")
            .unwrap();
        assert_eq!((chunk.original_size, chunk.packed_size), (256, 16));
        assert_eq!(chunk.encoding, Encoding::Lz4Block);
        let chunk = header(V0_7_1)
            .parse_chunk(b"\x05\0\x01\0\0\0\0\0\0")
            .unwrap();
        assert_eq!((chunk.original_size, chunk.packed_size), (256, 0));
        assert_eq!(chunk.encoding, Encoding::Zeros);
        for (header_bytes, hole) in [
            (&V0_1_2[..], &[0; CHUNK_PROBE_LEN][..]),
            (V0_7_0, &[0; CHUNK_PROBE_LEN]),
            (V0_7_1, &[0; CHUNK_PROBE_LEN]),
            (V0_7_1, b"\x05\0\x01\0\0\x01\0\0\0."),
            (V0_7_1, b"\x04\x02\0\0\0\x01\0\0\0."),
            (V0_7_1, b"\x01\x02\0\0\0\0\0\0\0"),
            (V0_7_1, b"\x01\x02\0\0\0\x01\0\0"),
        ] {
            assert!(
                header(header_bytes)
                    .parse_chunk(hole)
                    .unwrap_err()
                    .is_damage()
            );
        }
    }

    #[test]
    fn frames_and_bare_blocks_share_a_number_and_are_told_by_their_first_bytes() {
        let of = |payload: &[u8]| {
            let bytes = [b"\x02\0\x01\0\0\x20\0\0\0", payload].concat();
            header(V0_7_1).parse_chunk(&bytes).unwrap().encoding
        };
        assert_eq!(of(&LZ4_FRAME_MAGIC), Encoding::Lz4);
        assert_eq!(of(b"\xf0abc"), Encoding::Lz4Block);
        let mut found = [0; 16];
        assert!(lzzzz::lz4::decompress(&LZ4_FRAME_MAGIC, &mut found).is_err());
    }
}
