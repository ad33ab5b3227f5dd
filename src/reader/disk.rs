//! Having the disk read ahead of who reads a local file in some order.
//!
//! Several threads read a file's payloads, each another one, some tens of kibibytes at a time and not quite in order. To the kernel,
//! which follows one reader of a descriptor, they look like readers in random places, and it reads little ahead of them, or nothing.
//! So it is told what is going to be wanted, whether it has it in memory or not: to look through 370 pages takes it 19 µs at
//! most, as long as to decode 25 KiB. Two processors, a virtual disk whose readahead is 128 KiB, as most have it, nothing in memory,
//! medians of three in turn: `cat` of default chunks of lz4 1.09 s before and 0.67 with it, of zstd's chunks of 16 MiB 1.26 and 1.11.

use std::ops::Range;

use super::Shared;
use crate::archive::Archive;
use crate::prefetch::{Far, Prefetch};

/// How far ahead of a reader the disk reads, in bytes of the original: some dozens of milliseconds of decoding, and more than a
/// disk with heads takes to move them.
const WINDOW: u64 = 8 << 20;
/// How much it is asked for at a time, in bytes of the original.
const BATCH: u64 = 2 << 20;
/// In what steps that is counted, in bytes of the original.
const STEP: u64 = 128 << 10;
/// How much has to be read in a row before it is asked, in bytes: a read of 1 MiB in a random place, which the kernel cuts into
/// several and reads some more behind, is not worth a window.
const PROOF: u64 = 4 << 20;

/// Follows the readers of a file for its disk; nobody if `off`, or if it is no file on one.
pub(super) fn follow(archive: &Archive, off: bool) -> Prefetch {
    let limit = match off || archive.distant().is_some() {
        true => 0,
        false => WINDOW,
    };
    let far = Far {
        proof: PROOF,
        believes_beginnings: false,
        batch: BATCH,
        first_window: WINDOW,
    };
    Prefetch::new(limit, Some(far))
}

impl Shared {
    /// Takes notice of a read, and has the disk read ahead of its reader if he reads in order.
    pub(super) fn look_ahead_on_disk(&self, read: &Range<u64>) {
        let size = self.archive.table().original_size();
        // Whatever chunks there are: of tiny ones there would be very many.
        let step_end = |offset: u64| {
            let end = (offset - offset % STEP).saturating_add(STEP);
            (offset < size).then_some(end.min(size))
        };
        self.have_disk_read(&self.on_disk.observe(read, step_end));
    }

    /// Has the disk read what these bytes of the original are decoded from.
    pub(super) fn have_disk_read(&self, bytes: &Range<u64>) {
        let packed_part = |offset| {
            let (unit, _) = self.unit_at(offset)?;
            let chunk = self.bytes(unit.chunk);
            let part = bytes.start.max(chunk.start)..bytes.end.min(chunk.end);
            Some(self.packed_part(unit.chunk, &part))
        };
        if let Some(last) = bytes.end.checked_sub(1)
            && bytes.start <= last
            && let Some((first, last)) = packed_part(bytes.start).zip(packed_part(last))
        {
            // What is packed is hardly longer than its original, unless somebody means harm.
            let most = first.start.saturating_add(2 * WINDOW);
            self.archive.will_read(&(first.start..last.end.min(most)));
        }
    }
}

#[cfg(test)]
#[cfg(feature = "files")]
mod tests {
    use super::*;
    use crate::archive::{Cut, Source};
    use crate::format::Codec;
    use crate::identity::Identity;
    use crate::job::Control;
    use crate::pack::{PackOptions, pack_file};
    use crate::reader::{Engine, EngineOptions, Reader};
    use std::fs::{self, File};
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Mutex};

    const MIB: u64 = 1 << 20;
    const LENGTH: u64 = 64 * MIB;

    type Asked = Arc<Mutex<Vec<Range<u64>>>>;

    /// A file on a disk that tells what it was asked to read ahead.
    #[derive(Debug)]
    struct Disk {
        file: File,
        /// Whether all of it is in memory.
        at_hand: bool,
        asked: Asked,
    }

    impl Source for Disk {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            Source::read_at(&self.file, buffer, offset)
        }

        fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> bool {
            self.at_hand && self.read_at(buffer, offset).unwrap() == buffer.len()
        }

        fn will_read(&self, range: &Range<u64>) {
            self.asked.lock().unwrap().push(range.clone());
        }

        fn identity(&self) -> io::Result<Identity> {
            Source::identity(&self.file)
        }
    }

    fn packed(codec: Codec, chunk_size: u64) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("x");
        let mut number = 7_u64;
        let mut original = Vec::with_capacity(LENGTH as usize);
        while original.len() < LENGTH as usize {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            original.extend_from_slice(&number.to_le_bytes());
            original.extend_from_slice(b"as dull as it can be, and again ");
        }
        fs::write(&plain, &original[..LENGTH as usize]).unwrap();
        let options = PackOptions {
            codec: Some(codec),
            chunk_size: Some(chunk_size),
            ..PackOptions::default()
        };
        let packed = directory.path().join("x.warp");
        pack_file(&plain, &packed, &options, Control::default()).unwrap();
        (directory, packed)
    }

    fn open(path: &Path, prefetch: Option<u64>) -> (Reader, Asked) {
        open_from(path, true, prefetch)
    }

    fn open_from(path: &Path, at_hand: bool, prefetch: Option<u64>) -> (Reader, Asked) {
        let file = File::open(path).unwrap();
        let asked = Asked::default();
        let source = Box::new(Disk {
            file,
            at_hand,
            asked: Arc::clone(&asked),
        });
        let never = AtomicBool::new(false);
        let options = EngineOptions {
            threads: 1,
            prefetch,
            ..EngineOptions::default()
        };
        let archive = Archive::from_source(source, path, options.verify, Cut::Refuse, &never);
        let reader = Reader::new(Engine::new(&options).unwrap(), archive.unwrap());
        (reader, asked)
    }

    fn read(reader: &Reader, offset: u64, length: u64) {
        let mut bytes = vec![0; length as usize];
        reader.read_at(&mut bytes, offset).unwrap();
    }

    #[test]
    fn a_reader_in_order_has_all_payloads_asked_for_long_before_he_comes_there_and_few_at_a_time() {
        for (codec, chunk_size) in [
            (Codec::Zstd, 128 << 10),
            (Codec::Zstd, 16 * MIB),
            (Codec::Lz4, MIB),
        ] {
            let (_directory, path) = packed(codec, chunk_size);
            let (reader, asked) = open(&path, None);
            let table = reader.shared.archive.table();
            let place = |offset: u64| table.payload_end() * offset / LENGTH;
            let slack = 2 * crate::reader::distant::PIECE_SLACK;
            let mut behind = 0;
            for offset in (0..LENGTH).step_by(256 << 10) {
                read(&reader, offset, 256 << 10);
                for range in std::mem::take(&mut *asked.lock().unwrap()) {
                    assert!(
                        range.start + slack >= place(offset),
                        "{range:?} at {offset}"
                    );
                    // One after the other, from behind what has proved that he reads in order.
                    let expected = if behind == 0 { place(PROOF) } else { behind };
                    let off = range.start.abs_diff(expected);
                    assert!(off <= place(MIB) + slack, "{range:?} for {expected}");
                    let length = range.end - range.start;
                    assert!(length <= place(WINDOW + MIB) + slack, "{range:?}");
                    behind = range.end;
                }
                let until = place(LENGTH.min(offset + WINDOW - BATCH));
                let known = offset <= PROOF;
                assert!(known || behind + slack >= until, "{offset}");
            }
            assert_eq!(behind, table.payload_end());
        }
    }

    #[test]
    fn who_reads_a_file_s_beginning_or_a_mebibyte_here_and_there_has_nothing_asked_for() {
        let (_directory, path) = packed(Codec::Zstd, 128 << 10);
        let (reader, asked) = open(&path, None);
        for place in [0, 40, 7, 21, 60, 33, 12] {
            for request in 0..4 {
                read(&reader, place * MIB + request * (512 << 10), 512 << 10);
            }
        }
        assert_eq!(*asked.lock().unwrap(), []);
    }

    #[test]
    fn who_leaves_out_as_much_each_time_has_the_chunks_after_him_asked_for() {
        let (_directory, path) = packed(Codec::Zstd, 128 << 10);
        let (reader, asked) = open(&path, None);
        let table = reader.shared.archive.table();
        let (mut ahead, mut before) = (0, 0);
        for chunk in (0..500).step_by(4) {
            let payload = table.compressed_range(chunk).unwrap();
            before += u32::from(asked.lock().unwrap().contains(&payload));
            read(&reader, u64::from(chunk) * (128 << 10), 4096);
            ahead += 1;
        }
        assert!(before + 5 >= ahead, "{before} of {ahead}");
    }

    #[test]
    fn a_short_chunk_that_is_not_in_memory_is_asked_for_as_a_whole() {
        let (_directory, path) = packed(Codec::Lz4, MIB);
        let (reader, asked) = open_from(&path, false, None);
        let table = reader.shared.archive.table();
        for chunk in [7, 3, 30] {
            read(&reader, u64::from(chunk) * MIB + 300_000, 100);
            let asked = std::mem::take(&mut *asked.lock().unwrap());
            assert_eq!(asked, [table.compressed_range(chunk).unwrap()]);
        }
    }

    #[test]
    fn without_read_ahead_the_disk_is_not_asked_either() {
        let (_directory, path) = packed(Codec::Zstd, 128 << 10);
        let (reader, asked) = open(&path, Some(0));
        for offset in (0..32 * MIB).step_by(512 << 10) {
            read(&reader, offset, 512 << 10);
        }
        assert_eq!(*asked.lock().unwrap(), []);
    }

    #[test]
    fn who_goes_backwards_has_the_chunks_before_him_asked_for() {
        let (_directory, path) = packed(Codec::Zstd, 128 << 10);
        let (reader, asked) = open(&path, None);
        for number in 1..512 {
            read(&reader, LENGTH - number * (64 << 10), 64 << 10);
        }
        let asked = asked.lock().unwrap();
        let table = reader.shared.archive.table();
        let covered: u64 = asked.iter().map(|range| range.end - range.start).sum();
        assert!(covered > table.payload_end() * 2 / 5, "{covered}");
        let in_order = asked.windows(2).all(|pair| pair[1].end <= pair[0].start);
        assert!(in_order, "{asked:?}");
    }
}
