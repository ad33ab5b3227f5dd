//! What `pack -r` takes of a tree, and what it leaves out: patterns, small files, other file systems.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::path::Path;

use common::{run, sample, shell, warpfs};

/// The files and directories below a directory, in order.
fn paths(directory: &Path) -> Vec<String> {
    let found = shell(
        directory,
        "find . -mindepth 1 -printf '%P\\n' | LC_ALL=C sort",
    );
    found.lines().map(str::to_owned).collect()
}

fn tree() -> tempfile::TempDir {
    let own = tempfile::tempdir().unwrap();
    let at = |name: &str| own.path().join("tree").join(name);
    fs::create_dir_all(at("src/deep")).unwrap();
    fs::create_dir_all(at("cache/inner")).unwrap();
    for (seed, name) in [
        "a.log",
        "b.tmp",
        "src/c.log",
        "src/deep/d.tmp",
        "cache/e.log",
        "cache/inner/f.log",
    ]
    .iter()
    .enumerate()
    {
        fs::write(at(name), sample(30_000, seed as u64)).unwrap();
    }
    own
}

fn pack(own: &tempfile::TempDir, words: &[&str]) -> Vec<String> {
    let (tree, out) = (own.path().join("tree"), own.path().join("out"));
    let mut command = vec!["pack", "-rq", "-o", out.to_str().unwrap()];
    command.extend(words);
    command.push(tree.to_str().unwrap());
    run(command);
    paths(&out)
}

#[test]
fn what_is_excluded_does_not_come_along_and_directories_with_all_that_is_in_them() {
    let own = tree();
    assert_eq!(
        pack(&own, &["--exclude", "*.tmp", "--exclude", "cache/"]),
        ["a.log.warp", "src", "src/c.log.warp", "src/deep"]
    );
}

#[test]
fn what_is_included_limits_files_and_excluding_wins() {
    let own = tree();
    assert_eq!(
        pack(&own, &["--include", "*.log", "--exclude", "cache/inner"]),
        [
            "a.log.warp",
            "cache",
            "cache/e.log.warp",
            "src",
            "src/c.log.warp",
            "src/deep"
        ]
    );
}

#[test]
fn a_pattern_with_a_slash_counts_from_the_root_of_the_tree() {
    let own = tree();
    let found = pack(&own, &["--exclude", "/a.log", "--exclude", "src/*/*.tmp"]);
    assert!(found.contains(&"b.tmp.warp".to_owned()), "{found:?}");
    for left_out in ["a.log.warp", "src/deep/d.tmp.warp"] {
        assert!(!found.contains(&left_out.to_owned()), "{found:?}");
    }
}

#[test]
fn in_place_what_is_excluded_stays_as_it_is() {
    let own = tree();
    run([
        "pack",
        "-rq",
        "--in-place",
        "--exclude",
        "*.log",
        own.path().join("tree").to_str().unwrap(),
    ]);
    let found = paths(&own.path().join("tree"));
    assert!(found.contains(&"a.log".to_owned()) && found.contains(&"b.tmp.warp".to_owned()));
    assert!(!found.contains(&"b.tmp".to_owned()), "{found:?}");
}

#[test]
fn small_files_are_copied_into_another_tree_and_left_alone_in_place() {
    let own = tree();
    fs::write(own.path().join("tree/small"), sample(9_999, 9)).unwrap();
    let found = pack(&own, &["--min-size", "10000"]);
    assert!(found.contains(&"small".to_owned()) && found.contains(&"a.log.warp".to_owned()));
    let tree = own.path().join("tree");
    run([
        "pack",
        "-rq",
        "--in-place",
        "--min-size",
        "10000",
        tree.to_str().unwrap(),
    ]);
    let found = paths(&tree);
    assert!(found.contains(&"small".to_owned()) && found.contains(&"a.log.warp".to_owned()));
}

/// A memory file system in a tree, which goes with the test.
struct Other(std::path::PathBuf);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn another_file_system_in_the_tree_is_an_empty_directory_where_one_is_asked_for() {
    let own = tree();
    let cache = own.path().join("tree/cache");
    shell(Path::new("/"), &format!("mount -t tmpfs none {cache:?}"));
    let _other = Other(cache.clone());
    fs::write(cache.join("g.log"), sample(30_000, 1)).unwrap();
    let found = pack(&own, &["--one-file-system"]);
    assert!(found.contains(&"cache".to_owned()), "{found:?}");
    assert!(!found.contains(&"cache/g.log.warp".to_owned()), "{found:?}");
    fs::remove_dir_all(own.path().join("out")).unwrap();
    assert!(pack(&own, &[]).contains(&"cache/g.log.warp".to_owned()));
}

#[test]
fn what_selects_belongs_to_trees_and_a_wrong_pattern_is_wrong_usage() {
    let own = tree();
    for words in [
        &["pack", "--exclude", "*.tmp", "tree/a.log"][..],
        &["pack", "--in-place", "tree/a.log"],
        &["pack", "-r", "--in-place", "-o", "out", "tree"],
        &["pack", "-r", "--exclude", "[a", "tree"],
        &["pack", "-r", "--include", "/", "tree"],
    ] {
        let refused = warpfs()
            .args(words)
            .current_dir(own.path())
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(2), "{words:?}");
    }
    assert!(own.path().join("tree/a.log").exists());
}

#[test]
fn the_output_may_be_a_link_to_a_directory() {
    let own = tree();
    fs::create_dir(own.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", own.path().join("out")).unwrap();
    pack(&own, &["--include", "*.tmp"]);
    assert!(own.path().join("elsewhere/b.tmp.warp").exists());
    assert!(own.path().join("out").is_symlink());
}

#[test]
fn a_name_that_only_something_left_out_has_is_free() {
    let own = tree();
    fs::write(own.path().join("tree/b.tmp.warp"), "somebody's own").unwrap();
    let words = [
        "--include",
        "*.tmp",
        "--exclude",
        "src",
        "--exclude",
        "cache",
    ];
    assert_eq!(pack(&own, &words), ["b.tmp.warp"]);
    let packed = fs::read(own.path().join("out/b.tmp.warp")).unwrap();
    assert_ne!(packed, b"somebody's own");
}
