//! Mounts in the background, as the command leaves them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};

use super::{is_mounted, vector, wait_until, warpfs};

/// A source tree and a mount point for a server in the background; whatever is mounted there goes with it.
pub struct Place {
    pub own: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        fs::create_dir(own.path().join("source")).unwrap();
        fs::create_dir(own.path().join("mounted")).unwrap();
        fs::copy(
            vector("v2-zstd-blake3.warp"),
            own.path().join("source/x.warp"),
        )
        .unwrap();
        Self { own }
    }

    pub fn source(&self) -> PathBuf {
        self.own.path().join("source")
    }

    pub fn mount_point(&self) -> PathBuf {
        self.own.path().join("mounted")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = warpfs();
        command
            .arg("mount")
            .args(arguments)
            .arg(self.source())
            .arg(self.mount_point());
        command
    }

    pub fn mount(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The processes that serve this mount.
    pub fn servers(&self) -> Vec<i32> {
        self.processes(false)
    }

    /// The processes that unmount it if its server is killed.
    pub fn guards(&self) -> Vec<i32> {
        self.processes(true)
    }

    fn processes(&self, guards: bool) -> Vec<i32> {
        let mut found = Vec::new();
        let wanted = self.mount_point();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(number) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = line.split(|&byte| byte == 0);
            let ours = words.next().is_some_and(|word| word.ends_with(b"warpfs"));
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if ours
                && (name.trim_end() == "warpfs-guard") == guards
                && line
                    .windows(wanted.as_os_str().len())
                    .any(|part| part == wanted.as_os_str().as_encoded_bytes())
            {
                found.push(number);
            }
        }
        found
    }

    pub fn signal(&self, signal: Signal) {
        for server in self.servers() {
            kill_process(Pid::from_raw(server).unwrap(), signal).unwrap();
        }
    }

    pub fn wait_for_the_end(&self) {
        wait_until("the end of the mount", || !is_mounted(&self.mount_point()));
        wait_until("the end of the server", || self.servers().is_empty());
        wait_until("the end of the guard", || self.guards().is_empty());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for process in [self.servers(), self.guards()].concat() {
            let _ = kill_process(Pid::from_raw(process).unwrap(), Signal::KILL);
        }
        while is_mounted(&self.mount_point()) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            if rustix::mount::unmount(self.mount_point(), flags).is_err() {
                break;
            }
        }
    }
}

/// What a command said of what went wrong.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Unmounts by our own command.
pub fn umount(path: &Path) -> Output {
    warpfs().arg("umount").arg(path).output().unwrap()
}
