//! The cache under many schedules; see `crate::sync`.

use super::*;
use crate::memory::Urgency;
use crate::sync::explore;
use shuttle::thread;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicU32;

const LENGTH: usize = 4096;

impl Cache {
    /// Checks that nothing is in flight and every gauge fits what is there, and that they are zero when that is given up.
    pub(crate) fn assert_at_rest(&self) {
        let state = self.lock();
        assert!(state.in_flight.is_empty(), "a mark was left");
        let unread = state.ready.unread() as u64;
        assert_eq!(state.ahead, unread, "bytes count as decoded ahead");
        drop(state);
        while self.evict_one() {}
        assert_eq!(self.lock().ahead, 0);
    }
}

/// A cache, and how often each of its units was decoded.
struct Case {
    cache: Cache,
    decodes: [AtomicU32; 4],
}

impl Case {
    fn new(budget: usize) -> Arc<Self> {
        Arc::new(Self {
            cache: Cache::new(Budget::new(budget as u64), Arc::default()),
            decodes: Default::default(),
        })
    }

    fn key(chunk: u32) -> Key {
        let unit = Unit { chunk, piece: None };
        Key { contents: 1, unit }
    }

    fn buffer(&self, chunk: u32, urgency: Urgency) -> Option<Buffer> {
        let make_room = || self.cache.evict_one();
        let acquired = self.cache.budget.acquire([LENGTH], urgency, make_room);
        let [mut buffer] = acquired.unwrap()?;
        assert!(self.cache.budget.used() <= self.cache.budget.total());
        buffer.fill(chunk as u8);
        Some(buffer)
    }

    fn count(&self, chunk: u32) {
        self.decodes[chunk as usize].fetch_add(1, Ordering::SeqCst);
        thread::yield_now();
    }

    /// Reads a unit as a reader does who keeps `kept` bytes of it.
    fn read(&self, chunk: u32, kept: usize) {
        let bytes = match self.cache.enter(Self::key(chunk), kept, true).unwrap() {
            Entry::Found(bytes, _) => bytes,
            Entry::Vacant(mark) => {
                let buffer = self.buffer(chunk, Urgency::Demand).unwrap();
                self.count(chunk);
                let bytes = Arc::new(buffer);
                mark.land(Ok(Arc::clone(&bytes)));
                bytes
            }
        };
        thread::yield_now();
        assert!(bytes.iter().all(|&byte| byte == chunk as u8));
    }

    /// Decodes a unit ahead as a worker does, if it may.
    fn read_ahead(&self, chunk: u32) {
        if let Some(ahead) = self.cache.go_ahead(LENGTH as u64)
            && let Some(buffer) = self.buffer(chunk, Urgency::Speculation)
            && let Some(mark) = self.cache.enter_ahead(Self::key(chunk), ahead, true)
        {
            self.count(chunk);
            mark.land(Ok(Arc::new(buffer)));
        }
    }

    fn start(self: &Arc<Self>, run: impl FnOnce(&Self) + Send + 'static) -> thread::JoinHandle<()> {
        let case = Arc::clone(self);
        thread::spawn(move || run(&case))
    }

    fn end<const N: usize>(&self, threads: [thread::JoinHandle<()>; N]) {
        for thread in threads {
            thread.join().unwrap();
        }
        self.cache.assert_at_rest();
        self.cache.budget.assert_at_rest();
    }
}

#[test]
fn no_unit_is_decoded_twice_while_there_is_memory() {
    explore(1.0, || {
        let case = Case::new(16 * LENGTH);
        case.end([
            case.start(|case| (0..3).for_each(|chunk| case.read(chunk, 0))),
            case.start(|case| (0..3).rev().for_each(|chunk| case.read(chunk, 0))),
            case.start(|case| (0..4).for_each(|chunk| case.read_ahead(chunk))),
        ]);
        for decodes in &case.decodes {
            assert_eq!(decodes.load(Ordering::SeqCst), 1);
        }
    });
}

#[test]
fn whoever_reads_under_pressure_gets_the_right_bytes_within_the_budget() {
    explore(1.0, || {
        let case = Case::new(2 * LENGTH);
        case.end([
            case.start(|case| (0..3).for_each(|chunk| case.read(chunk, LENGTH))),
            case.start(|case| (0..3).for_each(|chunk| case.read(chunk, LENGTH / 2))),
            case.start(|case| (0..3).rev().for_each(|chunk| case.read(chunk, 0))),
            case.start(|case| (0..3).for_each(|chunk| case.read_ahead(chunk))),
        ]);
    });
}

#[test]
fn a_decode_that_fails_or_panics_wakes_all_who_wait_with_the_error() {
    explore(1.0, || {
        let case = Case::new(4 * LENGTH);
        let fail = |panics: bool| {
            case.start(move |case| {
                // Whoever is first decodes; the others get its error, or are first themselves later.
                let decode = || match case.cache.enter(Case::key(0), 0, true) {
                    Ok(Entry::Found(..)) => panic!("there is nothing to be found"),
                    Ok(Entry::Vacant(mark)) => {
                        let buffer = case.buffer(0, Urgency::Demand);
                        case.count(0);
                        if panics {
                            // As a panic, but without its message.
                            resume_unwind(Box::new("as the test wants it"));
                        }
                        drop(buffer);
                        mark.land(Err(ErrorKind::NotWarp.into()));
                    }
                    Err(error) => {
                        let kind = error.kind();
                        assert!(matches!(kind, ErrorKind::NotWarp | ErrorKind::Panicked));
                    }
                };
                let _ = catch_unwind(AssertUnwindSafe(decode));
            })
        };
        let ahead = case.start(|case| {
            if let Some(ahead) = case.cache.go_ahead(LENGTH as u64)
                && let Some(mark) = case.cache.enter_ahead(Case::key(0), ahead, true)
            {
                case.count(0);
                mark.land(Err(ErrorKind::NotWarp.into()));
            }
        });
        case.end([fail(true), fail(false), fail(true), ahead]);
        case.read(0, 0);
    });
}

#[test]
fn a_unit_supplied_to_who_holds_its_mark_counts_once_and_reaches_all() {
    explore(1.0, || {
        let case = Case::new(8 * LENGTH);
        let holds = |case: &Case| match case.cache.enter(Case::key(0), LENGTH / 2, true).unwrap() {
            Entry::Found(bytes, _) => assert_eq!(bytes[0], 0),
            Entry::Vacant(mark) => {
                thread::yield_now();
                let bytes = case.cache.supplied(&mark).unwrap_or_else(|| {
                    case.count(0);
                    Arc::new(case.buffer(0, Urgency::Demand).unwrap())
                });
                mark.land(Ok(bytes));
            }
        };
        let supplies = |case: &Case| {
            let ahead = case.cache.go_ahead(LENGTH as u64);
            let buffer = case.buffer(0, Urgency::Demand).unwrap();
            if !case.cache.is_ready(Case::key(0)) {
                case.cache.supply(Case::key(0), buffer, ahead);
            }
        };
        case.end([
            case.start(holds),
            case.start(supplies),
            case.start(holds),
            case.start(|case| case.read(0, 0)),
        ]);
    });
}
