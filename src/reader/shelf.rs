//! The contents of files that are open, or were lately: who opens a file again need not read its table again.
//!
//! What is remembered of files that nobody has open is bounded in number and in bytes, those opened longest ago given up
//! first. Whatever a look or a new file costs does not grow with how many there are. Nothing is read while the lock is held, and no table is freed.
//! Several who open a file at the same time have it read once.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, Weak};

use lru::LruCache;

use crate::archive::Contents;
use crate::identity::Identity;
use crate::in_turn::{InTurn, Turn};
use crate::sync::{Mutex, MutexGuard};

/// How many files' contents are remembered when nobody has them open, at most.
const REMEMBERED_FILES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// See the module's description.
#[derive(Debug)]
pub(super) struct Shelf {
    /// How many bytes what is remembered may take.
    limit: u64,
    state: Mutex<State>,
    /// The files whose contents are being read now.
    reading: InTurn<Identity>,
}

#[derive(Debug)]
struct State {
    /// Kept though nobody may have the file open, with the bytes they take.
    remembered: LruCache<Identity, (Arc<Contents>, u64)>,
    /// How many bytes those are.
    bytes: u64,
    /// The latest contents of each inode, for as long as anybody has them.
    latest: HashMap<(u64, u64), Weak<Contents>>,
    /// How many were put there since those that nobody has any more were looked for.
    unswept: usize,
    /// Files that could not be opened, and the log says so.
    refused: LruCache<Identity, ()>,
}

impl State {
    fn put(&mut self, identity: Identity, contents: Arc<Contents>) -> Option<Arc<Contents>> {
        let memory = contents.memory();
        self.bytes += memory;
        let (_, (before, memory)) = self.remembered.push(identity, (contents, memory))?;
        self.bytes -= memory;
        Some(before)
    }

    fn pop(&mut self, identity: &Identity) -> Option<Arc<Contents>> {
        let (contents, memory) = self.remembered.pop(identity)?;
        self.bytes -= memory;
        Some(contents)
    }

    fn pop_oldest(&mut self) -> Option<Arc<Contents>> {
        let (_, (contents, memory)) = self.remembered.pop_lru()?;
        self.bytes -= memory;
        Some(contents)
    }
}

impl Shelf {
    /// An empty shelf; what is remembered may take `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            state: Mutex::new(State {
                remembered: LruCache::new(REMEMBERED_FILES),
                bytes: 0,
                latest: HashMap::new(),
                unswept: 0,
                refused: LruCache::new(REMEMBERED_FILES),
            }),
            reading: InTurn::default(),
        }
    }

    /// Waits until nobody else reads this file's contents: he may have put them there. Then it is the caller's turn, until the mark is
    /// dropped.
    pub(super) fn begin_reading(&self, identity: Identity) -> Turn<'_, Identity> {
        self.reading.begin(identity)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contents of a file that is as it was when they were read.
    pub(super) fn find(&self, identity: &Identity) -> Option<Arc<Contents>> {
        let mut state = self.lock();
        if let Some((contents, _)) = state.remembered.get(identity) {
            return Some(Arc::clone(contents));
        }
        let inode = (identity.device, identity.inode);
        let latest = state.latest.get(&inode).and_then(Weak::upgrade);
        // Before it is let go of: its last holder may have done so meanwhile.
        drop(state);
        latest.filter(|contents| contents.identity == *identity)
    }

    /// Puts contents on the shelf, in the place of what their inode held before. Whoever was faster has the same.
    pub(super) fn put(&self, contents: Contents) -> Arc<Contents> {
        let contents = Arc::new(contents);
        let identity = contents.identity;
        let inode = (identity.device, identity.inode);
        let mut given_up = Vec::new();
        let mut state = self.lock();
        if let Some(before) = state.latest.get(&inode).and_then(Weak::upgrade) {
            if before.identity == identity {
                return before;
            }
            given_up.extend(state.pop(&before.identity));
            given_up.push(before);
        }
        state.latest.insert(inode, Arc::downgrade(&contents));
        // What is longer than all that may be remembered would drive out all the others, and then itself.
        if contents.memory() <= self.limit {
            given_up.extend(state.put(identity, Arc::clone(&contents)));
        }
        while state.bytes > self.limit
            && let Some(oldest) = state.pop_oldest()
        {
            given_up.push(oldest);
        }
        state.unswept += 1;
        if state.unswept > REMEMBERED_FILES.get() {
            // Seldom: as many may be open, and to look at all of them for each one more would take ever longer.
            state.unswept = 0;
            state.latest.retain(|_, known| known.strong_count() > 0);
        }
        drop(state);
        // Their tables are freed here, where no lock is held.
        drop(given_up);
        contents
    }

    /// Forgets all that nobody has open.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        let given_up: Vec<_> = std::iter::from_fn(|| state.pop_oldest()).collect();
        drop(state);
        drop(given_up);
    }

    /// Takes notice that a file cannot be opened; says whether that is new of it as it is.
    pub(super) fn refuse(&self, identity: Identity) -> bool {
        self.lock().refused.put(identity, ()).is_none()
    }

    /// The bytes of what is remembered and nobody has open.
    pub(super) fn idle(&self) -> u64 {
        let state = self.lock();
        let remembered = state.remembered.iter();
        remembered
            .filter(|(_, (contents, _))| Arc::strong_count(contents) == 1)
            .map(|(_, (_, memory))| memory)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Conditions, Cut, Source, Verify};
    use crate::memory::Budget;
    use crate::reader::{Engine, EngineOptions};
    use std::fs::{self, File};
    use std::io;
    use std::path::Path;
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    fn contents(path: &Path) -> Contents {
        let conditions = Conditions {
            cut: Cut::Accept,
            verify: Verify::Fast,
            budget: &Budget::unlimited(),
            make_room: &|| false,
            cancelled: &AtomicBool::new(false),
        };
        Contents::read(&File::open(path).unwrap(), path, &conditions).unwrap()
    }

    /// So many files' contents.
    fn many(count: usize) -> (tempfile::TempDir, Vec<Contents>) {
        let directory = tempfile::tempdir().unwrap();
        let vector = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v2-lz4-xxh64.warp");
        let read = (0..count).map(|number| {
            let path = directory.path().join(number.to_string());
            fs::copy(&vector, &path).unwrap();
            contents(&path)
        });
        let read = read.collect();
        (directory, read)
    }

    /// What the shelf says its contents take, and what they take.
    fn bytes(shelf: &Shelf) -> (u64, u64) {
        let state = shelf.lock();
        let remembered = state.remembered.iter();
        (
            state.bytes,
            remembered.map(|(_, (known, _))| known.memory()).sum(),
        )
    }

    #[test]
    fn what_is_remembered_takes_no_more_than_it_may_and_the_oldest_leave_first() {
        let (_directory, contents) = many(10);
        let each = contents[0].memory();
        assert!(each > 0);
        let identities: Vec<_> = contents.iter().map(|contents| contents.identity).collect();
        let shelf = Shelf::new(4 * each);
        for contents in contents {
            shelf.put(contents);
        }
        assert_eq!(bytes(&shelf), (4 * each, 4 * each));
        assert_eq!(shelf.idle(), 4 * each);
        assert!(shelf.find(&identities[5]).is_none());
        let open = shelf.find(&identities[6]).unwrap();
        assert_eq!(shelf.idle(), 3 * each);
        shelf.clear();
        assert_eq!(bytes(&shelf), (0, 0));
        // Whoever has a file open keeps its contents where others find them.
        assert!(Arc::ptr_eq(&shelf.find(&identities[6]).unwrap(), &open));
        assert!(shelf.find(&identities[7]).is_none());
    }

    #[test]
    #[cfg(feature = "files")]
    fn what_is_longer_than_all_that_may_be_remembered_drives_out_nothing() {
        use crate::job::Control;
        use crate::pack::{PackOptions, pack_file};

        let (directory, contents_of) = many(3);
        let (plain, packed) = (directory.path().join("x"), directory.path().join("x.warp"));
        // Of chunks that are packed to different lengths.
        let original: Vec<_> = (0..16_u32 << 20)
            .map(|number| (number.wrapping_mul(number >> 9) >> 7) as u8)
            .collect();
        fs::write(&plain, original).unwrap();
        let options = PackOptions {
            chunk_size: Some(4096),
            ..PackOptions::default()
        };
        pack_file(&plain, &packed, &options, Control::default()).unwrap();
        let long = contents(&packed);
        let each = contents_of[0].memory();
        assert!(long.memory() > 3 * each);
        let identities: Vec<_> = contents_of.iter().map(|each| each.identity).collect();
        let shelf = Shelf::new(3 * each);
        for contents in contents_of {
            shelf.put(contents);
        }
        drop(shelf.put(long));
        assert_eq!(bytes(&shelf), (3 * each, 3 * each));
        assert!(
            identities
                .iter()
                .all(|identity| shelf.find(identity).is_some())
        );
    }

    /// A file that is read only when so many have opened it.
    #[derive(Debug)]
    struct Popular {
        file: File,
        opened: Arc<AtomicUsize>,
        readers: usize,
        reads: Arc<AtomicUsize>,
    }

    impl Source for Popular {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            while self.opened.load(SeqCst) < self.readers {
                std::thread::yield_now();
            }
            self.reads.fetch_add(1, SeqCst);
            Source::read_at(&self.file, buffer, offset)
        }

        fn identity(&self) -> io::Result<Identity> {
            Source::identity(&self.file)
        }
    }

    #[test]
    fn several_who_open_a_file_at_the_same_time_have_it_read_once() {
        // Without its blocks' lengths: all of it is decoded to find them.
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1-brotli-blake3.warp");
        let reads_of = |readers: usize| {
            let engine = Engine::new(&EngineOptions::default()).unwrap();
            let (opened, reads) = (Arc::new(AtomicUsize::new(0)), Arc::default());
            let open = || {
                let file = File::open(&path).unwrap();
                let identity = Source::identity(&file).unwrap();
                let source = Popular {
                    file,
                    opened: Arc::clone(&opened),
                    readers,
                    reads: Arc::clone(&reads),
                };
                opened.fetch_add(1, SeqCst);
                let reader = engine.open_source(&path, Box::new(source), identity);
                reader.unwrap()
            };
            std::thread::scope(|scope| {
                let opening: Vec<_> = (0..readers).map(|_| scope.spawn(open)).collect();
                let all: Vec<_> = opening.into_iter().map(|each| each.join()).collect();
                assert!(all.iter().all(Result::is_ok));
            });
            reads.load(SeqCst)
        };
        assert_eq!(reads_of(4), reads_of(1));
    }

    #[test]
    fn a_changed_file_takes_the_place_of_what_it_was() {
        let (directory, mut contents_of) = many(1);
        let path = directory.path().join("0");
        let shelf = Shelf::new(u64::MAX);
        let before = shelf.put(contents_of.remove(0));
        assert!(Arc::ptr_eq(&shelf.put(contents(&path)), &before));
        let file = File::options().append(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        let after = shelf.put(contents(&path));
        assert!(!Arc::ptr_eq(&after, &before));
        assert!(shelf.find(&before.identity).is_none());
        assert_eq!(bytes(&shelf), (after.memory(), after.memory()));
    }

    #[test]
    fn open_files_beyond_those_remembered_are_found_and_swept_when_closed() {
        let (_directory, contents) = many(3);
        let shelf = Shelf::new(0);
        let mut open: Vec<_> = contents.into_iter().map(|each| shelf.put(each)).collect();
        for contents in &open {
            assert!(shelf.find(&contents.identity).is_some());
        }
        let kept = open.pop().unwrap();
        drop(open);
        shelf.lock().unswept = REMEMBERED_FILES.get();
        let (_other, more) = many(1);
        for contents in more {
            shelf.put(contents);
        }
        assert_eq!(shelf.lock().latest.len(), 2);
        assert!(shelf.find(&kept.identity).is_some());
    }
}
