//! A tree, the same tree packed, and a mount of that.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Mounted, run, shell};

/// See the module's description. All of it can be entered by any user.
pub struct Shown {
    pub mounted: Mounted,
    own: tempfile::TempDir,
}

/// What every Python script here begins with.
const PRELUDE: &str = "\
import ctypes, errno, fcntl, mmap, os, select, socket, struct, subprocess, sys, time
originals = sys.argv[1] + '/'
def original(name):
    with open(originals + name, 'rb') as file: return file.read()
def refused(call, *arguments, **named):
    'The error that a call ends with, by its name.'
    try: call(*arguments, **named)
    except OSError as error: return errno.errorcode[error.errno]
    return 'nothing: it was allowed'
libc = ctypes.CDLL(None, use_errno=True)
";

impl Shown {
    /// A tree that a script makes, packed in chunks of 128 KiB, and mounted.
    pub fn new(script: &str, arguments: &[&str]) -> Self {
        Self::made(
            |originals| {
                shell(originals, script);
            },
            arguments,
        )
    }

    /// A tree that a function makes.
    pub fn made(make: impl FnOnce(&Path), arguments: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        fs::set_permissions(own.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let [originals, packed, mount_point] =
            ["original", "packed", "mounted"].map(|name| own.path().join(name));
        fs::create_dir(&originals).unwrap();
        fs::create_dir(&mount_point).unwrap();
        make(&originals);
        run([
            "pack".as_ref(),
            "-q".as_ref(),
            "-r".as_ref(),
            "-o".as_ref(),
            packed.as_os_str(),
            originals.as_os_str(),
        ]);
        let mounted = Mounted::at(&packed, &mount_point, arguments);
        Self { mounted, own }
    }

    pub fn original(&self, name: &str) -> PathBuf {
        self.own.path().join("original").join(name)
    }

    pub fn packed(&self, name: &str) -> PathBuf {
        self.own.path().join("packed").join(name)
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mounted.path(name)
    }

    /// Demands that these files are packed, so that what reads them in the mount has them decoded.
    pub fn is_packed<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            let packed = self.packed(&format!("{name}.warp"));
            assert!(packed.exists(), "{name} is not packed");
        }
    }

    /// An empty directory beside the trees.
    pub fn elsewhere(&self) -> PathBuf {
        let directory = tempfile::tempdir_in(self.own.path()).unwrap().keep();
        fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
        directory
    }

    /// Runs a shell script in the mount and gives what it printed.
    pub fn shell(&self, script: &str) -> String {
        shell(&self.mounted.mount_point, script)
    }

    /// Runs a script in the original tree and in the mount, and demands that both print the same, and something.
    pub fn agree(&self, script: &str) -> String {
        let expected = shell(&self.original(""), script);
        let shown = self.shell(script);
        assert_eq!(shown, expected, "{script}");
        assert!(!shown.is_empty(), "nothing was printed: {script}");
        shown
    }

    /// Runs a Python script in the mount; its assertions are the test's.
    pub fn python(&self, script: &str) -> String {
        self.python_of(Path::new("python3"), script)
    }

    /// The same by a Python of one's own.
    pub fn python_of(&self, python: &Path, script: &str) -> String {
        let output = Command::new(python)
            .args(["-c", &format!("{PRELUDE}{script}")])
            .arg(self.own.path().join("original"))
            .current_dir(&self.mounted.mount_point)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
