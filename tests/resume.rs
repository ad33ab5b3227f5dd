//! A second `pack -r` does only what is missing or has changed, never replaces what is not its own, and cleans up after a
//! first one that was killed.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use common::jobs::{decoded, strays};
use common::over_others::Mounted;
use common::users::{ANOTHER, SOMEBODY, as_user, place_of_somebody};
use common::{Random, sample, shell, warpfs};

struct Trees(tempfile::TempDir);

impl Trees {
    fn new() -> Self {
        let own = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(own.at("tree/d")).unwrap();
        for (seed, name) in ["a", "d/b", "d/c"].iter().enumerate() {
            fs::write(own.at("tree").join(name), sample(40_000, seed as u64)).unwrap();
        }
        let mut random = Random(7);
        let noise: Vec<u8> = (0..20_000).map(|_| random.next() as u8).collect();
        fs::write(own.at("tree/noise"), noise).unwrap();
        fs::hard_link(own.at("tree/a"), own.at("tree/d/again")).unwrap();
        symlink("a", own.at("tree/link")).unwrap();
        own
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn try_pack(&self, words: &[&str]) -> (Output, String) {
        let output = warpfs()
            .args(["pack", "-r", "-o", "out"])
            .args(words)
            .arg("tree")
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output, said)
    }

    /// Packs the tree and gives what was said.
    fn pack(&self, words: &[&str]) -> String {
        let (output, said) = self.try_pack(words);
        assert!(output.status.success(), "{said}");
        said
    }

    fn inode(&self, name: &str) -> u64 {
        fs::symlink_metadata(self.at(name)).unwrap().ino()
    }

    fn inodes(&self) -> String {
        shell(&self.at("out"), "find . -printf '%P %i %C@\\n' | sort")
    }
}

#[test]
fn a_second_run_of_the_same_tree_does_nothing_and_says_so() {
    let trees = Trees::new();
    trees.pack(&[]);
    let before = trees.inodes();
    let said = trees.pack(&[]);
    assert!(said.contains("0 files packed"), "{said}");
    assert!(said.contains("up to date           6"), "{said}");
    // Not even the change time of a file is another; directories get their attributes again.
    let files = |listing: &str| -> Vec<String> {
        let lines = listing.lines().filter(|line| !line.starts_with(' '));
        lines
            .filter(|line| !line.starts_with("d "))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(files(&before), files(&trees.inodes()));
}

#[test]
fn what_has_changed_or_is_new_is_done_and_the_rest_is_not() {
    let trees = Trees::new();
    trees.pack(&[]);
    let kept = trees.inode("out/d/c.warp");
    fs::write(trees.at("tree/d/b"), sample(50_000, 50)).unwrap();
    fs::write(trees.at("tree/d/new"), sample(50_000, 51)).unwrap();
    let said = trees.pack(&[]);
    assert!(said.contains("2 files packed"), "{said}");
    assert_eq!(trees.inode("out/d/c.warp"), kept);
    for name in ["d/b", "d/new"] {
        let packed = trees.at("out").join(format!("{name}.warp"));
        assert!(decoded(&packed).unwrap() == fs::read(trees.at("tree").join(name)).unwrap());
    }
}

#[test]
fn what_is_up_to_date_gets_the_owner_and_the_mode_its_source_has_by_now() {
    let trees = Trees::new();
    trees.pack(&[]);
    for name in ["tree/d/b", "tree/noise"] {
        fs::set_permissions(trees.at(name), PermissionsExt::from_mode(0o600)).unwrap();
        chown(trees.at(name), Some(1000), Some(1000)).unwrap();
    }
    let said = trees.pack(&[]);
    assert!(said.contains("0 files packed"), "{said}");
    for name in ["out/d/b.warp", "out/noise"] {
        let found = fs::metadata(trees.at(name)).unwrap();
        let access = (found.mode() & 0o7777, found.uid(), found.gid());
        assert_eq!(access, (0o600, 1000, 1000), "{name}");
    }
    assert!(trees.pack(&[]).contains("up to date           6"));
}

/// Gives a file of the tree to a user, with such a mode.
fn give(path: &Path, user: u32, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    chown(path, Some(user), Some(user)).unwrap();
}

/// Whose a file is, and its mode.
fn access(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.mode() & 0o7777)
}

#[test]
fn a_result_put_in_another_s_place_is_not_given_to_the_owner_of_what_is_there_now() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root gives files away");
        return;
    }
    let trees = Trees::new();
    let at = |name: &str| trees.at(name);
    fs::write(at("tree/diary"), sample(40_000, 70)).unwrap();
    fs::write(at("tree/root's"), sample(40_000, 71)).unwrap();
    give(&at("tree/diary"), ANOTHER, 0o600);
    give(&at("tree/root's"), 0, 0o600);
    trees.pack(&[]);
    // Who may rename in both directories has a file of the same length and time in another's place, or under another name.
    for (name, owner) in [("diary", ANOTHER), ("root's", 0)] {
        let (result, of) = (at(&format!("out/{name}.warp")), at("tree").join(name));
        fs::write(at("tree/mine"), sample(40_000, 72)).unwrap();
        shell(&at("tree"), &format!("touch -r \"{name}\" mine"));
        give(&at("tree/mine"), SOMEBODY, 0o644);
        fs::rename(&result, at("out/mine.warp")).unwrap();
        let (output, said) = trees.try_pack(&[]);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("out/mine.warp: exists already"), "{said}");
        assert_eq!(access(&at("out/mine.warp")), (owner, 0o600), "{said}");
        fs::rename(at("out/mine.warp"), &result).unwrap();
        fs::rename(at("tree/mine"), &of).unwrap();
        trees.pack(&[]);
        assert_eq!(access(&result), (SOMEBODY, 0o644));
        assert!(decoded(&result).unwrap() == sample(40_000, 72));
    }
}

#[test]
fn rights_are_not_given_to_bytes_that_somebody_has_put_there() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root gives files away");
        return;
    }
    let trees = Trees::new();
    let tool = fs::read(trees.at("tree/noise")).unwrap();
    trees.pack(&[]);
    for marked in [false, true] {
        // His own bytes, as long and as old, perhaps with the mark that was there.
        shell(
            &trees.at("out"),
            "cp --preserve=all noise ../saved && rm noise",
        );
        let words = ["--preserve=timestamps", "--preserve=timestamps,xattr"];
        let copy = format!("cp {} saved out/noise", words[usize::from(marked)]);
        shell(trees.0.path(), &copy);
        let own = File::options()
            .write(true)
            .open(trees.at("out/noise"))
            .unwrap();
        own.write_all_at(b"his own", 0).unwrap();
        shell(trees.0.path(), "touch -r saved out/noise");
        give(&trees.at("out/noise"), SOMEBODY, 0o755);
        give(&trees.at("tree/noise"), 0, 0o4755 - u32::from(marked));
        trees.pack(&[]);
        let found = fs::read(trees.at("out/noise")).unwrap();
        match access(&trees.at("out/noise")) {
            (0, _) => assert!(found == tool),
            (owner, mode) => assert!(owner == SOMEBODY && mode & 0o7000 == 0, "{mode:o}"),
        }
        assert_eq!(marked, found == tool, "made anew if it was made of that");
        shell(
            trees.0.path(),
            "cp --preserve=all saved out/noise; rm saved",
        );
    }
}

#[test]
fn a_directory_put_in_another_s_place_is_not_given_to_the_owner_of_what_is_there_now() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root gives directories away");
        return;
    }
    let trees = Trees::new();
    fs::create_dir(trees.at("tree/private")).unwrap();
    fs::write(trees.at("tree/private/x"), sample(40_000, 70)).unwrap();
    give(&trees.at("tree/private"), ANOTHER, 0o700);
    trees.pack(&[]);
    fs::create_dir(trees.at("tree/mine")).unwrap();
    give(&trees.at("tree/mine"), SOMEBODY, 0o755);
    fs::rename(trees.at("out/private"), trees.at("out/mine")).unwrap();
    let (output, said) = trees.try_pack(&[]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("out/mine: belongs to user"), "{said}");
    assert_eq!(access(&trees.at("out/mine")), (ANOTHER, 0o700));
    assert_eq!(access(&trees.at("out/private")), (ANOTHER, 0o700));
    // In its own place, and with a directory of the other's in the source.
    fs::rename(trees.at("tree/private"), trees.at("elsewhere")).unwrap();
    fs::rename(trees.at("tree/mine"), trees.at("tree/private")).unwrap();
    let (output, said) = trees.try_pack(&[]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(access(&trees.at("out/private")), (ANOTHER, 0o700));
}

#[test]
fn nothing_is_put_into_a_directory_that_a_stranger_has_made_in_the_target() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root gives directories away");
        return;
    }
    let trees = Trees::new();
    trees.pack(&[]);
    fs::create_dir(trees.at("tree/private")).unwrap();
    fs::write(trees.at("tree/private/x"), sample(40_000, 70)).unwrap();
    give(&trees.at("tree/private"), ANOTHER, 0o700);
    fs::create_dir(trees.at("out/private")).unwrap();
    give(&trees.at("out/private"), SOMEBODY, 0o755);
    let (output, said) = trees.try_pack(&[]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("out/private: belongs to user"), "{said}");
    assert!(!trees.at("out/private/x.warp").exists());
    // Into what he gives to whom it is for, it is.
    chown(trees.at("out/private"), Some(ANOTHER), None).unwrap();
    trees.pack(&[]);
    assert!(trees.at("out/private/x.warp").exists());
}

#[test]
fn what_one_user_could_not_give_to_a_result_root_s_run_gives_it() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root can become somebody else");
        return;
    }
    let (place, _program) = place_of_somebody();
    let source = place.own.path().join("src");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), sample(40_000, 1)).unwrap();
    give(&source.join("a"), ANOTHER, 0o640);
    fs::set_permissions(source.join("a"), PermissionsExt::from_mode(0o644)).unwrap();
    let script = format!(
        "cd '{}' && ./warpfs pack -qr src -o out",
        place.own.path().display()
    );
    let words = ["bash", "-euc", &script].map(OsStr::new);
    assert!(as_user(SOMEBODY, &words).status.success());
    assert_eq!(
        access(&place.own.path().join("out/a.warp")),
        (SOMEBODY, 0o644)
    );
    let made = place.own.path().join("out/a.warp");
    shell(
        place.own.path(),
        &format!("'{}' pack -qr src -o out", env!("CARGO_BIN_EXE_warpfs")),
    );
    assert_eq!(access(&made), (ANOTHER, 0o644));
}

#[test]
fn a_result_that_has_another_name_by_now_is_not_replaced_by_what_is_called_so() {
    let trees = Trees::new();
    trees.pack(&[]);
    let kept = fs::read(trees.at("out/d/b.warp")).unwrap();
    fs::rename(trees.at("out/d/b.warp"), trees.at("out/d/old.warp")).unwrap();
    fs::write(trees.at("tree/d/old"), sample(30_000, 60)).unwrap();
    let (output, said) = trees.try_pack(&[]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("out/d/old.warp: exists already"), "{said}");
    assert!(fs::read(trees.at("out/d/old.warp")).unwrap() == kept);
    assert!(decoded(&trees.at("out/d/b.warp")).is_some());
    // What has got another name in both trees is still told, and replaced when it has changed.
    fs::remove_file(trees.at("tree/d/old")).unwrap();
    fs::remove_file(trees.at("out/d/old.warp")).unwrap();
    for (from, to) in [
        ("tree/d/b", "tree/d/new"),
        ("out/d/b.warp", "out/d/new.warp"),
    ] {
        fs::rename(trees.at(from), trees.at(to)).unwrap();
    }
    let said = trees.pack(&[]);
    assert!(said.contains("0 files packed"), "{said}");
    fs::write(trees.at("tree/d/new"), sample(30_000, 61)).unwrap();
    trees.pack(&[]);
    assert!(decoded(&trees.at("out/d/new.warp")).unwrap() == sample(30_000, 61));
}

#[test]
fn who_is_taken_off_a_file_s_access_list_is_taken_off_what_was_packed_of_it() {
    let trees = Trees::new();
    for name in ["d/b", "noise"] {
        shell(&trees.at("tree"), &format!("setfacl -m u:1:r,u:2:r {name}"));
    }
    trees.pack(&[]);
    let mode = fs::metadata(trees.at("tree/d/b")).unwrap().mode();
    for name in ["d/b", "noise"] {
        shell(&trees.at("tree"), &format!("setfacl -x u:1 {name}"));
    }
    assert_eq!(fs::metadata(trees.at("tree/d/b")).unwrap().mode(), mode);
    let said = trees.pack(&[]);
    assert!(said.contains("0 files packed"), "{said}");
    let lists = shell(&trees.at("out"), "getfacl -cn d/b.warp noise");
    assert!(lists.contains("user:2:r--"), "{lists}");
    assert!(!lists.contains("user:1:"), "{lists}");
}

#[test]
fn what_its_owner_may_not_write_to_is_replaced_and_kept_up_to_date_as_everything_else() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root can become somebody else");
        return;
    }
    let (place, _program) = place_of_somebody();
    let script = format!(
        "cd '{}' && mkdir src && seq 1000 >src/a && setfattr -n user.color -v green src/a && chmod 444 src/a
        ./warpfs pack -qr src -o out
        chmod 644 src/a && seq 2000 >src/a && chmod 444 src/a
        ./warpfs pack -qr src -o out
        ./warpfs unpack -c out/a.warp | cmp - src/a
        chmod 440 src/a
        ./warpfs pack -qr src -o out
        stat -c %a out/a.warp && getfattr --only-values -n user.color out/a.warp",
        place.own.path().display()
    );
    let output = as_user(SOMEBODY, &["bash", "-euc", &script].map(OsStr::new));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "440\ngreen");
}

#[test]
fn what_is_missing_in_a_directory_its_owner_may_not_write_to_is_made_by_the_next_run() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root can become somebody else");
        return;
    }
    let (place, _program) = place_of_somebody();
    // In the first run one file fails, for it cannot be read.
    let script = format!(
        "cd '{}' && mkdir -p src/d/e && seq 1000 >src/d/a && seq 1000 >src/d/e/b && touch -d 2001-02-03 src/d/e/b
        chmod 0 src/d/a && chmod 555 src/d src/d/e
        ./warpfs pack -qr src -o out 2>&- && exit 1
        chmod 644 src/d/a
        ./warpfs pack -qr src -o out
        test -f out/d/a.warp && stat -c %a out/d out/d/e",
        place.own.path().display()
    );
    let output = as_user(SOMEBODY, &["bash", "-euc", &script].map(OsStr::new));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "555\n555\n");
}

#[test]
fn a_changed_file_of_several_names_stays_one_file() {
    let trees = Trees::new();
    trees.pack(&[]);
    fs::write(trees.at("tree/a"), sample(50_000, 52)).unwrap();
    trees.pack(&[]);
    assert_eq!(trees.inode("out/a.warp"), trees.inode("out/d/again.warp"));
    assert!(decoded(&trees.at("out/d/again.warp")).unwrap() == sample(50_000, 52));
}

#[test]
fn a_changed_copy_is_replaced_unless_somebody_else_has_changed_it() {
    let trees = Trees::new();
    trees.pack(&[]);
    let noise = fs::read(trees.at("tree/noise")).unwrap();
    fs::write(trees.at("tree/noise"), &noise[..15_000]).unwrap();
    trees.pack(&[]);
    assert!(fs::read(trees.at("out/noise")).unwrap() == noise[..15_000]);
    fs::write(trees.at("tree/noise"), &noise[..10_000]).unwrap();
    fs::write(trees.at("out/noise"), "somebody's own").unwrap();
    let (output, said) = trees.try_pack(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("out/noise: exists already"), "{said}");
    assert_eq!(fs::read(trees.at("out/noise")).unwrap(), b"somebody's own");
    trees.pack(&["--force"]);
    assert!(fs::read(trees.at("out/noise")).unwrap() == noise[..10_000]);
}

#[test]
fn what_is_packed_now_and_was_copied_before_has_one_name_in_the_end() {
    let trees = Trees::new();
    trees.pack(&[]);
    let noise = fs::read(trees.at("tree/noise")).unwrap();
    fs::write(trees.at("tree/noise"), sample(30_000, 9)).unwrap();
    trees.pack(&[]);
    assert!(trees.at("out/noise.warp").exists() && !trees.at("out/noise").exists());
    fs::write(trees.at("tree/noise"), noise).unwrap();
    trees.pack(&[]);
    assert!(trees.at("out/noise").exists() && !trees.at("out/noise.warp").exists());
}

#[test]
fn no_name_of_a_file_stays_beside_what_it_is_packed_to_now() {
    let trees = Trees::new();
    let noise = fs::read(trees.at("tree/noise")).unwrap();
    fs::hard_link(trees.at("tree/noise"), trees.at("tree/d/noise")).unwrap();
    trees.pack(&[]);
    assert!(trees.at("out/noise").exists() && trees.at("out/d/noise").exists());
    fs::write(trees.at("tree/noise"), sample(30_000, 9)).unwrap();
    trees.pack(&[]);
    for name in ["out/noise", "out/d/noise"] {
        assert!(!trees.at(name).exists(), "{name}");
        assert!(trees.at(&format!("{name}.warp")).exists(), "{name}");
    }
    fs::write(trees.at("tree/noise"), noise).unwrap();
    trees.pack(&[]);
    for name in ["out/noise", "out/d/noise"] {
        assert!(trees.at(name).exists(), "{name}");
        assert!(!trees.at(&format!("{name}.warp")).exists(), "{name}");
    }
}

#[test]
fn what_would_stand_for_a_packed_file_in_a_mount_is_told_and_goes_by_force() {
    let trees = Trees::new();
    let refused = |words: &[&str], why: &str| {
        let (output, said) = trees.try_pack(words);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    };
    symlink("/etc/hostname", trees.at("tree/x")).unwrap();
    trees.pack(&[]);
    fs::remove_file(trees.at("tree/x")).unwrap();
    fs::write(trees.at("tree/x"), sample(30_000, 9)).unwrap();
    refused(&[], "out/x: exists already");
    assert!(trees.at("out/x").is_symlink() && !trees.at("out/x.warp").exists());
    trees.pack(&["--force"]);
    assert!(!trees.at("out/x").is_symlink());
    assert!(decoded(&trees.at("out/x.warp")).unwrap() == sample(30_000, 9));
    // Also beside what is up to date, of one name or several.
    for name in ["out/x", "out/d/again"] {
        fs::write(trees.at(name), "somebody's own").unwrap();
        refused(&[], &format!("{name}: exists already"));
        assert_eq!(fs::read(trees.at(name)).unwrap(), b"somebody's own");
        fs::remove_file(trees.at(name)).unwrap();
        fs::create_dir(trees.at(name)).unwrap();
        refused(&["--force"], "is a directory");
        fs::remove_dir(trees.at(name)).unwrap();
    }
    // What an interrupted run left of its own goes.
    fs::copy(trees.at("tree/noise"), trees.at("tree/x")).unwrap();
    trees.pack(&[]);
    assert!(trees.at("out/x").exists() && !trees.at("out/x.warp").exists());
    shell(trees.0.path(), "cp --preserve=all out/x saved");
    fs::write(trees.at("tree/x"), sample(30_000, 9)).unwrap();
    trees.pack(&[]);
    assert!(!trees.at("out/x").exists());
    shell(trees.0.path(), "cp --preserve=all saved out/x");
    trees.pack(&[]);
    assert!(!trees.at("out/x").exists() && trees.at("out/x.warp").exists());
}

#[test]
fn what_is_not_packed_by_us_is_not_replaced_and_the_others_are_done() {
    let trees = Trees::new();
    fs::create_dir_all(trees.at("out/d")).unwrap();
    fs::write(trees.at("out/d/b.warp"), "somebody's own").unwrap();
    fs::write(trees.at("out/noise"), "somebody's own").unwrap();
    let (output, said) = trees.try_pack(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(said.matches("exists already").count(), 2, "{said}");
    assert!(said.contains("failed               2"), "{said}");
    for name in ["out/d/b.warp", "out/noise"] {
        assert_eq!(fs::read(trees.at(name)).unwrap(), b"somebody's own");
    }
    assert!(trees.at("out/a.warp").exists() && trees.at("out/d/c.warp").exists());
}

#[test]
fn what_was_packed_of_another_tree_is_neither_replaced_nor_removed() {
    let trees = Trees::new();
    trees.pack(&[]);
    let noise = fs::read(trees.at("tree/noise")).unwrap();
    // A file packed by itself, and another tree with the same names: one packs to something else, one does not pack.
    let alone = warpfs()
        .args(["pack", "-q", "tree/d/b", "-o", "out/alone.warp"])
        .current_dir(trees.0.path())
        .status();
    assert!(alone.unwrap().success());
    fs::rename(trees.at("tree"), trees.at("first")).unwrap();
    fs::create_dir(trees.at("tree")).unwrap();
    for name in ["a", "alone"] {
        fs::write(trees.at("tree").join(name), sample(30_000, 60)).unwrap();
    }
    fs::create_dir(trees.at("tree/d")).unwrap();
    fs::write(trees.at("tree/d/b"), &noise).unwrap();
    fs::write(trees.at("tree/d/c"), "too little").unwrap();
    fs::write(trees.at("tree/noise"), &noise[..10_000]).unwrap();
    let (output, said) = trees.try_pack(&["--min-size", "1K"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for name in ["a.warp", "alone.warp", "d/b.warp", "noise"] {
        let line = format!("out/{name}: exists already");
        assert!(said.contains(&line), "{said}");
    }
    assert!(decoded(&trees.at("out/a.warp")).unwrap() == sample(40_000, 0));
    assert!(decoded(&trees.at("out/alone.warp")).unwrap() == sample(40_000, 1));
    assert!(decoded(&trees.at("out/d/b.warp")).unwrap() == sample(40_000, 1));
    assert!(decoded(&trees.at("out/d/c.warp")).unwrap() == sample(40_000, 2));
    assert!(fs::read(trees.at("out/noise")).unwrap() == noise);
    // The first tree was moved, and is the same one. What was copied of the other stands in one file's way.
    assert!(fs::read(trees.at("out/d/c")).unwrap() == b"too little");
    fs::remove_file(trees.at("out/d/c")).unwrap();
    fs::remove_dir_all(trees.at("tree")).unwrap();
    fs::rename(trees.at("first"), trees.at("tree")).unwrap();
    fs::write(trees.at("tree/d/b"), sample(50_000, 61)).unwrap();
    trees.pack(&[]);
    assert!(decoded(&trees.at("out/d/b.warp")).unwrap() == sample(50_000, 61));
}

#[test]
fn a_link_that_leads_elsewhere_by_now_is_not_replaced_and_what_to_do_is_said() {
    let trees = Trees::new();
    trees.pack(&[]);
    fs::remove_file(trees.at("tree/link")).unwrap();
    symlink("noise", trees.at("tree/link")).unwrap();
    let (output, said) = trees.try_pack(&[]);
    assert_eq!(output.status.code(), Some(1));
    let line = "out/link: is a link to something else than the one it is made of; remove it";
    assert!(said.contains(line), "{said}");
    assert_eq!(fs::read_link(trees.at("out/link")).unwrap(), Path::new("a"));
    fs::remove_file(trees.at("out/link")).unwrap();
    trees.pack(&[]);
    assert_eq!(
        fs::read_link(trees.at("out/link")).unwrap(),
        Path::new("noise")
    );
}

#[test]
fn beside_its_original_a_packed_file_of_another_state_is_not_replaced() {
    let trees = Trees::new();
    let pack = || {
        let mut command = warpfs();
        command.args(["pack", "-rq"]).arg(trees.at("tree/d"));
        command.output().unwrap()
    };
    assert!(pack().status.success() && pack().status.success());
    fs::write(trees.at("tree/d/b"), sample(50_000, 50)).unwrap();
    assert_eq!(pack().status.code(), Some(1));
    assert!(decoded(&trees.at("tree/d/b.warp")).unwrap() == sample(40_000, 1));
}

#[test]
fn outputs_of_files_that_are_gone_stay() {
    let trees = Trees::new();
    trees.pack(&[]);
    fs::remove_file(trees.at("tree/d/c")).unwrap();
    trees.pack(&[]);
    assert!(trees.at("out/d/c.warp").exists());
}

#[test]
fn a_killed_run_is_finished_by_the_next_and_leaves_no_temporary_file() {
    let trees = Trees::new();
    fs::set_permissions(trees.at("tree/d"), PermissionsExt::from_mode(0o750)).unwrap();
    let large = sample(3 << 20, 1);
    for number in 0..8 {
        fs::write(trees.at(&format!("tree/d/large-{number}")), &large).unwrap();
    }
    let mut found = 0;
    for _ in 0..4 {
        let mut child = warpfs()
            .args(["pack", "-rq", "--codec", "brotli", "--chunk-size", "64K"])
            .args(["-o", "out", "tree"])
            .current_dir(trees.0.path())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) && child.try_wait().unwrap().is_none() {
            if trees.at("out/d").exists() && !strays(&trees.at("out")).is_empty() {
                break;
            }
        }
        let _ = child.kill();
        child.wait().unwrap();
        if trees.at("out").exists() {
            found += strays(&trees.at("out")).len();
        }
    }
    assert!(found > 0, "no run was killed while it wrote");
    trees.pack(&[]);
    assert!(strays(&trees.at("out")).is_empty());
    assert_eq!(
        fs::metadata(trees.at("out/d")).unwrap().mode() & 0o7777,
        0o750
    );
    for number in 0..8 {
        let packed = trees.at(&format!("out/d/large-{number}.warp"));
        assert!(decoded(&packed).unwrap() == large);
    }
}

#[test]
fn what_took_long_to_make_has_its_name_before_the_job_ends() {
    let trees = Trees::new();
    fs::remove_dir_all(trees.at("tree")).unwrap();
    fs::create_dir(trees.at("tree")).unwrap();
    // More than is finished together, and takes no less room packed.
    fs::write(trees.at("tree/a"), common::noise(257 << 20, 3)).unwrap();
    fs::copy(trees.at("tree/a"), trees.at("tree/b")).unwrap();
    let mut child = warpfs()
        .args(["pack", "-rq", "--codec", "snappy", "-o", "out", "tree"])
        .current_dir(trees.0.path())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !trees.at("out/a").exists() && start.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(trees.at("out/a").exists() && ended.is_none());
    assert!(!trees.at("out/b").exists());
    let said = trees.pack(&["--codec", "snappy"]);
    assert!(said.contains("up to date"), "{said}");
}

#[test]
fn a_directory_that_a_killed_run_had_only_just_made_gets_its_attributes() {
    let trees = Trees::new();
    let mode = |name: &str, mode| {
        fs::set_permissions(trees.at(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    mode("tree/d", 0o750);
    trees.pack(&[]);
    fs::remove_dir_all(trees.at("out/d")).unwrap();
    fs::create_dir(trees.at("out/d")).unwrap();
    mode("out/d", 0o700);
    trees.pack(&[]);
    let attributes = |name: &str| {
        let found = fs::metadata(trees.at(name)).unwrap();
        (found.mode() & 0o7777, found.modified().unwrap())
    };
    assert_eq!(attributes("out/d"), attributes("tree/d"));
}

#[test]
fn a_private_directory_that_a_tree_is_packed_into_stays_private() {
    let trees = Trees::new();
    fs::create_dir(trees.at("out")).unwrap();
    let private = PermissionsExt::from_mode(0o700);
    fs::set_permissions(trees.at("out"), private).unwrap();
    for _ in 0..2 {
        trees.pack(&[]);
        let mode = fs::metadata(trees.at("out")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }
}

/// Runs a job by force over a tree into one that it lies in: under its own name, and bound elsewhere. The inputs must be as they
/// were.
fn into_the_tree_that_it_lies_in(job: &str, inputs: &[(&str, Vec<u8>)], check: impl Fn(&Path)) {
    for source in ["p/p", "bound"] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("p/p/p")).unwrap();
        for (name, bytes) in inputs {
            fs::write(at(name), bytes).unwrap();
        }
        for (name, text) in [("p/p/link", "outer"), ("p/p/p/link", "inner")] {
            symlink(text, at(name)).unwrap();
        }
        fs::create_dir(at("bound")).unwrap();
        let bound = Mounted::bound(&at("bound"), &at("p/p"));
        let done = warpfs()
            .args([job, "-rq", "--force", "-o", "p", source])
            .current_dir(directory.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{source}: {said}");
        assert!(said.contains("p/p/x: exists already"), "{said}");
        for (name, bytes) in inputs {
            assert!(&fs::read(at(name)).unwrap() == bytes, "{source}: {name}");
        }
        for (name, text) in [("p/p/link", "outer"), ("p/p/p/link", "inner")] {
            assert_eq!(fs::read_link(at(name)).unwrap(), Path::new(text));
        }
        check(&at("p"));
        drop(bound);
    }
}

#[test]
fn what_is_packed_by_force_into_a_tree_that_it_lies_in_takes_no_input_away() {
    let packed = fs::read(common::vector("v2-zstd-blake3.warp")).unwrap();
    let inputs = [
        ("p/p/x", sample(50_000, 1)),
        ("p/p/p/x", sample(60_000, 2)),
        // What is not packed is copied.
        ("p/p/short", sample(40_000, 3)),
        ("p/p/p/short", Vec::new()),
        ("p/p/y.warp", sample(40_000, 4)),
        ("p/p/p/y.warp", packed),
    ];
    into_the_tree_that_it_lies_in("pack", &inputs, |output| {
        assert!(decoded(&output.join("x.warp")).unwrap() == inputs[0].1);
        assert_eq!(
            fs::read_link(output.join("link")).unwrap(),
            Path::new("outer")
        );
    });
}

#[test]
fn what_is_unpacked_by_force_into_a_tree_that_it_lies_in_takes_no_input_away() {
    let packed = fs::read(common::vector("v2-zstd-blake3.warp")).unwrap();
    let inputs = [("p/p/x", sample(50_000, 1)), ("p/p/p/x.warp", packed)];
    into_the_tree_that_it_lies_in("unpack", &inputs, |output| {
        assert!(fs::read(output.join("x")).unwrap() == inputs[0].1);
    });
}

#[test]
fn temporary_files_in_use_and_those_of_others_are_left_alone() {
    let trees = Trees::new();
    fs::create_dir(trees.at("out")).unwrap();
    let names = [
        ".a.warp.0123456789abcdef.part",
        ".other.warp.0123456789abcdef.part",
        ".a.warp.part",
        ".noise.0123456789abcdef.part",
    ];
    for name in names {
        fs::write(trees.at("out").join(name), "part").unwrap();
    }
    let held = File::open(trees.at("out").join(names[0])).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    trees.pack(&[]);
    let exists = |name: &str| Path::new(&trees.at("out")).join(name).exists();
    assert_eq!(names.map(exists), [true, true, true, false]);
    drop(held);
    trees.pack(&[]);
    assert_eq!(names.map(exists), [false, true, true, false]);
}

#[test]
fn a_directory_in_which_a_file_could_not_be_unpacked_gets_its_time_when_it_can() {
    let trees = Trees::new();
    trees.pack(&[]);
    let sound = fs::read(trees.at("out/d/b.warp")).unwrap();
    fs::write(trees.at("out/d/b.warp"), &sound[..sound.len() / 2]).unwrap();
    // Restored as a backup would, with the directory's time.
    shell(
        trees.0.path(),
        "mkdir out/e && cp out/a.warp out/e && touch -d 2001-02-03 out/d out/e && chmod 555 out/d",
    );
    let unpack = || {
        let mut command = warpfs();
        command.args(["unpack", "-rq", "-o", "back", "out"]);
        let output = command.current_dir(trees.0.path()).output().unwrap();
        output.status.code()
    };
    assert_eq!(unpack(), Some(1));
    let marks = shell(trees.0.path(), "getfattr -d back/d back/e");
    assert!(
        marks.contains("back/d") && !marks.contains("back/e"),
        "{marks}"
    );
    fs::write(trees.at("out/d/b.warp"), &sound).unwrap();
    shell(trees.0.path(), "touch -d 2001-02-03 out/d");
    assert_eq!(unpack(), Some(0));
    let stat = |name: &str| fs::metadata(trees.at(name)).unwrap();
    assert_eq!(stat("back/d").mtime(), stat("out/d").mtime());
    assert_eq!(stat("back/d").mode() & 0o7777, 0o555);
    let marks = shell(trees.0.path(), "getfattr -Rdm - back");
    assert!(!marks.contains("user.warpfs"), "{marks}");
}

#[test]
fn files_that_a_job_has_nothing_to_do_with_need_not_be_readable() {
    let (place, program) = place_of_somebody();
    let source = place.source();
    let run = |words: &[&str]| {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        let words = [&[program.as_os_str()][..], &words, &[source.as_os_str()]].concat();
        let output = as_user(SOMEBODY, &words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    fs::write(source.join("secret"), "secret").unwrap();
    fs::set_permissions(source.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    for job in ["verify", "unpack"] {
        let (code, said) = run(&[job, "-rq"]);
        assert_eq!(code, Some(0), "{job}: {said}");
    }
    // What it has to do with has to be.
    fs::rename(source.join("secret"), source.join("secret.warp")).unwrap();
    for job in ["verify", "unpack"] {
        let (code, said) = run(&[job, "-rq"]);
        assert_eq!(code, Some(1), "{job}: {said}");
        assert!(said.contains("secret.warp"), "{said}");
    }
}

#[test]
fn a_second_unpack_of_a_tree_does_only_what_is_missing() {
    let trees = Trees::new();
    trees.pack(&[]);
    let unpack = || {
        let output = warpfs()
            .args(["unpack", "-r", "-o", "back", "out"])
            .current_dir(trees.0.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    unpack();
    fs::remove_file(trees.at("back/d/c")).unwrap();
    let said = unpack();
    assert!(said.contains("1 file unpacked"), "{said}");
    shell(trees.0.path(), "diff -r tree back");
    let marks = shell(trees.0.path(), "getfattr -Rdm - back");
    assert!(!marks.contains("user.warpfs"), "{marks}");
}
