//! Promise 7, through mount(8): lines of /etc/fstab and `mount -t fuse.warpfs` mount as the command itself does, what the
//! administrator asks for takes effect, and what cannot be is refused in one line.
//!
//! Each test has a mount namespace of its own, in which an overlay on /usr/sbin holds the helper and a file of its own lies
//! over /etc/fstab: the machine's are not touched, and all of it goes with the last process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::place::{Place, said};
use common::users::{FuseForAll, SOMEBODY, place_of_somebody};
use common::{mixed, wait_until};

/// A machine with an fstab and the helper, as those see it who run in its mount namespace.
struct Machine {
    place: Place,
    holder: Child,
}

impl Machine {
    /// `fstab` is a line, in which SOURCE, MOUNTPOINT and LINK, which leads to the source, are replaced.
    fn new(fstab: &str) -> Self {
        Self::with(Place::new(), Path::new(env!("CARGO_BIN_EXE_warpfs")), fstab)
    }

    fn with(place: Place, program: &Path, fstab: &str) -> Self {
        let own = place.own.path();
        let source = place.source().display().to_string();
        let mount_point = place.mount_point().display().to_string();
        let table = fstab
            .replace("SOURCE", &source)
            .replace("LINK", own.join("link").to_str().unwrap())
            .replace("MOUNTPOINT", &mount_point);
        fs::write(own.join("fstab"), table + "\n").unwrap();
        std::os::unix::fs::symlink("source", own.join("link")).unwrap();
        fs::create_dir(own.join("over")).unwrap();
        let prepare = "set -e
            mount -t tmpfs none over
            mkdir over/upper over/work
            mount -t overlay -o lowerdir=/usr/sbin,upperdir=over/upper,workdir=over/work none /usr/sbin
            ln -sf \"$1\" /usr/sbin/mount.fuse.warpfs
            ln -sf \"$1\" /usr/sbin/mount.warpfs
            [ -e /etc/fstab ] || touch /etc/fstab
            mount --bind fstab /etc/fstab
            touch ready
            exec sleep 600";
        let mut holder = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                prepare,
                "sh",
            ])
            .arg(program)
            .current_dir(own)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the namespace", || {
            assert!(holder.try_wait().unwrap().is_none(), "it could not be made");
            own.join("ready").exists()
        });
        Self { place, holder }
    }

    /// What the path leads to in the namespace.
    fn inside(&self, path: &Path) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root).join(path.strip_prefix("/").unwrap())
    }

    /// Runs a script in the namespace, in which M is the mount point and S the source.
    fn run_as(&self, user: u32, script: &str) -> Output {
        let user = user.to_string();
        Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .args([
                "setpriv",
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
            ])
            .args(["sh", "-c", script])
            .env("M", self.place.mount_point())
            .env("S", self.place.source())
            .env("LC_ALL", "C")
            .current_dir("/")
            .output()
            .unwrap()
    }

    fn run(&self, script: &str) -> Output {
        self.run_as(0, script)
    }

    fn must(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "{script}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail, with this exit code and one line that says why.
    fn must_not(&self, script: &str, code: i32, why: &str) {
        let output = self.run(script);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{script}: {said}");
        assert_eq!(said.lines().count(), 1, "{script}: {said}");
        assert!(said.contains(why), "{script}: {said}");
        assert_eq!(self.options(), None, "{script}");
    }

    /// The options that the mount table of the namespace shows for the mount, if it is there.
    fn options(&self) -> Option<String> {
        let table = format!("/proc/{}/mounts", self.holder.id());
        let table = fs::read_to_string(table).unwrap();
        let mount_point = self.place.mount_point();
        let mut mounts = table.lines().map(|line| line.split(' '));
        mounts.find_map(|mut fields| {
            let at = fields.nth(1)? == mount_point.to_str().unwrap();
            let kind = fields.next()?;
            at.then(|| format!("{kind} {}", fields.next().unwrap()))
        })
    }

    fn shows_the_original(&self) -> bool {
        fs::read(self.inside(&self.place.mount_point().join("x"))).is_ok_and(|x| x == mixed())
    }

    /// Unmounts by umount(8) and waits for the server's end.
    fn unmount(&self) {
        self.must("umount $M");
        assert_eq!(self.options(), None);
        wait_until("the end of the server", || self.place.servers().is_empty());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_line_of_fstab_mounts_with_all_that_such_lines_hold() {
    let machine = Machine::new(
        "SOURCE MOUNTPOINT fuse.warpfs noauto,nofail,_netdev,x-systemd.automount,x-systemd.idle-timeout=60,\
         comment=\"a,b\",noatime,noexec,cache_size=9M,allow_other,ro 0 0",
    );
    machine.must("mount $M");
    assert!(machine.shows_the_original());
    let options = machine.options().unwrap();
    assert!(options.starts_with("fuse.warpfs ro,"), "{options}");
    for option in [
        "nosuid",
        "nodev",
        "noexec",
        "allow_other",
        "default_permissions",
    ] {
        assert!(
            options.split([',', ' ']).any(|word| word == option),
            "{options}"
        );
    }
    let shown = machine.must("findmnt -n -o SOURCE,FSTYPE $M");
    let shown: Vec<_> = shown.split_whitespace().collect();
    assert_eq!(
        shown,
        [machine.place.source().to_str().unwrap(), "fuse.warpfs"]
    );
    // "mount -a" leaves alone what is marked so.
    machine.unmount();
    machine.must("mount -a");
    assert_eq!(machine.options(), None);
}

#[test]
fn mount_all_mounts_once_what_fstab_holds() {
    let machine = Machine::new("SOURCE MOUNTPOINT fuse.warpfs defaults 0 0");
    machine.must("mount -a");
    machine.must("mount -a");
    assert!(machine.shows_the_original());
    assert_eq!(machine.place.servers().len(), 1);
    machine.must("umount -a -t fuse.warpfs");
    wait_until("the end of the server", || {
        machine.place.servers().is_empty()
    });
}

#[test]
fn mounting_what_fstab_has_mounted_already_is_left_or_refused_and_never_stacks() {
    let machine = Machine::new("LINK MOUNTPOINT fuse.warpfs defaults 0 0");
    machine.must("mount -a");
    machine.must("mount -a");
    let before = machine.options();
    for again in [
        "mount $M",
        "mount -t fuse.warpfs $S $M",
        "mount.fuse.warpfs $S $M",
    ] {
        let output = machine.run(again);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(32), "{again}: {said}");
        assert!(said.contains("already"), "{again}: {said}");
    }
    assert_eq!(machine.options(), before);
    assert_eq!(machine.place.servers().len(), 1);
    machine.unmount();
}

#[test]
fn mount_takes_either_type_a_file_and_a_fake() {
    let machine = Machine::new("");
    machine.must("mount -f -t fuse.warpfs $S $M");
    assert_eq!(machine.options(), None);
    for command in [
        "mount -t fuse.warpfs $S $M",
        "mount -t warpfs -o ro $S $M",
        "mount -v -n -t fuse.warpfs -o rw,exec,prefetch=off $S $M",
        "mount -s -t fuse.warpfs -o no_such_option $S $M",
        "mount -t fuse.warpfs $S/x.warp $M",
        "mount -t fuse.warpfs -o log_file=\"$M-a,b\" $S $M",
    ] {
        // The last has its value in quotes, which the shell would take away.
        let command = command.replace("\"$M-a,b\"", "\\\"$M-a,b\\\"");
        machine.must(&command);
        assert!(machine.shows_the_original(), "{command}");
        let name = machine.must("cat /proc/$(pgrep -o -f \"mount[.][a-z.]*warpfs .*$M\")/comm");
        assert_eq!(name, "warpfs\n");
        machine.unmount();
    }
    assert!(fs::metadata(machine.place.own.path().join("mounted-a,b")).is_ok());
}

#[test]
fn without_the_helper_mount_gets_there_through_fuse_s_own() {
    let machine = Machine::new("");
    machine.must("cd /usr/sbin; mv mount.fuse.warpfs warpfs; rm mount.warpfs");
    machine.must("mount -t fuse.warpfs -o prefetch=off $S $M");
    assert!(machine.shows_the_original());
    machine.unmount();
    let output = machine.run("mount -t fuse.warpfs -o no_such_option $S $M");
    assert!(
        said(&output).contains("no_such_option: unknown option"),
        "{}",
        said(&output)
    );
    assert_eq!(machine.options(), None);
}

#[test]
fn what_cannot_be_is_refused_in_one_line_with_the_codes_of_mount() {
    let machine = Machine::new("SOURCE MOUNTPOINT fuse.warpfs noauto,cache_size=none 0 0");
    machine.must_not("mount $M", 1, "-o cache_size=none: ");
    let mount = |options: &str| format!("mount -t fuse.warpfs -o {options} $S $M");
    machine.must_not(
        &mount("no_such_option"),
        1,
        "-o no_such_option: unknown option",
    );
    // Not even when sloppy: it is known, and would let in whom it is to keep out.
    machine.must_not(
        "mount.fuse.warpfs -s $S $M -o allow_other=no",
        1,
        "-o allow_other=no: takes no value",
    );
    // mount(8) keeps these for itself, as what is so without saying; elsewhere they are asked for.
    machine.must_not(
        "mount.fuse.warpfs $S $M -o suid",
        1,
        "-o suid: programs gain no rights",
    );
    machine.must_not("mount.fuse.warpfs $S $M -o dev", 1, "-o dev: ");
    machine.must_not("mount.fuse.warpfs $S", 1, "mount.fuse.warpfs: ");
    machine.must_not("mount.fuse.warpfs -x $S $M", 1, "-x");
    machine.must_not(&mount("disk_cache_size=64M"), 1, "disk_cache=");
    machine.must_not(
        "mount.fuse.warpfs -f $S $M -o disk_cache_size=64M",
        1,
        "disk_cache=",
    );
    machine.must_not(
        "mount.fuse.warpfs $S https://example.org/",
        1,
        "a mount point is",
    );
    machine.must_not("mount -t fuse.warpfs $S/missing $M", 32, "missing");
    machine.must_not("mount -t fuse.warpfs $S/../fstab $M", 32, "fstab");
    // The kernel is asked, and has no security module that would know what this means.
    machine.must_not(
        "mount.fuse.warpfs $S $M -o 'context=\"a:b,c\"'",
        32,
        "cannot mount",
    );
}

#[test]
fn the_options_of_a_mount_stay_and_remounting_says_so() {
    let machine = Machine::new("");
    machine.must("mount -t fuse.warpfs $S $M");
    let before = machine.options();
    let output = machine.run("mount -o remount,ttl=5 $M");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("unmount it and mount it anew"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(machine.options(), before);
    machine.unmount();
}

#[test]
fn what_is_asked_of_the_kernel_it_does() {
    let place = Place::new();
    let (program, link) = (place.source().join("program"), place.source().join("link"));
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("program", &link).unwrap();
    let machine = Machine::with(place, Path::new(env!("CARGO_BIN_EXE_warpfs")), "");
    for (options, runs, leads) in [
        ("exec", true, true),
        ("noexec", false, true),
        ("noexec,exec", true, true),
        ("nosymfollow", true, false),
    ] {
        // By the helper itself: an older mount(8) does not pass every word on.
        machine.must(&format!("mount.fuse.warpfs $S $M -o {options}"));
        assert_eq!(
            machine.run("$M/program").status.success(),
            runs,
            "{options}"
        );
        assert_eq!(
            machine.run("cat $M/link").status.success(),
            leads,
            "{options}"
        );
        machine.unmount();
    }
}

#[test]
fn an_ordinary_user_mounts_and_unmounts_where_fstab_says_user() {
    let _fuse = FuseForAll::new(false);
    let (place, program) = place_of_somebody();
    let machine = Machine::with(
        place,
        &program,
        "SOURCE MOUNTPOINT fuse.warpfs noauto,user 0 0",
    );
    let output = machine.run_as(SOMEBODY, "mount $M && cat $M/x && umount $M");
    assert!(output.status.success(), "{}", said(&output));
    assert!(output.stdout == mixed());
    wait_until("the end of the server", || {
        machine.place.servers().is_empty()
    });

    // What "user" implies holds.
    let output = machine.run_as(SOMEBODY, "mount $M");
    assert!(output.status.success(), "{}", said(&output));
    let options = machine.options().unwrap_or_else(|| {
        let table = machine.run("cat /proc/self/mountinfo; ps -ef | grep [w]arpfs");
        panic!("not mounted: {}", String::from_utf8_lossy(&table.stdout));
    });
    assert!(
        options.contains("noexec") && options.contains("nosuid"),
        "{options}"
    );
    let id = format!("user_id={SOMEBODY}");
    assert!(options.contains(&id), "{options}");
    machine.unmount();
}

#[test]
fn a_mount_is_made_in_the_namespace_that_mount_names() {
    let machine = Machine::new("");
    // As mount(8) -N runs it: in the namespace that it comes from.
    let script = "exec -a mount.fuse.warpfs \"$0\" \"$@\"";
    let output = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_warpfs")])
        .args([machine.place.source(), machine.place.mount_point()])
        .arg("-N")
        .arg(format!("/proc/{}/ns/mnt", machine.holder.id()))
        .args([OsStr::new("-o"), OsStr::new("rw")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(!common::is_mounted(&machine.place.mount_point()));
    assert!(machine.shows_the_original());
    machine.unmount();
}
