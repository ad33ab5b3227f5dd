//! What makes a file the same file as before.
//!
//! Device, inode and birth time say which file it is (inode numbers are used again, and a file that was copied with its
//! times may have another's size and modification time), size and modification time that nobody wrote to it since. The
//! change time is left out on purpose: a rename over a held file changes it, and the held file still has every byte it
//! had.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

#[cfg(feature = "files")]
use rustix::fs::{AtFlags, Statx, StatxFlags};

/// The state of a file: equal identities mean the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// The device the file lies on.
    pub(crate) device: u64,
    /// Its inode number there.
    pub(crate) inode: u64,
    /// When it was made: seconds since 1970 and nanoseconds; zero where the file system does not know.
    pub(crate) born: (i64, u32),
    /// Its size, in bytes.
    pub(crate) size: u64,
    /// Its modification time: seconds since 1970, and nanoseconds.
    pub(crate) modified: (i64, u32),
}

impl Identity {
    /// The identity of an open file.
    #[cfg(feature = "files")]
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted)?;
        Ok(Self::from(&found))
    }

    /// The identity of an open file.
    #[cfg(not(feature = "files"))]
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (device, inode) = which(file, &metadata)?;
        Ok(Self {
            device,
            inode,
            born: metadata.created().map_or((0, 0), since_1970),
            size: metadata.len(),
            modified: since_1970(metadata.modified()?),
        })
    }

    /// The identity of an object in a store, of that `name` among all objects of all stores. Where a server gives no ETag, size and
    /// time have to do.
    ///
    /// Servers may be hostile: what they say is hashed by BLAKE3, and 192 bits of it take the place of the times, so that no two
    /// states look alike that are not. No file has such a device number.
    #[cfg(feature = "remote")]
    pub(crate) fn of_object(
        name: &str,
        size: u64,
        etag: Option<&str>,
        modified: SystemTime,
    ) -> Self {
        let name = blake3::hash(name.as_bytes());
        let time = modified.duration_since(SystemTime::UNIX_EPOCH);
        let mut state = blake3::Hasher::new();
        state.update(name.as_bytes());
        state.update(&size.to_le_bytes());
        match etag {
            Some(etag) => state.update(b"e").update(etag.as_bytes()),
            None => state.update(&time.unwrap_or_default().as_nanos().to_le_bytes()),
        };
        let word = |digest: &blake3::Hash, number: usize| {
            let word = digest.as_bytes().as_chunks().0.get(number);
            u64::from_le_bytes(word.copied().unwrap_or_default())
        };
        let state = state.finalize();
        let nanoseconds = word(&state, 2);
        Self {
            device: word(&name, 0) | 1 << 63,
            inode: word(&name, 1),
            born: (word(&state, 0).cast_signed(), nanoseconds as u32),
            size,
            modified: (word(&state, 1).cast_signed(), (nanoseconds >> 32) as u32),
        }
    }

    /// A digest of all of it.
    #[cfg(feature = "remote")]
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut digest = blake3::Hasher::new();
        for word in [
            self.device,
            self.inode,
            self.born.0.cast_unsigned(),
            self.born.1.into(),
            self.size,
            self.modified.0.cast_unsigned(),
            self.modified.1.into(),
        ] {
            digest.update(&word.to_le_bytes());
        }
        digest.finalize().into()
    }

    /// The modification time.
    pub(crate) fn modified_time(&self) -> SystemTime {
        let (seconds, nanoseconds) = self.modified;
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let time = if seconds < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(whole)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(whole)
        };
        time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into())))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether both are states of one file, changed in between or not.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Seconds since 1970, and nanoseconds; a time before is its distance from there, negative.
#[cfg(not(feature = "files"))]
fn since_1970(time: SystemTime) -> (i64, u32) {
    let (seconds, nanoseconds, sign) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (after.as_secs(), after.subsec_nanos(), 1),
        Err(error) => {
            let before = error.duration();
            (before.as_secs(), before.subsec_nanos(), -1)
        }
    };
    (
        i64::try_from(seconds).unwrap_or(i64::MAX) * sign,
        nanoseconds,
    )
}

/// Device and inode of an open file.
#[cfg(all(unix, not(feature = "files")))]
fn which(_: &File, metadata: &std::fs::Metadata) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Ok((metadata.dev(), metadata.ino()))
}

/// Volume and file number of an open file.
#[cfg(all(windows, not(feature = "files")))]
fn which(file: &File, _: &std::fs::Metadata) -> io::Result<(u64, u64)> {
    let information = winapi_util::file::information(file)?;
    Ok((information.volume_serial_number(), information.file_index()))
}

#[cfg(feature = "files")]
impl From<&Statx> for Identity {
    fn from(found: &Statx) -> Self {
        Self {
            device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            born: (found.stx_btime.tv_sec, found.stx_btime.tv_nsec),
            size: found.stx_size,
            modified: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_rename_over_a_held_file_leaves_its_identity_and_a_write_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("held");
        fs::write(&path, "before").unwrap();
        let held = fs::File::open(&path).unwrap();
        let before = Identity::of(&held).unwrap();
        let metadata = held.metadata().unwrap();
        assert_eq!(
            (before.device, before.inode, before.size),
            (metadata.dev(), metadata.ino(), 6)
        );

        fs::write(directory.path().join("new"), "another").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert_eq!(Identity::of(&held).unwrap(), before);
        let other = Identity::of(&fs::File::open(&path).unwrap()).unwrap();
        assert_ne!(other.inode, before.inode);

        fs::write(&path, "yet another").unwrap();
        let written = Identity::of(&fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(written.inode, other.inode);
        assert_ne!(written, other);
    }
}
