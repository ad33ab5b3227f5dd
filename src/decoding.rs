//! All chunks of an archive, or those of a range, decoded in parallel and checked: what `unpack` and `verify` share.
//!
//! Every chunk is checked by the record of digests, if the file has one, before anything of it goes out; the whole is proved by
//! the checksum at the end. Asked for it, a job goes on behind damage and says what is lost ([`Loss`]).

mod decoder;
mod proof;
mod salvage;
mod sink;

use std::ops::Range;

pub(crate) use proof::hexadecimal;
pub use salvage::Loss;
#[cfg(feature = "files")]
pub(crate) use sink::Placed;
pub(crate) use sink::Sink;

use self::decoder::Decoder;
use self::proof::Proof;
use crate::archive::{Archive, Cut, Verify, ends_early};
use crate::error::{Error, ErrorKind, Part, Result};
use crate::format::Footer;
use crate::job::Control;
/// What is decoded, and how.
pub(crate) struct Decoding<'a> {
    pub(crate) archive: &'a Archive,
    pub(crate) threads: usize,
    pub(crate) control: Control<'a>,
    /// The checksum that proves the whole, if there is one.
    pub(crate) digest: Option<&'a Footer>,
    /// Whether the record of digests is to be proved too. Else, where the checksum proves the whole before anybody gets it,
    /// damage of the record alone does not matter.
    pub(crate) proves_record: bool,
    /// Whether to go on behind damage.
    pub(crate) keep_going: bool,
    /// Why the archive was opened without its record of digests, if it was.
    pub(crate) refused: Option<&'a Error>,
}

/// Opens an archive for a job that needs the record of digests only as far as there is nothing better: if the record is
/// damaged and the checksum proves the whole, without it. Then it says why. A job that keeps going takes a file that was cut
/// short, or of which a chunk cannot be measured, too: these chunks are lost, and that is all there is to say. One whose footer
/// is damaged it takes without footer and record.
///
/// # Errors
/// As [`Archive::from_file`].
pub(crate) fn open_damaged(
    open: impl Fn(Verify, Cut) -> Result<Archive>,
    keep_going: bool,
) -> Result<(Archive, Option<Error>)> {
    let refused = match open(Verify::Fast, Cut::Refuse) {
        Err(error) => error,
        Ok(opened) => return Ok((opened, None)),
    };
    let of_chunks = ends_early(&refused) || (refused.is_damage() && refused.chunk().is_some());
    if keep_going && of_chunks {
        return open(Verify::Fast, Cut::Salvage).map(|opened| (opened, None));
    }
    if keep_going && is_of_footer(&refused) {
        return open(Verify::Off, Cut::Salvage).map(|opened| (opened, Some(refused)));
    }
    let damaged = is_of_record(&refused);
    let gone_on = keep_going && matches!(refused.kind(), ErrorKind::DamagedBeginning);
    if !damaged && !gone_on {
        return Err(refused);
    }
    let archive = open(Verify::Off, Cut::Refuse)?;
    match keep_going || archive.footer().is_some() {
        true => Ok((archive, Some(refused))),
        false => Err(refused),
    }
}

/// Whether an error is, or may be, one of the record of digests alone: of what it describes nothing is known then.
fn is_of_record(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DamagedRecord(_) | ErrorKind::Io { .. }
    )
}

/// Whether an error is one of the footer alone.
fn is_of_footer(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::EndsInside(Part::Footer)
            | ErrorKind::UnknownChecksum(_)
            | ErrorKind::DigestLength { .. }
    )
}

impl Decoding<'_> {
    /// Decodes every chunk, and checks the whole against the checksum. Says how many bytes of the original are lost: always 0
    /// if it was not to keep going.
    ///
    /// # Errors
    /// The first chunk's that is damaged or cannot be written, [`ErrorKind::ChecksumMismatch`], or [`ErrorKind::Cancelled`].
    pub(crate) fn all(&self, sink: &mut Sink<'_>) -> Result<u64> {
        let table = self.archive.table();
        let whole = 0..table.original_size();
        let mut proof = Proof::new(self, sink);
        let (lost, mut unchecked) =
            Decoder::new(self, whole.clone()).run(0..table.len(), sink, &mut proof)?;
        let finished = match lost {
            0 => proof.finish(self),
            _ => Ok(()),
        };
        let finished = finished.map_err(|error| error.in_file(self.archive.path()));
        let kept = |why: &Error| Loss {
            bytes: whole.clone(),
            why: why.clone(),
            kept: true,
        };
        match &finished {
            Err(why) if matches!(why.kind(), ErrorKind::ChecksumMismatch { .. }) => {
                if !self.keep_going {
                    return finished.map(|()| 0);
                }
                self.report(&[Loss {
                    kept: false,
                    ..kept(why)
                }]);
                return Ok(whole.end);
            }
            // All of it is proved, whatever the record is like.
            _ if lost == 0 && self.digest.is_some() => return finished.map(|()| 0),
            _ => {}
        }
        if let Some(why) = self.refused {
            unchecked = vec![kept(why)];
        }
        self.report(&unchecked);
        finished.map(|()| whole.end.min(lost + length_of(&unchecked)))
    }

    fn report(&self, losses: &[Loss]) {
        for loss in losses {
            self.control.observer.lost(self.archive.path(), loss);
        }
    }

    /// Decodes the chunks that hold `range` of the original, in bytes; the sink gets that range alone, from its own offset 0.
    ///
    /// # Errors
    /// As [`Decoding::all`], but for the checksum, which is the whole file's.
    pub(crate) fn range(&self, range: Range<u64>, sink: &mut Sink<'_>) -> Result<u64> {
        let chunks = self.archive.table().chunks_holding(&range);
        // The checksum is not going to prove it.
        if let Some(why) = self.refused
            && !self.keep_going
        {
            return Err(why.clone());
        }
        let mut proof = Proof::none();
        let (lost, mut unchecked) =
            Decoder::new(self, range.clone()).run(chunks, sink, &mut proof)?;
        if let Some(why) = self.refused {
            unchecked = vec![Loss {
                bytes: range.clone(),
                why: why.clone(),
                kept: true,
            }];
        }
        self.report(&unchecked);
        Ok((range.end - range.start).min(lost + length_of(&unchecked)))
    }
}

fn length_of(losses: &[Loss]) -> u64 {
    let lengths = losses.iter().map(|loss| loss.bytes.end - loss.bytes.start);
    lengths.sum()
}
