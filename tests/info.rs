//! `warpfs info`: the map of a file's chunks for a terminal and as a picture, trees summed up, and what is wrong said without
//! hiding the rest. Nothing is decoded for it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::place::said;
use common::{Random, pack, sample, shell, vector, warpfs};
use serde_json::Value;

const CHUNK: usize = 64 << 10;

/// Text, zeros and noise, ten chunks of each.
fn three_kinds(directory: &Path) -> PathBuf {
    let mut random = Random(7);
    let noise = (0..10 * CHUNK / 8).flat_map(|_| random.next().to_le_bytes());
    let original: Vec<u8> = sample(10 * CHUNK, 7)
        .into_iter()
        .chain(vec![0; 10 * CHUNK])
        .chain(noise)
        .collect();
    fs::write(directory.join("original"), original).unwrap();
    let packed = directory.join("x.warp");
    pack(
        &directory.join("original"),
        &packed,
        &["--chunk-size", "64K", "--codec", "zstd"],
    );
    fs::remove_file(directory.join("original")).unwrap();
    packed
}

fn info(arguments: &[&str], path: &Path) -> Output {
    warpfs()
        .arg("info")
        .args(arguments)
        .arg(path)
        .output()
        .unwrap()
}

/// What `info` shows on a terminal of so many columns.
fn on_a_terminal(columns: u32, environment: &str, path: &Path) -> String {
    on_a_terminal_of(columns, environment, path, 0)
}

/// The same, with the exit code it must have.
fn on_a_terminal_of(columns: u32, environment: &str, path: &Path, code: u32) -> String {
    let program = env!("CARGO_BIN_EXE_warpfs");
    let script = format!(
        "script -qec \"stty cols {columns}; {environment} '{program}' info '{}'; test \\$? = {code}\" /dev/null </dev/null",
        path.display()
    );
    shell(Path::new("/"), &script)
}

#[test]
fn on_a_terminal_the_map_shows_what_is_left_of_each_part() {
    let directory = tempfile::tempdir().unwrap();
    let packed = three_kinds(directory.path());
    let plain = on_a_terminal(80, "NO_COLOR=1 TERM=xterm", &packed);
    let row = plain.lines().find(|line| line.starts_with("0 B ")).unwrap();
    let map = row.trim_start_matches("0 B").trim();
    let (text, rest) = map.split_at(10);
    assert!(
        text.chars()
            .all(|cell| cell.is_ascii_digit() && cell == text.chars().next().unwrap()),
        "{map}"
    );
    assert_eq!(rest, "..........##########");
    let legend = ["a cell is a chunk", ". zeros 0 to 9 tenths left # all"];
    for line in legend {
        assert!(plain.lines().any(|found| found.trim() == line), "{plain}");
    }
    assert!(!plain.contains('\x1b'), "{plain}");
    let coloured = on_a_terminal(80, "TERM=xterm", &packed);
    assert_eq!(
        coloured.matches("38;5;250m.").count(),
        11,
        "ten cells and the legend"
    );
    assert!(!on_a_terminal(80, "TERM=dumb", &packed).contains('\x1b'));
    // It is cut to rows that fit.
    let narrow = on_a_terminal(30, "NO_COLOR=1", &packed);
    assert!(
        narrow.lines().any(|line| line.starts_with("1.00 MiB    ")),
        "{narrow}"
    );
}

#[test]
fn what_is_piped_has_no_map() {
    let directory = tempfile::tempdir().unwrap();
    let output = info(&[], &three_kinds(directory.path()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        !text.contains("a cell is") && !text.contains('\x1b'),
        "{text}"
    );
    assert_eq!(text.lines().count(), 9, "{text}");
}

#[test]
fn a_picture_has_a_bar_for_each_cell_and_replaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let packed = three_kinds(directory.path());
    let renamed = directory.path().join("<&\".warp");
    fs::rename(packed, &renamed).unwrap();
    let picture = directory.path().join("x.svg");
    let arguments = ["--svg", picture.to_str().unwrap()];
    let output = info(&arguments, &renamed);
    assert!(output.status.success(), "{}", said(&output));
    let svg = fs::read_to_string(&picture).unwrap();
    assert_eq!(svg.matches("<rect ").count(), 30);
    assert_eq!(svg.matches(": zeros</title>").count(), 10);
    assert_eq!(svg.matches("class=\"f\"").count(), 10);
    assert!(svg.contains("Chunk map of &lt;&amp;&quot;.warp"), "{svg}");
    for words in [
        "role=\"img\"",
        "aria-labelledby",
        "prefers-color-scheme:dark",
        "1.88 MiB",
    ] {
        assert!(svg.contains(words), "{words}");
    }
    // An XML parser of another's takes it.
    shell(
        directory.path(),
        "python3 -c 'import xml.dom.minidom; xml.dom.minidom.parse(\"x.svg\")'",
    );
    let output = info(&arguments, &renamed);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("exists already"),
        "{}",
        said(&output)
    );
    assert_eq!(fs::read_to_string(&picture).unwrap(), svg);
    let output = info(&["--json", "--svg", picture.to_str().unwrap()], &renamed);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    let nowhere = directory.path().join("none.svg");
    let empty = info(
        &["--svg", nowhere.to_str().unwrap()],
        &vector("v2-empty.warp"),
    );
    assert_eq!(empty.status.code(), Some(1));
    assert!(
        said(&empty).contains("nothing to draw") && !nowhere.exists(),
        "{}",
        said(&empty)
    );
}

#[test]
fn many_chunks_are_a_small_picture() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    let packed = directory.path().join("x.warp");
    // As many chunks as a test has time for.
    fs::File::create(&original)
        .unwrap()
        .set_len(256 << 20)
        .unwrap();
    pack(
        &original,
        &packed,
        &["--chunk-size", "4K", "--codec", "lz4", "--checksum", "none"],
    );
    let picture = directory.path().join("x.svg");
    let output = info(&["--svg", picture.to_str().unwrap()], &packed);
    assert!(output.status.success(), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("chunks   65536"));
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(svg.len() < 40_000, "{}", svg.len());
    let bars = svg.matches("<rect ").count();
    assert!((100..=600).contains(&bars), "{bars}");
}

#[test]
fn a_file_whose_record_of_digests_is_damaged_is_shown_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let packed = three_kinds(directory.path());
    let whole = fs::read(&packed).unwrap();
    let sound = info(&["--json"], &packed);
    let sound: Value = serde_json::from_slice(&sound.stdout).unwrap();
    assert_eq!(sound[0]["record_damage"], Value::Null);
    let record = sound[0]["record_size"].as_u64().unwrap() as usize;
    // Its tail, its directory, and its beginning.
    for from_the_end in [20, 44, record] {
        let mut damaged = whole.clone();
        let at = damaged.len() - from_the_end;
        damaged[at] ^= 0xff;
        fs::write(&packed, damaged).unwrap();
        let output = info(&[], &packed);
        assert_eq!(output.status.code(), Some(1), "{from_the_end}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains("chunks   30") && text.contains("digests  damaged"),
            "{text}"
        );
        assert!(
            said(&output).contains("record of digests"),
            "{}",
            said(&output)
        );
        let output = info(&["--json"], &packed);
        assert_eq!(output.status.code(), Some(1), "{from_the_end}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(json[0]["record_damage"].is_string(), "{json}");
        assert_eq!(json[0]["digest"], sound[0]["digest"]);
    }
}

#[test]
fn of_a_file_cut_short_what_is_there_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let packed = three_kinds(directory.path());
    let sound = info(&["--json", "--chunks"], &packed);
    let sound: Value = serde_json::from_slice(&sound.stdout).unwrap();
    assert_eq!(sound[0]["cut"], Value::Null);
    assert_eq!(sound[0]["held"], sound[0]["original_size"]);
    // Inside the payload of the 26th chunk.
    let end = sound[0]["chunk_table"][25]["packed_offset"]
        .as_u64()
        .unwrap()
        + 1000;
    let whole = fs::read(&packed).unwrap();
    fs::write(&packed, &whole[..end as usize]).unwrap();
    let output = info(&[], &packed);
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(
        said.contains("chunk 25 (from byte 1638400): file ends inside"),
        "{said}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "chunks   30, the largest of 65536 bytes (64.00 KiB)",
        "checksum cut off, if there was one",
        "cut      bytes 0..1638400 are there (83.3%), what follows is lost",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    let map = on_a_terminal_of(80, "NO_COLOR=1 TERM=xterm", &packed, 1);
    assert!(
        map.contains("#####xxxxx") && map.contains("# all x lost"),
        "{map}"
    );
    let json = info(&["--json"], &packed);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json[0]["cut"].is_string(), "{json}");
    assert_eq!(json[0]["held"], 1_638_400);
    assert_eq!(json[0]["checksum"], Value::Null);
}

#[test]
fn a_file_of_several_names_is_counted_once_in_a_tree() {
    let tree = tree();
    let before = info(&["-r", "--json"], tree.path());
    for (file, name) in [
        ("a/x.warp", "a/b/y.warp"),
        ("a/x.warp", "z.warp"),
        ("plain", "second"),
    ] {
        fs::hard_link(tree.path().join(file), tree.path().join(name)).unwrap();
    }
    let after = info(&["-r", "--json"], tree.path());
    let sums = |output: &Output| {
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        json.as_array().unwrap().last().unwrap().clone()
    };
    let (before, after) = (sums(&before), sums(&after));
    for same in ["packed", "plain", "codecs", "unverified"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert_eq!(
        (&before["further_names"], &after["further_names"]),
        (&0.into(), &3.into())
    );
    let text = String::from_utf8(info(&["-r"], tree.path()).stdout).unwrap();
    assert!(
        text.contains("hard links  3 further names of these files, counted once"),
        "{text}"
    );
}

/// A tree with two packed files, one without digests, a plain, a damaged, a foreign one, and a link that leads outside.
fn tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("a/b")).unwrap();
    let packed = three_kinds(&root.join("a"));
    fs::copy(
        vector("v2-lz4-xxh64.warp"),
        root.join("a/b/foreign-made.warp"),
    )
    .unwrap();
    let whole = fs::read(&packed).unwrap();
    fs::write(root.join("cut.warp"), &whole[..whole.len() / 2]).unwrap();
    fs::write(root.join("none.warp"), "no container").unwrap();
    fs::write(root.join("plain"), vec![b'x'; 1000]).unwrap();
    std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
    directory
}

#[test]
fn a_tree_is_summed_up() {
    let tree = tree();
    let output = info(&["-r"], tree.path());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for words in [
        "packed      2 files, 1.97 MiB as ",
        "plain       1 file, 1000 B",
        "unverified  1 file, 97.66 KiB: no record of digests,",
        "wrong       1 damaged, 1 named .warp that are none",
        "\nCODEC              FILES       ORIGINAL         PACKED    RATIO\n  lz4                  1      97.66 KiB",
        "\n  zstd                 1       1.88 MiB",
        "\n  blake3               1       1.88 MiB",
        "\n  xxh64                1      97.66 KiB",
        "a/x.warp",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    assert_eq!(said(&output).lines().count(), 2, "{}", said(&output));
    assert!(said(&output).contains("cut.warp") && said(&output).contains("none.warp"));
    let each = info(&["-r", "-v"], tree.path());
    let each = String::from_utf8(each.stdout).unwrap();
    assert!(
        each.starts_with("VERSION") && each.ends_with(&text),
        "{each}"
    );
}

#[test]
fn a_tree_s_json_has_its_files_and_its_sums() {
    let tree = tree();
    let output = info(&["-r", "--json"], tree.path());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [first, second, cut, sums] = json.as_array().unwrap().as_slice() else {
        panic!("{json}");
    };
    assert!(cut["cut"].is_string(), "{cut}");
    assert!(
        first["file"]
            .as_str()
            .unwrap()
            .ends_with("a/b/foreign-made.warp")
    );
    assert_eq!(sums["tree"], tree.path().to_str().unwrap());
    let (original, packed) = ("original_size", "packed_size");
    let sum = |name: &str| first[name].as_u64().unwrap() + second[name].as_u64().unwrap();
    assert_eq!(sums["packed"][original], sum(original));
    assert_eq!(sums["packed"][packed], sum(packed));
    assert_eq!(sums["codecs"]["lz4"][original], first[original]);
    assert_eq!(sums["unverified"]["files"], 1);
    assert_eq!(
        (&sums["damaged"], &sums["foreign"], &sums["plain"]["size"]),
        (&1.into(), &1.into(), &1000.into())
    );
    assert_eq!(sums["largest"][0]["file"], second["file"]);
    assert_eq!(
        sums["least_shrunk"][0]["file"],
        if ratio(first) > ratio(second) {
            &first["file"]
        } else {
            &second["file"]
        }
        .clone()
    );
}

fn ratio(file: &Value) -> f64 {
    file["ratio"].as_f64().unwrap()
}
