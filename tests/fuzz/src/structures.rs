//! Header, table, footer and record of digests, or the headers of a file without a table: the bytes of a file's structures, read from memory. What is read must be what stands there,
//! and what is written of it the same bytes again.

use warpfs::ErrorKind;
use warpfs::error::{Part, Result};
use warpfs::format::{
    CHUNK_PROBE_LEN, ChunkHeader, ChunkTable, Encoding, FIXED_HEADER_LEN, FixedHeader, Footer,
    PayloadTable, RELEASE_HEADER_LEN, ReleaseHeader, ReleaseTable, Version,
};
use warpfs::fuzzing;

use crate::memory::{ALLOWANCE, within};

/// Takes the input for the structures of a file, payloads left out, and for a footer alone.
pub fn run(data: &[u8]) {
    within(data.len() + ALLOWANCE, || {
        beginning(data);
        release(data);
        footer(data);
        record(data);
    });
}

fn beginning(data: &[u8]) {
    let Ok(header) = FixedHeader::parse(data) else {
        return;
    };
    assert!(header.to_bytes() == data[..FIXED_HEADER_LEN]);
    let has_room = header.payload_start() <= data.len() as u64;
    assert_eq!(header.check_room(data.len() as u64).is_ok(), has_room);
    if !has_room {
        return;
    }
    let mut rest = &data[FIXED_HEADER_LEN..];
    let table_bytes = &rest[..header.table_len() as usize];
    let mut fill = |block: &mut [u8]| -> Result<()> {
        let (taken, behind) = rest
            .split_at_checked(block.len())
            .ok_or(ErrorKind::EndsInside(Part::ChunkTable))?;
        block.copy_from_slice(taken);
        rest = behind;
        Ok(())
    };
    let Ok(payloads) = PayloadTable::read(&header, &mut fill) else {
        return;
    };
    assert_eq!(payloads.len(), header.chunk_count);
    assert_eq!(payloads.is_empty(), header.chunk_count == 0);
    let count = header.chunk_count as usize;
    let sizes: Vec<u64> = table_bytes
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let table = match header.version {
        Version::V2 => ChunkTable::read(&header, payloads, &mut fill),
        // Any sizes that add up, as if they had been found by decoding.
        Version::V1 => {
            let first = sizes.iter().map(|size| size % 1000).take(count);
            let mut sizes: Vec<u64> = first.collect();
            let sum: u64 = sizes.iter().rev().skip(1).sum();
            if let (Some(last), Some(rest)) =
                (sizes.last_mut(), header.original_size.checked_sub(sum))
            {
                *last = rest;
            }
            ChunkTable::of_sizes(&header, payloads, sizes)
        }
    };
    let Ok(table) = table else {
        return;
    };
    check_table(&header, &table, &sizes);
    if let Some(behind) = data.get(table.payload_end() as usize..) {
        footer(behind);
    }
}

fn check_table(header: &FixedHeader, table: &ChunkTable, sizes: &[u64]) {
    assert_eq!(table.len(), header.chunk_count);
    assert_eq!(table.original_size(), header.original_size);
    let (mut packed, mut original) = (header.payload_start(), 0);
    for chunk in 0..table.len() {
        let payload = table.compressed_range(chunk).unwrap();
        assert_eq!(payload.start, packed);
        assert_eq!(payload.end - payload.start, sizes[chunk as usize]);
        packed = payload.end;
        let bytes = table.original_range(chunk).unwrap();
        assert_eq!(bytes.start, original);
        assert!(bytes.end >= original);
        original = bytes.end;
        if !bytes.is_empty() {
            let holding = table.chunks_holding(&(bytes.start..bytes.start + 1));
            assert_eq!(holding.start, chunk);
            let holding = table.chunks_holding(&bytes);
            assert_eq!(holding, chunk..chunk + 1);
        }
    }
    assert_eq!(packed, table.payload_end());
    assert_eq!(original, table.original_size());
    assert!(table.compressed_range(table.len()).is_none());
    assert!(table.chunks_holding(&(original..u64::MAX)).is_empty());
}

/// A file without a table, whichever end its header is at.
fn release(data: &[u8]) {
    let behind = data.len().saturating_sub(RELEASE_HEADER_LEN);
    let trailing = ReleaseHeader::parse_trailing(data, &data[behind..]);
    for header in ReleaseHeader::parse(data).into_iter().chain(trailing) {
        assert!(header.header_len() <= RELEASE_HEADER_LEN as u64);
        assert_eq!(header.trails, header.chunks_start() == 0);
        let chunks: Vec<_> = release_chunks(&header, data).collect();
        // Nobody has to believe the count, or that there are no more.
        for count in [chunks.len() as u32, 0] {
            let mut table = ReleaseTable::new(&header, count).unwrap();
            for (chunk, _) in &chunks {
                table.push(chunk).unwrap();
            }
            let lost = table.push_lost(u64::from(u32::MAX));
            lost.unwrap();
            check_release_table(&table.finish(), &chunks, data);
        }
    }
}

/// The chunks of such a file and what there is of their payloads, as far as each header leads to the next.
pub fn release_chunks<'a>(
    header: &ReleaseHeader,
    data: &'a [u8],
) -> impl Iterator<Item = (ChunkHeader, &'a [u8])> {
    let header = *header;
    let mut place = header.chunks_start() as usize;
    let end = header.chunks_end(data.len() as u64) as usize;
    std::iter::from_fn(move || {
        let rest = data.get(place..end)?;
        let probed = &rest[..rest.len().min(CHUNK_PROBE_LEN)];
        let chunk = header.parse_chunk(probed).ok()?;
        assert!(chunk.original_size > 0);
        assert_eq!(chunk.encoding == Encoding::Zeros, chunk.packed_size == 0);
        let payload = &rest[header.release.chunk_header_len()..];
        place = (end - payload.len()).saturating_add(chunk.packed_size as usize);
        Some((
            chunk,
            &payload[..payload.len().min(chunk.packed_size as usize)],
        ))
    })
}

/// The last chunk of the table is one that was lost.
fn check_release_table(table: &ChunkTable, chunks: &[(ChunkHeader, &[u8])], data: &[u8]) {
    assert_eq!(table.len() as usize, chunks.len() + 1);
    let mut original = 0;
    for (number, (chunk, payload)) in chunks.iter().enumerate() {
        let number = number as u32;
        let place = table.compressed_range(number).unwrap();
        assert_eq!(place.end - place.start, u64::from(chunk.packed_size));
        assert!(data[place.start as usize..].starts_with(payload));
        assert_eq!(table.encoding(number), Some(chunk.encoding));
        let bytes = table.original_range(number).unwrap();
        assert_eq!(bytes.start, original);
        original += u64::from(chunk.original_size);
        assert_eq!(bytes.end, original);
        assert_eq!(table.chunks_holding(&bytes), number..number + 1);
    }
    let last = table.len() - 1;
    let lost = table.compressed_range(last).unwrap();
    assert_eq!(lost.end - lost.start, 1);
    assert_eq!(table.original_range(last).unwrap().start, original);
}

fn footer(data: &[u8]) {
    if let Ok(Some(footer)) = Footer::parse(data) {
        assert_eq!(footer.digest.len(), footer.checksum.digest_len());
        assert!(data.starts_with(&footer.to_bytes()));
    }
}

fn record(data: &[u8]) {
    // A page does not say how many leaves it has; the table does, with its chunks' ends.
    if let Some((&leaves, page)) = data.split_first() {
        fuzzing::record(page, usize::from(leaves));
    }
    fuzzing::record(data, data.len() / 9);
}
