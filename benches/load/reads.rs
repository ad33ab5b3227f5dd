//! Readers: threads that make the reads they were dealt and take the time of each.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::pattern::{Pattern, Place};

/// What the readers have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sharing {
    /// One descriptor for each file, rather than for each reader.
    pub(crate) one_descriptor: bool,
    /// One thread for all, which makes one read of each reader in turn.
    pub(crate) one_thread: bool,
}

/// What to read, and how.
pub(crate) struct ReadPlan {
    pub(crate) pattern: Pattern,
    /// Bytes of a read.
    pub(crate) block: u64,
    pub(crate) readers: u64,
    /// Reads of all readers together, at most.
    pub(crate) reads: u64,
    /// When to stop at the latest.
    pub(crate) time: Option<Duration>,
    pub(crate) sharing: Sharing,
    pub(crate) files: Vec<PathBuf>,
}

/// One reader: its descriptors, and where it reads.
struct Reader {
    files: Vec<Arc<File>>,
    places: Vec<Place>,
    buffer: Vec<u8>,
    record: Record,
}

/// What a reader did.
#[derive(Default)]
struct Record {
    bytes: u64,
    latencies: Vec<Duration>,
    /// From the common start to the end of its last read.
    elapsed: Duration,
}

impl ReadPlan {
    pub(crate) fn run(self) -> Result<Value> {
        let opening = Instant::now();
        let shared = self.open()?;
        let opened = opening.elapsed();
        let mut sizes = Vec::new();
        for file in &shared {
            sizes.push(file.metadata()?.len());
        }
        let mut readers = Vec::new();
        for places in self
            .pattern
            .places(&sizes, self.block, self.readers, self.reads)
        {
            readers.push(Reader {
                files: match self.sharing.one_descriptor {
                    true => shared.clone(),
                    false => self.open()?,
                },
                record: Record {
                    // The clock does not run while memory is found.
                    latencies: Vec::with_capacity(places.len()),
                    ..Record::default()
                },
                places,
                buffer: vec![0; usize::try_from(self.block)?],
            });
        }
        let records = match self.sharing.one_thread {
            true => in_turn(readers, self.time)?,
            false => at_once(readers, self.time)?,
        };
        Ok(summary(&records, opened))
    }

    fn open(&self) -> Result<Vec<Arc<File>>> {
        self.files
            .iter()
            .map(|path| match File::open(path) {
                Ok(file) => Ok(Arc::new(file)),
                Err(error) => Err(format!("{}: {error}", path.display()).into()),
            })
            .collect()
    }
}

impl Reader {
    /// Makes the read of this number; `false` if there is none any more, or it is too late.
    fn read(&mut self, number: usize, start: Instant, time: Option<Duration>) -> Result<bool> {
        let began = Instant::now();
        let late = time.is_some_and(|time| began.duration_since(start) >= time);
        let Some(place) = self.places.get(number).filter(|_| !late) else {
            return Ok(false);
        };
        let file = self.files.get(place.file).ok_or("a place in no file")?;
        let mut filled = 0;
        while let Some(rest) = self
            .buffer
            .get_mut(filled..)
            .filter(|rest| !rest.is_empty())
        {
            match file.read_at(rest, place.offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        let ended = Instant::now();
        self.record.bytes += filled as u64;
        self.record.latencies.push(ended - began);
        self.record.elapsed = ended - start;
        Ok(true)
    }
}

/// A thread for each reader, all starting at once.
fn at_once(readers: Vec<Reader>, time: Option<Duration>) -> Result<Vec<Record>> {
    let barrier = Barrier::new(readers.len());
    thread::scope(|scope| {
        let threads: Vec<_> = readers
            .into_iter()
            .map(|mut reader| {
                let barrier = &barrier;
                scope.spawn(move || -> Result<Record> {
                    barrier.wait();
                    let start = Instant::now();
                    let mut number = 0;
                    while reader.read(number, start, time)? {
                        number += 1;
                    }
                    Ok(reader.record)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a reader panicked")?)
            .collect()
    })
}

/// One read of every reader, then the next one of every reader.
fn in_turn(mut readers: Vec<Reader>, time: Option<Duration>) -> Result<Vec<Record>> {
    let start = Instant::now();
    let mut number = 0;
    let mut any = true;
    while any {
        any = false;
        for reader in &mut readers {
            any |= reader.read(number, start, time)?;
        }
        number += 1;
    }
    Ok(readers.into_iter().map(|reader| reader.record).collect())
}

/// Seconds throughout; latencies over all reads of all readers.
fn summary(records: &[Record], opened: Duration) -> Value {
    let mut latencies: Vec<Duration> = records
        .iter()
        .flat_map(|record| record.latencies.iter().copied())
        .collect();
    latencies.sort_unstable();
    let percentile = |percent: usize| {
        let last = latencies.len().saturating_sub(1);
        let latency = latencies.get(last * percent / 100);
        latency.map(Duration::as_secs_f64)
    };
    let first = records.first().and_then(|record| record.latencies.first());
    let elapsed = records.iter().map(|record| record.elapsed).max();
    json!({
        "reads": latencies.len(),
        "bytes": records.iter().map(|record| record.bytes).sum::<u64>(),
        "seconds": elapsed.unwrap_or_default().as_secs_f64(),
        "first_byte": first.map(|latency| (opened + *latency).as_secs_f64()),
        "p50": percentile(50),
        "p99": percentile(99),
        "reader_rates": records
            .iter()
            .map(|record| record.bytes as f64 / record.elapsed.as_secs_f64().max(1e-9))
            .collect::<Vec<f64>>(),
    })
}
