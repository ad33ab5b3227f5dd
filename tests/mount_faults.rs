//! Faults of a mount in use: it is ended while programs wait in it, readers are killed in the middle of a read, and
//! disturbed by signals and forks. Nothing hangs, nothing stays behind, and no reader gets a wrong byte or an early end.
//!
//! A disk that does not answer is a mount of our own whose server is stopped: the mount under test reads its packed file
//! from there, where it is packed a second time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{
    Mounted, PATIENCE, Random, is_mounted, noise, pack, processors, sample, wait_until, warpfs,
};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

const MIB: usize = 1 << 20;
const LENGTH: usize = 16 * MIB;
/// Room for four chunks, so that what is not given back is missed soon. What files are is known for as long as a test takes:
/// who asks for that, because it took long to begin, waits for the disk before it reads.
const SMALL: &[&str] = &[
    "--cache-size",
    "1M",
    "--prefetch",
    "off",
    "--threads",
    "16",
    "--ttl",
    "600",
];

/// A source on a disk that can be stopped. `x.warp` is in it.
struct Disk {
    mounted: Mounted,
    original: Vec<u8>,
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir(&source).unwrap();
        let (plain, once) = (
            directory.path().join("original"),
            directory.path().join("x.warp"),
        );
        // Where it lies in the packed file is where it lies in the original.
        let original = noise(LENGTH, 7);
        fs::write(&plain, &original).unwrap();
        pack(&plain, &once, &["--codec", "lz4", "--chunk-size", "256K"]);
        pack(
            &once,
            &source.join("x.warp.warp"),
            &[
                "--codec",
                "lz4",
                "--chunk-size",
                "64K",
                "--checksum",
                "none",
            ],
        );
        let mounted = Mounted::new(&source, &["--ttl", "600", "--prefetch", "off"]);
        assert!(mounted.path("x.warp").exists());
        Self {
            mounted,
            original,
            directory,
        }
    }

    fn source(&self) -> &Path {
        &self.mounted.mount_point
    }

    /// From now on it answers nothing, whatever was read of it before.
    fn stop(&self) {
        self.mounted.drop_caches();
        self.signal(Signal::STOP);
    }

    fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.mounted.server), signal);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.go_on();
    }
}

/// Opens a file, says so, waits to be told, and reads a part of it: by a read or by a memory map.
const READER: &str = "import mmap, os, sys
shown, offset, length, way, output = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
file = os.open(shown, os.O_RDONLY)
print(flush=True)
sys.stdin.readline()
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
if way == 'map':
    bytes = mmap.mmap(file, 0, prot=mmap.PROT_READ)[offset:offset + length]
else:
    bytes = os.pread(file, length, offset)
open(output, 'wb').write(bytes)";

/// A program that has a file open and reads; it is killed with the test.
struct Reader(Child);

impl Reader {
    /// Will read `length` bytes at `offset`, both in MiB, and write them to `output`.
    fn new(file: &Path, offset: usize, length: usize, way: &str, output: &Path) -> Self {
        let mut command = Command::new("python3");
        command
            .args(["-c", READER])
            .arg(file)
            .args([offset * MIB, length * MIB].map(|number| number.to_string()))
            .arg(way)
            .arg(output);
        let mut reader = Self::of(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let opened = reader.0.stdout.as_mut().unwrap();
        opened.read_exact(&mut [0]).unwrap();
        reader
    }

    fn of(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    /// Has it read.
    fn begin(&mut self) {
        drop(self.0.stdin.take());
    }

    /// Waits until it sleeps and stays asleep: in a read that is not answered.
    fn wait_until_it_waits(&mut self) {
        let mut asleep = 0;
        let stat = format!("/proc/{}/stat", self.0.id());
        wait_until("a reader to wait", || {
            assert!(self.0.try_wait().unwrap().is_none(), "it did not wait");
            let stat = fs::read_to_string(&stat).unwrap();
            match stat.rsplit(") ").next().unwrap().starts_with('D') {
                true => asleep += 1,
                false => asleep = 0,
            }
            asleep > 20
        });
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "a reader hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Not waited for: the disk may still stand still.
        let _ = self.0.kill();
    }
}

/// Stops the disk and has all readers wait for it. What was to be opened is open: the kernel lets nobody go, killed or
/// not, who waits for an answer to anything but a read.
fn wait_in(disk: &Disk, readers: &mut [Reader]) {
    disk.stop();
    readers.iter_mut().for_each(Reader::begin);
    readers.iter_mut().for_each(Reader::wait_until_it_waits);
}

fn wait_for_the_server(mounted: &mut Mounted) {
    wait_until("the end of the server", || {
        mounted.server.try_wait().unwrap().is_some()
    });
}

/// Whether it could be unmounted. Not by umount(8), which asks for the file system's size first, and waits with the disk.
fn unmount(by: &str, mount_point: &Path) -> bool {
    let call = |flags| rustix::mount::unmount(mount_point, flags).is_ok();
    let helper = |options: &[&str]| {
        let mut command = Command::new("fusermount3");
        let command = command.args(options).arg(mount_point).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    match by {
        "a call" => call(UnmountFlags::empty()),
        "a lazy call" => call(UnmountFlags::DETACH),
        "fusermount3" => helper(&["-u"]),
        _ => helper(&["-u", "-z"]),
    }
}

#[test]
fn a_mount_ended_by_a_signal_ends_the_reads_that_wait_in_it() {
    for signal in [Signal::TERM, Signal::KILL] {
        let disk = Disk::new();
        let mut mounted = Mounted::new(disk.source(), SMALL);
        let file = mounted.path("x");
        let output = disk.directory.path().join("output");
        let held = File::open(&file).unwrap();
        let mut first = vec![0; 4096];
        held.read_exact_at(&mut first, 0).unwrap();
        assert!(first == disk.original[..4096]);
        let mut readers = [
            Reader::new(&file, 6, 1, "read", &output),
            Reader::new(&file, 9, 1, "read", &output),
            Reader::new(&file, 12, 1, "map", &output),
        ];
        let mut inside = Command::new("sleep");
        let _inside = Reader::of(inside.arg("100").current_dir(&mounted.mount_point));
        wait_in(&disk, &mut readers);

        let start = Instant::now();
        kill_process(Pid::from_child(&mounted.server), signal).unwrap();
        wait_for_the_server(&mut mounted);
        let [first, second, by_map] = readers.each_mut().map(Reader::wait);
        assert!(!first.success() && !second.success());
        assert_eq!(by_map.signal(), Some(Signal::BUS.as_raw()), "{by_map}");
        assert!(held.read_exact_at(&mut [0; 4096], 14 * MIB as u64).is_err());
        assert!(start.elapsed() < Duration::from_secs(5), "{signal:?}");
        assert_eq!(is_mounted(&mounted.mount_point), signal == Signal::KILL);
        if signal == Signal::KILL {
            assert!(unmount("a lazy call", &mounted.mount_point));
        }
    }
}

#[test]
fn a_mount_ended_by_a_signal_ends_though_more_reads_wait_in_it_than_it_had_threads_for() {
    for signal in [Signal::TERM, Signal::KILL] {
        let disk = Disk::new();
        let few = [
            "--cache-size",
            "4M",
            "--prefetch",
            "off",
            "--threads",
            "2",
            "--ttl",
            "600",
        ];
        let mut mounted = Mounted::new(disk.source(), &few);
        let (file, output) = (mounted.path("x"), disk.directory.path().join("output"));
        let mut readers: Vec<_> = (0..5)
            .map(|number| Reader::new(&file, 4 + 2 * number, 1, "read", &output))
            .collect();
        let mut one = CpuSet::new();
        one.set(processors()[0]);
        for reader in &readers {
            sched_setaffinity(Some(Pid::from_child(&reader.0)), &one).unwrap();
        }
        wait_in(&disk, &mut readers);
        // Each is given something to do, which must not have the server wait for itself.
        wait_until("further threads", || {
            mounted.logged().matches("one more thread").count() >= 2
        });
        kill_process(Pid::from_child(&mounted.server), signal).unwrap();
        wait_for_the_server(&mut mounted);
        for reader in &mut readers {
            assert!(!reader.wait().success());
        }
        assert_eq!(is_mounted(&mounted.mount_point), signal == Signal::KILL);
        if signal == Signal::KILL {
            assert!(unmount("a lazy call", &mounted.mount_point));
        }
    }
}

#[test]
fn reads_that_wait_in_a_mount_are_answered_when_it_is_detached_or_cannot_be() {
    for by in [
        "a call",
        "fusermount3",
        "a lazy call",
        "fusermount3, lazily",
    ] {
        let disk = Disk::new();
        let mut mounted = Mounted::new(disk.source(), SMALL);
        let file = mounted.path("x");
        let output = disk.directory.path().join("output");
        let null = Path::new("/dev/null");
        let mut readers = [
            Reader::new(&file, 6, 2, "read", &output),
            Reader::new(&file, 12, 1, "map", null),
        ];
        wait_in(&disk, &mut readers);
        let lazy = by.contains("laz");
        assert_eq!(unmount(by, &mounted.mount_point), lazy, "{by}");
        assert_eq!(is_mounted(&mounted.mount_point), !lazy, "{by}");
        let refused = warpfs().arg("umount").arg(&mounted.mount_point).output();
        assert_eq!(refused.unwrap().status.code(), Some(1));
        disk.go_on();
        for reader in &mut readers {
            assert!(reader.wait().success(), "{by}");
        }
        let read = fs::read(&output).unwrap();
        assert!(read == disk.original[6 * MIB..8 * MIB], "{by}");
        if lazy {
            // Nobody uses it any more.
            wait_for_the_server(&mut mounted);
        }
    }
}

#[test]
fn a_reader_killed_in_the_middle_of_a_read_leaves_nothing_behind() {
    let disk = Disk::new();
    let mounted = Mounted::new(disk.source(), SMALL);
    let file = mounted.path("x");
    let null = Path::new("/dev/null");
    for _ in 0..3 {
        let mut readers: Vec<_> = (1..9)
            .map(|place| {
                let way = if place % 4 == 0 { "map" } else { "read" };
                Reader::new(&file, place * 3 / 2, 1, way, null)
            })
            .collect();
        wait_in(&disk, &mut readers);
        for reader in &mut readers {
            reader.0.kill().unwrap();
            // At once, though nothing is answered yet.
            assert_eq!(reader.wait().signal(), Some(Signal::KILL.as_raw()));
        }
        disk.go_on();
        // What they left is put away.
        wait_until("all to be closed", || mounted.stats()["open_files"] == 0);
    }
    // Killed at any moment, and not only while the disk stands still.
    let mut random = Random(3);
    for _ in 0..40 {
        let mut command = Command::new("dd");
        command
            .arg(format!("if={}", file.display()))
            .arg(format!("skip={}", random.below(12)))
            .args(["of=/dev/null", "bs=1M", "count=4", "iflag=direct"]);
        let mut reader = Reader::of(&mut command);
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        reader.0.kill().unwrap();
        reader.wait();
    }
    wait_until("all to be closed", || mounted.stats()["open_files"] == 0);
    // Four chunks have room: if any of all those reads had kept its memory, this one would wait for ever.
    let output = disk.directory.path().join("output");
    let mut whole = Reader::new(&file, 0, 16, "read", &output);
    whole.begin();
    assert!(whole.wait().success());
    assert!(fs::read(&output).unwrap() == disk.original);
    let stats = mounted.stats();
    assert!(stats["memory_used"].as_u64() <= stats["memory_budget"].as_u64());
    for errors in ["damage_errors", "changed_errors", "other_errors"] {
        assert_eq!(stats[errors], 0, "{errors}");
    }
}

/// A packed file, mounted, and its original beside the mount.
fn ordinary_mount(directory: &Path) -> (Mounted, PathBuf) {
    let original = directory.join("original");
    let source = directory.join("source");
    fs::create_dir(&source).unwrap();
    fs::write(&original, sample(LENGTH, 1)).unwrap();
    let packed = source.join("x.warp");
    pack(
        &original,
        &packed,
        &["--codec", "zstd", "--chunk-size", "256K"],
    );
    let mounted = Mounted::new(&source, &["--cache-size", "2M"]);
    (mounted, original)
}

/// Reads the file over and over, its pages dropped, while an alarm goes off every third of a millisecond. What ends early
/// or differs ends it with an error.
const UNDER_ALARMS: &str = r#"
import mmap, os, random, signal, sys
shown, original, restart = sys.argv[1], open(sys.argv[2], "rb").read(), sys.argv[3] == "restart"
alarms = 0
def alarm(*_):
    global alarms
    alarms += 1
signal.signal(signal.SIGALRM, alarm)
signal.siginterrupt(signal.SIGALRM, not restart)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
random.seed(1)
for flags in (0, os.O_DIRECT):
    for piece in (4096, 65536, 1 << 20, 1 << 24):
        file = os.open(shown, os.O_RDONLY | flags)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        place = 0
        while bytes := os.read(file, piece):
            assert original.startswith(bytes, place), f"wrong bytes at {place}"
            place += len(bytes)
        assert place == len(original), f"ended at {place}"
        os.close(file)
with open(shown, "rb") as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    for _ in range(300):
        place = random.randrange(len(original))
        assert map[place:place + 9000] == original[place:place + 9000], f"wrong bytes mapped at {place}"
    assert map[:] == original
signal.setitimer(signal.ITIMER_REAL, 0)
assert alarms > 100, alarms
"#;

#[test]
fn a_storm_of_alarms_shortens_no_file_and_changes_no_byte() {
    let directory = tempfile::tempdir().unwrap();
    let (mounted, original) = ordinary_mount(directory.path());
    for restart in ["restart", "interrupt"] {
        let output = Command::new("timeout")
            .args(["60", "python3", "-c", UNDER_ALARMS])
            .args([&mounted.path("x"), &original])
            .arg(restart)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{restart}: {said}");
    }
    wait_until("all to be closed", || mounted.stats()["open_files"] == 0);
    assert_eq!(mounted.stats()["other_errors"], 0);
}

/// Forks all the time, also while a thread reads: children share the descriptor and the map, read, run programs, are killed.
const FORKING: &str = r#"
import mmap, os, random, signal, sys, threading
shown, original = sys.argv[1], open(sys.argv[2], "rb").read()
file = os.open(shown, os.O_RDONLY)
map = mmap.mmap(file, 0, prot=mmap.PROT_READ)
wrong, done = [], threading.Event()
def check(place, length):
    assert os.pread(file, length, place) == original[place:place + length], f"wrong bytes at {place}"
    assert map[place:place + length] == original[place:place + length], f"wrong bytes mapped at {place}"
def reader():
    picks = random.Random(2)
    while not done.is_set():
        try:
            check(picks.randrange(len(original)), 100_000)
        except BaseException as error:
            wrong.append(error)
            return
signal.signal(signal.SIGCHLD, lambda *_: None)
thread = threading.Thread(target=reader)
thread.start()
picks = random.Random(3)
for round in range(150):
    if round % 10 == 0:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for _ in range(5):
                check(picks.randrange(len(original)), 200_000)
            if round % 15 == 0:
                os.execvp("cmp", ["cmp", shown, sys.argv[2]])
            os.close(file)
            code = 0
        finally:
            os._exit(code)
    if round % 4 == 3:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    else:
        _, status = os.waitpid(child, 0)
        if status:
            wrong.append(f"child {round}: {status}")
done.set()
thread.join()
assert not wrong, wrong
"#;

#[test]
fn children_of_a_reader_share_its_file_and_read_right() {
    let directory = tempfile::tempdir().unwrap();
    let (mounted, original) = ordinary_mount(directory.path());
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let mut command = Command::new("timeout");
            command
                .args(["60", "python3", "-W", "ignore", "-c", FORKING])
                .args([&mounted.path("x"), &original])
                .stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    wait_until("all to be closed", || mounted.stats()["open_files"] == 0);
}

/// Tests that failed between the end of a server and the unmounting of its mount left it on the machine.
#[test]
fn a_mount_whose_server_was_killed_goes_with_the_test_also_from_beneath_another() {
    for is_covered in [false, true] {
        let source = tempfile::tempdir().unwrap();
        let mut mounted = Mounted::new(source.path(), &[]);
        let mount_point = mounted.mount_point.clone();
        if is_covered {
            let cover = format!("mount -t tmpfs cover {}", mount_point.display());
            common::shell(Path::new("/"), &cover);
        }
        mounted.server.kill().unwrap();
        mounted.server.wait().unwrap();
        assert!(is_mounted(&mount_point));
        drop(mounted);
        assert!(!is_mounted(&mount_point));
    }
}
