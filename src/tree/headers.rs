//! Remembered headers: whether a file named `.warp` is one, and how large its original is.
//!
//! The answer is kept by device and inode and holds as long as birth time, size and modification time are the same, so that a listing
//! reads 18 bytes of each packed file once; of one that does not say its original's size, also the headers of its chunks. The
//! memory is bounded; what was used longest ago goes first. A file may be changed between two looks at it: an answer is kept, and
//! the size in it told, only with the state that the file had before it was read and after. No lock is held while a file is read,
//! but it is marked: who asks for the same file meanwhile waits for the answer, so that many names of one file of many chunks cost
//! one walk through it.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::may_pass;
use super::source::{Directory, Patience, Source};
use crate::archive::{Glance, glance};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::identity::Identity;
use crate::in_turn::InTurn;

/// What an entry costs besides its key and value: two links, and a slot in the hash table.
const ENTRY_OVERHEAD: usize = 4 * size_of::<usize>();

/// How often a file's header is read that is in another state afterwards than before.
const MOST_LOOKS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// A packed file.
    Packed(Glance),
    /// Not one, or none that can be shown, for good: it takes another file to change that.
    NotPacked,
    /// The system did not let us look. It may the next time; only the log is not told twice.
    Untold,
}

impl Answer {
    /// What needs no second look.
    fn lasting(self) -> Option<Option<Glance>> {
        match self {
            Answer::Packed(glance) => Some(Some(glance)),
            Answer::NotPacked => Some(None),
            Answer::Untold => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    born: (i64, u32),
    size: u64,
    modified: (i64, u32),
    answer: Answer,
}

/// The memory of fixed headers.
#[derive(Debug)]
pub(super) struct Headers {
    remembered: Mutex<LruCache<(u64, u64), Remembered>>,
    capacity: usize,
    /// The files that are being read now, by device and inode.
    reading: InTurn<(u64, u64)>,
}

impl Headers {
    /// A memory of at most `capacity` files. It grows with use.
    pub(super) fn new(capacity: NonZeroUsize) -> Self {
        Self {
            remembered: Mutex::new(LruCache::unbounded()),
            capacity: capacity.get(),
            reading: InTurn::default(),
        }
    }

    /// The memory in use, in bytes.
    pub(super) fn memory(&self) -> usize {
        let entry = size_of::<((u64, u64), Remembered)>() + ENTRY_OVERHEAD;
        self.lock().len() * entry
    }

    /// The header of the regular file `name` in `directory`, in the state that it was seen in, `identity`; `None` if the file is
    /// to be shown raw: it is not packed, or may not be read by the server, or is gone.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if it is in another state by now: whoever has the one open would be told the size of the other. Or
    /// the system could not say: such a file can be looked up under neither name, and nobody is to conclude that there is none.
    pub(super) fn of(
        &self,
        source: &Source,
        directory: &Directory,
        name: &[u8],
        identity: &Identity,
        patience: Patience,
    ) -> Result<Option<Glance>> {
        let (state, found) = self.find(source, directory, name, identity, patience)?;
        if state != Some(*identity) {
            let path = source.path(directory.location(), name);
            return Err(Error::from(ErrorKind::Changed).in_file(&path));
        }
        Ok(found)
    }

    /// Whether the regular file `name` in `directory`, which was seen as `identity`, is packed, in whatever state it is by now.
    ///
    /// # Errors
    /// The system could not say, as with [`Headers::of`].
    pub(super) fn is_packed(
        &self,
        source: &Source,
        directory: &Directory,
        name: &[u8],
        identity: &Identity,
        patience: Patience,
    ) -> Result<bool> {
        let (_, found) = self.find(source, directory, name, identity, patience)?;
        Ok(found.is_some())
    }

    /// The header of a file that was seen as `identity`, and the state of the file that it is of, as [`look_at`] has it.
    fn find(
        &self,
        source: &Source,
        directory: &Directory,
        name: &[u8],
        identity: &Identity,
        patience: Patience,
    ) -> Result<(Option<Identity>, Option<Glance>)> {
        if let Some(known) = self.recall(identity).and_then(Answer::lasting) {
            return Ok((Some(*identity), known));
        }
        let _reading = self.reading.begin((identity.device, identity.inode));
        // Whoever was waited for may have found it.
        let before = self.recall(identity);
        if let Some(known) = before.and_then(Answer::lasting) {
            return Ok((Some(*identity), known));
        }
        let path = source.path(directory.location(), name);
        let looked = open(source, directory, name, &path, patience)
            .and_then(|file| look_at(&file, &path, *identity));
        let (state, found) = looked.unwrap_or_else(|error| (Some(*identity), Err(error)));
        let found = self.judge(state.as_ref(), found, before, &path)?;
        Ok((state, found))
    }

    /// The header of what was listed as a regular file `name` in `directory`, with this device and inode number, and of which
    /// nothing is remembered: there is no state of it to compare, and so it need not be examined before it is opened. `None` if
    /// something is, or it does not open, or turns out to have other numbers; then [`Headers::is_packed`] has to say.
    pub(super) fn of_unseen(
        &self,
        source: &Source,
        directory: &Directory,
        name: &[u8],
        file: (u64, u64),
        patience: Patience,
    ) -> Option<Result<Option<Glance>>> {
        let _reading = self.reading.begin(file);
        if self.lock().contains(&file) {
            return None;
        }
        let path = source.path(directory.location(), name);
        let opened = open(source, directory, name, &path, patience).ok()?;
        let identity = examine(&opened, &path).ok()?;
        if (identity.device, identity.inode) != file {
            // What is remembered is found by the file's own numbers.
            return None;
        }
        let (state, found) = look_at(&opened, &path, identity).ok()?;
        Some(self.judge(state.as_ref(), found, None, &path))
    }

    /// Remembers what was found in a file in this `state`, if it was in one, and tells the log if it is not packed or could not be
    /// looked at, unless that was so `before`.
    fn judge(
        &self,
        state: Option<&Identity>,
        found: Result<Option<Glance>>,
        before: Option<Answer>,
        path: &Path,
    ) -> Result<Option<Glance>> {
        let (answer, outcome) = match found {
            Ok(Some(glance)) => (Answer::Packed(glance), Ok(Some(glance))),
            Ok(None) => {
                tracing::warn!("shown as it is: {}", too_many_chunks(path));
                (Answer::NotPacked, Ok(None))
            }
            Err(error) => {
                let error = error.in_file(path);
                let answer = match error.is_damage() {
                    true => Answer::NotPacked,
                    false => Answer::Untold,
                };
                let may_pass = may_pass(&error);
                if before != Some(answer) {
                    let shown = match may_pass {
                        true => "cannot be shown for now",
                        false => "shown as it is",
                    };
                    tracing::warn!("{shown}: {error}");
                }
                (answer, if may_pass { Err(error) } else { Ok(None) })
            }
        };
        if let Some(state) = state {
            self.remember(state, answer);
        }
        outcome
    }

    /// The same, where nothing but a packed file will do.
    ///
    /// # Errors
    /// What [`Headers::of`] would log.
    pub(super) fn require(
        &self,
        source: &Source,
        directory: &Directory,
        name: &[u8],
    ) -> Result<()> {
        let path = source.path(directory.location(), name);
        let file = open(source, directory, name, &path, Patience::ForLeases)?;
        let identity = examine(&file, &path)?;
        let (state, found) = look_at(&file, &path, identity)?;
        let glance = found.map_err(|error| error.in_file(&path))?;
        let glance = glance.ok_or_else(|| too_many_chunks(&path))?;
        if let Some(state) = state {
            self.remember(&state, Answer::Packed(glance));
        }
        Ok(())
    }

    fn recall(&self, identity: &Identity) -> Option<Answer> {
        let mut remembered = self.lock();
        let found = remembered.get(&(identity.device, identity.inode))?;
        // Another file may have got the number of one that is gone.
        let same = (found.born, found.size, found.modified)
            == (identity.born, identity.size, identity.modified);
        same.then_some(found.answer)
    }

    fn remember(&self, identity: &Identity, answer: Answer) {
        let mut remembered = self.lock();
        remembered.put(
            (identity.device, identity.inode),
            Remembered {
                born: identity.born,
                size: identity.size,
                modified: identity.modified,
                answer,
            },
        );
        if remembered.len() > self.capacity {
            remembered.pop_lru();
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<(u64, u64), Remembered>> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many_chunks(path: &Path) -> Error {
    let why = "has more chunks than a mount looks at to know how large the original is; unpack it to read it";
    Error::unusable(why).in_file(path)
}

/// Opens a file to read its header.
fn open(
    source: &Source,
    directory: &Directory,
    name: &[u8],
    path: &Path,
    patience: Patience,
) -> Result<File> {
    // Whoever lists a directory has not read its files.
    source
        .open_unnoticed(directory, name, patience)
        .context("cannot open", path)
}

fn examine(file: &File, path: &Path) -> Result<Identity> {
    Identity::of(file).context("cannot examine", path)
}

/// Reads the header of an open file that was `seen` in some state, and says in which state it was before and after that; `None`
/// if somebody changes it all the while, and no state of it is sure to have that header.
///
/// # Errors
/// The file cannot be examined.
fn look_at(
    file: &File,
    path: &Path,
    mut seen: Identity,
) -> Result<(Option<Identity>, Result<Option<Glance>>)> {
    let mut looks = 1;
    loop {
        let found = glance(file, path, seen.size);
        let now = examine(file, path)?;
        if now == seen {
            return Ok((Some(now), found));
        }
        if looks == MOST_LOOKS {
            return Ok((None, found));
        }
        looks += 1;
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_header_is_read_once_while_the_file_stays_the_same_and_again_when_it_changes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.warp");
        let vector = include_bytes!("../../tests/data/v2-lz4-none.warp");
        fs::write(&path, vector).unwrap();
        let source = Source::open(root.path(), root.path().to_path_buf(), Vec::new()).unwrap();
        let directory = source.directory(b"").unwrap();
        let headers = Headers::new(NonZeroUsize::new(2).unwrap());
        let identity = || Identity::of(&fs::File::open(&path).unwrap()).unwrap();
        let before = identity();
        let file = (before.device, before.inode);
        let unseen = |name| headers.of_unseen(&source, &directory, name, file, Patience::None);
        assert!(unseen(b"gone").is_none(), "it does not open");
        let listed_otherwise = (before.device, before.inode + 1);
        let unlike = headers.of_unseen(
            &source,
            &directory,
            b"x.warp",
            listed_otherwise,
            Patience::None,
        );
        assert!(unlike.is_none(), "it would never be found again");
        assert_eq!(headers.memory(), 0);
        let header = unseen(b"x.warp").unwrap().unwrap().unwrap();
        assert_eq!(header.original_size, 100_003);
        assert!(unseen(b"x.warp").is_none(), "it has been seen");

        // Another name that does not exist: the answer can only come from memory.
        let again = headers.of(&source, &directory, b"gone", &before, Patience::None);
        assert_eq!(again.unwrap(), Some(header));
        // Another file of that number, with the size and the time of the first.
        let another = Identity {
            born: (before.born.0 + 1, 0),
            ..before
        };
        assert_eq!(headers.recall(&another), None);

        fs::write(&path, b"no longer one").unwrap();
        let after = identity();
        let raw = headers.of(&source, &directory, b"x.warp", &after, Patience::None);
        assert_eq!(raw.unwrap(), None);
        assert!(headers.memory() > 0);
    }

    #[test]
    fn a_file_that_changed_since_it_was_seen_is_not_told_with_the_size_of_its_new_original() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.warp");
        fs::write(&path, include_bytes!("../../tests/data/v2-lz4-none.warp")).unwrap();
        let source = Source::open(root.path(), root.path().to_path_buf(), Vec::new()).unwrap();
        let directory = source.directory(b"").unwrap();
        let headers = Headers::new(NonZeroUsize::new(2).unwrap());
        let identity = || Identity::of(&fs::File::open(&path).unwrap()).unwrap();
        let of = |seen| headers.of(&source, &directory, b"x.warp", seen, Patience::None);
        let is_packed =
            |seen| headers.is_packed(&source, &directory, b"x.warp", seen, Patience::None);
        let before = identity();
        fs::write(&path, include_bytes!("../../tests/data/v2-empty.warp")).unwrap();
        let after = identity();
        // Whether anything is remembered of it or not.
        for _ in 0..2 {
            let error = of(&before).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Changed), "{error}");
            assert!(is_packed(&before).unwrap());
            assert_eq!(of(&after).unwrap().unwrap().original_size, 0);
        }
        let file = fs::File::open(&path).unwrap();
        assert_eq!(look_at(&file, &path, before).unwrap().0, Some(after));
    }

    #[test]
    fn who_asks_while_another_reads_the_file_waits_for_its_answer() {
        let root = tempfile::tempdir().unwrap();
        let source = Source::open(root.path(), root.path().to_path_buf(), Vec::new()).unwrap();
        let directory = source.directory(b"").unwrap();
        let headers = Headers::new(NonZeroUsize::new(2).unwrap());
        let path = root.path().join("x.warp");
        fs::write(&path, include_bytes!("../../tests/data/v2-lz4-none.warp")).unwrap();
        let identity = Identity::of(&fs::File::open(&path).unwrap()).unwrap();
        let file = (identity.device, identity.inode);
        let reading = headers.reading.begin(file);
        std::thread::scope(|scope| {
            // Reading this name fails, so the answer can only be the other's.
            let asked =
                scope.spawn(|| headers.of(&source, &directory, b"gone", &identity, Patience::None));
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!asked.is_finished());
            let file = open(&source, &directory, b"x.warp", &path, Patience::None).unwrap();
            let glance = glance(&file, &path, identity.size).unwrap();
            headers.remember(&identity, Answer::Packed(glance.unwrap()));
            drop(reading);
            assert_eq!(asked.join().unwrap().unwrap(), glance);
        });
        drop(headers.reading.begin(file));
    }

    #[test]
    fn no_more_files_are_remembered_than_the_capacity() {
        let headers = Headers::new(NonZeroUsize::new(2).unwrap());
        let identity = |inode| Identity {
            born: (0, 0),
            device: 1,
            inode,
            size: 0,
            modified: (0, 0),
        };
        for inode in 0..5 {
            headers.remember(&identity(inode), Answer::NotPacked);
        }
        let kept: Vec<_> = (0..5)
            .map(|n| headers.recall(&identity(n)).is_some())
            .collect();
        assert_eq!(kept, [false, false, false, true, true]);
    }
}
