//! Who may do what in a mount that others use: what an ordinary user mounts is inert and enforces modes and access lists,
//! and who owns a part of the source gets nothing out of a server of root's that he could not read himself. Modes and
//! lists of a mount of root's: tests/attributes.rs; directories swapped for links: tests/sources.rs.

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
use std::process::{Command, Output, Stdio};

use common::place::said;
use common::users::{ANOTHER, FuseForAll, SOMEBODY, as_user, mount_as_somebody, place_of_somebody};
use common::{Mounted, pack, shell};

const SECRET: &[u8] = b"SECRET";

fn script_as(user: u32, script: &str, arguments: &[&Path]) -> Output {
    let mut words = vec![
        OsStr::new("sh"),
        OsStr::new("-c"),
        OsStr::new(script),
        OsStr::new("sh"),
    ];
    words.extend(arguments.iter().map(|path| path.as_os_str()));
    as_user(user, &words)
}

/// Packs `text`, many times over, to `path`, as the owner's with this mode.
fn packed(path: &Path, text: &[u8], owner: u32, mode: u32) {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::write(&plain, text.repeat(20_000)).unwrap();
    pack(&plain, path, &["--chunk-size", "64K"]);
    chown(path, Some(owner), Some(owner)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_an_ordinary_user_mounts_for_others_is_inert_and_enforces_access_lists() {
    let _fuse = FuseForAll::new(true);
    let (place, program) = place_of_somebody();
    let (source, mount_point) = (place.source(), place.mount_point());
    shell(
        &source,
        "cp \"$(command -v id)\" id; cp id packed; chown 0:0 id packed; chmod 4755 id
        mknod -m 666 null c 1 3",
    );
    pack(&source.join("packed"), &source.join("setuid.warp"), &[]);
    shell(
        &source,
        "rm packed; chown 0:0 setuid.warp; chmod 4755 setuid.warp
        for name in let-in kept-out; do cp x.warp $name.warp; chown 65534:65534 $name.warp; done
        chmod 600 let-in.warp; setfacl -m u:1:r let-in.warp
        chmod 644 kept-out.warp; setfacl -m u:1:- kept-out.warp",
    );
    let output = mount_as_somebody(&place, &program, &["--allow-other"]);
    assert!(output.status.success(), "{}", said(&output));
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(mount_point.to_str().unwrap()))
        .unwrap();
    assert!(line.contains("ro,nosuid,nodev"), "{line}");

    let in_source = script_as(ANOTHER, "\"$1\" -u", &[&source.join("id")]);
    assert_eq!(
        in_source.stdout, b"0\n",
        "the source's file system has to honour it"
    );
    for name in ["id", "setuid"] {
        let told = script_as(ANOTHER, "\"$1\" -u", &[&mount_point.join(name)]);
        assert_eq!(told.stdout, b"1\n", "{name}: {}", said(&told));
    }
    let open = |name: &str| {
        script_as(
            ANOTHER,
            "cat \"$1\" > /dev/null",
            &[&mount_point.join(name)],
        )
    };
    let refused = said(&open("null"));
    assert!(refused.contains("Permission denied"), "{refused}");
    for (name, let_in) in [("let-in", true), ("kept-out", false), ("x", true)] {
        assert_eq!(open(name).status.success(), let_in, "{name}");
        // The owner reads both.
        let owner = script_as(
            SOMEBODY,
            "cat \"$1\" > /dev/null",
            &[&mount_point.join(name)],
        );
        assert!(owner.status.success(), "{name}: {}", said(&owner));
    }
}

/// Opens and reads the names it is given for some seconds, or for as long as it has hardly read anything; prints how often it read what is his, and fails if it
/// ever got something else.
const SPY: &str = r#"
import os, sys, time
end, mine = time.time() + float(sys.argv[1]), 0
flags = [os.O_RDONLY | os.O_NONBLOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW]
round = 0
while time.time() < end or mine <= 20:
    for name in sys.argv[2:]:
        round += 1
        try:
            file = os.open(name, flags[round % 2])
        except OSError:
            continue
        try:
            bytes = os.pread(file, 65536, 8192)
        except OSError:
            bytes = b""
        os.close(file)
        if b"SECRET" in bytes:
            sys.exit(f"read a secret through {name}")
        mine += b"my own" in bytes
print(mine)
"#;

/// Has an ordinary user read `names` while `swap` is called again and again.
fn spy_while(names: &[&Path], swap: impl Fn(usize)) {
    let user = SOMEBODY.to_string();
    let mut spies: Vec<_> = (0..2)
        .map(|_| {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"])
                .args(["timeout", "30", "python3", "-c", SPY, "2.5"])
                .args(names)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let mut number = 0;
    while spies
        .iter_mut()
        .any(|spy| spy.try_wait().unwrap().is_none())
    {
        swap(number);
        number += 1;
        std::thread::sleep(std::time::Duration::from_micros(300));
    }
    for spy in spies {
        let output = spy.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let read: u64 = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap();
        assert!(read > 20, "hardly anything was ever read: {read}");
    }
}

#[test]
fn who_owns_a_part_of_the_source_reads_nothing_through_the_server_that_is_kept_from_him() {
    let own = tempfile::tempdir().unwrap();
    fs::set_permissions(own.path(), fs::Permissions::from_mode(0o755)).unwrap();
    shell(
        own.path(),
        "mkdir source source/mine source/closed outside; chown 65534:65534 source/mine; chmod 700 source/closed outside
        mkdir variants; chown 65534:65534 variants; chmod 755 source",
    );
    let at = |name: &str| own.path().join(name);
    packed(&at("source/closed/secret.warp"), SECRET, 0, 0o600);
    packed(&at("outside/secret.warp"), SECRET, 0, 0o600);
    fs::write(at("outside/secret"), SECRET.repeat(20_000)).unwrap();
    shell(own.path(), "chmod 600 outside/secret");
    // What he puts in the place of his file, one after the other. He could not make the hard links himself where the
    // system protects them, but he can move what root has put into his directory.
    packed(&at("variants/0"), b"my own ", SOMEBODY, 0o644);
    shell(
        &at("variants"),
        &format!(
            "cp -p 0 4; cp -p 0 8
            ln -s {0}/outside/secret.warp 1; ln -s {0}/outside/secret 9; ln -s ../closed/secret.warp 2
            ln {0}/source/closed/secret.warp 3; ln {0}/outside/secret 7
            mkfifo -m 666 5; mkdir 6; cp -p 0 6/x.warp; ln -s {0}/outside 10; chown -h 65534:65534 0 1 2 4 5 6 8 9 10",
            own.path().display()
        ),
    );
    fs::create_dir(at("source/mine/d")).unwrap();
    chown(at("source/mine/d"), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    packed(
        &at("source/mine/d/secret.warp"),
        b"my own ",
        SOMEBODY,
        0o644,
    );
    // What the kernel believes for long is what could be out of date.
    for ttl in ["0", "600"] {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mounted = Mounted::at(
            &at("source"),
            place.path(),
            &["--allow-other", "--ttl", ttl],
        );
        let names = [
            "mine/x",
            "mine/x.warp",
            "mine/d/secret",
            "mine/x.warp/x",
            "mine/x.warp/secret",
        ];
        let names = names.map(|name| mounted.path(name));
        fs::rename(at("variants/0"), at("source/mine/x.warp")).unwrap();
        let exchange = |one: &Path, other: &Path| {
            let cwd = rustix::fs::CWD;
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(cwd, one, cwd, other, flags).unwrap();
        };
        let swap = |number: usize| {
            // His own is there every other time.
            let variant = at(&format!("variants/{}", number / 2 % 10 + 1));
            exchange(&at("source/mine/x.warp"), &variant);
            if number.is_multiple_of(5) {
                exchange(&at("source/mine/d"), &at("variants/10"));
                std::thread::sleep(std::time::Duration::from_micros(200));
                exchange(&at("source/mine/d"), &at("variants/10"));
            }
        };
        let swap_back = |number: usize| {
            swap(number);
            if number.is_multiple_of(250) {
                // With a long time-to-live the kernel may have come to believe of every name what lets nobody read: that it is a
                // link to elsewhere, say.
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            }
            if number % 2 == 1 {
                std::thread::sleep(std::time::Duration::from_micros(600));
            }
        };
        spy_while(&names.each_ref().map(|name| name.as_path()), swap_back);
        // Whatever was last in his file's place goes back to where it is missing.
        for number in 0..11 {
            let variant = at(&format!("variants/{number}"));
            if variant.symlink_metadata().is_err() {
                fs::rename(at("source/mine/x.warp"), variant).unwrap();
            }
        }
        assert_eq!(mounted.stats()["open_files"], 0);
    }
}

#[test]
fn a_single_file_of_his_swapped_for_a_secret_is_not_shown_to_him() {
    let own = tempfile::tempdir().unwrap();
    fs::set_permissions(own.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| own.path().join(name);
    shell(
        own.path(),
        "mkdir mine; chown 65534:65534 mine; touch shown",
    );
    packed(&at("mine/x.warp"), b"my own ", SOMEBODY, 0o644);
    // Root's, but in his directory: he may move it.
    packed(&at("mine/secret"), SECRET, 0, 0o600);
    let mounted = Mounted::at(
        &at("mine/x.warp"),
        &at("shown"),
        &["--allow-other", "--ttl", "600"],
    );
    let cwd = rustix::fs::CWD;
    let exchange = |other: &str| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(cwd, at("mine/x.warp"), cwd, at(other), flags).unwrap();
    };
    spy_while(&[&mounted.mount_point], |number| {
        exchange("mine/secret");
        if number % 2 == 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    // Another file as open as the first is shown, and so is the first when it is opened wider.
    packed(&at("mine/next"), b"another ", SOMEBODY, 0o644);
    if fs::metadata(at("mine/secret"))
        .unwrap()
        .permissions()
        .mode()
        & 0o077
        != 0
    {
        exchange("mine/secret");
    }
    let shown = || script_as(ANOTHER, "cat \"$1\"", &[&mounted.mount_point]).stdout;
    fs::set_permissions(at("mine/x.warp"), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(shown().starts_with(b"my own"));
    exchange("mine/next");
    assert!(shown().starts_with(b"another"));
}
