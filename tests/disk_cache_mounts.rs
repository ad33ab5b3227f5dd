//! `--disk-cache`: what was read of a remote file is read from the disk by later mounts, whatever happens to them or to it,
//! and never a wrong byte. What the cache does by itself is tested beside it (src/disk_cache).
//!
//! `WARPFS_DISK_CACHE_KILLS=200` kills mounts so many times; without it, it is 5 times.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::remote::proxy::{Fault, Passed};
use common::remote::{Bucket, Site};
use common::{Mounted, Random, mixed, noise, packed, run, sample, wait_until, warpfs};

fn arguments(place: &Path) -> [&str; 4] {
    [
        "--disk-cache",
        place.to_str().unwrap(),
        "--disk-cache-size",
        "256M",
    ]
}

fn data_requests(passed: &[Passed]) -> Vec<&Passed> {
    let of_data = |passed: &&Passed| passed.method == "GET" && !passed.path.contains("list-type");
    passed.iter().filter(of_data).collect()
}

fn segments(place: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(place.join("warpfs-cache-1")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "segment"));
    files.sort();
    files
}

/// Reads at random places; a wrong byte ends the test.
fn read_at_random(file: &Path, original: &[u8], times: usize, seed: u64) {
    let file = File::open(file).unwrap();
    // How far the kernel reads ahead is a matter of time.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut random = Random(seed);
    for _ in 0..times {
        let offset = random.below(original.len() as u64) as usize;
        let length = (1 + random.below(20_000) as usize).min(original.len() - offset);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset as u64).unwrap();
        assert!(bytes == original[offset..offset + length], "at {offset}");
    }
}

#[test]
fn a_remount_with_a_warm_cache_makes_no_data_requests() {
    let original = sample(12 << 20, 1);
    for how in [
        &["--codec", "zstd", "--chunk-size", "128K"][..],
        &["--codec", "lz4", "--chunk-size", "64K"],
        // Decoded a piece at a time.
        &["--codec", "zstd", "--chunk-size", "4M"],
        &["--codec", "lz4", "--chunk-size", "8M"],
        &["--codec", "brotli", "--chunk-size", "2M"],
    ] {
        let bucket = Bucket::new();
        bucket.put("x.warp", &packed(&original, how));
        let place = tempfile::tempdir().unwrap();
        let mount = || bucket.mount("x.warp", &arguments(place.path()));
        let cold = mount();
        assert!(fs::read(cold.path("x")).unwrap() == original, "{how:?}");
        drop(cold);
        assert!(!data_requests(&bucket.proxy.take_passed()).is_empty());

        let warm = mount();
        assert!(fs::read(warm.path("x")).unwrap() == original, "{how:?}");
        let stats = warm.stats();
        drop(warm);
        let passed = bucket.proxy.take_passed();
        assert!(
            data_requests(&passed).is_empty(),
            "{how:?} {:?} {stats}",
            data_requests(&passed)
        );
        assert!(stats["disk_cache_hits"].as_u64().unwrap() > 10);
        assert_eq!(stats["disk_cache_errors"], 0);

        // What was read from front to back is there for whoever reads at random.
        let warm = mount();
        read_at_random(&warm.path("x"), &original, 100, 3);
        drop(warm);
        let passed = bucket.proxy.take_passed();
        assert!(data_requests(&passed).is_empty(), "{how:?} {passed:?}");
    }
}

#[test]
fn what_was_read_at_random_is_not_asked_for_again_from_a_web_server() {
    let original = sample(6 << 20, 2);
    let site = Site::new();
    site.put("x.warp", &packed(&original, &["--chunk-size", "64K"]));
    let place = tempfile::tempdir().unwrap();
    let arguments = [&arguments(place.path())[..], &["--prefetch", "off"]].concat();
    for warm in [false, true] {
        let mount = site.mount("x.warp", &arguments);
        read_at_random(&mount.path("x"), &original, 60, 5);
        drop(mount);
        let passed = site.proxy.take_passed();
        assert_eq!(data_requests(&passed).is_empty(), warm, "{passed:?}");
    }
}

#[test]
fn mounts_killed_while_they_fill_a_cache_leave_no_wrong_byte() {
    let kills = std::env::var("WARPFS_DISK_CACHE_KILLS");
    let kills: u64 = kills.map_or(5, |kills| kills.parse().unwrap());
    let original = sample(16 << 20, 4);
    let bucket = Bucket::new();
    let bytes = packed(&original, &["--chunk-size", "64K"]);
    bucket.put("x.warp", &bytes);
    let place = tempfile::tempdir().unwrap();
    let mut random = Random(kills);
    let (mut amid, mut hits) = (0, 0);
    for kill in 0..kills {
        // So slow that it is still read when the server is killed.
        bucket.proxy.set_rate(32 << 20);
        let mut mount = bucket.mount("x.warp", &arguments(place.path()));
        let file = mount.path("x");
        std::thread::scope(|scope| {
            // It fails when the server is gone.
            let reader = scope.spawn(|| fs::read(&file));
            std::thread::sleep(std::time::Duration::from_millis(random.below(60)));
            mount.server.kill().unwrap();
            mount.server.wait().unwrap();
            match reader.join().unwrap() {
                Ok(read) => assert!(read == original, "kill {kill}"),
                Err(_) => amid += 1,
            }
        });
        bucket.proxy.set_rate(0);
        drop(mount);
        let again = bucket.mount("x.warp", &arguments(place.path()));
        read_at_random(&again.path("x"), &original, 40, kill);
        hits += again.stats()["disk_cache_hits"].as_u64().unwrap();
        if kill % 5 == 4 {
            assert!(
                fs::read(again.path("x")).unwrap() == original,
                "kill {kill}"
            );
            drop(again);
            fs::remove_dir_all(place.path().join("warpfs-cache-1")).unwrap();
        }
    }
    assert!(amid > 0 && hits > 0, "{amid} amid a read, {hits} hits");
}

#[test]
fn damage_in_the_cache_costs_a_request_and_never_a_wrong_byte() {
    let original = sample(8 << 20, 6);
    let bucket = Bucket::new();
    bucket.put("x.warp", &packed(&original, &["--chunk-size", "64K"]));
    let place = tempfile::tempdir().unwrap();
    let mount = || bucket.mount("x.warp", &arguments(place.path()));
    assert!(fs::read(mount().path("x")).unwrap() == original);
    for segment in segments(place.path()) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(segment)
            .unwrap();
        let length = file.metadata().unwrap().len();
        for at in (0..length).step_by(150_001) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        }
    }
    bucket.proxy.take_passed();
    let damaged = mount();
    assert!(fs::read(damaged.path("x")).unwrap() == original);
    assert!(damaged.stats()["disk_cache_errors"].as_u64().unwrap() > 3);
    drop(damaged);
    assert!(!data_requests(&bucket.proxy.take_passed()).is_empty());
    // It has been mended by that.
    assert!(fs::read(mount().path("x")).unwrap() == original);
    assert!(data_requests(&bucket.proxy.take_passed()).is_empty());
}

#[test]
fn damage_on_the_way_does_not_stay_in_the_cache() {
    let original = sample(4 << 20, 7);
    let bucket = Bucket::new();
    bucket.put("x.warp", &packed(&original, &["--chunk-size", "64K"]));
    let place = tempfile::tempdir().unwrap();
    let arguments = [&arguments(place.path())[..], &["--prefetch", "off"]].concat();
    let mount = bucket.mount("x.warp", &arguments);
    let file = File::open(mount.path("x")).unwrap();
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bucket.proxy.always("x.warp", Fault::OtherBytes);
    assert!(file.read_exact_at(&mut bytes, 3 << 20).is_err());
    bucket.proxy.behave();
    file.read_exact_at(&mut bytes, 3 << 20).unwrap();
    assert!(bytes == original[3 << 20..][..4096]);
    drop((file, mount));

    // Neither do the first bytes of a chunk that is read a bit at a time.
    let large = &["--codec", "zstd", "--chunk-size", "2M"];
    bucket.put("large.warp", &packed(&original, large));
    let place = tempfile::tempdir().unwrap();
    let on_disk = [&self::arguments(place.path())[..], &["--prefetch", "off"]].concat();
    let mount = bucket.mount("large.warp", &on_disk);
    let file = File::open(mount.path("large")).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    bucket.proxy.always("large.warp", Fault::OtherBytes);
    assert!(file.read_exact_at(&mut bytes, 3 << 20).is_err());
    bucket.proxy.behave();
    file.read_exact_at(&mut bytes, 3 << 20).unwrap();
    assert!(bytes == original[3 << 20..][..4096]);
    drop((file, mount));

    // Neither does a header that was none.
    let place = tempfile::tempdir().unwrap();
    let mut command = bucket.command();
    let point = tempfile::tempdir().unwrap();
    bucket.proxy.always("x.warp", Fault::OtherBytes);
    let output = command
        .args(["mount", "-f", "--disk-cache"])
        .arg(place.path())
        .arg(bucket.url("x.warp"))
        .arg(point.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    bucket.proxy.behave();
    let mount = bucket.mount("x.warp", &self::arguments(place.path()));
    assert!(fs::read(mount.path("x")).unwrap() == original);
}

#[test]
fn an_object_that_was_replaced_is_read_anew() {
    let bucket = Bucket::new();
    let place = tempfile::tempdir().unwrap();
    for seed in 10..13 {
        let original = sample(1 << 20, seed);
        bucket.put("x.warp", &packed(&original, &[]));
        let mount = bucket.mount("x.warp", &arguments(place.path()));
        assert!(fs::read(mount.path("x")).unwrap() == original);
    }
}

#[test]
fn what_a_store_of_another_place_has_under_the_same_name_is_not_taken_for_it() {
    let place = tempfile::tempdir().unwrap();
    let etag = "0123456789abcdef0123456789abcdef";
    let originals = [1, 2].map(|seed| noise(1 << 20, seed));
    let packed = originals.each_ref().map(|original| packed(original, &[]));
    assert_eq!(packed[0].len(), packed[1].len());
    for (original, packed) in originals.iter().zip(&packed) {
        let bucket = Bucket::new();
        for (key, bytes) in [("x.warp", packed), ("plain", original)] {
            bucket.store.put_as(Bucket::NAME, key, bytes, etag);
        }
        let mount = bucket.mount("", &arguments(place.path()));
        for name in ["x", "plain"] {
            assert!(fs::read(mount.path(name)).unwrap() == *original, "{name}");
        }
    }
}

#[test]
fn several_mounts_use_one_cache_at_once() {
    let original = sample(8 << 20, 8);
    let bucket = Bucket::new();
    bucket.put("x.warp", &packed(&original, &["--chunk-size", "64K"]));
    let place = tempfile::tempdir().unwrap();
    let mounts: Vec<Mounted> = (0..3)
        .map(|_| bucket.mount("x.warp", &arguments(place.path())))
        .collect();
    std::thread::scope(|scope| {
        for mount in &mounts {
            scope.spawn(|| assert!(fs::read(mount.path("x")).unwrap() == original));
        }
    });
    drop(mounts);
    bucket.proxy.take_passed();
    let mount = bucket.mount("x.warp", &arguments(place.path()));
    assert!(fs::read(mount.path("x")).unwrap() == original);
    assert!(data_requests(&bucket.proxy.take_passed()).is_empty());
}

/// A server that stands still for as long as this is kept.
struct Stopped(rustix::process::Pid);

impl Stopped {
    fn of(mounted: &Mounted) -> Self {
        let server = rustix::process::Pid::from_child(&mounted.server);
        rustix::process::kill_process(server, rustix::process::Signal::STOP).unwrap();
        Self(server)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

#[test]
fn a_disk_that_hangs_holds_up_neither_the_network_nor_who_comes_later() {
    let [long, other] = [sample(24 << 20, 21), sample(2 << 20, 22)];
    let bucket = Bucket::new();
    bucket.put("long.warp", &packed(&long, &["--chunk-size", "64K"]));
    bucket.put("other.warp", &packed(&other, &["--chunk-size", "64K"]));
    // A cache on a disk that can be stopped: one that a mount shows.
    let own = tempfile::tempdir().unwrap();
    let (tree, result) = (own.path().join("tree"), own.path().join("packed"));
    fs::create_dir(&tree).unwrap();
    let filling = bucket.mount("", &arguments(&tree.join("cache")));
    assert!(fs::read(filling.path("other")).unwrap() == other);
    drop(filling);
    run([
        "pack".as_ref(),
        "-q".as_ref(),
        "-r".as_ref(),
        "-o".as_ref(),
        result.as_os_str(),
        tree.as_os_str(),
    ]);
    let disk = Mounted::new(&result, &[]);
    let mount = bucket.mount("", &arguments(&disk.path("cache")));
    assert!(fs::read(mount.path("other")).unwrap() == other);
    assert!(mount.stats()["disk_cache_hits"].as_u64().unwrap() > 10);

    // Not in this thread: where a read hangs, it could not be ended.
    let reading = |name: &str| {
        let path = mount.path(name);
        std::thread::spawn(move || fs::read(path).unwrap())
    };
    bucket.proxy.set_rate(1 << 20);
    let in_order = reading("long");
    std::thread::sleep(Duration::from_millis(500));
    mount.drop_caches();
    let stopped = Stopped::of(&disk);
    std::thread::sleep(Duration::from_millis(1500));
    bucket.proxy.set_rate(0);
    assert!(!in_order.is_finished());
    let start = Instant::now();
    let later = reading("other");
    wait_until("who comes later", || later.is_finished());
    assert!(later.join().unwrap() == other);
    // With one of the threads that drive the network in the disk's hands, it would be asked anew after a while.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    drop(stopped);
    wait_until("who has waited for the disk", || in_order.is_finished());
    assert!(in_order.join().unwrap() == long);
}

#[test]
fn what_cannot_be_a_disk_cache_is_refused_before_anything_is_mounted() {
    let bucket = Bucket::with_vectors(&["v2-zstd-blake3.warp"]);
    let own = tempfile::tempdir().unwrap();
    let point = own.path().join("point");
    fs::create_dir(&point).unwrap();
    let refusal = |source: &Path, arguments: &[&str]| {
        let mut command = bucket.command();
        command.arg("mount").args(arguments).arg(source).arg(&point);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    let open = own.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let url = bucket.url("v2-zstd-blake3.warp");
    let (code, said) = refusal(&url, &["--disk-cache", open.to_str().unwrap()]);
    assert!(
        code == Some(1) && said.contains("other users may write to it"),
        "{said}"
    );
    let (code, said) = refusal(&url, &["--disk-cache-size", "1G"]);
    assert!(
        code == Some(2) && said.contains("--disk-cache DIR"),
        "{said}"
    );
    let place = own.path().join("place");
    let words = format!("disk_cache={},disk_cache_size=1M", place.display());
    let (code, said) = refusal(&url, &["-o", &words]);
    assert!(code == Some(2) && said.contains("at least 16M"), "{said}");
    let (code, said) = refusal(own.path(), &["--disk-cache", place.to_str().unwrap()]);
    assert!(
        code == Some(1) && said.contains("on this machine"),
        "{said}"
    );

    let words = format!("disk_cache={},disk_cache_size=64M", place.display());
    let mount = bucket.mount("v2-zstd-blake3.warp", &["-o", &words]);
    assert_eq!(fs::read(mount.path("v2-zstd-blake3")).unwrap(), mixed());
    let report = warpfs().arg("stats").arg(&mount.mount_point).output();
    let report = String::from_utf8(report.unwrap().stdout).unwrap();
    assert!(report.contains("DISK CACHE"), "{report}");
    drop(mount);
    assert!(!segments(&place).is_empty());
}
