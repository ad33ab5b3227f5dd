//! Every row of docs/WORKS_WITH.md names tests that exist, and every test of tests/works_with_*.rs has its row.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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
