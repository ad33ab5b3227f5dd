//! What became of a tree, counted.

use crate::pack::Summary;

/// What became of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSummary {
    /// How many files were packed, unpacked or verified.
    pub files: u64,
    /// The size of their originals, in bytes.
    pub original_size: u64,
    /// The size of their `.warp` files, in bytes.
    pub packed_size: u64,
    /// How many files were copied as they are.
    pub copied: u64,
    /// The size of those, in bytes.
    pub copied_size: u64,
    /// How many files and links were done by an earlier run and have not changed since.
    pub up_to_date: u64,
    /// How many files were left as they are, where they are.
    pub left: u64,
    /// The size of those, in bytes.
    pub left_size: u64,
    /// How many symbolic and hard links were made.
    pub links: u64,
    /// How many devices, pipes and sockets were left out.
    pub special: u64,
    /// How many things failed, each reported to the observer.
    pub failed: u64,
}

impl TreeSummary {
    /// Counts a file that was packed, unpacked or verified; one that some bytes of are lost has failed.
    pub(super) fn count(&mut self, made: &Summary) {
        if made.lost > 0 {
            self.failed += 1;
            return;
        }
        self.files += 1;
        self.original_size += made.original_size;
        self.packed_size += made.packed_size;
    }

    /// Counts a file that was copied.
    pub(super) fn count_copy(&mut self, size: u64) {
        self.copied += 1;
        self.copied_size += size;
    }
}
