//! File systems over other directories, as overlays and FUSE servers are; they go away with the test, also when it fails.

use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use super::shell;

/// One that is mounted.
pub struct Mounted(PathBuf);

impl Mounted {
    /// An overlay at `at`.
    pub fn overlay(at: &Path, lower: &Path, upper: &Path, work: &Path) -> Self {
        let [lower, upper, work] = [lower, upper, work].map(Path::display);
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        shell(
            at,
            &format!("mount -t overlay overlay -o {options} {}", at.display()),
        );
        Self(at.to_owned())
    }

    /// A directory, `below`, at `at` too.
    pub fn bound(at: &Path, below: &Path) -> Self {
        let command = format!("mount --bind {} {}", below.display(), at.display());
        shell(Path::new("/"), &command);
        Self(at.to_owned())
    }

    /// A directory, `below`, shown at `at` by a FUSE server, which keeps attributes for so many seconds.
    pub fn by_a_server(at: &Path, below: &Path, attributes: u32) -> Self {
        let options =
            format!("minfreespace=0,use_ino,cache.attr={attributes},cache.entry={attributes}");
        let command = format!(
            "mergerfs -o {options} {} {} || {{ echo 'scripts/install-packages mergerfs' >&2; false; }}",
            below.display(),
            at.display()
        );
        shell(Path::new("/"), &command);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
