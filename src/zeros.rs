//! Whether bytes are all zero: what holes read as, and what becomes holes again.

use crate::format::Codec;

/// The length of a payload's frame and first few instructions, generously, in bytes.
const FRAME: u64 = 64;

/// Whether a payload of so many bytes is short enough to be one of so many zeros: what is packed less tightly is none.
pub(crate) fn may_be_zeros(codec: Codec, packed_size: u64, original_size: u64) -> bool {
    // How many bytes of zeros a payload's byte stands for at the least, beside the frame. LZ4 has a byte for 255 of a long
    // match, Snappy three for 64, the others next to nothing.
    let ratio = match codec {
        Codec::Lz4 => 200,
        Codec::Snappy => 16,
        Codec::Zstd | Codec::Brotli => 1000,
    };
    packed_size <= FRAME + original_size / ratio
}

/// Whether there is not a byte but zero. Stops at the first 64 bytes with another: a block at a time is compared in wide
/// registers.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_enough_not_to_be_zero() {
        for len in [0, 1, 63, 64, 65, 1000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for place in 0..len {
                bytes[place] = 1;
                assert!(!is_zero(&bytes));
                bytes[place] = 0;
            }
        }
    }
}
