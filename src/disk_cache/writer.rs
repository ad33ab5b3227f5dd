//! The one thread that writes, and the queue it works off.
//!
//! Readers never wait for the disk to take something: what the queue has no room for is dropped. When the disk refuses
//! something, that is logged now and then, everything is dropped for a while, and then tried again, from opening the
//! directory on if that is gone. At the end the queue is worked off, unless the disk takes too long for that.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::directory::{self, Directory};
use super::eviction;
use super::index::{self, Index};
use super::segment::{self, Appender, Record};
use super::{Address, Files, Shared, TELL_EVERY};
use crate::occasionally::Occasionally;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The most uses that may wait to be noted.
const MOST_USES: usize = 1024;
/// How long the end waits for what is queued to be written.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// How many of the newest segments to look at for one that is not full and that nobody appends to.
const TAKE_UP: usize = 8;

/// An entry was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) fingerprint: u64,
    /// The segment it was in.
    pub(super) segment: u64,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// The most bytes that may wait.
    limit: u64,
}

/// What there is to do, in this order.
#[derive(Debug)]
enum Task {
    Write(Record),
    /// Takes an entry out of the index, by its fingerprint.
    Forget(u64),
}

#[derive(Debug, Default)]
struct State {
    tasks: VecDeque<Task>,
    /// What the records take, and the one that is being written, in bytes.
    bytes: u64,
    uses: VecDeque<Use>,
    /// Whether something is being written.
    busy: bool,
    /// Nothing is taken before that.
    pause_until: Option<Instant>,
    closed: bool,
}

impl State {
    fn is_pausing(&self) -> bool {
        self.pause_until.is_some_and(|until| Instant::now() < until)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do next: first the uses, then a task. `None` at the end.
    fn next(&self) -> Option<(VecDeque<Use>, Option<Task>)> {
        let mut state = self.lock();
        state.busy = false;
        loop {
            if !state.uses.is_empty() || !state.tasks.is_empty() {
                state.busy = true;
                let uses = std::mem::take(&mut state.uses);
                return Some((uses, state.tasks.pop_front()));
            }
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The way to the thread, which is started by the first thing there is to do: a mount may still have to go to the background.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    /// Says by hanging up when the thread has ended.
    ended: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Writer {
    /// A queue of up to `limit` bytes.
    pub(super) fn new(shared: Arc<Shared>, limit: u64) -> Self {
        Self {
            shared,
            queue: Arc::new(Queue {
                state: Mutex::default(),
                changed: Condvar::new(),
                limit,
            }),
            ended: Mutex::default(),
        }
    }

    /// Whether the queue would take a record of so many bytes now.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let state = self.queue.lock();
        state.bytes + bytes <= self.queue.limit && !state.is_pausing()
    }

    /// Has a record written, if there is room in the queue.
    pub(super) fn write(&self, record: Record) -> Option<()> {
        self.start()?;
        let mut state = self.queue.lock();
        let bytes = state.bytes + record.length();
        if bytes > self.queue.limit || state.is_pausing() || state.closed {
            return None;
        }
        state.bytes = bytes;
        state.tasks.push_back(Task::Write(record));
        drop(state);
        self.queue.changed.notify_all();
        Some(())
    }

    /// Has an entry taken out of the index behind all that was to be written so far; if it is among that, it is not written.
    pub(super) fn forget(&self, address: &Address) {
        let mut state = self.queue.lock();
        let mut freed = 0;
        state.tasks.retain(|task| match task {
            Task::Write(record) if record.address == *address => {
                freed += record.length();
                false
            }
            _ => true,
        });
        state.bytes -= freed;
        // It may be the one that is just being written.
        if state.busy {
            state.tasks.push_back(Task::Forget(address.fingerprint()));
        }
    }

    /// Has an entry taken out of the index that could not be by who knows that it is of no use.
    pub(super) fn forget_later(&self, address: &Address) {
        if self.start().is_none() {
            return;
        }
        let forgetting = Task::Forget(address.fingerprint());
        self.queue.lock().tasks.push_back(forgetting);
        self.queue.changed.notify_all();
    }

    /// Has a use noted, if there is room in the queue.
    pub(super) fn note(&self, used: Use) {
        if self.start().is_none() {
            return;
        }
        let mut state = self.queue.lock();
        if state.is_pausing() || state.uses.len() >= MOST_USES || state.uses.back() == Some(&used) {
            return;
        }
        state.uses.push_back(used);
        drop(state);
        self.queue.changed.notify_all();
    }

    /// Starts the thread if it does not run yet; `None` if there can be none.
    fn start(&self) -> Option<()> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_some() {
            return Some(());
        }
        let (ending, end) = mpsc::channel();
        let mut work = Work {
            shared: Arc::clone(&self.shared),
            queue: Arc::clone(&self.queue),
            appender: None,
            oldest: 0,
            unchecked: u64::MAX,
            doubtful: false,
            refused: Occasionally::every(TELL_EVERY),
        };
        let run = move || {
            work.run();
            // Its segment is unlocked for whoever is next.
            drop(work);
            drop::<mpsc::Sender<()>>(ending);
        };
        std::thread::Builder::new()
            .name("disk-cache".to_owned())
            .spawn(run)
            .ok()?;
        *ended = Some(end);
        Some(())
    }

    /// Takes nothing more, and waits until what is queued is written, unless that takes too long.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ended) = ended.as_ref() {
            let _ = ended.recv_timeout(LAST_WRITES);
        }
    }

    /// Waits until all that was given so far is written or dropped.
    #[cfg(test)]
    pub(super) fn flush(&self) {
        while {
            let state = self.queue.lock();
            state.busy || !state.tasks.is_empty() || !state.uses.is_empty()
        } {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the thread knows.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    queue: Arc<Queue>,
    /// The segment that is appended to.
    pub(super) appender: Option<Appender>,
    /// The oldest segment there was at the last look.
    pub(super) oldest: u64,
    /// The bytes written since the last look at the room there is; more than any before the first.
    pub(super) unchecked: u64,
    /// Whether to open everything anew: the disk has refused something.
    doubtful: bool,
    refused: Occasionally,
}

impl Work {
    fn run(&mut self) {
        let queue = Arc::clone(&self.queue);
        while let Some((uses, task)) = queue.next() {
            let mut done = self.note(uses);
            match task {
                Some(Task::Write(record)) => {
                    let length = record.length();
                    let dropped = queue.lock().is_pausing();
                    if dropped {
                        self.shared.counters.disk_cache_dropped.add(1);
                        drop(record);
                    } else {
                        done = done.and_then(|()| self.store(record));
                    }
                    queue.lock().bytes -= length;
                }
                Some(Task::Forget(fingerprint)) => {
                    done = done.and_then(|()| self.forget(fingerprint));
                }
                None => {}
            }
            if let Err(error) = done {
                self.refuse(&error);
            }
        }
    }

    /// Goes without writing for a while.
    fn refuse(&mut self, error: &io::Error) {
        let no_room = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        // A little of what is old makes room for what is new the next time; others may have it first.
        if no_room && let Some(files) = self.shared.files() {
            let _ = eviction::give_way(self, &files);
        }
        // All of it may be gone, or was opened while nothing could be written.
        self.doubtful = true;
        self.appender = None;
        self.unchecked = u64::MAX;
        self.queue.lock().pause_until = Some(Instant::now() + self.shared.retry);
        if self.refused.is_due() {
            self.shared.tell(error);
        } else {
            self.shared.counters.disk_cache_errors.add(1);
        }
    }

    fn note(&self, uses: VecDeque<Use>) -> io::Result<()> {
        let Some(files) = self.shared.files() else {
            return Ok(());
        };
        let newest = self.shared.newest.load(Ordering::Relaxed);
        let mut uses = uses.into_iter();
        uses.try_for_each(|used| files.index.touch(used.fingerprint, used.segment, newest))
    }

    fn forget(&self, fingerprint: u64) -> io::Result<()> {
        let Some(files) = self.shared.files() else {
            return Ok(());
        };
        match files.index.find(fingerprint)? {
            Some(entry) => files.index.remove(&entry),
            None => Ok(()),
        }
    }

    fn store(&mut self, mut record: Record) -> io::Result<()> {
        let files = self.files()?;
        let fingerprint = record.address.fingerprint();
        // Another mount may have been faster.
        if let Some(entry) = files.index.find(fingerprint)?
            && files.directory.open_segment(entry.segment)?.is_some()
        {
            return Ok(());
        }
        if !eviction::make_room(self, &files, record.length())? {
            self.shared.counters.disk_cache_dropped.add(1);
            return Ok(());
        }
        self.append(&files, &mut record, None)?;
        let counters = &self.shared.counters;
        counters
            .disk_cache_bytes_written
            .add(record.address.length.into());
        Ok(())
    }

    /// Appends a record, last used when `used` was the newest segment, or just now, and says in the index where it is.
    pub(super) fn append(
        &mut self,
        files: &Files,
        record: &mut Record,
        used: Option<u64>,
    ) -> io::Result<()> {
        if let Some(appender) = &self.appender
            && (appender.length() >= self.shared.segment_size() || appender.is_removed()?)
        {
            self.appender = None;
        }
        let appender = match &mut self.appender {
            Some(appender) => appender,
            none => none.insert(match take_up(&self.shared, files, self.oldest)? {
                Some(appender) => appender,
                None => begin_segment(&self.shared, files)?,
            }),
        };
        let position = appender.append(record)?;
        let place = (appender.number, position);
        let newest = self.shared.newest.load(Ordering::Relaxed);
        let used = used.unwrap_or(newest.max(appender.number));
        let fingerprint = record.address.fingerprint();
        files.index.set(fingerprint, place, used, self.oldest)
    }

    /// The cache's files as they are now: opened again if they were replaced or removed.
    fn files(&mut self) -> io::Result<Arc<Files>> {
        let shared = &self.shared;
        let files = shared.files();
        if let Some(files) = files
            && !self.doubtful
            && !files.directory.is_removed()?
        {
            if !files.index.is_replaced()? {
                return Ok(files);
            }
            let directory = files.directory.again()?;
            // Its size is the business of whoever has replaced it.
            let index = match Index::open(&directory)? {
                Some(index) => index,
                None => Index::open_or_make(&directory, index::buckets_for(shared.size))?,
            };
            return Ok(shared.set_files(Files { directory, index }));
        }
        let refused = |error: crate::Error| io::Error::other(error.to_string());
        let outer = directory::open_place(&shared.place).map_err(refused)??;
        let directory = Directory::open_in(&outer, &shared.place).map_err(refused)??;
        let files = shared.set_files(shared.prepare(directory)?);
        self.doubtful = false;
        Ok(files)
    }
}

/// Goes on with a segment that is not full and that nobody appends to any more, behind its last whole record; not with the oldest,
/// which is the next to go.
fn take_up(shared: &Shared, files: &Files, oldest: u64) -> io::Result<Option<Appender>> {
    let listing = files.directory.list()?;
    let newest = listing.segments.iter().rev().take(TAKE_UP);
    for &(number, _) in
        newest.filter(|&&(number, room)| number > oldest && room < shared.segment_size())
    {
        let Some(file) = files.directory.take_segment(number)? else {
            continue;
        };
        let length = file.metadata()?.len();
        let mut records = segment::scan(&file)?;
        records.by_ref().for_each(drop);
        let end = records.next;
        // What has our name and none of our records is not ours to write to.
        if end < shared.segment_size() && (end > 0 || length == 0) {
            return Appender::new(number, file, end).map(Some);
        }
    }
    Ok(None)
}

fn begin_segment(shared: &Shared, files: &Files) -> io::Result<Appender> {
    loop {
        let number = shared.newest.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(file) = files.directory.make_segment(number)? {
            return Appender::new(number, file, 0);
        }
    }
}
