//! `verify --keep-going` and `unpack --keep-going`: what is damaged is named byte by byte, and the rest is saved.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::ops::Range;
use std::path::Path;

use common::{pack, sample, vector, warpfs};

/// Runs the program; gives its exit code, what it said, and what it wrote to standard output.
fn run(arguments: &[&str], file: &Path) -> (Option<i32>, String, Vec<u8>) {
    let output = warpfs().args(arguments).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said, output.stdout)
}

/// The byte ranges that were said to be lost.
fn lost(said: &str) -> Vec<Range<usize>> {
    let ranges = said.lines().filter_map(|line| {
        let (_, range) = line.strip_suffix(" are lost")?.rsplit_once("; bytes ")?;
        let (start, end) = range.split_once("..")?;
        Some(start.parse().ok()?..end.parse().ok()?)
    });
    ranges.collect()
}

/// Where each chunk's payload lies.
fn payloads(packed: &[u8]) -> Vec<Range<usize>> {
    let count = u32::from_le_bytes(packed[14..18].try_into().unwrap()) as usize;
    let mut start = 18 + 16 * count;
    let sizes = packed[18..18 + 8 * count].chunks(8);
    let ends = sizes.map(|size| {
        let payload = start..start + u64::from_le_bytes(size.try_into().unwrap()) as usize;
        start = payload.end;
        payload
    });
    ends.collect()
}

#[test]
fn what_is_lost_is_said_and_the_rest_is_saved() {
    const CHUNK: usize = 256 << 10;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(10 * CHUNK + 5, 1);
    fs::write(at("x"), &original).unwrap();
    for codec in ["lz4", "zstd", "snappy", "brotli"] {
        pack(
            &at("x"),
            &at("x.warp"),
            &["--codec", codec, "--chunk-size", "256K"],
        );
        let mut packed = fs::read(at("x.warp")).unwrap();
        let places = payloads(&packed);
        // Two thirds into one chunk, and all of the beginning of another.
        packed[places[3].start + places[3].len() * 2 / 3] ^= 0x40;
        packed[places[7].start..][..200].fill(0xff);
        fs::write(at("x.warp"), &packed).unwrap();

        let (code, said, _) = run(&["verify", "--keep-going"], &at("x.warp"));
        assert_eq!(code, Some(1));
        let ranges = lost(&said);
        assert!(!ranges.is_empty() && said.contains("but for"), "{said}");
        let chunks = [3 * CHUNK..4 * CHUNK, 7 * CHUNK..8 * CHUNK];
        for range in &ranges {
            let within =
                |chunk: &Range<usize>| chunk.start <= range.start && range.end <= chunk.end;
            assert!(chunks.iter().any(within), "{codec}: {said}");
        }
        // What was decoded before the damage is saved: the first half of the chunk, where a decoder comes by it.
        let intact = 3 * CHUNK..3 * CHUNK + CHUNK / 4;
        let of_first = ranges.iter().find(|range| range.start < 4 * CHUNK).unwrap();
        assert!(of_first.start >= intact.end, "{codec}: {said}");

        let mut expected = original.clone();
        for range in &ranges {
            expected[range.clone()].fill(0);
        }
        let unpacked = at("unpacked");
        let arguments = [
            "unpack",
            "-f",
            "--keep-going",
            "-o",
            unpacked.to_str().unwrap(),
        ];
        let (code, said, _) = run(&arguments, &at("x.warp"));
        assert_eq!((code, lost(&said)), (Some(1), ranges.clone()), "{codec}");
        assert!(fs::read(&unpacked).unwrap() == expected, "{codec}");
        let (code, said, written) = run(&["unpack", "-c", "--keep-going"], &at("x.warp"));
        assert_eq!((code, lost(&said)), (Some(1), ranges), "{codec}");
        assert!(written == expected, "{codec}");
        // A range without damage is whole, one with damage says what of it is lost.
        let (code, said, written) = run(
            &["unpack", "-c", "--keep-going", "--range", "10..600000"],
            &at("x.warp"),
        );
        assert_eq!((code, said.as_str()), (Some(0), ""), "{codec}");
        assert!(written == original[10..600_000]);
        let (code, said, _) = run(
            &["unpack", "-c", "--keep-going", "--range", "900000..1048000"],
            &at("x.warp"),
        );
        assert_eq!(code, Some(1));
        assert!(
            lost(&said)
                .iter()
                .all(|range| range.start >= 900_000 && range.end <= 1_048_000)
        );

        // Without the flag, nothing is written.
        let (code, _, _) = run(
            &["unpack", "-f", "-o", at("none").to_str().unwrap()],
            &at("x.warp"),
        );
        assert_eq!((code, at("none").exists()), (Some(1), false));
    }
}

#[test]
fn a_file_without_digests_loses_whole_chunks_and_says_when_nothing_is_proved() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = common::mixed();
    let mut packed = fs::read(vector("v2-zstd-blake3.warp")).unwrap();
    let places = payloads(&packed);
    packed[places[1].start + 40..][..64].fill(0xff);
    fs::write(at("x.warp"), &packed).unwrap();
    let (code, said, written) = run(&["unpack", "-c", "--keep-going"], &at("x.warp"));
    let second = 32768..65536;
    assert_eq!(
        (code, lost(&said)),
        (Some(1), Vec::from([second])),
        "{said}"
    );
    assert!(written[..32768] == original[..32768] && written[65536..] == original[65536..]);
    assert!(written[32768..65536].iter().all(|&byte| byte == 0));

    // Raw Snappy notices nothing wrong with a literal: only the checksum does, and it cannot say where.
    let packed = fs::read(vector("v2-snappy-blake3.warp")).unwrap();
    let places = payloads(&packed);
    let unnoticed = places[2].clone().find_map(|place| {
        let mut packed = packed.clone();
        packed[place] ^= 0x01;
        fs::write(at("x.warp"), &packed).unwrap();
        let (code, said, _) = run(&["verify", "--keep-going"], &at("x.warp"));
        assert_eq!(code, Some(1), "{said}");
        said.contains("checksum mismatch").then_some(said)
    });
    let whole = 0..original.len();
    assert_eq!(lost(&unnoticed.unwrap()), Vec::from([whole]));
}

#[test]
fn of_an_lz4_chunk_whose_first_block_is_damaged_the_others_are_saved() {
    const BLOCK: usize = 64 << 10;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(8 * BLOCK, 6);
    fs::write(at("x"), &original).unwrap();
    let arguments = ["--codec", "lz4", "--chunk-size", "512K"];
    pack(&at("x"), &at("x.warp"), &arguments);
    let mut packed = fs::read(at("x.warp")).unwrap();
    let start = payloads(&packed)[0].start;
    packed[start + 40..][..200].fill(0xff);
    fs::write(at("x.warp"), &packed).unwrap();
    let (code, said, written) = run(&["unpack", "-c", "--keep-going"], &at("x.warp"));
    let first = 0..BLOCK;
    assert_eq!((code, lost(&said)), (Some(1), vec![first]), "{said}");
    assert!(written[BLOCK..] == original[BLOCK..]);
}

#[test]
fn of_a_file_cut_short_all_that_it_still_holds_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(500_000, 4);
    fs::write(at("x"), &original).unwrap();
    pack(&at("x"), &at("x.warp"), &["--chunk-size", "64K"]);
    let whole = fs::read(at("x.warp")).unwrap();
    let places = payloads(&whole);
    fs::write(at("x.warp"), &whole[..places[3].end - 1]).unwrap();
    let gone = 3 * 65_536..original.len();
    let (code, said, _) = run(&["verify", "--keep-going"], &at("x.warp"));
    assert_eq!((code, lost(&said)), (Some(1), vec![gone.clone()]), "{said}");
    fs::remove_file(at("x")).unwrap();
    let (code, said, _) = run(&["unpack", "--keep-going"], &at("x.warp"));
    assert_eq!((code, lost(&said)), (Some(1), vec![gone.clone()]), "{said}");
    let saved = fs::read(at("x")).unwrap();
    assert_eq!(saved.len(), original.len());
    assert!(saved[..gone.start] == original[..gone.start]);
    assert!(saved[gone].iter().all(|&byte| byte == 0));
    // Without being told to keep going, nothing of it is taken for whole.
    fs::remove_file(at("x")).unwrap();
    let (code, said, _) = run(&["unpack"], &at("x.warp"));
    assert_eq!(code, Some(1));
    assert!(
        said.contains("--keep-going goes on behind damage"),
        "{said}"
    );
    assert!(!at("x").exists());
}

#[test]
fn of_a_file_with_a_damaged_footer_all_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(500_000, 5);
    fs::write(at("x"), &original).unwrap();
    pack(&at("x"), &at("x.warp"), &["--chunk-size", "64K"]);
    fs::remove_file(at("x")).unwrap();
    let whole = fs::read(at("x.warp")).unwrap();
    let footer = payloads(&whole).last().unwrap().end;
    let changed = |place: usize| {
        let mut changed = whole.clone();
        changed[place] ^= 0x40;
        changed
    };
    for damaged in [
        changed(footer + 4),
        changed(footer + 5),
        whole[..footer + 20].to_vec(),
    ] {
        fs::write(at("x.warp"), &damaged).unwrap();
        let (code, said, _) = run(&["unpack"], &at("x.warp"));
        assert_eq!(code, Some(1));
        assert!(said.contains("--keep-going goes on"), "{said}");
        let (code, said, written) = run(&["unpack", "-c", "--keep-going"], &at("x.warp"));
        assert_eq!(code, Some(1));
        assert!(said.contains("cannot be checked"), "{said}");
        assert!(written == original);
    }
}

#[test]
fn of_a_file_whose_chunks_have_to_be_measured_all_but_the_damaged_one_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    let mut packed = fs::read(vector("v1-brotli-blake3.warp")).unwrap();
    let original = fs::read(vector("mixed.bin")).unwrap();
    let count = u32::from_le_bytes(packed[14..18].try_into().unwrap()) as usize;
    let sizes = packed[18..18 + 8 * count].chunks(8);
    let sizes = sizes.map(|size| u64::from_le_bytes(size.try_into().unwrap()) as usize);
    let start = 18 + 8 * count + sizes.take(1).sum::<usize>();
    packed[start..start + 40].fill(0xff);
    fs::write(&path, &packed).unwrap();
    let (code, said, written) = run(&["unpack", "-c", "--keep-going"], &path);
    let second = 32_768..65_536;
    assert_eq!(
        (code, lost(&said)),
        (Some(1), vec![second.clone()]),
        "{said}"
    );
    assert!(written[..second.start] == original[..second.start]);
    assert!(written[second.end..] == original[second.end..]);
}

#[test]
fn what_was_saved_with_losses_is_not_taken_for_the_whole_later() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("x"), sample(300_000, 8)).unwrap();
    pack(&at("x"), &at("tree/x.warp"), &["--chunk-size", "64K"]);
    let good = fs::read(at("tree/x.warp")).unwrap();
    let mut bad = good.clone();
    bad[payloads(&good)[2].start + 30..][..30].fill(0);
    let time = fs::metadata(at("tree/x.warp")).unwrap().modified().unwrap();
    let put = |bytes: &[u8]| {
        fs::write(at("tree/x.warp"), bytes).unwrap();
        let file = fs::File::options().write(true).open(at("tree/x.warp"));
        file.unwrap().set_modified(time).unwrap();
    };
    put(&bad);
    let back = at("back").to_str().unwrap().to_owned();
    let (code, _, _) = run(&["unpack", "-r", "--keep-going", "-o", &back], &at("tree"));
    assert_eq!(code, Some(1));
    put(&good);
    let (code, said, _) = run(&["unpack", "-r", "-o", &back], &at("tree"));
    let whole = fs::read(at("back/x")).unwrap() == fs::read(at("x")).unwrap();
    assert!(whole || code == Some(1), "{said}");
}

#[test]
fn what_lies_behind_a_damaged_table_is_saved_by_hand_as_the_manual_says() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(500_000, 9);
    fs::write(at("x"), &original).unwrap();
    for (codec, magic, program) in [
        ("zstd", r"\x28\xb5\x2f\xfd", "zstd -dc"),
        ("lz4", r"\x04\x22\x4d\x18", "lz4 -dc"),
    ] {
        let options = ["--chunk-size", "64K", "--codec", codec];
        pack(&at("x"), &at("x.warp"), &options);
        let mut packed = fs::read(at("x.warp")).unwrap();
        packed[18..100].fill(0xff);
        fs::write(at("x.warp"), &packed).unwrap();
        for command in [
            &["verify", "--keep-going"][..],
            &["unpack", "-c", "--keep-going"],
        ] {
            let (code, said, _) = run(command, &at("x.warp"));
            assert_eq!((code, said.lines().count()), (Some(1), 2), "{said}");
            assert!(said.contains("A damaged beginning"), "{said}");
        }
        // The decoder complains of the footer.
        let script = format!(
            "OFFSET=$(LC_ALL=C grep -abom1 $'{magic}' x.warp | head -1 | cut -d: -f1)
             tail -c +$((OFFSET + 1)) x.warp | {program} > saved || true"
        );
        common::shell(directory.path(), &script);
        assert!(fs::read(at("saved")).unwrap() == original, "{codec}");
    }
}

#[test]
fn who_loses_chunks_by_a_table_that_tells_what_is_not_true_is_told_how_to_do_without() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), sample(500_000, 9)).unwrap();
    pack(&at("x"), &at("x.warp"), &["--chunk-size", "64K"]);
    let sound = fs::read(at("x.warp")).unwrap();
    // The first chunk's size by a few bytes; and a later one's, so that it ends behind the file.
    for (place, bytes) in [(18, &[0x0f][..]), (60, &[0xff; 3])] {
        let mut packed = sound.clone();
        for (at, byte) in packed[place..].iter_mut().zip(bytes) {
            *at ^= byte;
        }
        fs::write(at("x.warp"), &packed).unwrap();
        for command in [
            &["verify", "--keep-going"][..],
            &["unpack", "-c", "--keep-going"],
        ] {
            let (code, said, _) = run(command, &at("x.warp"));
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("A damaged beginning"), "{place}: {said}");
        }
    }
}

#[test]
fn a_tree_with_a_damaged_file_is_saved_as_far_as_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    for (name, seed) in [("a", 2), ("b", 3)] {
        fs::write(at(name), sample(300_000, seed)).unwrap();
        pack(
            &at(name),
            &at(&format!("tree/{name}.warp")),
            &["--chunk-size", "64K"],
        );
    }
    let mut packed = fs::read(at("tree/a.warp")).unwrap();
    let places = payloads(&packed);
    packed[places[2].start + 30..][..30].fill(0);
    fs::write(at("tree/a.warp"), &packed).unwrap();
    let (code, said, _) = run(&["verify", "-r", "--keep-going"], &at("tree"));
    assert_eq!(code, Some(1));
    let ranges = lost(&said);
    let counted = |what: &str| {
        let mut words = said.lines().map(str::split_whitespace);
        words.find_map(|mut words| (words.next()? == what).then(|| words.next()).flatten())
    };
    assert!(!ranges.is_empty(), "{said}");
    assert_eq!(
        (counted("verified"), counted("failed")),
        (Some("1"), Some("1")),
        "{said}"
    );
    let arguments = [
        "unpack",
        "-r",
        "--keep-going",
        "-o",
        directory.path().join("back").to_str().unwrap(),
    ]
    .map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, said, _) = run(&arguments, &at("tree"));
    assert_eq!((code, lost(&said)), (Some(1), ranges.clone()), "{said}");
    let mut expected = fs::read(at("a")).unwrap();
    for range in ranges {
        expected[range].fill(0);
    }
    assert!(fs::read(at("back/a")).unwrap() == expected);
    assert!(fs::read(at("back/b")).unwrap() == fs::read(at("b")).unwrap());
}
