//! Unpacking to files as they lie on the disk: with the attributes of their packed ones, under their names when all is done.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Advice, Stat};

use super::{UnpackOptions, decode, summary, wanted};
use crate::archive::{Archive, open_regular};
use crate::decoding::{Decoding, Sink, without_damaged_record};
use crate::error::{IoContext, Result};
use crate::job::{Control, Unobserved, thread_count};
use crate::output::{Compared, Filled, NewFile};
use crate::pack::{Summary, check_unchanged};
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
    let done = {
        let filled = Filled::new(new.file(), new.target());
        let mut sink = Sink::Placed(&filled);
        decode(&archive, refused, options, control, &mut sink)
    };
    let done = match options.remove {
        true => done.and_then(|lost| read_back(&archive, &new, options, control).map(|()| lost)),
        false => done,
    };
    // A file that was changed is not a damaged one.
    check_unchanged(file, stat, input)?;
    let lost = done?;
    new.copy_attributes(file, stat)?;
    Ok((new, summary(&archive, lost)))
}

/// Compares a file just written, as it is on the disk, with what it was unpacked from.
fn read_back(
    archive: &Archive,
    new: &NewFile,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<()> {
    new.sync()?;
    // So that what is compared comes from the disk and not from memory, as far as the system goes along.
    let _ = rustix::fs::fadvise(new.file(), 0, None, Advice::DontNeed);
    let unobserved = Control {
        observer: &Unobserved,
        ..control
    };
    let compared = Compared {
        file: new.file(),
        path: new.target(),
    };
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
