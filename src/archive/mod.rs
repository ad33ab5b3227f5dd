//! An open `.warp` file: which chunks hold which bytes, and "decode chunk *i*".
//!
//! Every read of the source is followed by a look at what the source is now, so that bytes of a file that was changed
//! in place are not decoded as if they were the old ones. A file that was only cut short goes on serving the chunks
//! it still holds; that it was only cut is concluded from its table, which one being written anew, or written over and then
//! cut, may share (see `is_beginning`). One without a table is changed. Damage that leaves the file's time as it was is found by decoding.

mod chain;
mod check;
mod contents;
mod input;
mod outline;
mod payload;
mod record;
mod source;
mod units;
mod zero_chunks;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

#[cfg(feature = "fuse")]
pub(crate) use chain::Glance;
#[cfg(feature = "files")]
pub(crate) use chain::glance;
#[cfg(feature = "files")]
pub(crate) use chain::{describe, has_header};
pub(crate) use contents::Contents;
#[cfg(feature = "fuse")]
pub(crate) use input::Content;
pub(crate) use input::Input;
pub use outline::Verify;
pub(crate) use outline::{Conditions, Cut, Outline, ends_early};
pub(crate) use record::{Evidence, Record};
#[cfg(feature = "remote")]
pub(crate) use source::Then;
pub(crate) use source::{Distant, Kept, Source};
pub(crate) use units::{
    OneCall, PIECE_LEN, Unit, is_of_parts, may_have_parts, piece_bytes, piece_count, piece_number,
};

use self::payload::{AtHand, ChunkPayload};
use crate::codec::{self, Stream};
use crate::error::{Error, ErrorKind, IoContext, Part, Result, shared_path};
use crate::format::{ChunkTable, Description, Encoding, Footer};
use crate::identity::Identity;
use crate::memory::Budget;
use crate::ordered::resize;

/// How long ago a file must have been written to last before it is taken for one that was cut short. One that is
/// written anew from nothing may look like it, but it does not stay so.
const SETTLING: Duration = Duration::from_millis(100);

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Archive {
    path: Arc<Path>,
    source: Box<dyn Source>,
    contents: Arc<Contents>,
    /// What the source has become by being cut short, once that was found to be all that happened to it.
    cut: Mutex<Option<Identity>>,
}

impl Archive {
    /// Opens a whole file, or one that ends inside its payloads if that is accepted; `path` is its name in messages.
    ///
    /// # Errors
    /// The system's, or those of a file that is not what it should be; or [`ErrorKind::Cancelled`].
    pub(crate) fn from_source(
        source: Box<dyn Source>,
        path: &Path,
        verify: Verify,
        cut: Cut,
        cancelled: &AtomicBool,
    ) -> Result<Self> {
        let conditions = Conditions {
            cut,
            verify,
            budget: &Budget::unlimited(),
            make_room: &|| false,
            cancelled,
        };
        let contents =
            Contents::read(&*source, path, &conditions).map_err(|error| error.in_file(path))?;
        Ok(Self::new(path, source, Arc::new(contents)))
    }

    /// As [`Archive::from_source`], for a regular file.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn from_file(
        file: File,
        path: &Path,
        verify: Verify,
        cut: Cut,
        cancelled: &AtomicBool,
    ) -> Result<Self> {
        Self::from_source(Box::new(file), path, verify, cut, cancelled)
    }

    /// An archive of contents that were read from this source, or from the same file before.
    pub(crate) fn new(path: &Path, source: Box<dyn Source>, contents: Arc<Contents>) -> Self {
        Self {
            path: shared_path(path),
            source,
            contents,
            cut: Mutex::default(),
        }
    }

    /// The file's name, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is as a whole.
    pub(crate) fn description(&self) -> &Description {
        &self.contents.description
    }

    /// How a chunk is encoded.
    ///
    /// # Errors
    /// There is no such chunk.
    pub(crate) fn encoding(&self, chunk: u32) -> Result<Encoding> {
        self.table().encoding(chunk).ok_or_else(|| no_chunk(chunk))
    }

    /// Where the chunks lie.
    pub(crate) fn table(&self) -> &ChunkTable {
        &self.contents.table
    }

    /// The lengths of a chunk's payload and of what it decodes to, in bytes.
    pub(crate) fn sizes(&self, chunk: u32) -> [u64; 2] {
        let table = self.table();
        [table.compressed_range(chunk), table.original_range(chunk)].map(|range| {
            let range = range.unwrap_or_default();
            range.end - range.start
        })
    }

    /// The stored checksum, if there is one.
    pub(crate) fn footer(&self) -> Option<&Footer> {
        self.contents.footer.as_ref()
    }

    /// What all who have this file open share.
    pub(crate) fn contents(&self) -> &Arc<Contents> {
        &self.contents
    }

    /// The length of the file, in bytes, when its contents were read.
    pub(crate) fn file_len(&self) -> u64 {
        self.contents.identity.size
    }

    /// The source, if it is far away.
    pub(crate) fn distant(&self) -> Option<&dyn Distant> {
        self.source.distant()
    }

    /// Takes notice that these chunks are going to be read from front to back.
    pub(crate) fn expect(&self, chunks: Range<u32>) {
        let table = self.table();
        let last = chunks.end.checked_sub(1);
        if let Some(distant) = self.distant()
            && let Some(first) = table.compressed_range(chunks.start)
            && let Some(last) = last.and_then(|last| table.compressed_range(last))
        {
            distant.expect(first.start..last.end);
        }
    }

    /// Takes notice that these bytes of the file are going to be read soon, as far as there are such.
    pub(crate) fn will_read(&self, packed: &Range<u64>) {
        let end = packed.end.min(self.file_len());
        if packed.start < end {
            self.source.will_read(&(packed.start..end));
        }
    }

    /// Reads a chunk's compressed bytes; `payload` is given their length.
    ///
    /// # Errors
    /// The file ends inside them, was changed, or cannot be read.
    pub(crate) fn read_payload(&self, chunk: u32, payload: &mut Vec<u8>) -> Result<()> {
        let mut read = || {
            let range = self.payload_range(chunk)?;
            if range.end > self.file_len() {
                return Err(ErrorKind::EndsInside(Part::Payload).into());
            }
            resize(payload, range.end - range.start)?;
            self.read_into(range.start, payload)
        };
        read().map_err(|error| self.placed(error, chunk))
    }

    /// As [`Archive::read_payload`], into a buffer of the compressed bytes' length.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn read_payload_into(&self, chunk: u32, payload: &mut [u8]) -> Result<()> {
        self.payload_range(chunk)
            .and_then(|range| self.read_into(range.start, payload))
            .map_err(|error| self.placed(error, chunk))
    }

    /// Decodes a chunk into `output`, which has its original size; `payload` has the size of its compressed bytes.
    ///
    /// # Errors
    /// As [`Archive::read_payload`], and those of damaged data.
    pub(crate) fn decode(&self, chunk: u32, payload: &mut [u8], output: &mut [u8]) -> Result<()> {
        self.read_payload_into(chunk, payload)?;
        self.encoding(chunk)
            .and_then(|encoding| self.decode_or_fill(encoding, payload, output))
            .map_err(|error| self.placed(error, chunk))
    }

    /// How much memory decoding a chunk piece by piece takes beside the pieces, in bytes, at most: what its stream holds on to, and what
    /// of the payload is fetched at a time. `None` if the chunk can only be decoded whole, or, where they are to be decoded `apart`, not
    /// each without the others.
    ///
    /// # Errors
    /// As [`Archive::read_payload`], and those of a payload that begins like none.
    pub(crate) fn stream_memory(&self, chunk: u32, apart: bool) -> Result<Option<[u64; 2]>> {
        self.with_payload(chunk, |payload, announced| {
            let encoding = self.encoding(chunk)?;
            if Stream::checks_content(encoding, payload)?
                || (apart && !Stream::has_parts(encoding, payload, PIECE_LEN)?)
            {
                return Ok(None);
            }
            let Some(held) = Stream::memory(encoding, payload, announced)? else {
                return Ok(None);
            };
            let fetched = Stream::fetched(encoding, payload, announced)?;
            Ok(Some([held, fetched]))
        })
    }

    /// Begins to decode a chunk piece by piece.
    ///
    /// # Errors
    /// As [`Archive::stream_memory`].
    pub(crate) fn open_stream(&self, chunk: u32) -> Result<Stream> {
        self.with_payload(chunk, |payload, announced| {
            Stream::open(self.encoding(chunk)?, payload, announced)
        })
    }

    /// A stream of a chunk that needs no decoder and no memory and goes on from anywhere, although its encoding is one that compresses:
    /// it is known to be zeros, or lies there as it is. `None` if it is none of these. Unless it `may_wait`, only what is at hand is
    /// read to find out; of what is far away, nothing is.
    ///
    /// # Errors
    /// As [`Archive::decode`].
    pub(crate) fn plain_stream(&self, chunk: u32, may_wait: bool) -> Result<Option<Stream>> {
        if self.distant().is_some() {
            return Ok(None);
        }
        let is_zeros = self.needs_no_decoder(chunk)?;
        let encoding = self.encoding(chunk)?;
        self.with_payload(chunk, |payload, announced| {
            if is_zeros {
                return Ok(Some(Stream::of_zeros(announced)));
            }
            let at_hand = AtHand::of(payload);
            let found = Stream::of_what_lies_as_it_is(encoding, &at_hand, announced);
            if !at_hand.missed() {
                return found;
            }
            if !may_wait {
                return Ok(None);
            }
            self.will_read(&payload.range);
            Stream::of_what_lies_as_it_is(encoding, payload, announced)
        })
    }

    /// Moves a chunk's stream towards `offset`, in bytes from the chunk's beginning, as far as nothing has to be decoded for
    /// it; says where it stands then.
    ///
    /// # Errors
    /// As [`Archive::decode`].
    pub(crate) fn seek_stream(&self, chunk: u32, stream: &mut Stream, offset: u64) -> Result<u64> {
        self.with_payload(chunk, |payload, _| stream.seek(payload, offset))
    }

    /// Finds out where branches of a chunk's stream can begin, for a few bytes' reading a block. Unless it `may_wait`, only as long
    /// as those are at hand: otherwise who reads the chunk's beginning would have to wait for its end. Says whether it did.
    ///
    /// # Errors
    /// As [`Archive::decode`].
    pub(crate) fn survey_stream(
        &self,
        chunk: u32,
        stream: &mut Stream,
        may_wait: bool,
    ) -> Result<bool> {
        self.with_payload(chunk, |payload, _| {
            let at_hand = AtHand::of(payload);
            let outcome = stream.survey(&at_hand);
            if !at_hand.missed() {
                return outcome.map(|()| true);
            }
            if may_wait {
                // In one go, and not a block at a time.
                self.will_read(&payload.range);
                stream.survey(payload)?;
            }
            Ok(may_wait)
        })
    }

    /// Decodes what comes next in a chunk's stream into all of `output`.
    ///
    /// # Errors
    /// As [`Archive::decode`].
    pub(crate) fn decode_on(
        &self,
        chunk: u32,
        stream: &mut Stream,
        output: &mut [u8],
    ) -> Result<()> {
        self.with_payload(chunk, |payload, _| stream.decode(payload, output))
    }

    /// Does something with a chunk's payload, of which it reads what it needs, and its announced length. That the source
    /// is still the same is looked at once, behind the last read: if it is not, nothing that was read counts.
    fn with_payload<T>(
        &self,
        chunk: u32,
        work: impl FnOnce(&ChunkPayload<'_>, u64) -> Result<T>,
    ) -> Result<T> {
        let attempt = || {
            let range = self.payload_range(chunk)?;
            let original = self.table().original_range(chunk).unwrap_or_default();
            let payload = ChunkPayload {
                archive: self,
                range,
            };
            let outcome = work(&payload, original.end - original.start);
            self.check_unchanged()?;
            outcome
        };
        attempt().map_err(|error| self.placed(error, chunk))
    }

    /// Checks that the source is what was opened, or the beginning of it.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if it is not.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let now = self
            .source
            .identity()
            .context("cannot examine", &self.path)?;
        let opened = &self.contents.identity;
        if now == *opened {
            return Ok(());
        }
        let cut = *self.known_cut();
        if cut == Some(now) {
            return Ok(());
        }
        let shrank = now.same_file(opened) && now.size < cut.as_ref().unwrap_or(opened).size;
        if !shrank || !self.is_beginning(&now).context("cannot read", &self.path)? {
            return Err(Error::new(ErrorKind::Changed).in_file(&self.path));
        }
        *self.known_cut() = Some(now);
        Ok(())
    }

    /// Whether the source, seen as `now`, is at rest and still begins with the header and table that were read.
    fn is_beginning(&self, now: &Identity) -> std::io::Result<bool> {
        if !self.contents.tell_a_cut() {
            return Ok(false);
        }
        let age = SystemTime::now().duration_since(now.modified_time());
        if let Some(rest) = SETTLING.checked_sub(age.unwrap_or_default()) {
            std::thread::sleep(rest);
        }
        Ok(self.contents.still_described_by(&*self.source)? && self.source.identity()? == *now)
    }

    fn known_cut(&self) -> std::sync::MutexGuard<'_, Option<Identity>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a chunk's payload lies in the file, in bytes. Both are as long as they may be, and the payload is there: before memory is
    /// taken for them, this is to be asked.
    ///
    /// # Errors
    /// The file ends before the payload does, or this cannot be the payload of a chunk of such a size.
    pub(crate) fn payload_range(&self, chunk: u32) -> Result<Range<u64>> {
        let table = self.table();
        let Some((packed, original)) = table
            .compressed_range(chunk)
            .zip(table.original_range(chunk))
        else {
            return Err(no_chunk(chunk));
        };
        // Of one that is lost nothing else is known for sure.
        if packed.end > self.file_len() {
            return Err(ErrorKind::EndsInside(Part::Payload).into());
        }
        codec::check_lengths(
            self.encoding(chunk)?,
            packed.end - packed.start,
            original.end - original.start,
        )?;
        Ok(packed)
    }

    /// Takes notice that a read of a chunk has found damage: what the source remembers may be to blame.
    pub(crate) fn doubt(&self, chunk: u32, error: &Error) {
        match error.kind() {
            ErrorKind::DamagedRecord(_) | ErrorKind::DamagedBeginning => self.source.doubt(None),
            _ if error.is_damage() => {
                let payload = self.table().compressed_range(chunk);
                self.source.doubt(Some(&payload.unwrap_or_default()));
            }
            _ => {}
        }
    }

    fn read_into(&self, offset: u64, payload: &mut [u8]) -> Result<()> {
        let read = self
            .source
            .read_at(payload, offset)
            .context("cannot read", &self.path)?;
        self.check_unchanged()?;
        if read < payload.len() {
            return Err(ErrorKind::EndsInside(Part::Payload).into());
        }
        Ok(())
    }

    fn placed(&self, error: Error, chunk: u32) -> Error {
        let offset = self
            .table()
            .original_range(chunk)
            .map_or(0, |range| range.start);
        error.in_chunk(chunk, offset).in_file(&self.path)
    }
}

fn no_chunk(chunk: u32) -> Error {
    Error::unusable(format!("there is no chunk {chunk}"))
}

/// Opens a file that must be a regular one. A pipe is not waited for.
///
/// # Errors
/// The system's, or it is something else.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let file = open_at_once(path)?;
    let kind = file.metadata().context("cannot examine", path)?;
    if kind.is_dir() {
        return Err(
            Error::unusable("is a directory: add -r to go through its files").in_file(path),
        );
    }
    if !kind.is_file() {
        return Err(Error::unusable("not a regular file").in_file(path));
    }
    Ok(file)
}

/// Opens whatever stands under a name for reading; a pipe that nobody writes to too, without waiting for somebody to.
///
/// # Errors
/// The system's.
#[cfg(feature = "files")]
pub(crate) fn open_at_once(path: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).context("cannot open", path)?;
    Ok(File::from(file))
}

/// Opens a file for reading. Something else that opening would wait for is looked at first.
///
/// # Errors
/// The system's, or it is neither a file nor a directory.
#[cfg(not(feature = "files"))]
fn open_at_once(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).context("cannot open", path)?;
    match kind.is_file() || kind.is_dir() {
        true => File::open(path).context("cannot open", path),
        false => Err(Error::unusable("not a regular file").in_file(path)),
    }
}
