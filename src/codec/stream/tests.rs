use std::cell::RefCell;
use std::io::Write;
use std::ops::Range;

use ::zstd::zstd_safe::{CCtx, CParameter, compress_bound};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::codec::tests::{SETTINGS, any_codec, compressible};
use crate::codec::{Settings, decode_into, encode};
use crate::error::{Error, ErrorKind};
use crate::format::Codec;

/// A payload in memory that remembers what was read of it.
pub(in crate::codec) struct InMemory {
    bytes: Vec<u8>,
    reads: RefCell<Vec<Range<u64>>>,
}

impl InMemory {
    pub(in crate::codec) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into(),
            reads: RefCell::default(),
        }
    }

    fn read_len(&self) -> u64 {
        self.reads
            .take()
            .iter()
            .map(|read| read.end - read.start)
            .sum()
    }
}

impl Payload for InMemory {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        self.reads.borrow_mut().push(offset..end);
        buffer.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        Ok(())
    }
}

/// Decodes from the stream's place to `end`, in pieces of these lengths by turns, between bytes that must be left alone.
fn decode_on(
    stream: &mut Stream,
    payload: &InMemory,
    end: u64,
    pieces: &[usize],
) -> Result<Vec<u8>> {
    let mut output = Vec::new();
    let mut pieces = pieces.iter().cycle();
    loop {
        let left = (end - stream.position()) as usize;
        let len = left.min(*pieces.next().unwrap());
        let mut piece = vec![0xa5; len + 128];
        stream.decode(payload, &mut piece[64..64 + len])?;
        assert!(
            piece[..64]
                .iter()
                .chain(&piece[64 + len..])
                .all(|&byte| byte == 0xa5)
        );
        output.extend_from_slice(&piece[64..64 + len]);
        if left == len {
            return Ok(output);
        }
    }
}

fn is_unstreamable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unstreamable { .. })
}

fn decode_whole(
    codec: Codec,
    payload: &InMemory,
    announced: u64,
    pieces: &[usize],
) -> Result<Vec<u8>> {
    Stream::memory(codec, payload, announced)?;
    let mut stream = Stream::open(codec, payload, announced)?;
    decode_on(&mut stream, payload, announced, pieces)
}

/// What the payloads of other writers may be like.
#[derive(Debug, Clone, Copy)]
struct Style {
    level: i32,
    window_log: u32,
    /// Frames or blocks are ended after every so many bytes of input.
    cut: usize,
    sized: bool,
    checksum: bool,
    block_checksums: bool,
    linked: bool,
    block_size: BlockSize,
}

fn any_style() -> impl Strategy<Value = Style> {
    (
        select(vec![1, 3, 7, 19]),
        10_u32..20,
        prop_oneof![Just(usize::MAX), 1_usize..200_000],
        any::<[bool; 4]>(),
        select(vec![
            BlockSize::Max64KB,
            BlockSize::Max256KB,
            BlockSize::Max1MB,
            BlockSize::Max4MB,
        ]),
    )
        .prop_map(|(level, window_log, cut, flags, block_size)| Style {
            level,
            window_log,
            cut,
            sized: flags[0],
            checksum: flags[1],
            block_checksums: flags[2],
            linked: flags[3],
            block_size,
        })
}

fn lz4_frame(input: &[u8], style: Style) -> Vec<u8> {
    let frame = FrameInfo::new()
        .block_mode(match style.linked {
            true => BlockMode::Linked,
            false => BlockMode::Independent,
        })
        .block_size(style.block_size)
        .block_checksums(style.block_checksums)
        .content_checksum(style.checksum)
        .content_size(style.sized.then_some(input.len() as u64));
    let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
    for part in input.chunks(style.cut.max(1 + input.len() / 50)) {
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

fn zstd_frames(input: &[u8], style: Style) -> Vec<u8> {
    let mut payload = Vec::new();
    // No input at all still makes a frame.
    let parts = input.chunks(style.cut.max(1 + input.len() / 50));
    for part in parts.chain(input.is_empty().then_some(&[][..])) {
        let mut encoder = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(style.level),
            CParameter::WindowLog(style.window_log),
            CParameter::ChecksumFlag(style.checksum),
            CParameter::ContentSizeFlag(style.sized),
        ] {
            encoder.set_parameter(parameter).unwrap();
        }
        let mut frame = Vec::with_capacity(compress_bound(part.len()));
        encoder.compress2(&mut frame, part).unwrap();
        payload.extend(frame);
    }
    payload
}

fn brotli_stream(input: &[u8], style: Style) -> Vec<u8> {
    let params = ::brotli::enc::BrotliEncoderParams {
        quality: style.level.min(9),
        lgwin: style.window_log as i32,
        ..Default::default()
    };
    let mut payload = Vec::new();
    ::brotli::BrotliCompress(&mut &input[..], &mut payload, &params).unwrap();
    payload
}

/// A chunk and a payload that it may have.
fn any_chunk() -> impl Strategy<Value = (Codec, Vec<u8>, InMemory)> {
    let input = (compressible(), compressible(), 1_usize..3).prop_map(|(near, far, times)| {
        // What is repeated at some distance.
        [far.repeat(times), near, far].concat()
    });
    (any_codec(), input, any_style(), any::<bool>()).prop_map(|(codec, input, style, ours)| {
        let mut payload = Vec::new();
        match codec {
            _ if ours => encode(codec, &input, &SETTINGS, &mut payload).unwrap(),
            Codec::Lz4 => payload = lz4_frame(&input, style),
            Codec::Zstd => payload = zstd_frames(&input, style),
            Codec::Brotli => payload = brotli_stream(&input, style),
            Codec::Snappy => encode(codec, &input, &SETTINGS, &mut payload).unwrap(),
        }
        (codec, input, InMemory::new(payload))
    })
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// Lengths of pieces; some are tiny, but not all.
fn any_pieces() -> impl Strategy<Value = Vec<usize>> {
    let piece = prop_oneof![0_usize..20, 1_usize..5_000, 60_000_usize..300_000];
    (
        proptest::collection::vec(piece, 0..12),
        4_000_usize..100_000,
    )
        .prop_map(|(pieces, last)| [pieces, vec![last]].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn in_pieces_of_any_length_a_chunk_is_the_same_as_whole(
        (codec, input, payload) in any_chunk(),
        pieces in any_pieces(),
    ) {
        let len = input.len() as u64;
        let output = decode_whole(codec, &payload, len, &pieces);
        match output {
            // Frames of one chunk may differ in what they ask for.
            Err(error) if is_unstreamable(&error) => {
                prop_assert_eq!(codec, Codec::Zstd);
            }
            output => prop_assert!(output.unwrap() == input, "{codec}"),
        }
        let mut whole = vec![0; input.len()];
        prop_assert!(decode_into(codec, &payload.bytes, &mut whole).is_ok() && whole == input);
        if !matches!(codec, Codec::Zstd) {
            prop_assert!(decode_whole(codec, &payload, len + 1, &pieces).unwrap_err().is_damage());
            if len > 0 {
                prop_assert!(decode_whole(codec, &payload, len - 1, &pieces).unwrap_err().is_damage());
            }
        }
    }

    #[test]
    fn from_wherever_a_stream_stands_after_moving_it_decodes_what_is_there(
        (codec, input, payload) in any_chunk(),
        moves in proptest::collection::vec((any::<Index>(), 0_usize..100_000), 1..8),
    ) {
        let len = input.len() as u64;
        let Ok(mut stream) = Stream::open(codec, &payload, len) else {
            return Err(TestCaseError::reject("cannot be streamed"));
        };
        for (place, length) in moves {
            let place = place.index(input.len() + 1) as u64;
            let end = len.min(place + length as u64);
            let mut position = stream.seek(&payload, place).unwrap();
            prop_assert_eq!(position, stream.position());
            if position > place {
                stream = Stream::open(codec, &payload, len).unwrap();
                position = 0;
            }
            match decode_on(&mut stream, &payload, end, &[7_000, 64 << 10]) {
                Err(error) if is_unstreamable(&error) => {
                    prop_assert_eq!(codec, Codec::Zstd);
                    break;
                }
                output => prop_assert!(output.unwrap() == input[position as usize..end as usize]),
            }
        }
    }

    #[test]
    fn what_is_branched_off_is_what_is_there_and_leaves_the_stream_where_it_was(
        (codec, input, payload) in any_chunk(),
        parts in proptest::collection::vec((any::<Index>(), 1_usize..5), 1..8),
        position in any::<Index>(),
    ) {
        let len = input.len() as u64;
        let Ok(mut stream) = Stream::open(codec, &payload, len) else {
            return Err(TestCaseError::reject("cannot be streamed"));
        };
        let position = position.index(input.len() + 1) as u64;
        if decode_on(&mut stream, &payload, position, &[7_000, 64 << 10]).is_err() {
            return Err(TestCaseError::reject("cannot be streamed as far"));
        }
        stream.survey(&payload).unwrap();
        let blocks = input.chunks(64 << 10).count();
        for (first, count) in parts {
            let start = (64 << 10) * first.index(blocks + 1).min(input.len() >> 16);
            let end = input.len().min(start + (count << 16));
            let (start, end) = (start as u64, end as u64);
            let Some(mut branch) = stream.branch(&(start..end)) else {
                continue;
            };
            prop_assert_eq!(codec, Codec::Lz4);
            let output = decode_on(&mut branch, &payload, end, &[usize::MAX]);
            prop_assert!(output.unwrap() == input[start as usize..end as usize]);
        }
        prop_assert_eq!(stream.position(), position);
        let output = decode_on(&mut stream, &payload, len, &[60_000]);
        prop_assert!(output.is_err() || output.unwrap() == input[position as usize..]);
    }

    #[test]
    fn damage_is_refused_by_the_chunks_end_whenever_it_is_refused_whole(
        (codec, input, payload) in any_chunk(),
        cut in proptest::option::weighted(0.2, any::<Index>()),
        flips in proptest::collection::vec((any::<Index>(), 1_u8..), 0..4),
        pieces in any_pieces(),
        place in any::<Index>(),
    ) {
        // Of nothing, nobody asks for a piece.
        prop_assume!(!input.is_empty());
        let mut bytes = payload.bytes;
        for (place, mask) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= mask;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let len = input.len() as u64;
        let mut whole = vec![0; input.len()];
        let result = decode_into(codec, &bytes, &mut whole);
        let payload = InMemory::new(bytes);
        match decode_whole(codec, &payload, len, &pieces) {
            Ok(output) => {
                prop_assert!(result.is_ok(), "{codec}: {result:?}");
                prop_assert!(output == whole);
            }
            Err(error) => prop_assert!(error.is_damage() || is_unstreamable(&error)),
        }
        if let Ok(mut stream) = Stream::open(codec, &payload, len) {
            let place = place.index(input.len() + 1) as u64;
            if let Ok(position) = stream.seek(&payload, place)
                && position <= place
            {
                let _ = decode_on(&mut stream, &payload, len, &pieces);
            }
        }
    }

    #[test]
    fn noise_never_panics(
        codec in any_codec(),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        len in 0_u64..5_000,
        pieces in any_pieces(),
    ) {
        for beginning in [&[][..], &[0x04, 0x22, 0x4d, 0x18], &[0x28, 0xb5, 0x2f, 0xfd]] {
            let payload = InMemory::new([beginning, &noise].concat());
            let _ = decode_whole(codec, &payload, len, &pieces);
        }
    }
}

/// A mebibyte that compresses to about a third, with its payload.
fn mebibyte(codec: Codec) -> (Vec<u8>, InMemory) {
    let input: Vec<u8> = (0..1_u32 << 18)
        .flat_map(|n| (n.wrapping_mul(0x9E37_79B9) >> 20 & 0x3fff).to_le_bytes())
        .collect();
    let mut payload = Vec::new();
    encode(codec, &input, &SETTINGS, &mut payload).unwrap();
    (input, InMemory::new(payload))
}

#[test]
fn a_piece_fetches_little_more_of_the_payload_than_it_needs() {
    for codec in Codec::ALL {
        let (input, payload) = mebibyte(codec);
        let len = input.len() as u64;
        let mut stream = Stream::open(codec, &payload, len).unwrap();
        for eighth in 1..=8 {
            payload.reads.take();
            decode_on(&mut stream, &payload, len * eighth / 8, &[128 << 10]).unwrap();
            let fetched = payload.read_len();
            // A block of Zstandard's may be as long as the piece.
            assert!(
                fetched < payload.len() / 8 * 3 + 40_000,
                "{codec}: {fetched}"
            );
        }
    }
}

/// Sixteen pieces, every other one of noise, the others of next to nothing.
fn uneven() -> (Vec<u8>, InMemory) {
    let mut number = 7_u32;
    let mut noise = || {
        number ^= number << 13;
        number ^= number >> 17;
        number ^= number << 5;
        number.to_le_bytes()
    };
    let mut input = Vec::new();
    for piece in 0..16 {
        let words = (0..PIECE / 4).map(|_| if piece % 2 == 0 { noise() } else { *b"same" });
        input.extend(words.flatten());
    }
    let mut payload = Vec::new();
    encode(Codec::Lz4, &input, &SETTINGS, &mut payload).unwrap();
    (input, InMemory::new(payload))
}

const PIECE: usize = 128 << 10;

#[test]
fn a_branch_fetches_what_it_decodes_once_and_nothing_else() {
    let (input, payload) = uneven();
    let len = input.len() as u64;
    let mut stream = Stream::open(Codec::Lz4, &payload, len).unwrap();
    stream.survey(&payload).unwrap();
    let mut fetched = Vec::new();
    for (piece, expected) in (0..).zip(input.chunks(2 * PIECE)) {
        let start = piece * 2 * PIECE as u64;
        let bytes = start..start + expected.len() as u64;
        let mut branch = stream.branch(&bytes).unwrap();
        payload.reads.take();
        let decoded = decode_on(&mut branch, &payload, bytes.end, &[2 * PIECE]).unwrap();
        assert!(decoded == expected);
        fetched.extend(payload.reads.take());
    }
    assert!(fetched.is_sorted_by(|one, next| one.end == next.start));
    assert_eq!(fetched.last().unwrap().end, payload.len());
}

#[test]
fn a_stream_is_put_aside_and_taken_up_by_another_thread() {
    for codec in Codec::ALL {
        let (input, payload) = mebibyte(codec);
        let len = input.len() as u64;
        let mut stream = Stream::open(codec, &payload, len).unwrap();
        let mut output = decode_on(&mut stream, &payload, 300_001, &[300_001]).unwrap();
        let bytes = payload.bytes;
        let rest = std::thread::spawn(move || {
            decode_on(&mut stream, &InMemory::new(bytes), len, &[99_999]).unwrap()
        });
        output.extend(rest.join().unwrap());
        assert!(output == input, "{codec}");
    }
}

#[test]
fn no_bytes_at_all_are_a_chunk_too_whose_end_is_looked_at() {
    for codec in Codec::ALL {
        let mut bytes = Vec::new();
        encode(codec, b"", &SETTINGS, &mut bytes).unwrap();
        let payload = InMemory::new(bytes.clone());
        assert_eq!(decode_whole(codec, &payload, 0, &[1]).unwrap(), b"");
        bytes.push(0);
        let payload = InMemory::new(bytes);
        assert!(
            decode_whole(codec, &payload, 0, &[1])
                .unwrap_err()
                .is_damage(),
            "{codec}"
        );
        let nothing = InMemory::new([]);
        assert!(
            decode_whole(codec, &nothing, 0, &[1])
                .unwrap_err()
                .is_damage(),
            "{codec}"
        );
    }
}

#[test]
fn bytes_behind_a_payload_are_refused_with_its_last_byte_and_not_before() {
    for codec in Codec::ALL {
        let (input, mut payload) = mebibyte(codec);
        let len = input.len() as u64;
        payload.bytes.push(0);
        let mut stream = Stream::open(codec, &payload, len).unwrap();
        let most = decode_on(&mut stream, &payload, len - 1, &[70_000]).unwrap();
        assert!(most == input[..input.len() - 1]);
        let error = decode_on(&mut stream, &payload, len, &[1]).unwrap_err();
        assert!(error.is_damage(), "{codec}: {error}");
    }
}

#[test]
fn what_the_source_cannot_read_is_told() {
    struct Failing(InMemory);
    impl Payload for Failing {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
            match offset + (buffer.len() as u64) > self.len() / 2 {
                false => self.0.read_at(offset, buffer),
                true => Err(Error::new(ErrorKind::Changed)),
            }
        }
    }
    for codec in Codec::ALL {
        let (input, payload) = mebibyte(codec);
        let payload = Failing(payload);
        let mut stream = Stream::open(codec, &payload, input.len() as u64).unwrap();
        let mut output = vec![0; input.len()];
        let error = stream.decode(&payload, &mut output).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Changed),
            "{codec}: {error}"
        );
    }
}

#[test]
fn settings_of_any_kind_are_streamed() {
    let input: Vec<u8> = (0..1_u32 << 19)
        .flat_map(|n| (n / 5 * 7).to_le_bytes())
        .collect();
    for zstd_level in [1, 3, 19] {
        for zstd_threads in [0, 2] {
            let settings = Settings {
                zstd_level,
                zstd_threads,
                ..SETTINGS
            };
            let mut payload = Vec::new();
            encode(Codec::Zstd, &input, &settings, &mut payload).unwrap();
            let payload = InMemory::new(payload);
            let output = decode_whole(Codec::Zstd, &payload, input.len() as u64, &[65_536]);
            assert!(output.unwrap() == input);
        }
    }
}
