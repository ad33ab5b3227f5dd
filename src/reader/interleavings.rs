//! Demand, speculation and decoders within large chunks together, under many schedules; see `crate::sync`. Every read here is
//! of a real file, through an engine whose every piece of read-ahead is a thread.

use super::*;
use crate::archive::Unit;
use crate::cache::Key;
use crate::error::ErrorKind;
use crate::format::{Codec, FixedHeader, Version};
use crate::job::Control;
use crate::memory::Budget;
use crate::pack::{PackOptions, pack_file};
use crate::sync::explore;
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use shuttle::thread;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use tempfile::TempDir;

const SMALL: u64 = 8 << 10;
const MEDIUM: u64 = 32 << 10;
/// How long the pieces of a large chunk are (archive/units.rs).
const PIECE_LEN: u64 = 128 << 10;
/// A budget for a chunk of four pieces, its payload and the tables of two files.
const WHOLE_AND_LITTLE_MORE: u64 = 4 * PIECE_LEN + (48 << 10);

/// A packed file, and what is in it.
struct Packed {
    directory: TempDir,
    original: Vec<u8>,
}

impl Packed {
    /// Bytes that are told apart wherever they are, and are packed well and fast.
    fn new(len: u64, chunk_size: u64, codec: Codec) -> Arc<Self> {
        let original: Vec<u8> = (0..len)
            .map(|at| (at >> 10) as u8 ^ (at >> 18) as u8)
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let packed = Arc::new(Self {
            directory,
            original,
        });
        fs::write(packed.directory.path().join("original"), &packed.original).unwrap();
        let packing = Arc::clone(&packed);
        // Packing meets at the same primitives, which work in such a run only.
        shuttle::check_random(
            move || {
                let options = PackOptions {
                    codec: Some(codec),
                    chunk_size: Some(chunk_size),
                    threads: Some(1),
                    force: true,
                    ..PackOptions::default()
                };
                let control = Control::default();
                let original = packing.directory.path().join("original");
                pack_file(&original, &packing.path(), &options, control).unwrap();
            },
            1,
        );
        packed
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("packed.warp")
    }

    /// Eight chunks of 8 KiB.
    fn small() -> Arc<Self> {
        static FILE: OnceLock<Arc<Packed>> = OnceLock::new();
        Arc::clone(FILE.get_or_init(|| Self::new(8 * SMALL, SMALL, Codec::Zstd)))
    }

    /// One chunk of eight pieces, as long as a budget is less than four times as large.
    fn large() -> Arc<Self> {
        static FILE: OnceLock<Arc<Packed>> = OnceLock::new();
        Arc::clone(FILE.get_or_init(|| Self::new(8 * PIECE_LEN, 8 * PIECE_LEN, Codec::Snappy)))
    }

    /// As `large`, but each piece can be decoded without others.
    fn of_independent_blocks() -> Arc<Self> {
        static FILE: OnceLock<Arc<Packed>> = OnceLock::new();
        Arc::clone(FILE.get_or_init(|| Self::new(8 * PIECE_LEN, 8 * PIECE_LEN, Codec::Lz4)))
    }

    /// As `of_independent_blocks`, but its blocks are linked, so that it has to be decoded whole.
    fn of_linked_blocks() -> Arc<Self> {
        static FILE: OnceLock<Arc<Packed>> = OnceLock::new();
        let write = || {
            let packed = Self::new(8 * PIECE_LEN, 8 * PIECE_LEN, Codec::Lz4);
            let mut encoder = FrameEncoder::with_frame_info(
                FrameInfo::new()
                    .block_mode(BlockMode::Linked)
                    .block_size(BlockSize::Max64KB),
                Vec::new(),
            );
            encoder.write_all(&packed.original).unwrap();
            let payload = encoder.finish().unwrap();
            let length = packed.original.len() as u64;
            let header = FixedHeader {
                version: Version::V2,
                codec: Codec::Lz4,
                original_size: length,
                chunk_count: 1,
            };
            let sizes = [payload.len() as u64, length].map(u64::to_le_bytes);
            let bytes = [&header.to_bytes(), &sizes.concat()[..], &payload].concat();
            fs::write(packed.path(), bytes).unwrap();
            packed
        };
        Arc::clone(FILE.get_or_init(write))
    }

    /// Eight chunks, five of which are a long read that is worth help.
    fn medium() -> Arc<Self> {
        static FILE: OnceLock<Arc<Packed>> = OnceLock::new();
        Arc::clone(FILE.get_or_init(|| Self::new(8 * MEDIUM, MEDIUM, Codec::Snappy)))
    }

    /// One chunk of four pieces that takes less memory to decode whole than piece by piece.
    fn whole() -> Arc<Self> {
        static FILE: OnceLock<Arc<Packed>> = OnceLock::new();
        Arc::clone(FILE.get_or_init(|| Self::new(4 * PIECE_LEN, 4 * PIECE_LEN, Codec::Zstd)))
    }
}

/// An engine, a file, and threads that read it.
struct Case {
    packed: Arc<Packed>,
    engine: Arc<Engine>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Case {
    fn new(packed: &Arc<Packed>, cache_size: u64, prefetch: u64) -> Self {
        let options = EngineOptions {
            cache_size,
            threads: 2,
            prefetch: Some(prefetch),
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(&options).unwrap();
        // Whatever processors there are.
        Arc::get_mut(&mut engine).unwrap().at_once = 2;
        Self {
            packed: Arc::clone(packed),
            engine,
            threads: Vec::new(),
        }
    }

    fn open(&self) -> Arc<Reader> {
        Arc::new(self.engine.open(&self.packed.path()).unwrap())
    }

    /// Starts a thread that reads units of `len` bytes, by their numbers, as the kernel does if they are `kept`.
    fn reads(&mut self, reader: &Arc<Reader>, len: u64, units: &'static [u64], kept: bool) {
        self.reads_of(&Arc::clone(&self.packed), reader, len, units, kept);
    }

    /// As `reads`, of another file.
    fn reads_of(
        &mut self,
        packed: &Arc<Packed>,
        reader: &Arc<Reader>,
        len: u64,
        units: &'static [u64],
        kept: bool,
    ) {
        let (reader, packed) = (Arc::clone(reader), Arc::clone(packed));
        let engine = Arc::clone(&self.engine);
        self.threads.push(thread::spawn(move || {
            for unit in units {
                let (from, to) = ((unit * len) as usize, ((unit + 1) * len) as usize);
                let demand = Demand {
                    kept,
                    more_wait: true,
                };
                let right = reader.read_with(unit * len, len as usize, demand, |bytes, _| {
                    bytes == &packed.original[from..to]
                });
                assert!(right.unwrap(), "wrong bytes in unit {unit}");
                let budget = engine.cache.budget();
                assert!(budget.used() <= budget.total());
            }
        }));
    }

    /// Starts a thread that reads `len` bytes, several units, in each of these places.
    fn reads_into(&mut self, reader: &Arc<Reader>, len: u64, places: &'static [u64], kept: bool) {
        let (reader, packed) = (Arc::clone(reader), Arc::clone(&self.packed));
        self.threads.push(thread::spawn(move || {
            for &from in places {
                let mut bytes = vec![0; len as usize];
                let demand = Demand {
                    kept,
                    more_wait: true,
                };
                reader.read_into(from, &mut bytes, demand).unwrap();
                let from = from as usize;
                assert!(bytes == packed.original[from..from + bytes.len()]);
            }
        }));
    }

    /// Waits for the readers, then for what was read ahead.
    fn finish(&mut self) {
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.engine.workers.finish();
    }

    /// Checks that all has ended, and that nothing is held when the engine is gone.
    fn end(mut self) {
        self.finish();
        self.engine.cache.assert_at_rest();
        let budget = Arc::clone(self.engine.cache.budget());
        drop(Arc::into_inner(self.engine).unwrap());
        Budget::assert_at_rest(&budget);
    }
}

#[test]
fn readers_and_read_ahead_decode_every_chunk_once() {
    let packed = Packed::small();
    explore(0.3, move || {
        let mut case = Case::new(&packed, 1 << 20, 4 * SMALL);
        let (one, other) = (case.open(), case.open());
        case.reads(&one, SMALL, &[0, 1, 2, 3, 4], false);
        case.reads(&one, SMALL, &[5, 2], false);
        case.reads(&other, SMALL, &[3, 4, 5, 6, 7], false);
        drop((one, other));
        case.finish();
        let stats = case.engine.stats();
        assert_eq!((stats.decoded_chunks, stats.evicted_chunks), (8, 0));
        case.end();
    });
}

#[test]
fn readers_and_read_ahead_share_a_budget_that_has_room_for_two_chunks() {
    let packed = Packed::small();
    explore(0.3, move || {
        let mut case = Case::new(&packed, 6 * SMALL, 3 * SMALL);
        let (one, other) = (case.open(), case.open());
        case.reads(&one, SMALL, &[0, 1, 2, 3], true);
        case.reads(&one, SMALL, &[7, 2, 0], false);
        case.reads(&other, SMALL, &[2, 3, 4, 5], true);
        drop((one, other));
        case.end();
    });
}

#[test]
fn a_read_that_workers_help_with_is_whole_within_any_budget() {
    let packed = Packed::medium();
    for budget in [1 << 20, 8 * MEDIUM] {
        let packed = Arc::clone(&packed);
        explore(0.15, move || {
            let mut case = Case::new(&packed, budget, 0);
            for kept in [true, false] {
                let reader = case.open();
                case.reads_into(&reader, 5 * MEDIUM, &[3 * MEDIUM, 0], kept);
            }
            case.end();
        });
    }
}

#[test]
fn a_large_chunk_that_is_read_and_read_ahead_is_decoded_once() {
    let packed = Packed::large();
    explore(0.05, move || {
        let mut case = Case::new(&packed, 3 << 20, 2 * PIECE_LEN);
        let (one, other) = (case.open(), case.open());
        case.reads(&one, PIECE_LEN, &[0, 1, 2, 3, 4, 5, 6, 7], false);
        case.reads(&other, PIECE_LEN, &[1, 3, 5], false);
        drop((one, other));
        case.finish();
        let stats = case.engine.stats();
        assert_eq!(stats.decoded_bytes, packed.original.len() as u64);
        case.end();
    });
}

#[test]
fn a_large_chunk_is_read_from_several_places_within_any_budget() {
    let apart = Packed::of_independent_blocks();
    for (packed, budget) in [
        (Packed::large(), 5 * PIECE_LEN),
        (Arc::clone(&apart), 5 * PIECE_LEN),
        (apart, 3 << 20),
    ] {
        explore(0.05, move || {
            let mut case = Case::new(&packed, budget, 2 * PIECE_LEN);
            let (one, other) = (case.open(), case.open());
            case.reads(&one, PIECE_LEN, &[0, 1, 2, 3], true);
            case.reads(&one, PIECE_LEN, &[6, 2], false);
            case.reads(&other, PIECE_LEN, &[2, 3, 4], true);
            drop((one, other));
            case.end();
        });
    }
}

#[test]
fn a_chunk_that_one_call_could_decode_is_read_in_pieces_unless_they_need_each_other() {
    for packed in [Packed::of_independent_blocks(), Packed::of_linked_blocks()] {
        explore(0.05, move || {
            let mut case = Case::new(&packed, 5 << 20, 2 * PIECE_LEN);
            let (one, other) = (case.open(), case.open());
            case.reads(&one, PIECE_LEN, &[3, 4, 0], false);
            let places = &[4 * PIECE_LEN, 2 * PIECE_LEN, 0];
            case.reads_into(&one, 2 * PIECE_LEN, places, true);
            case.reads_into(&other, 8 * PIECE_LEN, &[0], true);
            case.reads(&other, PIECE_LEN, &[7, 6, 5], true);
            drop((one, other));
            case.end();
        });
    }
}

#[test]
fn no_decoder_is_held_by_who_waits_for_memory() {
    for packed in [Packed::large(), Packed::of_independent_blocks()] {
        let whole = Packed::whole();
        explore(0.05, move || {
            // Room for the chunk that is decoded whole, but not beside a decoder that is taken for the other: whoever took that
            // first and then waited behind who wants the whole chunk would wait for ever.
            let mut case = Case::new(&packed, WHOLE_AND_LITTLE_MORE, 0);
            let one = case.open();
            let other = Arc::new(case.engine.open(&whole.path()).unwrap());
            case.reads(&one, PIECE_LEN, &[0, 1, 2], true);
            case.reads_of(&whole, &other, 4 * PIECE_LEN, &[0, 0], true);
            drop((one, other));
            case.end();
        });
    }
}

#[test]
fn read_ahead_that_finds_a_decoder_at_work_is_not_lost() {
    let packed = Packed::large();
    explore(0.05, move || {
        let mut case = Case::new(&packed, 3 << 20, 2 * PIECE_LEN);
        let (one, other) = (case.open(), case.open());
        case.reads(&one, PIECE_LEN, &[0, 1, 2], false);
        case.reads(&other, PIECE_LEN, &[0, 1, 2, 3], false);
        case.finish();
        assert_eq!(case.engine.stats().prefetch_refused, 0);
        for piece in 0..6 {
            let unit = Unit {
                chunk: 0,
                piece: Some(piece),
            };
            let contents = one.shared.archive.contents().number;
            // Two pieces ahead of each reader, as far as the window goes.
            assert!(
                case.engine.cache.is_ready(Key { contents, unit }),
                "piece {piece}"
            );
        }
        drop((one, other));
        case.end();
    });
}

#[test]
fn a_damaged_chunk_fails_for_all_who_want_it_and_for_nobody_else() {
    let whole = Packed::small();
    let packed = Packed::new(8 * SMALL, SMALL, Codec::Zstd);
    let mut bytes = fs::read(packed.path()).unwrap();
    // The fourth chunk's payload begins with the magic number of a frame.
    let frame = [0x28, 0xb5, 0x2f, 0xfd];
    let places = bytes
        .windows(4)
        .enumerate()
        .filter(|(_, window)| *window == frame);
    let place = places.map(|(place, _)| place).nth(3).unwrap();
    bytes[place..place + 4].fill(0);
    fs::write(packed.path(), bytes).unwrap();
    explore(0.3, move || {
        let mut case = Case::new(&packed, 1 << 20, 4 * SMALL);
        let reader = case.open();
        for _ in 0..2 {
            let (reader, whole) = (Arc::clone(&reader), Arc::clone(&whole));
            case.threads.push(thread::spawn(move || {
                for unit in 0..5_usize {
                    let (from, to) = (unit * SMALL as usize, (unit + 1) * SMALL as usize);
                    let mut bytes = vec![0; SMALL as usize];
                    match reader.read_at(&mut bytes, from as u64) {
                        Ok(_) => assert!(unit != 3 && bytes == whole.original[from..to]),
                        Err(error) => assert!(unit == 3 && error.is_damage(), "{error}"),
                    }
                }
            }));
        }
        drop(reader);
        case.end();
    });
}

#[test]
fn a_chunk_that_can_never_fit_is_refused_whoever_else_waits() {
    let packed = Packed::large();
    explore(0.1, move || {
        // Not even a piece and its decoder have room.
        let mut case = Case::new(&packed, PIECE_LEN, 2 * PIECE_LEN);
        let reader = case.open();
        for _ in 0..2 {
            let reader = Arc::clone(&reader);
            case.threads.push(thread::spawn(move || {
                let error = reader.read_at(&mut [0; 16], 0).unwrap_err();
                assert!(
                    matches!(error.kind(), ErrorKind::OverBudget { .. }),
                    "{error}"
                );
            }));
        }
        drop(reader);
        case.end();
    });
}
