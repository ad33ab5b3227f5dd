//! `scripts/quickstart` leaves an ordinary user with a working mount, or says what to ask root for.
//!
//! The build itself is not repeated: a stand-in for `cargo` puts the program that the tests were built with in its place.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Output};

use common::place::said;
use common::users::{FuseForAll, SOMEBODY};
use common::{mixed, shell, vector, wait_until};

/// A checkout of an ordinary user's; what is mounted below it goes with it.
struct Checkout {
    own: tempfile::TempDir,
}

impl Checkout {
    fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        let repository = env!("CARGO_MANIFEST_DIR");
        shell(
            own.path(),
            &format!(
                "mkdir checkout bin tmp source mounted built; cp -r {repository}/scripts {repository}/Cargo.toml checkout/
                cp {program} program; cp {packed} source/x.warp
                printf '#!/bin/sh\\n[ \"$1\" != --version ] || exec echo cargo 99.0.0\\nmkdir -p \"$CARGO_TARGET_DIR/release\"; cp {own}/program \"$CARGO_TARGET_DIR/release/warpfs\"\\n' > bin/cargo
                chmod 755 . bin/cargo; chown -R {SOMEBODY}:{SOMEBODY} .",
                program = env!("CARGO_BIN_EXE_warpfs"),
                packed = vector("v2-zstd-blake3.warp").display(),
                own = own.path().display(),
            ),
        );
        Self { own }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.own.path().join(name)
    }

    /// Puts a program before those of the system.
    fn stand_in(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        chown(&path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    }

    /// Runs a script as the ordinary user.
    fn user(&self, script: &str) -> Output {
        let id = SOMEBODY.to_string();
        Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"])
            .args(["bash", "-c", script])
            .current_dir(self.own.path())
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.path("bin").display()),
            )
            .env("TMPDIR", self.path("tmp"))
            .env("CARGO_TARGET_DIR", self.path("built"))
            .output()
            .unwrap()
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from)
            .filter(|path| path.starts_with(self.own.path()))
            .collect()
    }

    fn samples(&self) -> usize {
        fs::read_dir(self.path("tmp")).unwrap().count()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        for path in self.mounts() {
            let _ = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn it_leaves_an_ordinary_user_with_a_mount_of_a_sample_and_the_way_to_clean_up() {
    let _fuse = FuseForAll::new(false);
    let checkout = Checkout::new();
    let output = checkout.user("checkout/scripts/quickstart");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", said(&output));
    assert!(told.contains("(no difference)"), "{told}");
    assert_eq!(checkout.mounts().len(), 1);
    // The last line is what to type.
    let clean_up = told.trim_end().lines().last().unwrap();
    let output = checkout.user(clean_up);
    assert!(output.status.success(), "{clean_up}: {}", said(&output));
    assert_eq!((checkout.mounts().len(), checkout.samples()), (0, 0));
}

#[test]
fn interrupted_it_leaves_neither_a_mount_nor_a_sample() {
    let _fuse = FuseForAll::new(false);
    let checkout = Checkout::new();
    for signal in ["INT", "TERM", "HUP"] {
        // As a terminal does it: to all of its group.
        checkout.stand_in("diff", &format!("kill -{signal} 0"));
        let output = checkout.user(
            // Who runs the tests may have them ignored, as nohup does.
            "exec env --default-signal=INT,TERM,HUP setsid --wait checkout/scripts/quickstart",
        );
        assert!(!output.status.success());
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.contains("$ diff -r"), "{told}{}", said(&output));
        let left = (checkout.mounts().len(), checkout.samples());
        assert_eq!(left, (0, 0), "{signal}: {}", said(&output));
    }
}

#[test]
fn it_mounts_a_users_own_tree() {
    let _fuse = FuseForAll::new(false);
    let checkout = Checkout::new();
    let output = checkout.user("checkout/scripts/quickstart source mounted");
    assert!(output.status.success(), "{}", said(&output));
    assert!(checkout.user("cat mounted/x").stdout == mixed());
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let unmount = told.trim_end().lines().last().unwrap();
    assert!(checkout.user(unmount).status.success(), "{unmount}");
    wait_until("the end of the mount", || checkout.mounts().is_empty());
}

#[test]
fn a_toolchain_that_is_too_old_or_missing_is_told_before_anything_is_built() {
    let _fuse = FuseForAll::new(false);
    let checkout = Checkout::new();
    for cargo in ["echo cargo 1.63.0", "exit 127"] {
        checkout.stand_in("cargo", cargo);
        let output = checkout.user("checkout/scripts/quickstart");
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("rustup.rs"), "{}", said(&output));
    }
}

#[test]
fn it_says_what_to_ask_root_for_before_anything_is_built() {
    let _fuse = FuseForAll::new(false);
    let checkout = Checkout::new();
    // Put back by the guard.
    fs::set_permissions("/dev/fuse", PermissionsExt::from_mode(0o600)).unwrap();
    let output = checkout.user("checkout/scripts/quickstart");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("chmod 666 /dev/fuse"),
        "{}",
        said(&output)
    );

    fs::set_permissions("/dev/fuse", PermissionsExt::from_mode(0o666)).unwrap();
    checkout.stand_in("dpkg-query", "exit 1");
    checkout.stand_in(
        "sudo",
        "echo 'nobody is not in the sudoers file' >&2; exit 1",
    );
    let output = checkout.user("checkout/scripts/quickstart");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("run as root: apt-get install fuse3 gcc libc6-dev"),
        "{}",
        said(&output)
    );
    assert!(!checkout.path("built/release").exists());
    assert_eq!(checkout.samples(), 0);
}
