//! Which inode number a node gets, which is its id as well.
//!
//! A file's own number, as a rule: `find -inum`, hard-link detection and backup tools then see in the mount what they see
//! in the source. Numbers must be unique while the kernel knows them, though, and three things stand against that: a
//! source may span devices, one file may show twice (a hard link `a.warp` as the original, another, `b`, raw; or a packed
//! file that was changed while it is held), and FUSE keeps 0 and 1 for itself. In those cases the number is a hash of
//! device, inode and view with the top bit set. For files on other devices it is the same at every mount, but for the rare
//! collision; of two that show one file, whichever is met first gets the file's own number.

use twox_hash::XxHash64;

/// Which file, shown how: what a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Shown as its original.
    pub(super) decoded: bool,
}

const TOP_BIT: u64 = 1 << 63;

/// The number for `key`, the first of its candidates that is not `taken`.
pub(super) fn choose(key: Key, root_device: u64, taken: impl Fn(u64) -> bool) -> u64 {
    if key.device == root_device && key.inode > 1 && !taken(key.inode) {
        return key.inode;
    }
    let bytes: Vec<u8> = [key.device, key.inode, u64::from(key.decoded)]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    let mut number = XxHash64::oneshot(0, &bytes) | TOP_BIT;
    // There are fewer nodes than numbers, so a free one is found.
    while taken(number) {
        number = number.wrapping_add(1) | TOP_BIT;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(device: u64, inode: u64) -> Key {
        Key {
            device,
            inode,
            decoded: false,
        }
    }

    #[test]
    fn a_file_on_the_roots_device_keeps_its_number_and_others_get_hashed_ones() {
        let free = |_| false;
        assert_eq!(choose(key(7, 42), 7, free), 42);
        for hashed in [key(8, 42), key(7, 0), key(7, 1)] {
            let number = choose(hashed, 7, free);
            assert_ne!(number & TOP_BIT, 0);
            assert_eq!(choose(hashed, 7, free), number);
        }
        assert_ne!(choose(key(8, 42), 7, free), choose(key(9, 42), 7, free));
    }

    #[test]
    fn a_number_in_use_is_passed_over() {
        let first = choose(key(7, 42), 7, |number| number == 42);
        assert_ne!(first & TOP_BIT, 0);
        let second = choose(key(7, 42), 7, |number| number == 42 || number == first);
        assert_ne!(second, first);
        assert_ne!(second & TOP_BIT, 0);
    }
}
