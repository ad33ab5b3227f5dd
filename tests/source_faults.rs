//! A source that fails: its file system is taken away by force, its disk is cut short, its permissions are withdrawn, its
//! files change under many readers at once. Whoever reads gets the original's bytes or an error, and the mount can be
//! ended. One reader of one changing file: tests/living_source.rs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::place::{Place, said, umount};
use common::users::{FuseForAll, SOMEBODY, as_user, mount_as_somebody, place_of_somebody};
use common::{Mounted, Random, is_mounted, noise, pack, processors, shell, wait_until};
use rustix::fs::Advice;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

const MIB: usize = 1 << 20;
const CHUNK: usize = 128 << 10;
const SMALL: &[&str] = &["--ttl", "0.2", "--cache-size", "1M", "--prefetch", "off"];
const EIO: Option<i32> = Some(Errno::IO.raw_os_error());
const ESTALE: Option<i32> = Some(Errno::STALE.raw_os_error());

fn packed(directory: &Path, original: &[u8]) -> PathBuf {
    let plain = directory.join("plain");
    fs::write(&plain, original).unwrap();
    let packed = directory.join("plain.warp");
    pack(&plain, &packed, &["--codec", "lz4", "--chunk-size", "128K"]);
    fs::remove_file(plain).unwrap();
    packed
}

/// A file system of its own on a loop device. In it are `x.warp` and, with the same bytes, `plain`.
struct Disk {
    directory: tempfile::TempDir,
    device: String,
    original: Vec<u8>,
}

impl Disk {
    /// `None` where there can be none.
    fn new() -> Option<Self> {
        if !common::disks::can_be_had() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let original = noise(16 * MIB, 1);
        let packed = packed(directory.path(), &original);
        shell(
            directory.path(),
            "truncate -s 48M image; mkfs.ext4 -q -F -b 4096 -O ^has_journal image; mkdir source",
        );
        let device = shell(directory.path(), "losetup -f --show image");
        let disk = Self {
            directory,
            device: device.trim().to_owned(),
            original,
        };
        let mount = format!("mount {} source", disk.device);
        shell(disk.directory.path(), &mount);
        for (name, bytes) in [
            ("x.warp", fs::read(packed).unwrap()),
            ("plain", disk.original.clone()),
        ] {
            let file = File::create(disk.source().join(name)).unwrap();
            // In one piece: else where its pieces lie stands in a block that may be lost by itself.
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, bytes.len() as u64).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            file.sync_all().unwrap();
        }
        Some(disk)
    }

    fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    /// Reads all of an open file, piece by piece; says how many pieces were errors. All others are right.
    fn errors_in(&self, file: &File) -> usize {
        let mut bytes = vec![0; CHUNK];
        let pieces = self.original.chunks(CHUNK).enumerate();
        let failed = pieces.filter(|(number, expected)| {
            match file.read_exact_at(&mut bytes, (number * CHUNK) as u64) {
                Ok(()) => {
                    assert!(bytes == *expected, "wrong bytes in piece {number}");
                    false
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), EIO, "piece {number}: {error}");
                    true
                }
            }
        });
        failed.count()
    }

    /// Whether the loop device is still in use.
    fn is_held(&self) -> bool {
        let image = self.directory.path().join("image");
        let output = Command::new("losetup").arg("-j").arg(image).output();
        !output.unwrap().stdout.is_empty()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .args(["-q", "-l"])
            .arg(self.source())
            .status();
        if self.is_held() {
            let _ = Command::new("losetup").args(["-d", &self.device]).status();
        }
    }
}

/// Ends a mount by the command, which wants it to be in no use.
fn end(mut mounted: Mounted) {
    let output = umount(&mounted.mount_point);
    assert!(output.status.success(), "{}", said(&output));
    wait_until("the end of the server", || {
        mounted.server.try_wait().unwrap().is_some()
    });
    assert!(!is_mounted(&mounted.mount_point));
}

#[test]
fn a_source_that_is_unmounted_by_force_is_read_on_and_let_go_with_the_mount() {
    let Some(disk) = Disk::new() else {
        return;
    };
    let mounted = Mounted::new(&disk.source(), SMALL);
    let held = File::open(mounted.path("x")).unwrap();
    let source = disk.source();
    let refused = Command::new("umount")
        .arg("-f")
        .arg(&source)
        .stderr(Stdio::null())
        .status();
    assert!(!refused.unwrap().success());
    assert!(is_mounted(&source));
    shell(disk.directory.path(), "umount -l source");
    shell(
        disk.directory.path(),
        &format!("losetup -d {}", disk.device),
    );
    mounted.drop_caches();
    assert_eq!(disk.errors_in(&held), 0);
    for name in ["x", "plain"] {
        let opened = File::open(mounted.path(name)).unwrap();
        assert_eq!(disk.errors_in(&opened), 0, "{name}");
    }
    assert!(disk.is_held());
    drop(held);
    end(mounted);
    wait_until("the device to be free", || !disk.is_held());
}

/// A source with a file on the disk and one in a file system whose server is stopped, so that it does not answer.
struct Hanging {
    place: Place,
    far: Mounted,
    _originals: tempfile::TempDir,
}

impl Hanging {
    fn new(place: Place) -> Self {
        let originals = tempfile::tempdir().unwrap();
        packed(&place.source(), &noise(16 * MIB, 2));
        // Packed twice, and shown packed once.
        let twice = packed(originals.path(), &noise(64 * MIB, 3));
        pack(
            &twice,
            &originals.path().join("plain.warp.warp"),
            &["--codec", "lz4"],
        );
        fs::remove_file(twice).unwrap();
        let directory = place.source().join("far");
        fs::create_dir(&directory).unwrap();
        Self {
            far: Mounted::at(originals.path(), &directory, &["--allow-other"]),
            place,
            _originals: originals,
        }
    }

    /// Stops the server, and has several read of its file from each processor, who get no answer.
    fn stop(&self, path: &Path) -> Stopped {
        // The header and the table are there.
        let file = File::open(path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 64 * MIB as u64);
        let server = Pid::from_child(&self.far.server);
        kill_process(server, Signal::STOP).unwrap();
        let mut stopped = Stopped {
            server,
            readers: Vec::new(),
        };
        let readers = processors().into_iter().flat_map(|processor| {
            (0..5).map(move |number| (processor, 1000 * (1 + number) + 100 * processor as u64))
        });
        stopped.readers = readers
            .map(|(processor, page)| {
                let script = format!(
                    "taskset -c {processor} dd if='{}' iflag=direct bs=4096 skip={page} count=1 status=none | wc -c",
                    path.display()
                );
                let mut reader = Command::new("sh");
                reader.args(["-c", &script]).stdout(Stdio::piped());
                reader.spawn().unwrap()
            })
            .collect();
        stopped
    }
}

/// A server that is stopped, and those who wait for it. Nobody who does can be ended, so it goes on when this goes.
struct Stopped {
    server: Pid,
    readers: Vec<Child>,
}

impl Stopped {
    /// Checks that the file on the disk is read on each processor meanwhile, and the other when the server goes on.
    fn others_are_read(mut self, mount_point: &Path) {
        let original = noise(16 * MIB, 2);
        for round in 0..2 {
            for processor in processors() {
                let script = format!(
                    "taskset -c {processor} dd if='{}' iflag=direct bs=1M skip={round} count=1 status=none",
                    mount_point.join("plain").display()
                );
                let mut command = Command::new("timeout");
                let output = command.args(["30", "sh", "-c", &script]).output().unwrap();
                let place = round * MIB;
                assert!(
                    output.stdout == original[place..place + MIB],
                    "on {processor}"
                );
            }
        }
        kill_process(self.server, Signal::CONT).unwrap();
        for reader in self.readers.drain(..) {
            let output = reader.wait_with_output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "4096");
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.server, Signal::CONT);
        for reader in &mut self.readers {
            let _ = reader.wait();
        }
    }
}

#[test]
fn a_file_whose_file_system_does_not_answer_holds_up_nobody_who_reads_others() {
    let hanging = Hanging::new(Place::new());
    let outer = Mounted::at(&hanging.place.source(), &hanging.place.mount_point(), &[]);
    let stopped = hanging.stop(&outer.path("far/plain"));
    stopped.others_are_read(&outer.mount_point);
    assert!(
        outer.logged().contains("one more thread"),
        "{}",
        outer.logged()
    );
}

#[test]
fn a_file_whose_file_system_does_not_answer_holds_up_nobody_in_an_ordinary_user_s_mount() {
    let _fuse = FuseForAll::new(true);
    let (place, program) = place_of_somebody();
    let hanging = Hanging::new(place);
    let mounted = mount_as_somebody(&hanging.place, &program, &["--allow-other"]);
    assert!(mounted.status.success(), "{}", said(&mounted));
    let mount_point = hanging.place.mount_point();
    hanging
        .stop(&mount_point.join("far/plain"))
        .others_are_read(&mount_point);
}

#[test]
fn a_file_system_that_is_shut_down_gives_errors_and_no_wrong_bytes() {
    let Some(disk) = Disk::new() else {
        return;
    };
    let mounted = Mounted::new(&disk.source(), SMALL);
    let held = ["x", "plain"].map(|name| File::open(mounted.path(name)).unwrap());
    assert!(held[0].read_exact_at(&mut [0; 4096], 0).is_ok());
    mounted.drop_caches();
    // EXT4_IOC_SHUTDOWN without a flush.
    let script = "import fcntl, os, struct
fcntl.ioctl(os.open('source', os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
    let shut = Command::new("python3")
        .args(["-c", script])
        .current_dir(disk.directory.path())
        .status();
    assert!(shut.unwrap().success());
    let start = Instant::now();
    for held in &held {
        assert!(disk.errors_in(held) > 100);
    }
    for name in ["x", "plain"] {
        if let Ok(opened) = File::open(mounted.path(name)) {
            assert!(disk.errors_in(&opened) > 100, "{name}");
        }
    }
    // To list it is an error or not: it ends.
    let _ = fs::read_dir(&mounted.mount_point).map(Iterator::count);
    assert!(fs::metadata(mounted.path("none")).is_err());
    assert_eq!(mounted.stats()["open_files"], 2);
    assert!(start.elapsed() < Duration::from_secs(5));
    let logged = mounted.logged();
    let told = || logged.lines().filter(|line| line.contains("x.warp: chunk"));
    assert!(told().count() >= 1, "{logged}");
    // Each of hundreds of reads failed; one of them is told in a second.
    assert!(told().count() <= 6, "{logged}");
    drop(held);
    end(mounted);
}

#[test]
fn a_disk_that_is_cut_short_gives_errors_for_what_is_gone_and_serves_the_rest() {
    let Some(disk) = Disk::new() else {
        return;
    };
    let mounted = Mounted::new(&disk.source(), SMALL);
    let held = ["x", "plain"].map(|name| File::open(mounted.path(name)).unwrap());
    // 32 MiB of data are in the two files.
    let image = File::options()
        .write(true)
        .open(disk.directory.path().join("image"))
        .unwrap();
    image.set_len(24 * MIB as u64).unwrap();
    mounted.drop_caches();
    let lost = held.each_ref().map(|held| disk.errors_in(held));
    let pieces = disk.original.len() / CHUNK;
    assert!(lost.iter().sum::<usize>() >= pieces / 4, "{lost:?}");
    assert!(lost.iter().any(|&lost| lost < pieces), "{lost:?}");
    for (name, &before) in ["x", "plain"].iter().zip(&lost) {
        if let Ok(opened) = File::open(mounted.path(name)) {
            assert!(disk.errors_in(&opened) <= before, "{name}");
        }
    }
    drop(held);
    end(mounted);
}

#[test]
fn a_header_that_cannot_be_read_is_an_error_and_not_taken_for_no_file() {
    let Some(disk) = Disk::new() else {
        return;
    };
    let mounted = Mounted::new(&disk.source(), SMALL);
    let script = "debugfs -R 'blocks /x.warp' image 2>/dev/null";
    let blocks = shell(disk.directory.path(), script);
    let first: u64 = blocks.split_whitespace().next().unwrap().parse().unwrap();
    let image = disk.directory.path().join("image");
    let image = File::options().write(true).open(image).unwrap();
    image.set_len(first * 4096).unwrap();
    mounted.drop_caches();
    let refused = || {
        // Who copies the tree with deletions must not believe that there is none.
        for name in ["x", "x.warp"] {
            let error = fs::metadata(mounted.path(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), EIO, "{name}");
        }
    };
    refused();
    let listed = shell(&mounted.mount_point, "ls | sort");
    // One of the two names it has.
    assert_eq!(listed, "lost+found\nplain\nx\nx.warp\n");
    // What a listing has said of it is not believed either.
    shell(&mounted.mount_point, "ls -l >/dev/null 2>&1 || true");
    refused();
    let logged = mounted.logged();
    assert!(logged.contains("cannot be shown for now"), "{logged}");
    end(mounted);
}

#[test]
fn permissions_taken_away_are_refused_to_who_opens_and_leave_who_has_opened_alone() {
    let _fuse = FuseForAll::new(false);
    let (place, program) = place_of_somebody();
    let source = place.source();
    let original = noise(4 * MIB, 1);
    let packed = packed(place.own.path(), &original);
    fs::create_dir(source.join("d")).unwrap();
    for name in ["y.warp", "d/z.warp"] {
        fs::copy(&packed, source.join(name)).unwrap();
    }
    for name in ["d", "y.warp", "d/z.warp"] {
        chown(source.join(name), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    }
    let mount_point = place.mount_point();
    let output = mount_as_somebody(&place, &program, SMALL);
    assert!(output.status.success(), "{}", said(&output));

    // Each reads a little, waits to be told, and reads all.
    let user = SOMEBODY.to_string();
    let mut readers: Vec<_> = ["y", "d/z"]
        .iter()
        .map(|name| {
            let script =
                "exec 3<\"$1\"; head -c 4096 <&3 >&2; echo; read go; cat <&3; cat \"$1\" >&2";
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"])
                .args(["sh", "-c", script, "sh"])
                .arg(mount_point.join(name))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let mut reader = command.spawn().unwrap();
            let mut output = BufReader::new(reader.stdout.take().unwrap());
            output.read_line(&mut String::new()).unwrap();
            (reader, output)
        })
        .collect();
    let mode = |name: &str, mode: u32| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(source.join(name), mode).unwrap();
    };
    mode("y.warp", 0);
    mode("d", 0);
    let may_read = |name: &str| {
        let path = mount_point.join(name);
        as_user(SOMEBODY, &[OsStr::new("cat"), path.as_os_str()])
    };
    for name in ["y", "d/z"] {
        wait_until("the new mode", || !may_read(name).status.success());
        let refused = said(&may_read(name));
        assert!(refused.contains("Permission denied"), "{refused}");
    }
    assert!(may_read("x").status.success());
    for (reader, output) in &mut readers {
        writeln!(reader.stdin.take().unwrap(), "go").unwrap();
        let mut rest = Vec::new();
        io::Read::read_to_end(output, &mut rest).unwrap();
        assert!(rest == original[4096..], "{} bytes", rest.len());
        // It could not open it another time.
        assert!(!reader.wait().unwrap().success());
    }
    mode("y.warp", 0o600);
    mode("d", 0o700);
    for name in ["y", "d/z"] {
        wait_until("the mode given back", || may_read(name).status.success());
        assert!(may_read(name).stdout == original, "{name}");
    }
}

/// Files that are packed, and their originals, of several lengths.
struct Versions {
    directory: tempfile::TempDir,
    originals: Vec<Vec<u8>>,
    packed: Vec<Vec<u8>>,
}

impl Versions {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let originals: Vec<_> = (0..5)
            .map(|version| noise((4 + version as usize) * CHUNK + 777, 10 + version))
            .collect();
        let packed = originals
            .iter()
            .map(|original| fs::read(packed(directory.path(), original)).unwrap())
            .collect();
        fs::create_dir(directory.path().join("source")).unwrap();
        Self {
            directory,
            originals,
            packed,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("source/x.warp")
    }

    /// Puts another version in the place, as a whole.
    fn put(&self, number: usize) {
        let new = self.directory.path().join("new");
        fs::write(&new, &self.packed[number % self.packed.len()]).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    /// Has several read the file while `change` is called again and again, with a number that grows. `read` is given a
    /// file just opened, and where its bytes were read before; it counts what it has read.
    fn read_while(
        &self,
        change: impl Fn(usize),
        read: impl Fn(&File, &mut Random) -> u64 + Sync,
    ) -> u64 {
        self.put(0);
        let source = self.path();
        let mounted = Mounted::new(
            source.parent().unwrap(),
            &["--ttl", "0.01", "--cache-size", "1M", "--threads", "4"],
        );
        let (done, count) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let reader = |seed| {
                let mut random = Random(seed);
                while !done.load(Ordering::Relaxed) {
                    if let Ok(file) = File::open(mounted.path("x")) {
                        count.fetch_add(read(&file, &mut random), Ordering::Relaxed);
                    }
                }
            };
            let readers: Vec<_> = (0..6)
                .map(|seed| scope.spawn(move || reader(seed)))
                .collect();
            let start = Instant::now();
            for number in 1.. {
                let failed = readers.iter().any(|reader| reader.is_finished());
                if start.elapsed() > Duration::from_secs(4) || failed {
                    break;
                }
                change(number);
                std::thread::sleep(Duration::from_millis(2));
            }
            done.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.join().unwrap();
            }
        });
        wait_until("all to be closed", || mounted.stats()["open_files"] == 0);
        // It goes on.
        self.put(1);
        wait_until("the last version", || {
            fs::read(mounted.path("x")).is_ok_and(|bytes| bytes == self.originals[1])
        });
        count.into_inner()
    }

    /// Which version begins so.
    fn of(&self, beginning: &[u8]) -> &[u8] {
        let mut versions = self.originals.iter();
        let found = versions.find(|original| original.starts_with(beginning));
        found.expect("no version begins so")
    }
}

#[test]
fn readers_of_a_file_that_is_replaced_and_unlinked_read_what_they_opened_to_its_end() {
    let versions = Versions::new();
    let change = |number: usize| {
        if number.is_multiple_of(3) {
            fs::remove_file(versions.path()).unwrap();
            std::thread::sleep(Duration::from_micros(500));
        }
        versions.put(number);
    };
    let whole = versions.read_while(change, |file, random| {
        let mut beginning = [0; 64];
        file.read_exact_at(&mut beginning, 0).unwrap();
        let original = versions.of(&beginning);
        let mut bytes = vec![0; original.len() + 1];
        for _ in 0..random.below(4) {
            if random.below(2) == 0 {
                rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
            }
            let from = random.below(original.len() as u64) as usize;
            let mut done = 0;
            while let read @ 1.. = file
                .read_at(&mut bytes[done..], (from + done) as u64)
                .unwrap()
            {
                done += read;
            }
            assert!(
                bytes[..done] == original[from..],
                "wrong bytes, or ended early"
            );
        }
        1
    });
    assert!(whole > 100, "{whole} opened");
}

#[test]
fn readers_of_a_file_that_is_cut_short_get_right_bytes_or_an_error_and_no_early_end() {
    let versions = Versions::new();
    let change = |number: usize| {
        let mut random = Random(number as u64);
        let file = File::options().write(true).open(versions.path()).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(random.below(length)).unwrap();
        std::thread::sleep(Duration::from_millis(random.below(4)));
        versions.put(number);
    };
    let lost = AtomicU64::new(0);
    let right = versions.read_while(change, |file, random| {
        let allowed = |error: &io::Error| {
            lost.fetch_add(1, Ordering::Relaxed);
            let number = error.raw_os_error();
            assert!(number == EIO || number == ESTALE, "{error}");
        };
        let mut beginning = [0; 64];
        if let Err(error) = file.read_exact_at(&mut beginning, 0) {
            allowed(&error);
            return 0;
        }
        let original = versions.of(&beginning);
        let mut bytes = vec![0; 20_000];
        for _ in 0..random.below(20) {
            let from = random.below((original.len() - bytes.len()) as u64) as usize;
            match file.read_exact_at(&mut bytes, from as u64) {
                Ok(()) => assert!(bytes == original[from..][..bytes.len()], "wrong bytes"),
                Err(error) => allowed(&error),
            }
        }
        1
    });
    assert!(right > 100 && lost.into_inner() > 10, "{right} opened");
}
