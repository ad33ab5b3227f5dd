//! What can be saved of a chunk that does not decode, or not to what was packed.
//!
//! Only a record of digests tells good bytes from bad ones, so without one the whole chunk is lost. With one, the chunk is
//! decoded a leaf at a time from its beginning, and each leaf that has its digest is good. Behind the damage, nothing can be
//! decoded any more but where a codec can be entered in the middle, as LZ4 can by block.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::decoder::is_suspect;
use super::is_of_record;
use crate::archive::Archive;
use crate::codec::Stream;
use crate::digest::{Content, leaf_digests, leaf_ranges};
use crate::error::{Error, ErrorKind, Result};
use crate::ordered::resize;

/// Some bytes of an original that could not be saved or, if they are kept, not be checked, and why.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Which bytes of the original.
    pub bytes: Range<u64>,
    /// What is wrong with them.
    pub why: Error,
    /// Whether they were decoded, and nothing is known against them but that what they are checked by is damaged itself.
    pub kept: bool,
}

/// Saves what can be saved of a chunk into `bytes`, with zeros for the rest; says which bytes of the original are lost or
/// cannot be checked. `whole` says that the chunk was decoded into `bytes` already, whatever it was decoded to.
///
/// # Errors
/// [`ErrorKind::Cancelled`], or there is no memory.
pub(super) fn salvage(
    archive: &Archive,
    chunk: u32,
    held: &Range<u64>,
    why: &Error,
    bytes: &mut Vec<u8>,
    whole: bool,
    cancelled: &AtomicBool,
) -> Result<Vec<Loss>> {
    let loss = |lost: Range<u64>| Loss {
        bytes: lost,
        why: why.clone(),
        kept: false,
    };
    let payload = archive.table().compressed_range(chunk).unwrap_or_default();
    let len = held.end - held.start;
    let Some(record) = archive.record() else {
        return Ok(vec![loss(held.clone())]);
    };
    let suspect = !whole && is_suspect(payload.end - payload.start, len);
    if suspect || len == 0 {
        return Ok(vec![loss(held.clone())]);
    }
    resize(bytes, len)?;
    let mut lost: Vec<Loss> = Vec::new();
    let mut stream = match whole {
        true => None,
        false => archive.open_stream(chunk).ok(),
    };
    // Whether the chunk may be entered elsewhere than at its beginning: to find that out takes a walk through its payload.
    let mut enterable = true;
    for leaf in leaf_ranges(held.clone(), record.layout().leaf_len) {
        if cancelled.load(Ordering::Relaxed) {
            return Err(ErrorKind::Cancelled.into());
        }
        let within = leaf.start - held.start..leaf.end - held.start;
        let place = bytes.get_mut(within.start as usize..within.end as usize);
        let place = place.unwrap_or_default();
        let stands = |stream: &Stream| stream.position() == within.start;
        if !whole && enterable && !stream.as_ref().is_some_and(stands) {
            stream = enter(archive, chunk, within.start, place, &mut enterable);
        }
        let decoded = whole
            || stream
                .as_mut()
                .is_some_and(|stream| archive.decode_on(chunk, stream, place).is_ok());
        if !decoded {
            stream = None;
        }
        let digests = leaf_digests(leaf.start, Content::Bytes(place), record.layout().leaf_len);
        let found = match (decoded, archive.compare_leaves(&leaf, &digests)) {
            (true, Ok(())) => continue,
            (true, Err(error)) => Loss {
                kept: is_of_record(&error),
                why: error.in_chunk(chunk, held.start).in_file(archive.path()),
                bytes: leaf,
            },
            (false, _) => loss(leaf),
        };
        if !found.kept {
            place.fill(0);
        }
        match lost.last_mut() {
            Some(last) if last.bytes.end == found.bytes.start && last.kept == found.kept => {
                last.bytes.end = found.bytes.end;
            }
            _ => lost.push(found),
        }
    }
    Ok(lost)
}

/// A stream that stands at `offset` of the chunk, if one can come there without decoding all that lies before it, which
/// `enterable` is told; `scratch` takes what it passes.
fn enter(
    archive: &Archive,
    chunk: u32,
    offset: u64,
    scratch: &mut [u8],
    enterable: &mut bool,
) -> Option<Stream> {
    let mut stream = archive.open_stream(chunk).ok()?;
    let mut position = archive.seek_stream(chunk, &mut stream, offset).ok()?;
    if position == 0 && offset > 0 {
        // There may be others farther on.
        let last = archive.table().original_range(chunk)?;
        let last = (last.end - last.start).saturating_sub(1);
        let farther = archive.seek_stream(chunk, &mut stream, last).ok()?;
        *enterable = farther > 0;
        return None;
    }
    while position < offset {
        let length = (offset - position).min(scratch.len() as u64) as usize;
        let passed = scratch
            .get_mut(..length)
            .filter(|passed| !passed.is_empty())?;
        archive.decode_on(chunk, &mut stream, passed).ok()?;
        position = stream.position();
    }
    Some(stream)
}
