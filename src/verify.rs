//! Whether a `.warp` file is whole: every chunk decoded, every size and the checksum compared.

use std::path::Path;

use crate::archive::{Cut, Input, Verify};
use crate::decoding::{Decoding, Sink, open_damaged};
use crate::error::Result;
use crate::job::{Control, thread_count};
use crate::pack::Summary;
use crate::unpack::summary;

/// How to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerifyOptions {
    /// How many chunks to work on at once; as many as there are cores by default.
    pub threads: Option<usize>,
    /// Go on behind damage: what is lost is told to the observer and counted in [`Summary::lost`].
    pub keep_going: bool,
}

/// Decodes and checks a whole file, and the record of digests in it.
///
/// # Errors
/// The first damage found, in the order of the file; or the file cannot be read.
pub fn verify_file(
    path: impl AsRef<Path>,
    options: VerifyOptions,
    control: Control<'_>,
) -> Result<Summary> {
    let input = Input::open(path.as_ref())?;
    verify_opened(&input, options, control)
}

/// As [`verify_file`], for what is open.
pub(crate) fn verify_opened(
    input: &Input,
    options: VerifyOptions,
    control: Control<'_>,
) -> Result<Summary> {
    input.stoppable(control.cancelled, || verify(input, options, control))
}

fn verify(input: &Input, options: VerifyOptions, control: Control<'_>) -> Result<Summary> {
    let path = &*input.path;
    let open = |verify, cut| input.archive(verify, cut, control.cancelled);
    let (archive, refused) = match options.keep_going {
        true => open_damaged(open, true)?,
        false => (open(Verify::Fast, Cut::Refuse)?, None),
    };
    let original_size = archive.description().original_size;
    control.observer.begin(path, Some(original_size));
    let job = Decoding {
        archive: &archive,
        threads: thread_count(options.threads),
        control,
        digest: archive.footer(),
        proves_record: true,
        keep_going: options.keep_going,
        refused: refused.as_ref(),
    };
    let result = job.all(&mut Sink::Nowhere);
    control.observer.end(path);
    match (result?, refused) {
        // The data is whole, the file is not.
        (0, Some(refused)) => Err(refused),
        (lost, _) => Ok(summary(&archive, lost)),
    }
}
