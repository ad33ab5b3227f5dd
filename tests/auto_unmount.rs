//! `--auto-unmount`: whatever ends a server, no dead mount point stays, nothing else is unmounted, and what sees to it
//! is in nobody's way. That this is not done unasked: tests/life.rs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::place::{Place, said, umount};
use common::users::{FuseForAll, mount_as_somebody, place_of_somebody};
use common::{Bound, Running, is_mounted, names, shell, wait_until, warpfs};
use rustix::process::{Pid, Signal, kill_process};

fn kill(process: i32, signal: Signal) {
    kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
}

#[test]
fn a_killed_server_in_use_leaves_no_mount_point_and_what_was_beneath_shows() {
    // A crash of its own is a signal too: SIGABRT is what a panic while panicking and a stack overflow end in.
    for signal in [Signal::KILL, Signal::ABORT] {
        let place = Place::new();
        fs::write(place.mount_point().join("beneath"), "").unwrap();
        assert!(place.mount(&["--auto-unmount"]).status.success());
        let open = File::open(place.mount_point().join("x")).unwrap();
        let _worker = Running::inside(&place.mount_point());
        assert_eq!((place.servers().len(), place.guards().len()), (1, 1));
        place.signal(signal);
        place.wait_for_the_end();
        assert_eq!(names(&place.mount_point()), ["beneath"]);
        drop(open);
    }
}

#[test]
fn it_works_for_files_for_a_mount_over_its_own_source_and_in_the_foreground() {
    let place = Place::new();
    let file = place.own.path().join("file");
    fs::write(&file, "").unwrap();
    let packed = place.source().join("x.warp");
    let cases: [(PathBuf, PathBuf); 4] = [
        (place.source(), place.mount_point()),
        (place.source(), place.source()),
        (packed.clone(), file),
        (packed.clone(), packed.clone()),
    ];
    let bytes = fs::read(&packed).unwrap();
    for (source, mount_point) in cases {
        for foreground in [&[][..], &["-f"]] {
            let _mounted = Bound(&mount_point);
            let mut command = warpfs();
            command.args(["mount", "--auto-unmount"]).args(foreground);
            let mut server = command
                .args([&source, &mount_point])
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            if foreground.is_empty() {
                assert!(server.wait().unwrap().success());
                // The command's line names the mount point, so does the server's.
                let line = |process: &i32| {
                    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
                    String::from_utf8_lossy(&line)
                        .ends_with(&format!("{}\0", mount_point.display()))
                };
                let servers = all_servers().into_iter().filter(line).collect::<Vec<_>>();
                assert_eq!(servers.len(), 1, "{}", mount_point.display());
                kill(servers[0], Signal::KILL);
            } else {
                wait_until("the mount", || is_mounted(&mount_point));
                wait_for_the_greeting();
                server.kill().unwrap();
                server.wait().unwrap();
            }
            wait_until("its end", || !is_mounted(&mount_point));
            assert!(fs::read(&packed).unwrap() == bytes);
        }
    }
}

/// Waits until no mount is being made. Whoever is killed while root's mount lets itself use io_uring leaves that allowed.
fn wait_for_the_greeting() {
    if let Ok(parameter) = File::open("/sys/module/fuse/parameters/enable_uring") {
        rustix::fs::flock(&parameter, rustix::fs::FlockOperation::LockShared).unwrap();
    }
}

/// All servers of this program, whatever they serve.
fn all_servers() -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number: &i32| {
            let name = fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default();
            name.trim_end() == "warpfs"
        })
        .collect()
}

#[test]
fn after_an_orderly_end_the_guard_is_gone_and_what_was_mounted_before_stays() {
    for unmount in ["warpfs", "umount", "umount -l", "fusermount3 -u", "signal"] {
        let place = Place::new();
        let mount_point = place.mount_point();
        shell(
            Path::new("/"),
            &format!("mount -t tmpfs beneath {}", mount_point.display()),
        );
        fs::write(mount_point.join("beneath"), "").unwrap();
        let output = place.mount(&["-o", "auto_unmount"]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(place.guards().len(), 1);
        match unmount {
            "warpfs" => assert!(umount(&mount_point).status.success()),
            "signal" => place.signal(Signal::TERM),
            command => {
                let script = format!("{command} {}", mount_point.display());
                shell(Path::new("/"), &script);
            }
        }
        wait_until("the end of the server", || place.servers().is_empty());
        wait_until("the end of the guard", || place.guards().is_empty());
        assert_eq!(names(&mount_point), ["beneath"], "{unmount}");
        shell(Path::new("/"), &format!("umount {}", mount_point.display()));
    }
}

#[test]
fn the_guard_holds_nothing_but_its_line_to_the_server_and_outlasts_the_signals_of_others() {
    let place = Place::new();
    let log = place.own.path().join("log");
    // A descriptor that the shell forgot is the guard's as little as ours.
    let script = format!(
        "exec 7<{0}/x.warp; exec {1} mount --auto-unmount --log-file {2} {0} {3}",
        place.source().display(),
        env!("CARGO_BIN_EXE_warpfs"),
        log.display(),
        place.mount_point().display()
    );
    shell(Path::new("/"), &script);
    let (server, guard) = (place.servers()[0], place.guards()[0]);
    let descriptors = || -> Vec<String> {
        let links = fs::read_dir(format!("/proc/{guard}/fd")).unwrap().flatten();
        let mut held: Vec<_> = links
            .map(|link| fs::read_link(link.path()).unwrap().display().to_string())
            .collect();
        held.sort();
        held
    };
    let held = descriptors();
    assert_eq!(held.len(), 4, "{held:?}");
    assert_eq!(held[..3], ["/dev/null", "/dev/null", "/dev/null"]);
    assert!(held[3].starts_with("socket:"), "{held:?}");
    let cwd = fs::read_link(format!("/proc/{guard}/cwd")).unwrap();
    assert_eq!(cwd, Path::new("/"));
    // Process group, session and terminal: the third, fourth and fifth field behind the name.
    let stat = fs::read_to_string(format!("/proc/{guard}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let own = guard.to_string();
    assert_eq!(fields[2..5], [own.as_str(), own.as_str(), "0"], "{stat}");

    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        kill(guard, signal);
    }
    kill(server, Signal::KILL);
    place.wait_for_the_end();
}

#[test]
fn a_new_mount_at_the_same_place_is_left_alone() {
    let place = Place::new();
    assert!(place.mount(&["--auto-unmount"]).status.success());
    let device = || fs::metadata(place.mount_point()).unwrap().dev();
    let before = device();
    let guard = place.guards()[0];
    kill(guard, Signal::STOP);
    place.signal(Signal::KILL);
    wait_until("the end of the server", || place.servers().is_empty());
    assert!(umount(&place.mount_point()).status.success());
    assert!(place.mount(&[]).status.success());
    if device() != before {
        common::left_out("the system gave another device number");
    }
    kill(guard, Signal::CONT);
    wait_until("the end of the guard", || place.guards().is_empty());
    assert_eq!(names(&place.mount_point()), ["x"]);
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();
}

#[test]
fn a_mount_that_another_one_covers_goes_when_that_does() {
    let place = Place::new();
    let mount_point = place.mount_point();
    assert!(place.mount(&["--auto-unmount"]).status.success());
    shell(
        Path::new("/"),
        &format!("mount -t tmpfs above {}", mount_point.display()),
    );
    fs::write(mount_point.join("above"), "").unwrap();
    place.signal(Signal::KILL);
    wait_until("the end of the server", || place.servers().is_empty());
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(names(&mount_point), ["above"]);
    assert_eq!(place.guards().len(), 1);
    shell(Path::new("/"), &format!("umount {}", mount_point.display()));
    place.wait_for_the_end();
    assert!(names(&mount_point).is_empty());
}

#[test]
fn a_mount_is_found_where_it_has_come_to_lie() {
    for signal in [Signal::KILL, Signal::TERM] {
        let own = tempfile::tempdir().unwrap();
        let place = Place::new();
        let (before, after) = (own.path().join("before"), own.path().join("after"));
        let copy = own.path().join("copy");
        fs::create_dir_all(before.join("mounted")).unwrap();
        fs::create_dir(&copy).unwrap();
        let output = warpfs()
            .args(["mount", "--auto-unmount"])
            .args([place.source(), before.join("mounted")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        fs::rename(&before, &after).unwrap();
        let moved = after.join("mounted");
        let _mounts = [Bound(&moved), Bound(&copy)];
        shell(
            Path::new("/"),
            &format!("mount --bind {} {}", moved.display(), copy.display()),
        );
        assert!(is_mounted(&moved) && is_mounted(&copy));
        let named = before.join("mounted").display().to_string();
        let server = all_servers().into_iter().find(|server| {
            let line = fs::read(format!("/proc/{server}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&named)
        });
        kill(server.unwrap(), signal);
        wait_until("its end", || !is_mounted(&moved) && !is_mounted(&copy));
        assert!(names(&moved).is_empty());
    }
}

#[test]
fn an_ordinary_user_s_mount_goes_too() {
    let _fuse = FuseForAll::new(false);
    let (place, program) = place_of_somebody();
    let mount_point = place.mount_point();
    let output = mount_as_somebody(&place, &program, &["--auto-unmount"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(is_mounted(&mount_point));
    place.signal(Signal::KILL);
    place.wait_for_the_end();
    assert!(names(&mount_point).is_empty());
}

#[test]
fn a_mount_whose_connection_is_broken_off_goes_without_being_asked() {
    let control = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "fusectl", "fusectl"])
        .arg(control.path())
        .status();
    assert!(mount.unwrap().success());
    let control_files = Bound(control.path());
    let place = Place::new();
    assert!(place.mount(&[]).status.success());
    let device = fs::metadata(place.mount_point()).unwrap().dev();
    let connection = rustix::fs::minor(device).to_string();
    fs::write(control.path().join(connection).join("abort"), "1").unwrap();
    drop(control_files);
    place.wait_for_the_end();
}
