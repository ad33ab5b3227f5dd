//! Files that are mostly holes: cheap to pack, and as sparse as before when they are unpacked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use warpfs::format::Codec;
use warpfs::job::Control;
use warpfs::pack::{PackOptions, pack_file};
use warpfs::unpack::{UnpackOptions, unpack_file};
use warpfs::verify::{VerifyOptions, verify_file};

/// Makes a file of `size` bytes with data at each of `islands` and nowhere else.
fn sparse_file(path: &Path, size: u64, islands: &[u64]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for &island in islands {
        file.write_all_at(&island_at(island), island).unwrap();
    }
}

fn island_at(offset: u64) -> Vec<u8> {
    format!("island at {offset}, ").repeat(500).into_bytes()
}

/// Packs and unpacks, and looks at the islands, the sea around them and the disk space.
fn round_trip(size: u64, islands: &[u64], options: &PackOptions) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    sparse_file(&at("disk"), size, islands);
    let summary = pack_file(at("disk"), at("disk.warp"), options, Control::default()).unwrap();
    assert_eq!(summary.original_size, size);
    verify_file(
        at("disk.warp"),
        VerifyOptions::default(),
        Control::default(),
    )
    .unwrap();
    let unpacking = UnpackOptions::default();
    unpack_file(at("disk.warp"), at("back"), &unpacking, Control::default()).unwrap();
    let back = File::open(at("back")).unwrap();
    let metadata = back.metadata().unwrap();
    assert_eq!(metadata.len(), size);
    let most = islands.len() as u64 * 32_768 + 65_536;
    assert!(
        metadata.blocks() * 512 <= most,
        "{} blocks in use",
        metadata.blocks()
    );
    for &island in islands {
        let expected = island_at(island);
        let mut read = vec![0; expected.len()];
        back.read_exact_at(&mut read, island).unwrap();
        assert!(read == expected, "island at {island}");
        for sea in [island.saturating_sub(4_096), island + expected.len() as u64] {
            let mut read = [1; 4_096];
            if sea + 4_096 <= size && sea != island {
                back.read_exact_at(&mut read, sea).unwrap();
                assert!(read.iter().all(|&byte| byte == 0), "sea at {sea}");
            }
        }
    }
}

#[test]
fn a_sparse_file_of_many_gibibytes_comes_back_sparse() {
    let size = (12 << 30) + 12_345;
    // At the start, across a chunk's end, far out, and near the end.
    let islands = [
        0,
        (1 << 20) - 5_000,
        5 << 30,
        (11 << 30) + 1,
        (12 << 30) - 8_192,
    ];
    round_trip(size, &islands, &PackOptions::default());
}

#[test]
fn every_codec_keeps_holes_with_chunks_of_any_size() {
    for codec in Codec::ALL {
        for chunk_size in [4 << 10, 100_000, 3 << 20] {
            let options = PackOptions {
                codec: Some(codec),
                chunk_size: Some(chunk_size),
                ..PackOptions::default()
            };
            round_trip(20 << 20, &[40_000, (7 << 20) + 777, 19 << 20], &options);
        }
    }
}

#[test]
fn a_file_that_is_one_hole_is_packed_without_being_read() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    sparse_file(&at("hole"), 1 << 30, &[]);
    let summary = pack_file(
        at("hole"),
        at("hole.warp"),
        &PackOptions::default(),
        Control::default(),
    );
    assert!(summary.unwrap().packed_size < 1 << 20);
    let unpacking = UnpackOptions::default();
    unpack_file(at("hole.warp"), at("back"), &unpacking, Control::default()).unwrap();
    let metadata = at("back").metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (1 << 30, 0));
}
