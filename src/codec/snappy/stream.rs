//! Raw Snappy a piece at a time, by a decoder of our own: no other keeps its state between pieces.
//!
//! The format lets a copy reach back to the beginning of the chunk, but its encoders work in blocks of 64 KiB and never
//! look behind one. So 64 KiB are kept, and a chunk that wants more can only be decoded whole. The format is that of
//! `format_description.txt` of the reference implementation: elements, each a tag with what its two low bits say.

use snap::raw::decompress_len;

use crate::codec::stream::{Input, Payload, WINDOW_ROOM, Window, beginning};
use crate::codec::{damaged, larger_than, shorter};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Codec, Encoding};

/// The longest length in front of a payload, in bytes.
const PREFIX_LEN: usize = 5;
/// The longest tag with its operand, in bytes.
const TAG_LEN: usize = 5;
/// The longest copy, in bytes.
const COPY_LEN: usize = 64;
/// How much is copied at a time where there is room for it, in bytes.
const WIDE: usize = 16;

/// A Snappy payload being decoded.
pub(in crate::codec) struct Decoder {
    window: Window,
    /// How many bytes have been decoded before those in the window.
    forgotten: u64,
    /// How much of the payload has been taken, in bytes.
    consumed: u64,
    /// What is left of the element that the last piece ended in.
    element: Option<Element>,
}

#[derive(Clone, Copy)]
enum Element {
    /// So many bytes as they are.
    Literal { len: usize },
    /// So many bytes of those from so far back.
    Copy { distance: usize, len: usize },
}

impl Decoder {
    /// See [`crate::codec::Stream::memory`].
    pub(in crate::codec) const MEMORY: u64 = WINDOW_ROOM as u64;

    pub(in crate::codec) fn open(payload: &dyn Payload, announced: u64) -> Result<Self> {
        let (prefix, len) = beginning::<PREFIX_LEN>(payload)?;
        let prefix = prefix.get(..len).unwrap_or_default();
        let prefix_len = prefix_len(prefix)?;
        let found = decompress_len(prefix).map_err(refused)? as u64;
        if found > announced {
            return Err(larger_than(Codec::Snappy, announced));
        }
        if found < announced {
            return Err(shorter(Codec::Snappy, announced, found));
        }
        Ok(Self {
            window: Window::default(),
            forgotten: 0,
            consumed: prefix_len as u64,
            element: None,
        })
    }

    pub(in crate::codec) fn decode(
        &mut self,
        input: &mut Input<'_>,
        output: &mut [u8],
    ) -> Result<usize> {
        let mut piece = Piece {
            before: self.window.bytes(),
            forgotten: self.forgotten,
            output,
            filled: 0,
        };
        while piece.filled < piece.output.len() {
            let source = input.from(self.consumed, TAG_LEN)?;
            let taken = match self.element {
                None if source.is_empty() => break,
                None => {
                    let taken = piece.short_elements(source)?;
                    let rest = source.get(taken..).unwrap_or_default();
                    // With less than a whole tag left there may be more to fetch.
                    if taken == 0 || rest.len() >= TAG_LEN {
                        let (element, tag_len) = Element::parse(rest)?;
                        self.element = Some(element);
                        taken + tag_len
                    } else {
                        taken
                    }
                }
                Some(Element::Literal { len }) => {
                    let taken = piece.literal(source, len)?;
                    self.element = match len - taken {
                        0 => None,
                        len => Some(Element::Literal { len }),
                    };
                    taken
                }
                Some(Element::Copy { distance, len }) => {
                    let copied = piece.copy(distance, len)?;
                    self.element = match len - copied {
                        0 => None,
                        len => Some(Element::Copy { distance, len }),
                    };
                    0
                }
            };
            self.consumed += taken as u64;
        }
        let filled = piece.filled;
        let held = self.window.bytes().len();
        self.window.push(output.get(..filled).unwrap_or_default());
        let dropped = (held + filled).saturating_sub(self.window.bytes().len());
        self.forgotten += dropped as u64;
        Ok(filled)
    }
}

/// How many bytes a payload's elements decode to, from their tags alone.
pub(super) fn elements_len(payload: &[u8]) -> Result<u64> {
    let prefix_len = prefix_len(payload)?;
    let mut rest = payload.get(prefix_len..).unwrap_or_default();
    let mut found = 0_u64;
    while !rest.is_empty() {
        let (element, tag_len) = Element::parse(rest)?;
        let (len, taken) = match element {
            Element::Literal { len } => (len, tag_len.saturating_add(len)),
            Element::Copy { len, .. } => (len, tag_len),
        };
        rest = rest.get(taken..).ok_or_else(cut_short)?;
        found = found.saturating_add(len as u64);
    }
    Ok(found)
}

/// The length of the length in front of a payload, in bytes.
fn prefix_len(payload: &[u8]) -> Result<usize> {
    let mut prefix = payload.iter().take(PREFIX_LEN);
    match prefix.position(|byte| byte & 0x80 == 0) {
        Some(last) => Ok(last + 1),
        None => Err(refused("no length in front")),
    }
}

impl Element {
    /// Reads the tag that `source` begins with; also says how many bytes it takes.
    fn parse(source: &[u8]) -> Result<(Self, usize)> {
        let (&tag, operand) = source.split_first().ok_or_else(cut_short)?;
        let number = |len: usize| {
            let mut bytes = [0; 4];
            let operand = operand.get(..len).ok_or_else(cut_short)?;
            for (byte, &read) in bytes.iter_mut().zip(operand) {
                *byte = read;
            }
            usize::try_from(u32::from_le_bytes(bytes)).map_err(refused)
        };
        let high = usize::from(tag >> 2);
        Ok(match tag & 3 {
            0 => match high.checked_sub(59) {
                None | Some(0) => (Element::Literal { len: high + 1 }, 1),
                Some(len) => {
                    let less_one = number(len)?;
                    let element = Element::Literal {
                        len: less_one.checked_add(1).ok_or_else(cut_short)?,
                    };
                    (element, 1 + len)
                }
            },
            1 => {
                let distance = usize::from(tag >> 5) << 8 | number(1)?;
                let len = (high & 7) + 4;
                (Element::Copy { distance, len }, 2)
            }
            2 => {
                let distance = number(2)?;
                (
                    Element::Copy {
                        distance,
                        len: high + 1,
                    },
                    3,
                )
            }
            _ => {
                let distance = number(4)?;
                (
                    Element::Copy {
                        distance,
                        len: high + 1,
                    },
                    5,
                )
            }
        })
    }
}

/// A piece of output being filled.
struct Piece<'a> {
    /// The bytes before it that are still held.
    before: &'a [u8],
    /// How many came before those.
    forgotten: u64,
    output: &'a mut [u8],
    filled: usize,
}

impl Piece<'_> {
    /// Decodes the elements `source` begins with for as long as nothing is out of the ordinary: they are short, all
    /// there, look back into this piece only, and leave room to copy more than is meant. Says how many bytes that took.
    fn short_elements(&mut self, source: &[u8]) -> Result<usize> {
        let mut rest = source;
        while self.output.len() - self.filled >= COPY_LEN {
            let Some((head, _)) = rest.split_first_chunk::<TAG_LEN>() else {
                break;
            };
            let (element, tag_len) = Element::parse(head)?;
            match element {
                Element::Literal { len } if len <= COPY_LEN => {
                    let Some(wide) = rest.get(tag_len..tag_len + COPY_LEN) else {
                        break;
                    };
                    let Some(target) = self.output.get_mut(self.filled..self.filled + COPY_LEN)
                    else {
                        break;
                    };
                    let copied = len.next_multiple_of(WIDE);
                    for (target, wide) in target
                        .chunks_exact_mut(WIDE)
                        .zip(wide.chunks_exact(WIDE))
                        .take(copied / WIDE)
                    {
                        target.copy_from_slice(wide);
                    }
                    self.filled += len;
                    rest = rest.get(tag_len + len..).unwrap_or_default();
                }
                Element::Copy { distance, len }
                    if distance >= WIDE && distance <= self.filled && len <= COPY_LEN =>
                {
                    let from = self.filled - distance;
                    let Some(target) = self.output.get_mut(from..self.filled + COPY_LEN) else {
                        break;
                    };
                    let mut done = 0;
                    while done < len {
                        let Some(wide) = target.get(done..).and_then(<[u8]>::first_chunk::<WIDE>)
                        else {
                            break;
                        };
                        let wide = *wide;
                        let place = distance + done;
                        if let Some(place) = target.get_mut(place..place + WIDE) {
                            place.copy_from_slice(&wide);
                        }
                        done += WIDE;
                    }
                    self.filled += len;
                    rest = rest.get(tag_len..).unwrap_or_default();
                }
                Element::Copy { distance, len } if distance <= self.filled => {
                    self.copy(distance, len)?;
                    rest = rest.get(tag_len..).unwrap_or_default();
                }
                Element::Literal { .. } | Element::Copy { .. } => break,
            }
        }
        Ok(source.len() - rest.len())
    }

    /// Takes up to `len` bytes as they are, and says how many.
    fn literal(&mut self, source: &[u8], len: usize) -> Result<usize> {
        let target = self.output.get_mut(self.filled..).unwrap_or_default();
        let len = len.min(source.len()).min(target.len());
        if len == 0 {
            return Err(cut_short());
        }
        let source = source.get(..len).unwrap_or_default();
        target
            .get_mut(..len)
            .unwrap_or_default()
            .copy_from_slice(source);
        self.filled += len;
        Ok(len)
    }

    /// Repeats up to `len` of the bytes from `distance` back, and says how many.
    fn copy(&mut self, distance: usize, len: usize) -> Result<usize> {
        let end = self.output.len().min(self.filled + len);
        let len = end - self.filled;
        if distance == 0 {
            return Err(refused("a copy from nowhere"));
        }
        let mut before = distance.saturating_sub(self.filled);
        if before > self.before.len() {
            return Err(
                match before as u64 - self.before.len() as u64 > self.forgotten {
                    true => refused("a copy from before the beginning"),
                    false => ErrorKind::Unstreamable {
                        codec: Encoding::Snappy,
                    }
                    .into(),
                },
            );
        }
        while before > 0 && self.filled < end {
            let from = self.before.len() - before;
            let count = before.min(end - self.filled);
            let source = self.before.get(from..from + count).unwrap_or_default();
            self.output
                .get_mut(self.filled..self.filled + count)
                .unwrap_or_default()
                .copy_from_slice(source);
            self.filled += count;
            before -= count;
        }
        // What repeats itself grows to twice as much with every copy.
        let from = self.filled.saturating_sub(distance);
        while self.filled < end {
            let count = (self.filled - from).min(end - self.filled);
            self.output.copy_within(from..from + count, self.filled);
            self.filled += count;
        }
        Ok(len)
    }
}

fn refused(detail: impl ToString) -> Error {
    damaged(Codec::Snappy, detail)
}

fn cut_short() -> Error {
    refused("the payload ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Stream;
    use crate::codec::stream::tests::InMemory;

    /// A literal of 200,000 bytes, and a copy of ten from `distance` before its end.
    fn payload(distance: u32) -> (Vec<u8>, InMemory) {
        let literal: Vec<u8> = (0..50_000_u32)
            .flat_map(|n| (n * 77).to_le_bytes())
            .collect();
        let mut bytes = vec![0xca, 0x9a, 0x0c, 62 << 2];
        bytes.extend(&199_999_u32.to_le_bytes()[..3]);
        bytes.extend(&literal);
        bytes.push(9 << 2 | 3);
        bytes.extend(distance.to_le_bytes());
        (literal, InMemory::new(bytes))
    }

    fn decode(payload: &InMemory, piece: usize) -> Result<Vec<u8>> {
        let mut stream = Stream::open(Codec::Snappy, payload, 200_010)?;
        let mut output = vec![0; 200_010];
        for piece in output.chunks_mut(piece) {
            stream.decode(payload, piece)?;
        }
        Ok(output)
    }

    #[test]
    fn a_copy_from_further_back_than_encoders_look_is_for_whole_decoding() {
        let (literal, near) = payload(60_000);
        for piece in [1_000, 130_000, 200_005, 200_010] {
            assert!(decode(&near, piece).unwrap()[200_000..] == literal[140_000..140_010]);
        }
        let (literal, far) = payload(150_000);
        assert!(decode(&far, 200_010).unwrap()[200_000..] == literal[50_000..50_010]);
        for piece in [1_000, 199_000] {
            let error = decode(&far, piece).map(drop).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Unstreamable { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn a_copy_from_before_the_beginning_or_from_nowhere_is_damage() {
        for distance in [200_001, u32::MAX, 0] {
            let (_, payload) = payload(distance);
            for piece in [1_000, 130_000, 200_010] {
                assert!(decode(&payload, piece).map(drop).unwrap_err().is_damage());
            }
        }
        let (literal, first) = payload(200_000);
        assert!(decode(&first, 200_010).unwrap()[200_000..] == literal[..10]);
    }

    #[test]
    fn what_repeats_itself_closely_is_repeated_across_pieces() {
        for distance in 1..40_usize {
            // A literal of so many bytes, then sixty copies of 64 of them.
            let literal: Vec<u8> = (0..distance as u8).collect();
            let len = distance + 60 * 64;
            let mut bytes = vec![
                len as u8 | 0x80,
                (len >> 7) as u8,
                (distance as u8 - 1) << 2,
            ];
            bytes.extend(&literal);
            for _ in 0..60 {
                bytes.extend([63 << 2 | 2, distance as u8, 0]);
            }
            let expected: Vec<u8> = literal.into_iter().cycle().take(len).collect();
            let payload = InMemory::new(bytes);
            for piece in [1, 7, 63, 64, 65, 200, len] {
                let mut stream = Stream::open(Codec::Snappy, &payload, len as u64).unwrap();
                let mut output = vec![0; len];
                for piece in output.chunks_mut(piece) {
                    stream.decode(&payload, piece).unwrap();
                }
                assert!(output == expected, "{distance} {piece}");
            }
        }
    }
}
