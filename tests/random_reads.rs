//! Two models agree: whatever is read through the mount, in whatever order, by however many, is what the originals in
//! memory hold there (see common/model.rs).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::Mounted;
use common::model::{self, OPERATIONS, seed, source};

fn agree(arguments: &[&str]) {
    let (directory, originals) = source();
    model::agree(OPERATIONS, &originals, || {
        Mounted::new(directory.path(), arguments)
    });
}

#[test]
fn a_mount_with_a_tiny_cache_agrees_with_the_originals() {
    agree(&["--cache-size", "1M", "--prefetch", "off", "--threads", "2"]);
}

#[test]
fn a_mount_with_a_tiny_cache_that_prefetches_agrees_with_the_originals() {
    agree(&["--cache-size", "1M", "--prefetch", "8M", "--threads", "4"]);
}

#[test]
fn a_mount_with_room_for_everything_agrees_with_the_originals() {
    agree(&[]);
}

#[test]
fn a_mount_whose_kernel_forgets_at_once_agrees_with_the_originals() {
    agree(&["--ttl", "0", "--cache-size", "4M"]);
}

#[test]
fn maps_of_several_files_agree_with_the_originals() {
    let (directory, originals) = source();
    let seed = seed();
    let mounted = Mounted::new(directory.path(), &["--cache-size", "1M"]);
    let expected = tempfile::tempdir().unwrap();
    for original in &originals {
        fs::write(expected.path().join(&original.name), &original.bytes).unwrap();
    }
    let script: PathBuf = expected.path().join("compare.py");
    fs::write(
        &script,
        "import mmap, os, random, sys\n\
         from threading import Thread\n\
         shown, expected, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])\n\
         names = [n for n in os.listdir(shown) if os.path.getsize(os.path.join(shown, n)) > 0]\n\
         def map(directory, name):\n\
         \x20   with open(os.path.join(directory, name), 'rb') as file:\n\
         \x20       return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n\
         wrong = []\n\
         def slices(number):\n\
         \x20   choice = random.Random(seed + number)\n\
         \x20   maps = [(n, map(shown, n), map(expected, n)) for n in names]\n\
         \x20   for _ in range(1500):\n\
         \x20       name, ours, theirs = choice.choice(maps)\n\
         \x20       at = choice.randrange(len(theirs))\n\
         \x20       end = at + choice.randrange(30000)\n\
         \x20       if ours[at:end] != theirs[at:end]:\n\
         \x20           wrong.append((name, at, end))\n\
         threads = [Thread(target=slices, args=(number,)) for number in range(4)]\n\
         for thread in threads: thread.start()\n\
         for thread in threads: thread.join()\n\
         assert len(names) >= 21 and not wrong, (seed, wrong[:5])\n",
    )
    .unwrap();
    let command = format!(
        "python3 {} {} {} {seed}",
        script.display(),
        mounted.mount_point.display(),
        expected.path().display()
    );
    common::shell(expected.path(), &command);
}
