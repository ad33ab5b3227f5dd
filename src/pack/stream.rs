//! Packing what can only be read once, in order, to its end.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::PackOptions;
use super::choice::{Choice, SAMPLE_LEN, choose};
use super::chunks::{Encoder, Item, Load, Packed};
use super::spool::{Aside, Spool};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Codec, FixedHeader, Version};
use crate::job::{Control, thread_count};
use crate::ordered::resize;

/// Packs all of a stream, of `size` bytes if that is known. The payloads wait in a spool until the table is known, which goes in
/// front of them.
pub(super) fn pack_stream(
    stream: &mut (dyn Read + Send),
    size: Option<u64>,
    path: &Path,
    mut output: impl Write,
    aside: &dyn Aside,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Packed> {
    let mut sample = vec![0; SAMPLE_LEN];
    let sample_len = fill(stream, &mut sample, control.cancelled, path)?;
    sample.truncate(sample_len);
    let choice = match sample.is_empty() {
        // An empty file is a bare header with this codec.
        true => choose(options, Some(0), 1, || Ok(Vec::new())).map(|choice| Choice {
            codec: Codec::Snappy,
            ..choice
        }),
        false => choose(options, size, thread_count(None), || Ok(sample.clone())),
    }
    .map_err(|error| error.in_file(path))?;
    let mut spool = Spool::new(aside)?;
    let encoder = Encoder::new(choice, options, path, control);
    let mut offset = 0_u64;
    let mut count = 0_u32;
    let next = || {
        let mut bytes = encoder.inputs.take();
        resize(&mut bytes, choice.chunk_size)?;
        // The sample first, then what follows it.
        let begun = sample.len().min(bytes.len());
        let (sampled, room) = bytes.split_at_mut(begun);
        sampled.copy_from_slice(sample.get(..begun).unwrap_or(&[]));
        sample.drain(..begun);
        let read = fill(stream, room, control.cancelled, path)?;
        bytes.truncate(begun + read);
        if bytes.is_empty() {
            return Ok(None);
        }
        count = count.checked_add(1).ok_or_else(|| {
            Error::unusable("more chunks than can be counted: choose a larger --chunk-size")
                .in_file(path)
        })?;
        let range = offset..offset + bytes.len() as u64;
        offset = range.end;
        Ok(Some(Item {
            range,
            load: Load::Loaded(bytes),
        }))
    };
    // Nothing is left to be read: the items bring their bytes.
    let read = |_: &Range<u64>, _: &mut [u8]| Ok(());
    let mut encoded = encoder.run(encoder.threads, next, read, &mut spool, aside)?;
    let header = FixedHeader {
        version: Version::V2,
        codec: choice.codec,
        original_size: encoded.original_size,
        chunk_count: encoded.count,
    };
    let beginning = encoded.write_beginning(&header, &mut output, aside.result())?;
    spool.copy_to(&mut output, aside.result())?;
    encoded.write_ending(&header, beginning, output, aside.result())
}

/// Fills `buffer` from a stream as far as the stream goes, and says how far. It may be interrupted to look at `cancelled`.
fn fill(
    stream: &mut (dyn Read + Send),
    buffer: &mut [u8],
    cancelled: &AtomicBool,
    path: &Path,
) -> Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        if cancelled.load(Ordering::Relaxed) {
            return Err(ErrorKind::Cancelled.into());
        }
        match stream.read(room) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read", error).in_file(path)),
        }
    }
    Ok(filled)
}
