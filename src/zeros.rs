//! Whether bytes are all zero: what holes read as, and what becomes holes again.

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
