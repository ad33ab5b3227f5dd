//! What can go wrong between a reader and a store: it gets the right bytes late, or an error with the cause in the log, and never
//! other bytes. Each fault is one that a server, a network or somebody in between makes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::group::Group;
use common::remote::proxy::{Fault, Rule};
use common::remote::{ACCESS_KEY, Bucket, SECRET, Site};
use common::vectors::forget_pages;
use common::{Mounted, Running, is_mounted, pack, sample, wait_until, warpfs};

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// A store with one packed object and one plain one of the same contents, mounted.
struct Far {
    bucket: Bucket,
    mounted: Mounted,
    bytes: Vec<u8>,
    /// Where nobody has read yet.
    fresh: AtomicU64,
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    common::packed(bytes, &["--chunk-size", "64K"])
}

impl Far {
    fn new(timeout: &str) -> Self {
        let bytes = sample(12_000_000, 11);
        let bucket = Bucket::new();
        bucket.put("x.warp", &packed(&bytes));
        bucket.put("plain", &bytes);
        let arguments = ["--remote-timeout", timeout, "--prefetch", "off"];
        let mounted = bucket.mount("", &arguments);
        Self {
            bucket,
            mounted,
            bytes,
            fresh: AtomicU64::new(0),
        }
    }

    fn open(&self, name: &str) -> File {
        File::open(self.mounted.path(name)).unwrap()
    }

    /// A place that nobody has read before, nor anything near.
    fn fresh(&self) -> u64 {
        let at = self.fresh.fetch_add(700_000, Ordering::Relaxed) + 1_000_000;
        assert!(
            at + 4096 < self.bytes.len() as u64,
            "a larger file is needed"
        );
        at
    }

    /// Does something to every request for parts of objects.
    fn always(&self, fault: Fault) {
        for path in ["x.warp", "plain"] {
            self.bucket.proxy.always(path, fault.clone());
        }
    }

    /// Reads 4 KiB.
    fn read(&self, file: &File, at: u64) -> io::Result<()> {
        let mut bytes = [0; 4096];
        forget_pages(file);
        file.read_exact_at(&mut bytes, at)?;
        assert!(
            bytes == self.bytes[at as usize..][..4096],
            "other bytes at {at}"
        );
        Ok(())
    }

    /// Demands that a read fails as one whose server cannot be helped, that the log says why, and that it goes on when the server
    /// behaves.
    fn fails(&self, fault: Fault, why: &str) {
        for name in ["x", "plain"] {
            let (file, at) = (self.open(name), self.fresh());
            self.always(fault.clone());
            let error = self.read(&file, at).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(EIO), "{name}: {error}");
            let logged = self.mounted.logged();
            assert!(logged.contains(why), "{name}: {why}: {logged}");
            self.bucket.proxy.behave();
            self.read(&file, at).unwrap();
            self.read(&file, self.fresh()).unwrap();
        }
    }

    /// Demands that a read gets its bytes though this happens to the next requests.
    fn survives(&self, times: usize, fault: Fault) {
        for (name, path) in [("x", "x.warp"), ("plain", "plain")] {
            let (file, at) = (self.open(name), self.fresh());
            self.bucket.proxy.times(times, path, fault.clone());
            self.read(&file, at)
                .unwrap_or_else(|error| panic!("{name}: {fault:?}: {error}"));
            self.bucket.proxy.behave();
        }
    }
}

/// A web server, whose requests carry no signature that a proxy could break, with one packed file, and an open file of its mount.
fn web() -> (Site, Mounted, File, Vec<u8>) {
    let bytes = sample(2_000_000, 11);
    let site = Site::new();
    site.put("x.warp", &packed(&bytes));
    let mounted = site.mount("x.warp", &["--remote-timeout", "2", "--prefetch", "off"]);
    let file = File::open(mounted.path("x")).unwrap();
    (site, mounted, file, bytes)
}

#[test]
fn a_server_that_ignores_ranges_is_an_error_and_not_read_as_a_whole() {
    let (site, mounted, file, bytes) = web();
    site.proxy.always("x.warp", Fault::IgnoreRange);
    let mut read = [0; 4096];
    let error = file.read_exact_at(&mut read, 1_000_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
    let why = "sends the whole object when asked for a part";
    assert!(mounted.logged().contains(why), "{}", mounted.logged());
    // Not again and again either.
    let passed = site.proxy.take_passed();
    let whole = passed
        .iter()
        .filter(|request| request.status == 200 && request.method == "GET");
    assert!(whole.count() <= 4, "{passed:?}");
    site.proxy.behave();
    file.read_exact_at(&mut read, 1_000_000).unwrap();
    assert!(read == bytes[1_000_000..][..4096]);
}

#[test]
fn a_body_that_is_cut_short_is_asked_for_again_from_there() {
    let far = Far::new("2");
    far.survives(3, Fault::CutBody(1000));
    far.fails(Fault::CutBody(0), "given up after");
}

#[test]
fn other_bytes_of_the_right_length_are_never_served_as_the_original() {
    let far = Far::new("2");
    let file = far.open("x");
    far.always(Fault::OtherBytes);
    let error = far.read(&file, 400_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
    assert!(
        far.mounted.logged().contains("damaged"),
        "{}",
        far.mounted.logged()
    );
}

#[test]
fn another_part_than_was_asked_for_is_never_served() {
    let (site, mounted, file, bytes) = web();
    // It lies about it, so that only the digests tell.
    site.proxy.always("x.warp", Fault::Shift(64));
    let mut read = [0; 4096];
    let error = file.read_exact_at(&mut read, 1_000_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
    assert!(mounted.logged().contains("damaged"), "{}", mounted.logged());
    site.proxy.behave();
    file.read_exact_at(&mut read, 1_500_000).unwrap();
    assert!(read == bytes[1_500_000..][..4096]);
}

#[test]
fn another_etag_in_the_middle_is_stale() {
    let far = Far::new("2");
    for name in ["x", "plain"] {
        let file = far.open(name);
        far.always(Fault::OtherTag("\"another\""));
        let error = far.read(&file, 400_000).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::STALE.raw_os_error()),
            "{name}: {error}"
        );
        far.bucket.proxy.behave();
    }
}

#[test]
fn a_server_that_does_not_say_which_version_it_sends_is_refused_in_words() {
    let site = Site::new();
    let bytes = packed(&sample(500_000, 3));
    for (name, is_fit) in [("told/x.warp", true), ("untold/x.warp", false)] {
        site.put(name, &bytes);
        let verified = warpfs().arg("verify").arg(site.url(name)).output().unwrap();
        assert_eq!(verified.status.success(), is_fit, "{name}");
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let why = "neither ETag nor Last-Modified";
        assert_eq!(said.contains(why), !is_fit, "{said}");
    }
}

#[test]
fn what_may_only_be_read_and_not_asked_about_is_opened_and_read_all_the_same() {
    let bytes = sample(500_000, 3);
    let site = Site::new();
    site.put("x.warp", &packed(&bytes));
    let cache = tempfile::tempdir().unwrap();
    let on_disk = ["--disk-cache", cache.path().to_str().unwrap()];
    for (status, arguments) in [(403, &on_disk[..]), (403, &[]), (405, &[]), (501, &[])] {
        site.proxy.behave();
        // As with a URL that is signed for GET.
        site.proxy.rule(Rule {
            path: "x.warp",
            method: Some("HEAD"),
            times: usize::MAX,
            fault: Fault::Answer(status, "", Vec::new()),
        });
        let mounted = site.mount("x.warp", arguments);
        assert!(fs::read(mounted.path("x")).unwrap() == bytes, "{status}");
        // What was said is believed for a second.
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(fs::metadata(mounted.path("x")).unwrap().len(), 500_000);
        assert!(fs::read(mounted.path("x")).unwrap() == bytes, "{status}");
        assert_eq!(site.proxy.count("HEAD", ""), 1, "{status}");
        site.proxy.take_passed();
    }
    // What may not even be read is still told so.
    let mounted = site.mount("x.warp", &[]);
    site.proxy
        .always("x.warp", Fault::Answer(403, "", Vec::new()));
    let error = File::open(mounted.path("x")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn credentials_that_the_machine_does_not_have_are_no_missing_object() {
    let bucket = Bucket::new();
    let bytes = sample(2_000_000, 11);
    bucket.put("x.warp", &packed(&bytes));
    // The machine's service for roles.
    let machine = Site::new();
    let command = || {
        let mut command = bucket.command();
        command
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env(
                "AWS_METADATA_ENDPOINT",
                format!("http://{}", machine.proxy.address),
            );
        command
    };
    // They are over already, so that they are asked for with each request.
    let credentials = format!(
        "{{\"AccessKeyId\":\"{ACCESS_KEY}\",\"SecretAccessKey\":\"{SECRET}\",\"Token\":\"\",\
         \"Expiration\":\"2020-01-01T00:00:00Z\"}}"
    );
    let knows = || {
        let answer = |text: &str| Fault::Answer(200, "", text.into());
        machine.proxy.behave();
        machine.proxy.always("api/token", answer("token"));
        machine
            .proxy
            .always("credentials/role", answer(&credentials));
        machine.proxy.always("credentials/", answer("role"));
    };
    let knows_nothing = || {
        machine.proxy.behave();
        machine.proxy.always("", Fault::Answer(404, "", Vec::new()));
    };
    knows_nothing();
    let info = command().arg("info").arg(bucket.url("x.warp")).output();
    let said = String::from_utf8(info.unwrap().stderr).unwrap();
    assert!(said.contains("no credentials were found"), "{said}");

    knows();
    let arguments = ["--remote-timeout", "60", "--prefetch", "off"];
    let mounted = Mounted::by(command(), &bucket.url("x.warp"), &arguments);
    let file = File::open(mounted.path("x")).unwrap();
    let mut read = [0; 4096];
    file.read_exact_at(&mut read, 0).unwrap();
    knows_nothing();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| file.read_exact_at(&mut read, 1_000_000));
        let refused = || machine.proxy.count("PUT", "api/token") > 0;
        machine.proxy.take_passed();
        wait_until("a refusal", refused);
        knows();
        reader.join().unwrap().unwrap();
    });
    assert!(read == bytes[1_000_000..][..4096]);
    file.read_exact_at(&mut read, 1_500_000).unwrap();
}

#[test]
fn a_redirect_is_followed_and_a_ring_of_them_is_an_error() {
    let bytes = sample(500_000, 3);
    let site = Site::new();
    site.put("there/x.warp", &packed(&bytes));
    site.proxy
        .always("/here/x.warp", Fault::Redirect("/there/x.warp".to_owned()));
    let mounted = site.mount("here/x.warp", &["--remote-timeout", "2"]);
    assert!(fs::read(mounted.path("x")).unwrap() == bytes);
    site.proxy.behave();
    site.proxy
        .always("", Fault::Redirect("/here/x.warp".to_owned()));
    let error = File::open(mounted.path("x")).and_then(|file| {
        forget_pages(&file);
        file.read_exact_at(&mut [0; 4096], 0)
    });
    assert_eq!(error.unwrap_err().raw_os_error(), Some(EIO));
}

#[test]
fn a_server_that_throttles_is_left_alone_for_as_long_as_it_says() {
    let far = Far::new("20");
    let file = far.open("x");
    far.bucket.proxy.times(1, "x.warp", Fault::Throttle(2));
    let start = Instant::now();
    far.read(&file, 400_000).unwrap();
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    far.survives(2, Fault::Throttle(0));
    far.survives(3, Fault::Answer(500, "", Vec::new()));
    far.survives(3, Fault::Drop);
    let stats = far.mounted.stats();
    assert!(stats["remote_retries"].as_u64().unwrap() >= 8, "{stats}");
}

#[test]
fn a_server_that_throttles_for_longer_than_a_reader_waits_is_an_error_at_once() {
    let far = Far::new("2");
    let start = Instant::now();
    far.fails(Fault::Throttle(600), "503");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_server_that_never_answers_is_an_error_when_the_time_is_over() {
    let far = Far::new("2");
    let file = far.open("x");
    far.always(Fault::Hang);
    let start = Instant::now();
    let error = far.read(&file, 400_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(8),
        "{took:?}"
    );
    assert!(
        far.mounted.logged().contains("does not answer"),
        "{}",
        far.mounted.logged()
    );
    far.bucket.proxy.behave();
    far.read(&file, 400_000).unwrap();
}

/// For how many seconds the server is away: a few, or as many as the environment says, as in
/// `WARPFS_TEST_AWAY=60 cargo test --test remote_faults disappears`.
fn away() -> Duration {
    let seconds = std::env::var("WARPFS_TEST_AWAY").map_or(3, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

#[test]
fn a_server_that_disappears_and_comes_back_costs_its_readers_time_and_nothing_else() {
    let far = Far::new("120");
    let [packed, plain] = ["x", "plain"].map(|name| far.open(name));
    far.bucket.proxy.vanish();
    std::thread::scope(|scope| {
        let readers = [(&packed, 400_000), (&plain, 800_000)];
        let far = &far;
        let readers = readers.map(|(file, at)| scope.spawn(move || far.read(file, at)));
        std::thread::sleep(away());
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        far.bucket.proxy.come_back();
        for reader in readers {
            reader.join().unwrap().unwrap();
        }
    });
    // Listings and lookups as well.
    far.bucket.proxy.vanish();
    std::thread::scope(|scope| {
        std::thread::sleep(Duration::from_millis(1200));
        let names = scope.spawn(|| fs::read_dir(far.mounted.path("")).unwrap().count());
        std::thread::sleep(Duration::from_secs(1));
        far.bucket.proxy.come_back();
        assert_eq!(names.join().unwrap(), 2);
    });
}

#[test]
fn a_server_that_is_slow_is_waited_for_beyond_the_deadline_as_long_as_it_sends() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    let bytes = sample(2_000_000, 12);
    let plain = own.path().join("x");
    fs::write(&plain, &bytes).unwrap();
    // A chunk is a request, and takes about four seconds.
    pack(
        &plain,
        &own.path().join("x.warp"),
        &["--codec", "zstd", "--chunk-size", "1M"],
    );
    let packed = fs::read(own.path().join("x.warp")).unwrap();
    bucket.put("x.warp", &packed);
    let mounted = bucket.mount("", &["--remote-timeout", "2", "--prefetch", "off"]);
    let file = File::open(mounted.path("x")).unwrap();
    let rate = packed.len() as u64 / 8;
    bucket.proxy.set_rate(rate);
    let start = Instant::now();
    let mut part = [0; 4096];
    file.read_exact_at(&mut part, 4096).unwrap();
    assert!(part == bytes[4096..][..4096]);
    assert!(
        start.elapsed() > Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn one_whose_server_hangs_does_not_hold_up_others() {
    let far = Far::new("60");
    let [packed, plain] = ["x", "plain"].map(|name| far.open(name));
    far.bucket.proxy.rule(Rule {
        path: "x.warp",
        method: None,
        times: usize::MAX,
        fault: Fault::Hang,
    });
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let mut cat = Command::new("dd");
            cat.arg(format!("if={}", far.mounted.path("x").display()))
                .args(["bs=4k", "count=1", "skip=100", "of=/dev/null"]);
            cat.stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    far.read(&plain, 800_000).unwrap();
    assert_eq!(fs::read_dir(far.mounted.path("")).unwrap().count(), 2);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    drop(packed);
    far.bucket.proxy.vanish();
    drop(far);
    for mut process in waiting {
        let _ = process.kill();
        process.wait().unwrap();
    }
}

#[test]
fn a_reader_of_a_dead_server_can_be_interrupted() {
    let far = Far::new("120");
    let script = "exec 3<\"$0\"; echo open; read -r _; exec cat <&3 >/dev/null";
    let mut reader = Command::new("sh")
        .args(["-c", script])
        .arg(far.mounted.path("x"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(reader.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said, "open\n");
    far.always(Fault::Hang);
    reader.stdin.take().unwrap().write_all(b"\n").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(reader.try_wait().unwrap().is_none());
    // Not SIGINT, which is ignored by what a shell runs in the background.
    let end = rustix::process::Signal::TERM;
    rustix::process::kill_process(rustix::process::Pid::from_child(&reader), end).unwrap();
    wait_until("the end of the reader", || {
        reader.try_wait().unwrap().is_some()
    });
}

#[test]
fn who_looks_up_opens_or_lists_on_a_dead_server_can_be_killed() {
    let far = Far::new("120");
    fs::metadata(far.mounted.path("x")).unwrap();
    // What was said is believed for a second.
    std::thread::sleep(Duration::from_millis(1200));
    far.bucket.proxy.always("", Fault::Hang);
    let root = far.mounted.path("");
    let waiting = ["exec 3<x", "exec ls other", "exec ls"].map(|script| {
        Command::new("sh")
            .args(["-c", script])
            .current_dir(&root)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    });
    std::thread::sleep(Duration::from_millis(1500));
    for mut process in waiting {
        assert!(process.try_wait().unwrap().is_none());
        process.kill().unwrap();
        let start = Instant::now();
        wait_until("the end of who waits", || {
            process.try_wait().unwrap().is_some()
        });
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    // What they have begun is done when the server is there again, and taken back: nobody is told of it.
    far.bucket.proxy.behave();
    far.bucket.proxy.vanish();
    far.bucket.proxy.come_back();
    far.read(&far.open("x"), 1_000_000).unwrap();
    wait_until("the closing of all files", || {
        far.mounted.stats()["open_files"] == 0
    });
}

#[test]
fn a_signal_that_is_only_noticed_fails_nothing_on_a_server_that_answers() {
    let far = Far::new("120");
    far.bucket.proxy.set_delay(Duration::from_millis(500));
    let script = "$SIG{USR1} = sub { $noticed = 1 }; $| = 1; print 'ready';
        stat($ARGV[0]) or die $!; $noticed or die 'no signal'";
    let asking = Command::new("perl")
        .args(["-e", script])
        .arg(far.mounted.path("x"))
        .stdout(Stdio::piped())
        .spawn();
    let mut asking = Running(asking.unwrap());
    let said = asking.0.stdout.as_mut().unwrap();
    said.read_exact(&mut [0; 5]).unwrap();
    // From here on it sleeps only to wait for the server.
    let stat = format!("/proc/{}/stat", asking.0.id());
    wait_until("somebody who waits", || {
        let stat = fs::read_to_string(&stat).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with(['S', 'D'])
    });
    let signal = rustix::process::Signal::USR1;
    rustix::process::kill_process(rustix::process::Pid::from_child(&asking.0), signal).unwrap();
    assert!(asking.0.wait().unwrap().success());
}

#[test]
fn a_mount_that_is_given_no_more_threads_answers_all_the_same() {
    let Some(group) = Group::of_threads("remote") else {
        return;
    };
    let bucket = Bucket::new();
    let bytes = sample(2_000_000, 11);
    for name in ["first.warp", "a.warp", "b.warp", "c.warp", "d.warp"] {
        bucket.put(name, &packed(&bytes));
    }
    let mut command = Command::new("sh");
    let script = format!(
        "echo $$ > '{}/cgroup.procs' && exec \"$@\"",
        group.path.display()
    );
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_warpfs")]);
    bucket.lead(&mut command);
    let mounted = Mounted::by(command, &bucket.url(""), &["--threads", "2"]);
    let path = mounted.path("");
    // Not in this thread: where nobody is answered, it could not be ended.
    let reading = move |names: [&'static str; 4]| {
        names.map(|name| {
            let path = path.join(name);
            std::thread::spawn(move || fs::read(path).unwrap())
        })
    };
    assert!(fs::read(mounted.path("first")).unwrap() == bytes);
    // Threads that have had nothing to do for ten seconds end.
    std::thread::sleep(Duration::from_secs(11));
    group.give_no_threads();
    // More of them than there are threads that take requests.
    for reader in reading(["a", "b", "c", "d"]) {
        wait_until("a reader", || reader.is_finished());
        assert!(reader.join().unwrap() == bytes);
    }
    group.give_threads();
    bucket.put("a.warp", &packed(&bytes[1..]));
    assert!(fs::read(mounted.path("a")).unwrap() == bytes[1..]);
}

#[test]
fn a_mount_of_a_dead_server_is_unmounted_at_once() {
    let mut far = Far::new("120");
    let file = far.open("x");
    far.always(Fault::Hang);
    let waiting = Command::new("dd")
        .arg(format!("if={}", far.mounted.path("plain").display()))
        .args(["of=/dev/null", "bs=4k", "count=1"])
        .stderr(Stdio::null())
        .spawn();
    let mut waiting = waiting.unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(file);
    let start = Instant::now();
    let term = rustix::process::Signal::TERM;
    rustix::process::kill_process(rustix::process::Pid::from_child(&far.mounted.server), term)
        .unwrap();
    wait_until("the end of the server", || {
        far.mounted.server.try_wait().unwrap().is_some()
    });
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(!is_mounted(&far.mounted.mount_point));
    waiting.wait().unwrap();
}

#[test]
fn plain_files_that_are_held_open_and_not_read_on_leave_memory_to_others() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    let bytes = sample(40 << 20, 5);
    let plain = own.path().join("x");
    fs::write(&plain, &bytes).unwrap();
    pack(&plain, &own.path().join("x.warp"), &["--chunk-size", "4M"]);
    bucket.put("x.warp", &fs::read(own.path().join("x.warp")).unwrap());
    bucket.put("plain", &bytes);
    bucket.put("other", &bytes);
    let mounted = bucket.mount("", &["--cache-size", "24M"]);
    let held = ["plain", "other"].map(|name| {
        let file = File::open(mounted.path(name)).unwrap();
        let mut beginning = vec![0; 3 << 20];
        file.read_exact_at(&mut beginning, 0).unwrap();
        assert!(beginning == bytes[..3 << 20]);
        file
    });
    // What was asked for ahead is there.
    std::thread::sleep(Duration::from_millis(500));
    let path = mounted.path("x");
    let reading = std::thread::spawn(move || fs::read(path).unwrap());
    wait_until("the read of a packed file", || reading.is_finished());
    assert!(reading.join().unwrap() == bytes);
    // They are read on all the same.
    for file in held {
        let mut rest = vec![0; 37 << 20];
        file.read_exact_at(&mut rest, 3 << 20).unwrap();
        assert!(rest == bytes[3 << 20..]);
    }
}

#[test]
fn threads_that_have_waited_for_a_server_keep_no_memory() {
    const READERS: u64 = 100;
    const STEP: u64 = 1 << 20;
    let bucket = Bucket::new();
    let bytes = sample((READERS * STEP) as usize, 5);
    bucket.put("x.warp", &packed(&bytes));
    let arguments = ["--cache-size", "16M", "--prefetch", "off"];
    let mounted = bucket.mount("", &arguments);
    // So that requests are as long as they can be.
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let mut options = File::options();
    let file = options.read(true).custom_flags(direct);
    let file = file.open(mounted.path("x")).unwrap();
    let before = mounted.resident();
    bucket.proxy.set_delay(Duration::from_millis(300));
    std::thread::scope(|scope| {
        for number in 0..READERS {
            let (file, bytes) = (&file, &bytes);
            scope.spawn(move || {
                let mut room = vec![0; STEP as usize + 4096];
                let skip = room.as_ptr().align_offset(4096);
                let part = &mut room[skip..][..STEP as usize];
                file.read_exact_at(part, number * STEP).unwrap();
                assert!(part == &bytes[(number * STEP) as usize..][..STEP as usize]);
            });
        }
    });
    let more = mounted.resident().saturating_sub(before);
    assert!(more < 64 << 20, "{} MiB", more >> 20);
}
