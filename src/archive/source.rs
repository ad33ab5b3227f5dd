//! Where an archive's bytes come from.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::identity::Identity;

/// A source of bytes that can be read at any offset by many threads. A file is one kind.
pub(crate) trait Source: Debug + Send + Sync {
    /// Reads at `offset` into `buffer`; fewer bytes than it holds, or none, only at the source's end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// What the source is now.
    fn identity(&self) -> io::Result<Identity>;
}

/// Where the longest file there can be ends, in bytes.
const FARTHEST: u64 = i64::MAX as u64;

/// Positioned reads, not a memory map: a map of a file that shrinks ends its reader with SIGBUS.
impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let place = offset.saturating_add(done as u64);
            // The system refuses to look where no file can reach.
            let within = usize::try_from(FARTHEST.saturating_sub(place)).unwrap_or(usize::MAX);
            let len = rest.len().min(within);
            let room = rest.get_mut(..len).unwrap_or_default();
            match read_once(self, room, place.min(FARTHEST)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn identity(&self) -> io::Result<Identity> {
        Identity::of(self)
    }
}

#[cfg(unix)]
fn read_once(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_once(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

impl<S: Source> Source for Arc<S> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }

    fn identity(&self) -> io::Result<Identity> {
        (**self).identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn behind_the_end_of_a_file_there_is_nothing_however_far() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let mut bytes = [0; 2];
        assert_eq!(Source::read_at(&file, &mut bytes, 2).unwrap(), 1);
        for offset in [3, 1 << 62, i64::MAX as u64, 1 << 63, u64::MAX] {
            assert_eq!(Source::read_at(&file, &mut bytes, offset).unwrap(), 0);
        }
    }
}
