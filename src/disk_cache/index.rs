//! Where entries are: a table of buckets in a file, shared by all processes without a lock.
//!
//! The file begins with a page that says what it is and how many buckets follow, a power of two. A bucket is a page of 128
//! slots; an entry lies in the bucket that the low bits of its fingerprint name. A slot is 32 bytes: fingerprint, segment,
//! the newest segment when it was last used (8 bytes each), the record's position in the segment (4), and the low half of the
//! XXH3 of all that (4), little-endian. A slot whose check is wrong is free: zeros are, and so is what a crash or a race of two
//! processes has torn.
//!
//! A slot is written with one call, within a page. Wherever a slot points to, the record there has to prove that it is the one
//! that is looked for; so no state of this file can do worse than to hide entries.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use twox_hash::XxHash3_64;

use super::directory::Directory;

const PAGE: u64 = 4096;
const SLOT: usize = 32;
const SLOTS: u64 = PAGE / SLOT as u64;
const CHECK: usize = 28;
const MAGIC: [u8; 16] = *b"warpfs index 1\n\0";

/// For how large entries the index has a slot each, on the average, in bytes. So it takes 1/512 of the cache, up to twice that.
const ENTRY: u64 = 16 << 10;
/// How often to look again at a slot that is being written to: that takes a few nanoseconds.
const TORN_READS: usize = 8;
/// The most buckets there can be: for a cache of 8 PiB.
const MOST_BUCKETS: u64 = 1 << 32;

/// How many buckets a cache of this size wants.
pub(super) fn buckets_for(size: u64) -> u64 {
    (size / ENTRY / SLOTS)
        .clamp(1, MOST_BUCKETS)
        .next_power_of_two()
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Index {
    file: File,
    buckets: u64,
}

/// A slot that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    fingerprint: u64,
    /// The segment's number.
    pub(super) segment: u64,
    /// The newest segment's number when the entry was last used.
    pub(super) used: u64,
    /// The record's position in its segment, in units.
    pub(super) position: u32,
    /// Where the slot is in the file, in bytes.
    place: u64,
}

impl Entry {
    fn parse(slot: &[u8], place: u64) -> Option<Self> {
        let (fingerprint, rest) = slot.split_first_chunk()?;
        let (segment, rest) = rest.split_first_chunk()?;
        let (used, rest) = rest.split_first_chunk()?;
        let (position, check) = rest.split_first_chunk()?;
        (check == check_of(slot)).then_some(Self {
            fingerprint: u64::from_le_bytes(*fingerprint),
            segment: u64::from_le_bytes(*segment),
            used: u64::from_le_bytes(*used),
            position: u32::from_le_bytes(*position),
            place,
        })
    }

    fn bytes(&self) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let fields: [&[u8]; 4] = [
            &self.fingerprint.to_le_bytes(),
            &self.segment.to_le_bytes(),
            &self.used.to_le_bytes(),
            &self.position.to_le_bytes(),
        ];
        let mut rest: &mut [u8] = &mut slot;
        for field in fields {
            let (place, behind) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        }
        let check = check_of(&slot);
        slot.split_at_mut(CHECK).1.copy_from_slice(&check);
        slot
    }
}

/// A bucket as it was read.
struct Bucket {
    page: [u8; PAGE as usize],
    /// Where it is in the file, in bytes.
    place: u64,
}

impl Bucket {
    fn raw_slots(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.page
            .chunks_exact(SLOT)
            .zip((self.place..).step_by(SLOT))
    }

    /// The entries in it, and the places of the slots that are free.
    fn slots(&self) -> impl Iterator<Item = Result<Entry, u64>> {
        self.raw_slots()
            .map(|(slot, place)| Entry::parse(slot, place).ok_or(place))
    }

    /// Whether a slot of this fingerprint is not whole: somebody is writing to it just now, or it is damaged.
    fn is_torn(&self, fingerprint: u64) -> bool {
        let wanted = fingerprint.to_le_bytes();
        let mut slots = self.raw_slots();
        slots.any(|(slot, place)| slot.starts_with(&wanted) && Entry::parse(slot, place).is_none())
    }

    /// The entries of one fingerprint: checks are computed of these alone.
    fn entries_of(&self, fingerprint: u64) -> impl Iterator<Item = Entry> {
        let wanted = fingerprint.to_le_bytes();
        self.raw_slots()
            .filter(move |(slot, _)| slot.starts_with(&wanted))
            .filter_map(|(slot, place)| Entry::parse(slot, place))
    }
}

fn check_of(slot: &[u8]) -> [u8; 4] {
    let checked = slot.get(..CHECK).unwrap_or_default();
    (XxHash3_64::oneshot(checked) as u32).to_le_bytes()
}

impl Index {
    /// Opens the index of a cache, or makes one for so many buckets if there is none, or one with far fewer or far more. Where
    /// none can be made, one of the wrong size is better than none.
    pub(super) fn open_or_make(directory: &Directory, buckets: u64) -> io::Result<Self> {
        match Self::open(directory)? {
            Some(index) if index.suits(buckets) => Ok(index),
            Some(index) => Ok(Self::replace(directory, buckets).unwrap_or(index)),
            None => Self::replace(directory, buckets),
        }
    }

    /// Puts one with so many buckets in the place of one that does not suit, unless somebody else has done so meanwhile.
    fn replace(directory: &Directory, buckets: u64) -> io::Result<Self> {
        let Some(_lock) = directory.lock_in_time()? else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        match Self::open(directory)? {
            Some(index) if index.suits(buckets) => Ok(index),
            old => Self::make(directory, buckets, old.as_ref()),
        }
    }

    /// Whether it is large enough for whom so many buckets are right, and takes no more than an eighth of the cache.
    fn suits(&self, buckets: u64) -> bool {
        (buckets..=buckets.saturating_mul(32)).contains(&self.buckets)
    }

    /// The index there is, if it is one.
    pub(super) fn open(directory: &Directory) -> io::Result<Option<Self>> {
        let Some(file) = directory.open_index()? else {
            return Ok(None);
        };
        let mut beginning = [0; 24];
        match file.read_exact_at(&mut beginning, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let length = file.metadata()?.len();
        let found = beginning.split_last_chunk::<8>();
        Ok(found.and_then(|(magic, buckets)| {
            let buckets = u64::from_le_bytes(*buckets);
            let sound = magic == MAGIC
                && buckets.is_power_of_two()
                && buckets <= MOST_BUCKETS
                && (buckets + 1) * PAGE <= length;
            sound.then_some(Self { file, buckets })
        }))
    }

    /// Makes an index with all that is in an old one, and puts it in its place. Wants the cache's lock.
    fn make(directory: &Directory, buckets: u64, old: Option<&Self>) -> io::Result<Self> {
        let file = directory.create_index()?;
        file.set_len((buckets + 1) * PAGE)?;
        let beginning = [&MAGIC[..], &buckets.to_le_bytes()].concat();
        file.write_all_at(&beginning, 0)?;
        let index = Self { file, buckets };
        if let Some(old) = old {
            for bucket in 0..old.buckets {
                for entry in old.bucket(bucket)?.slots().flatten() {
                    index.insert(&entry, 0)?;
                }
            }
        }
        directory.publish_index()?;
        Ok(index)
    }

    /// Whether another has been put in its place.
    pub(super) fn is_replaced(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.file)?.st_nlink == 0)
    }

    fn bucket(&self, bucket: u64) -> io::Result<Bucket> {
        let place = (bucket + 1) * PAGE;
        let mut page = [0; PAGE as usize];
        self.file.read_exact_at(&mut page, place)?;
        Ok(Bucket { page, place })
    }

    fn bucket_of(&self, fingerprint: u64) -> u64 {
        fingerprint & (self.buckets - 1)
    }

    /// The entry of this fingerprint; the one in the newest segment, should there be several.
    pub(super) fn find(&self, fingerprint: u64) -> io::Result<Option<Entry>> {
        let number = self.bucket_of(fingerprint);
        let mut bucket = self.bucket(number)?;
        for _ in 0..TORN_READS {
            if !bucket.is_torn(fingerprint) {
                break;
            }
            std::thread::yield_now();
            bucket = self.bucket(number)?;
        }
        Ok(bucket
            .entries_of(fingerprint)
            .max_by_key(|entry| entry.segment))
    }

    /// Puts an entry in: instead of the one of its fingerprint, into a free slot or one whose segment is older than `oldest`,
    /// or instead of the one of its bucket that was not used for the longest time.
    fn insert(&self, entry: &Entry, oldest: u64) -> io::Result<()> {
        let bucket = self.bucket(self.bucket_of(entry.fingerprint))?;
        let best = bucket.slots().min_by_key(|slot| match slot {
            Ok(other) if other.fingerprint == entry.fingerprint => (0, 0),
            Err(_) => (1, 0),
            Ok(other) if other.segment < oldest => (2, 0),
            Ok(other) => (3, other.used),
        });
        let place = match best {
            Some(Ok(other)) => other.place,
            Some(Err(place)) => place,
            None => return Ok(()),
        };
        self.file.write_all_at(&entry.bytes(), place)
    }

    /// Says where the record of a fingerprint is, used last when `used` was the newest segment. `oldest` is the oldest segment
    /// there is.
    pub(super) fn set(
        &self,
        fingerprint: u64,
        (segment, position): (u64, u32),
        used: u64,
        oldest: u64,
    ) -> io::Result<()> {
        let entry = Entry {
            fingerprint,
            segment,
            used,
            position,
            place: 0,
        };
        self.insert(&entry, oldest)
    }

    /// Notes that an entry is in use when `newest` is the newest segment, if it is still in that segment.
    pub(super) fn touch(&self, fingerprint: u64, segment: u64, newest: u64) -> io::Result<()> {
        match self.find(fingerprint)? {
            Some(entry) if entry.segment == segment && entry.used < newest => {
                let touched = Entry {
                    used: newest,
                    ..entry
                };
                self.file.write_all_at(&touched.bytes(), entry.place)
            }
            _ => Ok(()),
        }
    }

    /// Takes an entry out, unless another is in its place by now.
    pub(super) fn remove(&self, entry: &Entry) -> io::Result<()> {
        let mut slot = [0; SLOT];
        self.file.read_exact_at(&mut slot, entry.place)?;
        let now = Entry::parse(&slot, entry.place);
        if now.is_some_and(|now| (now.segment, now.position) != (entry.segment, entry.position)) {
            return Ok(());
        }
        self.file.write_all_at(&[0; SLOT], entry.place)
    }
}
