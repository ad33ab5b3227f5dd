//! What `warpfs estimate` says is what `warpfs pack` comes to, for files, holes and trees; and what `pack --for` takes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::users::{SOMEBODY, as_user, place_of_somebody};
use common::{Random, run, sample, shell, warpfs};
use warpfs::estimate::{Estimate, Trial, estimate};
use warpfs::job::{Control, Unobserved};

static NEVER: AtomicBool = AtomicBool::new(false);

fn estimated(path: &Path) -> Estimate {
    let control = Control {
        observer: &Unobserved,
        cancelled: &NEVER,
    };
    estimate(&[path.to_owned()], control).unwrap()
}

/// The words of the command line that stand for a trial.
fn words(trial: &Trial) -> Vec<String> {
    let mut words = vec![
        "--codec".to_owned(),
        trial.codec.to_string(),
        "--chunk-size".to_owned(),
        trial.chunk_size.to_string(),
    ];
    let level = match trial.codec.to_string().as_str() {
        "zstd" => Some("--zstd-level"),
        "brotli" => Some("--brotli-quality"),
        _ => None,
    };
    if let (Some(option), Some(level)) = (level, trial.level) {
        words.extend([option.to_owned(), level.to_string()]);
    }
    words
}

/// Packs with these words and gives the size of everything that is written.
fn packed(path: &Path, words: &[String]) -> u64 {
    let own = tempfile::tempdir().unwrap();
    let out = own.path().join("out");
    let mut command = warpfs();
    command.args(["pack", "-q"]).args(words);
    if path.is_dir() {
        command.arg("-r");
    }
    let status = command.arg("-o").arg(&out).arg(path).status().unwrap();
    assert!(status.success());
    let sizes = shell(own.path(), "find out -type f -printf '%s\\n'");
    sizes.lines().map(|size| size.parse::<u64>().unwrap()).sum()
}

fn assert_close(what: &str, estimated: u64, packed: u64, size: u64, tolerance: f64) {
    let off = (estimated as f64 - packed as f64).abs() / size as f64;
    assert!(
        off < tolerance,
        "{what}: {estimated} estimated, {packed} packed, of {size}"
    );
}

const PURPOSES: [&str; 3] = ["archive", "balanced", "random"];

/// Holds a few settings and the three purposes to what `pack` comes to.
fn check(path: &Path, tolerance: f64) {
    let found = estimated(path);
    assert_eq!(found.failed, 0);
    for (name, trial) in PURPOSES.iter().zip(&found.purposes) {
        let packed = packed(path, &["--for".to_owned(), (*name).to_owned()]);
        assert_close(name, trial.packed_size, packed, found.size, tolerance);
    }
    let quick = found.trials.iter();
    let quick = quick.filter(|trial| trial.level.is_none_or(|level| level < 9));
    for trial in quick {
        let words = words(trial);
        assert_close(
            &words.join(" "),
            trial.packed_size,
            packed(path, &words),
            found.size,
            tolerance,
        );
        assert!(trial.pack_rate > 0.0 && trial.read_rate > 0.0 && !trial.random_read.is_zero());
    }
}

/// Bytes of which some stretches compress well, some badly, and some are zeros.
fn mixed(len: usize) -> Vec<u8> {
    let mut random = Random(11);
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let piece = 10_000 + random.below(200_000) as usize;
        match random.below(4) {
            0 => bytes.resize(bytes.len() + piece, 0),
            1 => bytes.extend((0..piece).map(|_| random.next() as u8)),
            _ => bytes.extend(sample(piece, random.next())),
        }
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn of_a_huge_file_the_chunks_are_those_that_it_would_be_packed_in() {
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("huge");
    let file = File::create(&path).unwrap();
    file.write_all_at(&mixed(3 << 20), 5 << 30).unwrap();
    for (size, chunks) in [
        (16_u64 << 30, [1 << 20, 128 << 10, 16 << 10]),
        (100 << 30, [1 << 20, 128 << 10, 128 << 10]),
        (200 << 30, [1 << 20, 256 << 10, 256 << 10]),
    ] {
        file.set_len(size).unwrap();
        let found = estimated(&path);
        let taken: Vec<_> = found
            .purposes
            .iter()
            .map(|trial| trial.chunk_size)
            .collect();
        assert_eq!(taken, chunks, "{size}");
    }
}

#[test]
fn a_file_packs_to_what_was_estimated() {
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("mixed");
    fs::write(&path, mixed(6_345_678)).unwrap();
    check(&path, 0.03);
}

#[test]
fn a_file_larger_than_what_is_sampled_packs_to_about_what_was_estimated() {
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("large");
    fs::write(&path, mixed(60 << 20)).unwrap();
    let found = estimated(&path);
    assert!(found.sampled <= 49 << 20, "{}", found.sampled);
    let packed = packed(&path, &[]);
    let balanced = &found.purposes[1];
    assert_close("large", balanced.packed_size, packed, found.size, 0.03);
}

#[test]
fn what_few_samples_miss_is_not_missing_in_what_was_estimated() {
    // Stretches of a few MiB, each of its own kind, as in a tar of programs: 48 samples do not meet them by their shares.
    let mut random = Random(23);
    let mut bytes = Vec::new();
    while bytes.len() < 120 << 20 {
        let piece = 500_000 + random.below(6 << 20) as usize;
        match random.below(3) {
            0 => bytes.extend((0..piece).map(|_| random.next() as u8)),
            1 => bytes.extend(sample(piece, random.next())),
            _ => bytes.extend((0..piece).map(|at| (at / 700) as u8)),
        }
    }
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("stretches");
    fs::write(&path, bytes).unwrap();
    let found = estimated(&path);
    let packed = packed(&path, &[]);
    let balanced = found.purposes[1].packed_size;
    assert_close("stretches", balanced, packed, found.size, 0.02);
}

#[test]
fn the_codec_is_the_one_that_the_file_s_beginning_decides_for() {
    // As a tar whose first member is a picture.
    let mut random = Random(7);
    let noise: Vec<u8> = (0..1 << 20).map(|_| random.next() as u8).collect();
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("file");
    fs::write(&path, [noise, sample(30 << 20, 3)].concat()).unwrap();
    let found = estimated(&path);
    let balanced = &found.purposes[1];
    assert_eq!(balanced.codec.to_string(), "snappy");
    let packed = packed(&path, &["--for".to_owned(), "balanced".to_owned()]);
    assert_close("file", balanced.packed_size, packed, found.size, 0.03);
}

#[test]
fn holes_are_counted_for_what_they_take_and_islands_are_found() {
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(4 << 30).unwrap();
    file.write_all_at(&mixed(3 << 20), 3 << 30).unwrap();
    let found = estimated(&path);
    let packed = packed(&path, &[]);
    let balanced = found.purposes[1].packed_size;
    let off = (balanced as f64 / packed as f64 - 1.0).abs();
    assert!(off < 0.1, "{balanced} estimated, {packed} packed");
}

fn tree(own: &Path) -> PathBuf {
    let root = own.join("tree");
    fs::create_dir_all(root.join("d")).unwrap();
    let mut random = Random(5);
    for number in 0..150 {
        let len = 200 + random.below(60_000) as usize;
        let bytes = match number % 3 {
            0 => (0..len).map(|_| random.next() as u8).collect(),
            _ => sample(len, number),
        };
        fs::write(root.join(format!("d/{number}")), bytes).unwrap();
    }
    fs::write(root.join("larger"), mixed(3 << 20)).unwrap();
    fs::hard_link(root.join("larger"), root.join("d/same")).unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    root
}

#[test]
fn a_tree_packs_to_what_was_estimated_with_its_copies_and_links() {
    let own = tempfile::tempdir().unwrap();
    let root = tree(own.path());
    fs::remove_file(root.join("d/same")).unwrap();
    check(&root, 0.03);
    let before = estimated(&root).size;
    fs::hard_link(root.join("larger"), root.join("d/same")).unwrap();
    assert_eq!(estimated(&root).size, before);
}

#[test]
fn a_file_that_cannot_be_read_is_told_of_once_however_large_it_is() {
    let (place, program) = place_of_somebody();
    let tree = place.source();
    fs::remove_file(tree.join("x.warp")).unwrap();
    fs::write(tree.join("readable"), mixed(200_000)).unwrap();
    let secret = tree.join("secret");
    fs::write(&secret, vec![1; 5 << 20]).unwrap();
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o000)).unwrap();
    // A few regions, all of which are looked at, and so many that only some are.
    for size in ["5M", "400M"] {
        shell(&tree, &format!("fallocate -l {size} secret"));
        let words = [program.as_os_str(), "estimate".as_ref(), tree.as_os_str()];
        let output = as_user(SOMEBODY, &words);
        let told = String::from_utf8(output.stderr).unwrap();
        let lines = told.lines().filter(|line| line.contains("cannot open"));
        assert_eq!(lines.count(), 1, "{told}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(" in 1 file, "), "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
    fs::remove_file(tree.join("readable")).unwrap();
    let words = [program.as_os_str(), "estimate".as_ref(), tree.as_os_str()];
    let told = String::from_utf8(as_user(SOMEBODY, &words).stderr).unwrap();
    assert!(told.contains("nothing here can be read"), "{told}");
}

#[test]
fn a_file_deeper_than_a_path_may_be_long_is_sampled() {
    let own = tempfile::tempdir().unwrap();
    let name = "d".repeat(200);
    let script = format!(
        "mkdir tree; cd tree; for level in $(seq 25); do mkdir {name}; cd -P {name}; done
        seq 100000 > file; cp file sparse; truncate -s 10M sparse"
    );
    shell(own.path(), &script);
    let found = estimated(&own.path().join("tree"));
    assert_eq!((found.failed, found.files), (0, 2));
    assert!(found.sampled > 1_000_000, "{}", found.sampled);
}

#[test]
fn a_log_that_grows_meanwhile_is_estimated() {
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("log");
    fs::write(&path, mixed(5 << 20)).unwrap();
    let mut log = File::options().append(true).open(&path).unwrap();
    let done = AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                log.write_all(b"x").unwrap();
            }
        });
        let control = Control {
            observer: &Unobserved,
            cancelled: &NEVER,
        };
        let found = estimate(&[path], control);
        done.store(true, Ordering::Relaxed);
        found.unwrap()
    });
    assert_eq!(found.failed, 0);
    assert!(found.sampled >= 5 << 20, "{}", found.sampled);
}

#[test]
fn the_command_prints_a_table_of_80_columns_within_seconds_and_what_to_type() {
    let own = tempfile::tempdir().unwrap();
    let root = tree(own.path());
    let start = Instant::now();
    let output = run([Path::new("estimate"), &root]);
    assert!(start.elapsed() < Duration::from_secs(30));
    let said = String::from_utf8(output.stdout).unwrap();
    let table: Vec<_> = said
        .lines()
        .take_while(|line| !line.starts_with("warpfs"))
        .collect();
    assert!(table.iter().all(|line| line.len() <= 80), "{said}");
    for purpose in PURPOSES {
        assert!(table.iter().any(|line| line.starts_with(purpose)), "{said}");
        let command = format!("warpfs pack -r --for {purpose} {}", root.display());
        assert!(said.contains(&command), "{said}");
    }
    let missing = warpfs()
        .args(["estimate", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn what_packs_for_a_purpose_is_the_same_bytes_every_time_and_not_together_with_a_level() {
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("file");
    fs::write(&path, mixed(3 << 20)).unwrap();
    for purpose in PURPOSES {
        let packed = |name: &str, threads: &str| {
            let output = own.path().join(name);
            common::pack(&path, &output, &["--for", purpose, "--threads", threads]);
            fs::read(output).unwrap()
        };
        assert!(packed("one", "1") == packed("three", "3"), "{purpose}");
        for other in [
            ["--level", "max"],
            ["--zstd-level", "3"],
            ["--brotli-quality", "5"],
        ] {
            let refused = warpfs()
                .args(["pack", "--for", purpose])
                .args(other)
                .arg(&path)
                .output()
                .unwrap();
            assert_eq!(refused.status.code(), Some(2));
        }
    }
    // But with a codec: LZ4 is searched for as thoroughly as there is time.
    let lz4 = |name: &str, options: &[&str]| {
        let output = own.path().join(name);
        common::pack(&path, &output, &[&["--codec", "lz4"], options].concat());
        fs::metadata(output).unwrap().len()
    };
    let fast = lz4("fast", &["--chunk-size", "16K"]);
    let random = lz4("random", &["--for", "random"]);
    let archive = lz4("archive", &["--for", "archive"]);
    assert!(
        archive <= random && random < fast,
        "{archive} {random} {fast}"
    );
    let wrong = warpfs().args(["pack", "--for", "fun"]).arg(&path).output();
    assert_eq!(wrong.unwrap().status.code(), Some(2));
}

#[test]
fn a_tree_is_not_to_be_packed_into_itself_however_it_is_named() {
    let own = tempfile::tempdir().unwrap();
    let logs = own.path().canonicalize().unwrap().join("logs");
    fs::create_dir_all(logs.join("old")).unwrap();
    fs::write(logs.join("old/x"), sample(10_000, 1)).unwrap();
    let beside = |name: &str| format!("{}.packed", logs.join(name).display());
    for (directory, tree, packed) in [
        ("..", "logs", "logs.packed".to_owned()),
        ("..", "logs/", "logs.packed".to_owned()),
        ("..", "./logs//old/.", "./logs/old.packed".to_owned()),
        ("old", ".", beside("old")),
        ("old", "..", format!("{}.packed", logs.display())),
    ] {
        let output = warpfs()
            .args(["estimate", "-q", tree])
            .current_dir(logs.join(directory))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("{tree} -o {packed} ")), "{text}");
    }
}
