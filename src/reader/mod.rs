//! `read_at(offset, length)` of an original: archive, cache and prefetch put together.
//!
//! A read goes unit by unit (a chunk, or a piece of one) and holds one at a time, so that it can wait for memory
//! without keeping any. What a unit's decoding costs is paid on the thread that asks; the units that a reader will want next who
//! goes on in some order are decoded meanwhile by the engine's workers.

mod ahead;
mod alone;
mod branches;
mod decode;
mod disk;
mod distant;
mod engine;
mod helpers;
mod holes;
#[cfg(all(test, shuttle))]
mod interleavings;
mod line;
mod shelf;
mod straight;
mod streams;

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "remote")]
pub use engine::DiskCacheOptions;
pub use engine::{Engine, EngineOptions};
#[cfg(feature = "fuse")]
pub(crate) use straight::LONG_READ;

use self::ahead::Left;
use self::branches::Branching;
use self::decode::Decoded;
use self::distant::Fetched;
use self::helpers::{Habit, Shares};
use self::line::Line;
use self::straight::Abreast;
use crate::archive::{Archive, Evidence, OneCall};
use crate::cache::Origin;
use crate::error::Result;
use crate::format::{Checksum, Description};
use crate::prefetch::{Backwards, Prefetch, Strides};

/// A `.warp` file open for reading its original bytes, at any offset and by many threads: [`Reader::read_at`] takes `&self`.
/// [`Read`] and [`Seek`] are for one thread that goes through it.
///
/// ```
/// use std::io::{Read, Seek, SeekFrom};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut reader = warpfs::Reader::open("tests/data/v2-zstd-blake3.warp")?;
/// assert_eq!(reader.len(), 100_003);
/// let mut bytes = [0; 16];
/// reader.read_at(&mut bytes, 65_000)?;
/// reader.seek(SeekFrom::Start(65_000))?;
/// let mut again = [0; 16];
/// reader.read_exact(&mut again)?;
/// assert_eq!(bytes, again);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    position: u64,
}

/// What prefetching threads need of a reader; gone when the reader is.
#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    archive: Archive,
    one_call: OneCall,
    prefetch: Prefetch,
    /// For the disk.
    on_disk: Prefetch,
    backwards: Backwards,
    strides: Strides,
    line: Line,
    abreast: Abreast,
    branching: Branching,
    habit: Habit,
    /// Whether the reader is gone, though somebody is still at work ahead of it.
    closed: AtomicBool,
}

/// Which part of the budget may be decoded ahead of who reads in strides: half of what there may be of what is wanted once.
const STRIDES_PART: u64 = 16;

/// What a read is to whoever asks for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Demand {
    /// Its bytes are kept there, so that nobody asks for them again soon.
    pub(crate) kept: bool,
    /// Others wait already for a thread to take them up, or are always under way. Heeded of long reads only.
    pub(crate) more_wait: bool,
}

/// What a read holds as long as it is worked on.
#[derive(Debug)]
struct UnderWay<'a> {
    /// Whether its whole units are decoded to where they are wanted.
    straight: bool,
    shares: Shares<'a>,
    _fetched: Vec<Arc<Fetched>>,
}

thread_local! {
    /// Room to put reads together that cross chunks: as long as the longest request this thread has answered.
    static ASSEMBLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }
}

impl Reader {
    /// Opens a file with an engine of its own, of default size.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Engine::new(&EngineOptions::default())?.open(path)
    }

    fn new(engine: Arc<Engine>, archive: Archive) -> Self {
        let chunk_len = archive
            .table()
            .original_range(0)
            .map_or(0, |first| first.end);
        let far = distant::way(&archive);
        let limit = engine.prefetch_limit(chunk_len, far.is_some());
        // What comes from afar is fetched from front to back.
        let limit_if_near = if far.is_some() { 0 } else { limit };
        let budget = engine.cache.budget().total();
        let prefetch = Prefetch::new(limit, far);
        let on_disk = disk::follow(&archive, limit == 0);
        // Of what is far away, all that a chunk needs is brought at once.
        let one_call = match archive.distant() {
            Some(_) => engine.one_call.without_parts(),
            None => engine.one_call,
        };
        Self {
            shared: Arc::new(Shared {
                engine,
                archive,
                one_call,
                prefetch,
                on_disk,
                backwards: Backwards::new(limit_if_near),
                strides: Strides::new(limit_if_near.min(budget / STRIDES_PART)),
                line: Line::default(),
                abreast: Abreast::default(),
                branching: Branching::default(),
                habit: Habit::default(),
                closed: AtomicBool::new(false),
            }),
            position: 0,
        }
    }

    /// The original's size, in bytes.
    pub fn len(&self) -> u64 {
        self.shared.archive.table().original_size()
    }

    /// Whether the original is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the file is as a whole.
    pub fn description(&self) -> &Description {
        self.shared.archive.description()
    }

    /// The length of the `.warp` file, in bytes, when it was opened.
    pub fn file_len(&self) -> u64 {
        self.shared.archive.file_len()
    }

    /// What each read is checked by: "blake3" (up to the whole file's checksum), "xxh3" (the digest of each leaf), or "codec",
    /// that is nothing but what the codec notices.
    pub fn verified_by(&self) -> &'static str {
        match self.shared.archive.evidence() {
            Evidence::Proof => "blake3",
            Evidence::Leaves => "xxh3",
            Evidence::Codec => "codec",
        }
    }

    /// The algorithm of the stored whole-file checksum, if there is one.
    pub fn checksum(&self) -> Option<Checksum> {
        self.shared.archive.footer().map(|footer| footer.checksum)
    }

    /// Reads original bytes at `offset` into `buffer` and says how many: fewer than it holds only at the end, or where
    /// what follows cannot be read; asked for that, it says why.
    ///
    /// # Errors
    /// Not even the first byte can be read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let range = self.clip(offset, buffer.len());
        let under_way = self.begin(&range, Demand::default());
        let mut done = 0;
        while done < (range.end - range.start) as usize {
            let rest = range.start + done as u64..range.end;
            under_way.shares.take_next(rest.start);
            // Who reads into a buffer may throw it away and read again.
            let decoded = match self.unit_for(&rest, &range, false) {
                Ok(Some(decoded)) => decoded,
                Err(error) if done == 0 => return Err(error),
                _ => break,
            };
            let part = decoded.part(&rest);
            if let Some(place) = buffer.get_mut(done..done + part.len()) {
                place.copy_from_slice(part);
            }
            done += part.len();
        }
        Ok(done)
    }

    /// Reads `length` original bytes at `offset`, fewer only at the end, and hands them to `with`: straight from the
    /// cache's memory if one unit holds them all; and how the unit was come by that took longest.
    ///
    /// # Errors
    /// Any of the bytes cannot be read.
    pub(crate) fn read_with<T>(
        &self,
        offset: u64,
        length: usize,
        demand: Demand,
        with: impl FnOnce(&[u8], Origin) -> T,
    ) -> Result<T> {
        let range = self.clip(offset, length);
        let under_way = self.begin(&range, demand);
        if let Some((_, first)) = self.shared.unit_at(range.start)
            && first.end >= range.end
            && let Some(unit) = self.unit_for(&range, &range, demand.kept)?
        {
            // Before the next read can come, which is to find itself alone.
            drop(under_way);
            return Ok(with(unit.part(&range), unit.origin));
        }
        let outcome = ASSEMBLY.with_borrow_mut(|assembly| {
            let length = (range.end - range.start) as usize;
            if assembly.len() < length {
                assembly.resize(length, 0);
            }
            let room = assembly.get_mut(..length).unwrap_or_default();
            let (length, origin) = self.fill(&range, room, demand.kept, &under_way)?;
            drop(under_way);
            Ok(with(room.get(..length).unwrap_or_default(), origin))
        });
        if self.shared.archive.distant().is_some() {
            // As many threads wait for a network as there are readers.
            ASSEMBLY.take();
        }
        outcome
    }

    /// As [`Reader::read_with`], into `room`, which is as long as what is asked for; says how many bytes there are.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "fuse")]
    pub(crate) fn read_into(
        &self,
        offset: u64,
        room: &mut [u8],
        demand: Demand,
    ) -> Result<(usize, Origin)> {
        let range = self.clip(offset, room.len());
        let under_way = self.begin(&range, demand);
        self.fill(&range, room, demand.kept, &under_way)
    }

    /// Fills `room` with the bytes of `range`; says how many there are, and how the unit was come by that took longest.
    fn fill(
        &self,
        range: &Range<u64>,
        room: &mut [u8],
        kept: bool,
        under_way: &UnderWay<'_>,
    ) -> Result<(usize, Origin)> {
        let mut origin = Origin::Hit;
        let mut place = range.start;
        while place < range.end {
            let done = (place - range.start) as usize;
            let room = room.get_mut(done..).unwrap_or_default();
            let ours = under_way.shares.take_next(place);
            if under_way.straight
                && ours
                && let Some(length) =
                    self.shared
                        .decode_straight(place, room, under_way.shares.are_given())?
            {
                place += length as u64;
                origin = Origin::Straight;
                self.shared.outran(range);
                continue;
            }
            let rest = place..range.end;
            let Some(decoded) = self.unit_for(&rest, range, kept)? else {
                break;
            };
            let part = decoded.part(&rest);
            if let Some(room) = room.get_mut(..part.len()) {
                room.copy_from_slice(part);
            }
            place += part.len() as u64;
            origin = origin.max(decoded.origin);
        }
        Ok(((place - range.start) as usize, origin))
    }

    /// Whether the workers leave a processor idle, beside the one that the reader is on.
    #[cfg(feature = "fuse")]
    pub(crate) fn has_idle_processor(&self) -> bool {
        let engine = &self.shared.engine;
        engine.working.count() + 1 < engine.at_once
    }

    /// Whether all these bytes are decoded.
    #[cfg(feature = "fuse")]
    pub(crate) fn has_at_hand(&self, offset: u64, length: usize) -> bool {
        let shared = &self.shared;
        let range = self.clip(offset, length);
        let mut place = range.start;
        while place < range.end {
            match shared.unit_at(place) {
                Some((unit, bytes)) if shared.engine.cache.is_ready(shared.key(unit)) => {
                    place = bytes.end;
                }
                _ => return false,
            }
        }
        true
    }

    fn clip(&self, offset: u64, length: usize) -> Range<u64> {
        let end = self.len().min(offset.saturating_add(length as u64));
        offset.min(end)..end
    }

    /// Takes notice of a read that is about to be answered, and sends the workers ahead of it.
    fn begin(&self, range: &Range<u64>, demand: Demand) -> UnderWay<'_> {
        self.shared.look_ahead_on_disk(range);
        let shares = self.shared.share_out(range);
        let straight = self.shared.goes_straight(range, demand);
        let fetched = self.look_ahead(range, self.shared.left(range, demand, straight));
        self.look_around(range, shares.is_alone);
        UnderWay {
            straight,
            shares,
            _fetched: fetched,
        }
    }

    /// Has decoded, and fetched, what a read and its reader's next ones need; the result keeps what was fetched for the read.
    fn look_ahead(&self, range: &Range<u64>, left: Left) -> Vec<Arc<Fetched>> {
        if left == Left::Everything {
            return Vec::new();
        }
        // In this order: once a reader has come to them, nobody else decodes the bytes and keeps what they are decoded from.
        let mut fetched = self.shared.line.fetched_for(range);
        let unit_end = |offset| self.shared.unit_at(offset).map(|(_, bytes)| bytes.end);
        let ahead = self.shared.prefetch.observe(range, unit_end);
        self.shared.decode_ahead(ahead, left);
        fetched.extend(self.shared.bring_read(range));
        fetched
    }

    /// Has decoded what a reader will need next whom the kernel does not read ahead of: he goes backwards, or in strides.
    /// Only if he is alone: two who read backwards at once on two processors were a tenth slower with it.
    fn look_around(&self, range: &Range<u64>, is_alone: bool) {
        let shared = &self.shared;
        // What is named while he is not is lost: it is named once.
        let lone_unit = |offset| {
            let found = is_alone.then(|| shared.lone_unit_at(offset));
            found.flatten().map(|(_, bytes)| bytes)
        };
        let before = shared
            .backwards
            .observe(range, |offset| lone_unit(offset).map(|bytes| bytes.start));
        let units = shared.strides.observe(range, lone_unit);
        shared.have_disk_read(&before);
        shared.decode_before(before);
        for unit in units {
            shared.have_disk_read(&unit);
            shared.send_ahead(unit, None);
        }
    }

    /// The unit that holds the first byte of `rest`, which a read of `range` needs; `None` if there is no such byte.
    fn unit_for(
        &self,
        rest: &Range<u64>,
        range: &Range<u64>,
        kept: bool,
    ) -> Result<Option<Decoded>> {
        if rest.is_empty() {
            return Ok(None);
        }
        let kept = |bytes: &Range<u64>| match kept {
            true => (bytes.end.min(range.end) - bytes.start.max(range.start)) as usize,
            false => 0,
        };
        let found = self.shared.unit_holding(rest.start, kept)?;
        if found
            .as_ref()
            .is_some_and(|found| found.origin != Origin::Hit)
        {
            self.shared.outran(range);
        }
        Ok(found)
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self
            .read_at(buffer, self.position)
            .map_err(io::Error::other)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(distance) => self.len().checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = place.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "cannot seek before the beginning",
            )
        })?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::fs::{self, File, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    const KEPT: Demand = Demand {
        kept: true,
        more_wait: false,
    };

    fn vector(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(name)
    }

    fn mixed() -> Vec<u8> {
        fs::read(vector("mixed.bin")).unwrap()
    }

    fn small_engine() -> Arc<Engine> {
        Engine::new(&EngineOptions {
            cache_size: 256 << 10,
            threads: 2,
            prefetch: Some(1 << 20),
            ..EngineOptions::default()
        })
        .unwrap()
    }

    fn copy_of(name: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::copy(vector(name), &path).unwrap();
        (directory, path)
    }

    #[test]
    fn both_versions_and_all_codecs_read_alike_at_any_offset() {
        let original = mixed();
        for version in ["v1", "v2"] {
            for codec in ["lz4", "zstd", "snappy", "brotli"] {
                let reader = small_engine()
                    .open(vector(&format!("{version}-{codec}-blake3.warp")))
                    .unwrap();
                assert_eq!(reader.len(), original.len() as u64);
                for (offset, length) in [
                    (0, 1),
                    (32_767, 2),
                    (0, 100_003),
                    (65_530, 4096),
                    (100_002, 50),
                ] {
                    let mut bytes = vec![0; length];
                    let read = reader.read_at(&mut bytes, offset as u64).unwrap();
                    let end = original.len().min(offset + length);
                    assert_eq!(bytes[..read], original[offset..end], "{version} {codec}");
                    let lent =
                        reader.read_with(offset as u64, length, KEPT, |bytes, _| bytes.to_vec());
                    assert_eq!(lent.unwrap(), original[offset..end]);
                }
                assert_eq!(reader.read_at(&mut [0; 8], 100_003).unwrap(), 0);
                assert_eq!(reader.read_at(&mut [0; 8], u64::MAX).unwrap(), 0);
            }
        }
    }

    #[test]
    fn a_damaged_chunk_fails_and_its_neighbours_do_not() {
        let (_directory, path) = copy_of("v2-zstd-blake3.warp");
        let original = mixed();
        // The second chunk's payload begins behind the table and the first.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 64], 82 + 12285 + 40).unwrap();
        let reader = small_engine().open(&path).unwrap();
        let mut bytes = vec![0; 100_003];
        for _ in 0..2 {
            let error = reader.read_at(&mut bytes, 32768).unwrap_err();
            assert_eq!((error.chunk(), error.offset()), (Some(1), Some(32768)));
            assert!(error.is_damage());
            assert_eq!(error.path(), Some(path.as_path()));
        }
        assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), 32768);
        assert_eq!(bytes[..32768], original[..32768]);
        assert!(reader.read_with(0, 100_003, KEPT, |_, _| ()).is_err());
        assert_eq!(reader.read_at(&mut bytes, 65536).unwrap(), 100_003 - 65536);
        assert_eq!(bytes[..100_003 - 65536], original[65536..]);
    }

    #[test]
    fn a_file_cut_short_serves_the_chunks_it_still_holds() {
        let (_directory, path) = copy_of("v2-zstd-none.warp");
        let original = mixed();
        let mut bytes = vec![0; 100_003];
        let before = small_engine().open(&path).unwrap();
        assert_eq!(before.read_at(&mut bytes, 99_000).unwrap(), 1003);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(82 + 12285 + 20).unwrap();
        let after = small_engine().open(&path).unwrap();
        for reader in [before, after] {
            assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), 32768);
            assert_eq!(bytes[..32768], original[..32768]);
            let error = reader.read_at(&mut bytes, 40_000).unwrap_err();
            assert_eq!(error.chunk(), Some(1));
            assert!(error.is_damage(), "{error}");
        }
    }

    #[test]
    fn a_version_1_file_cut_short_or_damaged_serves_the_chunks_it_still_holds() {
        let original = mixed();
        for codec in ["lz4", "zstd", "snappy", "brotli"] {
            let (_directory, path) = copy_of(&format!("v1-{codec}-blake3.warp"));
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            let second = small_engine().open(&path).unwrap();
            let second = second.shared.archive.table().compressed_range(1).unwrap();
            let check = |what: &str| {
                let reader = small_engine().open(&path).unwrap();
                assert_eq!(reader.len(), original.len() as u64);
                let mut bytes = vec![0; 32768];
                assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), 32768);
                assert_eq!(bytes, original[..32768], "{codec} {what}");
                let error = reader.read_at(&mut bytes, 40_000).unwrap_err();
                assert_eq!((error.chunk(), error.offset()), (Some(1), Some(32768)));
                reader.read_at(&mut bytes[..1003], 99_000)
            };
            let beginning = second.start + 16;
            file.write_all_at(&[0xa5; 4000], beginning).unwrap();
            if codec != "snappy" && codec != "lz4" {
                // These two do not notice everything.
                assert_eq!(check("damaged").unwrap(), 1003);
            }
            file.set_len(beginning).unwrap();
            assert!(check("cut").unwrap_err().is_damage());
        }
    }

    #[test]
    fn a_file_changed_in_place_is_not_read_on_and_a_new_open_sees_the_new() {
        let (_directory, path) = copy_of("v2-snappy-none.warp");
        let engine = small_engine();
        let old = engine.open(&path).unwrap();
        let mut bytes = vec![0; 100_003];
        old.read_at(&mut bytes[..10], 0).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, fs::read(vector("v2-lz4-none.warp")).unwrap()).unwrap();
        let error = old.read_at(&mut bytes, 99_000).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Changed), "{error}");
        let new = engine.open(&path).unwrap();
        assert_eq!(new.read_at(&mut bytes, 99_000).unwrap(), 1003);
        let error = old.read_at(&mut bytes, 40_000).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Changed), "{error}");
    }

    #[test]
    fn a_file_replaced_by_rename_is_read_to_its_end() {
        let (directory, path) = copy_of("v2-snappy-none.warp");
        let engine = small_engine();
        let old = engine.open(&path).unwrap();
        let other = directory.path().join("other");
        fs::copy(vector("v2-zeros-10MiB.warp"), &other).unwrap();
        fs::rename(&other, &path).unwrap();
        let mut bytes = vec![0; 100_003];
        old.read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, mixed());
        assert_eq!(engine.open(&path).unwrap().len(), 10 << 20);
    }

    #[test]
    fn a_chunk_that_can_never_fit_is_an_explained_error() {
        let engine = Engine::new(&EngineOptions {
            cache_size: 512 << 10,
            threads: 1,
            prefetch: Some(0),
            ..EngineOptions::default()
        })
        .unwrap();
        let reader = engine.open(vector("v2-zeros-10MiB.warp")).unwrap();
        let error = reader.read_at(&mut [0; 10], 0).unwrap_err();
        assert!(error.to_string().contains("--cache-size"), "{error}");
    }

    #[test]
    fn zeros_are_found_to_be_a_hole_and_text_is_not() {
        let zeros = small_engine_for_zeros()
            .open(vector("v2-zeros-10MiB.warp"))
            .unwrap();
        assert_eq!(zeros.next_data(5).unwrap(), None);
        assert_eq!(zeros.next_hole(5).unwrap(), Some(5));
        assert_eq!(zeros.next_hole(10 << 20).unwrap(), None);
        let mixed = small_engine().open(vector("v2-zstd-none.warp")).unwrap();
        assert_eq!(mixed.next_data(7).unwrap(), Some(7));
        assert_eq!(mixed.next_hole(7).unwrap(), Some(100_003));
    }

    fn small_engine_for_zeros() -> Arc<Engine> {
        Engine::new(&EngineOptions {
            cache_size: 4 << 20,
            threads: 2,
            prefetch: Some(1 << 20),
            ..EngineOptions::default()
        })
        .unwrap()
    }

    #[test]
    fn many_threads_on_one_reader_agree_with_the_original() {
        let original = mixed();
        let reader = small_engine().open(vector("v2-brotli-none.warp")).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                let (reader, original) = (&reader, &original);
                scope.spawn(move || {
                    let mut bytes = vec![0; 5000];
                    for round in 0..200 {
                        let offset = (thread * 7919 + round * 104_729) % original.len();
                        let read = reader.read_at(&mut bytes, offset as u64).unwrap();
                        assert!(read > 0);
                        assert_eq!(bytes[..read], original[offset..offset + read]);
                    }
                });
            }
        });
        let stats = reader.shared.engine.stats();
        assert!(stats.memory_used <= stats.memory_budget);
    }

    #[test]
    fn contents_are_remembered_while_the_file_stays_the_same() {
        let (_directory, path) = copy_of("v1-brotli-blake3.warp");
        let engine = small_engine();
        let number = |reader: &Reader| reader.shared.archive.contents().number;
        let first = number(&engine.open(&path).unwrap());
        assert_eq!(number(&engine.open(&path).unwrap()), first);
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_ne!(number(&engine.open(&path).unwrap()), first);
    }
}
