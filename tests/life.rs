//! Promise 7: a mount's life. It is there when the command says so, whatever ends it leaves nothing behind, and nobody but
//! its owner sees into it unless told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::place::{Place, said, umount};
use common::users::{ANOTHER, FuseForAll, SOMEBODY, as_user, mount_as_somebody, place_of_somebody};
use common::{
    Mounted, Running, is_mounted, mount_table, policies, run, sample, shell, system_calls, vector,
    wait_until, warpfs,
};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn the_command_ends_when_the_mount_answers_and_gives_its_streams_up() {
    let place = Place::new();
    let mut command = place.command(&[]);
    let mut mounting = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(mounting.wait().unwrap().success());
    // Not waited for: it answers at once.
    assert_eq!(
        fs::metadata(place.mount_point().join("x")).unwrap().len(),
        100_003
    );
    run([OsStr::new("stats"), place.mount_point().as_os_str()]);
    // Whoever reads the command's output sees its end, though the server goes on.
    let mut text = String::new();
    mounting.stdout.unwrap().read_to_string(&mut text).unwrap();
    mounting.stderr.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    let servers = place.servers();
    assert_eq!(servers.len(), 1);
    let of_server = |name: &str| fs::read_link(format!("/proc/{}/{name}", servers[0])).unwrap();
    assert_eq!(of_server("cwd"), Path::new("/"));
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(of_server(stream), Path::new("/dev/null"));
    }
    run([OsStr::new("umount"), place.mount_point().as_os_str()]);
    place.wait_for_the_end();
}

#[test]
fn what_cannot_be_mounted_is_said_in_one_line_and_nothing_is_left() {
    let place = Place::new();
    let mount_point = place.mount_point();
    let file = place.own.path().join("file");
    fs::write(&file, "").unwrap();
    let plain = place.source().join("plain");
    fs::write(&plain, "").unwrap();
    let bad = vector("bad-magic.warp");
    let source = place.source();
    let missing = place.own.path().join("missing");
    let root = PathBuf::from("/");
    for (source, mount_point) in [
        (&source, &root),
        (&missing, &mount_point),
        (&source, &missing),
        (&source, &file),
        (&plain, &mount_point),
        (&bad, &mount_point),
    ] {
        for foreground in [&["-f"][..], &[]] {
            let output = warpfs()
                .arg("mount")
                .args(foreground)
                .arg(source)
                .arg(mount_point)
                .output()
                .unwrap();
            let said = said(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(said.starts_with("warpfs: "), "{said}");
            assert!(output.stdout.is_empty());
        }
    }
    assert!(!is_mounted(&mount_point));
    assert!(place.servers().is_empty());
}

#[test]
fn signals_end_an_idle_mount_and_a_busy_one() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let place = Place::new();
        assert!(place.mount(&[]).status.success());
        place.signal(signal);
        place.wait_for_the_end();

        assert!(place.mount(&[]).status.success());
        let mut open = File::open(place.mount_point().join("x")).unwrap();
        let _worker = Running::inside(&place.mount_point());
        open.read_exact(&mut [0; 10]).unwrap();
        place.signal(signal);
        place.wait_for_the_end();
        // Pages the kernel has may still be read; nothing hangs.
        let _ = open.read_to_end(&mut Vec::new());
    }
}

#[test]
fn a_mount_in_the_foreground_under_nohup_outlives_the_terminal_and_an_interruption() {
    let source = tempfile::tempdir().unwrap();
    let mut mounted = Mounted::after("trap '' HUP INT", source.path(), &[]);
    let server = Pid::from_child(&mounted.server);
    // Of several signals at once, any may be the one that it ends by.
    let status = fs::read_to_string(format!("/proc/{}/status", mounted.server.id())).unwrap();
    let mut fields = status.lines();
    let ignored = fields.find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap();
    assert_eq!(ignored & 0b11, 0b11, "{ignored:x}");
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        kill_process(server, signal).unwrap();
    }
    assert!(mounted.server.wait().unwrap().success());
    let logged = mounted.logged();
    assert!(logged.contains("ending by signal 15"), "{logged}");
}

#[test]
fn an_unmount_by_others_ends_the_server_and_leaves_what_was_mounted_before() {
    for unmount in ["umount", "fusermount3 -u", "umount -l", "fusermount3 -u -z"] {
        let place = Place::new();
        let mount_point = place.mount_point();
        shell(
            Path::new("/"),
            &format!("mount -t tmpfs beneath {}", mount_point.display()),
        );
        fs::write(mount_point.join("beneath"), "").unwrap();
        assert!(place.mount(&[]).status.success());
        assert!(mount_point.join("x").exists());
        shell(
            Path::new("/"),
            &format!("{unmount} {}", mount_point.display()),
        );
        wait_until("the end of the server", || place.servers().is_empty());
        assert!(mount_point.join("beneath").exists(), "{unmount}");
        shell(Path::new("/"), &format!("umount {}", mount_point.display()));
    }
}

#[test]
fn a_lazily_unmounted_mount_serves_who_uses_it_to_the_end() {
    let place = Place::new();
    let original = sample(3 << 20, 1);
    fs::write(place.own.path().join("original"), &original).unwrap();
    common::pack(
        &place.own.path().join("original"),
        &place.source().join("y.warp"),
        &["--chunk-size", "128K"],
    );
    assert!(
        place
            .mount(&["--cache-size", "1M", "--prefetch", "off"])
            .status
            .success()
    );
    let mut open = File::open(place.mount_point().join("y")).unwrap();
    shell(
        Path::new("/"),
        &format!("umount -l {}", place.mount_point().display()),
    );
    assert!(!is_mounted(&place.mount_point()));
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == original);
    assert_eq!(place.servers().len(), 1);
    drop(open);
    wait_until("the end of the server", || place.servers().is_empty());
}

#[test]
fn umount_says_what_is_wrong_when_it_cannot() {
    let place = Place::new();
    let mount_point = place.mount_point();
    let refused = |path: &Path, why: &str| {
        let output = umount(path);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused(&mount_point, "no warpfs is mounted here");
    refused(
        &place.own.path().join("missing"),
        "no warpfs is mounted here",
    );
    refused(Path::new("/proc"), "no warpfs is mounted here");
    assert!(is_mounted(Path::new("/proc")));
    assert!(place.mount(&[]).status.success());
    refused(&place.source(), "no warpfs is mounted here");
    let open = File::open(mount_point.join("x")).unwrap();
    refused(&mount_point, "in use");
    assert!(fs::read(mount_point.join("x")).is_ok());
    drop(open);
    // A relative path with a slash at the end is the same place.
    let output = warpfs()
        .args(["umount", "mounted/"])
        .current_dir(place.own.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    place.wait_for_the_end();
}

#[test]
fn of_two_mounts_on_one_place_each_ends_by_itself_and_leaves_the_other() {
    let (lower, upper) = (Place::new(), Place::new());
    fs::write(upper.source().join("upper"), "").unwrap();
    let mount_point = lower.mount_point();
    let log = lower.own.path().join("log");
    assert!(
        lower
            .mount(&["--log-file", log.to_str().unwrap()])
            .status
            .success()
    );
    let lower_server = lower.servers()[0];
    let output = warpfs()
        .arg("mount")
        .arg(upper.source())
        .arg(&mount_point)
        .output()
        .unwrap();
    assert!(output.status.success());
    let told = format!("covers {}", lower.source().display());
    assert!(said(&output).contains(&told), "{}", said(&output));
    assert!(mount_point.join("upper").exists());

    // The lower one is told to end: it cannot be reached beneath the other, so it waits for that.
    kill_process(Pid::from_raw(lower_server).unwrap(), Signal::TERM).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(mount_point.join("upper").exists());
    assert!(fs::read_to_string(&log).unwrap().contains("covers"));
    assert!(umount(&mount_point).status.success());
    lower.wait_for_the_end();
    assert_eq!(fs::read_dir(&mount_point).unwrap().count(), 0);
}

/// A tmpfs of its own, from which mounts can be moved.
struct Ground(tempfile::TempDir);

impl Ground {
    fn new(script: &str) -> Self {
        let own = tempfile::tempdir().unwrap();
        let script =
            format!("mount -t tmpfs ground . && mount --make-private . && cd \"$PWD\" && {script}");
        shell(own.path(), &script);
        Self(own)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let unmounted = rustix::mount::unmount(self.0.path(), flags);
        assert!(unmounted.is_ok() || std::thread::panicking());
    }
}

#[test]
fn a_mount_that_an_older_one_was_moved_over_ends_after_it_and_leaves_it() {
    let ground = Ground::new("mkdir older place && mount -t tmpfs older older && touch older/here");
    let (source, place) = (tempfile::tempdir().unwrap(), ground.0.path().join("place"));
    let mut mounted = Mounted::at(source.path(), &place, &[]);
    shell(ground.0.path(), "mount --move older place");
    kill_process(Pid::from_child(&mounted.server), Signal::TERM).unwrap();
    wait_until("the server says what holds it up", || {
        mounted.logged().contains("another mount covers")
    });
    assert!(place.join("here").exists());
    unmount(&place);
    assert!(mounted.server.wait().unwrap().success());
    assert!(!is_mounted(&place));
}

#[test]
fn a_mount_whose_parent_directory_is_covered_ends_when_that_is_uncovered() {
    let ground = Ground::new("mkdir -p above/place");
    let (source, above) = (tempfile::tempdir().unwrap(), ground.0.path().join("above"));
    let place = above.join("place");
    let mut mounted = Mounted::at(source.path(), &place, &[]);
    shell(&above, "mount -t tmpfs other .");
    kill_process(Pid::from_child(&mounted.server), Signal::TERM).unwrap();
    wait_until("the server says what holds it up", || {
        mounted.logged().contains("another mount covers")
    });
    // The same path, but not the mount's.
    fs::create_dir(&place).unwrap();
    assert!(!umount(&place).status.success());
    assert!(is_mounted(&place));
    unmount(&above);
    assert!(mounted.server.wait().unwrap().success());
    assert!(!is_mounted(&place));
}

/// A mount of `source` that is held up in its system call, as strace's `--inject` has it.
fn held_up(source: &Path, place: &Path, trace: &Path, hold: &str) -> Running {
    let injection = format!("mount:{hold}=1000000");
    let mut command = system_calls::command(trace, "mount", Some(&injection), &["mount", "-f"]);
    command.args([source, place]).stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

#[test]
fn a_mount_point_that_is_swapped_for_a_link_while_it_is_mounted_on_leads_nowhere() {
    if !system_calls::can_trace() {
        return;
    }
    for onto_file in [false, true] {
        let ground = Ground::new(
            "mkdir -p his/above other/above/place source; touch his/above/file other/above/file",
        );
        let root = ground.0.path().canonicalize().unwrap();
        let mut source = root.join("source");
        let mut place = root.join("his/above/place");
        fs::copy(vector("v2-zstd-blake3.warp"), source.join("x.warp")).unwrap();
        if onto_file {
            source.push("x.warp");
            place = root.join("his/above/file");
        } else {
            fs::create_dir(&place).unwrap();
        }
        let trace = root.join("trace");
        let mut mounting = held_up(&source, &place, &trace, "delay_enter");
        wait_until("the system call", || {
            fs::read_to_string(&trace).is_ok_and(|calls| calls.contains("mount("))
        });
        shell(
            &root,
            "mv his/above his/aside; ln -s ../other/above his/above",
        );
        let mut said = String::new();
        let mut errors = mounting.0.stderr.take().unwrap();
        errors.read_to_string(&mut said).unwrap();
        assert_eq!(mounting.0.wait().unwrap().code(), Some(1), "{said}");
        assert!(said.contains("somebody has renamed"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let table = mount_table();
        let below = format!("{}/", root.display());
        assert!(!table.contains(&below), "{table}");
        shell(&root, "ls his/aside/* other/above/*");
    }
}

#[test]
fn a_mount_that_is_covered_at_once_is_served_and_there_when_it_is_uncovered() {
    if !system_calls::can_trace() {
        return;
    }
    let ground = Ground::new("mkdir source place");
    let root = ground.0.path().canonicalize().unwrap();
    let (source, place) = (root.join("source"), root.join("place"));
    fs::copy(vector("v2-zstd-blake3.warp"), source.join("x.warp")).unwrap();
    let mut mounting = held_up(&source, &place, &root.join("trace"), "delay_exit");
    wait_until("the mount", || is_mounted(&place));
    shell(&root, "mount -t tmpfs other place && touch place/other");
    let mut errors = BufReader::new(mounting.0.stderr.take().unwrap()).lines();
    let told = errors.find(|line| line.as_ref().unwrap().contains("is mounted on"));
    assert!(told.is_some());
    assert!(place.join("other").exists());
    unmount(&place);
    assert!(place.join("x").exists());
    unmount(&place);
    assert!(mounting.0.wait().unwrap().success());
    assert!(!is_mounted(&place));
}

#[test]
fn mounting_the_same_again_does_not_stack_but_says_so() {
    let place = Place::new();
    let own = place.own.path();
    let (source, mount_point) = (place.source(), place.mount_point());
    let (packed, onto) = (source.join("x.warp"), own.join("x"));
    fs::write(&onto, "").unwrap();
    std::os::unix::fs::symlink("source", own.join("link")).unwrap();
    for (source, again, mount_point) in [
        (&source, &source, &mount_point),
        (&source, &own.join("link"), &mount_point),
        (&packed, &packed, &onto),
        // Over itself: what is beneath is what it was.
        (&source, &source, &source),
    ] {
        let mount = |source: &Path| {
            let mut command = warpfs();
            command.arg("mount").arg(source).arg(mount_point);
            command.output().unwrap()
        };
        let output = mount(source);
        assert!(output.status.success(), "{}", said(&output));
        for foreground in [false, true] {
            let output = match foreground {
                false => mount(again),
                true => warpfs()
                    .args(["mount", "-f"])
                    .args([again, mount_point])
                    .output()
                    .unwrap(),
            };
            let said = said(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("is mounted here already"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        assert!(umount(mount_point).status.success());
        assert!(!is_mounted(mount_point));
    }
    place.wait_for_the_end();
}

#[test]
fn what_a_killed_server_leaves_is_cleaned_by_umount() {
    let place = Place::new();
    assert!(place.mount(&[]).status.success());
    place.signal(Signal::KILL);
    wait_until("its end", || place.servers().is_empty());
    assert!(is_mounted(&place.mount_point()));
    // The process is gone a moment before its connection is: what is asked in between is broken off (ECONNABORTED).
    wait_until("the end of its connection", || {
        let error = fs::read_dir(place.mount_point()).unwrap_err();
        error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error())
    });
    let output = warpfs()
        .arg("stats")
        .arg(place.mount_point())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let output = umount(&place.mount_point());
    assert!(output.status.success(), "{}", said(&output));
    assert!(!is_mounted(&place.mount_point()));
    // And it can be mounted again.
    assert!(place.mount(&[]).status.success());
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();
}

#[test]
fn a_hundred_mounts_leave_no_process_and_no_mount() {
    let place = Place::new();
    let start = Instant::now();
    for round in 0..100 {
        assert!(place.mount(&[]).status.success());
        assert_eq!(
            fs::read(place.mount_point().join("x")).unwrap().len(),
            100_003
        );
        match round % 2 {
            0 => assert!(umount(&place.mount_point()).status.success()),
            _ => {
                place.signal(Signal::TERM);
                wait_until("the end", || !is_mounted(&place.mount_point()));
            }
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{round} rounds");
    }
    place.wait_for_the_end();
}

#[test]
fn options_can_be_given_in_the_words_of_mount() {
    let place = Place::new();
    let log = place.own.path().join("log");
    let options = format!(
        "ro,nosuid,nodev,noauto,x-systemd.automount,cache_size=9M,threads=3,prefetch=off,ttl=forever,allow_other,log_file={}",
        log.display()
    );
    let output = place.mount(&["-o", &options]);
    assert!(output.status.success(), "{}", said(&output));
    let stats = run([
        OsStr::new("stats"),
        OsStr::new("--json"),
        place.mount_point().as_os_str(),
    ]);
    let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
    assert_eq!(stats["memory_budget"], 9 << 20);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(place.mount_point().to_str().unwrap()))
        .unwrap();
    for word in [
        "fuse.warpfs ro,nosuid,nodev",
        "default_permissions",
        "allow_other",
    ] {
        assert!(line.contains(word), "{line}");
    }
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.contains("is mounted on") && log.contains("is unmounted"),
        "{log}"
    );

    for wrong in [
        "rw",
        "no_such_option",
        "cache_size=1",
        "ttl=-1",
        "allow_other=no",
        "auto-unmount=",
        "noexec,exec=0",
    ] {
        let output = place.mount(&["-o", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", said(&output));
    }
    assert!(!is_mounted(&place.mount_point()));
}

#[test]
fn the_log_file_is_added_to_and_tells_of_damage() {
    let place = Place::new();
    fs::copy(vector("bad-payload.warp"), place.source().join("bad.warp")).unwrap();
    fs::write(place.own.path().join("log"), "what was there before\n").unwrap();
    let output = place
        .command(&["--log-file", "log"])
        .current_dir(place.own.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(fs::read(place.mount_point().join("bad")).is_err());
    let log = fs::read_to_string(place.own.path().join("log")).unwrap();
    assert!(log.starts_with("what was there before\n"), "{log}");
    assert!(
        log.contains("bad.warp: chunk 0 (from byte 0): damaged zstd data"),
        "{log}"
    );
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();
}

#[test]
fn a_mount_that_is_to_be_quiet_logs_errors_alone_and_says_nothing_of_what_is_odd() {
    for is_quiet in [true, false] {
        let place = Place::new();
        let log = place.own.path().join("log");
        let source = tempfile::tempdir().unwrap();
        // It covers another mount, and the two may have been exchanged: this one is empty, and that is not.
        assert!(place.mount(&[]).status.success());
        let mut command = warpfs();
        command
            .args(["mount", "--ttl", "0", "--log-file"])
            .arg(&log);
        if is_quiet {
            command.arg("-q");
        }
        let output = command
            .args([source.path(), &place.mount_point()])
            .output()
            .unwrap();
        let told = said(&output);
        assert!(output.status.success(), "{told}");
        assert_eq!(told.lines().count(), if is_quiet { 0 } else { 2 }, "{told}");
        fs::copy(vector("bad-payload.warp"), source.path().join("x.warp")).unwrap();
        assert!(fs::read(place.mount_point().join("x")).is_err());
        for _ in 0..2 {
            assert!(umount(&place.mount_point()).status.success());
        }
        place.wait_for_the_end();
        let log = fs::read_to_string(log).unwrap();
        let (errors, others): (Vec<_>, Vec<_>) =
            log.lines().partition(|line| line.contains(" ERROR "));
        assert!(errors[0].contains("x.warp: chunk 0"), "{log}");
        assert_eq!(others.is_empty(), is_quiet, "{log}");
    }
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3_and_nobody_else_sees_it() {
    let _fuse = FuseForAll::new(false);
    let (place, program) = place_of_somebody();
    let mount_point = place.mount_point();
    let file = mount_point.join("x");
    let mount = |options: &[&str]| mount_as_somebody(&place, &program, options);
    let output = mount(&[]);
    assert!(output.status.success(), "{}", said(&output));
    let read = |user: u32| as_user(user, &[OsStr::new("cat"), file.as_os_str()]);
    assert!(read(SOMEBODY).stdout == common::mixed());
    assert!(!read(ANOTHER).status.success());
    assert!(!read(0).status.success());
    let mounted = mount_table();
    assert!(mounted.contains("fuse.warpfs"), "{mounted}");
    let unmount = [
        program.as_os_str(),
        OsStr::new("umount"),
        mount_point.as_os_str(),
    ];
    assert!(!as_user(ANOTHER, &unmount).status.success());
    let output = as_user(SOMEBODY, &unmount);
    assert!(output.status.success(), "{}", said(&output));
    place.wait_for_the_end();

    // A signal ends it too, also while it is in use.
    assert!(mount(&[]).status.success());
    let user = SOMEBODY.to_string();
    let mut worker = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"])
        .args(["tail", "-f"])
        .arg(&file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    place.signal(Signal::TERM);
    place.wait_for_the_end();
    worker.kill().unwrap();
    worker.wait().unwrap();

    // Letting others in is the administrator's to allow.
    let output = mount(&["--allow-other"]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("user_allow_other"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!is_mounted(&mount_point));
}

#[test]
fn a_user_who_cannot_mount_is_told_what_to_ask_root_for() {
    let fuse = FuseForAll::new(false);
    let (place, program) = place_of_somebody();
    let (source, mount_point) = (place.source(), place.mount_point());
    let refused = |before: &[&str]| {
        let mut words: Vec<_> = before.iter().map(OsStr::new).collect();
        words.extend([program.as_os_str(), OsStr::new("mount")]);
        words.extend([source.as_os_str(), mount_point.as_os_str()]);
        let output = as_user(SOMEBODY, &words);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    let said = refused(&["env", "PATH=/nowhere"]);
    assert!(
        said.contains("ask root to install the package fuse3"),
        "{said}"
    );
    // As fusermount3 is without its setuid bit.
    let said = refused(&["setpriv", "--no-new-privs"]);
    assert!(
        said.contains("ask root whether it is setuid root"),
        "{said}"
    );
    fs::set_permissions("/dev/fuse", PermissionsExt::from_mode(0o600)).unwrap();
    let said = refused(&[]);
    assert!(
        said.contains("ask root for \"chmod 666 /dev/fuse\""),
        "{said}"
    );
    drop(fuse);
    assert!(!is_mounted(&mount_point));
}

#[test]
fn others_see_what_modes_let_them_where_that_is_allowed() {
    let _fuse = FuseForAll::new(true);
    let (place, program) = place_of_somebody();
    let secret = place.source().join("secret.warp");
    fs::copy(vector("v2-zstd-blake3.warp"), &secret).unwrap();
    chown(&secret, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    let mount_point = place.mount_point();
    let output = mount_as_somebody(&place, &program, &["--allow-other"]);
    assert!(output.status.success(), "{}", said(&output));
    let read = |user: u32, name: &str| {
        as_user(
            user,
            &[OsStr::new("cat"), mount_point.join(name).as_os_str()],
        )
    };
    assert!(read(ANOTHER, "x").stdout == common::mixed());
    assert!(!read(ANOTHER, "secret").status.success());
    assert!(read(SOMEBODY, "secret").stdout == common::mixed());
    place.signal(Signal::TERM);
    place.wait_for_the_end();
}

#[test]
fn a_root_s_mount_is_not_for_ordinary_users_unless_they_are_let_in() {
    let source = tempfile::tempdir().unwrap();
    fs::set_permissions(source.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::copy(vector("v2-zstd-blake3.warp"), source.path().join("x.warp")).unwrap();
    for allow_other in [false, true] {
        let arguments: &[&str] = if allow_other { &["--allow-other"] } else { &[] };
        let place = Place::new();
        fs::set_permissions(place.own.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mounted = Mounted::at(source.path(), &place.mount_point(), arguments);
        let read = as_user(ANOTHER, &[OsStr::new("cat"), mounted.path("x").as_os_str()]);
        assert_eq!(read.status.success(), allow_other, "{}", said(&read));
        assert_eq!(read.stdout == common::mixed(), allow_other);
    }
}

/// It may be busy for a moment, when somebody looks at all that is mounted.
fn unmount(mount_point: &Path) {
    wait_until("the unmount", || {
        rustix::mount::unmount(mount_point, rustix::mount::UnmountFlags::empty()).is_ok()
    });
}

#[test]
fn a_mount_that_ends_takes_no_other_along_that_gets_its_device_number() {
    let source = tempfile::tempdir().unwrap();
    for _ in 0..40 {
        let ending = Mounted::new(source.path(), &[]);
        let place = ending.mount_point.clone();
        // The number is free as soon as this returns, while the server finds out that it has ended.
        let unmounting = std::thread::spawn(move || unmount(&place));
        let others = [(); 2].map(|()| Mounted::new(source.path(), &[]));
        unmounting.join().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        for other in &others {
            assert!(is_mounted(&other.mount_point));
        }
    }
}

#[test]
fn a_server_told_to_end_after_its_mount_has_ended_takes_no_other_along() {
    let source = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let mut ended = Mounted::new(source.path(), &[]);
        let server = Pid::from_child(&ended.server);
        // It does not find out before it is told.
        kill_process(server, Signal::STOP).unwrap();
        unmount(&ended.mount_point);
        let other = Mounted::new(source.path(), &[]);
        kill_process(server, Signal::TERM).unwrap();
        kill_process(server, Signal::CONT).unwrap();
        assert!(ended.server.wait().unwrap().success());
        assert!(is_mounted(&other.mount_point));
    }
}

#[test]
fn a_mounts_threads_displace_nobody_unless_somebody_has_decided_otherwise() {
    let (other, batch, idle) = (0, 3, 5);
    for (before, after) in [(other, batch), (idle, idle)] {
        let place = Place::new();
        let mount = place.command(&[]);
        let option = if before == idle { "--idle" } else { "--other" };
        let mut command = Command::new("chrt");
        command.args([option, "0"]).arg(mount.get_program());
        assert!(command.args(mount.get_args()).status().unwrap().success());
        fs::read(place.mount_point().join("x")).unwrap();
        let servers = place.servers();
        // They have their names a moment after they are started.
        let wanted = BTreeSet::from([after]);
        wait_until(option, || policies(servers[0].unsigned_abs()) == wanted);
    }
}
