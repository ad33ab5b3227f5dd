//! From a `.warp` file back to its original: decoded in parallel, checked on the way, with holes where there are zeros.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, Stat};

use crate::archive::{Archive, Verify, open_regular};
use crate::decoding::{Decoding, Sink, without_damaged_record};
use crate::error::{Error, IoContext, Result};
use crate::job::{Control, Unobserved, thread_count};
use crate::output::NewFile;
use crate::pack::{Summary, check_unchanged, open_entry};
use crate::place::Place;

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
    let file_name = name.file_name()?.as_bytes().strip_suffix(b".warp")?;
    if file_name.is_empty() {
        return None;
    }
    let file_name = std::ffi::OsString::from_vec(file_name.to_vec());
    Some(name.with_file_name(file_name))
}

/// Unpacks a file as `output`.
///
/// # Errors
/// The input is damaged or changed meanwhile; the output exists or cannot be written. Then there is no output, and the
/// input is kept.
pub fn unpack_file(
    input: &Path,
    output: &Path,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let file = open_regular(input)?;
    let stat = rustix::fs::fstat(&file).context("cannot examine", input)?;
    let output = Place::of(output)?;
    let named = match options.remove {
        true => Some(Place::removable(input, &stat, options.force)?),
        false => None,
    };
    let (new, summary) = unpack_opened(&file, &stat, input, output, options, control)?;
    new.publish()?;
    if let Some(named) = named {
        named.remove(&stat)?;
    }
    Ok(summary)
}

/// Unpacks a file into `output`, in order; errors in writing call it standard output. What was written before an error was
/// noticed has been written: a checksum mismatch is noticed at the end.
///
/// # Errors
/// The input is damaged or changed meanwhile, or the output cannot be written.
pub fn unpack_to(
    input: &Path,
    output: &mut (dyn Write + Send),
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let open = |verify| Archive::open(input, verify, control.cancelled);
    let (archive, refused) = without_damaged_record(open, options.keep_going)?;
    let refused = refused.as_ref();
    let name = Path::new("standard output");
    let lost = decode(
        &archive,
        refused,
        options,
        control,
        &mut Sink::Stream(output, name),
    )?;
    output.flush().context("cannot write", name)?;
    Ok(summary(&archive, lost))
}

/// Unpacks a file that is open; `input` is its name. What is written, and compared if the input is to be removed, is left
/// to be published.
pub(crate) fn unpack_opened(
    file: &File,
    stat: &Stat,
    input: &Path,
    output: Place,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<(NewFile, Summary)> {
    let open = |verify| {
        let own = file.try_clone().context("cannot open", input)?;
        Archive::from_file(own, input, verify, control.cancelled)
    };
    let (archive, refused) = without_damaged_record(open, options.keep_going)?;
    let refused = refused.as_ref();
    let new = NewFile::create(output, options.force, stat)?;
    let size = wanted(&archive, options)?.map_or(archive.header().original_size, |range| {
        range.end - range.start
    });
    new.file()
        .set_len(size)
        .context("cannot make room for the original", new.target())?;
    let mut sink = Sink::File(new.file(), new.target());
    let done = decode(&archive, refused, options, control, &mut sink);
    let done = match options.remove {
        true => done.and_then(|lost| {
            new.sync()?;
            read_back(&archive, new.file(), new.target(), options, control).map(|()| lost)
        }),
        false => done,
    };
    // A file that was changed is not a damaged one.
    check_unchanged(file, stat, input)?;
    let lost = done?;
    new.copy_attributes(file, stat)?;
    Ok((new, summary(&archive, lost)))
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
    let size = archive.header().original_size;
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
    let size = archive.header().original_size;
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

/// Compares a file just written, as it is on the disk, with what it was unpacked from.
fn read_back(
    archive: &Archive,
    file: &File,
    path: &Path,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<()> {
    // So that what is compared comes from the disk and not from memory, as far as the system goes along.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
    let unobserved = Control {
        observer: &Unobserved,
        ..control
    };
    let mut sink = Sink::Compare(file, path);
    let job = Decoding {
        archive,
        threads: thread_count(options.threads),
        control: unobserved,
        digest: archive.footer(),
        proves_record: false,
        keep_going: false,
        refused: None,
    };
    job.all(&mut sink).map(|_| ())
}

/// Does what is left of unpacking a file that is to be removed, where an earlier job was stopped in between: proves that the
/// file at `place` is what it unpacks to, and that both it and its name are on the disk.
///
/// # Errors
/// It is not, or the system's.
pub(crate) fn prove_unpacked(
    place: &Place,
    file: &File,
    stat: &Stat,
    input: &Path,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let (plain, _) = open_entry(&*place.directory, &place.name, &place.path)?;
    place.sync(&plain)?;
    let own = file.try_clone().context("cannot open", input)?;
    let archive = Archive::from_file(own, input, Verify::Fast, control.cancelled)?;
    let read = read_back(&archive, &plain, &place.path, options, control);
    check_unchanged(file, stat, input)?;
    read?;
    Ok(summary(&archive, 0))
}

/// What an archive says of itself, and how many bytes of it are lost.
pub(crate) fn summary(archive: &Archive, lost: u64) -> Summary {
    Summary {
        codec: archive.header().codec,
        chunks: archive.table().len(),
        original_size: archive.header().original_size,
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
        assert_eq!(original("/"), None);
    }
}
