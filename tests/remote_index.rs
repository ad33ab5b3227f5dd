//! A tree behind a web server shows by its index, which `pack -r --index` writes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::io::Read;
use std::path::Path;

use common::model::{self, OPERATIONS, source};
use common::remote::Site;
use common::vectors;
use common::{names, packed, run, sample, shell, system_calls, vector, warpfs};
use warpfs::job::Control;

/// Packs a tree into what a web server serves, with an index.
fn publish(site: &Site, tree: &Path) {
    let root = site.root();
    run([
        "pack".as_ref(),
        "-q".as_ref(),
        "-r".as_ref(),
        "--index".as_ref(),
        "-o".as_ref(),
        root.as_os_str(),
        tree.as_os_str(),
    ]);
}

#[test]
fn a_published_tree_shows_as_it_was_before_it_was_packed() {
    let tree = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("a b/ü.txt", sample(300_000, 1)),
        ("deep/er/x", sample(200_000, 2)),
        ("tiny", b"1".to_vec()),
        ("empty", Vec::new()),
    ] {
        let path = tree.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let site = Site::new();
    publish(&site, tree.path());
    assert!(site.root().join("a b/ü.txt.warp").exists() && site.root().join("tiny").exists());
    for url in ["", "warpfs-index.json"] {
        let mounted = site.mount(url, &[]);
        site.proxy.take_passed();
        let script = "find . -type f -printf '%p %s %TY%Tm%Td%TH%TM\\n' | sort";
        assert_eq!(
            shell(&mounted.mount_point, script),
            shell(tree.path(), script)
        );
        // The index has all that takes.
        let passed = site.proxy.take_passed();
        assert!(passed.is_empty(), "{passed:?}");
        shell(
            tree.path(),
            &format!("diff -r . '{}'", mounted.mount_point.display()),
        );
        let told = shell(
            &mounted.mount_point,
            "getfattr --absolute-names -n user.warpfs.codec deep/er/x",
        );
        assert!(told.contains("codec="), "{told}");
    }
}

#[test]
fn what_an_index_leaves_out_and_where_there_is_none_is_said() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("x"), sample(100_000, 5)).unwrap();
    std::os::unix::fs::symlink("x", tree.path().join("link")).unwrap();
    let site = Site::new();
    let said = |arguments: &[&std::ffi::OsStr]| {
        let output = warpfs().args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let url = site.url("");
    let mount_point = tempfile::tempdir().unwrap();
    let refused = said(&[
        "mount".as_ref(),
        url.as_os_str(),
        mount_point.path().as_os_str(),
    ]);
    assert!(refused.contains("pack -r --index"), "{refused}");
    let root = site.root();
    let packing = ["pack", "-r", "--index", "-o"].map(std::ffi::OsStr::new);
    let told = said(&[&packing[..], &[root.as_os_str(), tree.path().as_os_str()]].concat());
    assert!(told.contains("1 links, or what else is no file"), "{told}");
    let quiet = [
        &packing[..],
        &[root.as_os_str(), tree.path().as_os_str(), "-q".as_ref()],
    ];
    assert_eq!(said(&quiet.concat()), "");
}

#[test]
fn good_and_damaged_files_of_a_published_tree_read_as_they_do_from_a_disk() {
    let site = Site::new();
    for name in vectors::names() {
        site.put(&name, &fs::read(vector(&name)).unwrap());
    }
    warpfs::index::write(&site.root(), false, Control::default(), |path| {
        panic!("{path:?}")
    })
    .unwrap();
    let mounted = site.mount("", &[]);
    vectors::read_as_their_originals(&mounted);
    vectors::cannot_be_opened(&mounted);
    vectors::are_errors_where_damaged(&mounted);
}

#[test]
fn a_published_tree_agrees_with_the_originals() {
    let (directory, originals) = source();
    let site = Site::new();
    for entry in fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, site.root().join(path.file_name().unwrap())).unwrap();
    }
    warpfs::index::write(&site.root(), false, Control::default(), |path| {
        panic!("{path:?}")
    })
    .unwrap();
    model::agree(OPERATIONS / 4, &originals, || {
        site.mount("", &["--cache-size", "4M"])
    });
}

#[test]
fn a_file_that_is_larger_than_its_index_says_is_read_to_its_end() {
    let tree = tempfile::tempdir().unwrap();
    for name in ["replaced", "misjudged"] {
        fs::write(tree.path().join(name), sample(300_000, 1)).unwrap();
    }
    let site = Site::new();
    publish(&site, tree.path());
    // Its author says less than there is.
    let index = site.root().join("warpfs-index.json");
    let told = fs::read_to_string(&index).unwrap();
    let told = told.lines().map(|line| match line.contains("misjudged") {
        true => line.replace("\"original\":300000", "\"original\":5000"),
        false => line.to_owned(),
    });
    let told = told.collect::<Vec<_>>().join("\n") + "\n";
    assert!(told.contains(":5000"), "{told}");
    fs::write(&index, told).unwrap();
    for arguments in [&[][..], &["--ttl", "forever"]] {
        site.put(
            "replaced.warp",
            &fs::read(site.root().join("misjudged.warp")).unwrap(),
        );
        let mounted = site.mount("", arguments);
        assert_eq!(fs::metadata(mounted.path("misjudged")).unwrap().len(), 5000);
        let mut held = fs::File::open(mounted.path("misjudged")).unwrap();
        assert_eq!(read_on(&mut held, 4096).len(), 4096);
        // Whoever looks it up again does not cut it off for who holds it.
        std::thread::sleep(std::time::Duration::from_millis(1200));
        assert_eq!(
            fs::metadata(mounted.path("misjudged")).unwrap().len(),
            300_000
        );
        assert!(read_on(&mut held, usize::MAX) == sample(300_000, 1)[4096..]);

        assert_eq!(
            fs::metadata(mounted.path("replaced")).unwrap().len(),
            300_000
        );
        let larger = sample(900_000, 2);
        site.put("replaced.warp", &packed(&larger, &[]));
        let mut opened = fs::File::open(mounted.path("replaced")).unwrap();
        assert!(read_on(&mut opened, usize::MAX) == larger);
    }
}

/// So many bytes, or all that there are, as a program reads them that does not ask first how many that is.
fn read_on(file: &mut fs::File, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut part = vec![0; most.min(128 << 10)];
    while bytes.len() < most {
        match file.read(&mut part).unwrap() {
            0 => break,
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
    bytes
}

#[test]
fn an_index_names_what_there_is_after_every_run_and_is_never_packed_itself() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("x"), sample(300_000, 1)).unwrap();
    let place = tree.path().to_str().unwrap();
    for _ in 0..2 {
        run(["pack", "-q", "-r", "--in-place", "--index", place]);
        let index = fs::read_to_string(tree.path().join("warpfs-index.json")).unwrap();
        assert_eq!(index.lines().count(), 2, "{index}");
        assert!(
            index.contains("\"path\":\"x.warp\"") && index.contains("\"original\":300000"),
            "{index}"
        );
    }
}

#[test]
fn what_a_killed_run_leaves_of_an_index_is_removed_by_the_next_and_never_packed() {
    if !system_calls::can_trace() {
        return;
    }
    let in_place = &["--in-place", "tree"][..];
    for (result, words) in [("tree", in_place), ("out", &["-o", "out", "tree"])] {
        let own = tempfile::tempdir().unwrap();
        let again = || {
            for name in ["out", "tree"] {
                let _ = fs::remove_dir_all(own.path().join(name));
            }
            fs::create_dir(own.path().join("tree")).unwrap();
            fs::write(own.path().join("tree/x"), sample(300_000, 1)).unwrap();
        };
        let words = [&["pack", "-q", "-r", "--index", "--threads", "1"], words].concat();
        let traced = |kill: Option<&str>| {
            system_calls::traced(own.path(), "renameat,renameat2", kill, &words)
        };
        again();
        let (_, calls) = traced(None);
        let (call, number) = *system_calls::numbered(&calls, &[""]).last().unwrap();
        again();
        let kill = format!("{call}:signal=KILL:when={number}");
        traced(Some(&kill));
        let result = own.path().join(result);
        let left = names(&result);
        assert!(left.len() == 2 && left[0].ends_with(".part"), "{left:?}");
        assert!(traced(None).0.status.success());
        assert_eq!(names(&result), ["warpfs-index.json", "x.warp"]);
    }
}

#[test]
fn a_file_that_has_the_name_of_an_index_and_is_none_is_neither_replaced_nor_left_out() {
    let own = "{\"mine\":true}\n";
    let with = |content: &str| {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("x"), sample(300_000, 1)).unwrap();
        fs::write(tree.path().join("warpfs-index.json"), content).unwrap();
        tree
    };
    let index_in = |tree: &Path| fs::read_to_string(tree.join("warpfs-index.json")).unwrap();
    let packing = |words: &[&str], paths: &[&Path]| {
        let mut command = warpfs();
        command.args(["pack", "-q", "-r", "--index"]).args(words);
        let output = command.args(paths).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    let (tree, index) = (with(own), "{\"warpfs_index\":1}\n");
    let (code, said) = packing(&["--in-place"], &[tree.path()]);
    assert!(
        code == Some(1) && said.contains("warpfs-index.json: exists already"),
        "{said}"
    );
    assert!(index_in(tree.path()) == own && tree.path().join("x").exists());

    let out = with(own);
    let other = with(index);
    let (code, said) = packing(&["-o"], &[out.path(), other.path()]);
    assert!(code == Some(1) && said.contains("exists already"), "{said}");
    assert!(index_in(out.path()) == own && !out.path().join("x.warp").exists());
    let forced = packing(&["-f", "-o"], &[out.path(), other.path()]);
    assert_eq!(forced, (Some(0), String::new()));
    assert!(index_in(out.path()).contains("x.warp"));

    // What would be missing in the other tree.
    let (code, said) = packing(&["-f", "-o"], &[out.path(), tree.path()]);
    assert!(code == Some(1) && said.contains("is no index"), "{said}");
    let forced = packing(&["-f", "--in-place"], &[tree.path()]);
    assert_eq!(forced, (Some(0), String::new()));
    assert!(index_in(tree.path()).contains("x.warp"));
}

#[test]
fn a_hostile_index_shows_nothing_outside_of_its_tree_and_takes_no_memory() {
    let site = Site::new();
    site.put("secret", b"not in the tree");
    site.put("tree/fine", b"12345");
    let deep = "d/".repeat(2000);
    let paths = [
        "../secret",
        "/secret",
        "a/../../secret",
        "a//b",
        ".",
        "",
        "a/./b",
        "nul\\u0000",
        &deep,
        &"n".repeat(300),
    ];
    let mut index = "{\"warpfs_index\":1}\n".to_owned();
    for path in paths.iter().chain(&[
        "fine",
        "fine",
        "fine/inside",
        "gone",
        "huge.warp",
        "directory/x",
    ]) {
        let original = if *path == "huge.warp" {
            ",\"version\":2,\"original\":18446744073709551615"
        } else {
            ""
        };
        index += &format!("{{\"path\":\"{path}\",\"size\":5{original}}}\n");
    }
    site.put("tree/warpfs-index.json", index.as_bytes());
    let mounted = site.mount("tree/", &[]);
    let listed = shell(&mounted.mount_point, "ls -A | tr '\\n' ' '");
    // What is a file and a directory at once is the directory.
    assert_eq!(listed, "directory fine gone huge ");
    assert!(mounted.path("fine").is_dir());
    for name in ["gone", "huge", "directory/x", "fine/inside"] {
        assert!(fs::read(mounted.path(name)).is_err(), "{name}");
    }
    assert!(
        mounted.logged().contains("paths do not show"),
        "{}",
        mounted.logged()
    );
    assert!(mounted.resident() < 128 << 20);

    let own = tempfile::tempdir().unwrap();
    for refused in ["", "<html>404</html>", "{\"warpfs_index\":9}\n"] {
        site.put("other/warpfs-index.json", refused.as_bytes());
        let output = warpfs()
            .args(["mount", "-f"])
            .arg(site.url("other/"))
            .arg(own.path())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && said.contains("index"),
            "{refused}: {said}"
        );
    }
}
