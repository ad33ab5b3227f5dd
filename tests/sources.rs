//! The mount's third promise: what can be mounted where, and that nothing outside of the source ever shows.
//! See docs/SEMANTICS.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Mounted, is_mounted, mount_table, names, pack, sample, shell, vector, warpfs};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

fn original() -> Vec<u8> {
    sample(200_000, 3)
}

/// Packs [`original`] to `path`.
fn packed(path: &Path) {
    let own = tempfile::tempdir().unwrap();
    fs::write(own.path().join("original"), original()).unwrap();
    pack(&own.path().join("original"), path, &["--chunk-size", "64K"]);
}

/// Something mounted for the time of a test.
struct Placed(PathBuf);

impl Placed {
    fn tmpfs(path: &Path) -> Self {
        Self::of_kind("tmpfs", path)
    }

    fn of_kind(kind: &str, path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        rustix::mount::mount(kind, path, kind, MountFlags::empty(), None).unwrap();
        Self(path.to_owned())
    }

    fn bind(from: &Path, path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        rustix::mount::mount_bind(from, path).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Runs `warpfs mount` to its end; for mounts that are refused.
fn refused(directory: &Path, source: &str, mount_point: &str) -> String {
    let output: Output = warpfs()
        .args(["mount", "-f", source, mount_point])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{source} {mount_point}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn a_directory_on_a_directory() {
    let source = tempfile::tempdir().unwrap();
    packed(&source.path().join("x.warp"));
    let mounted = Mounted::new(source.path(), &[]);
    assert_eq!(names(&mounted.mount_point), ["x"]);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
}

#[test]
fn one_file_on_a_directory_is_all_there_is_in_it() {
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("x.warp");
    packed(&file);
    packed(&source.path().join("other.warp"));
    // Not shown, so it takes nobody's name.
    fs::write(source.path().join("x"), "plain").unwrap();
    let mounted = Mounted::new(&file, &["--ttl", "0"]);
    assert_eq!(names(&mounted.mount_point), ["x"]);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
    for hidden in ["other", "other.warp", "x.warp"] {
        assert!(!mounted.path(hidden).exists(), "{hidden}");
    }
    let found = shell(&mounted.mount_point, "find . | sort");
    assert_eq!(found, ".\n./x\n");

    // It lives like any other: replaced, gone, and there again.
    fs::copy(vector("v2-lz4-blake3.warp"), source.path().join("new")).unwrap();
    fs::rename(source.path().join("new"), &file).unwrap();
    assert_eq!(fs::read(mounted.path("x")).unwrap(), common::mixed());
    fs::remove_file(&file).unwrap();
    assert_eq!(names(&mounted.mount_point), [""; 0]);
    assert!(fs::read(mounted.path("x")).is_err());
    packed(&file);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
}

#[test]
fn one_file_onto_a_regular_file() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    packed(&at("x.warp"));
    fs::write(at("place"), "what was here").unwrap();
    let mounted = Mounted::at(&at("x.warp"), &at("place"), &[]);
    let shown = fs::metadata(at("place")).unwrap();
    assert!(shown.is_file());
    assert_eq!(shown.len(), 200_000);
    assert_eq!(shown.ino(), fs::metadata(at("x.warp")).unwrap().ino());
    assert_eq!(fs::read(at("place")).unwrap(), original());
    let attributes = shell(
        source.path(),
        "getfattr --only-values -n user.warpfs.chunks place",
    );
    assert_eq!(attributes, "4");
    drop(mounted);
    assert_eq!(fs::read(at("place")).unwrap(), b"what was here");
}

#[test]
fn one_file_onto_a_regular_file_is_stale_when_its_source_is_removed() {
    for ttl in ["0", "600"] {
        let source = tempfile::tempdir().unwrap();
        let at = |name: &str| source.path().join(name);
        packed(&at("x.warp"));
        fs::write(at("place"), "what was here").unwrap();
        let mounted = Mounted::at(&at("x.warp"), &at("place"), &["--ttl", ttl]);
        assert_eq!(fs::read(at("place")).unwrap(), original());
        for is_removed in [true, false] {
            match is_removed {
                true => fs::remove_file(at("x.warp")).unwrap(),
                false => fs::rename(at("x.warp"), at("elsewhere")).unwrap(),
            }
            let refused = fs::File::open(at("place")).unwrap_err();
            let stale = rustix::io::Errno::STALE.raw_os_error();
            assert_eq!(refused.raw_os_error(), Some(stale), "{is_removed}, {ttl}");
            packed(&at("x.warp"));
            assert_eq!(fs::read(at("place")).unwrap(), original(), "{ttl}");
        }
        drop(mounted);
    }
}

#[test]
fn one_file_onto_itself() {
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("x.warp");
    packed(&file);
    let raw = fs::read(&file).unwrap();
    let mounted = Mounted::at(&file, &file, &[]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 200_000);
    mounted.drop_caches();
    assert_eq!(fs::read(&file).unwrap(), original());
    drop(mounted);
    assert_eq!(fs::read(&file).unwrap(), raw);
}

#[test]
fn a_directory_over_itself_shows_the_same_tree_at_the_same_path() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    fs::create_dir_all(at("d/e")).unwrap();
    packed(&at("x.warp"));
    packed(&at("d/e/y.warp"));
    fs::write(at("d/plain"), "plain").unwrap();
    symlink(at("d/e/y.warp"), at("absolute.warp")).unwrap();
    symlink("../x.warp", at("d/up.warp")).unwrap();
    symlink(at("d"), at("to directory")).unwrap();
    let mounted = Mounted::at(source.path(), source.path(), &[]);
    mounted.drop_caches();
    let found = shell(source.path(), "find . -type f -o -type l | sort");
    assert_eq!(
        found,
        "./absolute\n./d/e/y\n./d/plain\n./d/up\n./to directory\n./x\n"
    );
    for name in ["x", "d/e/y", "absolute", "d/up", "to directory/e/y"] {
        assert_eq!(fs::read(at(name)).unwrap(), original(), "{name}");
    }
    assert_eq!(fs::read(at("d/plain")).unwrap(), b"plain");
    assert_eq!(fs::read_link(at("absolute")).unwrap(), at("d/e/y"));
    assert!(shell(source.path(), "getfattr -d x").contains("user.warpfs.codec"));
    drop(mounted);
    assert!(at("x.warp").exists());
}

#[test]
fn a_mount_point_inside_the_source_shows_what_is_beneath() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    packed(&at("x.warp"));
    fs::create_dir_all(at("in/side/deeper")).unwrap();
    packed(&at("in/side/beneath.warp"));
    fs::write(at("in/side/deeper/plain"), "plain").unwrap();
    let mounted = Mounted::at(source.path(), &at("in/side"), &["--ttl", "0"]);
    mounted.drop_caches();
    let found = shell(&mounted.mount_point, "timeout 10 find . | sort");
    let expected =
        ".\n./in\n./in/side\n./in/side/beneath\n./in/side/deeper\n./in/side/deeper/plain\n./x\n";
    assert_eq!(found, expected);
    // From above, the mount lies inside the source, once.
    let above = shell(source.path(), "timeout 10 find . | wc -l");
    assert_eq!(above, "10\n");
    assert_eq!(
        fs::read(mounted.path("in/side/beneath")).unwrap(),
        original()
    );
    shell(
        &mounted.mount_point,
        "timeout 10 grep -r plain . ; timeout 10 getfattr -R -d . >/dev/null; timeout 10 stat -f in/side",
    );
}

#[test]
fn a_directory_above_the_mount_point_can_be_renamed_and_the_mount_bound_into_its_source() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    fs::create_dir_all(at("above/side/deeper")).unwrap();
    fs::create_dir(at("elsewhere")).unwrap();
    packed(&at("above/side/beneath.warp"));
    let mounted = Mounted::at(source.path(), &at("above/side"), &["--ttl", "0"]);
    assert!(mounted.path("above/side/deeper").is_dir());
    fs::rename(at("above"), at("renamed")).unwrap();
    let place = at("renamed/side");
    let expected = ".\n./elsewhere\n./renamed\n./renamed/side\n./renamed/side/beneath\n./renamed/side/deeper\n";
    assert_eq!(shell(&place, "timeout 10 find . | sort"), expected);
    assert_eq!(
        fs::read(place.join("renamed/side/beneath")).unwrap(),
        original()
    );
    // Many at once, so that none could be answered by a thread that happens to be free.
    shell(
        &place,
        "for i in 1 2 3 4 5 6 7 8; do timeout 10 stat renamed/side/deeper >/dev/null & done; wait",
    );

    let bound = at("elsewhere");
    shell(source.path(), "mount --bind renamed/side elsewhere");
    let listed = std::panic::catch_unwind(|| {
        shell(
            &place,
            "timeout 10 find elsewhere | sort; timeout 10 cat elsewhere/beneath | wc -c",
        )
    });
    rustix::mount::unmount(&bound, UnmountFlags::DETACH).unwrap();
    let beneath = format!(
        "elsewhere\nelsewhere/beneath\nelsewhere/deeper\n{}\n",
        original().len()
    );
    assert_eq!(listed.unwrap(), beneath);

    // The server looks for its mount where it was made.
    fs::rename(at("renamed"), at("above")).unwrap();
}

#[test]
fn a_mount_point_that_lies_in_the_source_by_a_bind_mount_is_not_entered_either() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    // What is mounted in a shared tree appears in its copies.
    let shared = Placed::tmpfs(&at("shared"));
    rustix::mount::mount_change(&shared.0, rustix::mount::MountPropagationFlags::SHARED).unwrap();
    fs::create_dir(at("shared/mounted")).unwrap();
    packed(&at("shared/x.warp"));
    fs::write(at("shared/mounted/beneath"), "beneath").unwrap();
    let copy = Placed::bind(&shared.0, &at("copy"));
    {
        let mounted = Mounted::at(&copy.0, &at("shared/mounted"), &["--ttl", "0"]);
        let found = shell(&mounted.mount_point, "timeout 10 find . | sort");
        assert_eq!(found, ".\n./mounted\n./mounted/beneath\n./x\n");
        assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
    }
    drop((copy, shared));
}

#[test]
fn the_source_may_lie_beneath_the_mount_point() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("below/source");
    fs::create_dir_all(&source).unwrap();
    packed(&source.join("x.warp"));
    let mounted = Mounted::at(&source, place.path(), &[]);
    mounted.drop_caches();
    assert_eq!(names(place.path()), ["x"]);
    assert_eq!(fs::read(place.path().join("x")).unwrap(), original());
}

#[test]
fn where_the_source_refuses_direct_reads_of_plain_files_they_are_refused_in_the_same_way() {
    let place = tempfile::tempdir().unwrap();
    let source = Placed::of_kind("ramfs", &place.path().join("source"));
    packed(&source.0.join("x.warp"));
    fs::write(source.0.join("plain"), original()).unwrap();
    let mounted = Mounted::new(&source.0, &[]);
    let open_direct = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECT;
        rustix::fs::open(path, flags, Mode::empty()).map(File::from)
    };
    for _ in 0..2 {
        let refused = open_direct(&source.0.join("plain")).unwrap_err();
        assert_eq!(refused, Errno::INVAL, "this tests nothing");
        assert_eq!(
            open_direct(&mounted.path("plain")).unwrap_err(),
            Errno::INVAL
        );
        // Also while it is open otherwise.
        let file = File::open(mounted.path("plain")).unwrap();
        assert_eq!(
            open_direct(&mounted.path("plain")).unwrap_err(),
            Errno::INVAL
        );
        let mut bytes = vec![0; 1000];
        file.read_exact_at(&mut bytes, 5).unwrap();
        assert_eq!(bytes, original()[5..1005]);
    }
    let mut bytes = vec![0; 1000];
    let packed = open_direct(&mounted.path("x")).unwrap();
    packed.read_exact_at(&mut bytes, 7).unwrap();
    assert_eq!(bytes, original()[7..1007]);
}

#[test]
fn a_source_that_spans_devices_has_unique_inode_numbers() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    let _first = Placed::tmpfs(&at("first"));
    let _second = Placed::tmpfs(&at("second"));
    for directory in ["first", "second"] {
        fs::create_dir_all(at(directory).join("d")).unwrap();
        packed(&at(directory).join("x.warp"));
        for number in 0..50 {
            fs::write(at(directory).join(format!("d/{number}")), directory).unwrap();
        }
    }
    packed(&at("x.warp"));
    let both = [at("first/d/7"), at("second/d/7")].map(|path| fs::metadata(path).unwrap().ino());
    assert_eq!(
        both[0], both[1],
        "the source's numbers clash, or this tests nothing"
    );
    let mounted = Mounted::new(source.path(), &[]);
    let found = shell(&mounted.mount_point, "find . -printf '%D:%i %p\\n'");
    let mut seen = BTreeMap::new();
    for line in found.lines() {
        let (number, path) = line.split_once(' ').unwrap();
        let other = seen.insert(number, path);
        assert_eq!(other, None, "{path} has the same number");
    }
    assert_eq!(seen.len(), 1 + 1 + 2 * (1 + 1 + 1 + 50));
    for directory in ["first", "second"] {
        assert_eq!(
            fs::read(mounted.path(directory).join("x")).unwrap(),
            original()
        );
        assert_eq!(
            fs::read(mounted.path(directory).join("d/7")).unwrap(),
            directory.as_bytes()
        );
    }
    // The same numbers at the next mount.
    let again = Mounted::new(source.path(), &[]);
    let numbers = |path: &Path| shell(path, "find . -printf '%i %p\\n' | sort");
    assert_eq!(numbers(&again.mount_point), numbers(&mounted.mount_point));
}

#[test]
fn a_file_with_two_views_has_a_number_for_each() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    packed(&at("x.warp"));
    fs::hard_link(at("x.warp"), at("raw")).unwrap();
    fs::hard_link(at("x.warp"), at("y.warp")).unwrap();
    let mounted = Mounted::new(source.path(), &["--ttl", "0"]);
    let stat = |name: &str| fs::metadata(mounted.path(name)).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
        assert_eq!(
            fs::read(mounted.path("raw")).unwrap(),
            fs::read(at("x.warp")).unwrap()
        );
        assert_eq!(fs::read(mounted.path("y")).unwrap(), original());
        mounted.drop_caches();
    }
    let distinct: BTreeSet<_> = ["x", "y", "raw"].map(|name| stat(name).ino()).into();
    assert_eq!(distinct.len(), 2);
    assert_eq!(stat("x").ino(), stat("y").ino());
    assert_eq!(
        (stat("x").len(), stat("raw").len()),
        (200_000, fs::metadata(at("raw")).unwrap().len())
    );
    assert_eq!((stat("x").nlink(), stat("raw").nlink()), (3, 3));
}

#[test]
fn one_name_of_a_file_going_away_leaves_the_others() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    fs::create_dir(at("d")).unwrap();
    packed(&at("x.warp"));
    fs::write(at("plain"), "plain").unwrap();
    for (name, link) in [
        ("x.warp", "d/x.warp"),
        ("x.warp", "y.warp"),
        ("plain", "d/plain"),
        ("plain", "z"),
    ] {
        fs::hard_link(at(name), at(link)).unwrap();
    }
    let mounted = Mounted::new(source.path(), &["--ttl", "forever"]);
    // Every name is known to the kernel, the ones that go away were the last.
    for name in ["x", "plain", "d/x", "d/plain", "y", "z"] {
        fs::metadata(mounted.path(name)).unwrap();
    }
    fs::remove_file(at("y.warp")).unwrap();
    fs::remove_file(at("z")).unwrap();
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
    assert_eq!(fs::read(mounted.path("plain")).unwrap(), b"plain");
    fs::metadata(mounted.path("d/x")).unwrap();
    assert_eq!(fs::read(mounted.path("d/x")).unwrap(), original());
    assert_eq!(fs::read(mounted.path("d/plain")).unwrap(), b"plain");
    fs::remove_dir_all(at("d")).unwrap();
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
    assert_eq!(fs::read(mounted.path("plain")).unwrap(), b"plain");
    shell(&mounted.mount_point, "getfattr -d x plain; stat x plain");
}

#[test]
fn a_directory_swapped_for_a_link_shows_nothing_from_outside() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("source/d/e")).unwrap();
    fs::create_dir_all(at("outside/e")).unwrap();
    for directory in ["source/d", "source/d/e"] {
        fs::write(at(directory).join("plain"), "inside").unwrap();
        packed(&at(directory).join("x.warp"));
    }
    for directory in ["outside", "outside/e"] {
        fs::write(at(directory).join("plain"), "SECRET").unwrap();
        fs::write(at(directory).join("only outside"), "SECRET").unwrap();
        fs::copy(vector("v2-zstd-none.warp"), at(directory).join("x.warp")).unwrap();
    }
    // Absolute and relative, so that one leads outside through the source's own root.
    symlink(at("outside"), at("link")).unwrap();
    let mounted = Mounted::new(&at("source"), &["--ttl", "0"]);
    let stop = AtomicBool::new(false);
    let successes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = || {
                let cwd = rustix::fs::CWD;
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(cwd, at("source/d"), cwd, at("link"), flags).unwrap();
            };
            while !stop.load(Ordering::Relaxed) {
                exchange();
                std::thread::sleep(Duration::from_micros(150));
                exchange();
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let walk = || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(4) {
                // A link that leads outside is the reader's to follow, as everywhere: here nobody does.
                for directory in ["d", "d/e"] {
                    use rustix::fs::{ResolveFlags, open, openat2};
                    let root = open(&mounted.mount_point, OFlags::PATH, Mode::empty()).unwrap();
                    let resolve = ResolveFlags::NO_SYMLINKS;
                    let Ok(opened) = openat2(
                        &root,
                        directory,
                        OFlags::RDONLY | OFlags::DIRECTORY,
                        Mode::empty(),
                        resolve,
                    ) else {
                        continue;
                    };
                    let mut buffer = Vec::with_capacity(4096);
                    let mut entries = rustix::fs::RawDir::new(&opened, buffer.spare_capacity_mut());
                    while let Some(Ok(entry)) = entries.next() {
                        assert_ne!(entry.file_name().to_bytes(), b"only outside");
                    }
                    for name in ["plain", "x", "only outside", "e/plain"] {
                        let Ok(file) =
                            openat2(&opened, name, OFlags::RDONLY, Mode::empty(), resolve)
                        else {
                            continue;
                        };
                        let mut read = vec![0; 64];
                        let Ok(length) = fs::File::from(file).read_at(&mut read, 0) else {
                            continue;
                        };
                        let expected = if name == "x" {
                            &original()[..64]
                        } else {
                            b"inside"
                        };
                        assert_eq!(&read[..length], expected, "{directory}/{name}");
                        successes.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        let walkers: Vec<_> = (0..6).map(|_| scope.spawn(walk)).collect();
        let outcomes: Vec<_> = walkers.into_iter().map(|walker| walker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            outcome.unwrap();
        }
    });
    assert!(
        successes.into_inner() > 100,
        "hardly anything was ever read"
    );
}

#[test]
fn a_link_to_the_root_leads_where_it_says_and_is_not_walked_by_the_mount() {
    let source = tempfile::tempdir().unwrap();
    symlink("/", source.path().join("root")).unwrap();
    symlink("../../../../../../../../etc", source.path().join("up")).unwrap();
    let mounted = Mounted::new(source.path(), &[]);
    assert_eq!(fs::read_link(mounted.path("root")).unwrap(), Path::new("/"));
    let found = shell(&mounted.mount_point, "timeout 10 find . | sort");
    assert_eq!(found, ".\n./root\n./up\n");
}

#[test]
fn a_source_that_is_moved_still_shows_and_a_removed_one_is_empty() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("source/d")).unwrap();
    packed(&at("source/d/x.warp"));
    let mounted = Mounted::new(&at("source"), &["--ttl", "0"]);
    assert_eq!(fs::read(mounted.path("d/x")).unwrap(), original());
    fs::rename(at("source"), at("moved")).unwrap();
    // Somebody else's tree of the same name is not ours.
    fs::create_dir_all(at("source/other")).unwrap();
    mounted.drop_caches();
    assert_eq!(names(&mounted.mount_point), ["d"]);
    assert_eq!(fs::read(mounted.path("d/x")).unwrap(), original());

    fs::remove_dir_all(at("moved")).unwrap();
    let listed =
        fs::read_dir(&mounted.mount_point).map(|entries| entries.filter(Result::is_ok).count());
    assert!(matches!(listed, Ok(0) | Err(_)), "{listed:?}");
    assert!(!mounted.path("d/x").exists());
    assert!(!mounted.path("other").exists());
}

#[test]
fn relative_paths_are_taken_from_where_the_program_starts() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("a/source")).unwrap();
    fs::create_dir_all(at("a/mounted")).unwrap();
    packed(&at("a/source/x.warp"));
    // In the background, where it leaves the directory it was started from.
    for (source, mount_point) in [
        ("source", "mounted"),
        ("./source/../source/", "../a/mounted/"),
        ("source/x.warp", "mounted"),
    ] {
        let output = warpfs()
            .args(["mount", source, mount_point])
            .current_dir(at("a"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let ended = Placed(at("a/mounted"));
        assert!(is_mounted(&at("a/mounted")));
        assert_eq!(fs::read(at("a/mounted/x")).unwrap(), original());
        let output = warpfs()
            .args(["umount", mount_point])
            .current_dir(at("a"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!is_mounted(&at("a/mounted")));
        // Nothing is left for it to do.
        std::mem::forget(ended);
    }
}

#[test]
fn paths_may_have_blanks_commas_backslashes_and_what_is_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let place = tempfile::tempdir().unwrap();
    for name in ["a b, c\\d=e\\040", "new\nline", "-dash", "\u{e9}"] {
        let source = place.path().join(name).join("source");
        let mount_point = place.path().join(name).join("mounted");
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&mount_point).unwrap();
        packed(&source.join("x.warp"));
        let mounted = Mounted::at(&source, &mount_point, &[]);
        assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
        assert!(mounted.stats().is_object());
        let output = warpfs().arg("umount").arg(&mount_point).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(names(&mount_point), [""; 0]);
    }
    let source = place.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    let mount_point = source.join("in");
    fs::create_dir_all(&mount_point).unwrap();
    packed(&source.join("x.warp"));
    let mounted = Mounted::at(&source, &mount_point, &[]);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
    drop(mounted);
    assert_eq!(names(&mount_point), [""; 0]);
}

#[test]
fn a_mount_point_need_not_be_empty_and_is_as_before_afterwards() {
    let place = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    packed(&source.path().join("x.warp"));
    fs::write(place.path().join("kept"), "kept").unwrap();
    let mounted = Mounted::at(source.path(), place.path(), &[]);
    assert_eq!(names(place.path()), ["x"]);
    drop(mounted);
    assert_eq!(fs::read(place.path().join("kept")).unwrap(), b"kept");
}

#[test]
fn what_cannot_be_mounted_is_refused_in_a_line_that_says_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("directory")).unwrap();
    fs::create_dir(at("mounted")).unwrap();
    fs::write(at("file"), "text").unwrap();
    fs::write(
        at("text.warp"),
        "this is only text, of more than a header's length",
    )
    .unwrap();
    packed(&at("x.warp"));
    fs::copy(at("x.warp"), at("packed under another name")).unwrap();
    shell(place.path(), "mkfifo pipe");
    let before = mount_table();
    let at_mounted = |line: &&str| line.contains(place.path().to_str().unwrap());
    assert_eq!(before.lines().filter(at_mounted).count(), 0);
    for (source, mount_point, says) in [
        ("gone", "mounted", ["gone", "No such file"]),
        ("directory", "gone", ["gone", "make it first"]),
        ("directory", "file", ["file", "give a directory"]),
        (
            "file",
            "mounted",
            ["file", "give a directory or a .warp file"],
        ),
        (
            "packed under another name",
            "mounted",
            ["under another name", "give a directory or a .warp file"],
        ),
        ("text.warp", "mounted", ["text.warp", "not a .warp file"]),
        (
            "pipe",
            "mounted",
            ["pipe", "neither a directory nor a regular file"],
        ),
        (
            "x.warp",
            "pipe",
            ["pipe", "neither a directory nor a regular file"],
        ),
        ("file/below", "mounted", ["file/below", "Not a directory"]),
    ] {
        let said = refused(place.path(), source, mount_point);
        for part in says {
            assert!(said.contains(part), "{source} {mount_point}: {said}");
        }
    }
    let after = mount_table();
    assert_eq!(after.lines().filter(at_mounted).count(), 0);
    for arguments in [&["mount", "directory"][..], &["mount"]] {
        let output = warpfs()
            .args(arguments)
            .current_dir(place.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
    }
}
