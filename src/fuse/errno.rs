//! The one place where an error becomes an errno.

use std::io;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind};

/// The largest number that the kernel takes as an answer (`fuse_dev_do_write`).
const LARGEST: i32 = 511;

/// What the kernel, and so the reading program, is told of an error.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        // Damage is an input/output error, as it is on a disk.
        ErrorKind::NotWarp
        | ErrorKind::UnsupportedVersion(_)
        | ErrorKind::UnknownRelease { .. }
        | ErrorKind::ChunkSizes { .. }
        | ErrorKind::UnknownCodec(_)
        | ErrorKind::UnknownChecksum(_)
        | ErrorKind::DigestLength { .. }
        | ErrorKind::EndsInside(_)
        | ErrorKind::ChunkCount { .. }
        | ErrorKind::SizesOverflow { .. }
        | ErrorKind::EmptyPayload { .. }
        | ErrorKind::SizeSum { .. }
        | ErrorKind::Decode { .. }
        | ErrorKind::DecodedSize { .. }
        | ErrorKind::ChecksumMismatch { .. }
        | ErrorKind::DigestMismatch { .. }
        | ErrorKind::DamagedBeginning
        | ErrorKind::DamagedRecord(_)
        | ErrorKind::OverBudget { .. }
        | ErrorKind::NoMemory(_)
        | ErrorKind::Unstreamable { .. }
        | ErrorKind::Panicked => Errno::IO,
        // The kernel looks the name up again and, on open, tries once more.
        ErrorKind::Changed | ErrorKind::InputChanged => Errno::STALE,
        ErrorKind::Exists => Errno::EXIST,
        // Not EMFILE, which would say that the reading program has too many.
        ErrorKind::TooManyOpen { .. } => Errno::NFILE,
        ErrorKind::Unusable(_) => Errno::INVAL,
        ErrorKind::Cancelled => Errno::INTR,
        ErrorKind::Io { source, .. } => match Errno::from_io_error(source) {
            Some(Errno::MFILE) => Errno::NFILE,
            Some(number) if LARGEST >= number.raw_os_error() => number,
            // One of the kernel's own, which some file systems let out. It would not take it back, and its answer be lost.
            Some(_) => Errno::IO,
            None => other_io(source.kind()),
        },
    }
}

fn other_io(kind: io::ErrorKind) -> Errno {
    match kind {
        io::ErrorKind::NotFound => Errno::NOENT,
        io::ErrorKind::PermissionDenied => Errno::ACCESS,
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_number_is_passed_on() {
        let told = |number| {
            let error = Error::io("cannot read", io::Error::from_raw_os_error(number));
            errno(&error)
        };
        assert_eq!(told(28), Errno::NOSPC);
        // It is the server that has too many files open, and not who reads.
        assert_eq!(told(24), Errno::NFILE);
        // What the client of a network file system lets out (ENOTSUPP).
        assert_eq!(told(524), Errno::IO);
        assert_eq!(
            errno(&ErrorKind::Changed.into()).raw_os_error(),
            Errno::STALE.raw_os_error()
        );
        assert_eq!(errno(&ErrorKind::NoMemory(String::new()).into()), Errno::IO);
        assert_eq!(
            errno(&ErrorKind::NotWarp.into()).raw_os_error(),
            Errno::IO.raw_os_error()
        );
    }
}
