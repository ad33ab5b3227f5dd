//! `pack -r --in-place` and the way back: the walkthrough of docs/IN_PLACE.md as it stands there, and what stays as it is.

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
use std::process::{Output, Stdio};

use common::jobs::{decoded, strays};
use common::users::{ANOTHER, SOMEBODY, as_user, place_of_somebody};
use common::{Random, is_mounted, names, sample, shell, system_calls, wait_until, warpfs};

/// The commands of the walkthrough, in its order, to be run in the directory that holds the tree.
fn walkthrough() -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/IN_PLACE.md");
    let page = fs::read_to_string(page).unwrap();
    let lines = page.lines().filter_map(|line| line.strip_prefix("    "));
    lines.map(str::to_owned).collect()
}

/// Whatever is mounted over the tree goes with the test.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let own = Self(tempfile::tempdir().unwrap());
        let at = |name: &str| own.at("models").join(name);
        fs::create_dir_all(at("d/e")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        for (seed, name) in ["weights", "d/text", "d/e/deep"].iter().enumerate() {
            fs::write(at(name), sample(200_000, seed as u64)).unwrap();
        }
        let mut random = Random(7);
        let noise: Vec<u8> = (0..50_000).map(|_| random.next() as u8).collect();
        fs::write(at("d/noise"), noise).unwrap();
        fs::write(at("nothing"), "").unwrap();
        fs::write(at("tiny"), sample(500, 1)).unwrap();
        let sparse = File::create(at("sparse")).unwrap();
        sparse.set_len(40 << 20).unwrap();
        sparse.write_all_at(&sample(300_000, 5), 20 << 20).unwrap();
        fs::hard_link(at("d/text"), at("d/e/same text")).unwrap();
        symlink("weights", at("link")).unwrap();
        symlink("/nonexistent", at("d/dangling")).unwrap();
        shell(&own.at("models"), "mkfifo pipe");
        shell(&own.at("models"), "setfattr -n user.note -v kept weights");
        chown(at("d/text"), Some(1234), Some(4321)).unwrap();
        fs::set_permissions(at("d/text"), PermissionsExt::from_mode(0o640)).unwrap();
        fs::set_permissions(at("d"), PermissionsExt::from_mode(0o750)).unwrap();
        let dates = "touch -h -d 2001-02-03T04:05:06.789 link weights d/text d/e/deep d/e d .";
        shell(&own.at("models"), dates);
        own
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a line of the walkthrough as it is written.
    fn line(&self, line: &str) -> String {
        let program = Path::new(env!("CARGO_BIN_EXE_warpfs")).parent().unwrap();
        let script = format!("PATH={program:?}:$PATH; {line} 2>&1");
        shell(self.0.path(), &script)
    }

    fn run(&self, words: &[&str]) -> (Output, String) {
        let output = warpfs()
            .args(words)
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output, said)
    }

    /// Everything known of the tree, a line for each name.
    fn manifest(&self) -> String {
        shell(
            &self.at("models"),
            "find . -printf '%P %y %m %U %G %T@ %l\\n' | LC_ALL=C sort
             find . -type f -printf '%P %s %n\\n' | LC_ALL=C sort
             find . -type f -exec sha256sum {} + | LC_ALL=C sort
             find . -type f -links +1 | LC_ALL=C sort
             find . -type f -exec getfattr -d -m '^user\\.[^w]' {} + | grep .",
        )
    }

    fn used(&self) -> u64 {
        let used = shell(&self.at("models"), "du -s --block-size=1 . | cut -f1");
        used.trim().parse().unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        while is_mounted(&self.at("models")) {
            if rustix::mount::unmount(self.at("models"), flags).is_err() {
                break;
            }
        }
    }
}

#[test]
fn the_walkthrough_shows_the_same_tree_at_the_same_path_and_gives_it_back() {
    let tree = Tree::new();
    // Diff does not know what to do with a pipe.
    fs::remove_file(tree.at("models/pipe")).unwrap();
    tree.line("touch -d 2001-02-03T04:05:06.789 models");
    let (before, used) = (tree.manifest(), tree.used());
    let walkthrough = walkthrough();
    assert_eq!(walkthrough.len(), 6);
    for line in walkthrough {
        tree.line(&line);
        if line.contains("--in-place") {
            for packed in ["weights", "d/text", "d/e/same text", "sparse"] {
                assert!(!tree.at("models").join(packed).exists(), "{packed}");
                assert!(tree.at("models").join(format!("{packed}.warp")).exists());
            }
            for plain in ["d/noise", "nothing", "tiny"] {
                assert!(tree.at("models").join(plain).exists(), "{plain}");
            }
        }
        if line.starts_with("diff") {
            assert_eq!(before, tree.manifest());
            assert!(tree.used() < used * 2 / 3, "{} of {used}", tree.used());
        }
    }
    assert_eq!(before, tree.manifest());
    let sparse = fs::metadata(tree.at("models/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 2 << 20);
}

#[test]
fn names_in_use_and_files_with_names_elsewhere_stay_as_they_are_and_are_told() {
    let tree = Tree::new();
    fs::write(tree.at("models/weights.warp"), "somebody's own").unwrap();
    fs::hard_link(tree.at("models/d/e/deep"), tree.at("elsewhere")).unwrap();
    let (output, said) = tree.run(&["pack", "-r", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("weights: left as it is: 'weights.warp' exists already"));
    assert!(
        said.contains("deep: left as it is: of its 2 names"),
        "{said}"
    );
    assert_eq!(
        fs::read(tree.at("models/weights.warp")).unwrap(),
        b"somebody's own"
    );
    assert!(tree.at("models/weights").exists() && tree.at("models/d/e/deep").exists());
}

#[test]
fn a_packed_file_of_an_earlier_state_is_never_replaced_in_place() {
    let tree = Tree::new();
    tree.run(&["pack", "-rq", "--in-place", "models"]);
    // As when a log is begun anew.
    fs::write(tree.at("models/weights"), sample(100_000, 77)).unwrap();
    let (output, said) = tree.run(&["pack", "-rq", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(decoded(&tree.at("models/weights.warp")).unwrap() == sample(200_000, 0));
    assert!(fs::read(tree.at("models/weights")).unwrap() == sample(100_000, 77));
}

#[test]
fn a_job_killed_between_a_result_and_its_input_s_end_is_finished_by_proving_it() {
    let tree = Tree::new();
    let before = tree.manifest();
    tree.line("cp -a models before");
    tree.run(&["pack", "-rq", "--in-place", "models"]);
    // As if these inputs had not been removed yet; one of them has another content by now, and the same time.
    for name in ["weights", "d/e/deep"] {
        tree.line(&format!("cp -a before/{name} models/{name}"));
    }
    let deep = File::options()
        .write(true)
        .open(tree.at("models/d/e/deep"))
        .unwrap();
    deep.write_all_at(b"x", 1000).unwrap();
    tree.line("touch -r before/d/e/deep models/d/e/deep");
    let (output, said) = tree.run(&["pack", "-r", "--in-place", "models"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("deep.warp: is not what its original packs to now: remove one of the two"),
        "{said}"
    );
    assert!(!tree.at("models/weights").exists(), "{said}");
    assert!(tree.at("models/d/e/deep").exists(), "{said}");
    fs::remove_file(tree.at("models/d/e/deep")).unwrap();
    // And the same on the way back.
    tree.line("cp -a before/weights models/weights");
    let (output, said) = tree.run(&["unpack", "-rq", "--rm", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(!tree.at("models/weights.warp").exists());
    // Its time was changed here, by hand.
    tree.line("touch -r before/d/e models/d/e; touch -r before/d models/d; touch -r before models");
    assert_eq!(before, tree.manifest());
}

/// Runs a job on a tree of `a` and `z`, one file, and a large one in between, and does something when `a` is done.
fn amid_a_job(tree: &Tree, words: &[&str], done: &str, act: impl FnOnce()) -> (Output, String) {
    let job = warpfs()
        .args(words)
        .current_dir(tree.0.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the first name's end", || !tree.at(done).exists());
    act();
    let output = job.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn a_further_name_of_a_file_written_to_amid_the_job_is_not_removed() {
    let tree = Tree::new();
    fs::remove_dir_all(tree.at("models")).unwrap();
    fs::create_dir(tree.at("models")).unwrap();
    let original = sample(200_000, 1);
    fs::write(tree.at("models/a"), &original).unwrap();
    fs::hard_link(tree.at("models/a"), tree.at("models/z")).unwrap();
    let large: Vec<u8> = sample(1 << 20, 2).repeat(16);
    fs::write(tree.at("models/m"), large).unwrap();
    let slow = &["--zstd-level", "15", "--codec", "zstd", "--threads", "1"];
    let words = [&["pack", "-rq", "--in-place"][..], slow, &["models"]].concat();
    let (output, said) = amid_a_job(&tree, &words, "models/a", || {
        assert!(tree.at("models/z").exists(), "too late to test anything");
        tree.line("touch -r models/z time; printf x | dd of=models/z conv=notrunc status=none");
        tree.line("touch -r time models/z");
    });
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(fs::read(tree.at("models/z")).unwrap()[1..] == original[1..]);
    assert!(fs::read(tree.at("models/z")).unwrap()[0] == b'x');
    assert!(!tree.at("models/z.warp").exists() && !tree.at("models/m").exists());
    assert!(decoded(&tree.at("models/a.warp")).unwrap() == original);
    // It is a file like any other to the next run.
    let (output, said) = tree.run(&["pack", "-rq", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(decoded(&tree.at("models/z.warp")).unwrap()[0] == b'x');
}

#[test]
fn attributes_changed_since_a_file_was_packed_are_not_lost_with_it() {
    let tree = Tree::new();
    tree.run(&["pack", "-rq", "models"]);
    tree.line("cd models && chmod 600 weights && chown 1000:1000 weights");
    tree.line("setfattr -n user.tag -v secret models/weights");
    let (output, said) = tree.run(&["pack", "-rq", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(!tree.at("models/weights").exists());
    let found = || {
        tree.line(
            "stat -c %a:%u:%g models/weights*; getfattr --only-values -n user.tag models/weights*",
        )
    };
    assert!(found().contains("600:1000:1000\nsecret"), "{}", found());
    // And the way back.
    tree.run(&["unpack", "-rq", "models"]);
    tree.line("setfattr -n user.old -v gone models/weights");
    tree.line("chmod 640 models/weights.warp; chmod 644 models/weights");
    let (output, said) = tree.run(&["unpack", "-rq", "--rm", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(!tree.at("models/weights.warp").exists());
    assert!(found().contains("640:1000:1000\nsecret"), "{}", found());
    let attributes = tree.line("getfattr -d models/weights");
    assert!(!attributes.contains("user.old"), "{attributes}");
}

#[test]
fn an_original_stays_if_what_an_earlier_job_made_of_it_goes_amid_the_job() {
    let tree = Tree::new();
    fs::remove_dir_all(tree.at("models")).unwrap();
    fs::create_dir(tree.at("models")).unwrap();
    for name in ["a", "z"] {
        fs::write(tree.at("models").join(name), sample(200_000, 1)).unwrap();
    }
    tree.run(&["pack", "-rq", "models"]);
    let large: Vec<u8> = sample(1 << 20, 2).repeat(16);
    fs::write(tree.at("models/m"), large).unwrap();
    let slow = &["--zstd-level", "15", "--codec", "zstd", "--threads", "2"];
    let words = [&["pack", "-rq", "--in-place"][..], slow, &["models"]].concat();
    let (output, said) = amid_a_job(&tree, &words, "models/a", || {
        // By then the one after the large file has been compared, too.
        wait_until("the large file", || !strays(&tree.at("models")).is_empty());
        assert!(tree.at("models/z").exists(), "too late to test anything");
        fs::rename(tree.at("models/z.warp"), tree.at("elsewhere")).unwrap();
    });
    assert!(
        tree.at("models/z").exists() || tree.at("models/z.warp").exists(),
        "{said}"
    );
    assert!(
        !tree.at("models/m").exists() && tree.at("models/m.warp").exists(),
        "{said}"
    );
    assert!(output.status.code() <= Some(1), "{said}");
}

#[test]
fn what_belongs_to_somebody_else_is_not_given_away_for_having_the_right_bytes() {
    let tree = Tree::new();
    let text = sample(200_000, 3);
    for (links, owner) in [(1, ANOTHER), (2, 0)] {
        fs::remove_dir_all(tree.at("models")).unwrap();
        fs::create_dir(tree.at("models")).unwrap();
        fs::write(tree.at("models/x"), &text).unwrap();
        tree.run(&["pack", "-q", "models/x"]);
        chown(tree.at("models/x.warp"), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        chown(tree.at("models/x"), Some(owner), Some(owner)).unwrap();
        if links == 2 {
            fs::hard_link(tree.at("models/x"), tree.at("elsewhere")).unwrap();
        }
        let (output, said) = tree.run(&["unpack", "-r", "--rm", "models"]);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("models/x: has another owner or group"),
            "{said}"
        );
        assert_eq!(fs::metadata(tree.at("models/x")).unwrap().uid(), owner);
        assert!(tree.at("models/x.warp").exists());
    }
}

#[test]
fn a_file_packed_already_stays_if_it_has_a_name_elsewhere_by_now() {
    let tree = Tree::new();
    tree.run(&["pack", "-rq", "models"]);
    fs::hard_link(tree.at("models/weights"), tree.at("elsewhere")).unwrap();
    let (output, said) = tree.run(&["pack", "-r", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("weights: left as it is: of its 2 names"),
        "{said}"
    );
    assert!(tree.at("models/weights").exists() && !tree.at("models/d/e/deep").exists());
}

#[test]
fn a_file_written_to_right_before_its_end_is_not_blocked_by_a_result_of_what_it_was() {
    if !system_calls::can_trace() {
        return;
    }
    for words in [
        &["pack", "-rq", "--in-place", "models"][..],
        &["pack", "-q", "--rm", "models/weights"],
    ] {
        let tree = Tree::new();
        // It stops for a while when the result has its name.
        let injection = Some("renameat2:delay_exit=2000000:when=1");
        let only = &["--exclude", "d", "--exclude", "sparse", "--exclude", "tiny"][..];
        let words = match words.contains(&"-rq") {
            true => [words, only].concat(),
            false => words.to_vec(),
        };
        let job = || system_calls::traced(tree.0.path(), "renameat2", injection, &words).0;
        let output = std::thread::scope(|scope| {
            let job = scope.spawn(job);
            wait_until("the result", || tree.at("models/weights.warp").exists());
            fs::write(tree.at("models/weights"), sample(100_000, 77)).unwrap();
            job.join().unwrap()
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("nothing was kept"), "{said}");
        assert!(!tree.at("models/weights.warp").exists(), "{said}");
        assert!(fs::read(tree.at("models/weights")).unwrap() == sample(100_000, 77));
        let (output, said) = tree.run(&["pack", "-rq", "--in-place", "models"]);
        assert!(output.status.success() && said.is_empty(), "{said}");
        assert!(decoded(&tree.at("models/weights.warp")).unwrap() == sample(100_000, 77));
    }
}

#[test]
fn a_file_among_the_arguments_is_not_taken_by_other_rules_than_a_tree_s() {
    let tree = Tree::new();
    for flags in [
        &["--in-place"][..],
        &["--rm", "--exclude", "*.jpg"],
        &["--include", "x"],
        &["--min-size", "1M"],
    ] {
        let words = [&["pack", "-rq"][..], flags, &["models/d", "models/weights"]].concat();
        let (output, said) = tree.run(&words);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("'models/weights' is not a directory"),
            "{said}"
        );
        assert!(tree.at("models/weights").exists() && tree.at("models/d/text").exists());
    }
}

#[test]
fn directory_times_that_others_have_changed_meanwhile_are_not_put_back() {
    let tree = Tree::new();
    for number in 0..3 {
        fs::write(
            tree.at(&format!("models/d/large-{number}")),
            sample(8 << 20, number),
        )
        .unwrap();
    }
    tree.line("touch -d 2001-02-03T04:05:06.789 models models/d models/d/e");
    let time = |name: &str| fs::metadata(tree.at(name)).unwrap().mtime();
    let before = time("models/d");
    let mut child = warpfs()
        .args(["pack", "-rq", "--in-place", "--codec", "brotli", "models"])
        .current_dir(tree.0.path())
        .spawn()
        .unwrap();
    while !tree.at("models/d/large-0.warp").exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    fs::write(tree.at("models/d/new"), "").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(tree.at("models/d/large-2.warp").exists());
    assert!(time("models/d") > before);
    // Those that nobody else has changed.
    assert_eq!((time("models"), time("models/d/e")), (before, before));
}

#[test]
fn a_file_is_not_open_any_more_when_its_last_name_is_removed() {
    if !system_calls::can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("tree")).unwrap();
    for size in [200_000, 17 << 20] {
        fs::write(directory.path().join("tree/x"), sample(size, 1)).unwrap();
        let words = ["pack", "-rqf", "--in-place", "tree"];
        let calls = "openat,close,unlinkat";
        let (output, lines) = system_calls::traced(directory.path(), calls, None, &words);
        assert!(output.status.success());
        let removed = |line: &String| line.contains("unlinkat(") && line.contains("\"x\"");
        let removed = lines.iter().position(removed).unwrap();
        let count = |call: &str, name: &str| {
            let is_it = |line: &&String| line.contains(call) && line.contains(name);
            lines[..removed].iter().filter(is_it).count()
        };
        // A server of NFS would keep it under another name until it is closed.
        let opened = count("openat(", "\"x\"");
        assert!(opened > 0);
        assert_eq!(count("close(", "/tree/x>"), opened);
        assert!(!directory.path().join("tree/x").exists());
    }
}

#[test]
fn a_name_without_room_for_the_ending_is_no_failure() {
    let tree = Tree::new();
    let (long, longest) = ("n".repeat(250), "o".repeat(251));
    for name in [&long, &longest] {
        fs::write(tree.at("models").join(name), sample(50_000, 3)).unwrap();
    }
    let (output, said) = tree.run(&["pack", "-r", "models", "-o", "out"]);
    assert!(output.status.success(), "{said}");
    assert!(tree.at("out").join(&longest).exists());
    let (output, said) = tree.run(&["pack", "-r", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("no room for '.warp'"), "{said}");
    assert!(tree.at("models").join(format!("{long}.warp")).exists());
    assert!(tree.at("models").join(&longest).exists());
}

#[test]
fn what_would_lose_its_owner_mode_or_capabilities_stays_as_it_is_and_is_told() {
    let tree = Tree::new();
    shell(&tree.at("models"), "setcap cap_net_raw+ep weights");
    let (output, said) = tree.run(&["pack", "-r", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("weights: left as it is: it has capabilities"),
        "{said}"
    );
    assert!(tree.at("models/weights").exists() && !tree.at("models/d/e/deep").exists());

    // A directory that anybody may work in, and a file of somebody else in it.
    let (place, program) = place_of_somebody();
    for (name, owner) in [("own", SOMEBODY), ("other", ANOTHER)] {
        let path = place.source().join(name);
        fs::write(&path, sample(200_000, 9)).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    }
    let source = place.source();
    let pack = ["pack", "-r", "--in-place"].map(OsStr::new);
    let words = [&[program.as_os_str()][..], &pack, &[source.as_os_str()]].concat();
    let output = as_user(SOMEBODY, &words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("other: left as it is: a packed file cannot be given its owner"),
        "{said}"
    );
    let mode = |name: &str| fs::metadata(place.source().join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("own.warp"), mode("other")), (0o4755, 0o4755));
    assert!(!place.source().join("own").exists() && !place.source().join("other.warp").exists());
    assert!(strays(&place.source()).is_empty());

    // Nor is the last step taken for what was packed before.
    let other = place.source().join("other");
    let pack = [program.as_os_str(), OsStr::new("pack"), other.as_os_str()];
    assert!(as_user(SOMEBODY, &pack).status.success());
    let output = as_user(SOMEBODY, &words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("other: left as it is, beside what"), "{said}");
    assert_eq!(mode("other"), 0o4755);
    assert!(place.source().join("other.warp").exists());

    // Nor is what root has packed unpacked by somebody else in its place.
    fs::remove_file(place.source().join("other.warp")).unwrap();
    let (output, said) = tree.run(&["pack", "-r", "--in-place", place.source().to_str().unwrap()]);
    assert!(output.status.success(), "{said}");
    let unpack = ["unpack", "-r", "--rm"].map(OsStr::new);
    let words = [&[program.as_os_str()][..], &unpack, &[source.as_os_str()]].concat();
    let output = as_user(SOMEBODY, &words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("other.warp: left as it is: the original cannot be given its owner"),
        "{said}"
    );
    assert_eq!((mode("own"), mode("other.warp")), (0o4755, 0o4755));
    assert!(!place.source().join("other").exists());
}

#[test]
fn what_would_lose_its_access_list_stays_as_it_is_and_is_told() {
    if !system_calls::can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    let list = |name: &str| shell(directory.path(), &format!("getfacl -cn {name} 2>/dev/null"));
    // The mode that is left without the list is the same.
    let set = "setfacl -m u:1:r tree/x && stat -c %a tree/x";
    fs::write(at("tree/x"), sample(200_000, 9)).unwrap();
    fs::set_permissions(at("tree/x"), PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(shell(directory.path(), set), "640\n");
    let run = |words: &[&str]| {
        let injection = Some("fsetxattr:error=EINVAL");
        let (output, _) = system_calls::traced(directory.path(), "fsetxattr", injection, words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let said = run(&["pack", "-r", "--in-place", "tree"]);
    let told =
        "x: left as it is: a packed file cannot be given its owner, group, mode or access list";
    assert!(said.contains(told), "{said}");
    assert_eq!(names(&at("tree")), ["x"]);

    // Nor is the last step taken for what was packed before.
    let packed = warpfs().arg("pack").arg(at("tree/x")).output().unwrap();
    assert!(packed.status.success() && list("tree/x.warp").contains("user:1:r--"));
    let said = run(&["pack", "-r", "--in-place", "tree"]);
    assert!(said.contains("x: left as it is, beside what"), "{said}");
    assert!(list("tree/x").contains("user:1:r--") && at("tree/x.warp").exists());

    // Nor does the original take the place of what was packed.
    let pack = warpfs()
        .args(["pack", "-rq", "--in-place"])
        .arg(at("tree"))
        .output()
        .unwrap();
    assert!(pack.status.success() && list("tree/x.warp").contains("user:1:r--"));
    assert_eq!(names(&at("tree")), ["x.warp"]);
    let said = run(&["unpack", "-r", "--rm", "tree"]);
    assert!(
        said.contains("x.warp: left as it is: the original cannot be given"),
        "{said}"
    );
    assert_eq!(names(&at("tree")), ["x.warp"]);
}

#[test]
fn temporary_files_of_a_killed_job_are_cleaned_up_and_not_packed() {
    let tree = Tree::new();
    let part = ".weights.warp.0123456789abcdef.part";
    fs::write(tree.at("models").join(part), sample(100_000, 1)).unwrap();
    let (output, said) = tree.run(&["pack", "-rq", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(strays(&tree.at("models")).is_empty());
    assert!(!tree.at("models").join(format!("{part}.warp")).exists());
}

#[test]
fn a_temporary_file_that_another_job_holds_is_not_packed() {
    let tree = Tree::new();
    let part = tree.at("models/.new.0123456789abcdef.part");
    fs::write(&part, sample(200_000, 1)).unwrap();
    let held = File::open(&part).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (output, said) = tree.run(&["pack", "-r", "--in-place", "models"]);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("another job is writing it"), "{said}");
    assert!(part.exists() && !tree.at("models/weights").exists());
}

#[test]
fn a_tree_that_is_mounted_over_itself_is_refused_in_one_line() {
    let tree = Tree::new();
    tree.run(&["pack", "-rq", "--in-place", "models"]);
    tree.line("warpfs mount models models");
    for words in [
        &["pack", "-r", "--in-place", "models"][..],
        &["unpack", "-r", "--rm", "models"],
    ] {
        let (output, said) = tree.run(words);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.contains("models: is on a read-only file system"),
            "{said}"
        );
    }
    tree.line("warpfs umount models");
}
