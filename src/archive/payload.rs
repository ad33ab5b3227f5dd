//! A chunk's payload for a decoder that reads it a bit at a time: as it lies in the source, or only what is in memory of it.

use std::cell::Cell;
use std::io;
use std::ops::Range;

use super::Archive;
use crate::codec::Payload;
use crate::error::{ErrorKind, IoContext, Part, Result};

/// A chunk's payload as it lies in the source.
pub(super) struct ChunkPayload<'a> {
    pub(super) archive: &'a Archive,
    pub(super) range: Range<u64>,
}

impl Payload for ChunkPayload<'_> {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let path = &self.archive.path;
        let place = self.range.start.saturating_add(offset);
        let read = self
            .archive
            .source
            .read_part(buffer, place, &self.range)
            .context("cannot read", path)?;
        match read < buffer.len() {
            true => Err(ErrorKind::EndsInside(Part::Payload).into()),
            false => Ok(()),
        }
    }
}

/// A payload that is read only as far as that takes no waiting.
pub(super) struct AtHand<'a> {
    payload: &'a ChunkPayload<'a>,
    missed: Cell<bool>,
}

impl<'a> AtHand<'a> {
    pub(super) fn of(payload: &'a ChunkPayload<'a>) -> Self {
        Self {
            payload,
            missed: Cell::new(false),
        }
    }

    /// Whether something was wanted for which one would have had to wait.
    pub(super) fn missed(&self) -> bool {
        self.missed.get()
    }
}

impl Payload for AtHand<'_> {
    fn len(&self) -> u64 {
        self.payload.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let archive = self.payload.archive;
        let place = self.payload.range.start.saturating_add(offset);
        if archive.source.read_at_hand(buffer, place) {
            return Ok(());
        }
        self.missed.set(true);
        let would_wait: io::Result<()> = Err(io::ErrorKind::WouldBlock.into());
        would_wait.context("cannot read", &archive.path)
    }
}
