//! Changes to inputs that know what they change: a file's header and table are made to fit its payloads most of the time,
//! and a payload's own checks what they check. A change of bytes alone hardly ever gets further than the first of them.

use std::ops::Range;

use twox_hash::XxHash32;
use warpfs::format::Footer;

use crate::Random;
use crate::decode::{ENCODINGS, PREFIX_LEN};
use crate::plan::Layout;

/// Changes some of the bytes, whatever they mean, and may make them more, up to the given number.
pub type ChangeBytes<'a> = &'a mut dyn FnMut(&mut Vec<u8>, usize);

/// Lets one of the functions here change libFuzzer's input in its place; `change` is libFuzzer's own way to change bytes.
pub fn in_place(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutate: impl FnOnce(&mut Vec<u8>, usize, &mut Random, ChangeBytes<'_>),
    change: impl Fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let mut input = data[..size].to_vec();
    mutate(
        &mut input,
        max_size,
        &mut Random(seed.into()),
        &mut |bytes, most| {
            let len = bytes.len();
            bytes.resize(most.max(len), 0);
            let len = change(bytes, len, most.max(len));
            bytes.truncate(len);
        },
    );
    let len = input.len().min(max_size);
    data[..len].copy_from_slice(&input[..len]);
    len
}

/// Changes bytes without libFuzzer's help.
pub fn bytes(bytes: &mut Vec<u8>, most: usize, random: &mut Random) {
    let at = random.index(bytes.len());
    let part = |random: &mut Random, len: usize| -> Range<usize> {
        let start = random.index(len);
        start..len.min(start + 1 + random.index(32))
    };
    match random.below(6) {
        0 if bytes.len() < most => bytes.insert(at, random.any() as u8),
        1 if !bytes.is_empty() => drop(bytes.drain(part(random, bytes.len()))),
        2 => {
            let again = bytes[part(random, bytes.len())].to_vec();
            bytes.splice(at..at, again);
            bytes.truncate(most);
        }
        3 => {
            let number = interesting(random).to_le_bytes();
            let len = random.of([2, 4, 8]);
            for (byte, &new) in bytes.iter_mut().skip(at).zip(&number[..len]) {
                *byte = new;
            }
        }
        4 => bytes
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte = random.any() as u8),
        _ => bytes
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte ^= 1 << random.below(8)),
    }
}

/// A number that something may overflow by, or nearly.
fn interesting(random: &mut Random) -> u64 {
    let near = random.below(5);
    let base = match random.below(4) {
        0 => 0,
        1 => random.of([
            1 << 12,
            64 << 10,
            128 << 10,
            256 << 10,
            1 << 20,
            32 << 20,
            64 << 20,
        ]),
        2 => 1_u64 << random.below(64),
        _ => random.of([u64::from(u32::MAX), i64::MAX as u64, u64::MAX]),
    };
    base.wrapping_add(near).wrapping_sub(2)
}

/// Changes an input of the target `decode`.
pub fn chunk(input: &mut Vec<u8>, most: usize, random: &mut Random, change: ChangeBytes<'_>) {
    if input.len() <= PREFIX_LEN || most <= PREFIX_LEN || random.one_in(20) {
        return change(input, most);
    }
    let mut body = input.split_off(PREFIX_LEN);
    if random.one_in(4) {
        let at = random.index(PREFIX_LEN);
        input[at] = random.any() as u8;
    }
    let codec = input[0] % ENCODINGS.len() as u8;
    payload(codec, &mut body, most - PREFIX_LEN, random, change);
    input.extend(body);
}

/// Changes an input of the target `archive`, if it is a file; any other in no special way.
pub fn archive(input: &mut Vec<u8>, most: usize, random: &mut Random, change: ChangeBytes<'_>) {
    let Some(mut layout) = Layout::parse(input).filter(|_| !random.one_in(15)) else {
        return change(input, most);
    };
    for _ in 0..1 + random.below(3) {
        change_layout(&mut layout, most, random, change);
    }
    if !random.one_in(10) {
        layout.add_up();
    }
    if !random.one_in(10) {
        layout.seal();
    }
    let changed = layout.bytes();
    match changed.len() <= most {
        true => *input = changed,
        false => change(input, most),
    }
}

fn change_layout(layout: &mut Layout, most: usize, random: &mut Random, change: ChangeBytes<'_>) {
    let at = random.index(layout.chunks.len());
    let Some(chunk) = layout.chunks.get_mut(at) else {
        return change(&mut layout.tail, most);
    };
    match random.below(19) {
        0..=6 => {
            payload(layout.codec, &mut chunk.payload, most, random, change);
            chunk.packed = chunk.payload.len() as u64;
        }
        7 => {
            chunk.original = match chunk.original.checked_next_multiple_of(64 << 10) {
                Some(full) if random.one_in(2) => full,
                _ => chunk.original.wrapping_add(random.below(7)).wrapping_sub(3),
            }
        }
        8 => chunk.original = interesting(random),
        9 => {
            chunk.packed = match random.one_in(2) {
                true => interesting(random),
                false => chunk.payload.len() as u64,
            }
        }
        10 => {
            let again = chunk.clone();
            let to = random.index(layout.chunks.len() + 1);
            layout.chunks.insert(to, again);
        }
        11 => drop(layout.chunks.remove(at)),
        12 => {
            // The payload twice: for Zstandard that is a chunk of twice the size.
            let again = chunk.payload.clone();
            chunk.payload.extend(again);
            chunk.packed = chunk.payload.len() as u64;
            chunk.original = chunk.original.wrapping_mul(2);
        }
        13 => layout.version = random.of([1, 2]),
        14 => match random.one_in(3) {
            true => layout.codec = random.below(4) as u8,
            false => layout.count = Some(interesting(random) as u32),
        },
        15 => change(&mut layout.tail, most),
        _ => record(&mut layout.tail, random),
    }
}

/// Changes a byte of the record of digests: of its tail's layout more often than of the rest.
fn record(tail: &mut [u8], random: &mut Random) {
    let footer_len = Footer::parse(tail).ok().flatten();
    let footer_len = footer_len.map_or(0, |footer| footer.to_bytes().len());
    let len = tail.len();
    let at = match random.one_in(3) {
        true => len.saturating_sub(28 - random.index(16)),
        false => footer_len + random.index(len - footer_len),
    };
    if let Some(byte) = tail.get_mut(at) {
        *byte = random.of([0, *byte ^ 1, byte.wrapping_add(1), 255]);
    }
}

const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

fn payload(
    codec: u8,
    payload: &mut Vec<u8>,
    most: usize,
    random: &mut Random,
    change: ChangeBytes<'_>,
) {
    match (codec, random.below(8)) {
        // A frame that is to be skipped.
        (1, 0) => {
            let mut skipped = (0x184D_2A50 + random.below(16) as u32)
                .to_le_bytes()
                .to_vec();
            let len = random.below(20) as u32;
            skipped.extend(len.to_le_bytes());
            skipped.resize(skipped.len() + len as usize, 0);
            let at = random.of([0, payload.len()]);
            payload.splice(at..at, skipped);
        }
        // The window or the content size that a frame asks for.
        (1, 1) if payload.starts_with(&ZSTD_MAGIC) && payload.len() > 12 => {
            let at = 4 + random.index(8);
            payload[at] = random.any() as u8;
        }
        // Blocks of one byte repeated, or of none.
        (1, 2) if payload.starts_with(&ZSTD_MAGIC) => {
            let any = random.below(1 << 18) as u32;
            let len = random.of([0, 1, 5, 1 << 17, any]);
            let block = (len << 3 | 0b010).to_le_bytes();
            let at = (6 + random.index(10)).min(payload.len());
            for _ in 0..1 + random.below(4) {
                payload.splice(at..at, [block[0], block[1], block[2], 7]);
            }
        }
        // A block more, stored, at the end of an LZ4 frame.
        (0, 0) if payload.ends_with(&[0; 4]) => {
            let len = 1 + random.below(40) as u32;
            let at = payload.len() - 4;
            let mut block = (len | 1 << 31).to_le_bytes().to_vec();
            block.resize(4 + len as usize, 9);
            payload.splice(at..at, block);
        }
        (0, 1) if payload.len() > 7 => {
            let at = 4 + random.index(10).min(payload.len() - 5);
            payload[at] = random.any() as u8;
        }
        _ => change(payload, most),
    }
    if codec == 0 && !random.one_in(10) {
        sign_lz4_header(payload);
    }
}

/// Gives an LZ4 frame's header the checksum that it should have.
fn sign_lz4_header(frame: &mut [u8]) {
    let Some(flags) = frame.get(4) else { return };
    let end = match flags & 0b1000 {
        0 => 6,
        _ => 14,
    };
    if let Some(described) = frame.get(4..end) {
        let checksum = (XxHash32::oneshot(0, described) >> 8) as u8;
        if let Some(place) = frame.get_mut(end) {
            *place = checksum;
        }
    }
}
