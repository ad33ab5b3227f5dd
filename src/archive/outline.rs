//! What a file's header, table and footer say, with nothing decoded; or its header and its chunks'.
//!
//! This is all that `info` shows. Whoever wants to decode needs the chunks' original sizes too, which version 1 does not
//! have: the payloads' own first bytes tell them in most codecs. They can be wrong (a frame may be followed by another in
//! its payload), so if they do not add up to the header's size, none of them is believed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::chain::{self, End, Header, Survey};
use super::record::{self, Record};
use super::source::Source;
use crate::codec;
use crate::error::{Error, ErrorKind, IoContext, Part, Result};
use crate::format::{
    ChunkHeader, ChunkTable, DIGEST_LEN, Description, Encoding, FIXED_HEADER_LEN, FOOTER_MAX_LEN,
    Fingerprint, FixedHeader, Footer, Layout, PayloadTable, ReleaseHeader, ReleaseTable, Version,
};
use crate::identity::Identity;
use crate::memory::{Budget, Charge};

/// What an open file takes beside its table, in bytes, roughly: what is remembered of it, its reader and its handle.
pub(super) const OVERHEAD: usize = 1024;

/// How much of the record is read with the footer in front of it, where both are far away, in bytes: that of an original of
/// 1.2 GiB.
const RECORD_AT_ONCE: u64 = 1 << 20;
/// How long a record is that `pack` writes: at most one byte for so many of the original ...
const DESCRIBED_BY_A_BYTE: u64 = 1280;
/// ... and this, with the footer, in bytes.
const RECORD_AT_LEAST: u64 = 4 << 10;

/// Whether a file that ends inside its payloads is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It is: the chunks it still holds are served.
    Accept,
    /// It is, and so is one whose footer cannot be read, as one without: what is left of it is to be saved.
    Salvage,
    /// It is not.
    Refuse,
}

/// Whether it is only that the file ends too early, for which a reader that accepts [`Cut`] may take it all the same.
pub(crate) fn ends_early(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::EndsInside(Part::Payload | Part::ChunkHeader)
    )
}

/// How decoded bytes are checked against the record of digests behind the footer, where a file has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// By the XXH3 digest of each leaf of 32 KiB, at every decoding.
    #[default]
    Fast,
    /// By BLAKE3, up to the checksum of the whole file in the footer, at every decoding; by XXH3 where a file has another
    /// checksum or none.
    Strict,
    /// Not at all: what the codec does not notice is not noticed.
    Off,
}

/// How a file is read.
pub(crate) struct Conditions<'a> {
    pub(crate) cut: Cut,
    pub(crate) verify: Verify,
    /// What the table counts against, before it is allocated.
    pub(crate) budget: &'a Arc<Budget>,
    /// As in [`Budget::acquire`].
    pub(crate) make_room: &'a (dyn Fn() -> bool + Sync),
    /// Once set, reading stops with [`ErrorKind::Cancelled`].
    pub(crate) cancelled: &'a AtomicBool,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Outline {
    pub(crate) description: Description,
    pub(crate) chunks: Chunks,
    pub(crate) footer: Option<Footer>,
    pub(crate) record: Option<Record>,
    /// The file all this was read from.
    pub(crate) identity: Identity,
    /// `None` of a file without a table.
    pub(super) beginning: Option<Beginning>,
    pub(super) charge: Charge,
}

/// What a file that was only cut short still begins with: a header and a table.
#[derive(Debug)]
pub(super) struct Beginning {
    /// Where they end, in bytes from the start of the file.
    pub(super) end: u64,
    /// That of all bytes up to there, as they stand in the file.
    pub(super) fingerprint: u64,
}

/// Where the chunks lie, as far as that is known.
#[derive(Debug)]
pub(crate) enum Chunks {
    Known(ChunkTable),
    /// Of the `unknown` chunks nothing but decoding tells the original size; the others' are in `sizes`, and zeros in place of
    /// theirs. `numbers` is what `unknown` counts as, 4 bytes a chunk.
    Unmeasured {
        header: FixedHeader,
        payloads: PayloadTable,
        sizes: Vec<u64>,
        unknown: Vec<u32>,
        numbers: Charge,
    },
}

impl Chunks {
    /// Where a chunk's payload lies in the file, in bytes.
    pub(crate) fn payload(&self, chunk: u32) -> Option<std::ops::Range<u64>> {
        match self {
            Chunks::Known(table) => table.compressed_range(chunk),
            Chunks::Unmeasured { payloads, .. } => payloads.range(chunk),
        }
    }

    /// Which bytes of the original a chunk holds, if that is known.
    pub(crate) fn original(&self, chunk: u32) -> Option<std::ops::Range<u64>> {
        match self {
            Chunks::Known(table) => table.original_range(chunk),
            Chunks::Unmeasured { .. } => None,
        }
    }

    /// How a chunk is encoded.
    pub(crate) fn encoding(&self, chunk: u32) -> Option<Encoding> {
        match self {
            Chunks::Known(table) => table.encoding(chunk),
            Chunks::Unmeasured { header, .. } => Some(header.codec.into()),
        }
    }

    fn payload_end(&self) -> u64 {
        match self {
            Chunks::Known(table) => table.payload_end(),
            Chunks::Unmeasured { payloads, .. } => payloads.end(),
        }
    }
}

/// Where all is that is read of a file when it is opened, its first bytes aside, as far as that can be told before the table is
/// known: the table, and probably footer and record.
pub(super) fn likely_description(
    payload_start: u64,
    original_size: u64,
    chunk_count: u32,
    file_len: u64,
) -> [std::ops::Range<u64>; 2] {
    // A chunk that is shorter than a leaf is a leaf.
    let leaf_len = Layout::for_packing(None).leaf_len;
    let short = u64::from(chunk_count).saturating_sub(original_size / leaf_len);
    let length = original_size / DESCRIBED_BY_A_BYTE + short * DIGEST_LEN as u64 + RECORD_AT_LEAST;
    let end = match length <= RECORD_AT_ONCE {
        true => file_len.saturating_sub(length),
        // Its last bytes are looked at, wherever the others are.
        false => file_len.saturating_sub(1),
    };
    let table = FIXED_HEADER_LEN as u64..payload_start.min(file_len);
    [table, end.max(payload_start).min(file_len)..file_len]
}

impl Outline {
    /// Reads header, table and footer of `source`, or its chunks' headers.
    ///
    /// # Errors
    /// The file is no `.warp`, or what it says of itself cannot be true, or it changes meanwhile.
    pub(crate) fn read(
        source: &dyn Source,
        path: &Path,
        conditions: &Conditions<'_>,
    ) -> Result<Self> {
        let identity = source.identity().context("cannot examine", path)?;
        let outline = match Header::read(source, path, identity.size)? {
            Header::Table(header) => Self::with_table(source, path, conditions, identity, &header)?,
            Header::Release(header) => {
                Self::of_release(source, path, conditions, identity, &header)?
            }
        };
        match source.identity().context("cannot examine", path)? == identity {
            true => Ok(outline),
            false => Err(ErrorKind::Changed.into()),
        }
    }

    fn with_table(
        source: &dyn Source,
        path: &Path,
        conditions: &Conditions<'_>,
        identity: Identity,
        header: &FixedHeader,
    ) -> Result<Self> {
        let &Conditions {
            budget, make_room, ..
        } = conditions;
        let count = u64::from(header.chunk_count);
        // Every chunk has a payload of a byte at the least.
        if conditions.cut == Cut::Refuse && header.payload_start() + count > identity.size {
            return Err(ErrorKind::EndsInside(Part::Payload).into());
        }

        // Two columns of 8 bytes a chunk at the most; what they really take is known when they are read.
        let mut charge = budget.charge(16 * count + OVERHEAD as u64, make_room)?;
        for part in likely_description(
            header.payload_start(),
            header.original_size,
            header.chunk_count,
            identity.size,
        ) {
            source.expect_description(part);
        }
        let mut fingerprint = Fingerprint::default();
        fingerprint.update(&header.to_bytes());
        let mut offset = FIXED_HEADER_LEN as u64;
        let mut fill = |block: &mut [u8]| {
            stop_if_set(conditions.cancelled)?;
            let read = source
                .read_description(block, offset, header.payload_start())
                .context("cannot read", path)?;
            if read < block.len() {
                return Err(ErrorKind::EndsInside(Part::ChunkTable).into());
            }
            fingerprint.update(block);
            offset += block.len() as u64;
            Ok(())
        };
        let payloads = PayloadTable::read(header, &mut fill)?;
        let chunks = match header.version {
            Version::V2 => Chunks::Known(ChunkTable::read(header, payloads, &mut fill)?),
            Version::V1 => {
                let numbers = budget.charge(4 * count, make_room)?;
                version_1_chunks(
                    source,
                    path,
                    header,
                    payloads,
                    numbers,
                    conditions.cancelled,
                )?
            }
        };
        if let Chunks::Known(table) = &chunks {
            charge.shrink_to(table.memory() as u64 + OVERHEAD as u64);
        }
        let whole = chunks.payload_end() <= identity.size;
        if !whole && conditions.cut == Cut::Refuse {
            return Err(cut_short(&chunks, header.chunk_count, identity.size));
        }
        let mut end = [0; FOOTER_MAX_LEN];
        let read = if whole {
            let behind = chunks.payload_end();
            let until = identity.size.min(behind.saturating_add(RECORD_AT_ONCE));
            source
                .read_description(&mut end, behind, until)
                .context("cannot read", path)?
        } else {
            0
        };
        let footer = match Footer::parse(end.get(..read).unwrap_or_default()) {
            Err(_) if conditions.cut == Cut::Salvage => None,
            footer => footer?,
        };
        let of_table = fingerprint.digest();
        let footer_bytes = footer.as_ref().map_or(Vec::new(), Footer::to_bytes);
        fingerprint.update(&footer_bytes);
        let record = match conditions.verify {
            Verify::Off => None,
            _ if header.chunk_count == 0 => None,
            // Also in a file that seems cut short: one that has lost its end has no record, and if there is one, it is the
            // table that is damaged.
            _ => {
                let beginning = record::Beginning {
                    header,
                    footer: footer.as_ref(),
                    end: chunks
                        .payload_end()
                        .saturating_add(footer_bytes.len() as u64),
                    fingerprint: fingerprint.digest(),
                };
                Record::read(source, path, &beginning, identity.size, conditions)?
            }
        };
        Ok(Self {
            description: header.into(),
            chunks,
            footer,
            record,
            identity,
            beginning: Some(Beginning {
                end: header.payload_start(),
                fingerprint: of_table,
            }),
            charge,
        })
    }

    fn of_release(
        source: &dyn Source,
        path: &Path,
        conditions: &Conditions<'_>,
        identity: Identity,
        header: &ReleaseHeader,
    ) -> Result<Self> {
        let follow = |take: &mut dyn FnMut(&ChunkHeader) -> Result<()>| {
            let cancelled = conditions.cancelled;
            chain::follow(
                header,
                source,
                path,
                identity.size,
                cancelled,
                |chunk, _| take(chunk),
            )
        };
        let mut found = Survey::default();
        // Two columns of 8 bytes a chunk, and one of a byte, at the most.
        let table_memory = |count: u32| 17 * u64::from(count) + OVERHEAD as u64;
        let end = follow(&mut |chunk| {
            found.push(chunk)?;
            conditions
                .budget
                .check_charge(table_memory(found.chunk_count))
        })?;
        let announced = header.original_size.unwrap_or(found.original_size);
        let missing = announced.checked_sub(found.original_size);
        let wrong_sum = || ErrorKind::SizeSum {
            sum: found.original_size,
            header: announced,
        };
        let missing = missing.ok_or_else(wrong_sum)?;
        let last = found.chunk_count.saturating_sub(1);
        // A file that still has its last bytes was not cut; those are its header, and no chunk's that they should be served.
        let accepts = !header.trails && conditions.cut != Cut::Refuse;
        match (end, accepts) {
            // Of what follows nothing is known, not even that it is there.
            (End::Inside(Part::ChunkHeader), true) if header.original_size.is_some() => {}
            (End::Inside(Part::Payload) | End::Whole, true) => {}
            (End::Inside(Part::Payload), false) => {
                let error = Error::new(ErrorKind::EndsInside(Part::Payload));
                return Err(error.in_chunk(last, found.last_start));
            }
            (End::Inside(part), _) => return Err(ErrorKind::EndsInside(part).into()),
            (End::Whole, false) if missing > 0 => return Err(wrong_sum().into()),
            (End::Whole, false) => {}
        }
        let count = found.chunk_count.saturating_add(u32::from(missing > 0));
        let mut charge = conditions
            .budget
            .charge(table_memory(count), conditions.make_room)?;
        let mut table = ReleaseTable::new(header, count)?;
        let mut again = Survey::default();
        follow(&mut |chunk| {
            again.push(chunk)?;
            // Memory was taken for those that were counted.
            match again.chunk_count > found.chunk_count {
                true => Err(ErrorKind::Changed.into()),
                false => table.push(chunk),
            }
        })?;
        if missing > 0 {
            table.push_lost(missing)?;
        }
        let table = table.finish();
        charge.shrink_to(table.memory() as u64 + OVERHEAD as u64);
        Ok(Self {
            description: Description {
                chunk_count: count,
                ..found.describe(header)
            },
            chunks: Chunks::Known(table),
            footer: None,
            record: None,
            identity,
            beginning: None,
            charge,
        })
    }
}

pub(super) fn stop_if_set(cancelled: &AtomicBool) -> Result<()> {
    match cancelled.load(Ordering::Relaxed) {
        true => Err(ErrorKind::Cancelled.into()),
        false => Ok(()),
    }
}

/// The file ends inside the first of these chunks that it does not hold.
fn cut_short(chunks: &Chunks, chunk_count: u32, file_len: u64) -> Error {
    let is_cut = |chunk: &u32| {
        chunks
            .payload(*chunk)
            .is_some_and(|range| range.end > file_len)
    };
    let chunk = (0..chunk_count).find(is_cut).unwrap_or(0);
    let offset = chunks.original(chunk).map_or(0, |range| range.start);
    Error::new(ErrorKind::EndsInside(Part::Payload)).in_chunk(chunk, offset)
}

/// The original sizes a version 1 file does not have, from the payloads' own first bytes where they tell. `numbers` is what the
/// numbers of those that are unknown count as.
fn version_1_chunks(
    source: &dyn Source,
    path: &Path,
    header: &FixedHeader,
    payloads: PayloadTable,
    numbers: Charge,
    cancelled: &AtomicBool,
) -> Result<Chunks> {
    let mut sizes = Vec::with_capacity(payloads.len() as usize);
    let mut unknown = Vec::new();
    let mut sum = Some(0_u64);
    for chunk in 0..payloads.len() {
        stop_if_set(cancelled)?;
        let mut beginning = [0; codec::SIZE_PROBE_LEN];
        let range = payloads.range(chunk).unwrap_or_default();
        let length = (range.end - range.start).min(beginning.len() as u64) as usize;
        let wanted = beginning.get_mut(..length).unwrap_or_default();
        let read = source
            .read_at(wanted, range.start)
            .context("cannot read", path)?;
        let told = codec::decoded_len(header.codec, beginning.get(..read).unwrap_or_default());
        if told.is_none() {
            unknown.push(chunk);
        }
        let size = told.unwrap_or(0);
        sum = sum.and_then(|sum| sum.checked_add(size));
        sizes.push(size);
    }
    let believable = match unknown.is_empty() {
        true => sum == Some(header.original_size),
        false => sum.is_some_and(|sum| sum <= header.original_size),
    };
    if believable && unknown.is_empty() {
        return ChunkTable::of_sizes(header, payloads, sizes).map(Chunks::Known);
    }
    if !believable {
        unknown = (0..payloads.len()).collect();
        sizes.fill(0);
    }
    Ok(Chunks::Unmeasured {
        header: *header,
        payloads,
        sizes,
        unknown,
        numbers,
    })
}
