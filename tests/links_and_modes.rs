//! Links lead no job to where it was not sent, the names of one file stay names of one file, and nothing that a job makes is
//! ever open to more people than what it was made from.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::jobs::{decoded, strays};
use common::users::{ANOTHER, SOMEBODY};
use common::{names, sample, shell, system_calls, wait_until, warpfs};

fn run(directory: &Path, words: &[&str]) -> Output {
    warpfs()
        .current_dir(directory)
        .args(words)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that a job failed, with one line that says this.
fn assert_refused(output: &Output, words: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    assert_eq!(said(output).lines().count(), 1, "{}", said(output));
    assert!(said(output).contains(words), "{}", said(output));
}

fn inode(path: PathBuf) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn a_further_name_whose_packed_name_is_another_s_is_copied_and_not_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/a"), sample(60_000, 1)).unwrap();
    fs::hard_link(at("tree/a"), at("tree/b")).unwrap();
    fs::write(at("other"), sample(50_000, 2)).unwrap();
    let words = ["pack", "-q", "-o", "tree/b.warp", "other"];
    assert!(run(directory.path(), &words).status.success());
    for _ in 0..2 {
        let packed = run(directory.path(), &["pack", "-rq", "-o", "out", "tree"]);
        assert!(packed.status.success(), "{}", said(&packed));
        assert_eq!(names(&at("out")), ["a.warp", "b", "b.warp"]);
        let same =
            |one: &str, other: &str| fs::read(at(one)).unwrap() == fs::read(at(other)).unwrap();
        assert!(same("out/b", "tree/b") && same("out/b.warp", "tree/b.warp"));
    }
}

#[test]
fn a_tree_s_files_with_several_names_are_kept_unless_forced_and_then_stay_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(60_000, 1);
    fs::create_dir_all(at("tree/d")).unwrap();
    fs::write(at("tree/a"), &original).unwrap();
    for name in ["tree/b", "tree/d/c", "outside"] {
        fs::hard_link(at("tree/a"), at(name)).unwrap();
    }
    let refused = run(directory.path(), &["pack", "-rq", "--rm", "tree"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        said(&refused).matches("has 4 names").count(),
        3,
        "{}",
        said(&refused)
    );
    assert_eq!(names(&at("tree")), ["a", "b", "d"]);
    let packed = run(directory.path(), &["pack", "-rqf", "--rm", "tree"]);
    assert!(packed.status.success(), "{}", said(&packed));
    assert_eq!(
        (names(&at("tree")), names(&at("tree/d"))),
        (
            vec!["a.warp".to_owned(), "b.warp".to_owned(), "d".to_owned()],
            vec!["c.warp".to_owned()]
        )
    );
    assert_eq!(fs::metadata(at("tree/a.warp")).unwrap().nlink(), 3);
    // The name that is none of the tree's still has the file.
    assert!(fs::read(at("outside")).unwrap() == original);
    let unpacked = run(directory.path(), &["unpack", "-rqf", "--rm", "tree"]);
    assert!(unpacked.status.success(), "{}", said(&unpacked));
    assert_eq!(inode(at("tree/a")), inode(at("tree/d/c")));
    assert!(fs::read(at("tree/b")).unwrap() == original);
}

#[test]
fn the_output_is_never_the_input_by_whatever_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(60_000, 1);
    fs::create_dir(at("d")).unwrap();
    symlink("d", at("other")).unwrap();
    fs::write(at("d/x"), &original).unwrap();
    symlink("d/x", at("link")).unwrap();
    symlink("link", at("further")).unwrap();
    fs::hard_link(at("d/x"), at("hard")).unwrap();
    for output in ["d/x", "other/x", "other/../d/x", "link", "further", "hard"] {
        for rm in [&[][..], &["--rm"]] {
            let words = [&["pack", "-qf"], rm, &["-o", output, "d/x"]].concat();
            assert_refused(&run(directory.path(), &words), "the output is the input");
        }
    }
    // A tree onto itself, by a link too: no file is written over itself.
    for output in ["d", "d/.", "d/../d"] {
        let onto = run(directory.path(), &["pack", "-rqf", "-o", output, "d"]);
        assert_refused(&onto, "the output is the input: leave --output out");
        assert!(fs::read(at("d/x")).unwrap() == original);
        assert_eq!(names(&at("d")), ["x"]);
    }
    assert!(fs::read(at("hard")).unwrap() == original);
    assert!(strays(directory.path()).is_empty());
}

#[test]
fn force_does_not_replace_a_file_of_the_tree_that_is_to_be_packed_itself() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (original, precious) = (sample(60_000, 1), sample(70_000, 2));
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/x"), &original).unwrap();
    // Not packed, whatever its name says: a file like any other.
    fs::write(at("tree/x.warp"), &precious).unwrap();
    let words = ["pack", "-rqf", "--rm", "tree"];
    let packed = run(directory.path(), &words);
    assert_refused(
        &packed,
        "tree/x.warp: is no packed file, and would be replaced",
    );
    assert_eq!(names(&at("tree")), ["x", "x.warp.warp"]);
    assert!(decoded(&at("tree/x.warp.warp")).unwrap() == precious);
    assert!(fs::read(at("tree/x")).unwrap() == original);
    // Now it is out of the way.
    assert!(run(directory.path(), &words).status.success());
    assert_eq!(names(&at("tree")), ["x.warp", "x.warp.warp"]);
    assert!(decoded(&at("tree/x.warp")).unwrap() == original);
}

#[test]
fn force_does_not_replace_what_has_the_result_s_name_of_a_further_name_of_a_file() {
    for words in [
        &["pack", "-rqf", "tree"][..],
        &["pack", "-rqf", "--rm", "tree"],
        &["pack", "-rqf", "--in-place", "tree"],
    ] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let precious = sample(70_000, 2);
        fs::create_dir(at("tree")).unwrap();
        fs::write(at("tree/a"), sample(60_000, 1)).unwrap();
        fs::hard_link(at("tree/a"), at("tree/b")).unwrap();
        fs::write(at("tree/b.warp"), &precious).unwrap();
        let refused = run(directory.path(), words);
        assert_refused(
            &refused,
            "tree/b.warp: is no packed file, and would be replaced",
        );
        assert!(at("tree/b").exists(), "{words:?}");
        // It was packed itself, as any file.
        let kept = match at("tree/b.warp").exists() {
            true => fs::read(at("tree/b.warp")).unwrap(),
            false => decoded(&at("tree/b.warp.warp")).unwrap(),
        };
        assert!(kept == precious, "{words:?}");
    }
}

#[test]
fn links_in_a_tree_are_not_gone_through_and_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("outside/d")).unwrap();
    fs::create_dir(at("tree")).unwrap();
    for name in ["outside/x", "outside/d/y", "tree/own"] {
        fs::write(at(name), sample(60_000, 1)).unwrap();
    }
    symlink("../outside/x", at("tree/file")).unwrap();
    symlink("../outside/d", at("tree/directory")).unwrap();
    symlink("own", at("tree/inside")).unwrap();
    symlink("..", at("tree/up")).unwrap();
    let before = names(&at("outside/d"));
    for job in ["pack", "unpack"] {
        let done = run(directory.path(), &[job, "-rqf", "--rm", "tree"]);
        assert!(done.status.success(), "{}", said(&done));
        let own = if job == "pack" { "own.warp" } else { "own" };
        assert_eq!(
            names(&at("tree")),
            ["directory", "file", "inside", own, "up"]
        );
        assert_eq!(names(&at("outside")), ["d", "x"]);
        assert_eq!(names(&at("outside/d")), before);
    }
    assert!(
        run(directory.path(), &["pack", "-rq", "-o", "out", "tree"])
            .status
            .success()
    );
    assert_eq!(
        fs::read_link(at("out/directory")).unwrap(),
        Path::new("../outside/d")
    );
    assert_eq!(names(&at("outside")), ["d", "x"]);
}

#[test]
fn links_in_the_target_of_a_tree_lead_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(60_000, 1);
    fs::create_dir_all(at("tree/d")).unwrap();
    for name in ["tree/d/x", "tree/y"] {
        fs::write(at(name), &original).unwrap();
    }
    assert!(
        run(directory.path(), &["pack", "-rq", "-o", "packed", "tree"])
            .status
            .success()
    );
    for (job, source, y) in [("unpack", "packed", "y"), ("pack", "tree", "y.warp")] {
        for force in ["-rq", "-rqf"] {
            let _ = fs::remove_dir_all(at("target"));
            let _ = fs::remove_dir_all(at("outside"));
            fs::create_dir_all(at("outside/d")).unwrap();
            fs::create_dir(at("target")).unwrap();
            fs::write(at("outside/precious"), "precious").unwrap();
            set_mode(&at("outside/d"), 0o711);
            symlink("../outside/d", at("target/d")).unwrap();
            symlink("../outside/precious", at("target").join(y)).unwrap();
            let done = run(directory.path(), &[job, force, "-o", "target", source]);
            assert_eq!(done.status.code(), Some(1), "{}", said(&done));
            assert!(
                said(&done).contains("target/d: is in the way"),
                "{}",
                said(&done)
            );
            assert_eq!(fs::read(at("outside/precious")).unwrap(), b"precious");
            assert!(names(&at("outside/d")).is_empty());
            assert_eq!(
                fs::metadata(at("outside/d")).unwrap().mode() & 0o7777,
                0o711
            );
            // By force the link itself is replaced, never what it leads to.
            let replaced = !fs::symlink_metadata(at("target").join(y))
                .unwrap()
                .is_symlink();
            assert_eq!(replaced, force == "-rqf");
        }
        // Where the target itself is a link, whoever names it means what it leads to.
        fs::create_dir(at("elsewhere")).unwrap();
        symlink("elsewhere", at("lead")).unwrap();
        let done = run(directory.path(), &[job, "-rq", "-o", "lead", source]);
        assert!(done.status.success(), "{}", said(&done));
        assert_eq!(names(&at("elsewhere")), ["d", y]);
        fs::remove_file(at("lead")).unwrap();
        fs::remove_dir_all(at("elsewhere")).unwrap();
    }
}

/// While a job runs, a directory of its tree is exchanged for a link to `outside` and back, again and again. The name is
/// there all the time: where it were not, a job that makes its tree would rightly make the directory anew.
fn swapping(directory: &Path, swapped: &str, words: &[&str]) -> usize {
    let swapped = directory.join(swapped);
    let link = directory.join("link");
    symlink(directory.join("outside"), &link).unwrap();
    let exchange = || {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, &swapped, CWD, &link, RenameFlags::EXCHANGE).unwrap();
        std::thread::sleep(Duration::from_micros(200));
    };
    let mut job = warpfs()
        .current_dir(directory)
        .args(words)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut times = 0;
    while job.try_wait().unwrap().is_none() {
        exchange();
        exchange();
        times += 1;
    }
    fs::remove_file(&link).unwrap();
    times
}

#[test]
fn a_directory_swapped_for_a_link_amid_a_job_leads_nowhere_and_costs_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(3_000, 1);
    fs::create_dir_all(at("outside")).unwrap();
    for file in 0..60 {
        fs::write(at(&format!("outside/{file}")), "precious").unwrap();
    }
    let outside = || {
        names(&at("outside")).len() == 60
            && (0..60).all(|file| fs::read(at(&format!("outside/{file}"))).unwrap() == b"precious")
    };
    let every_file_is_there = |words: &str| {
        for file in 0..60 {
            let plain = at(&format!("tree/d/{file}"));
            let packed = at(&format!("tree/d/{file}.warp"));
            let found = match plain.exists() {
                true => fs::read(plain).unwrap(),
                false => decoded(&packed).unwrap_or_default(),
            };
            assert!(found == original, "{words}: {file}");
        }
    };
    let mut times = 0;
    for round in 0..3 {
        let _ = fs::remove_dir_all(at("tree"));
        fs::create_dir_all(at("tree/d")).unwrap();
        for file in 0..60 {
            fs::write(at(&format!("tree/d/{file}")), &original).unwrap();
        }
        for words in [
            &["pack", "-rqf", "--rm", "tree"][..],
            &["unpack", "-rqf", "--rm", "tree"],
            &["pack", "-rqf", "-o", "out", "tree"],
        ] {
            times += swapping(directory.path(), "tree/d", words);
            assert!(outside(), "{words:?}, round {round}");
            every_file_is_there(&words.join(" "));
        }
        // The same in the tree that is made.
        fs::create_dir_all(at("out/d")).unwrap();
        times += swapping(
            directory.path(),
            "out/d",
            &["pack", "-rqf", "-o", "out", "tree"],
        );
        assert!(outside(), "the other tree, round {round}");
        assert!(strays(&at("tree")).is_empty() && strays(&at("out")).is_empty());
    }
    assert!(times > 20, "swapped only {times} times");
}

/// The entries of an access list as `setfacl` takes them: user 1 may read and write, the owning group nothing.
const LIST: &str = "user::rw-,user:1:rw-,group::---,mask::rw-,other::---";

#[test]
fn what_is_made_is_its_owner_s_alone_until_it_has_the_input_s_owner_and_list_and_mode() {
    if !system_calls::can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // Everything made in this directory would be open to all, by its list and without a mask of the process.
    let list = "user::rwx,group::rwx,mask::rwx,other::rwx,user:2:rwx";
    if !Command::new("setfacl")
        .args(["-d", "-m", list])
        .arg(directory.path())
        .status()
        .unwrap()
        .success()
    {
        common::left_out("no access lists");
        return;
    }
    for (mode, access_list) in [
        (0o600, None),
        (0o644, None),
        (0o4755, None),
        (0o2750, None),
        (0o660, Some(LIST)),
        (0o400, None),
    ] {
        let root = rustix::process::geteuid().is_root();
        let prepare = |name: &str| {
            let _ = fs::remove_dir_all(at("out"));
            for left in names(directory.path()) {
                fs::remove_file(at(&left)).unwrap();
            }
            fs::write(at("x"), sample(60_000, 1)).unwrap();
            if name != "x" {
                common::pack(&at("x"), &at("x.warp"), &[]);
                fs::remove_file(at("x")).unwrap();
            }
            shell(directory.path(), &format!("setfacl -b {name}"));
            if root {
                chown(at(name), Some(1234), Some(4321)).unwrap();
            }
            set_mode(&at(name), mode);
            if let Some(list) = access_list {
                shell(directory.path(), &format!("setfacl --set {list} {name}"));
            }
        };
        for (input, output, words) in [
            ("x", "x.warp", &["pack", "-q", "--threads", "1", "x"][..]),
            (
                "x",
                "x.warp",
                &["pack", "-q", "--rm", "--threads", "1", "x"],
            ),
            ("x.warp", "x", &["unpack", "-q", "--threads", "1", "x.warp"]),
            (
                "x",
                "out/x.warp",
                &["pack", "-rq", "--threads", "1", "-o", "out", "."],
            ),
        ] {
            prepare(input);
            let wanted = fs::metadata(at(input)).unwrap();
            let calls = "openat,fchown,fchmod,fchmodat,fsetxattr,fremovexattr,umask,renameat,renameat2,linkat";
            let (done, trace) = system_calls::traced(directory.path(), calls, None, words);
            assert!(done.status.success(), "{}", said(&done));
            let context = format!("{words:?} of {mode:o}:\n{}", trace.join("\n"));
            let position = |wanted: &[&str]| {
                trace
                    .iter()
                    .position(|line| wanted.iter().all(|part| line.contains(part)))
            };
            let made = position(&["openat(", "O_CREAT", ".part"]).expect(&context);
            assert!(
                trace[made].contains("O_EXCL") && trace[made].contains(", 0600)"),
                "{context}"
            );
            let owned = position(&["fchown(", ".part"]).expect(&context);
            let moded = position(&[
                "fchmod(",
                ".part",
                &format!(", 0{:o})", wanted.mode() & 0o7777),
            ])
            .expect(&context);
            let renamed = position(&["rename", ".part"]).expect(&context);
            assert!(
                made < owned && owned < moded && moded < renamed,
                "{context}"
            );
            let changes = trace
                .iter()
                .filter(|line| line.contains("fchmod"))
                .filter(|line| line.contains(".part"));
            assert_eq!(changes.count(), 1, "{context}");
            let found = fs::metadata(at(output)).unwrap();
            assert_eq!(
                (found.mode(), found.uid(), found.gid()),
                (wanted.mode(), wanted.uid(), wanted.gid()),
                "{context}"
            );
            let listed = shell(
                directory.path(),
                &format!("getfacl -cn {output} 2>/dev/null"),
            );
            assert_eq!(
                listed.contains("user:1:rw-"),
                access_list.is_some(),
                "{listed}"
            );
            assert!(!listed.contains("user:2:"), "{listed}");
        }
    }
}

#[test]
fn nobody_looking_on_ever_sees_more_than_the_input_lets_them() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    for file in 0..20 {
        let path = at(&format!("tree/{file}"));
        fs::write(&path, sample(400_000, file)).unwrap();
        set_mode(&path, 0o440);
    }
    set_mode(&at("tree"), 0o750);
    let (ended, seen) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for name in [at("out"), at("back")] {
                    let Ok(metadata) = fs::metadata(&name) else {
                        continue;
                    };
                    assert_eq!(metadata.mode() & 0o7777 & !0o750, 0, "{}", name.display());
                    // One of them is removed meanwhile.
                    let entries = fs::read_dir(&name).into_iter().flatten();
                    for entry in entries.flatten() {
                        let Ok(metadata) = fs::symlink_metadata(entry.path()) else {
                            continue;
                        };
                        let mode = metadata.mode() & 0o7777;
                        assert!(mode == 0o600 || mode == 0o440, "{mode:o}");
                        // A final name has its final mode.
                        let temporary = entry.path().to_string_lossy().ends_with(".part");
                        assert!(temporary || mode == 0o440, "{mode:o}");
                        seen.fetch_or(temporary, Ordering::Relaxed);
                    }
                }
            }
        });
        let script = "umask 0 && $WARPFS pack -rq -o out tree && $WARPFS unpack -rq -o back out && rm -r out && $WARPFS pack -rq -o out back";
        let status = Command::new("bash")
            .args(["-c", script])
            .env("WARPFS", env!("CARGO_BIN_EXE_warpfs"))
            .current_dir(directory.path())
            .status();
        ended.store(true, Ordering::Relaxed);
        assert!(status.unwrap().success());
    });
    assert!(seen.load(Ordering::Relaxed), "no temporary file was seen");
    assert_eq!(fs::metadata(at("back")).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn root_gives_every_file_link_and_directory_its_owner() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root can give files away");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("tree/d")).unwrap();
    fs::write(at("tree/d/text"), sample(60_000, 1)).unwrap();
    fs::write(at("tree/d/short"), "x").unwrap();
    symlink("short", at("tree/d/link")).unwrap();
    for (number, name) in ["tree", "tree/d", "tree/d/text", "tree/d/short"]
        .iter()
        .enumerate()
    {
        chown(
            at(name),
            Some(2000 + number as u32),
            Some(3000 + number as u32),
        )
        .unwrap();
    }
    std::os::unix::fs::lchown(at("tree/d/link"), Some(2010), Some(3010)).unwrap();
    set_mode(&at("tree/d/text"), 0o6755);
    set_mode(&at("tree/d"), 0o2775);
    let list = "find . -printf '%P %y %m %U %G %l\\n' | sort";
    let before = shell(&at("tree"), list);
    for words in [
        &["pack", "-rq", "-o", "packed", "tree"][..],
        &["unpack", "-rq", "-o", "back", "packed"],
    ] {
        let done = run(directory.path(), words);
        assert!(done.status.success(), "{}", said(&done));
    }
    assert_eq!(shell(&at("back"), list), before);
    assert!(shell(&at("packed"), list).contains("d/text.warp f 6755 2002 3002"));
}

#[test]
fn an_ordinary_user_s_copy_of_another_s_program_runs_as_nobody_else() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root can become somebody else");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    set_mode(directory.path(), 0o777);
    // By a child: what this process has open for writing cannot be executed.
    shell(
        directory.path(),
        concat!(
            "cp '",
            env!("CARGO_BIN_EXE_warpfs"),
            "' program && chmod 755 program"
        ),
    );
    for (name, mode) in [("x", 0o6755), ("y", 0o4754), ("own", 0o4750)] {
        fs::write(at(name), sample(60_000, 1)).unwrap();
        let owner = if name == "own" { 1000 } else { 0 };
        chown(
            at(name),
            Some(owner),
            Some(if name == "own" { 1000 } else { 0 }),
        )
        .unwrap();
        set_mode(&at(name), mode);
    }
    let as_user = |words: &[&str]| {
        Command::new("setpriv")
            .args([
                "--reuid=1000",
                "--regid=1000",
                "--clear-groups",
                "--",
                "./program",
            ])
            .args(words)
            .current_dir(directory.path())
            .output()
            .unwrap()
    };
    let done = as_user(&["pack", "-q", "x", "y", "own"]);
    assert!(done.status.success(), "{}", said(&done));
    let found = |name: &str| {
        let metadata = fs::metadata(at(name)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(found("x.warp"), (0o755, 1000, 1000));
    // A group that cannot be kept gets what all others had, and no more.
    assert_eq!(found("y.warp"), (0o744, 1000, 1000));
    assert_eq!(found("own.warp"), (0o4750, 1000, 1000));
    // What may not be removed is not, and that is said; what was made is whole.
    fs::create_dir(at("root")).unwrap();
    fs::write(at("root/z"), sample(60_000, 1)).unwrap();
    let kept = as_user(&["pack", "-q", "--rm", "-o", "z.warp", "root/z"]);
    assert_refused(&kept, "root/z: cannot remove: Permission denied");
    assert!(at("root/z").exists() && decoded(&at("z.warp")).is_some());
    let unreadable = File::open(at("own"))
        .map(|_| as_user(&["pack", "-q", "-o", "root/own.warp", "own"]))
        .unwrap();
    assert_refused(
        &unreadable,
        "root/own.warp: cannot make a file beside it: Permission denied",
    );
    assert_eq!(names(&at("root")), ["z"]);
}

/// Runs a job that is held up behind each call of this name, and does something as soon as the effect is there.
fn held_up_behind(
    call: &str,
    directory: &Path,
    words: &[&str],
    is_done: impl FnMut() -> bool,
    act: impl FnOnce(),
) -> Output {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let injection = format!("{call}:delay_exit=500000");
    let child = system_calls::command(trace.path(), call, Some(&injection), words)
        .current_dir(directory)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the call", is_done);
    act();
    child.wait_with_output().unwrap()
}

/// A tree whose job is run again, by root, where its output belongs to an ordinary user, who also has what is not his in there.
fn output_of_somebody() -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        common::left_out("only root can give files away");
        return None;
    }
    if !system_calls::can_trace() {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    chown(at("tree"), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let first = run(directory.path(), &["pack", "-rq", "-o", "out", "tree"]);
    assert!(first.status.success(), "{}", said(&first));
    assert_eq!(fs::metadata(at("out")).unwrap().uid(), SOMEBODY);
    Some(directory)
}

#[test]
fn what_is_put_in_the_place_of_a_new_link_is_not_given_away() {
    let Some(directory) = output_of_somebody() else {
        return;
    };
    let at = |name: &str| directory.path().join(name);
    symlink("text", at("tree/link")).unwrap();
    std::os::unix::fs::lchown(at("tree/link"), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    fs::write(at("out/secret"), "secret").unwrap();
    set_mode(&at("out/secret"), 0o600);
    fs::hard_link(at("out/secret"), at("secret")).unwrap();
    let words = ["pack", "-rq", "-o", "out", "tree"];
    let made = || !strays(&at("out")).is_empty();
    let packed = held_up_behind("symlinkat", directory.path(), &words, made, || {
        fs::rename(at("out/secret"), &strays(&at("out"))[0]).unwrap();
    });
    assert_refused(&packed, "out/link: was replaced by something else");
    let secret = fs::metadata(at("secret")).unwrap();
    assert_eq!((secret.uid(), secret.mode() & 0o7777), (0, 0o600));
    // And undisturbed it gets its owner.
    assert!(run(directory.path(), &words).status.success());
    let link = fs::symlink_metadata(at("out/link")).unwrap();
    assert!(link.is_symlink() && link.uid() == SOMEBODY);
}

#[test]
fn what_is_put_in_the_place_of_a_new_directory_is_not_given_away() {
    for in_it in [Some("secret"), None] {
        let Some(directory) = output_of_somebody() else {
            return;
        };
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("tree/d")).unwrap();
        chown(at("tree/d"), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        fs::create_dir(at("out/private")).unwrap();
        set_mode(&at("out/private"), 0o700);
        chown(at("out/private"), Some(ANOTHER), Some(ANOTHER)).unwrap();
        if let Some(name) = in_it {
            fs::write(at("out/private").join(name), "secret").unwrap();
        }
        let words = ["pack", "-rq", "-o", "out", "tree"];
        let made = || at("out/d").exists();
        let packed = held_up_behind("mkdirat", directory.path(), &words, made, || {
            fs::rename(at("out/private"), at("out/d")).unwrap();
        });
        assert_eq!(packed.status.code(), Some(1), "{}", said(&packed));
        assert!(
            said(&packed).contains("out/d: belongs to user"),
            "{}",
            said(&packed)
        );
        let found = fs::metadata(at("out/d")).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (ANOTHER, 0o700));
    }
}
