//! What a file's header, table and footer say: all that is needed to find any byte, without a descriptor.
//!
//! Contents are shared by everybody who has the same file open and outlive them, so that a version 1 file, which has
//! to be searched for its chunks' sizes, is searched once for as long as it stays the same.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use xxhash_rust::xxh64::Xxh64;

use super::source::Source;
use crate::codec;
use crate::error::{Error, ErrorKind, IoContext, Part, Result};
use crate::format::{ChunkTable, FIXED_HEADER_LEN, FOOTER_MAX_LEN, FixedHeader, Footer, Version};
use crate::identity::Identity;
use crate::memory::{Budget, Charge, Urgency};

/// What an open file takes beside its table, in bytes, roughly: what is remembered of it, its reader and its handle.
const OVERHEAD: usize = 1024;
/// How much of a table is read at a time when it is only compared, in bytes.
const COMPARE_BLOCK: usize = 64 << 10;

/// Whether a file that ends inside its payloads is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It is: the chunks it still holds are served.
    Accept,
    /// It is not.
    Refuse,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Contents {
    /// A number no other contents of this process have.
    pub(crate) number: u64,
    pub(crate) header: FixedHeader,
    pub(crate) table: ChunkTable,
    pub(crate) footer: Option<Footer>,
    /// The file these contents were read from.
    pub(crate) identity: Identity,
    /// Of the header and the table as they stand in the file.
    fingerprint: u64,
    /// Chunks whose damage is in the log already.
    reported: Mutex<HashSet<u32>>,
    /// Whether the log has it that the file was changed.
    reported_change: AtomicBool,
    _charge: Charge,
}

impl Contents {
    /// Reads header, table and footer of `source`. The table counts against `budget`; `make_room` as in
    /// [`Budget::acquire`].
    ///
    /// # Errors
    /// The file is no `.warp`, or what it says of itself cannot be true, or it changes meanwhile.
    pub(crate) fn read(
        source: &dyn Source,
        path: &Path,
        cut: Cut,
        budget: &Arc<Budget>,
        make_room: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self> {
        static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
        let identity = source.identity().context("cannot examine", path)?;
        let mut start = [0; FIXED_HEADER_LEN];
        let read = source.read_at(&mut start, 0).context("cannot read", path)?;
        let header = FixedHeader::parse(start.get(..read).unwrap_or_default())?;
        header.check_room(identity.size)?;

        // Two columns of 8 bytes a chunk stay in memory; what the file holds of them is there until they are parsed.
        let charge = budget.charge(
            16 * u64::from(header.chunk_count) + OVERHEAD as u64,
            make_room,
        )?;
        let reading = budget.charge(header.table_len(), make_room)?;
        let mut table_bytes = vec![0; usize::try_from(header.table_len()).unwrap_or(usize::MAX)];
        let read = source
            .read_at(&mut table_bytes, FIXED_HEADER_LEN as u64)
            .context("cannot read", path)?;
        if read < table_bytes.len() {
            return Err(ErrorKind::EndsInside(Part::ChunkTable).into());
        }
        let mut fingerprint = Xxh64::new(0);
        fingerprint.update(&start);
        fingerprint.update(&table_bytes);
        let table = match header.version {
            Version::V2 => ChunkTable::parse(&header, &table_bytes)?,
            Version::V1 => {
                let sizes = ChunkTable::parse_compressed_sizes(&header, &table_bytes)?;
                version_1_table(source, path, &header, &sizes, budget, make_room)?
            }
        };
        drop(table_bytes);
        drop(reading);

        let whole = table.payload_end() <= identity.size;
        if !whole && cut == Cut::Refuse {
            let chunk = (0..table.len())
                .find(|&chunk| {
                    table
                        .compressed_range(chunk)
                        .is_some_and(|range| range.end > identity.size)
                })
                .unwrap_or(0);
            let offset = table.original_range(chunk).map_or(0, |range| range.start);
            return Err(Error::new(ErrorKind::EndsInside(Part::Payload)).in_chunk(chunk, offset));
        }
        let mut end = [0; FOOTER_MAX_LEN];
        let read = if whole {
            source
                .read_at(&mut end, table.payload_end())
                .context("cannot read", path)?
        } else {
            0
        };
        let footer = Footer::parse(end.get(..read).unwrap_or_default())?;
        if source.identity().context("cannot examine", path)? != identity {
            return Err(ErrorKind::Changed.into());
        }
        Ok(Self {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            header,
            table,
            footer,
            identity,
            fingerprint: fingerprint.digest(),
            reported: Mutex::default(),
            reported_change: AtomicBool::new(false),
            _charge: charge,
        })
    }

    /// Whether `source` still begins with this header and this table.
    pub(crate) fn still_described_by(&self, source: &dyn Source) -> std::io::Result<bool> {
        let mut fingerprint = Xxh64::new(0);
        let mut block = [0; COMPARE_BLOCK];
        let end = self.header.payload_start();
        let mut offset = 0;
        while offset < end {
            let length = (end - offset).min(COMPARE_BLOCK as u64) as usize;
            let wanted = block.get_mut(..length).unwrap_or_default();
            if source.read_at(wanted, offset)? < length {
                return Ok(false);
            }
            fingerprint.update(wanted);
            offset += length as u64;
        }
        Ok(fingerprint.digest() == self.fingerprint)
    }

    /// The memory these contents take, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.table.memory() + OVERHEAD
    }

    /// Whether this is the first report of the file's change.
    pub(crate) fn report_change_once(&self) -> bool {
        !self.reported_change.swap(true, Ordering::Relaxed)
    }

    /// Whether this is the first report of the chunk's damage.
    pub(crate) fn report_once(&self, chunk: u32) -> bool {
        self.reported
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(chunk)
    }
}

/// Finds the original sizes a version 1 file does not have: from the payloads' own first bytes where they tell, by
/// decoding where they do not. First bytes can be wrong (a frame may be followed by another in its payload), so if
/// they do not add up to the header's size, everything is decoded.
fn version_1_table(
    source: &dyn Source,
    path: &Path,
    header: &FixedHeader,
    compressed_sizes: &[u64],
    budget: &Arc<Budget>,
    make_room: &(dyn Fn() -> bool + Sync),
) -> Result<ChunkTable> {
    // The payloads' places, and the check that they have places: no original sizes are known yet.
    let places = ChunkTable::new(
        header.payload_start(),
        compressed_sizes.iter().copied(),
        compressed_sizes.iter().map(|_| 0),
    )?;
    let place = |chunk: usize| places.compressed_range(chunk as u32).unwrap_or_default();
    let told = |chunk: usize| -> Result<Option<u64>> {
        let mut beginning = [0; codec::SIZE_PROBE_LEN];
        let range = place(chunk);
        let length = (range.end - range.start).min(beginning.len() as u64) as usize;
        let wanted = beginning.get_mut(..length).unwrap_or_default();
        let read = source
            .read_at(wanted, range.start)
            .context("cannot read", path)?;
        Ok(codec::decoded_len(
            header.codec,
            beginning.get(..read).unwrap_or_default(),
        ))
    };
    let measured = |chunk: usize| -> Result<u64> {
        let range = place(chunk);
        let file_len = source.identity().context("cannot examine", path)?.size;
        if range.end > file_len {
            return Err(ErrorKind::EndsInside(Part::Payload).into());
        }
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let Some([mut payload]) = budget.acquire([length], Urgency::Demand, make_room)? else {
            return Err(ErrorKind::Cancelled.into());
        };
        if source
            .read_at(&mut payload, range.start)
            .context("cannot read", path)?
            < length
        {
            return Err(ErrorKind::EndsInside(Part::Payload).into());
        }
        codec::measure(header.codec, &payload, header.original_size)
            .map_err(|error| error.in_chunk(chunk as u32, 0))
    };
    let count = compressed_sizes.len();
    let sizes_told: Vec<Option<u64>> = (0..count).map(told).collect::<Result<_>>()?;
    let sizes: Vec<u64> = (0..count)
        .into_par_iter()
        .zip(&sizes_told)
        .map(|(chunk, told)| told.map_or_else(|| measured(chunk), Ok))
        .collect::<Result<_>>()?;
    let table = ChunkTable::new(
        header.payload_start(),
        compressed_sizes.iter().copied(),
        sizes.into_iter(),
    );
    if let Ok(table) = table
        && table.check_sum(header).is_ok()
    {
        return Ok(table);
    }
    let sizes: Vec<u64> = (0..count)
        .into_par_iter()
        .map(measured)
        .collect::<Result<_>>()?;
    let table = ChunkTable::new(
        header.payload_start(),
        compressed_sizes.iter().copied(),
        sizes.into_iter(),
    )?;
    table.check_sum(header)?;
    Ok(table)
}
