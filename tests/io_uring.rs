//! Promise: where the kernel offers it, a mount's requests come by io_uring, on the processor they are made on; else by read(2). What
//! is read is the same.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::place::Place;
use common::users::{FuseForAll, SOMEBODY, as_user, mount_as_somebody, place_of_somebody};
use common::{Mounted, Random, mixed, pack, policies, processors, sample, wait_until};
use rustix::fs::FlockOperation;
use rustix::thread::CpuSet;

/// Whether the administrator lets servers use io_uring; nothing where the kernel does not know it.
fn allowed() -> Option<bool> {
    let parameter = File::open("/sys/module/fuse/parameters/enable_uring").ok()?;
    // Whoever is mounting just now holds it.
    rustix::fs::flock(&parameter, FlockOperation::LockShared).unwrap();
    let mut value = [0];
    parameter.read_at(&mut value, 0).unwrap();
    Some(value == *b"Y")
}

/// Held by those tests in which a mount depends on the switch that does not hold it while it is made, or that wait to hold it.
static SWITCH: Mutex<()> = Mutex::new(());

/// How many of a server's threads have names that begin so.
fn threads(server: u32, beginning: &str) -> usize {
    let names = fs::read_dir(format!("/proc/{server}/task"))
        .unwrap()
        .filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with(beginning)).count()
}

/// A packed file in a directory of its own, and its original.
fn packed() -> (Place, Vec<u8>) {
    let place = Place::new();
    let original = sample(6 << 20, 7);
    let plain = place.own.path().join("x");
    fs::write(&plain, &original).unwrap();
    pack(
        &plain,
        &place.source().join("x.warp"),
        &["--codec", "lz4", "--chunk-size", "64K"],
    );
    (place, original)
}

fn stay_on(processor: usize) {
    let mut only = CpuSet::new();
    only.set(processor);
    rustix::thread::sched_setaffinity(None, &only).unwrap();
}

/// Reads pieces here and there from a thread that is kept on a processor, and compares them.
fn read_on(processor: usize, file: &Path, original: &[u8]) {
    stay_on(processor);
    let file = File::open(file).unwrap();
    let mut random = Random(processor as u64);
    let mut bytes = vec![0; 300_000];
    for _ in 0..200 {
        let offset = random.below(original.len() as u64);
        let length = (random.below(300_000) as usize).min(original.len() - offset as usize);
        file.read_exact_at(&mut bytes[..length], offset).unwrap();
        assert!(
            bytes[..length] == original[offset as usize..][..length],
            "at {offset}"
        );
    }
}

#[test]
fn roots_mount_has_a_queue_for_each_processor_and_leaves_the_switch_as_it_was() {
    let _alone = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    let before = allowed();
    let (place, original) = packed();
    let mounted = Mounted::new(&place.source(), &[]);
    // A thread has its name when it runs for the first time.
    wait_until("the threads", || {
        let queues = threads(mounted.server.id(), "queue-");
        let by_read = threads(mounted.server.id(), "requests-");
        match before {
            Some(_) => queues >= processors().len() && by_read == 1,
            None => queues == 0 && by_read >= 2,
        }
    });
    assert_eq!(allowed(), before);
    let (file, processors) = (mounted.path("x"), processors());
    std::thread::scope(|scope| {
        for processor in processors.repeat(3) {
            let (file, original) = (&file, &original);
            scope.spawn(move || read_on(processor, file, original));
        }
    });
}

/// Whether who runs when nobody else wants to may be as before again.
fn may_come_back() -> bool {
    let tried = Command::new("chrt")
        .args(["--idle", "0", "chrt", "--batch", "0", "true"])
        .status();
    tried.unwrap().success()
}

const SCHED_BATCH: u32 = 3;
const SCHED_IDLE: u32 = 5;

/// `ls -lR` was moved to another, halted, processor by three of four answers, and took twice as long for it.
#[test]
fn who_is_moved_by_each_answer_has_his_processor_to_himself_at_once() {
    let _alone = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ours = processors().into_iter().cycle();
    let (first, second) = (ours.next(), ours.next());
    if allowed().is_none() || !may_come_back() || first == second {
        common::left_out("threads may not change how they are scheduled, or nobody can be moved");
        return;
    }
    let (place, original) = packed();
    let mounted = Mounted::new(&place.source(), &[]);
    let server = mounted.server.id();
    let path = mounted.path("x");
    let mut random = Random(5);
    let mut bytes = [0; 4096];
    let mut ask = move || {
        stay_on(ours.next().unwrap());
        // The kernel asks for it anew each time.
        let asked = rustix::fs::getxattr(&path, "user.none", &mut [0_u8; 8]);
        assert_eq!(asked, Err(rustix::io::Errno::NODATA));
        let somebody_is_aside = policies(server).contains(&SCHED_IDLE);
        let offset = random.below((original.len() - bytes.len()) as u64);
        let file = File::open(&path).unwrap();
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert!(bytes == original[offset as usize..][..bytes.len()]);
        somebody_is_aside
    };
    // A thread of its own is moved.
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| {
            wait_until("somebody who steps aside", &mut ask);
            for _ in 0..500 {
                ask();
            }
        });
        asks.join().unwrap();
    });
    let all_back = BTreeSet::from([SCHED_BATCH]);
    wait_until("all to be back", || policies(server) == all_back);
}

#[test]
fn an_ordinary_users_mount_takes_requests_by_read_where_the_switch_is_off() {
    let _alone = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    if allowed() == Some(true) {
        common::left_out("io_uring is switched on");
        return;
    }
    let _all = FuseForAll::new(false);
    let (place, program) = place_of_somebody();
    let output = mount_as_somebody(&place, &program, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let [server] = place.servers()[..] else {
        panic!("{:?}", place.servers());
    };
    let server = server.unsigned_abs();
    wait_until("the threads", || threads(server, "requests-") >= 2);
    assert_eq!(threads(server, "queue-"), 0);
    let file = place.mount_point().join("x");
    let read = as_user(SOMEBODY, &["cat".as_ref(), file.as_os_str()]);
    assert!(read.stdout == mixed());
}

/// Ends what goes on for as long as this is held.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The switch, to be turned; `None`, which is said, where there is none.
fn switch() -> Option<File> {
    let path = "/sys/module/fuse/parameters/enable_uring";
    let switch = File::options().read(true).write(true).open(path);
    if switch.is_err() {
        common::left_out("the kernel has no io_uring for FUSE that could be switched on");
    }
    switch.ok()
}

/// Turns the switch on and off again and again, as root's mounts do.
fn flip(parameter: &File, until: &AtomicBool) {
    while !until.load(Ordering::Relaxed) {
        rustix::fs::flock(parameter, FlockOperation::LockExclusive).unwrap();
        let mut before = [0];
        parameter.read_at(&mut before, 0).unwrap();
        parameter.write_all_at(b"Y", 0).unwrap();
        std::thread::sleep(Duration::from_micros(500));
        parameter.write_all_at(&before, 0).unwrap();
        rustix::fs::flock(parameter, FlockOperation::Unlock).unwrap();
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The kernel offered io_uring to an ordinary user's mount while one of root's was made, and when it was answered it was not to be
/// used any more. Such a mount was there for a moment, and gone.
#[test]
fn a_users_mount_that_is_made_at_the_same_time_as_roots_stays() {
    let _alone = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(parameter) = switch() else {
        return;
    };
    let _all = FuseForAll::new(false);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _until = Until(&ended);
        scope.spawn(|| flip(&parameter, &ended));
        for _ in 0..40 {
            let (place, program) = place_of_somebody();
            let output = mount_as_somebody(&place, &program, &[]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let file = place.mount_point().join("x");
            let read = as_user(SOMEBODY, &["cat".as_ref(), file.as_os_str()]);
            let said = String::from_utf8_lossy(&read.stderr);
            assert!(read.stdout == mixed(), "{said}");
        }
    });
}

/// The switch turned on, and put back when this is dropped.
struct SwitchedOn<'a>(&'a File, [u8; 1]);

impl<'a> SwitchedOn<'a> {
    fn new(parameter: &'a File) -> Self {
        let mut before = [0];
        parameter.read_at(&mut before, 0).unwrap();
        parameter.write_all_at(b"Y", 0).unwrap();
        Self(parameter, before)
    }
}

impl Drop for SwitchedOn<'_> {
    fn drop(&mut self) {
        self.0.write_all_at(&self.1, 0).unwrap();
    }
}

/// A mount that could not hold the switch took the kernel's offer all the same, and was gone when the switch was turned off before
/// its answer.
#[test]
fn a_mount_that_cannot_hold_the_switch_takes_requests_by_read() {
    let _alone = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(parameter) = switch() else {
        return;
    };
    rustix::fs::flock(&parameter, FlockOperation::LockExclusive).unwrap();
    let (place, original) = packed();
    let switched_on = SwitchedOn::new(&parameter);
    let mounted = Mounted::new(&place.source(), &[]);
    drop(switched_on);
    wait_until("the threads", || {
        threads(mounted.server.id(), "requests-") >= 2
    });
    assert_eq!(threads(mounted.server.id(), "queue-"), 0);
    assert!(fs::read(mounted.path("x")).unwrap() == original);
}
