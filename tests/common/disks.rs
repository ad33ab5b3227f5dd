//! Disks of the tests' own that get full, fail and lose their power: ext4 on a loop device over a file.
//!
//! They go away with the test, also when it fails. Where there are no loop devices, there are none, and that is said; whatever
//! else goes wrong with one is a failure.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};

use super::left_out;

/// See the module's description.
pub struct Disk {
    mounted: bool,
    device: PathBuf,
    backing: PathBuf,
    /// The memory file system that the backing file is on, if it is on one.
    beneath: Option<PathBuf>,
    root: PathBuf,
    _own: tempfile::TempDir,
}

impl Disk {
    /// A disk of so many bytes; `None` where there can be none.
    pub fn new(size: u64) -> Option<Self> {
        Self::make(size, false)
    }

    /// A disk on memory of the same size, so that [`Disk::take_room`] can take away what is not in use yet.
    pub fn in_memory(size: u64) -> Option<Self> {
        Self::make(size, true)
    }

    fn make(size: u64, in_memory: bool) -> Option<Self> {
        if !can_be_had() {
            return None;
        }
        let own = tempfile::tempdir().unwrap();
        let root = own.path().join("disk");
        fs::create_dir(&root).unwrap();
        let mut disk = Self {
            mounted: false,
            device: PathBuf::new(),
            backing: own.path().join("backing"),
            beneath: None,
            root,
            _own: own,
        };
        if in_memory {
            let beneath = disk.backing.with_file_name("beneath");
            fs::create_dir(&beneath).unwrap();
            let size = format!("size={}", size + (64 << 10));
            succeeds(
                Command::new("mount")
                    .args(["-t", "tmpfs", "-o", &size, "warpfs-test"])
                    .arg(&beneath),
            )
            .unwrap();
            disk.backing = beneath.join("backing");
            disk.beneath = Some(beneath);
        }
        let backing = File::create(&disk.backing).unwrap();
        backing.set_len(size).unwrap();
        let mut format = Command::new("mkfs.ext4");
        format.args([
            "-q", "-F", "-m", "0", "-b", "4096", "-I", "256", "-N", "512", "-J", "size=4",
        ]);
        format.args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]);
        succeeds(format.arg(&disk.backing)).unwrap();
        // Somebody else may take the device that was found free.
        let device = (0..20).find_map(|_| {
            let mut setup = Command::new("losetup");
            succeeds(setup.args(["--find", "--show"]).arg(&disk.backing))
        });
        disk.device = PathBuf::from(device.unwrap().trim());
        if in_memory {
            // All blocks are there, those too that were found to be zero already.
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&backing, flags, 0, size).unwrap();
        }
        disk.mount();
        Some(disk)
    }

    fn mount(&mut self) {
        let mut mount = Command::new("mount");
        succeeds(
            mount
                .args(["-t", "ext4", "-o", "acl,user_xattr"])
                .arg(&self.device)
                .arg(&self.root),
        )
        .unwrap();
        self.mounted = true;
    }

    /// A path on the disk.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// The bytes that can still be written.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.root).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all but about `free` bytes into a file called `filler`, instead of what that had before.
    pub fn fill(&self, free: u64) {
        let filler = self.path("filler");
        let _ = fs::remove_file(&filler);
        // What was removed before becomes free only now.
        let _ = Command::new("sync").arg("-f").arg(&self.root).status();
        let file = File::create(&filler).unwrap();
        let taken = self.free().saturating_sub(free);
        if taken > 0 {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, taken).unwrap();
        }
        file.sync_all().unwrap();
    }

    /// Takes away the room for whatever is not in use yet, of a disk in memory: it says that it has room, and fails when
    /// something is written down. What is given gives the room back when dropped.
    pub fn take_room(&self) -> Filler {
        succeeds(Command::new("fstrim").arg(&self.root)).unwrap();
        let path = self.beneath.as_ref().unwrap().join("filler");
        let file = File::create(&path).unwrap();
        let block = vec![0xA5; 4096];
        let mut offset = 0;
        while file.write_all_at(&block, offset).is_ok() {
            offset += 4096;
        }
        Filler(path)
    }

    /// Loses everything from this byte of the disk on, as a broken disk does.
    pub fn cut(&self, length: u64) {
        let backing = OpenOptions::new().write(true).open(&self.backing).unwrap();
        backing.set_len(length).unwrap();
    }

    /// A switch that takes the power away, ready to be used.
    pub fn power_switch(&self) -> PowerSwitch {
        // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH of linux/ext4.h: nothing more reaches the disk.
        let script = "import fcntl, os, struct, sys\n\
            root = os.open(sys.argv[1], os.O_RDONLY)\n\
            print('ready', flush=True)\n\
            sys.stdin.readline()\n\
            fcntl.ioctl(root, 0x8004587d, struct.pack('I', 2))";
        let mut process = Command::new("python3")
            .args(["-c", script])
            .arg(&self.root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.as_mut().unwrap())
            .read_line(&mut ready)
            .unwrap();
        assert_eq!(ready, "ready\n");
        PowerSwitch(process)
    }

    /// Mounts it again, as after a restart of the machine.
    pub fn restart(&mut self) {
        self.unmount();
        self.mount();
    }

    fn unmount(&mut self) {
        for _ in 0..400 {
            if !self.mounted || unmount(&self.root, UnmountFlags::empty()).is_ok() {
                self.mounted = false;
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let _ = unmount(&self.root, UnmountFlags::DETACH);
        self.mounted = false;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
        if !self.device.as_os_str().is_empty() {
            let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
        }
        if let Some(beneath) = &self.beneath {
            let _ = unmount(beneath, UnmountFlags::DETACH);
        }
    }
}

/// See [`Disk::take_room`].
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// See [`Disk::power_switch`].
pub struct PowerSwitch(Child);

impl PowerSwitch {
    /// From now on nothing is written to the disk, and everything fails on it.
    pub fn off(mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for PowerSwitch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Forgets what is in memory of a file, so that it is read from the disk.
pub fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Whether there are loop devices; if not, that is said.
pub fn can_be_had() -> bool {
    let found = succeeds(Command::new("losetup").arg("--find"));
    // One that is named may not be there, in a container, or not for this user.
    let opened = found.map(|name| File::options().read(true).write(true).open(name.trim()));
    let can_be = opened.is_some_and(|opened| opened.is_ok());
    if !can_be {
        left_out("no loop devices");
    }
    can_be
}

/// What a command printed, if it succeeded; what it said, said.
fn succeeds(command: &mut Command) -> Option<String> {
    let output = command.output().unwrap();
    if !output.status.success() {
        eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
