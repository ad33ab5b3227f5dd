//! Ordinary users, and what they need to mount.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use super::place::Place;
use super::shell;

/// Held by tests that need ordinary users to be let at /dev/fuse, which some machines keep to root: its mode is set for
/// them, and put back.
pub struct FuseForAll {
    mode: u32,
    configuration: Option<String>,
    _alone: std::sync::MutexGuard<'static, ()>,
}

const CONFIGURATION: &str = "/etc/fuse.conf";

impl FuseForAll {
    pub fn new(allow_other: bool) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let mode = fs::metadata("/dev/fuse").unwrap().permissions().mode();
        fs::set_permissions("/dev/fuse", PermissionsExt::from_mode(0o666)).unwrap();
        let configuration = allow_other.then(|| {
            let before = fs::read_to_string(CONFIGURATION).unwrap_or_default();
            fs::write(CONFIGURATION, format!("{before}\nuser_allow_other\n")).unwrap();
            before
        });
        Self {
            mode,
            configuration,
            _alone: alone,
        }
    }
}

impl Drop for FuseForAll {
    fn drop(&mut self) {
        let _ = fs::set_permissions("/dev/fuse", PermissionsExt::from_mode(self.mode));
        if let Some(before) = &self.configuration {
            let _ = fs::write(CONFIGURATION, before);
        }
    }
}

/// Ordinary users that every system has: fusermount3 wants a name for the number. Here `nobody` and `daemon`.
pub const SOMEBODY: u32 = 65_534;
pub const ANOTHER: u32 = 1;

/// A place that belongs to an ordinary user, and a copy of the program where that one can run it.
pub fn place_of_somebody() -> (Place, PathBuf) {
    let place = Place::new();
    let program = place.own.path().join("warpfs");
    // By a child: what this process has open for writing, a child of another thread may hold for a moment, and then it
    // cannot be executed.
    shell(
        place.own.path(),
        concat!("cp '", env!("CARGO_BIN_EXE_warpfs"), "' warpfs"),
    );
    for path in [
        place.own.path().to_owned(),
        place.source(),
        place.mount_point(),
        program.clone(),
    ] {
        chown(&path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    (place, program)
}

/// Has the ordinary user mount what is in the place that is his, by his copy of the program.
pub fn mount_as_somebody(place: &Place, program: &Path, options: &[&str]) -> Output {
    let (source, mount_point) = (place.source(), place.mount_point());
    let mut words = vec![program.as_os_str(), OsStr::new("mount")];
    words.extend(options.iter().map(OsStr::new));
    words.extend([source.as_os_str(), mount_point.as_os_str()]);
    as_user(SOMEBODY, &words)
}

/// Runs a command as a user without any rights of root's.
pub fn as_user(user: u32, words: &[&OsStr]) -> Output {
    let user = user.to_string();
    Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"])
        .args(words)
        .output()
        .unwrap()
}
