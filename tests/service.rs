//! A mount as a service: it tells the service manager when it answers and when it ends, and its log can be turned up, turned
//! down and rotated while it runs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::place::{Place, said, umount};
use common::{Mounted, PATIENCE, is_mounted, vector, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// A service, ended with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(place: &Place, socket: &str, arguments: &[&str]) -> Service {
    let mut command: Command = place.command(arguments);
    command.env("NOTIFY_SOCKET", socket).stderr(Stdio::null());
    Service(command.spawn().unwrap())
}

fn heard(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = [0; 4096];
    let length = socket.recv(&mut text).unwrap();
    String::from_utf8_lossy(&text[..length]).into_owned()
}

#[test]
fn the_service_manager_is_told_when_the_mount_answers_and_when_it_ends() {
    let place = Place::new();
    let path = place.own.path().join("notify");
    let by_path = (
        UnixDatagram::bind(&path).unwrap(),
        path.to_str().unwrap().to_owned(),
    );
    let name = format!("warpfs-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let by_name = (
        UnixDatagram::bind_addr(&address).unwrap(),
        format!("@{name}"),
    );
    for (socket, name) in [by_path, by_name] {
        let mut service = start(&place, &name, &["-f"]);
        let ready = heard(&socket);
        // Looked at by this process only now: it is there already.
        assert!(is_mounted(&place.mount_point()));
        assert!(ready.starts_with("READY=1\nSTATUS="), "{ready}");
        assert!(
            ready.contains(place.mount_point().to_str().unwrap()),
            "{ready}"
        );
        let server = Pid::from_child(&service.0);
        kill_process(server, Signal::TERM).unwrap();
        assert_eq!(heard(&socket), "STOPPING=1");
        assert!(service.0.wait().unwrap().success());
    }
}

#[test]
fn a_mount_in_the_background_tells_nobody_and_a_deaf_manager_is_no_hindrance() {
    let place = Place::new();
    let path = place.own.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut service = start(&place, path.to_str().unwrap(), &[]);
    assert!(service.0.wait().unwrap().success());
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err());
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();

    for deaf in ["/nowhere/notify", "not-absolute", "", "@"] {
        let mut service = start(&place, deaf, &["-f"]);
        wait_until("the mount", || is_mounted(&place.mount_point()));
        assert!(fs::read_dir(place.mount_point()).is_ok());
        assert!(umount(&place.mount_point()).status.success());
        assert!(service.0.wait().unwrap().success(), "{deaf}");
    }
}

/// Runs what a unit runs after its server's end, of which systemd tells by these words.
fn after_the_end(unit: &str, place: &Place, result: &str, code: &str, status: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    let text = fs::read_to_string(path.join(unit)).unwrap();
    let line = text.lines().find(|line| line.starts_with("ExecStopPost="));
    let (_, script) = line.unwrap().split_once("/bin/sh -c '").unwrap();
    let script = script.strip_suffix('\'').unwrap();
    let script = script.replace("/usr/bin/warpfs", env!("CARGO_BIN_EXE_warpfs"));
    let output = Command::new("/bin/sh")
        .args(["-c", &script])
        .env("MOUNTPOINT", place.mount_point())
        .env("SERVICE_RESULT", result)
        .env("EXIT_CODE", code)
        .env("EXIT_STATUS", status)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_service_that_cannot_mount_leaves_anothers_mount_there_alone() {
    for unit in ["system/warpfs@.service", "user/warpfs@.service"] {
        let place = Place::new();
        assert!(place.mount(&[]).status.success());
        // It is refused, was stopped before it mounted, and was stopped after it had.
        for (result, code, status) in [
            ("exit-code", "exited", "1"),
            ("timeout", "killed", "TERM"),
            ("success", "exited", "0"),
        ] {
            after_the_end(unit, &place, result, code, status);
            assert!(is_mounted(&place.mount_point()), "{unit}: {result}");
        }
        // Its own, of a server that was killed, goes.
        for (result, code, status) in [
            ("signal", "killed", "KILL"),
            ("core-dump", "dumped", "SEGV"),
        ] {
            place.signal(Signal::KILL);
            wait_until("the end of the server", || place.servers().is_empty());
            assert!(is_mounted(&place.mount_point()));
            after_the_end(unit, &place, result, code, status);
            assert!(!is_mounted(&place.mount_point()), "{unit}: {result}");
            assert!(place.mount(&[]).status.success());
        }
        assert!(umount(&place.mount_point()).status.success());
        place.wait_for_the_end();
    }
}

#[test]
fn signals_have_the_log_say_more_and_less() {
    let source = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(source.path(), &["--idle-timeout", "0.5"]);
    let busy = fs::File::open(&mounted.mount_point).unwrap();
    let server = Pid::from_child(&mounted.server);
    let step = |signal: Signal, line: &str| {
        let before = mounted.logged().len();
        kill_process(server, signal).unwrap();
        wait_until(line, || mounted.logged()[before..].contains(line));
    };
    let says_details = || {
        let before = mounted.logged().len();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        mounted.logged()[before..].contains("is in use")
    };
    assert!(!says_details());
    step(Signal::USR1, " INFO log level is debug now");
    assert!(says_details());
    // There is no more than that.
    step(Signal::USR1, " INFO log level is debug now");
    step(Signal::USR2, " INFO log level is info now");
    assert!(!says_details());
    step(Signal::USR2, " INFO log level is warn now");
    step(Signal::USR2, " WARN log level is error now");
    step(Signal::USR2, "ERROR log level is error now");
    step(Signal::USR1, " WARN log level is warn now");
    step(Signal::USR1, " INFO log level is info now");
    drop(busy);
}

#[test]
fn signals_about_the_log_end_neither_server_nor_guard() {
    let place = Place::new();
    assert!(place.mount(&["--auto-unmount"]).status.success());
    let processes = || [place.servers(), place.guards()].concat();
    let before = processes();
    assert_eq!(before.len(), 2);
    for process in &before {
        for signal in [Signal::USR1, Signal::USR2] {
            kill_process(Pid::from_raw(*process).unwrap(), signal).unwrap();
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(processes(), before);
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();
}

#[test]
fn a_rotated_log_goes_on_under_its_name_even_beneath_the_mount_itself() {
    let place = Place::new();
    let log = place.source().join("log");
    // Over itself: the path of the log then leads through the mount that writes it.
    let source = place.source();
    let output = common::warpfs()
        .args(["mount", "--log-file"])
        .arg(&log)
        .args([&source, &source])
        .output()
        .unwrap();
    assert!(output.status.success());
    let server = server_over_itself(&source);
    let inside = fs::read_to_string(&log).unwrap();
    assert!(inside.contains("is mounted on"), "{inside}");
    kill_process(Pid::from_raw(server).unwrap(), Signal::USR1).unwrap();
    wait_until("a line more", || {
        fs::read_to_string(&log)
            .unwrap_or_default()
            .contains("debug now")
    });
    assert!(umount(&source).status.success());
    wait_until("the end", || {
        fs::read_to_string(&log).unwrap().contains("is unmounted")
    });

    let log = place.own.path().join("log");
    let options = ["--log-file", log.to_str().unwrap()];
    assert!(place.mount(&options).status.success());
    fs::rename(&log, place.own.path().join("log.1")).unwrap();
    place.signal(Signal::USR1);
    wait_until("a log anew", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("debug now"))
    });
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();
}

/// The server of what is mounted over itself.
fn server_over_itself(mount_point: &std::path::Path) -> i32 {
    let pattern = format!("mount --log-file .* {} {0}$", mount_point.display());
    let output = Command::new("pgrep")
        .args(["-f", "--", &pattern])
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Mounts in a mount namespace of its own, in which the system's journal is `socket`, by this program.
fn with_journal(socket: &Path, program: &str) -> Command {
    let prepare = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && touch /run/systemd/journal/socket &&
        mount --bind \"$1\" /run/systemd/journal/socket && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", prepare])
        .arg("sh")
        .arg(socket)
        .arg(program);
    command.stdin(Stdio::null());
    command
}

/// What the journal is told of this, in systemd's native protocol.
fn heard_of(journal: &UnixDatagram, what: &str) -> String {
    loop {
        let entry = heard(journal);
        if entry.contains(what) {
            return entry;
        }
    }
}

/// Demands that an entry of the journal has a field, which begins with its length.
fn assert_field(entry: &str, name: &str, value: &str) {
    let length = char::from(value.len() as u8);
    let field = format!("{name}\n{length}\0\0\0\0\0\0\0{value}\n");
    assert!(entry.contains(&field), "{entry}");
}

#[test]
fn a_mount_in_the_background_tells_the_journal_what_happens_and_how_bad_it_is() {
    let place = Place::new();
    let own = place.own.path();
    fs::copy(vector("bad-payload.warp"), place.source().join("bad.warp")).unwrap();
    // As mount(8) calls it for a line of /etc/fstab.
    let helper = own.join("mount.fuse.warpfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_warpfs"), &helper).unwrap();
    let helper = helper.to_str().unwrap();
    let journal = UnixDatagram::bind(own.join("journal")).unwrap();
    for words in [&[env!("CARGO_BIN_EXE_warpfs"), "mount"][..], &[helper]] {
        let mut command = with_journal(&own.join("journal"), words[0]);
        command.args(&words[1..]);
        let output = command
            .args([place.source(), place.mount_point()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let entry = heard_of(&journal, "is mounted on");
        assert_field(&entry, "PRIORITY", "5");
        assert_field(&entry, "SYSLOG_IDENTIFIER", "warpfs");
        let [server] = place.servers()[..] else {
            panic!("{:?}", place.servers());
        };
        let root = format!("/proc/{server}/root");
        let bad = Path::new(&root).join(place.mount_point().strip_prefix("/").unwrap());
        assert!(fs::read(bad.join("bad")).is_err());
        let entry = heard_of(&journal, "bad.warp: chunk");
        assert_field(&entry, "PRIORITY", "3");
        place.signal(Signal::TERM);
        place.wait_for_the_end();
    }
}

#[test]
fn standard_error_that_leads_to_the_journal_is_not_written_to_and_any_other_is() {
    let place = Place::new();
    let socket = place.own.path().join("journal");
    let journal = UnixDatagram::bind(&socket).unwrap();
    let log = fs::File::create(place.own.path().join("log")).unwrap();
    let identity = log.metadata().unwrap();
    let stream = |inode: u64| format!("{}:{inode}", identity.dev());
    for (inode, leads_there) in [(identity.ino(), true), (identity.ino() + 1, false)] {
        let mut command = with_journal(&socket, env!("CARGO_BIN_EXE_warpfs"));
        command
            .args(["mount", "-f"])
            .args([place.source(), place.mount_point()])
            .env("JOURNAL_STREAM", stream(inode))
            .stderr(log.try_clone().unwrap());
        let mut service = Service(command.spawn().unwrap());
        let logged = || fs::read_to_string(place.own.path().join("log")).unwrap();
        if leads_there {
            heard_of(&journal, "is mounted on");
            assert_eq!(logged(), "");
        } else {
            wait_until("the mount", || logged().contains("is mounted on"));
        }
        kill_process(Pid::from_child(&service.0), Signal::TERM).unwrap();
        assert!(service.0.wait().unwrap().success());
    }
}
