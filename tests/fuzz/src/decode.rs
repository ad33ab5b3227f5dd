//! One chunk's payload, decoded in each of the ways there are: whole, in pieces of any length, from wherever a stream can be
//! moved to, some of it without the rest, and measured. They must agree.
//!
//! Damage is found by the chunk's end whenever decoding whole finds it, but pieces before it may have been handed out
//! by then; those must be the same however the chunk was cut.

use warpfs::ErrorKind;
use warpfs::error::Result;
use warpfs::format::Encoding;
use warpfs::fuzzing::{self, Pieces};

use crate::memory::{ALLOWANCE, within};
use crate::{Random, Seen};

/// How a payload may hold its bytes: in every way in which there is one.
pub const ENCODINGS: [Encoding; 6] = [
    Encoding::Lz4,
    Encoding::Zstd,
    Encoding::Snappy,
    Encoding::Brotli,
    Encoding::Lz4Block,
    Encoding::Stored,
];
/// How many bytes come before the payload: the codec, how the length is announced, and a seed.
pub const PREFIX_LEN: usize = 6;
/// The longest chunk that is decoded, in bytes.
const LONGEST: u64 = 4 << 20;
/// The least that blocks hold which can be decoded one without the other, in bytes.
const BLOCK_LEN: u64 = 64 << 10;
/// What lies around the output of a decoder, which must leave it alone.
const GUARD: [u8; 64] = [0xa5; 64];

/// Decodes a payload, which begins behind the first [`PREFIX_LEN`] bytes.
pub fn run(data: &[u8]) {
    let Some((&[codec, announce, seed @ ..], payload)) = data.split_first_chunk::<PREFIX_LEN>()
    else {
        return;
    };
    let codec = ENCODINGS[usize::from(codec) % ENCODINGS.len()];
    let mut random = Random(u32::from_le_bytes(seed).into());
    within(payload.len() + ALLOWANCE, || {
        let told = fuzzing::told_len(codec, payload);
        let measured = fuzzing::measure(codec, payload, LONGEST);
        let found = measured.as_ref().ok().copied().or(told).unwrap_or(0);
        let announced = match announce % 8 {
            0..=2 => found,
            // As if every block were full.
            3 => found.checked_next_multiple_of(64 << 10).unwrap_or(found),
            4 => told.unwrap_or(found),
            5 => found.saturating_add(1 + random.below(1000)),
            6 => found.saturating_sub(1 + random.below(1000)),
            _ => random.below(300_000),
        };
        if announced <= LONGEST {
            Chunk {
                codec,
                payload,
                announced,
            }
            .check(measured, &mut random);
        }
    });
}

struct Chunk<'a> {
    codec: Encoding,
    payload: &'a [u8],
    announced: u64,
}

impl Chunk<'_> {
    fn check(&self, measured: Result<u64>, random: &mut Random) {
        let whole = self.whole();
        if let (Ok(_), Ok(measured)) = (&whole, &measured) {
            assert_eq!(*measured, self.announced);
        }
        let mut seen = Seen::default();
        if let Ok(bytes) = &whole {
            seen.add("whole", 0, bytes.clone());
        }
        let memory = Pieces::memory(self.codec, self.payload, self.announced);
        assert!(memory.is_ok() || whole.is_err(), "{memory:?}");
        // More than this, no budget would have let in here.
        if !matches!(memory, Ok(Some(memory)) if memory <= ALLOWANCE as u64) {
            return;
        }
        for _ in 0..2 {
            self.in_pieces(&whole, &mut seen, random);
        }
        self.moving(&whole, &mut seen, random);
        self.branching(&whole, &mut seen, random);
    }

    fn whole(&self) -> Result<Vec<u8>> {
        let len = self.announced as usize;
        let mut room = guarded(len);
        fuzzing::decode_whole(self.codec, self.payload, &mut room[GUARD.len()..][..len])?;
        Ok(unguarded(room))
    }

    /// From front to back.
    fn in_pieces(&self, whole: &Result<Vec<u8>>, seen: &mut Seen, random: &mut Random) {
        let mut bytes = Vec::new();
        let outcome = Pieces::open(
            self.codec,
            self.payload,
            self.announced,
            random.below(2) == 0,
        )
        .and_then(|mut pieces| self.go_on(&mut pieces, self.announced, &mut bytes, random));
        match (&outcome, whole) {
            (Ok(()), Err(error)) => panic!("in pieces it is sound, whole it is not: {error}"),
            (Err(error), Ok(_)) if !matches!(error.kind(), ErrorKind::Unstreamable { .. }) => {
                panic!("whole it is sound, in pieces it is not: {error}")
            }
            _ => {}
        }
        seen.add("in pieces", 0, bytes);
    }

    /// Here and there.
    fn moving(&self, whole: &Result<Vec<u8>>, seen: &mut Seen, random: &mut Random) {
        let mut open = |random: &mut Random| {
            Pieces::open(
                self.codec,
                self.payload,
                self.announced,
                random.below(2) == 0,
            )
        };
        let Ok(mut pieces) = open(random) else {
            return;
        };
        for _ in 0..random.below(6) {
            let offset = random.below(self.announced + 1);
            let Ok(mut position) = pieces.seek(offset) else {
                return;
            };
            assert_eq!(position, pieces.position());
            if position > offset {
                let Ok(again) = open(random) else { return };
                pieces = again;
                position = 0;
            }
            let end = self.announced.min(offset + random.length() as u64);
            let mut bytes = Vec::new();
            let outcome = self.go_on(&mut pieces, end, &mut bytes, random);
            seen.add("moved", position, bytes);
            match outcome {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Unstreamable { .. }) => return,
                Err(error) => {
                    assert!(
                        whole.is_err(),
                        "whole it is sound, moved it is not: {error}"
                    );
                    return;
                }
            }
        }
    }

    /// Some bytes without those before them.
    fn branching(&self, whole: &Result<Vec<u8>>, seen: &mut Seen, random: &mut Random) {
        let Ok(mut pieces) = Pieces::open(
            self.codec,
            self.payload,
            self.announced,
            random.below(2) == 0,
        ) else {
            return;
        };
        for _ in 0..random.below(4) {
            let block = random.below(self.announced / BLOCK_LEN + 1);
            let start = block * BLOCK_LEN;
            let end = self
                .announced
                .min(start + BLOCK_LEN * (1 + random.below(3)));
            let Ok(Some(mut branch)) = pieces.branch(&(start..end)) else {
                return;
            };
            assert_eq!(branch.position(), start);
            let mut room = guarded((end - start) as usize);
            let len = room.len() - 2 * GUARD.len();
            match branch.decode(&mut room[GUARD.len()..][..len]) {
                Ok(()) => seen.add("branched off", start, unguarded(room)),
                Err(error) => assert!(
                    whole.is_err(),
                    "whole it is sound, branched off it is not: {error}"
                ),
            }
        }
    }

    /// Decodes as far as `end`, in pieces of any length.
    fn go_on(
        &self,
        pieces: &mut Pieces<'_>,
        end: u64,
        bytes: &mut Vec<u8>,
        random: &mut Random,
    ) -> Result<()> {
        // Tiny pieces of a large chunk take long.
        let least = (self.announced / 200) as usize;
        loop {
            let left = end.saturating_sub(pieces.position()) as usize;
            let len = left.min(least + random.length() - 1);
            let mut room = guarded(len);
            let before = pieces.position();
            pieces.decode(&mut room[GUARD.len()..][..len])?;
            assert_eq!(pieces.position(), before + len as u64);
            bytes.extend(unguarded(room));
            if len == left {
                return Ok(());
            }
        }
    }
}

fn guarded(len: usize) -> Vec<u8> {
    let mut room = vec![0; len + 2 * GUARD.len()];
    room[..GUARD.len()].copy_from_slice(&GUARD);
    room[GUARD.len() + len..].copy_from_slice(&GUARD);
    room
}

fn unguarded(mut room: Vec<u8>) -> Vec<u8> {
    assert!(
        room.starts_with(&GUARD),
        "bytes before the output were written"
    );
    assert!(
        room.ends_with(&GUARD),
        "bytes behind the output were written"
    );
    room.truncate(room.len() - GUARD.len());
    room.split_off(GUARD.len())
}
