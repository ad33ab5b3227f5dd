//! Chunks that are not compressed: their bytes as they are, and zeros, of which nothing is stored.

use super::stream::Input;
use super::{damaged, larger_than, shorter};
use crate::error::{Error, Result};
use crate::format::Encoding;

pub(super) fn decode_into(payload: &[u8], output: &mut [u8]) -> Result<()> {
    let announced = output.len() as u64;
    if payload.len() > output.len() {
        return Err(larger_than(Encoding::Stored, announced));
    }
    if payload.len() < output.len() {
        return Err(shorter(Encoding::Stored, announced, payload.len() as u64));
    }
    output.copy_from_slice(payload);
    Ok(())
}

pub(super) fn zeros_into(payload: &[u8], output: &mut [u8]) -> Result<()> {
    if !payload.is_empty() {
        return Err(with_payload());
    }
    output.fill(0);
    Ok(())
}

fn with_payload() -> Error {
    damaged(Encoding::Zeros, "there is a payload")
}

/// Hands out stored bytes piece by piece, from anywhere.
pub(super) struct Decoder {
    position: u64,
}

impl Decoder {
    pub(super) fn at(position: u64) -> Self {
        Self { position }
    }

    pub(super) fn seek(&mut self, offset: u64) -> u64 {
        self.position = offset;
        offset
    }

    pub(super) fn decode(&mut self, input: &mut Input<'_>, output: &mut [u8]) -> Result<usize> {
        let rest = input.len().saturating_sub(self.position);
        let length = usize::try_from(rest).map_or(output.len(), |rest| rest.min(output.len()));
        if let Some(wanted) = output.get_mut(..length).filter(|wanted| !wanted.is_empty()) {
            input.payload().read_at(self.position, wanted)?;
        }
        self.position = self.position.saturating_add(length as u64);
        Ok(length)
    }
}

/// Hands out as many zeros as are announced.
pub(super) struct Zeros {
    left: u64,
}

impl Zeros {
    pub(super) fn open(payload_len: u64, announced: u64) -> Result<Self> {
        match payload_len {
            0 => Ok(Self::at(0, announced)),
            _ => Err(with_payload()),
        }
    }

    pub(super) fn at(position: u64, announced: u64) -> Self {
        let left = announced.saturating_sub(position);
        Self { left }
    }

    pub(super) fn seek(&mut self, offset: u64, announced: u64) -> u64 {
        self.left = announced.saturating_sub(offset);
        offset
    }

    pub(super) fn decode(&mut self, output: &mut [u8]) -> usize {
        let length = usize::try_from(self.left).map_or(output.len(), |left| left.min(output.len()));
        output.get_mut(..length).unwrap_or_default().fill(0);
        self.left = self.left.saturating_sub(length as u64);
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::stream::tests::InMemory;
    use crate::codec::{Stream, decode_into};

    #[test]
    fn stored_bytes_and_zeros_are_handed_out_from_anywhere_and_end_where_they_must() {
        let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let stored = InMemory::new(bytes.clone());
        let nothing = InMemory::new(Vec::new());
        let zeros = vec![0; bytes.len()];
        for (encoding, payload, expected) in [
            (Encoding::Stored, &stored, &bytes),
            (Encoding::Zeros, &nothing, &zeros),
        ] {
            let len = expected.len();
            assert_eq!(
                Stream::memory(encoding, payload, len as u64).unwrap(),
                Some(0)
            );
            let mut stream = Stream::open(encoding, payload, len as u64).unwrap();
            for (from, to) in [(0, 10), (700_001, 800_000), (5, 6), (len - 3, len)] {
                assert_eq!(stream.seek(payload, from as u64).unwrap(), from as u64);
                let mut output = vec![1; to - from];
                stream.decode(payload, &mut output).unwrap();
                assert!(output == expected[from..to], "{encoding} from {from}");
            }
        }
        for wrong in [bytes.len() - 1, bytes.len() + 1] {
            let mut stream = Stream::open(Encoding::Stored, &stored, wrong as u64).unwrap();
            assert!(
                stream
                    .decode(&stored, &mut vec![0; wrong])
                    .unwrap_err()
                    .is_damage()
            );
            let whole = decode_into(Encoding::Stored, &bytes, &mut vec![0; wrong]);
            assert!(whole.unwrap_err().is_damage());
        }
        assert!(Stream::open(Encoding::Zeros, &stored, 10).is_err());
        assert!(decode_into(Encoding::Zeros, b"x", &mut [0]).is_err());
    }
}
