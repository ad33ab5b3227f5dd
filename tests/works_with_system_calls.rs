//! What programs do with files besides reading them works in a mount, or is refused clearly: locks, maps, advice, copies within
//! the kernel, io_uring, watches. Each test is a row of docs/WORKS_WITH.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::shown::Shown;
use common::{Random, sample, shell, wait_until};
use io_uring::{IoUring, opcode, squeue, types};

const SIZE: usize = 5_000_001;

/// One mount for the tests that change nothing: a packed file `x`, a packed program and library, and `noise`, which is plain.
fn shown() -> Arc<Shown> {
    static SHARED: Mutex<Weak<Shown>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let shown = Arc::new(Shown::made(make, &[]));
        shown.is_packed(["x", "library.so", "program"]);
        assert!(shown.packed("noise").exists());
        *shared = Arc::downgrade(&shown);
        shown
    })
}

fn make(originals: &Path) {
    fs::write(originals.join("x"), sample(SIZE, 1)).unwrap();
    let mut random = Random(5);
    let noise: Vec<u8> = (0..50_000)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    fs::write(originals.join("noise"), noise).unwrap();
    shell(
        originals,
        "cp \"$(command -v ls)\" program
        library=$(ldd program | sed -n 's/.* => \\(.*\\/libc\\.so\\.6\\).*/\\1/p'); cp \"$library\" library.so",
    );
}

#[test]
fn locks_are_taken_as_on_any_file_that_is_open_for_reading() {
    shown().python(
        "
for name in ['x', 'noise']:
    one, other = os.open(name, os.O_RDONLY), os.open(name, os.O_RDONLY)
    fcntl.flock(one, fcntl.LOCK_SH); fcntl.flock(other, fcntl.LOCK_SH); fcntl.flock(other, fcntl.LOCK_UN)
    fcntl.flock(one, fcntl.LOCK_EX)
    assert refused(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB) == 'EAGAIN'
    assert subprocess.run(['flock', '-n', name, 'true']).returncode == 1
    fcntl.flock(one, fcntl.LOCK_UN)
    assert subprocess.run(['flock', '-n', name, 'true']).returncode == 0

    # POSIX locks: those for reading are given; those for writing take a descriptor that can be written.
    fcntl.lockf(one, fcntl.LOCK_SH, 100, 10)
    assert refused(fcntl.lockf, one, fcntl.LOCK_EX | fcntl.LOCK_NB) == 'EBADF'
    F_OFD_GETLK, F_OFD_SETLK = 36, 37
    lock = lambda kind: struct.pack('hhqqi4x', kind, os.SEEK_SET, 0, 50, 0)
    fcntl.fcntl(one, F_OFD_SETLK, lock(fcntl.F_RDLCK))
    assert refused(fcntl.fcntl, one, F_OFD_SETLK, lock(fcntl.F_WRLCK)) == 'EBADF'
    held = struct.unpack('hhqqi4x', fcntl.fcntl(other, F_OFD_GETLK, lock(fcntl.F_WRLCK)))
    assert held[0] == fcntl.F_RDLCK, held
    fcntl.fcntl(one, F_OFD_SETLK, lock(fcntl.F_UNLCK))

    fcntl.fcntl(one, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    assert fcntl.fcntl(one, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    fcntl.fcntl(one, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    # All of them are gone with who held them.
    os.close(one)
    free = struct.unpack('hhqqi4x', fcntl.fcntl(other, F_OFD_GETLK, lock(fcntl.F_WRLCK)))
    assert free[0] == fcntl.F_UNLCK, free
",
    );
}

#[test]
fn splice_tee_and_sendfile_move_the_original_bytes() {
    shown().python(
        "
for name in ['x', 'noise']:
    bytes = original(name)
    file = os.open(name, os.O_RDONLY)
    out, into = os.pipe()
    for offset in [0, 12345, 131072 - 7, len(bytes) - 40000]:
        assert os.splice(file, into, 60000, offset_src=offset) == len(bytes[offset:offset + 60000])
        copy_out, copy_into = os.pipe()
        teed = libc.tee(out, copy_into, ctypes.c_size_t(4096), 0)
        assert teed > 0 and os.read(copy_out, teed) == bytes[offset:offset + teed]
        assert os.read(out, 60000) == bytes[offset:offset + 60000]
    receiver, sender = socket.socketpair()
    for offset in [0, 99999, len(bytes) - 10]:
        sent = os.sendfile(sender.fileno(), file, offset, 50000)
        assert sent == len(bytes[offset:offset + 50000])
        assert receiver.recv(sent, socket.MSG_WAITALL) == bytes[offset:offset + 50000]
    # From file to file, as much as there is.
    target = os.memfd_create('target')
    offset = 0
    while sent := os.sendfile(target, file, offset, 1 << 30): offset += sent
    assert offset == len(bytes) and os.pread(target, len(bytes), 0) == bytes

# Mapped pages can be given to a pipe.
file = os.open('x', os.O_RDONLY)
mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
given = libc.vmsplice(into, struct.pack('PN', address + 8192, 16384), ctypes.c_size_t(1), 0)
assert given == 16384 and os.read(out, given) == original('x')[8192:8192 + 16384]
",
    );
}

#[test]
fn copy_file_range_and_reflinks_are_refused_and_cp_copies_all_the_same() {
    let shown = shown();
    let here = shown.elsewhere();
    shown.python(&format!(
        "
import shutil
for directory in ['{}', '/dev/shm']:
    target = os.open(directory, os.O_RDWR | os.O_TMPFILE)
    for name in ['x', 'noise']:
        file = os.open(name, os.O_RDONLY)
        assert refused(os.copy_file_range, file, target, 1 << 20) == 'EXDEV'
        FICLONE = 0x40049409
        assert refused(fcntl.ioctl, target, FICLONE, file) in ('EXDEV', 'EOPNOTSUPP', 'EINVAL')
",
        here.display()
    ));
    for (how, name) in [("auto", "x"), ("auto", "noise"), ("never", "x")] {
        let to = here.join("copy");
        shown.shell(&format!(
            "cp --reflink={how} {name} {0}; cmp {name} {0}; python3 -c 'import shutil; shutil.copyfile(\"{name}\", \"{0}\")'; cmp {1} {0}",
            to.display(),
            shown.original(name).display()
        ));
    }
    let refused = Command::new("cp")
        .arg("--reflink=always")
        .args([shown.path("x"), here.join("reflink")])
        .output()
        .unwrap();
    assert!(!refused.status.success());
}

#[test]
fn maps_are_private_shared_and_executable_but_shared_ones_cannot_be_written() {
    let shown = shown();
    shown.mounted.drop_caches();
    shown.python(
        "
for name in ['x', 'noise']:
    bytes = original(name)
    file = os.open(name, os.O_RDONLY)
    for flags in [mmap.MAP_SHARED, mmap.MAP_PRIVATE, mmap.MAP_SHARED | mmap.MAP_POPULATE]:
        with mmap.mmap(file, 0, flags=flags, prot=mmap.PROT_READ) as mapped: assert mapped[:] == bytes
    assert refused(mmap.mmap, file, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE) == 'EACCES'
    with mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mine:
        mine[5000:5004] = b'mine'
        assert mine[:] == bytes[:5000] + b'mine' + bytes[5004:]
        assert os.pread(file, 10, 5000) == bytes[5000:5010]
        address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mine)))
        assert libc.mlock(address, ctypes.c_size_t(65536)) == 0
        resident = (ctypes.c_ubyte * 16)()
        assert libc.mincore(address, ctypes.c_size_t(65536), resident) == 0
        assert all(page & 1 for page in resident)
        del address

    # Every piece of advice about maps that there is for files. Only what was private and written is lost by some of it.
    with mmap.mmap(file, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as mapped:
        MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ = 20, 21, 22
        for advice in [mmap.MADV_NORMAL, mmap.MADV_RANDOM, mmap.MADV_SEQUENTIAL, mmap.MADV_WILLNEED, mmap.MADV_DONTNEED,
                mmap.MADV_DONTFORK, mmap.MADV_DODUMP, MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ]:
            mapped.madvise(advice)
            assert mapped[131000:140000] == bytes[131000:140000], advice
        MADV_REMOVE = 9
        assert refused(mapped.madvise, MADV_REMOVE) == 'EACCES'

# Executed from a map: a library. (A program: tests/programs.rs.)
library = ctypes.CDLL('./library.so', mode=os.RTLD_NOW | os.RTLD_LOCAL)
assert os.path.realpath('library.so') in open('/proc/self/maps').read()
assert library.abs(-42) == 42
executable = mmap.mmap(os.open('x', os.O_RDONLY), 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
assert executable[:] == original('x')[:8192]
",
    );
}

#[test]
fn advice_is_taken_and_reads_without_waiting_are_refused() {
    let shown = shown();
    shown.python(
        "
for name in ['x', 'noise']:
    bytes = original(name)
    file = os.open(name, os.O_RDONLY)
    def resident():
        with mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            pages = (ctypes.c_ubyte * -(-len(bytes) // 4096))()
            address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mapped)))
            assert libc.mincore(address, ctypes.c_size_t(len(bytes)), pages) == 0
            return sum(page & 1 for page in pages)
    for advice in [os.POSIX_FADV_NORMAL, os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_RANDOM, os.POSIX_FADV_NOREUSE]:
        os.posix_fadvise(file, 0, 0, advice)
        assert os.pread(file, 9000, 131000) == bytes[131000:140000]
    if name == 'x':
        # What is asked for ahead comes, and what is given up goes.
        for ask in [lambda: os.posix_fadvise(file, 0, 1 << 20, os.POSIX_FADV_WILLNEED), lambda: libc.readahead(file, ctypes.c_long(0), ctypes.c_size_t(1 << 20))]:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            before = resident()
            ask()
            give_up = time.monotonic() + 20
            while resident() < before + 16:
                assert time.monotonic() < give_up, 'nothing was read ahead'
                time.sleep(0.01)

    into = bytearray(100000)
    pieces = [memoryview(into)[:1], memoryview(into)[1:50000], memoryview(into)[50000:]]
    assert os.preadv(file, pieces, 77777) == 100000 and into == bytes[77777:177777]
# FUSE knows no reads that never wait: what tries them first goes on with others.
file = os.open('x', os.O_RDONLY)
assert refused(os.preadv, file, [bytearray(10)], 0, os.RWF_NOWAIT) in ('EOPNOTSUPP', 'ENOTSUP')
",
    );
}

#[test]
fn direct_reads_need_no_alignment_of_packed_files_and_the_disks_of_plain_ones() {
    shown().python(
        "
bytes = original('x')
file = os.open('x', os.O_RDONLY | os.O_DIRECT)
for offset, length in [(0, 4096), (1, 1), (513, 100000), (131072 - 3, 7), (len(bytes) - 5, 100), (len(bytes), 10), (3, 3 << 20)]:
    assert os.pread(file, length, offset) == bytes[offset:offset + length], (offset, length)
aligned = mmap.mmap(-1, 1 << 16)
bytes = original('noise')
file = os.open('noise', os.O_RDONLY | os.O_DIRECT)
for offset in [0, 4096, 65536]:
    read = os.preadv(file, [aligned], offset)
    assert aligned[:read] == bytes[offset:offset + read] and read == 65536
read = os.preadv(file, [aligned], len(bytes) // 4096 * 4096)
assert read == len(bytes) % 4096
",
    );
}

#[test]
fn what_else_is_asked_of_a_descriptor_is_answered() {
    let shown = shown();
    shown.python(
        "
file = os.open('x', os.O_RDONLY | os.O_NOATIME)
directory = os.open('.', os.O_RDONLY)
# Always ready, as files are.
poll = select.poll(); poll.register(file, select.POLLIN)
assert poll.poll(0) == [(file, select.POLLIN)]
assert select.select([file], [], [], 0)[0] == [file]
epoll = select.epoll(); epoll.register(file, select.EPOLLIN)
assert epoll.poll(0) == [(file, select.EPOLLIN)]
# Nothing is to be written.
os.fsync(file); os.fdatasync(file); os.fsync(directory); assert libc.syncfs(file) == 0
FIONREAD = 0x541b
os.lseek(file, 100, os.SEEK_SET)
assert struct.unpack('i', fcntl.ioctl(file, FIONREAD, bytes(4)))[0] == len(original('x')) - 100
# No flags, no extents, no encryption: said so.
FS_IOC_GETFLAGS, FS_IOC_FIEMAP = 0x80086601, 0xc020660b
assert refused(fcntl.ioctl, file, FS_IOC_GETFLAGS, bytes(8)) == 'ENOTTY'
assert refused(fcntl.ioctl, file, FS_IOC_FIEMAP, struct.pack('QQIIII', 0, 1 << 40, 0, 0, 0, 0)) in ('EOPNOTSUPP', 'ENOTSUP')
again = os.open(f'/proc/self/fd/{os.open(\"x\", os.O_PATH)}', os.O_RDONLY)
assert os.read(again, 100) == original('x')[:100]
assert os.readlink(f'/proc/self/fd/{file}') == os.path.realpath('x')
# Sent to another process, and read there.
receiver, sender = socket.socketpair()
if os.fork() == 0:
    fds = socket.recv_fds(receiver, 1, 1)[1]
    os._exit(0 if os.pread(fds[0], 9, 200000) == original('x')[200000:200009] else 1)
socket.send_fds(sender, [b'x'], [file])
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
",
    );
    // A birth time is not told; all else is what it is.
    assert_eq!(
        shown.shell("stat -c '%W %s %F' x"),
        format!("0 {SIZE} regular file\n")
    );
}

/// Gives a file's handle.
const HANDLE_OF: &str = "
def handle_of(name):
    handle, mount = ctypes.create_string_buffer(8 + 128), ctypes.c_int()
    struct.pack_into('I', handle, 0, 128)
    assert libc.name_to_handle_at(-100, name.encode(), handle, ctypes.byref(mount), 0) == 0, ctypes.get_errno()
    return handle";

#[test]
fn a_file_handle_finds_its_file_again_until_that_is_gone() {
    let shown = Shown::made(make, &["--ttl", "0"]);
    shown.python(&format!(
        "{HANDLE_OF}
directory = os.open('.', os.O_RDONLY)
x, noise = handle_of('x'), handle_of('noise')
for name, handle in [('x', x), ('noise', noise)]:
    file = libc.open_by_handle_at(directory, handle, os.O_RDONLY)
    assert file >= 0, errno.errorcode[ctypes.get_errno()]
    assert os.pread(file, 100, 131000) == original(name)[131000:131100]
    os.close(file)
# What the kernel has forgotten is not found again: no NFS server can do with that.
open('/proc/sys/vm/drop_caches', 'w').write('2')
file = libc.open_by_handle_at(directory, x, os.O_RDONLY)
if file >= 0: os.close(file)
else: assert errno.errorcode[ctypes.get_errno()] == 'ESTALE', errno.errorcode[ctypes.get_errno()]
os.unlink('{}')
assert refused(os.stat, 'x') == 'ENOENT'
assert libc.open_by_handle_at(directory, x, os.O_RDONLY) == -1
assert errno.errorcode[ctypes.get_errno()] == 'ESTALE', errno.errorcode[ctypes.get_errno()]
",
        shown.packed("x.warp").display()
    ));
}

#[test]
fn a_file_handle_does_not_open_another_file_that_got_the_inode_number_of_its_own() {
    let shown = Shown::made(make, &["--ttl", "0"]);
    let said = shown.python(&format!(
        "{HANDLE_OF}
source = '{}'
def made(name):
    open(source + name, 'w').close()
    return os.stat(source + name).st_ino
number = made('removed')
handle = handle_of('removed')
os.unlink(source + 'removed')
assert refused(os.stat, 'removed') == 'ENOENT'
# Most file systems give a number that has become free to one of the next files.
reused = next((name for name in map(str, range(200)) if made(name) == number), None)
if reused is not None:
    # In the mount it has that too when the kernel has forgotten the file before.
    deadline = time.monotonic() + 20
    while os.stat(reused).st_ino != number:
        assert time.monotonic() < deadline, 'the kernel forgets nothing'
        open('/proc/sys/vm/drop_caches', 'w').write('2')
        time.sleep(0.01)
    directory = os.open('.', os.O_RDONLY)
    assert libc.open_by_handle_at(directory, handle, os.O_RDONLY) == -1
    assert errno.errorcode[ctypes.get_errno()] == 'ESTALE', errno.errorcode[ctypes.get_errno()]
    assert libc.open_by_handle_at(directory, handle_of(reused), os.O_RDONLY) >= 0
else: print('none')
",
        shown.packed("").display()
    ));
    if said == "none\n" {
        common::left_out("no inode number is given again in the temporary directory");
    }
}

#[test]
fn watches_tell_what_is_done_in_the_mount_and_not_what_changes_in_the_source() {
    let shown = Shown::made(make, &["--ttl", "0"]);
    shown.python(&format!(
        "
source = '{}/'
IN_ACCESS, IN_OPEN, IN_CLOSE_NOWRITE = 0x1, 0x20, 0x10
watch = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(watch, b'.', 0xfff) > 0 and libc.inotify_add_watch(watch, b'x', 0xfff) > 0
def events():
    time.sleep(0.1)
    try: told = os.read(watch, 1 << 16)
    except BlockingIOError: return set()
    masks = set()
    while told:
        _, mask, _, length = struct.unpack('iIII', told[:16])
        masks.add(mask & 0xfff); told = told[16 + length:]
    return masks
assert events() == set()
assert open('x', 'rb').read(10) == original('x')[:10]
assert events() == {{IN_ACCESS, IN_OPEN, IN_CLOSE_NOWRITE}}

# The source changes: nothing is told, and whoever looks sees it.
os.rename(source + 'x.warp', source + 'y.warp')
os.unlink(source + 'noise')
open(source + 'new', 'w').write('new')
assert events() == set()
assert sorted(os.listdir('.')) == ['library.so', 'new', 'program', 'y']
assert open('y', 'rb').read() == original('x')
os.rename(source + 'y.warp', source + 'x.warp')
assert open('x', 'rb').read(10) == original('x')[:10]
events()
# The watch of the directory still works.
open('new', 'rb').read()
assert events() == {{IN_ACCESS, IN_OPEN, IN_CLOSE_NOWRITE}}

# fanotify: a mount can be watched, and who opens files be asked first; what names files by handles cannot.
FAN_NONBLOCK, FAN_CLASS_CONTENT, FAN_REPORT_FID = 2, 4, 0x200
FAN_MARK_ADD, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM, FAN_OPEN, FAN_OPEN_PERM = 1, 0x10, 0x100, 0x20, 0x10000
group = libc.fanotify_init(FAN_NONBLOCK, os.O_RDONLY)
assert libc.fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_MOUNT, ctypes.c_uint64(FAN_OPEN), -100, b'.') == 0
open('x', 'rb').read(1)
assert os.read(group, 4096)
group = libc.fanotify_init(FAN_REPORT_FID, 0)
assert libc.fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, ctypes.c_uint64(FAN_OPEN), -100, b'.') == -1
assert errno.errorcode[ctypes.get_errno()] == 'ENODEV'
",
        shown.packed("").display()
    ));
}

#[test]
fn tail_follows_a_plain_file_that_grows_in_the_source() {
    let shown = Shown::new("echo first > log", &["--ttl", "0"]);
    let mut tail = Command::new("tail")
        .args(["-n", "+1", "-s", "0.05", "-F", "log"])
        .current_dir(&shown.mounted.mount_point)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = tail.stdout.take().unwrap();
    let mut lines = || {
        let mut bytes = [0; 100];
        let read = out.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    };
    let first = lines();
    let mut log = File::options()
        .append(true)
        .open(shown.packed("log"))
        .unwrap();
    log.write_all(b"second\n").unwrap();
    // Should it not be told of, the test ends all the same: tail is ended.
    let id = tail.id();
    let (done, waited) = std::sync::mpsc::channel();
    let guard = std::thread::spawn(move || {
        if waited.recv_timeout(common::PATIENCE).is_err() {
            let process = rustix::process::Pid::from_raw(id as i32).unwrap();
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
    });
    let second = lines();
    done.send(()).unwrap();
    guard.join().unwrap();
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert_eq!((first.as_str(), second.as_str()), ("first\n", "second\n"));
}

#[test]
fn a_crashed_reader_leaves_no_lock() {
    let shown = shown();
    let mut holder = Command::new("flock")
        .args(["library.so", "sleep", "1000"])
        .current_dir(&shown.mounted.mount_point)
        .spawn()
        .unwrap();
    let taken = |expected: bool| {
        wait_until("the lock", || {
            let try_it = Command::new("flock")
                .args(["-n", "library.so", "true"])
                .current_dir(&shown.mounted.mount_point)
                .status();
            try_it.unwrap().success() != expected
        });
    };
    taken(true);
    // flock and the program it runs share the descriptor: both go.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id())).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    for child in children.split_whitespace() {
        let child = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
        rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    }
    taken(false);
}

/// Submits reads and waits for all of them; gives the results in the order of the reads.
#[allow(
    unsafe_code,
    reason = "the kernel writes to the buffers, which outlive the wait"
)]
fn submit(ring: &mut IoUring, reads: &[squeue::Entry]) -> Vec<i32> {
    for (number, read) in reads.iter().enumerate() {
        let read = read.clone().user_data(number as u64);
        // SAFETY: all are waited for below, while the callers own the buffers and the files.
        unsafe { ring.submission().push(&read).unwrap() };
    }
    ring.submit_and_wait(reads.len()).unwrap();
    let mut results = vec![i32::MIN; reads.len()];
    for done in ring.completion() {
        results[done.user_data() as usize] = done.result();
    }
    results
}

#[test]
fn io_uring_reads_also_directly_and_into_registered_buffers() {
    let shown = shown();
    let Ok(mut ring) = IoUring::new(32) else {
        common::left_out("io_uring is switched off");
        return;
    };
    const PIECE: usize = 100_000;
    for name in ["x", "noise"] {
        let bytes = fs::read(shown.original(name)).unwrap();
        for flags in [0, rustix::fs::OFlags::DIRECT.bits() as i32] {
            if name == "noise" && flags != 0 {
                // The disk's alignment: see the test of direct reads.
                continue;
            }
            let file = File::options()
                .read(true)
                .custom_flags(flags)
                .open(shown.path(name))
                .unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let mut random = Random(3);
            let mut buffers = vec![vec![0u8; PIECE]; 16];
            for _ in 0..4 {
                let offsets: Vec<u64> = (0..16)
                    .map(|_| random.below(bytes.len() as u64 + 1000))
                    .collect();
                let reads: Vec<_> = buffers
                    .iter_mut()
                    .zip(&offsets)
                    .map(|(buffer, &offset)| {
                        let descriptor = types::Fd(file.as_raw_fd());
                        opcode::Read::new(descriptor, buffer.as_mut_ptr(), PIECE as u32)
                            .offset(offset)
                            .build()
                    })
                    .collect();
                let results = submit(&mut ring, &reads);
                for ((buffer, &offset), &result) in buffers.iter().zip(&offsets).zip(&results) {
                    let rest = &bytes[bytes.len().min(offset as usize)..];
                    let expected = &rest[..rest.len().min(PIECE)];
                    assert_eq!(result, expected.len() as i32, "{name} at {offset}");
                    assert!(buffer[..expected.len()] == *expected, "{name} at {offset}");
                }
            }
        }
    }
}

#[test]
#[allow(
    unsafe_code,
    reason = "registered buffers are unregistered before they are freed"
)]
fn io_uring_reads_by_registered_files_into_registered_buffers() {
    let shown = shown();
    let Ok(mut ring) = IoUring::new(8) else {
        common::left_out("io_uring is switched off");
        return;
    };
    let bytes = fs::read(shown.original("x")).unwrap();
    let file = File::open(shown.path("x")).unwrap();
    let mut buffers = vec![vec![0u8; 65_536]; 8];
    let pointers: Vec<*mut u8> = buffers.iter_mut().map(Vec::as_mut_ptr).collect();
    let vectors: Vec<_> = buffers
        .iter_mut()
        .map(|buffer| std::io::IoSliceMut::new(buffer))
        .collect();
    // SAFETY: an `IoSliceMut` is laid out as the kernel's `iovec`, and the buffers stay where they are until they are
    // unregistered.
    unsafe {
        let vectors = std::slice::from_raw_parts(vectors.as_ptr().cast(), vectors.len());
        ring.submitter().register_buffers(vectors).unwrap();
    }
    ring.submitter()
        .register_files(&[file.as_raw_fd()])
        .unwrap();
    let offsets = [
        0, 1, 131_000, 131_072, 262_143, 1_000_000, 4_000_000, 4_990_000,
    ];
    let reads: Vec<_> = (0..8)
        .map(|number| {
            opcode::ReadFixed::new(types::Fixed(0), pointers[number], 65_536, number as u16)
                .offset(offsets[number])
                .build()
        })
        .collect();
    let results = submit(&mut ring, &reads);
    ring.submitter().unregister_buffers().unwrap();
    for ((buffer, offset), result) in buffers.iter().zip(offsets).zip(results) {
        let rest = &bytes[offset as usize..];
        let expected = &rest[..rest.len().min(65_536)];
        assert_eq!(result, expected.len() as i32, "at {offset}");
        assert!(buffer[..expected.len()] == *expected, "at {offset}");
    }
}
