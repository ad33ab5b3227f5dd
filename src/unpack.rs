//! From a `.warp` file back to its original: decoded in parallel, checked on the way, with holes where there are zeros.

#[cfg(feature = "files")]
mod files;

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

#[cfg(feature = "files")]
pub use files::unpack_file;
#[cfg(feature = "files")]
pub(crate) use files::{prove_unpacked, unpack_opened};

use crate::archive::{Archive, Input};
use crate::decoding::{Decoding, Sink, open_damaged};
use crate::error::{Error, IoContext, Result};
use crate::job::{Control, thread_count};
use crate::pack::Summary;

/// How to unpack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnpackOptions {
    /// Only these bytes of the original. The checksum, which is the whole file's, is then not checked.
    pub range: Option<Range<u64>>,
    /// How many chunks to work on at once; as many as there are cores by default.
    pub threads: Option<usize>,
    /// Replace files that exist, and remove inputs that have further names.
    pub force: bool,
    /// Remove the input once the output has been read back and compared. Not together with `range`.
    pub remove: bool,
    /// Go on behind damage: what is lost is written as zeros, told to the observer and counted in [`Summary::lost`]. Not
    /// together with `remove`.
    pub keep_going: bool,
}

/// The name of the original: `name` without its `.warp`. `None` if it does not end so, or is nothing else.
pub fn original_name(name: &Path) -> Option<PathBuf> {
    if name.extension()? != "warp" || matches!(name.file_stem()?.as_encoded_bytes(), b"." | b"..") {
        return None;
    }
    Some(name.with_extension(""))
}

/// Unpacks a file into `output`, in order; errors in writing call it standard output. What was written before an error was
/// noticed has been written: a checksum mismatch is noticed at the end.
///
/// # Errors
/// The input is damaged or changed meanwhile, or the output cannot be written.
pub fn unpack_to(
    input: impl AsRef<Path>,
    output: &mut (dyn Write + Send),
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let input = Input::open(input.as_ref())?;
    input.stoppable(control.cancelled, || {
        let open = |verify, cut| input.archive(verify, cut, control.cancelled);
        let (archive, refused) = open_damaged(open, options.keep_going)?;
        let refused = refused.as_ref();
        let name = Path::new("standard output");
        let mut sink = Sink::Stream(&mut *output, name);
        let lost = decode(&archive, refused, options, control, &mut sink)?;
        output.flush().context("cannot write", name)?;
        Ok(summary(&archive, lost))
    })
}

fn decode(
    archive: &Archive,
    refused: Option<&Error>,
    options: &UnpackOptions,
    control: Control<'_>,
    sink: &mut Sink<'_>,
) -> Result<u64> {
    let range = wanted(archive, options)?;
    let threads = thread_count(options.threads);
    let size = archive.description().original_size;
    let announced = range.as_ref().map_or(size, |range| range.end - range.start);
    control.observer.begin(archive.path(), Some(announced));
    let job = Decoding {
        archive,
        threads,
        control,
        digest: archive.footer(),
        proves_record: false,
        keep_going: options.keep_going,
        refused,
    };
    let result = match range {
        Some(range) => job.range(range, sink),
        None => job.all(sink),
    };
    control.observer.end(archive.path());
    result
}

/// The range asked for, if one was, checked against the original's size.
fn wanted(archive: &Archive, options: &UnpackOptions) -> Result<Option<Range<u64>>> {
    let size = archive.description().original_size;
    match &options.range {
        Some(range) if range.start > range.end || range.end > size => {
            Err(Error::unusable(format!(
                "the original has {size} bytes: --range {}..{} is not within them",
                range.start, range.end
            ))
            .in_file(archive.path()))
        }
        range => Ok(range.clone()),
    }
}

/// What an archive says of itself, and how many bytes of it are lost.
pub(crate) fn summary(archive: &Archive, lost: u64) -> Summary {
    Summary {
        encodings: archive.description().encodings,
        chunks: archive.table().len(),
        original_size: archive.description().original_size,
        packed_size: archive.file_len(),
        lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_loses_its_ending_and_nothing_else() {
        let original = |name: &str| original_name(Path::new(name));
        assert_eq!(original("a/b.txt.warp"), Some("a/b.txt".into()));
        assert_eq!(original("b.warp.warp"), Some("b.warp".into()));
        assert_eq!(original("a.warp/b"), None);
        assert_eq!(original("a/.warp"), None);
        assert_eq!(original("a/..warp"), None);
        assert_eq!(original("a/...warp"), None);
        assert_eq!(original("/"), None);
    }
}
