//! What the tests that cross rooms share: files to pack, and mounts that go away with the test, also when it fails.
//!
//! Mounts are real: the built binary serves them through the kernel. Each is served by a child in the foreground, so
//! that its log, its memory and its end can be looked at.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

pub mod disks;
pub mod group;
pub mod jobs;
mod left_out;
pub mod model;
pub mod over_others;
pub mod place;
pub mod remote;
pub mod shown;
pub mod sources;
pub mod system_calls;
pub mod users;
pub mod vectors;

pub use left_out::left_out;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that happens at once on a machine at rest.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The built program.
pub fn warpfs() -> Command {
    Command::new(env!("CARGO_BIN_EXE_warpfs"))
}

/// The program, which SIGINT will reach: whoever runs the tests in the background has them started with it ignored.
pub fn warpfs_to_interrupt() -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_warpfs")]);
    command
}

/// Runs the program and demands success.
pub fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    let output = warpfs().args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The processors that this thread may run on, which need not be the first ones.
pub fn processors() -> Vec<usize> {
    let ours = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|processor| ours.is_set(*processor))
        .collect()
}

/// The scheduling policies, as sched(7) numbers them, of the threads that answer requests and decode.
pub fn policies(server: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for thread in fs::read_dir(format!("/proc/{server}/task")).unwrap() {
        // It may have ended.
        let Ok(line) = fs::read_to_string(thread.unwrap().path().join("stat")) else {
            continue;
        };
        let (name, fields) = line.rsplit_once(')').unwrap();
        let works = ["prefetch-", "queue-", "requests-"];
        if works.iter().any(|work| name.contains(work)) {
            // proc_pid_stat(5): the 41st, counted from the number in front of the name.
            let policy = fields.split_whitespace().nth(38).unwrap();
            found.insert(policy.parse().unwrap());
        }
    }
    found
}

/// A process that ends with the test, if it has not before.
pub struct Running(pub Child);

impl Running {
    /// One that has its working directory there, and does nothing.
    pub fn inside(directory: &Path) -> Self {
        let mut command = Command::new("sleep");
        Self(command.arg("100").current_dir(directory).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A place that something is mounted on by a test; unmounted when dropped.
pub struct Bound<'a>(pub &'a Path);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Runs a shell script and demands success; gives what it printed.
pub fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A file of the independent writer's, or its original `mixed.bin`.
pub fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// The original of most vectors.
pub fn mixed() -> Vec<u8> {
    fs::read(vector("mixed.bin")).unwrap()
}

/// Bytes that compress about 3:1, the same for the same seed; no two blocks of 4096 are equal.
pub fn sample(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let words: Vec<[u8; 6]> = (0..512)
        .map(|_| std::array::from_fn(|_| b'a' + (random.next() % 26) as u8))
        .collect();
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        bytes.extend(words[(random.next() % 512) as usize]);
        bytes.push(b' ');
        if random.below(64) == 0 {
            bytes.extend(random.next().to_le_bytes());
        }
    }
    bytes.truncate(length);
    bytes
}

/// A small seeded generator (SplitMix64), so that a failing run can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Bytes that no codec shortens, the same for the same seed. No eight of them stand also in those of another seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let words = (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes());
    words.take(length).collect()
}

/// Packs `input` to `output` with further arguments.
pub fn pack(input: &Path, output: &Path, arguments: &[&str]) {
    let mut command = warpfs();
    command.args(["pack", "-q", "-f"]).args(arguments);
    let result = command.arg("-o").arg(output).arg(input).output().unwrap();
    assert!(
        result.status.success(),
        "{}",
        String::from_utf8_lossy(&result.stderr)
    );
}

/// These bytes, packed with further arguments.
pub fn packed(original: &[u8], arguments: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("x"), directory.path().join("x.warp"));
    fs::write(&input, original).unwrap();
    pack(&input, &output, arguments);
    fs::read(output).unwrap()
}

/// The names in a directory, in order.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Waits until `done` says so; `what` is what was waited for in vain.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The table of all that is mounted; another test may have mounted something whose name is not UTF-8.
pub fn mount_table() -> String {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    String::from_utf8_lossy(&table).into_owned()
}

/// Whether anything is mounted at this path.
pub fn is_mounted(path: &Path) -> bool {
    let table = mount_table();
    let path = path.to_str().unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path))
}

/// A running mount.
pub struct Mounted {
    pub mount_point: PathBuf,
    pub log: PathBuf,
    pub server: Child,
    _own: tempfile::TempDir,
}

impl Mounted {
    /// Mounts `source` on a directory of its own.
    pub fn new(source: &Path, arguments: &[&str]) -> Self {
        Self::by(warpfs(), source, arguments)
    }

    /// Mounts `source` on a directory of its own, by this command, which is the program's so far.
    pub fn by(command: Command, source: &Path, arguments: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let mount_point = own.path().join("mounted");
        fs::create_dir(&mount_point).unwrap();
        Self::start(command, source, mount_point, arguments, own)
    }

    /// Mounts `source` on a directory of its own, by a server that a shell becomes after it has run `before`.
    pub fn after(before: &str, source: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let script = format!("{before} && exec \"$@\"");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_warpfs")]);
        Self::by(command, source, arguments)
    }

    /// Mounts `source` on `mount_point`.
    pub fn at(source: &Path, mount_point: &Path, arguments: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        Self::start(warpfs(), source, mount_point.to_owned(), arguments, own)
    }

    fn start(
        mut command: Command,
        source: &Path,
        mount_point: PathBuf,
        arguments: &[&str],
        own: tempfile::TempDir,
    ) -> Self {
        let mount_point = mount_point.canonicalize().unwrap();
        let log = own.path().join("log");
        let server = command
            .args(["mount", "-f"])
            .args(arguments)
            .arg(source)
            .arg(&mount_point)
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        // From here on both go with it, also when the wait is in vain.
        let mut mounted = Self {
            mount_point,
            log,
            server,
            _own: own,
        };
        wait_until("the mount", || {
            if let Some(status) = mounted.server.try_wait().unwrap() {
                panic!("the mount ended with {status}: {}", mounted.logged());
            }
            mounted.logged().contains("is mounted on")
        });
        mounted
    }

    /// A path inside the mount.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount_point.join(name)
    }

    /// What the server has logged so far.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The server's resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        resident(self.server.id(), "VmRSS:")
    }

    /// The most memory the server has ever had resident, in bytes, but for the program's own pages: those of a build for tests are
    /// three times as many as of any other, and no other file is mapped.
    pub fn peak_resident(&self) -> u64 {
        resident(self.server.id(), "VmHWM:") - resident(self.server.id(), "RssFile:")
    }

    /// The mount's statistics.
    pub fn stats(&self) -> serde_json::Value {
        let output = run([
            OsStr::new("stats"),
            OsStr::new("--json"),
            self.mount_point.as_os_str(),
        ]);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Drops what the kernel has cached of this mount, and of everything else.
    pub fn drop_caches(&self) {
        shell(Path::new("/"), "sync; echo 3 > /proc/sys/vm/drop_caches");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // By its own means first; whatever happens, nothing stays. What is not there any more is not signalled: its number may be
        // another's by now.
        let mut ended = self.server.try_wait().ok().flatten();
        if ended.is_none() {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(&self.server),
                rustix::process::Signal::TERM,
            );
        }
        let start = Instant::now();
        while ended.is_none() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            ended = self.server.try_wait().ok().flatten();
        }
        if ended.is_none() {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
        // A server that ended well has unmounted. Of another's the mount stays, and something may lie over it.
        let ended_well = ended.is_some_and(|status| status.success());
        while !ended_well && is_mounted(&self.mount_point) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            if rustix::mount::unmount(&self.mount_point, flags).is_err() {
                break;
            }
        }
        if std::thread::panicking() {
            eprintln!("the mount's log:\n{}", self.logged());
        }
    }
}

fn resident(process: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kibibytes: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap();
    kibibytes * 1024
}
