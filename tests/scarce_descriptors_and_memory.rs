//! Jobs on trees get by with few descriptors and little memory, and one that gets too little fails without loss; samples are
//! tried on one thread where there is no other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use common::group::Group;
use common::jobs::{decoded, strays};
use common::sample;
use common::users::{as_user, place_of_somebody};

/// Runs a script with the program as `$WARPFS`.
fn script(directory: &Path, script: &str) -> Output {
    Command::new("bash")
        .args(["-euc", script])
        .env("WARPFS", env!("CARGO_BIN_EXE_warpfs"))
        .env("RUST_BACKTRACE", "0")
        .current_dir(directory)
        .output()
        .unwrap()
}

/// A tree of many directories with a few files each: small ones, one with two names, a large one; and a deep path.
fn make_tree(root: &Path) {
    for number in 0..70 {
        let directory = root.join(format!("{number:03}"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("x"), sample(5_000 + number, number as u64)).unwrap();
        fs::write(directory.join("short"), "short").unwrap();
        if number % 10 == 0 {
            fs::hard_link(directory.join("x"), directory.join("y")).unwrap();
        }
    }
    fs::write(root.join("large"), sample(20 << 20, 1)).unwrap();
    let mut deep = root.join("deep");
    for _ in 0..70 {
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("x"), sample(5_000, 2)).unwrap();
        deep.push("d");
    }
}

#[test]
fn sixty_four_descriptors_are_enough_for_any_tree_and_number_of_threads() {
    let directory = tempfile::tempdir().unwrap();
    make_tree(&directory.path().join("tree"));
    let done = script(
        directory.path(),
        "cp -a tree kept
        ulimit -n 64
        $WARPFS pack -rq --threads 64 -o packed tree
        $WARPFS verify -rq packed
        $WARPFS unpack -rq --threads 64 -o back packed
        diff -r tree back
        $WARPFS pack -rqf --rm --threads 64 tree
        test -z \"$(find tree -name x)\"
        $WARPFS unpack -rqf --rm --threads 64 tree
        diff -r kept tree",
    );
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn too_few_descriptors_for_anything_are_an_error_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let original = sample(100_000, 1);
    fs::create_dir(directory.path().join("tree")).unwrap();
    let x = directory.path().join("tree/x");
    let mut failed = 0;
    for limit in 4..14 {
        for job in ["pack -q --rm tree/x", "pack -rq --rm tree"] {
            fs::write(&x, &original).unwrap();
            let done = script(
                directory.path(),
                &format!("ulimit -n {limit}; exec $WARPFS {job}"),
            );
            let said = String::from_utf8_lossy(&done.stderr);
            let packed = directory.path().join("tree/x.warp");
            match done.status.success() {
                true => assert!(!x.exists() && decoded(&packed).unwrap() == original),
                false => {
                    failed += 1;
                    assert!(said.contains("Too many open files"), "{limit}: {said}");
                    assert!(fs::read(&x).unwrap() == original && !packed.exists());
                }
            }
            let _ = fs::remove_file(packed);
            assert!(strays(directory.path()).is_empty());
        }
    }
    assert!(failed > 0);
}

#[test]
fn where_no_more_threads_may_be_had_files_are_estimated_all_the_same() {
    // Nobody else's, so that no other process counts.
    const NOBODY_S: u32 = 54_321;
    let (place, program) = place_of_somebody();
    let file = place.source().join("file");
    fs::write(&file, sample(5 << 20, 1)).unwrap();
    let script = format!(
        "ulimit -u 1; exec {} estimate -q {} >/dev/null",
        program.display(),
        file.display()
    );
    let done = as_user(NOBODY_S, &["bash", "-euc", &script].map(OsStr::new));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{:?} {said}", done.status);
}

#[test]
fn too_little_memory_ends_a_job_without_loss() {
    let directory = tempfile::tempdir().unwrap();
    let original = sample(9 << 20, 1);
    fs::create_dir(directory.path().join("tree")).unwrap();
    let x = directory.path().join("tree/x");
    let (mut failed, mut succeeded) = (0, 0);
    for kibibytes in [20_000, 30_000, 40_000, 60_000, 100_000, 400_000] {
        for job in [
            "pack -q --rm --chunk-size 4M tree/x",
            "pack -rq --rm --chunk-size 4M tree",
        ] {
            fs::write(&x, &original).unwrap();
            let done = script(
                directory.path(),
                &format!("ulimit -c 0; ulimit -v {kibibytes}; exec $WARPFS {job}"),
            );
            let packed = directory.path().join("tree/x.warp");
            match done.status.success() {
                true => {
                    succeeded += 1;
                    assert!(!x.exists() && decoded(&packed).unwrap() == original);
                }
                false => {
                    failed += 1;
                    assert!(fs::read(&x).unwrap() == original && !packed.exists());
                    // What the system does not let be allocated ends the process, or is an error.
                    let code = done.status.code();
                    let said = String::from_utf8_lossy(&done.stderr);
                    assert!(
                        done.status.signal().is_some() || code == Some(1) || code == Some(127),
                        "{code:?}: {said}"
                    );
                    println!("{kibibytes} KiB: {:?} {said}", done.status);
                }
            }
            let _ = fs::remove_file(packed);
            for stray in strays(directory.path()) {
                fs::remove_file(stray).unwrap();
            }
        }
    }
    println!("{failed} failed, {succeeded} succeeded");
    assert!(failed > 0 && succeeded > 0);
}

#[test]
fn a_tree_of_many_files_is_packed_and_unpacked_in_forty_mebibytes() {
    let Some(group) = Group::new("tree", 40 << 20) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    make_tree(&tree);
    for number in 0..500 {
        fs::write(tree.join(format!("many {number}")), sample(1_000, number)).unwrap();
    }
    let done = script(
        directory.path(),
        &format!(
            "cp -a tree kept
            bash -euc 'echo $$ > {}/cgroup.procs
            $WARPFS pack -rqf --rm tree
            $WARPFS unpack -rqf --rm tree'
            diff -r kept tree",
            group.path.display()
        ),
    );
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let most = fs::read_to_string(group.path.join("memory.max_usage_in_bytes")).unwrap();
    println!("at most {} bytes, files in memory included", most.trim());
}
