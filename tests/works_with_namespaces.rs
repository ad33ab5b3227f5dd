//! Bind mounts, namespaces, changed roots and containers show a mount as it is; who may enter it there is what
//! docs/WORKS_WITH.md says. Each test is a row of its table.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Output;

use common::place::{Place, said, umount};
use common::shown::Shown;
use common::users::{ANOTHER, FuseForAll, SOMEBODY, as_user, mount_as_somebody, place_of_somebody};
use common::{Bound, mixed, shell};

fn shown(arguments: &[&str]) -> Shown {
    let shown = Shown::new("mkdir d; seq 200000 > x; seq 100000 > d/y", arguments);
    shown.is_packed(["x", "d/y"]);
    shown
}

/// Whether a file holds what `seq` prints up to this number.
fn holds(number: u32, path: &Path) -> bool {
    let expected: String = (1..=number).map(|line| format!("{line}\n")).collect();
    fs::read_to_string(path).is_ok_and(|read| read == expected)
}

#[test]
fn bind_mounts_of_the_whole_of_a_directory_and_of_a_file() {
    let shown = shown(&[]);
    let here = shown.elsewhere();
    let (directory, file) = (here.join("directory"), here.join("file"));
    shell(&here, "mkdir directory; touch file");
    let mount = |options: &str, from: &str, to: &Path| {
        let from = shown.path(from);
        shell(
            &here,
            &format!("mount {options} {} {}", from.display(), to.display()),
        );
    };
    mount("--bind", "", &directory);
    {
        let _bound = Bound(&directory);
        assert!(holds(200_000, &directory.join("x")));
        shell(&here, "mount -o remount,bind,ro,noexec directory");
        assert!(holds(100_000, &directory.join("d/y")));
    }
    mount("--bind", "d", &directory);
    {
        let _bound = Bound(&directory);
        assert!(holds(100_000, &directory.join("y")));
        // The server is not ended by the end of one of several places.
        mount("--bind", "x", &file);
        let bound_file = Bound(&file);
        assert!(holds(200_000, &file));
        drop(bound_file);
        assert!(holds(100_000, &directory.join("y")));
    }
    assert!(holds(200_000, &shown.path("x")));
}

#[test]
fn a_recursive_bind_mount_takes_a_mount_below_along() {
    let shown = shown(&[]);
    let here = shown.elsewhere();
    // The mount lies in the tree of its packed files' parent.
    let above = shown.packed("").join("..");
    shell(
        &here,
        &format!("mount --rbind {} {}", above.display(), here.display()),
    );
    let told = holds(200_000, &here.join("mounted/x"));
    let ended = std::process::Command::new("umount")
        .args(["-R", "-l"])
        .arg(&here)
        .status();
    assert!(told);
    assert!(ended.unwrap().success());
}

#[test]
fn a_mount_namespace_of_its_own_keeps_what_it_had_and_can_mount_for_itself() {
    let place = Place::new();
    assert!(place.mount(&[]).status.success());
    let x = place.mount_point().join("x");
    let sum = shell(
        Path::new("/"),
        &format!("sha256sum {} | cut -c1-64", x.display()),
    );
    // Inside it is read, unmounted and mounted again, of which nobody outside sees anything.
    let inside = shell(
        place.own.path(),
        &format!(
            "unshare -m --propagation private sh -euc '
            sha256sum mounted/x | cut -c1-64
            umount mounted; test ! -e mounted/x
            {warpfs} mount source mounted; sha256sum mounted/x | cut -c1-64; {warpfs} umount mounted'",
            warpfs = env!("CARGO_BIN_EXE_warpfs")
        ),
    );
    assert_eq!(inside, format!("{sum}{sum}"));
    assert!(fs::read(&x).unwrap() == mixed());
    // A mount made where the namespace ends goes with it, and its server too.
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();
    shell(
        place.own.path(),
        &format!(
            "unshare -m --propagation private sh -euc '{} mount source mounted; test -e mounted/x'",
            env!("CARGO_BIN_EXE_warpfs")
        ),
    );
    for server in place.servers() {
        // It has the namespace as its own, and so keeps it: it ends by a signal, as it would outside.
        let server = rustix::process::Pid::from_raw(server).unwrap();
        rustix::process::kill_process(server, rustix::process::Signal::TERM).unwrap();
    }
    place.wait_for_the_end();
    assert!(!x.exists());
}

#[test]
fn root_in_a_user_namespace_mounts_and_an_overlay_fits_on_top() {
    let _fuse = FuseForAll::new(false);
    let (place, program) = place_of_somebody();
    let script = format!(
        "cd {own}; {program} mount source mounted
        test $(stat -c %s mounted/x) = {size}; sha256sum mounted/x | cut -c1-64
        mount -t tmpfs none source; mkdir source/upper source/work source/merged
        mount -t overlay overlay -o userxattr,lowerdir=mounted,upperdir=source/upper,workdir=source/work source/merged
        echo more >> source/merged/x; tail -n 1 source/merged/x | tail -c 5
        umount source/merged source; {program} umount mounted",
        own = place.own.path().display(),
        program = program.display(),
        size = mixed().len(),
    );
    chown(
        place.source().join("x.warp"),
        Some(SOMEBODY),
        Some(SOMEBODY),
    )
    .unwrap();
    let output = user_shell(SOMEBODY, &["unshare", "-Urm"], &script);
    assert!(output.status.success(), "{}", said(&output));
    let expected = shell(
        Path::new("/"),
        &format!(
            "sha256sum {} | cut -c1-64",
            common::vector("mixed.bin").display()
        ),
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{expected}more\n")
    );
    place.wait_for_the_end();
}

/// Runs a shell script as a user, within what the words before it make.
fn user_shell(user: u32, within: &[&str], script: &str) -> Output {
    let mut words: Vec<&OsStr> = within.iter().map(OsStr::new).collect();
    words.extend(["bash", "-euc", script].map(OsStr::new));
    as_user(user, &words)
}

#[test]
fn a_users_own_mount_is_his_in_every_user_namespace_and_in_a_sandbox() {
    let _fuse = FuseForAll::new(false);
    let (place, program) = place_of_somebody();
    let mount_point = place.mount_point();
    let output = mount_as_somebody(&place, &program, &[]);
    assert!(output.status.success(), "{}", said(&output));
    let original = place.own.path().join("original");
    fs::write(&original, mixed()).unwrap();
    let read = format!("cmp {}/x {}", mount_point.display(), original.display());
    for within in [
        &["unshare", "-U"][..],
        &["unshare", "-Ur"],
        &["unshare", "-Urmp", "--fork"],
        &["bwrap", "--ro-bind", "/", "/", "--unshare-all"],
        &[
            "bwrap",
            "--ro-bind",
            "/",
            "/",
            "--unshare-all",
            "--uid",
            "4711",
        ],
    ] {
        let output = user_shell(SOMEBODY, within, &read);
        assert!(output.status.success(), "{within:?}: {}", said(&output));
    }
    // Nobody else's, root's in a namespace of his own included: that takes --allow-other.
    for user in [0, ANOTHER] {
        let output = user_shell(user, &["unshare", "-Ur"], &read);
        assert!(
            said(&output).contains("Permission denied"),
            "{}",
            said(&output)
        );
    }
    let unmount = [
        program.as_os_str(),
        OsStr::new("umount"),
        mount_point.as_os_str(),
    ];
    assert!(as_user(SOMEBODY, &unmount).status.success());
    place.wait_for_the_end();
}

#[test]
fn roots_mount_in_a_sandbox_of_a_user_takes_allow_other() {
    for allow_other in [false, true] {
        let arguments: &[&str] = if allow_other { &["--allow-other"] } else { &[] };
        let shown = shown(arguments);
        let bound = shown.path("d");
        let bind = [
            "bwrap",
            "--ro-bind",
            "/",
            "/",
            "--ro-bind",
            bound.to_str().unwrap(),
            "/mnt",
            "--unshare-all",
        ];
        let output = user_shell(ANOTHER, &bind, "tail -n 1 /mnt/y");
        assert_eq!(output.status.success(), allow_other, "{}", said(&output));
        let output = user_shell(
            ANOTHER,
            &["unshare", "-Ur"],
            &format!("tail -n 1 {}", shown.path("x").display()),
        );
        assert_eq!(output.status.success(), allow_other, "{}", said(&output));
    }
}

/// Looks at a file from within a user namespace that has two users, as one of them.
const MAPPED: &str = "\
import ctypes, os, sys
one, another, inner, path = *map(int, sys.argv[1:4]), sys.argv[4]
(mapped_out, mapped_in), (ready_out, ready_in) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    CLONE_NEWUSER = 0x10000000
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER): os._exit(2)
    os.write(ready_in, b'.'); os.read(mapped_out, 1)
    os.setgroups([]); os.setresgid(inner, inner, inner); os.setresuid(inner, inner, inner)
    try: os.stat(path)
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
os.read(ready_out, 1)
for map in 'uid_map', 'gid_map':
    with open(f'/proc/{child}/{map}', 'w') as file: file.write(f'0 {one} 1\\n1 {another} 1\\n')
os.write(mapped_in, b'.')
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
";

#[test]
fn ids_that_are_mapped_beside_ones_own_take_allow_other() {
    // What `unshare --map-auto` and containers with a range of ids do: root inside is the user, others are not.
    let _fuse = FuseForAll::new(true);
    let (place, program) = place_of_somebody();
    let mount_point = place.mount_point();
    for allow_other in [false, true] {
        let options: &[&str] = if allow_other { &["--allow-other"] } else { &[] };
        let output = mount_as_somebody(&place, &program, options);
        assert!(output.status.success(), "{}", said(&output));
        // The namespace is made by root, who may map what he likes; the ids are the user's and another's.
        let within = |inner: u32| {
            std::process::Command::new("timeout")
                .args(["20", "python3", "-c", MAPPED])
                .args([SOMEBODY, ANOTHER, inner].map(|id| id.to_string()))
                .arg(mount_point.join("x"))
                .output()
                .unwrap()
        };
        let (own, other) = (within(0), within(1));
        assert!(own.status.success(), "{}", said(&own));
        assert_eq!(other.status.success(), allow_other, "{}", said(&other));
        assert_eq!(said(&other).contains("Permission denied"), !allow_other);
        let unmount = [
            program.as_os_str(),
            OsStr::new("umount"),
            mount_point.as_os_str(),
        ];
        assert!(as_user(SOMEBODY, &unmount).status.success());
        place.wait_for_the_end();
    }
}

/// A packed tree that programs can be run in as their root.
fn root_tree() -> Shown {
    let shown = Shown::new(
        "mkdir bin proc dev old tmp mnt; cp /bin/busybox bin/busybox; seq 200000 > data
        for name in sh ls cat sha256sum umount mount wc tail grep; do ln -s busybox bin/$name; done",
        &["--allow-other"],
    );
    shown.is_packed(["bin/busybox", "data"]);
    shown
}

#[test]
fn programs_run_in_a_mount_as_their_root_after_chroot() {
    let root = root_tree();
    let expected = shell(&root.original(""), "sha256sum data");
    let at = root.mounted.mount_point.display();
    let told = shell(
        Path::new("/"),
        &format!(
            "chroot {at} /bin/sh -ec 'cd /; sha256sum data; ls | wc -l; (echo x > /new) 2>/dev/null || echo refused'"
        ),
    );
    assert_eq!(told, format!("{expected}7\nrefused\n"));
}

#[test]
fn a_mount_becomes_the_root_of_a_namespace_by_pivot_root() {
    let root = root_tree();
    let expected = shell(&root.original(""), "sha256sum data");
    let told = shell(
        &root.mounted.mount_point,
        "unshare -mp --fork --propagation private sh -ec 'pivot_root . old; cd /; exec /bin/sh -ec \"
            umount -l /old; mount -t proc proc /proc; sha256sum data; ls /old | wc -l; grep -c . /proc/self/mountinfo; tail -n 1 data\"'",
    );
    assert_eq!(told, format!("{expected}0\n2\n200000\n"));
    assert!(holds(200_000, &root.path("data")));
}

#[test]
fn a_sandbox_has_a_mount_as_its_root() {
    let root = root_tree();
    let expected = shell(&root.original(""), "sha256sum data");
    let at = root.mounted.mount_point.to_str().unwrap();
    for user in [0, ANOTHER] {
        let output = as_user(
            user,
            &[
                "bwrap",
                "--ro-bind",
                at,
                "/",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--tmpfs",
                "/tmp",
                "--unshare-all",
                "--die-with-parent",
                "/bin/sh",
                "-ec",
                "cd /; sha256sum data; cat data > /tmp/copy; tail -n 1 /tmp/copy",
            ]
            .map(OsStr::new),
        );
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{expected}200000\n")
        );
    }
}

#[test]
fn a_mount_made_later_is_seen_in_a_namespace_that_follows() {
    let place = Place::new();
    fs::set_permissions(place.own.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // As containers with volumes in "slave" propagation do.
    let own = place.own.path().display();
    let told = shell(
        place.own.path(),
        &format!(
            "mount --bind {own} {own}; mount --make-shared {own}; trap 'umount -l {own}' EXIT; cd {own}
            unshare -m --propagation slave sh -euc 'touch ready; for n in $(seq 1000); do
                test -e mounted/x && sha256sum mounted/x && exit; sleep 0.01; done; exit 1' &
            while ! test -e ready; do sleep 0.01; done
            {warpfs} mount source mounted; wait $!; {warpfs} umount mounted; cd /",
            warpfs = env!("CARGO_BIN_EXE_warpfs")
        ),
    );
    let expected = shell(
        Path::new("/"),
        &format!(
            "sha256sum {} | cut -c1-64",
            common::vector("mixed.bin").display()
        ),
    );
    assert_eq!(told.get(..64), expected.get(..64));
    place.wait_for_the_end();
}
