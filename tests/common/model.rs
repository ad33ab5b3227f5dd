//! Two models that have to agree: whatever is read through a mount, in whatever order, by however many, is what the originals
//! in memory hold there.
//!
//! A run is a seed and a list of operations made from it. A list that fails is cut down to a short one that still
//! fails, and both are printed.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, OFlags, SeekFrom};

use super::{Mounted, Random, pack, sample};

/// How many operations a list has, as a rule.
pub const OPERATIONS: usize = 10_000;
const THREADS: usize = 4;
/// Handles each thread has.
const HANDLES: u64 = 6;

/// What is done with one of a thread's handles.
#[derive(Debug, Clone, Copy)]
enum Operation {
    /// Opened anew: which file, and whether past the page cache.
    Open {
        handle: usize,
        file: usize,
        direct: bool,
    },
    /// One pread.
    Read {
        handle: usize,
        at: u64,
        length: usize,
    },
    /// One preadv of three unequal parts.
    ReadParts {
        handle: usize,
        at: u64,
        length: usize,
    },
    /// Several reads, each where the last one ended.
    ReadOn {
        handle: usize,
        at: u64,
        length: usize,
        times: u32,
    },
    /// Data, hole and end, as lseek tells them.
    Seek { handle: usize, at: u64 },
    /// The kernel forgets the file's pages.
    Forget { handle: usize },
}

/// A file as it shows.
pub struct Original {
    pub name: String,
    pub bytes: Vec<u8>,
}

fn operations(seed: u64, many: usize, originals: &[Original]) -> Vec<Operation> {
    let mut random = Random(seed);
    let longest = originals.iter().map(|original| original.bytes.len()).max();
    let longest = longest.unwrap() as u64;
    let some = |random: &mut Random| {
        let handle = random.below(HANDLES) as usize;
        // Near a boundary as often as anywhere.
        let at = match random.below(3) {
            0 => (random.below(longest >> 12) << 12).saturating_sub(random.below(9)),
            _ => random.below(longest + 10_000),
        };
        let length = match random.below(8) {
            0 => random.below(600_000),
            1 => random.below(3),
            _ => random.below(20_000),
        };
        (handle, at, length as usize)
    };
    let operation = |random: &mut Random| {
        let (handle, at, length) = some(random);
        match random.below(20) {
            0 => Operation::Forget { handle },
            1 | 2 => Operation::Open {
                handle,
                file: random.below(originals.len() as u64) as usize,
                direct: random.below(4) == 0,
            },
            3 => Operation::Seek { handle, at },
            4 | 5 => Operation::ReadParts { handle, at, length },
            6 | 7 => Operation::ReadOn {
                handle,
                at,
                length: length.min(140_000),
                times: 1 + random.below(12) as u32,
            },
            _ => Operation::Read { handle, at, length },
        }
    };
    (0..many).map(|_| operation(&mut random)).collect()
}

/// What the original has at `at`.
fn expected(bytes: &[u8], at: u64, length: usize) -> &[u8] {
    let from = bytes.len().min(at as usize);
    &bytes[from..bytes.len().min(from + length)]
}

fn open(mounted: &Mounted, original: &Original, direct: bool) -> Result<File, String> {
    // A plain file is read by its own file system's rules, which want direct reads aligned.
    let direct = direct && !original.name.ends_with("plain");
    let flags = if direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(mounted.path(&original.name))
        .map_err(|error| format!("open {}: {error}", original.name))
}

/// Does the operations on one thread's handles; says what is wrong.
fn perform(
    operations: &[Operation],
    mounted: &Mounted,
    originals: &[Original],
) -> Result<(), String> {
    let mut handles: Vec<(File, &Original)> = (0..HANDLES as usize)
        .map(|handle| {
            let original = &originals[handle % originals.len()];
            Ok((open(mounted, original, false)?, original))
        })
        .collect::<Result<_, String>>()?;
    let mut buffer = vec![0; 600_000];
    for operation in operations {
        let mut check = |handle: usize, at: u64, length: usize, parts: bool| {
            let (file, original) = &handles[handle];
            let wanted = expected(&original.bytes, at, length);
            let room = &mut buffer[..length];
            room.fill(0xa5);
            let mut done = 0;
            while done < length {
                let rest = &mut room[done..];
                let read = if parts {
                    let (first, rest) = rest.split_at_mut(rest.len() / 5);
                    let (second, third) = rest.split_at_mut(rest.len() / 2);
                    let mut parts = [first, second, third].map(IoSliceMut::new);
                    rustix::io::preadv(file, &mut parts, at + done as u64).map_err(Into::into)
                } else {
                    file.read_at(rest, at + done as u64)
                };
                match read {
                    Ok(0) => break,
                    Ok(read) => done += read,
                    Err(error) => return Err(format!("{}: {error}", original.name)),
                }
            }
            if room[..done] == *wanted {
                return Ok(());
            }
            let differs = room[..done].iter().zip(wanted).position(|(a, b)| a != b);
            Err(format!(
                "{}: {done} bytes instead of {}, the first that differs is {differs:?}",
                original.name,
                wanted.len()
            ))
        };
        let outcome = match *operation {
            Operation::Read { handle, at, length } => check(handle, at, length, false),
            Operation::ReadParts { handle, at, length } => check(handle, at, length, true),
            Operation::ReadOn {
                handle,
                at,
                length,
                times,
            } => (0..u64::from(times))
                .try_for_each(|time| check(handle, at + time * length as u64, length, false)),
            Operation::Open {
                handle,
                file,
                direct,
            } => {
                let original = &originals[file];
                open(mounted, original, direct).map(|opened| handles[handle] = (opened, original))
            }
            Operation::Seek { handle, at } => {
                let (file, original) = &handles[handle];
                seek(file, &original.bytes, at).map_err(|why| format!("{}: {why}", original.name))
            }
            Operation::Forget { handle } => {
                rustix::fs::fadvise(&handles[handle].0, 0, None, Advice::DontNeed).unwrap();
                Ok(())
            }
        };
        outcome.map_err(|why| format!("{operation:?}: {why}"))?;
    }
    Ok(())
}

/// A hole must be zeros, and data must begin where the hole ends.
fn seek(file: &File, bytes: &[u8], at: u64) -> Result<(), String> {
    let length = bytes.len() as u64;
    let data = rustix::fs::seek(file, SeekFrom::Data(at));
    let hole = rustix::fs::seek(file, SeekFrom::Hole(at));
    if at >= length {
        let past = Err(rustix::io::Errno::NXIO);
        return (data == past && hole == past)
            .then_some(())
            .ok_or_else(|| format!("past the end: {data:?}, {hole:?}"));
    }
    let (data, hole) = (
        data.unwrap_or(length),
        hole.map_err(|error| error.to_string())?,
    );
    let zeros = |from: u64, to: u64| {
        bytes[from as usize..to as usize]
            .iter()
            .all(|&byte| byte == 0)
    };
    let right = at <= data && at <= hole && hole <= length && (data == at) != (hole == at);
    if !right || !zeros(at, data) {
        return Err(format!("data at {data}, a hole at {hole}"));
    }
    Ok(())
}

/// Does a run: every thread a part of the list on handles of its own.
fn run(operations: &[Operation], mounted: &Mounted, originals: &[Original]) -> Result<(), String> {
    std::thread::scope(|scope| {
        let parts = operations.chunks(operations.len().div_ceil(THREADS).max(1));
        let threads: Vec<_> = parts
            .map(|part| scope.spawn(|| perform(part, mounted, originals)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap())
    })
}

/// Takes ever smaller parts out of a list as long as it fails without them.
fn shrink(mut failing: Vec<Operation>, fails: impl Fn(&[Operation]) -> bool) -> Vec<Operation> {
    let mut part = failing.len() / 2;
    while part > 0 {
        let mut from = 0;
        while from < failing.len() {
            let without: Vec<_> = failing[..from]
                .iter()
                .chain(&failing[failing.len().min(from + part)..])
                .copied()
                .collect();
            if fails(&without) {
                failing = without;
            } else {
                from += part;
            }
        }
        part /= 2;
    }
    failing
}

/// Files of every codec, of chunk sizes that are no powers of two or larger than the file, with holes and without.
pub fn source() -> (tempfile::TempDir, Vec<Original>) {
    let directory = tempfile::tempdir().unwrap();
    let mut originals = Vec::new();
    let mut holes = vec![0; 3 << 20];
    holes[700_000..1_000_000].copy_from_slice(&sample(300_000, 1));
    holes[2_900_000..].copy_from_slice(&sample((3 << 20) - 2_900_000, 2));
    let contents: [(&str, Vec<u8>); 4] = [
        ("text", sample(2_500_001, 3)),
        ("holes", holes),
        ("short", sample(777, 4)),
        ("empty", Vec::new()),
    ];
    let shapes = [
        ("lz4", "64K"),
        ("lz4", "131073"),
        ("zstd", "4K"),
        ("zstd", "300001"),
        ("snappy", "65535"),
        ("brotli", "100K"),
        // These are decoded in pieces.
        ("lz4", "2M"),
        ("snappy", "1500001"),
    ];
    for (content, bytes) in contents {
        let input = directory.path().join("input");
        fs::write(&input, &bytes).unwrap();
        for (codec, chunk_size) in shapes {
            let name = format!("{content}-{codec}-{chunk_size}");
            let output = directory.path().join(format!("{name}.warp"));
            pack(
                &input,
                &output,
                &["--codec", codec, "--chunk-size", chunk_size],
            );
            originals.push(Original {
                name,
                bytes: bytes.clone(),
            });
        }
        // And one that is not packed.
        let name = format!("{content}-plain");
        fs::rename(&input, directory.path().join(&name)).unwrap();
        originals.push(Original { name, bytes });
    }
    (directory, originals)
}

/// The seed of a run, which the environment may name.
pub fn seed() -> u64 {
    match std::env::var("WARPFS_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64,
    }
}

/// Has so many operations done in a mount, and demands that all agree. `mount` makes it, again and again if they do not.
pub fn agree(many: usize, originals: &[Original], mount: impl Fn() -> Mounted) {
    let seed = seed();
    let all = operations(seed, many, originals);
    let mounted = mount();
    let Err(why) = run(&all, &mounted, originals) else {
        let stats = mounted.stats();
        for errors in ["damage_errors", "changed_errors", "other_errors"] {
            assert_eq!(stats[errors], 0, "{stats}");
        }
        return;
    };
    let logged = mounted.logged();
    drop(mounted);
    let shrunk = shrink(all, |operations| {
        run(operations, &mount(), originals).is_err()
    });
    panic!("{why}\n{logged}\nWARPFS_TEST_SEED={seed}; these are enough:\n{shrunk:#?}");
}
