//! Whole files, hostile or not, behind everything that reads them: `Reader` under small and large budgets, `unpack`, `verify`
//! and `info`. Whatever way is taken to a byte, it is the same byte.
//!
//! An input that begins as a file does is one, as it stands. Any other is taken for a plan of one, whose header and table
//! fit what it holds.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use arbitrary::{Arbitrary, Unstructured};
use rustix::fs::MemfdFlags;
use warpfs::error::Result;
use warpfs::format::{Codec, MAGIC};
use warpfs::fuzzing;
use warpfs::info::Info;
use warpfs::job::{Control, Loss, Observer};
use warpfs::unpack::{UnpackOptions, unpack_to};
use warpfs::verify::{VerifyOptions, verify_file};
use warpfs::{Engine, EngineOptions, ErrorKind, Reader, Verify};

use crate::memory::{ALLOWANCE, within};
use crate::plan::{ArchivePlan, Layout};
use crate::{Random, Seen, is_zero};

/// The longest original that is decoded from end to end, in bytes.
const LONGEST: u64 = 8 << 20;
/// From which announced size on a chunk must have been measured before memory is taken for it, in bytes.
const LARGE: u64 = 32 << 20;
/// The largest chunk that is decoded whole, in bytes: larger ones take long.
const LARGEST: u64 = 256 << 20;
static NEVER: AtomicBool = AtomicBool::new(false);

/// A file that only this process has, under a name that can be opened.
#[derive(Debug)]
pub struct InMemory(File);

impl InMemory {
    /// A file of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut file = File::from(rustix::fs::memfd_create("fuzzed", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(bytes).unwrap();
        Self(file)
    }

    /// The name.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Reads the input in every way there is.
pub fn run(data: &[u8]) {
    match data.starts_with(&MAGIC) {
        true => check(data),
        false => {
            if let Ok(plan) = ArchivePlan::arbitrary(&mut Unstructured::new(data)) {
                check(&plan.bytes());
            }
        }
    }
}

fn check(data: &[u8]) {
    let mut random = Random::for_input(data);
    let file = InMemory::new(data);
    let path = file.path();
    let mut seen = Seen::default();
    let allowed = data.len() + ALLOWANCE;
    let unpacked = match largest_proved_chunk(data) {
        proved if proved > LARGEST => Unpacked::TooLong,
        proved => within(allowed + proved as usize, || {
            unpack(&path, &mut seen, &mut random)
        }),
    };
    let checks = [Verify::Off, random.of([Verify::Fast, Verify::Strict])];
    for (verify, budget) in checks.into_iter().zip([
        random.of([64 << 10, 1 << 20, 3 << 20]),
        random.of([1 << 20, 24 << 20]),
    ]) {
        // The file is not yet known to be sound, and a mount's budget holds whatever it claims.
        let opened = within(allowed.min(budget as usize + ALLOWANCE / 2), || {
            read(&path, (verify, budget), &mut seen, &mut random, &unpacked)
        });
        if let Err(error) = opened
            && !is_over_budget(&error)
        {
            assert!(
                error.is_damage() && !unpacked.is_proof(verify),
                "not opened: {error}"
            );
        }
    }
    if let Ok(info) = within(allowed, || Info::read(&path)) {
        let chunks = info.chunks().count();
        assert_eq!(chunks, info.chunk_count() as usize);
        assert_eq!(info.packed_size(), data.len() as u64);
    } else {
        assert!(!unpacked.is_proof(Verify::Fast), "verified but no info");
    }
}

/// The size of the largest chunk that is announced to be large and is, in bytes: it has been checked before memory is taken
/// for it.
fn largest_proved_chunk(data: &[u8]) -> u64 {
    let Some(layout) = Layout::parse(data) else {
        return 0;
    };
    let large = layout.chunks.iter().filter(|chunk| chunk.original > LARGE);
    let proved = large.filter(|chunk| {
        Codec::from_id(layout.codec)
            .and_then(|codec| fuzzing::measure(codec, &chunk.payload, chunk.original))
            .is_ok_and(|found| found == chunk.original)
    });
    proved.map(|chunk| chunk.original).max().unwrap_or(0)
}

fn is_over_budget(error: &warpfs::Error) -> bool {
    matches!(error.kind(), ErrorKind::OverBudget { .. })
}

/// What unpacking the whole file came to.
enum Unpacked {
    /// To an original of so many bytes; the record of digests may be damaged.
    Sound {
        size: u64,
        record: bool,
    },
    Refused,
    /// It is too long to be worth it.
    TooLong,
}

impl Unpacked {
    /// Whether readers who check in this way must be able to read everything, if there is memory.
    fn is_proof(&self, verify: Verify) -> bool {
        match self {
            Unpacked::Sound { record, .. } => *record || verify == Verify::Off,
            _ => false,
        }
    }
}

/// Takes what is unpacked as far as there is room.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = LONGEST as usize - self.0.len();
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let len = bytes.len().min(room);
        self.0.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn unpack(path: &Path, seen: &mut Seen, random: &mut Random) -> Unpacked {
    let control = Control::default();
    let mut options = UnpackOptions {
        threads: Some(1),
        ..UnpackOptions::default()
    };
    let mut output = Bounded(Vec::new());
    let unpacked = unpack_to(path, &mut output, &options, control);
    seen.add("unpacked", 0, output.0);
    let verify = VerifyOptions {
        threads: Some(1),
        ..VerifyOptions::default()
    };
    let verified = verify_file(path, verify, control);
    let unpacked = match unpacked {
        Ok(summary) => {
            if let Err(error) = &verified {
                assert!(is_of_record(error), "unpacked, but not verified: {error}");
            }
            Unpacked::Sound {
                size: summary.original_size,
                record: verified.is_ok(),
            }
        }
        Err(error) => match error.kind() {
            ErrorKind::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                return Unpacked::TooLong;
            }
            ErrorKind::Panicked => panic!("{error}"),
            _ => {
                assert!(verified.is_err(), "verified, but not unpacked: {error}");
                Unpacked::Refused
            }
        },
    };
    match &unpacked {
        Unpacked::Sound { size, .. } => {
            let start = random.below(size + 1);
            let end = (*size).min(start + random.length() as u64);
            options.range = Some(start..end);
            let mut output = Vec::new();
            match unpack_to(path, &mut output, &options, control) {
                Ok(_) => assert_eq!(output.len() as u64, end - start),
                // The checksum, which proves the whole, does not prove a range.
                Err(error) => assert!(verified.is_err() && is_of_record(&error), "{error}"),
            }
            seen.add("a range unpacked", start, output);
        }
        Unpacked::Refused => salvage(path, seen),
        Unpacked::TooLong => {}
    }
    unpacked
}

/// Whether nothing but the record of digests is at fault, or what it says of the beginning of the file.
fn is_of_record(error: &warpfs::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DamagedRecord(_)
            | ErrorKind::DamagedBeginning
            | ErrorKind::DigestMismatch { .. }
    )
}

/// Unpacks what is not lost, which must be the same as ever.
fn salvage(path: &Path, seen: &mut Seen) {
    #[derive(Default)]
    struct Losses(Mutex<Vec<Range<u64>>>);
    impl Observer for Losses {
        fn lost(&self, _: &Path, loss: &Loss) {
            // What is kept is there, though nothing checks it.
            if !loss.kept {
                self.0.lock().unwrap().push(loss.bytes.clone());
            }
        }
    }
    let losses = Losses::default();
    let control = Control {
        observer: &losses,
        cancelled: &NEVER,
    };
    let options = UnpackOptions {
        threads: Some(1),
        keep_going: true,
        ..UnpackOptions::default()
    };
    let mut output = Bounded(Vec::new());
    let saved = unpack_to(path, &mut output, &options, control);
    let losses = losses.0.into_inner().unwrap();
    let mut place = 0;
    for lost in losses.iter().chain([&(u64::MAX..u64::MAX)]) {
        assert!(
            lost.start <= lost.end && place <= lost.start,
            "losses in order"
        );
        // What was written before a loss was told is not lost.
        let end = lost.start.min(output.0.len() as u64);
        if saved.is_ok() && place < end {
            let kept = output.0[place as usize..end as usize].to_vec();
            seen.add("saved", place, kept);
        }
        place = lost.end;
    }
    if let Ok(summary) = saved {
        let lost: u64 = losses.iter().map(|lost| lost.end - lost.start).sum();
        assert!((lost..=summary.original_size).contains(&summary.lost));
        assert_eq!(summary.original_size, output.0.len() as u64);
    }
}

/// Reads here and there, under a budget of so many bytes.
fn read(
    path: &Path,
    (verify, budget): (Verify, u64),
    seen: &mut Seen,
    random: &mut Random,
    unpacked: &Unpacked,
) -> Result<()> {
    let engine = Engine::new(&EngineOptions {
        cache_size: budget,
        threads: 1,
        prefetch: random.of([Some(0), Some(0), Some(256 << 10), None]),
        verify,
    })?;
    let reader = engine.open(path)?;
    let check = Reading {
        engine: &engine,
        reader: &reader,
        sound: unpacked.is_proof(verify),
    };
    let len = reader.len();
    assert_eq!(reader.header().original_size, len);
    let mut place = 0;
    for _ in 0..2 + random.below(12) {
        // On from there, about the end, or anywhere.
        let offset = match random.below(4) {
            0 => place,
            1 => len.saturating_sub(random.length() as u64),
            2 => random.length() as u64,
            _ => random.below(len.saturating_add(10)),
        };
        place = offset + check.read_at(offset, random.length(), seen)? as u64;
    }
    check.holes(random.below(len.saturating_add(2)), seen)?;
    check.holes(0, seen)
}

struct Reading<'a> {
    engine: &'a Arc<Engine>,
    reader: &'a Reader,
    /// Whether there is nothing wrong with the file.
    sound: bool,
}

impl Reading<'_> {
    /// An error of reading must be one that there may be.
    fn accept(&self, error: &warpfs::Error) {
        match error.kind() {
            ErrorKind::OverBudget { .. } => {}
            _ if error.is_damage() => assert!(!self.sound, "{error}"),
            _ => panic!("{error}"),
        }
    }

    fn check_budget(&self) {
        let stats = self.engine.stats();
        assert!(stats.memory_used <= stats.memory_budget);
    }

    fn read_at(&self, offset: u64, len: usize, seen: &mut Seen) -> Result<usize> {
        let mut buffer = vec![0; len];
        let outcome = self.reader.read_at(&mut buffer, offset);
        self.check_budget();
        let read = match outcome {
            Ok(read) => read,
            Err(error) => {
                self.accept(&error);
                return Ok(0);
            }
        };
        let wanted = self.reader.len().saturating_sub(offset).min(len as u64) as usize;
        assert!(read <= wanted);
        buffer.truncate(read);
        if read < wanted {
            let mut byte = [0];
            match self.reader.read_at(&mut byte, offset + read as u64) {
                Ok(_) => panic!("a read ended {} bytes early for no reason", wanted - read),
                Err(error) => self.accept(&error),
            }
        }
        seen.add("read", offset, buffer);
        Ok(read)
    }

    /// What is called a hole must read as zeros, or not at all.
    fn holes(&self, offset: u64, seen: &mut Seen) -> Result<()> {
        // A chunk of zeros has to be decoded to be known for one.
        if self.reader.len() > LONGEST {
            return Ok(());
        }
        let (data, hole) = (self.reader.next_data(offset), self.reader.next_hole(offset));
        self.check_budget();
        let (data, hole) = match (data, hole) {
            (Ok(data), Ok(hole)) => (data, hole),
            (Err(error), _) | (_, Err(error)) => {
                self.accept(&error);
                return Ok(());
            }
        };
        let len = self.reader.len();
        assert_eq!(hole.is_some(), offset < len);
        assert!(hole.is_none_or(|hole| hole >= offset && hole <= len));
        assert!(data.is_none_or(|data| data >= offset && data < len));
        let zeros = offset..data.unwrap_or(len);
        if zeros.start < zeros.end {
            let len = (zeros.end - zeros.start).min(1 << 20) as usize;
            let mut buffer = vec![0; len];
            if let Ok(read) = self.reader.read_at(&mut buffer, zeros.start) {
                buffer.truncate(read);
                assert!(is_zero(&buffer), "a hole that holds data");
                seen.add("a hole", zeros.start, buffer);
            }
        }
        Ok(())
    }
}
