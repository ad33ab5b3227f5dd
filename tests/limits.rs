//! A server at the limits the system sets it: file descriptors, and the memory of its control group.
//!
//! Two thousand files are opened in turn, or as many as WARPFS_TEST_FILES says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use common::group::Group;
use common::users::{ANOTHER, as_user};
use common::{Mounted, Random, pack, sample, vector, wait_until};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MIB: usize = 1 << 20;
const DESCRIPTORS: u64 = 256;

/// `count` packed files, and as many plain ones.
fn many_files(directory: &Path, count: usize) {
    let packed = fs::read(vector("v2-lz4-none.warp")).unwrap();
    // Names, sizes and contents of their own.
    for number in 0..count {
        fs::write(directory.join(format!("{number}.warp")), &packed).unwrap();
        fs::write(
            directory.join(format!("plain-{number}")),
            number.to_string(),
        )
        .unwrap();
    }
}

/// This program, unlike the server, may have as many open as it wants to.
fn may_have_them_all_open() {
    let own = getrlimit(Resource::Nofile);
    let enough = Rlimit {
        current: Some(4096),
        ..own
    };
    setrlimit(Resource::Nofile, enough).unwrap();
}

fn mount(source: &Path) -> Mounted {
    let before = format!("ulimit -n {DESCRIPTORS}");
    Mounted::after(&before, source, &["--ttl", "600", "--cache-size", "8M"])
}

/// How many descriptors the server has open.
fn descriptors(mounted: &Mounted) -> usize {
    let directory = format!("/proc/{}/fd", mounted.server.id());
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn any_number_of_files_is_opened_in_turn_with_few_descriptors() {
    let count = std::env::var("WARPFS_TEST_FILES").map_or(2000, |count| count.parse().unwrap());
    let source = tempfile::tempdir().unwrap();
    many_files(source.path(), count / 2);
    let original = common::mixed();
    let mounted = mount(source.path());
    let before = descriptors(&mounted);
    let mut bytes = vec![0; 1000];
    for number in 0..count / 2 {
        let file = File::open(mounted.path(number.to_string())).unwrap();
        let at = number % 99_000;
        file.read_exact_at(&mut bytes, at as u64).unwrap();
        assert!(bytes == original[at..at + 1000], "{number}");
        let plain = fs::read(mounted.path(format!("plain-{number}"))).unwrap();
        assert!(plain == number.to_string().as_bytes(), "plain {number}");
    }
    wait_until("all to be closed", || mounted.stats()["open_files"] == 0);
    assert!(descriptors(&mounted) <= before + 2, "descriptors leak");
}

#[test]
fn one_open_file_too_many_is_an_explained_error_and_all_else_goes_on() {
    let source = tempfile::tempdir().unwrap();
    many_files(source.path(), 300);
    let original = common::mixed();
    may_have_them_all_open();
    let mounted = mount(source.path());
    for round in 0..2 {
        let mut open = Vec::new();
        let refused = loop {
            assert!(open.len() < DESCRIPTORS as usize, "nothing is refused");
            // Packed and plain by turns.
            let number = open.len();
            let name = match number % 2 {
                0 => number.to_string(),
                _ => format!("plain-{number}"),
            };
            match File::open(mounted.path(name)) {
                Ok(file) => open.push(file),
                Err(error) => break error,
            }
        };
        assert_eq!(
            refused.raw_os_error(),
            Some(Errno::NFILE.raw_os_error()),
            "{refused}"
        );
        assert!(open.len() > 150, "{} were let in", open.len());
        // It is told once, and what to do.
        let logged = mounted.logged();
        let told: Vec<_> = logged
            .lines()
            .filter(|line| line.contains("ERROR"))
            .collect();
        assert_eq!(told.len(), 1, "{logged}");
        assert!(
            told[0].contains("ulimit -n") && told[0].contains("256"),
            "{logged}"
        );

        // Who has files open reads on, and all can be looked at.
        let mut bytes = vec![0; 1000];
        for file in open.iter().step_by(2) {
            file.read_exact_at(&mut bytes, 70_000).unwrap();
            assert!(bytes == original[70_000..71_000]);
        }
        let listed = fs::read_dir(&mounted.mount_point).unwrap();
        let sizes = listed.map(|entry| fs::metadata(entry.unwrap().path()).unwrap().len());
        assert_eq!(sizes.filter(|&size| size == 100_003).count(), 300);
        assert_eq!(mounted.stats()["open_files"], open.len());

        // One closed, one opened.
        drop(open.pop());
        wait_until("room for one", || {
            File::open(mounted.path("299"))
                .map(|file| open.push(file))
                .is_ok()
        });
        drop(open);
        wait_until("all to be closed", || mounted.stats()["open_files"] == 0);
        assert!(
            fs::read(mounted.path("299")).unwrap() == original,
            "{round}"
        );
    }
}

#[test]
fn directories_held_open_take_no_file_from_the_server_without_a_word() {
    let source = tempfile::tempdir().unwrap();
    many_files(source.path(), 4);
    may_have_them_all_open();
    let mounted = mount(source.path());
    let mut open = Vec::new();
    let refused = loop {
        assert!(open.len() < DESCRIPTORS as usize, "nothing is refused");
        let listed = fs::read_dir(&mounted.mount_point).and_then(|mut listed| {
            listed.next().transpose()?;
            Ok(listed)
        });
        match listed {
            Ok(listed) => open.push(listed),
            Err(error) => break error,
        }
    };
    let too_many = Some(Errno::NFILE.raw_os_error());
    assert_eq!(refused.raw_os_error(), too_many, "{refused}");
    assert!(
        mounted.logged().contains("ulimit -n"),
        "{}",
        mounted.logged()
    );
    // What is there can be looked up, and what is open is listed to its end.
    assert_eq!(fs::metadata(mounted.path("3")).unwrap().len(), 100_003);
    for listed in &mut open {
        assert_eq!(listed.map(Result::unwrap).count(), 7);
    }
    drop(open);
    wait_until("room for a file", || File::open(mounted.path("3")).is_ok());
}

#[test]
fn a_user_who_holds_large_directories_open_gets_so_many_listings_and_others_get_theirs() {
    let own = tempfile::tempdir().unwrap();
    fs::set_permissions(own.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let [source, mount_point] = ["source", "mounted"].map(|name| own.path().join(name));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&mount_point).unwrap();
    // Their names take eight megabytes.
    for number in 0..30_000 {
        File::create(source.join(format!("{number:0250}"))).unwrap();
    }
    let mounted = Mounted::at(
        &source,
        &mount_point,
        &["--allow-other", "--cache-size", "8M"],
    );
    let list = || {
        let mut listed = fs::read_dir(&mounted.mount_point)?;
        listed.next().transpose()?;
        Ok::<_, io::Error>(listed)
    };
    let mut open = Vec::new();
    let refused = loop {
        assert!(open.len() < 30, "nothing is refused");
        match list() {
            Ok(listed) => open.push(listed),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(Errno::NOMEM.raw_os_error()));
    assert!(mounted.logged().contains("close some of them"));
    let names = mounted.stats()["memory_names"].as_u64().unwrap();
    assert!((64 << 20..90 << 20).contains(&names), "{names} bytes");
    let ls = ["ls".as_ref(), "-U".as_ref(), mount_point.as_os_str()];
    assert!(as_user(ANOTHER, &ls).status.success());
    // What is open is listed to its end.
    let count = open.pop().unwrap().map(Result::unwrap).count();
    assert_eq!(count, 29_999);
    drop(open);
    wait_until("room for a listing", || list().is_ok());
}

#[test]
fn a_server_in_a_small_control_group_reads_all_codecs_and_is_not_killed_for_want_of_memory() {
    const LIMIT: u64 = 64 << 20;
    let Some(group) = Group::new("limits", LIMIT) else {
        return;
    };
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let original = sample(24 * MIB, 5);
    let plain = work.path().join("original");
    fs::write(&plain, &original).unwrap();
    let kinds = [
        ("zstd", "1M"),
        ("lz4", "256K"),
        ("snappy", "512K"),
        ("brotli", "1M"),
        // Chunks that fit into no budget such a group has room for.
        ("zstd", "32M"),
        ("lz4", "32M"),
    ];
    for (number, (codec, chunk_size)) in kinds.iter().enumerate() {
        let packed = source.path().join(format!("{number}.warp"));
        let quality = ["--codec", codec, "--chunk-size", chunk_size];
        let quick: &[&str] = match *codec {
            "brotli" => &["--brotli-quality", "5"],
            _ => &[],
        };
        pack(&plain, &packed, &[&quality, quick].concat());
    }
    let enter = format!("echo $$ > {}/cgroup.procs", group.path.display());
    let mounted = Mounted::after(&enter, source.path(), &["--threads", "8"]);
    assert_eq!(mounted.stats()["memory_budget"], 8 << 20);
    std::thread::scope(|scope| {
        for reader in 0..12_u64 {
            let (mounted, original) = (&mounted, &original);
            scope.spawn(move || {
                let mut random = Random(reader);
                let file = File::open(mounted.path((reader % 6).to_string())).unwrap();
                let mut bytes = vec![0; 300_000];
                for round in 0..40 {
                    let room = (original.len() - bytes.len()) as u64;
                    // Some read on, some jump.
                    let at = match reader % 3 {
                        0 => round * bytes.len() as u64 % room,
                        _ => random.below(room),
                    };
                    file.read_exact_at(&mut bytes, at).unwrap();
                    let expected = &original[at as usize..][..bytes.len()];
                    assert!(bytes == expected, "file {} at {at}", reader % 6);
                }
            });
        }
    });
    let control = fs::read_to_string(group.path.join("memory.oom_control")).unwrap();
    assert!(control.contains("oom_kill 0"), "{control}");
    let processes = fs::read_to_string(group.path.join("cgroup.procs")).unwrap();
    assert_eq!(processes.trim(), mounted.server.id().to_string());
    let peak = fs::read_to_string(group.path.join("memory.max_usage_in_bytes")).unwrap();
    println!("at most {} of {LIMIT} bytes", peak.trim());
    assert_eq!(mounted.stats()["other_errors"], 0);
    drop(mounted);
}
