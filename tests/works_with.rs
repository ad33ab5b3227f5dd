//! Every row of docs/WORKS_WITH.md names tests that exist, and every test of tests/works_with_*.rs has its row. Of the other pages
//! too, what they say is proved by exists.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tests of a file, each as `file: name`.
fn tests_of(file: &str) -> BTreeSet<String> {
    let text = read(file);
    let mut parts = text.split("#[test]\n");
    parts.next();
    parts
        .map(|part| {
            let name = part.split_once("fn ").unwrap().1;
            format!("{file}: {}", name.split_once('(').unwrap().0)
        })
        .collect()
}

/// What a cell names: `` tests/file.rs: `name`, `name`, tests/other.rs: `name` ``.
fn named_in(cell: &str) -> Vec<String> {
    let mut file = "";
    let mut named = Vec::new();
    for word in cell.split([' ', ',']).filter(|word| !word.is_empty()) {
        match word.strip_suffix(':') {
            Some(path) => file = path,
            None => named.push(format!("{file}: {}", word.trim_matches('`'))),
        }
    }
    named
}

#[test]
fn every_row_has_a_test_and_every_test_a_row() {
    let page = read("docs/WORKS_WITH.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .filter(|row: &Vec<&str>| row.last() != Some(&"test"))
        .collect();
    assert!(rows.len() > 40, "{} rows", rows.len());
    let mut with_a_row = BTreeSet::new();
    for row in &rows {
        assert_eq!(row.len(), 4, "{row:?}");
        let named = named_in(row[3]);
        assert!(!named.is_empty(), "{row:?}");
        for test in named {
            let file = test.split_once(": ").unwrap().0;
            assert!(tests_of(file).contains(&test), "there is no {test}");
            with_a_row.insert(test);
        }
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("works_with_") {
            for test in tests_of(&format!("tests/{name}")) {
                assert!(with_a_row.contains(&test), "no row for {test}");
            }
        }
    }
}

/// The files in a directory, and beneath it, whose names end like this.
fn files(directory: &str, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false if path.to_str().unwrap().ends_with(end) => found.push(path),
                false => {}
            }
        }
    }
    found
}

#[test]
fn what_pages_say_is_proved_by_a_test_is() {
    let is_in_a_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let sources = [files("tests", ".rs"), files("src", ".rs")].concat();
    let sources = sources.iter().map(|path| fs::read_to_string(path).unwrap());
    let sources = sources.collect::<String>();
    let functions: BTreeSet<&str> = sources
        .split("fn ")
        .filter_map(|rest| rest.split(|letter| !is_in_a_name(letter)).next())
        .collect();
    let mut named = 0;
    for page in files("docs", ".md") {
        // It names numbers of the statistics, which are as long.
        if page.ends_with("STATISTICS.md") {
            continue;
        }
        let text = fs::read_to_string(&page).unwrap();
        let page = page.display();
        // Nothing but tests has names of so many words.
        for name in text.split(|letter| !is_in_a_name(letter)) {
            let inner = name.trim_matches('_');
            if inner.matches('_').count() >= 4 && !name.contains(char::is_uppercase) {
                assert!(functions.contains(name), "{page}: there is no {name}");
                named += 1;
            }
        }
        for path in text.split(|letter| !is_in_a_name(letter) && !"./".contains(letter)) {
            let is_of_ours = path.starts_with("tests/") || path.starts_with("src/");
            if is_of_ours && path.ends_with(".rs") {
                let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(path).is_file();
                assert!(there, "{page}: there is no {path}");
            }
        }
    }
    assert!(named > 200, "{named} tests");
}
