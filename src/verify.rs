//! Whether a `.warp` file is whole: every chunk decoded, every size and the checksum compared.

use std::fs::File;
use std::path::Path;

use crate::archive::{Archive, open_regular};
use crate::decoding::{self, Sink};
use crate::error::Result;
use crate::job::{Control, thread_count};
use crate::pack::Summary;
use crate::unpack::summary;

/// Decodes and checks a whole file.
///
/// # Errors
/// The first damage found, in the order of the file; or the file cannot be read.
pub fn verify_file(path: &Path, threads: Option<usize>, control: Control<'_>) -> Result<Summary> {
    verify_opened(open_regular(path)?, path, threads, control)
}

/// Decodes and checks a whole file that is open; `path` is its name.
pub(crate) fn verify_opened(
    file: File,
    path: &Path,
    threads: Option<usize>,
    control: Control<'_>,
) -> Result<Summary> {
    let archive = Archive::from_file(file, path, control.cancelled)?;
    let original_size = archive.header().original_size;
    control.observer.begin(path, Some(original_size));
    let result = decoding::decode_all(
        &archive,
        archive.footer(),
        thread_count(threads),
        control,
        &mut Sink::Nowhere,
    );
    control.observer.end(path);
    result.map(|()| summary(&archive))
}
