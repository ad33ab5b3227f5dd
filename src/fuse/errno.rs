//! The one place where an error becomes an errno.

use std::io;

use fuser::Errno;

use crate::error::{Error, ErrorKind};

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
        | ErrorKind::Unstreamable { .. }
        | ErrorKind::Panicked => Errno::EIO,
        // The kernel looks the name up again and, on open, tries once more.
        ErrorKind::Changed | ErrorKind::InputChanged => Errno::ESTALE,
        ErrorKind::Exists => Errno::EEXIST,
        // Not EMFILE, which would say that the reading program has too many.
        ErrorKind::TooManyOpen { .. } => Errno::ENFILE,
        ErrorKind::Unusable(_) => Errno::EINVAL,
        ErrorKind::Cancelled => Errno::EINTR,
        ErrorKind::Io { source, .. } => source
            .raw_os_error()
            .map_or_else(|| other_io(source.kind()), Errno::from_i32),
    }
}

fn other_io(kind: io::ErrorKind) -> Errno {
    match kind {
        io::ErrorKind::NotFound => Errno::ENOENT,
        io::ErrorKind::PermissionDenied => Errno::EACCES,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_number_is_passed_on() {
        let error = Error::io("cannot read", io::Error::from_raw_os_error(24));
        assert_eq!(errno(&error).code(), 24);
        assert_eq!(
            errno(&ErrorKind::Changed.into()).code(),
            Errno::ESTALE.code()
        );
        assert_eq!(errno(&ErrorKind::NotWarp.into()).code(), Errno::EIO.code());
    }
}
