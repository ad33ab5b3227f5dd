//! Remembered fixed headers: whether a file named `.warp` is one.
//!
//! The answer is kept by device and inode and holds as long as size and modification time are the same, so that a listing
//! reads 18 bytes of each packed file once. The memory is bounded; what was used longest ago goes first. No lock is held
//! while a file is read: two threads may read the same header at the same time, and both get it right.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::source::{Directory, Source};
use crate::error::{IoContext, Result};
use crate::format::{FIXED_HEADER_LEN, FixedHeader};
use crate::identity::Identity;

/// What an entry costs besides its key and value: two links, and a slot in the hash table.
const ENTRY_OVERHEAD: usize = 4 * size_of::<usize>();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// A packed file.
    Packed(FixedHeader),
    /// Not one, for good: it takes another file to change that.
    NotPacked,
    /// The system did not let us look. It may the next time; only the log is not told twice.
    Unreadable,
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    size: u64,
    modified: (i64, u32),
    answer: Answer,
}

/// The memory of fixed headers.
#[derive(Debug)]
pub(super) struct Headers {
    remembered: Mutex<LruCache<(u64, u64), Remembered>>,
    capacity: usize,
}

impl Headers {
    /// A memory of at most `capacity` files. It grows with use.
    pub(super) fn new(capacity: NonZeroUsize) -> Self {
        Self {
            remembered: Mutex::new(LruCache::unbounded()),
            capacity: capacity.get(),
        }
    }

    /// The memory in use, in bytes.
    pub(super) fn memory(&self) -> usize {
        let entry = size_of::<((u64, u64), Remembered)>() + ENTRY_OVERHEAD;
        self.lock().len() * entry
    }

    /// The header of the regular file `name` in `directory`, which was seen as `identity`; `None` if the file is to be
    /// shown raw.
    pub(super) fn of(
        &self,
        source: &Source,
        directory: &Directory,
        name: &[u8],
        identity: &Identity,
    ) -> Option<FixedHeader> {
        let before = self.recall(identity);
        match before {
            Some(Answer::Packed(header)) => return Some(header),
            Some(Answer::NotPacked) => return None,
            Some(Answer::Unreadable) | None => {}
        }
        let path = source.path(directory.location(), name);
        let (identity, answer) = match read(source, directory, name, &path) {
            Ok((identity, header)) => (identity, Answer::Packed(header)),
            Err(error) => {
                let answer = if error.is_damage() {
                    Answer::NotPacked
                } else {
                    Answer::Unreadable
                };
                if before != Some(answer) {
                    tracing::warn!("shown as it is: {error}");
                }
                (*identity, answer)
            }
        };
        self.remember(&identity, answer);
        match answer {
            Answer::Packed(header) => Some(header),
            Answer::NotPacked | Answer::Unreadable => None,
        }
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
        let (identity, header) = read(source, directory, name, &path)?;
        self.remember(&identity, Answer::Packed(header));
        Ok(())
    }

    fn recall(&self, identity: &Identity) -> Option<Answer> {
        let mut remembered = self.lock();
        let found = remembered.get(&(identity.device, identity.inode))?;
        let same = (found.size, found.modified) == (identity.size, identity.modified);
        same.then_some(found.answer)
    }

    fn remember(&self, identity: &Identity, answer: Answer) {
        let mut remembered = self.lock();
        remembered.put(
            (identity.device, identity.inode),
            Remembered {
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

/// Reads the header, and says of which state of the file.
fn read(
    source: &Source,
    directory: &Directory,
    name: &[u8],
    path: &Path,
) -> Result<(Identity, FixedHeader)> {
    // Whoever lists a directory has not read its files.
    let file = source
        .open_unnoticed(directory, name)
        .context("cannot open", path)?;
    let identity = Identity::of(&file).context("cannot examine", path)?;
    let mut bytes = [0; FIXED_HEADER_LEN];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(&file, rest, filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot read", path),
        }
    }
    let header = FixedHeader::parse(bytes.get(..filled).unwrap_or_default())
        .and_then(|header| header.check_room(identity.size).map(|()| header))
        .map_err(|error| error.in_file(path))?;
    Ok((identity, header))
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
        let header = headers.of(&source, &directory, b"x.warp", &before).unwrap();
        assert_eq!(header.original_size, 100_003);

        // Another name that does not exist: the answer can only come from memory.
        let again = headers.of(&source, &directory, b"gone", &before);
        assert_eq!(again, Some(header));

        fs::write(&path, b"no longer one").unwrap();
        let after = identity();
        assert_eq!(headers.of(&source, &directory, b"x.warp", &after), None);
        assert!(headers.memory() > 0);
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
