//! Segments: records one behind the other, each an entry with a header that proves it.
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | `wfc1` |
//! | 4 | length of the payload in bytes |
//! | 8 | offset of the payload in the object |
//! | 32 | key of the object |
//! | 8 | XXH3 of the payload |
//! | 8 | XXH3 of the 56 bytes before |
//!
//! Then the payload, and zeros up to a multiple of 64 bytes. Integers are little-endian. Positions are counted in units of
//! 64 bytes, so that 32 bits reach far enough. XXH3 (64 bits) is no protection against somebody who makes up records:
//! directories that others may write to are not used.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use twox_hash::XxHash3_64;

use super::{Address, Key};

/// What records are aligned to, and a header's length, in bytes.
pub(super) const UNIT: u64 = 64;
const HEADER: usize = 64;
const MAGIC: [u8; 4] = *b"wfc1";

impl Address {
    /// A number for the index. Keys are digests already, so whoever could make two collide would have to break these;
    /// and all a collision does is a miss.
    pub(super) fn fingerprint(&self) -> u64 {
        let header = header_of(self, 0);
        XxHash3_64::oneshot(header.split_at(PAYLOAD_CHECK).0)
    }

    /// How long the record of such an entry is, in bytes.
    pub(super) fn record_length(&self) -> u64 {
        (HEADER as u64 + u64::from(self.length)).next_multiple_of(UNIT)
    }
}

const PAYLOAD_CHECK: usize = 48;
const HEADER_CHECK: usize = 56;

/// The header of a record, without its own check if there is no payload's.
fn header_of(address: &Address, payload_check: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let fields: [&[u8]; 5] = [
        &MAGIC,
        &address.length.to_le_bytes(),
        &address.offset.to_le_bytes(),
        &address.key,
        &payload_check.to_le_bytes(),
    ];
    let mut rest: &mut [u8] = &mut header;
    for field in fields {
        let (place, behind) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = behind;
    }
    let check = XxHash3_64::oneshot(header.split_at(HEADER_CHECK).0);
    header
        .split_at_mut(HEADER_CHECK)
        .1
        .copy_from_slice(&check.to_le_bytes());
    header
}

/// What a header says, if it is one.
fn parse(header: &[u8; HEADER]) -> Option<Address> {
    let (magic, rest) = header.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (key, rest) = rest.split_first_chunk::<32>()?;
    let (_, check) = rest.split_first_chunk::<8>()?;
    let computed = XxHash3_64::oneshot(header.split_at(HEADER_CHECK).0);
    let key: Key = *key;
    let address = Address {
        key,
        offset: u64::from_le_bytes(*offset),
        length: u32::from_le_bytes(*length),
    };
    (*magic == MAGIC && check == computed.to_le_bytes() && address.length > 0).then_some(address)
}

/// A record in memory.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) address: Address,
    /// Header, payload and padding.
    bytes: Vec<u8>,
}

impl Record {
    /// A record of a payload, which is as long as the address says. It wants a header yet.
    pub(super) fn new(address: Address, payload: &[u8]) -> Self {
        let length = address.record_length() as usize;
        let mut bytes = Vec::with_capacity(length);
        bytes.resize(HEADER, 0);
        bytes.extend_from_slice(payload);
        bytes.resize(length, 0);
        Self { address, bytes }
    }

    /// Reads the record with this address, if it is there.
    pub(super) fn read(file: &File, position: u32, address: Address) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; address.record_length() as usize];
        let (_, place) = bytes.split_at_mut(HEADER);
        let (place, _) = place.split_at_mut(address.length as usize);
        let found = read(file, position, &address, place)?;
        Ok(found.then_some(Self { address, bytes }))
    }

    /// Its length in the segment, in bytes.
    pub(super) fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Writes the header.
    fn seal(&mut self) {
        let (header, rest) = self.bytes.split_at_mut(HEADER);
        let (payload, _) = rest.split_at_mut(self.address.length as usize);
        header.copy_from_slice(&header_of(&self.address, XxHash3_64::oneshot(payload)));
    }
}

/// Reads the payload of a record into `buffer`, which is as long as the address says. Says whether the record is the one with
/// this address, and whole.
pub(super) fn read(
    file: &File,
    position: u32,
    address: &Address,
    buffer: &mut [u8],
) -> io::Result<bool> {
    let mut header = [0; HEADER];
    let wanted = HEADER + buffer.len();
    let offset = u64::from(position) * UNIT;
    let read = {
        let mut places = [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
        rustix::io::retry_on_intr(|| rustix::io::preadv(file, &mut places, offset))?
    };
    if read < HEADER {
        return Ok(false);
    }
    // One call hardly ever gives less than there is.
    let mut done = read;
    while done < wanted {
        let rest = buffer.get_mut(done - HEADER..).unwrap_or_default();
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => return Ok(false),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(header == header_of(address, XxHash3_64::oneshot(buffer)))
}

/// The records of a segment as their headers tell, with their positions, up to the first that is none. Payloads are not looked
/// at.
pub(super) fn scan(file: &File) -> io::Result<Scan<'_>> {
    Ok(Scan {
        file,
        length: file.metadata()?.len(),
        next: 0,
    })
}

/// See [`scan`].
#[derive(Debug)]
pub(super) struct Scan<'a> {
    file: &'a File,
    length: u64,
    /// Where the next record begins, in bytes: behind the last one, when there is no more.
    pub(super) next: u64,
}

impl Iterator for Scan<'_> {
    type Item = (u32, Address);

    fn next(&mut self) -> Option<Self::Item> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, self.next).ok()?;
        let address = parse(&header)?;
        let position = u32::try_from(self.next / UNIT).ok()?;
        let end = self.next.checked_add(address.record_length())?;
        if end > self.length {
            return None;
        }
        self.next = end;
        Some((position, address))
    }
}

/// A segment that is appended to, by this process alone.
#[derive(Debug)]
pub(super) struct Appender {
    pub(super) number: u64,
    /// Locked, so that no other process takes it up.
    file: File,
    /// Where the next record goes, in bytes.
    end: u64,
}

impl Appender {
    /// Goes on behind `end`, a multiple of [`UNIT`], of a segment that this process has locked. What is behind it goes.
    pub(super) fn new(number: u64, file: File, end: u64) -> io::Result<Self> {
        file.set_len(end)?;
        Ok(Self { number, file, end })
    }

    /// How long it is, in bytes.
    pub(super) fn length(&self) -> u64 {
        self.end
    }

    /// Whether somebody has removed it.
    pub(super) fn is_removed(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.file)?.st_nlink == 0)
    }

    /// Appends a record; gives its position.
    ///
    /// # Errors
    /// The disk refuses it; nothing of it stays.
    pub(super) fn append(&mut self, record: &mut Record) -> io::Result<u32> {
        let position = u32::try_from(self.end / UNIT)
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        record.seal();
        if let Err(error) = self.file.write_all_at(&record.bytes, self.end) {
            // Room that nothing useful is in. Should this fail too, the next record overwrites it.
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        self.end += record.length();
        Ok(position)
    }
}
