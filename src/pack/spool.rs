//! Where the payloads of a stream, and the table and the record of a large file, wait until it is their turn to be written: in an
//! unnamed file, beside the target if that has a place.
//!
//! A disk that cannot take what is written says so when that is synced, and to nobody who reads it back: then the bytes
//! may be others. To sync a file that is to be thrown away would cost as much as writing it twice, so its bytes are hashed
//! on the way in and on the way out.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, IoContext, Result};
use crate::format::Fingerprint;
#[cfg(feature = "files")]
use crate::output::NewFile;

/// How much is copied at a time, in bytes.
const BUFFER_LEN: usize = 256 << 10;

/// How much is kept in memory before it is spooled, in bytes.
const GATHERED_LEN: usize = 256 << 10;

/// Where to set something aside while a result is made.
pub(super) trait Aside: Sync {
    /// What the result is called in messages.
    fn result(&self) -> &Path;

    /// An unnamed file that is gone when it is closed.
    fn file(&self) -> Result<File>;
}

/// Beside the result, where there is room for it.
#[cfg(feature = "files")]
impl Aside for NewFile {
    fn result(&self) -> &Path {
        self.target()
    }

    fn file(&self) -> Result<File> {
        self.spool()
    }
}

/// In the system's directory of temporary files, for a result that is called so and has no place.
pub(super) struct Unnamed<'a>(pub(super) &'a Path);

impl Aside for Unnamed<'_> {
    fn result(&self) -> &Path {
        self.0
    }

    fn file(&self) -> Result<File> {
        tempfile::tempfile().context("cannot make a temporary file for", self.0)
    }
}

/// See the module's description.
pub(super) struct Spool(Fingerprinted<File>);

impl Spool {
    pub(super) fn new(aside: &dyn Aside) -> Result<Self> {
        Ok(Self(Fingerprinted::new(aside.file()?)))
    }

    /// Copies all that was written to `target`, called `path` in messages, and says how many bytes that was.
    ///
    /// # Errors
    /// It cannot be read or written, or what is read is not what was written.
    pub(super) fn copy_to(mut self, mut target: impl Write, path: &Path) -> Result<u64> {
        let Fingerprinted {
            target: file,
            fingerprint: written,
        } = &mut self.0;
        let mut read = Fingerprint::default();
        let mut copied = 0;
        let mut buffer = vec![0; BUFFER_LEN];
        file.rewind()
            .context("cannot read back what was set aside for", path)?;
        loop {
            let len = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.context("cannot read back what was set aside for", path)?,
            };
            let bytes = buffer.get(..len).unwrap_or(&[]);
            read.update(bytes);
            target.write_all(bytes).context("cannot write", path)?;
            copied += len as u64;
        }
        if read.digest() != written.digest() {
            let why =
                "the disk gave back other bytes than were written to it: it may be full or failing";
            return Err(Error::unusable(why).in_file(path));
        }
        Ok(copied)
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that come in small pieces: in memory while they are few, then in a spool.
#[derive(Default)]
pub(super) struct Gathered {
    /// What was not spooled yet.
    bytes: Vec<u8>,
    spool: Option<Spool>,
}

impl Gathered {
    /// Adds some more.
    pub(super) fn push(&mut self, bytes: &[u8], aside: &dyn Aside) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() < GATHERED_LEN {
            return Ok(());
        }
        let spool = match &mut self.spool {
            Some(spool) => spool,
            none => none.insert(Spool::new(aside)?),
        };
        let written = spool.write_all(&self.bytes);
        written.context("cannot write", aside.result())?;
        self.bytes.clear();
        Ok(())
    }

    /// As [`Spool::copy_to`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn copy_to(self, mut target: impl Write, path: &Path) -> Result<u64> {
        let spooled = match self.spool {
            Some(spool) => spool.copy_to(&mut target, path)?,
            None => 0,
        };
        target
            .write_all(&self.bytes)
            .context("cannot write", path)?;
        Ok(spooled + self.bytes.len() as u64)
    }
}

/// Passes bytes on, and keeps a fingerprint of them.
pub(super) struct Fingerprinted<W> {
    target: W,
    pub(super) fingerprint: Fingerprint,
}

impl<W> Fingerprinted<W> {
    pub(super) fn new(target: W) -> Self {
        Self {
            target,
            fingerprint: Fingerprint::default(),
        }
    }
}

impl<W: Write> Write for Fingerprinted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.target.write(bytes)?;
        self.fingerprint.update(bytes.get(..len).unwrap_or(&[]));
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}
