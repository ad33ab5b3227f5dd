//! What a fuzzer makes of a few bytes by way of `arbitrary`: originals worth packing, and files whose headers and tables fit
//! what they hold, but for a lie here and there.

use std::io::Write;

use arbitrary::Arbitrary;
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use twox_hash::XxHash3_64;
use warpfs::format::{
    Checksum, Codec, FIXED_HEADER_LEN, FixedHeader, Footer, RECORD_MAGIC, Version,
};
use warpfs::fuzzing;

use crate::Random;

/// Something of an original.
#[derive(Debug, Clone, Arbitrary)]
pub enum Segment {
    /// Zeros that are written.
    Zeros(u16),
    /// Blocks of 4 KiB that are not written.
    Hole(u8),
    /// One byte, again and again.
    Run(u8, u16),
    /// What does not compress.
    Noise(u8, u16),
    /// What compresses as text does.
    Words(u8, u16),
    /// These bytes.
    Bytes(Vec<u8>),
    /// What stood so far back, from there on.
    Again {
        /// In bytes.
        back: u32,
        /// In bytes.
        len: u16,
    },
}

/// An original of any kind.
#[derive(Debug, Clone, Arbitrary)]
pub struct Original {
    /// One behind the other.
    pub segments: Vec<Segment>,
}

impl Original {
    /// Its bytes, `most` of them at most, and where in them the holes are.
    pub fn bytes(&self, most: usize) -> (Vec<u8>, Vec<(usize, usize)>) {
        let mut bytes: Vec<u8> = Vec::new();
        let mut holes = Vec::new();
        for segment in &self.segments {
            match segment {
                Segment::Zeros(len) => bytes.resize(bytes.len() + usize::from(*len), 0),
                Segment::Hole(blocks) => {
                    let start = bytes.len().next_multiple_of(4096);
                    bytes.resize(start + usize::from(*blocks) * 4096, 0);
                    holes.push((start, bytes.len()));
                }
                Segment::Run(byte, len) => bytes.resize(bytes.len() + usize::from(*len), *byte),
                Segment::Noise(seed, len) => {
                    let mut random = Random(u64::from(*seed));
                    bytes.extend((0..*len).map(|_| random.any() as u8));
                }
                Segment::Words(seed, len) => {
                    let mut random = Random(u64::from(*seed));
                    let end = bytes.len() + usize::from(*len);
                    while bytes.len() < end {
                        let word = Random(random.below(300)).any().to_le_bytes();
                        let letters = word.map(|byte| b'a' + byte % 26);
                        bytes.extend_from_slice(&letters[..1 + random.index(8)]);
                        bytes.push(b' ');
                    }
                    bytes.truncate(end);
                }
                Segment::Bytes(own) => bytes.extend_from_slice(own),
                Segment::Again { back, len } => {
                    let back = (*back as usize % (bytes.len() + 1)).max(1);
                    let end = bytes.len() + usize::from(*len);
                    while bytes.len() < end {
                        let from = bytes.len().saturating_sub(back);
                        let to = bytes.len().min(from + end - bytes.len());
                        bytes.extend_from_within(from..to);
                        if bytes.is_empty() {
                            break;
                        }
                    }
                }
            }
            if bytes.len() >= most {
                bytes.truncate(most);
                break;
            }
        }
        holes.retain(|&(_, end)| end <= bytes.len());
        (bytes, holes)
    }
}

/// How a chunk's payload is made of its bytes.
#[derive(Debug, Clone, Arbitrary)]
pub enum Encoding {
    /// As warpfs does.
    Ours {
        /// Of whichever codec it is.
        level: u8,
    },
    /// As others may: several Zstandard frames with what they may carry, LZ4 frames of any kind.
    Foreign {
        /// Frames or blocks end after so many bytes.
        cut: u16,
        /// What they carry.
        flags: u8,
    },
    /// These bytes, which may be anything.
    Raw(Vec<u8>),
}

/// A chunk of a file.
#[derive(Debug, Clone, Arbitrary)]
pub struct ChunkPlan {
    content: Original,
    encoding: Encoding,
    /// Bytes of the payload that are changed: where, and by which bits.
    damage: Option<(u16, u8)>,
    /// Added to the size in the table.
    lie: Option<i32>,
}

/// A whole file.
#[derive(Debug, Clone, Arbitrary)]
pub struct ArchivePlan {
    version_1: bool,
    codec: u8,
    chunks: Vec<ChunkPlan>,
    checksum: Option<(u8, [u8; 32])>,
    /// Added to the size in the header.
    lie: Option<i64>,
    trailing: Vec<u8>,
}

impl ArchivePlan {
    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let codec = Codec::ALL[usize::from(self.codec) % Codec::ALL.len()];
        let mut layout = Layout {
            version: 2 - u8::from(self.version_1),
            codec: codec.id(),
            original_size: 0,
            count: None,
            chunks: Vec::new(),
            tail: Vec::new(),
        };
        for chunk in self.chunks.iter().take(64) {
            let (content, _) = chunk.content.bytes(512 << 10);
            let mut payload = match &chunk.encoding {
                Encoding::Ours { level } => ours(codec, &content, *level),
                Encoding::Foreign { cut, flags } => foreign(codec, &content, *cut, *flags),
                Encoding::Raw(bytes) => bytes.clone(),
            };
            if let Some((place, bits)) = chunk.damage
                && let Some(byte) = payload.get_mut(usize::from(place))
            {
                *byte ^= bits;
            }
            let original =
                (content.len() as u64).saturating_add_signed(chunk.lie.map_or(0, i64::from));
            layout.chunks.push(Chunk {
                packed: payload.len() as u64,
                original,
                payload,
            });
        }
        layout.add_up();
        layout.original_size = layout
            .original_size
            .saturating_add_signed(self.lie.unwrap_or(0));
        if let Some((checksum, digest)) = self.checksum {
            let checksum = Checksum::ALL[usize::from(checksum) % Checksum::ALL.len()];
            let digest = digest[..checksum.digest_len()].to_vec();
            layout.tail = Footer { checksum, digest }.to_bytes();
        }
        layout.tail.extend_from_slice(&self.trailing);
        layout.bytes()
    }
}

fn ours(codec: Codec, content: &[u8], level: u8) -> Vec<u8> {
    let zstd_level = i32::from(level % 27) - 7;
    fuzzing::encode(codec, content, zstd_level, u32::from(level % 10)).unwrap_or_default()
}

fn foreign(codec: Codec, content: &[u8], cut: u16, flags: u8) -> Vec<u8> {
    let flag = |bit: u8| flags & (1 << bit) != 0;
    let parts = content.chunks(usize::from(cut).max(1 + content.len() / 20));
    match codec {
        Codec::Zstd => {
            let mut payload = Vec::new();
            for part in parts {
                if flag(3) {
                    payload.extend(0x184D_2A50_u32.to_le_bytes());
                    payload.extend([u8::from(flag(4)), 0, 0, 0]);
                    payload.resize(payload.len() + usize::from(flag(4)), 7);
                }
                let mut encoder = zstd::Encoder::new(&mut payload, 1).unwrap();
                encoder.include_checksum(flag(0)).unwrap();
                encoder.include_contentsize(flag(1)).unwrap();
                encoder.window_log(10 + u32::from(flags >> 5)).unwrap();
                if flag(1) {
                    encoder
                        .set_pledged_src_size(Some(part.len() as u64))
                        .unwrap();
                }
                encoder.write_all(part).unwrap();
                if flag(2) {
                    // An empty block, or the end of one.
                    encoder.flush().unwrap();
                }
                encoder.finish().unwrap();
            }
            payload
        }
        Codec::Lz4 => {
            let frame = FrameInfo::new()
                .block_mode(match flag(0) {
                    true => BlockMode::Linked,
                    false => BlockMode::Independent,
                })
                .block_size(match flags >> 6 {
                    0 => BlockSize::Max64KB,
                    1 => BlockSize::Max256KB,
                    2 => BlockSize::Max1MB,
                    _ => BlockSize::Max4MB,
                })
                .block_checksums(flag(1))
                .content_checksum(flag(2))
                .content_size(flag(3).then_some(content.len() as u64));
            let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
            for part in parts {
                encoder.write_all(part).unwrap();
                if flag(4) {
                    encoder.flush().unwrap();
                }
            }
            encoder.finish().unwrap_or_default()
        }
        Codec::Snappy | Codec::Brotli => ours(codec, content, flags),
    }
}

/// A chunk as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its payload's size in the table, in bytes.
    pub packed: u64,
    /// Its size in the table, in bytes.
    pub original: u64,
    /// What the file holds for it.
    pub payload: Vec<u8>,
}

/// A file taken apart, to be changed here and there and put together again. Nothing in it has to be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The number in the header.
    pub version: u8,
    /// The number in the header.
    pub codec: u8,
    /// In the header, in bytes.
    pub original_size: u64,
    /// In the header, if it is not how many chunks there are.
    pub count: Option<u32>,
    /// All of them.
    pub chunks: Vec<Chunk>,
    /// What comes behind the last payload.
    pub tail: Vec<u8>,
}

impl Layout {
    /// Takes a file apart whose fixed header is sound and has room for its table; `None` for any other. Files that were cut
    /// short lack payloads.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header = FixedHeader::parse(bytes).ok()?;
        header.check_room(bytes.len() as u64).ok()?;
        let count = header.chunk_count as usize;
        let size = |at: usize| {
            let field = bytes.get(18 + 8 * at..)?.first_chunk::<8>()?;
            Some(u64::from_le_bytes(*field))
        };
        let mut rest = bytes.get(header.payload_start() as usize..)?;
        let mut chunks = Vec::new();
        for chunk in 0..count {
            let packed = size(chunk)?;
            let original = match header.version {
                Version::V1 => 0,
                Version::V2 => size(count + chunk)?,
            };
            let here = usize::try_from(packed).map_or(rest.len(), |packed| packed.min(rest.len()));
            let (payload, behind) = rest.split_at(here);
            rest = behind;
            chunks.push(Chunk {
                packed,
                original,
                payload: payload.to_vec(),
            });
        }
        Some(Self {
            version: header.version.number(),
            codec: header.codec.id(),
            original_size: header.original_size,
            count: None,
            chunks,
            tail: rest.to_vec(),
        })
    }

    /// Makes the header's size the sum of the table's.
    pub fn add_up(&mut self) {
        let sizes = self.chunks.iter().map(|chunk| chunk.original);
        self.original_size = sizes.fold(0, u64::wrapping_add);
    }

    /// Gives the record of digests behind the footer, if there is one, the digests of itself and of what precedes it that it
    /// should have. Those of the original stay as they are.
    pub fn seal(&mut self) {
        const TAIL_LEN: usize = 40;
        if self.tail.len() < TAIL_LEN || !self.tail.ends_with(&RECORD_MAGIC) {
            return;
        }
        let footer = Footer::parse(&self.tail).ok().flatten();
        let footer_len = footer.map_or(0, |footer| footer.to_bytes().len());
        if !self.tail[footer_len..].starts_with(&RECORD_MAGIC) {
            self.tail.splice(footer_len..footer_len, RECORD_MAGIC);
        }
        let tail_start = self.tail.len() - TAIL_LEN;
        let Some(record_len) = self.tail.len().checked_sub(footer_len) else {
            return;
        };
        let (payload_start, payload_len) = self.payload_place();
        let file = self.bytes();
        let mut beginning = file[..payload_start].to_vec();
        beginning.extend(&file[payload_start + payload_len..][..footer_len]);
        let tail = &self.tail[tail_start..];
        let page_len = 1_u128 << (tail[26] % 64);
        let pages = u128::from(self.original_size).div_ceil(page_len);
        let entry_len = match tail[25] {
            0 => 4,
            group if pages < 2 || u128::from(self.original_size) <= 1 << (group % 64) => 4,
            _ => 36,
        };
        let directory_len = usize::try_from(pages * entry_len).unwrap_or(usize::MAX);
        let directory_start = tail_start
            .saturating_sub(directory_len)
            .max(footer_len.min(tail_start));
        let mut sealed = Vec::new();
        let directory = &self.tail[directory_start..tail_start];
        sealed.extend(XxHash3_64::oneshot(directory).to_le_bytes());
        sealed.extend(XxHash3_64::oneshot(&beginning).to_le_bytes());
        sealed.extend((record_len as u64).to_le_bytes());
        sealed.extend_from_slice(&tail[24..28]);
        sealed.extend(XxHash3_64::oneshot(&sealed).to_le_bytes());
        sealed.extend(RECORD_MAGIC);
        self.tail.splice(tail_start.., sealed);
    }

    /// Where the payloads begin and how long they are together, in bytes, as they stand in the file.
    fn payload_place(&self) -> (usize, usize) {
        let columns = usize::from(self.version.clamp(1, 2));
        let len = self.chunks.iter().map(|chunk| chunk.payload.len()).sum();
        (FIXED_HEADER_LEN + 8 * columns * self.chunks.len(), len)
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"PRAW".to_vec();
        bytes.extend([self.version, self.codec]);
        bytes.extend(self.original_size.to_le_bytes());
        let count = self.count.unwrap_or(self.chunks.len() as u32);
        bytes.extend(count.to_le_bytes());
        let packed = self.chunks.iter().map(|chunk| chunk.packed);
        bytes.extend(packed.flat_map(u64::to_le_bytes));
        if self.version == 2 {
            let original = self.chunks.iter().map(|chunk| chunk.original);
            bytes.extend(original.flat_map(u64::to_le_bytes));
        }
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.payload);
        }
        bytes.extend_from_slice(&self.tail);
        bytes
    }
}
