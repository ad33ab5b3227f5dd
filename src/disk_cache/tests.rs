//! One process: what is kept, what is given up, what is refused, and what damage does.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::left_out::left_out;

#[path = "../../tests/common/disks.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other tests use other parts of it"
)]
mod disks;

pub(super) const MEMORY: u64 = 8 << 20;
/// How long to go without writing after an error, here.
const SOON: Duration = Duration::from_millis(100);

pub(super) fn open(place: &Path, size: u64) -> DiskCache {
    DiskCache::open_with(place, Some(size), MEMORY, Arc::default(), SOON).unwrap()
}

pub(super) fn key(number: u64) -> Key {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

/// The bytes of an object: everybody can tell what they have to be.
pub(super) fn bytes(object: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut random = object.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ offset ^ (length as u64) << 40;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(super) fn put(cache: &DiskCache, object: u64, offset: u64, length: usize) {
    cache.put(&key(object), offset, &bytes(object, offset, length));
}

/// Whether an extent is there; a wrong byte ends the test.
pub(super) fn has(cache: &DiskCache, object: u64, offset: u64, length: usize) -> bool {
    let mut buffer = vec![0x5a; length];
    let found = cache.get(&key(object), offset, &mut buffer);
    assert!(
        !found || buffer == bytes(object, offset, length),
        "a wrong byte in {object} at {offset}"
    );
    found
}

pub(super) fn own(place: &Path) -> PathBuf {
    place.join("warpfs-cache-1")
}

/// What everything beneath a directory takes on the disk, with the directory itself, in bytes.
pub(super) fn taken(directory: &Path) -> u64 {
    let of = |path: &Path| fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512);
    let files = fs::read_dir(directory).unwrap();
    let files: u64 = files.map(|file| of(&file.unwrap().path())).sum();
    files + of(directory)
}

fn segments(place: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(own(place)).unwrap();
    let mut segments: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|end| end == "segment"));
    segments.sort();
    segments
}

/// Until the disk is tried again.
fn wait_for(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it never comes");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_entry_is_exactly_what_was_put_and_survives_a_remount() {
    let place = tempfile::tempdir().unwrap();
    let cache = open(place.path(), LEAST_SIZE);
    assert!(!has(&cache, 1, 0, 1000));
    put(&cache, 1, 0, 1000);
    put(&cache, 1, 1000, 70_000);
    put(&cache, 2, 0, 1);
    cache.put(&key(3), 0, &[]);
    cache.flush();
    for cache in [cache, open(place.path(), LEAST_SIZE)] {
        assert!(has(&cache, 1, 0, 1000));
        assert!(has(&cache, 1, 1000, 70_000));
        assert!(has(&cache, 2, 0, 1));
        assert!(!has(&cache, 1, 0, 999));
        assert!(!has(&cache, 1, 1, 999));
        assert!(!has(&cache, 3, 0, 0));
        assert!(!has(&cache, 3, 0, 1000));
        assert_eq!(cache.shared.counters.disk_cache_bytes_read.get(), 71_001);
        assert_eq!(cache.shared.counters.disk_cache_hits.get(), 3);
        assert_eq!(cache.shared.counters.disk_cache_errors.get(), 0);
    }
    let cache = open(place.path(), LEAST_SIZE);
    assert!(cache.has(&key(1), &(0..1000)) && !cache.has(&key(1), &(0..999)));
    cache.forget(&key(1), &(0..1000));
    assert!(!has(&cache, 1, 0, 1000));
    put(&cache, 1, 0, 1000);
    cache.flush();
    assert!(has(&cache, 1, 0, 1000));
}

#[test]
fn what_is_forgotten_before_it_is_written_is_not_there_later() {
    let place = tempfile::tempdir().unwrap();
    let cache = open(place.path(), LEAST_SIZE);
    for number in 0..100 {
        put(&cache, number, 0, 60_000);
        if number % 3 == 0 {
            std::thread::sleep(Duration::from_micros(number * 10));
        }
        cache.forget(&key(number), &(0..60_000));
    }
    cache.flush();
    assert!((0..100).all(|number| !has(&cache, number, 0, 60_000)));
}

#[test]
fn what_is_queued_when_it_is_closed_is_written() {
    let place = tempfile::tempdir().unwrap();
    let cache = open(place.path(), LEAST_SIZE);
    for number in 0..50 {
        put(&cache, number, 0, 50_000);
    }
    drop(cache);
    let cache = open(place.path(), LEAST_SIZE);
    assert!((0..50).all(|number| has(&cache, number, 0, 50_000)));
}

#[test]
fn many_short_mounts_share_a_few_segments() {
    let place = tempfile::tempdir().unwrap();
    for number in 0..40 {
        put(&open(place.path(), LEAST_SIZE), number, 0, 1000);
    }
    let cache = open(place.path(), LEAST_SIZE);
    assert!((0..40).all(|number| has(&cache, number, 0, 1000)));
    assert!(segments(place.path()).len() <= 2);
}

#[test]
fn the_room_on_the_disk_is_never_exceeded_and_the_least_recently_used_goes() {
    let place = tempfile::tempdir().unwrap();
    let cache = open(place.path(), LEAST_SIZE);
    const LENGTH: usize = 40_000;
    // Four times what there is room for; the first hundred are used all the time.
    for number in 0..1600 {
        put(&cache, number, 7, LENGTH);
        if number % 100 == 0 {
            cache.flush();
            for used in 0..100 {
                has(&cache, used, 7, LENGTH);
            }
            cache.flush();
            assert!(taken(&own(place.path())) <= LEAST_SIZE);
        }
    }
    cache.flush();
    // A remount knows what was used.
    drop(cache);
    let cache = open(place.path(), LEAST_SIZE);
    let count = |range: std::ops::Range<u64>| {
        range
            .filter(|&number| has(&cache, number, 7, LENGTH))
            .count()
    };
    let (used, old, new) = (count(0..100), count(100..1100), count(1400..1600));
    // They were all put one behind the other: where nothing but what is in use would have to go, some of it goes.
    assert!(used >= 80, "{used} of 100 used ones");
    assert!(old <= 10, "{old} of 1000 old ones");
    assert!(new >= 195, "{new} of 200 new ones");
    assert!(taken(&own(place.path())) > LEAST_SIZE * 3 / 4);
    for number in 1600..1700 {
        put(&cache, number, 7, LENGTH);
    }
    cache.flush();
    assert!(count(0..100) >= 70);
    assert!(cache.shared.counters.disk_cache_evictions.get() > 0);
}

#[test]
fn a_remount_with_less_room_gives_up_what_is_too_much_and_one_with_more_keeps_all() {
    let place = tempfile::tempdir().unwrap();
    let fill = |cache: &DiskCache, numbers: std::ops::Range<u64>| {
        for number in numbers {
            put(cache, number, 0, 100_000);
            cache.flush();
        }
    };
    fill(&open(place.path(), 64 << 20), 0..300);
    let cache = open(place.path(), LEAST_SIZE);
    fill(&cache, 300..301);
    assert!(taken(&own(place.path())) <= LEAST_SIZE);
    assert!(has(&cache, 299, 0, 100_000));
    drop(cache);
    // The index is made anew for as much as this.
    let cache = open(place.path(), 8 << 30);
    assert!(has(&cache, 299, 0, 100_000) && has(&cache, 300, 0, 100_000));
    let before = taken(&own(place.path()));
    fill(&cache, 400..600);
    assert!(taken(&own(place.path())) >= before + 200 * 100_000);
    assert!((400..600).all(|number| has(&cache, number, 0, 100_000)));
}

#[test]
fn mounts_of_different_sizes_see_each_others_entries() {
    let place = tempfile::tempdir().unwrap();
    let small = open(place.path(), LEAST_SIZE);
    put(&small, 1, 0, 5000);
    small.flush();
    let large = open(place.path(), 8 << 30);
    assert!(has(&large, 1, 0, 5000));
    put(&large, 2, 0, 5000);
    large.flush();
    // It reads the index it has opened until it writes.
    put(&small, 3, 0, 5000);
    small.flush();
    for cache in [&small, &large] {
        assert!((1..=3).all(|number| has(cache, number, 0, 5000)));
    }
}

#[test]
fn what_is_longer_than_the_memory_allows_is_not_kept() {
    let place = tempfile::tempdir().unwrap();
    let cache =
        DiskCache::open_with(place.path(), Some(1 << 30), 1 << 20, Arc::default(), SOON).unwrap();
    put(&cache, 1, 0, 512 << 10);
    put(&cache, 2, 0, 500 << 10);
    cache.flush();
    assert!(!has(&cache, 1, 0, 512 << 10));
    assert!(has(&cache, 2, 0, 500 << 10));
    assert_eq!(cache.shared.counters.disk_cache_dropped.get(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u64, usize),
    Get(u64, usize),
    Forget(u64, usize),
    Remount,
    /// Let the other of two mounts go on.
    Switch,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let extent = || (0..12_u64, prop_oneof![1..300_usize, 30_000..200_000_usize]);
    let step = prop_oneof![
        8 => extent().prop_map(|(object, length)| Step::Put(object, length)),
        8 => extent().prop_map(|(object, length)| Step::Get(object, length)),
        1 => extent().prop_map(|(object, length)| Step::Forget(object, length)),
        1 => Just(Step::Remount),
        1 => Just(Step::Switch),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// As long as nothing has to be given up, the cache is a map.
    #[test]
    fn it_is_a_map_as_long_as_there_is_room(steps in steps()) {
        let place = tempfile::tempdir().unwrap();
        let mut mounts = [(); 2].map(|()| open(place.path(), 64 << 20));
        let mut model: HashMap<(u64, usize), ()> = HashMap::new();
        for step in steps {
            match step {
                Step::Put(object, length) => {
                    put(&mounts[0], object, 9, length);
                    mounts[0].flush();
                    model.insert((object, length), ());
                }
                Step::Get(object, length) => {
                    let known = model.keys().find(|&&(of, _)| of == object).copied();
                    let (object, length) = known.unwrap_or((object, length));
                    let found = has(&mounts[0], object, 9, length);
                    prop_assert_eq!(found, model.contains_key(&(object, length)));
                }
                Step::Forget(object, length) => {
                    let known = model.keys().find(|&&(of, _)| of == object).copied();
                    let (object, length) = known.unwrap_or((object, length));
                    mounts[0].forget(&key(object), &(9..9 + length as u64));
                    model.remove(&(object, length));
                }
                Step::Remount => mounts[0] = open(place.path(), 64 << 20),
                Step::Switch => mounts.swap(0, 1),
            }
        }
        for &(object, length) in model.keys() {
            prop_assert!(has(&mounts[0], object, 9, length));
        }
    }
}

/// A directory's files, to be put back.
struct Saved(Vec<(PathBuf, Vec<u8>)>);

impl Saved {
    fn of(directory: &Path) -> Self {
        let files = fs::read_dir(directory).unwrap().map(|file| {
            let path = file.unwrap().path();
            let contents = fs::read(&path).unwrap();
            (path, contents)
        });
        Self(files.collect())
    }

    fn restore(&self, directory: &Path) {
        for file in fs::read_dir(directory).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        for (path, contents) in &self.0 {
            fs::write(path, contents).unwrap();
        }
    }
}

#[test]
fn damage_anywhere_is_a_miss_and_never_a_wrong_byte() {
    let place = tempfile::tempdir().unwrap();
    let lengths = [1, 63, 64, 200, 700];
    let cache = open(place.path(), LEAST_SIZE);
    for length in lengths {
        put(&cache, 1, 5, length);
    }
    drop(cache);
    let saved = Saved::of(&own(place.path()));
    let found = || {
        let cache = open(place.path(), LEAST_SIZE);
        let hits = lengths.iter().filter(|&&length| has(&cache, 1, 5, length));
        let hits = hits.count();
        // It is repaired by being put anew.
        for length in lengths {
            put(&cache, 1, 5, length);
        }
        cache.flush();
        assert!(lengths.iter().all(|&length| has(&cache, 1, 5, length)));
        hits
    };
    assert_eq!(found(), 5);
    let (mut tried, mut seen) = (0, 0);
    for (path, contents) in &saved.0 {
        let of_segment = path.extension().is_some_and(|end| end == "segment");
        for (at, byte) in contents.iter().enumerate() {
            // Free slots are zeros: there, every page shows the same.
            if *byte == 0 && !of_segment && at % 509 != 0 {
                continue;
            }
            saved.restore(&own(place.path()));
            let flipped = byte ^ (1 << (at % 8));
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[flipped], at as u64).unwrap();
            let hits = found();
            tried += 1;
            seen += usize::from(hits < 5);
            // Padding is nobody's.
            assert!(hits >= 4 || !of_segment, "{} at {at}", path.display());
        }
    }
    assert!(tried > 1000 && seen > 1000, "{tried} flipped, {seen} seen");
    for (path, contents) in &saved.0 {
        for length in (0..contents.len()).step_by(61) {
            saved.restore(&own(place.path()));
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(length as u64).unwrap();
            found();
            saved.restore(&own(place.path()));
            file.set_len(contents.len() as u64).unwrap();
            found();
        }
    }
}

#[test]
fn segments_under_each_others_names_are_misses() {
    let place = tempfile::tempdir().unwrap();
    let cache = open(place.path(), LEAST_SIZE);
    for number in 0..200 {
        put(&cache, number, 0, 40_000);
        cache.flush();
    }
    drop(cache);
    let names = segments(place.path());
    let aside = own(place.path()).join("aside");
    fs::rename(&names[0], &aside).unwrap();
    fs::rename(&names[1], &names[0]).unwrap();
    fs::rename(&aside, &names[1]).unwrap();
    let cache = open(place.path(), LEAST_SIZE);
    let hits = (0..200).filter(|&number| has(&cache, number, 0, 40_000));
    let hits = hits.count();
    assert!(hits > 150 && hits < 200, "{hits}");
}

fn refusal(place: &Path) -> String {
    let opened = DiskCache::open(place, Some(LEAST_SIZE), MEMORY, Arc::default());
    opened.unwrap_err().to_string()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn nobody_else_can_look_into_it_and_a_directory_of_others_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("made");
    let cache = open(&place, LEAST_SIZE);
    put(&cache, 1, 0, 1000);
    drop(cache);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&place), mode(&own(&place))), (0o700, 0o700));
    let files = fs::read_dir(own(&place)).unwrap();
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }

    for open_to in [0o770, 0o702, 0o1777] {
        set_mode(&place, open_to);
        let why = refusal(&place);
        assert!(why.contains("other users may write to it"), "{why}");
    }
    // Somebody may look at what is beside ours.
    set_mode(&place, 0o755);
    open(&place, LEAST_SIZE);
    set_mode(&own(&place), 0o750);
    let why = refusal(&place);
    assert!(why.contains("other users may look into it"), "{why}");
    set_mode(&own(&place), 0o700);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(own(&place), Some(12), None).unwrap();
        let why = refusal(&place);
        assert!(why.contains("belongs to user 12"), "{why}");
        std::os::unix::fs::chown(&place, Some(13), None).unwrap();
        let why = refusal(&place);
        assert!(why.contains("belongs to user 13"), "{why}");
    } else {
        left_out("only root can give files away");
    }
}

#[test]
fn what_cannot_be_a_cache_is_refused_with_a_reason() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path();
    let too_small = DiskCache::open(place, Some(LEAST_SIZE - 1), MEMORY, Arc::default());
    assert!(too_small.unwrap_err().to_string().contains("too small"));
    fs::write(place.join("file"), "").unwrap();
    assert!(refusal(&place.join("file")).contains("directory"));
    assert!(refusal(&place.join("no/parent")).contains("cannot make"));
    fs::write(own(place), "precious").unwrap();
    assert!(refusal(place).contains("in the disk cache's way"));
    fs::remove_file(own(place)).unwrap();
    fs::create_dir_all(place.join("elsewhere")).unwrap();
    symlink("elsewhere", own(place)).unwrap();
    assert!(refusal(place).contains("in the disk cache's way"));
    assert_eq!(fs::read_dir(place.join("elsewhere")).unwrap().count(), 0);
}

#[test]
fn files_of_others_in_the_directory_are_neither_read_nor_written_nor_removed() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("place");
    put(&open(&place, LEAST_SIZE), 1, 0, 1000);
    let inside = own(&place);
    let precious = outside.path().join("precious");
    fs::write(&precious, bytes(9, 9, 5000)).unwrap();
    let segment = |number: u64| inside.join(format!("{number:016x}.segment"));
    symlink(&precious, segment(0x10)).unwrap();
    fs::hard_link(&precious, segment(0x11)).unwrap();
    fs::create_dir(segment(0x12)).unwrap();
    let fifo = |path: &Path| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
    };
    fifo(&segment(0x13));
    fs::write(segment(u64::MAX), "no number of ours").unwrap();
    fs::write(inside.join("notes"), "mine").unwrap();
    fs::write(place.join("beside"), "mine").unwrap();

    let cache = open(&place, LEAST_SIZE);
    for number in 0..800 {
        put(&cache, number, 0, 40_000);
        cache.flush();
    }
    assert!(cache.shared.counters.disk_cache_evictions.get() > 10);
    assert!(has(&cache, 799, 0, 40_000));
    assert_eq!(cache.shared.counters.disk_cache_errors.get(), 0);
    assert_eq!(fs::read(&precious).unwrap(), bytes(9, 9, 5000));
    assert!(segment(0x10).is_symlink() && segment(0x11).is_file() && segment(0x12).is_dir());
    assert!(fs::symlink_metadata(segment(0x13)).is_ok());
    assert_eq!(
        fs::read_to_string(segment(u64::MAX)).unwrap(),
        "no number of ours"
    );
    for mine in [inside.join("notes"), place.join("beside")] {
        assert_eq!(fs::read_to_string(mine).unwrap(), "mine");
    }
    drop(cache);
    // What has a segment's name and none of our records is not appended to.
    fs::write(segment(0x9999), "not a record").unwrap();
    put(&open(&place, LEAST_SIZE), 5000, 0, 1000);
    assert_eq!(fs::read_to_string(segment(0x9999)).unwrap(), "not a record");
}

#[test]
fn a_pipe_in_the_place_of_the_index_is_waited_for_by_nobody() {
    let place = tempfile::tempdir().unwrap();
    put(&open(place.path(), LEAST_SIZE), 1, 0, 1000);
    let index = own(place.path()).join("index");
    fs::remove_file(&index).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &index,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let cache = open(place.path(), LEAST_SIZE);
    assert!(!has(&cache, 1, 0, 1000));
    put(&cache, 1, 0, 1000);
    cache.flush();
    assert!(has(&cache, 1, 0, 1000));
}

#[test]
fn a_directory_removed_under_a_mount_is_made_again() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("place");
    let cache = open(&place, LEAST_SIZE);
    put(&cache, 1, 0, 1000);
    cache.flush();
    fs::remove_dir_all(&place).unwrap();
    assert!(!has(&cache, 1, 0, 1000));
    wait_for(|| {
        put(&cache, 2, 0, 1000);
        cache.flush();
        has(&cache, 2, 0, 1000)
    });
    assert!(!segments(&place).is_empty());
}

#[test]
fn a_full_disk_is_no_error_and_is_used_again_when_it_has_room() {
    let Some(disk) = disks::Disk::new(48 << 20) else {
        return;
    };
    let place = disk.path("cache");
    let fill = |cache: &DiskCache, numbers: std::ops::Range<u64>| {
        for number in numbers {
            put(cache, number, 0, 100_000);
            cache.flush();
        }
    };
    // Not even room for an index.
    disk.fill(8 << 10);
    let cache = open(&place, 1 << 30);
    fill(&cache, 0..3);
    assert!(!has(&cache, 0, 0, 100_000));
    assert!(cache.shared.counters.disk_cache_errors.get() > 0);
    fs::remove_file(disk.path("filler")).unwrap();
    wait_for(|| {
        fill(&cache, 0..3);
        (0..3).all(|number| has(&cache, number, 0, 100_000))
    });

    // More is allowed than the disk has: it is not filled to the brim, and what is old makes room for what is new.
    fill(&cache, 100..900);
    assert!(disk.free() > 256 << 10, "{}", disk.free());
    assert!((895..900).all(|number| has(&cache, number, 0, 100_000)));
    assert!(taken(&own(&place)) > 16 << 20);

    // Somebody else takes the last of it.
    let kept = |cache: &DiskCache| {
        (100..900)
            .filter(|&number| has(cache, number, 0, 100_000))
            .count()
    };
    assert!(kept(&cache) > 100);
    disk.fill(64 << 10);
    fill(&cache, 900..910);
    // It gives way, a segment at a time.
    assert!(kept(&cache) > 50);
    drop(cache);
    let cache = open(&place, 1 << 30);
    assert!(kept(&cache) > 50);
    wait_for(|| {
        fill(&cache, 1000..1001);
        has(&cache, 1000, 0, 100_000)
    });
}

#[test]
fn a_read_only_disk_is_read_and_written_to_again_when_it_can_be() {
    let Some(disk) = disks::Disk::new(48 << 20) else {
        return;
    };
    let remount = |how: &str| {
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-o", how]).arg(disk.path(".")).status();
        assert!(status.unwrap().success());
    };
    let place = disk.path("cache");
    put(&open(&place, LEAST_SIZE), 1, 0, 1000);
    remount("remount,ro");
    let cache = open(&place, LEAST_SIZE);
    put(&cache, 2, 0, 1000);
    cache.flush();
    assert!(has(&cache, 1, 0, 1000));
    assert!(!has(&cache, 2, 0, 1000));
    remount("remount,rw");
    wait_for(|| {
        put(&cache, 2, 0, 1000);
        cache.flush();
        has(&cache, 2, 0, 1000)
    });
    drop(cache);
}

#[test]
fn after_a_power_cut_there_is_no_wrong_byte() {
    let Some(mut disk) = disks::Disk::new(96 << 20) else {
        return;
    };
    for round in 0..4_u64 {
        let place = disk.path("cache");
        let cache = open(&place, 32 << 20);
        let switch = disk.power_switch();
        for number in 0..400 {
            put(&cache, round * 1000 + number, 0, 90_000);
            if number % (40 + round * 10) == 0 {
                cache.flush();
                // Some of it is on the disk, in whatever order.
                rustix::fs::syncfs(File::open(&place).unwrap()).unwrap();
            }
        }
        switch.off();
        drop(cache);
        disk.restart();
        let cache = open(&place, 32 << 20);
        let there = (0..4000).filter(|&number| has(&cache, number, 0, 90_000));
        assert!(there.count() > 100);
    }
}
