//! Where an archive's bytes come from.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::identity::Identity;

/// A source of bytes that can be read at any offset by many threads. A file is one kind.
pub(crate) trait Source: Debug + Send + Sync {
    /// Reads at `offset` into `buffer`; fewer bytes than it holds, or none, only at the source's end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// What the source is now.
    fn identity(&self) -> io::Result<Identity>;
}

/// Positioned reads, not a memory map: a map of a file that shrinks ends its reader with SIGBUS.
impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(Identity::of(self)?)
    }
}

impl<S: Source> Source for Arc<S> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }

    fn identity(&self) -> io::Result<Identity> {
        (**self).identity()
    }
}
