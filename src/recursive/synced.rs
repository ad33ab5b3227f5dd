//! Whether a sync of a whole file system tells what became of each of its files.
//!
//! New files are synced all at once, by syncfs(2), and get their names if that succeeds. It says what was not written only where
//! the kernel writes to the disk itself, and has said so since Linux 5.8. A file system that lies over another does not know what
//! happens below it; a FUSE server is not even told of the call; what is in a network may be written later. There each file
//! has to be asked by itself, and so it is on whatever is not known here.

use std::fs::File;

/// The file systems that are known to tell, by their numbers: of linux/magic.h those of ext2 to ext4, XFS, Btrfs, F2FS, tmpfs, FAT and exFAT, of
/// the kernel's ntfs3 its own, of OpenZFS's sys/fs/zfs.h that of ZFS.
const TELLING: [u32; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x0102_1994,
    0x4d44,
    0x2011_bab0,
    0x7366_746e,
    0x2fc1_2fc1,
];

/// Whether syncfs(2) of the file system that a file is on fails if anything was not written.
pub(super) fn tells_of_all(file: &File) -> bool {
    let system = rustix::system::uname();
    // The field is signed or not, and longer or not, by the processor.
    tells_since(&system.release().to_string_lossy())
        && rustix::fs::fstatfs(file).is_ok_and(|stat| TELLING.contains(&(stat.f_type as u32)))
}

/// Whether a kernel of this release has syncfs(2) say what failed.
fn tells_since(release: &str) -> bool {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    (number(), number()) >= (5, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_sync_without_saying_what_failed_are_told_by_their_release() {
        for release in ["5.8.0", "5.10.0-28-amd64", "6.1", "6.18.44-a", "10.0-rc1"] {
            assert!(tells_since(release), "{release}");
        }
        for release in ["5.7.19-generic", "5.6", "4.18.0-553.el8", "5", "", "other"] {
            assert!(!tells_since(release), "{release}");
        }
    }

    #[test]
    fn what_is_made_up_by_the_kernel_is_none_of_the_file_systems_that_are_known() {
        assert!(!tells_of_all(&File::open("/proc/self/status").unwrap()));
    }
}
