//! Several processes: at once, and killed.
//!
//! The test binary starts itself again, with an environment variable that has one of the tests do a child's work.
//! `WARPFS_DISK_CACHE_KILLS=200` kills so many times; without it, it is 20 times.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::LEAST_SIZE;
use super::tests::{has, open, own, put, taken};

const WORK: &str = "WARPFS_DISK_CACHE_CHILD";
/// How many extents there are.
const EXTENTS: u64 = 3000;

/// An extent by its number: object, offset and length.
fn extent(number: u64) -> (u64, u64, usize) {
    let length = 100 + (number * 7919 % 60_000) as usize;
    (number % 37, number << 20, length)
}

/// A child that works in a directory; ended when dropped.
struct Worker(Child);

impl Worker {
    /// Starts a child and waits until it is at work: for so long, then it ends by itself.
    fn start(place: &Path, size: u64, seed: u64, duration: Duration) -> Self {
        let work = format!("{size} {seed} {} {}", duration.as_millis(), place.display());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("disk_cache::processes::the_work_of_a_child")
            .env(WORK, work)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.as_mut().unwrap());
        let at_work = |line: std::io::Result<String>| line.unwrap().ends_with("at work");
        assert!(output.lines().any(at_work));
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        let status = self.0.wait().unwrap();
        assert_eq!(status.code(), None, "it ended by itself: a wrong byte?");
    }

    fn ends_well(&mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts what it does not find, as a reader does, as fast as it can.
#[test]
fn the_work_of_a_child() {
    let Ok(work) = std::env::var(WORK) else {
        return;
    };
    let mut words = work.splitn(4, ' ');
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let (size, seed, duration) = (number(), number(), Duration::from_millis(number()));
    let place = PathBuf::from(words.next().unwrap());
    let cache = open(&place, size);
    println!("at work");
    let begin = Instant::now();
    let mut random = seed;
    while begin.elapsed() < duration {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (object, offset, length) = extent((random >> 33) % EXTENTS);
        if !has(&cache, object, offset, length) {
            put(&cache, object, offset, length);
        }
    }
}

/// How many extents are there; a wrong byte ends the test.
fn there(place: &Path, size: u64) -> usize {
    let cache = open(place, size);
    let there = (0..EXTENTS).filter(|&number| {
        let (object, offset, length) = extent(number);
        has(&cache, object, offset, length)
    });
    there.count()
}

#[test]
fn killed_at_any_moment_while_it_fills_it_has_no_wrong_byte() {
    let kills = std::env::var("WARPFS_DISK_CACHE_KILLS");
    let kills: u64 = kills.map_or(20, |kills| kills.parse().unwrap());
    let place = tempfile::tempdir().unwrap();
    let mut most = 0;
    for kill in 0..kills {
        // From empty and from full.
        if kill % 10 == 0 && kill > 0 {
            std::fs::remove_dir_all(own(place.path())).unwrap();
        }
        let mut worker = Worker::start(place.path(), LEAST_SIZE, kill, Duration::from_secs(60));
        std::thread::sleep(Duration::from_micros(kill * 7919 % 150_000));
        worker.kill();
        most = most.max(there(place.path(), LEAST_SIZE));
        assert!(taken(&own(place.path())) <= LEAST_SIZE);
    }
    println!("killed {kills} times, up to {most} of {EXTENTS} extents there");
    assert!(most > 200, "{most}");
}

#[test]
fn several_processes_share_a_cache_and_keep_within_its_size() {
    let place = tempfile::tempdir().unwrap();
    let duration = Duration::from_secs(3);
    let mut workers: Vec<_> = (0..4)
        .map(|seed| Worker::start(place.path(), LEAST_SIZE, seed, duration))
        .collect();
    let begin = Instant::now();
    let mut most = 0;
    while begin.elapsed() < duration {
        most = most.max(taken(&own(place.path())));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(workers.iter_mut().all(Worker::ends_well));
    assert!(most > LEAST_SIZE / 2 && most <= LEAST_SIZE, "{most}");
    let there = there(place.path(), LEAST_SIZE);
    assert!(there > 200, "{there}");
}

#[test]
fn one_of_several_processes_is_killed_and_the_others_go_on() {
    let place = tempfile::tempdir().unwrap();
    let mut other = Worker::start(place.path(), 32 << 20, 1, Duration::from_secs(3));
    for kill in 0..8 {
        let mut killed = Worker::start(place.path(), LEAST_SIZE, kill, Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20 + kill * 20));
        killed.kill();
    }
    assert!(other.ends_well());
    assert!(there(place.path(), 32 << 20) > 200);
}
