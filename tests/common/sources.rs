//! Trees to mount.

use std::fs;

use super::{pack, sample};

/// A tree with a file of 1 MiB in each of two codecs, `lz4.warp` and `zstd.warp`, in chunks of 64 KiB, and `damaged.warp`, whose
/// middle is; the names of the first two begin with `prefix`.
pub fn two_codecs_and_damage(prefix: &str) -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    let original = source.path().join("original");
    fs::write(&original, sample(1 << 20, 3)).unwrap();
    for codec in ["lz4", "zstd"] {
        let packed = source.path().join(format!("{prefix}{codec}.warp"));
        pack(
            &original,
            &packed,
            &["--codec", codec, "--chunk-size", "64K"],
        );
    }
    fs::remove_file(&original).unwrap();
    let zstd = source.path().join(format!("{prefix}zstd.warp"));
    let mut damaged = fs::read(zstd).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    fs::write(source.path().join("damaged.warp"), damaged).unwrap();
    source
}
