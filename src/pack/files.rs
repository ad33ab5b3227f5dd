//! Packing files as they lie on the disk: the name, the attributes and the promises to whoever has but one copy.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Advice, FileType, OFlags, Stat};

use super::input::{Polled, bytes_left, check_unchanged, pack_sized};
#[cfg(feature = "remote")]
use super::store::{From, pack_to_store};
use super::stream::pack_stream;
use super::{PackOptions, Summary};
use crate::archive::{Archive, Cut, Verify, describe, has_header, open_at_once};
use crate::decoding::{Decoding, Sink};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::{Description, Footer};
use crate::job::{Control, thread_count};
use crate::output::{Compared, NewFile, copy_attributes, place_of_result};
use crate::place::{Place, allocated};

/// Packs a file, or whatever can be read to its end under that name, as `output`; or, with the feature `remote`, as the object
/// of a store that its URL names.
///
/// ```
/// use warpfs::job::Control;
/// use warpfs::pack::{PackOptions, pack_file};
/// use warpfs::unpack::{UnpackOptions, unpack_file};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let directory = tempfile::tempdir()?;
/// let [packed, copy] = ["words.warp", "copy"].map(|name| directory.path().join(name));
/// let options = PackOptions { chunk_size: Some(64 << 10), ..PackOptions::default() };
/// let summary = pack_file("Cargo.lock", &packed, &options, Control::default())?;
/// assert!(summary.packed_size < summary.original_size / 2);
///
/// unpack_file(&packed, &copy, &UnpackOptions::default(), Control::default())?;
/// assert_eq!(std::fs::read(&copy)?, std::fs::read("Cargo.lock")?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The input cannot be read, is packed already, or changed meanwhile; the output exists or cannot be written. Then there
/// is no output, and the input is kept.
pub fn pack_file(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let (input, output) = (input.as_ref(), output.as_ref());
    #[cfg(feature = "remote")]
    if let Some(summary) = pack_to_store(&From::Name(input), output, options, control)? {
        return Ok(summary);
    }
    let file = open_at_once(input)?;
    let stat = rustix::fs::fstat(&file).context("cannot examine", input)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Directory {
        return Err(Error::unusable("is a directory: add -r to pack what is in it").in_file(input));
    }
    if kind == FileType::RegularFile && !options.force && is_packed(&file, &stat, input)? {
        return Err(
            Error::unusable("is packed already; add --force to pack it once more").in_file(input),
        );
    }
    let output = place_of_result(output)?;
    let named = match options.remove {
        true => Some(Place::removable(input, &stat, options.force)?),
        false => None,
    };
    let written = pack_opened(&file, &stat, input, output, options, control)?;
    let summary = written.summary;
    let new = written.complete(&file, &stat, input, options, control)?;
    match named {
        Some(named) => new.publish_instead(&named, &stat).map(drop)?,
        None => new.publish()?,
    }
    Ok(summary)
}

/// Packs standard input, to its end, as `output`.
///
/// # Errors
/// As [`pack_file`].
pub fn pack_standard_input(
    output: impl AsRef<Path>,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let path = Path::new("standard input");
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let file = File::from(stdin.context("cannot open", path)?);
    let stat = rustix::fs::fstat(&file).context("cannot examine", path)?;
    #[cfg(feature = "remote")]
    if let Some(summary) = pack_to_store(
        &From::Stream(&file, &stat),
        output.as_ref(),
        options,
        control,
    )? {
        return Ok(summary);
    }
    let place = place_of_result(output.as_ref())?;
    let new = NewFile::create(place, options.force, Some(&stat))?;
    let size = bytes_left(&file, &stat);
    control.observer.begin(path, size);
    let packed = pack_stream(
        &mut Polled(&file),
        size,
        path,
        &mut new.file(),
        &new,
        options,
        control,
    );
    control.observer.end(path);
    let packed = packed?;
    check_stream_unchanged(&file, &stat, path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        copy_attributes(&file, &stat, new.file(), output.as_ref())?;
    }
    new.publish()?;
    Ok(packed.summary)
}

/// A packed file that has been written, and no more than that.
pub(crate) struct Written {
    new: NewFile,
    digest: Option<Footer>,
    pub(crate) summary: Summary,
}

impl Written {
    /// The bytes it takes on the disk, as far as the file system says so already.
    pub(crate) fn allocated(&self) -> Result<u64> {
        allocated_when_closed(self.new.file()).context("cannot examine", self.new.target())
    }

    /// Makes it ready to be published: with the attributes of the input, and compared with it if it is to be removed.
    pub(crate) fn complete(
        self,
        file: &File,
        stat: &Stat,
        input: &Path,
        options: &PackOptions,
        control: Control<'_>,
    ) -> Result<NewFile> {
        if options.remove {
            self.new.sync()?;
            let own = self.new.file().try_clone();
            let own = own.context("cannot open", self.new.target())?;
            let digest = self.digest.as_ref();
            let target = self.new.target();
            let read = read_back(own, target, digest, file, input, options, control);
            // A file that was changed is what explains that it is another by now.
            check_unchanged(file, stat, input)?;
            read?;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            self.new.copy_attributes(file, stat)?;
        }
        Ok(self.new)
    }
}

/// Packs a file that is open; `input` is its name.
pub(crate) fn pack_opened(
    file: &File,
    stat: &Stat,
    input: &Path,
    output: Place,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Written> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let new = NewFile::create(output, options.force, Some(stat))?;
    // Files that are made up as they are read, as in /proc, say that they are empty.
    let sized = kind == FileType::RegularFile && stat.st_size > 0;
    control.observer.begin(
        input,
        sized.then_some(u64::try_from(stat.st_size).unwrap_or(0)),
    );
    let packed = match sized {
        true => pack_sized(file, input, *stat, &new, options, control),
        false => pack_stream(
            &mut Polled(file),
            None,
            input,
            &mut new.file(),
            &new,
            options,
            control,
        ),
    };
    control.observer.end(input);
    let packed = packed?;
    if !sized {
        check_stream_unchanged(file, stat, input)?;
    }
    Ok(Written {
        new,
        digest: packed.digest,
        summary: packed.summary,
    })
}

/// Checks that what was read to its end is what it was before, if that can be said of it.
pub(super) fn check_stream_unchanged(file: &File, before: &Stat, path: &Path) -> Result<()> {
    match FileType::from_raw_mode(before.st_mode) {
        FileType::RegularFile => check_unchanged(file, before, path),
        _ => Ok(()),
    }
}

/// Whether a file is packed by the rule that decides how a mount shows it: its header and, if it has a table, room for that.
///
/// # Errors
/// It cannot be read.
pub(crate) fn is_packed(file: &File, stat: &Stat, path: &Path) -> Result<bool> {
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    match has_header(file, path, len) {
        Ok(()) => Ok(true),
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a file says of itself, if it is packed by that rule.
///
/// # Errors
/// It cannot be read.
pub(crate) fn packed_description(
    file: &File,
    stat: &Stat,
    path: &Path,
) -> Result<Option<Description>> {
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    match describe(file, path, len) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Decodes the whole of a file just written, checks it against the digest of what was packed, and compares it with what the
/// input holds now: neither times nor holes are to be believed where the only other copy is to go. Times are coarse on
/// some file systems, and a store into a mapped page that was written to before does not change them.
fn read_back(
    own: File,
    target: &Path,
    digest: Option<&Footer>,
    file: &File,
    input: &Path,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<()> {
    // So that what is verified comes from the disk and not from memory, as far as the system goes along.
    let _ = rustix::fs::fadvise(&own, 0, None, Advice::DontNeed);
    let unobserved = Control {
        observer: &crate::job::Unobserved,
        ..control
    };
    let compare = || {
        let archive =
            Archive::from_file(own, target, Verify::Fast, Cut::Refuse, control.cancelled)?;
        let job = Decoding {
            archive: &archive,
            threads: thread_count(options.threads),
            control: unobserved,
            digest: digest.or(archive.footer()),
            proves_record: true,
            keep_going: false,
            refused: None,
        };
        job.all(&mut Sink::Placed(&Compared { file, path: input }))
            .map(drop)
    };
    compare().map_err(|error| match error.kind() {
        ErrorKind::Cancelled | ErrorKind::Io { .. } => error,
        why => {
            let failure = Error::unusable(format!("what was written does not verify: {why}"));
            match error.chunk().zip(error.offset()) {
                Some((chunk, offset)) => failure.in_chunk(chunk, offset),
                None => failure,
            }
            .in_file(target)
        }
    })
}

/// Does what is left of packing a file that is to be removed, where an earlier job was stopped in between: proves that the
/// packed file at `place` holds what the file does, and that both it and its name are on the disk. It is given the file's
/// attributes. With the summary comes the state that it is in then. `own` is the inode of what the same job has put there.
///
/// # Errors
/// It does not; its owner is another, see [`Place::check_owner`]; or the system's.
pub(crate) fn prove_packed(
    place: &Place,
    own: Option<(u64, u64)>,
    file: &File,
    stat: &Stat,
    input: &Path,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<(Summary, Stat)> {
    let (packed, packed_stat) = open_entry(&*place.directory, &place.name, &place.path)?;
    place.check_owner(own, &packed_stat, stat)?;
    let found = packed_description(&packed, &packed_stat, &place.path)?;
    let found = found.ok_or(ErrorKind::NotWarp)?;
    place.sync(&packed)?;
    let own = packed.try_clone().context("cannot open", &place.path)?;
    let another = || {
        let why = "is not what its original packs to now: remove one of the two, or use --force";
        Error::unusable(why).in_file(&place.path)
    };
    // Only what the packed file has is compared.
    if i64::try_from(found.original_size) != Ok(stat.st_size) {
        return Err(another());
    }
    let read = read_back(own, &place.path, None, file, input, options, control);
    check_unchanged(file, stat, input)?;
    read.map_err(|error| match error.kind() {
        ErrorKind::Unusable(_) => another(),
        _ => error,
    })?;
    // The input's may have been changed since it was packed.
    copy_attributes(file, stat, &packed, &place.path)?;
    place.sync(&packed)?;
    let summary = Summary {
        encodings: found.encodings,
        chunks: found.chunk_count,
        original_size: found.original_size,
        packed_size: u64::try_from(packed_stat.st_size).unwrap_or(0),
        lost: 0,
    };
    let proved = rustix::fs::fstat(&packed).context("cannot examine", &place.path)?;
    Ok((summary, proved))
}

/// The bytes a file takes that was written from its beginning to its end: not more than its blocks, for XFS counts what it
/// has set aside behind the end, and gives it back later.
fn allocated_when_closed(file: &File) -> rustix::io::Result<u64> {
    let stat = rustix::fs::fstat(file)?;
    let block_size = rustix::fs::fstatvfs(file)?.f_frsize;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    let blocks = len.checked_next_multiple_of(block_size).unwrap_or(len);
    Ok(allocated(&stat).min(blocks))
}

/// Opens a directory's entry for reading, whatever it has become since it was listed: a symbolic link is refused, a pipe
/// does not block.
pub(crate) fn open_entry(
    directory: impl AsFd,
    name: &std::ffi::OsStr,
    path: &Path,
) -> Result<(File, Stat)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, rustix::fs::Mode::empty())
        .context("cannot open", path)?;
    let stat = rustix::fs::fstat(&file).context("cannot examine", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::new(ErrorKind::InputChanged).in_file(path));
    }
    Ok((File::from(file), stat))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FallocateFlags;
    use std::io::Write;

    #[test]
    fn a_file_that_was_appended_to_is_not_what_its_beginning_was_packed_to() {
        let directory = tempfile::tempdir().unwrap();
        let (input, packed) = (directory.path().join("x"), directory.path().join("x.warp"));
        std::fs::write(&input, [7; 10_000]).unwrap();
        let (options, control) = (PackOptions::default(), Control::default());
        pack_file(&input, &packed, &options, control).unwrap();
        let place = Place::of(&packed).unwrap();
        let prove = || {
            let file = File::open(&input).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            prove_packed(&place, None, &file, &stat, &input, &options, control)
        };
        assert_eq!(prove().unwrap().0.original_size, 10_000);
        let mut file = File::options().append(true).open(&input).unwrap();
        file.write_all(b"more").unwrap();
        let refused = prove().unwrap_err().to_string();
        assert!(
            refused.contains("not what its original packs to"),
            "{refused}"
        );
    }

    #[test]
    fn what_is_set_aside_behind_the_end_does_not_count() {
        let file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &file, &[7; 10_000]).unwrap();
        let set_aside = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20);
        let stat = rustix::fs::fstat(&file).unwrap();
        assert!(set_aside.is_err() || allocated(&stat) >= 1 << 20);
        let allocated = allocated_when_closed(&file).unwrap();
        assert!((10_000..=64 << 10).contains(&allocated), "{allocated}");
    }
}
