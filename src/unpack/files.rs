//! Unpacking to files as they lie on the disk: with the attributes of their packed ones, under their names when all is done.

use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{Advice, Stat};

use super::{UnpackOptions, decode, summary, wanted};
use crate::archive::{Archive, Cut, Input, Verify};
use crate::decoding::{Decoding, Sink, open_damaged};
use crate::error::{Error, IoContext, Result};
use crate::job::{Control, Unobserved, thread_count};
use crate::output::{Compared, Filled, NewFile, copy_attributes, place_of_result};
use crate::pack::{Summary, check_unchanged, open_entry};
use crate::place::Place;

/// Unpacks a file as `output`.
///
/// # Errors
/// The input is damaged or changed meanwhile; the output exists or cannot be written. Then there is no output, and the
/// input is kept.
pub fn unpack_file(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let opened = Input::open(input)?;
    let Some(file) = opened.content.file() else {
        let unpack = || unpack_object(&opened, place_of_result(output)?, options, control);
        return opened.stoppable(control.cancelled, unpack);
    };
    let stat = rustix::fs::fstat(file).context("cannot examine", input)?;
    let output = place_of_result(output)?;
    let named = match options.remove {
        true => Some(Place::removable(input, &stat, options.force)?),
        false => None,
    };
    let (new, summary) = unpack_opened(file, &stat, input, output, options, control)?;
    match named {
        Some(named) => new.publish_instead(&named, &stat).map(drop)?,
        None => new.publish()?,
    }
    Ok(summary)
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
    let open = |verify, cut| {
        let own = file.try_clone().context("cannot open", input)?;
        Archive::from_file(own, input, verify, cut, control.cancelled)
    };
    let (archive, refused) = open_damaged(open, options.keep_going)?;
    let new = NewFile::create(output, options.force, Some(stat))?;
    let done = fill(&archive, refused.as_ref(), &new, options, control)?;
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
    if lost > 0 {
        // By the packed file's time a later run would take it for what that unpacks to.
        new.file()
            .set_modified(SystemTime::now())
            .context("cannot set the times of", new.target())?;
    }
    Ok((new, summary(&archive, lost)))
}

/// Unpacks an object, which has no attributes that a file could have.
fn unpack_object(
    input: &Input,
    output: Place,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<Summary> {
    if options.remove {
        let why = "objects are not removed from here: leave --rm out";
        return Err(Error::unusable(why).in_file(&input.path));
    }
    let open = |verify, cut| input.archive(verify, cut, control.cancelled);
    let (archive, refused) = open_damaged(open, options.keep_going)?;
    let new = NewFile::create(output, options.force, None)?;
    let lost = fill(&archive, refused.as_ref(), &new, options, control)??;
    new.publish()?;
    Ok(summary(&archive, lost))
}

/// Decodes what is wanted into a new file; says how much is lost, or why it was given up.
fn fill(
    archive: &Archive,
    refused: Option<&Error>,
    new: &NewFile,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<Result<u64>> {
    let size = wanted(archive, options)?.map_or(archive.description().original_size, |range| {
        range.end - range.start
    });
    new.file()
        .set_len(size)
        .context("cannot make room for the original", new.target())?;
    let filled = Filled::new(new.file(), new.target());
    let mut sink = Sink::Placed(&filled);
    Ok(decode(archive, refused, options, control, &mut sink))
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
    let compared = Compared { file, path };
    let job = Decoding {
        archive,
        threads: thread_count(options.threads),
        control: unobserved,
        digest: archive.footer(),
        proves_record: false,
        keep_going: false,
        refused: None,
    };
    job.all(&mut Sink::Placed(&compared)).map(drop)
}

/// Does what is left of unpacking a file that is to be removed, where an earlier job was stopped in between: proves that the
/// file at `place` is what it unpacks to, and that both it and its name are on the disk. It is given the packed file's
/// attributes. With the summary comes the state that it is in then. `own` is the inode of what the same job has put there.
///
/// # Errors
/// It is not; its owner is another, see [`Place::check_owner`]; or the system's.
pub(crate) fn prove_unpacked(
    place: &Place,
    own: Option<(u64, u64)>,
    file: &File,
    stat: &Stat,
    input: &Path,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<(Summary, Stat)> {
    let (plain, plain_stat) = open_entry(&*place.directory, &place.name, &place.path)?;
    place.check_owner(own, &plain_stat, stat)?;
    place.sync(&plain)?;
    let own = file.try_clone().context("cannot open", input)?;
    let archive = Archive::from_file(own, input, Verify::Fast, Cut::Refuse, control.cancelled)?;
    // Only what the packed file has is compared.
    if i64::try_from(archive.table().original_size()) != Ok(plain_stat.st_size) {
        let why = "is not what the packed file unpacks to: remove one of the two, or use --force";
        return Err(Error::unusable(why).in_file(&place.path));
    }
    let read = read_back(&archive, &plain, &place.path, options, control);
    check_unchanged(file, stat, input)?;
    read?;
    // The input's may have been changed since it was unpacked.
    copy_attributes(file, stat, &plain, &place.path)?;
    place.sync(&plain)?;
    let proved = rustix::fs::fstat(&plain).context("cannot examine", &place.path)?;
    Ok((summary(&archive, 0), proved))
}
