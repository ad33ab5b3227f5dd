//! Parts of an object that were asked for before they are read.
//!
//! A fetch is one request. Whoever reads bytes of one waits for them, and no longer than until they have come: the rest of it
//! may still be on its way. It is forgotten, and broken off, when its guard is dropped. It ends with the task that makes the
//! request, whatever becomes of that.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use super::fault::Fault;
use crate::archive::Then;
use crate::memory::Buffer;

/// The fetches of one object.
#[derive(Debug, Default)]
pub(super) struct Fetches(Mutex<Vec<Arc<Fetch>>>);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Fetch {
    range: Range<u64>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    room: Buffer,
    /// How much of it has come, in bytes.
    filled: usize,
    /// How much of it was read, in bytes.
    read: usize,
    /// Whether the request is made, and does not wait for its turn.
    begun: bool,
    fault: Option<Fault>,
    /// Whether it was given up.
    broken_off: bool,
}

/// Keeps a fetch.
#[derive(Debug)]
pub(super) struct Guard {
    fetches: Arc<Fetches>,
    fetch: Arc<Fetch>,
    task: Option<AbortHandle>,
}

/// The end of a fetch, for the task that makes the request: dropped, it lets all who wait know that no more is going to come.
pub(super) struct Ending {
    fetch: Arc<Fetch>,
    then: Option<Then>,
}

impl Fetches {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Fetch>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fetch of a range into `room`, which is as long.
    pub(super) fn add(self: &Arc<Self>, range: Range<u64>, room: Buffer, begun: bool) -> Guard {
        let fetch = Arc::new(Fetch {
            range,
            state: Mutex::new(State {
                room,
                filled: 0,
                read: 0,
                begun,
                fault: None,
                broken_off: false,
            }),
            changed: Condvar::new(),
        });
        self.lock().push(Arc::clone(&fetch));
        Guard {
            fetches: Arc::clone(self),
            fetch,
            task: None,
        }
    }

    /// A fetch that brings the byte at `offset`, and is under way or done; else where the next such begins.
    pub(super) fn holding(&self, offset: u64) -> Result<Arc<Fetch>, u64> {
        let fetches = self.lock();
        let mut next = u64::MAX;
        for fetch in fetches.iter().filter(|fetch| fetch.lock().begun) {
            if fetch.range.contains(&offset) {
                return Ok(Arc::clone(fetch));
            }
            if fetch.range.start > offset {
                next = next.min(fetch.range.start);
            }
        }
        Err(next)
    }
}

impl Fetch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice that the request is being made.
    pub(super) fn begin(&self) {
        self.lock().begun = true;
    }

    /// Takes bytes that have come, `at` so many behind the range's beginning.
    pub(super) fn take(&self, at: usize, bytes: &[u8]) {
        let mut state = self.lock();
        if let Some(room) = state.room.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
        state.filled = at + bytes.len();
        drop(state);
        self.changed.notify_all();
    }

    /// Lets all who wait know that no more is going to come.
    pub(super) fn fail(&self, fault: Fault) {
        self.lock().fault = Some(fault);
        self.changed.notify_all();
    }

    /// Lets all who wait know that no more is going to come, and that they may ask for it themselves.
    fn give_up(&self) {
        self.lock().broken_off = true;
        self.changed.notify_all();
    }

    /// Reads from `offset` on, once there is something: a byte at least. `None` if it was given up.
    ///
    /// # Errors
    /// It failed.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let skip = usize::try_from(offset.saturating_sub(self.range.start)).unwrap_or(usize::MAX);
        let mut state = self.lock();
        while state.filled <= skip {
            if let Some(fault) = &state.fault {
                return Err(fault.clone().into_io());
            }
            if state.broken_off {
                return Ok(None);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let length = buffer.len().min(state.filled - skip);
        let there = state.room.get(skip..skip + length).unwrap_or_default();
        if let Some(room) = buffer.get_mut(..there.len()) {
            room.copy_from_slice(there);
        }
        state.read += length;
        Ok(Some(length))
    }
}

impl Guard {
    /// What it keeps.
    pub(super) fn fetch(&self) -> &Arc<Fetch> {
        &self.fetch
    }

    /// Has it break off the task that fetches.
    pub(super) fn breaking_off(mut self, task: Option<AbortHandle>) -> Self {
        self.task = task;
        self
    }

    /// Whether all of it was read, or nobody who reads from front to back and is at `offset` is going to.
    pub(super) fn is_done(&self, offset: u64, slack: u64) -> bool {
        let state = self.fetch.lock();
        state.read >= state.room.len() || self.fetch.range.end.saturating_add(slack) < offset
    }
}

impl Ending {
    /// Of a fetch; `then` is told whether all has come.
    pub(super) fn of(fetch: &Arc<Fetch>, then: Option<Then>) -> Self {
        Self {
            fetch: Arc::clone(fetch),
            then,
        }
    }

    /// What is going to end.
    pub(super) fn fetch(&self) -> &Fetch {
        &self.fetch
    }

    /// Ends a fetch of which all has come.
    pub(super) fn whole(mut self) {
        if let Some(then) = self.then.take() {
            then(true);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // What has come stays.
        self.fetch.give_up();
        if let Some(then) = self.then.take() {
            then(false);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        let mut fetches = self.fetches.lock();
        fetches.retain(|fetch| !Arc::ptr_eq(fetch, &self.fetch));
        drop(fetches);
        self.fetch.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::FaultKind;
    use super::*;
    use crate::memory::{Budget, Urgency};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    fn fetch(fetches: &Arc<Fetches>, range: Range<u64>) -> Guard {
        let length = (range.end - range.start) as usize;
        let room = Budget::unlimited().acquire([length], Urgency::Demand, || false);
        let [room] = room.unwrap().unwrap();
        fetches.add(range, room, true)
    }

    #[test]
    fn who_reads_what_has_come_does_not_wait_for_the_rest() {
        let fetches = Arc::<Fetches>::default();
        let guard = fetch(&fetches, 100..110);
        assert_eq!(fetches.holding(99).unwrap_err(), 100);
        assert_eq!(fetches.holding(110).unwrap_err(), u64::MAX);
        let held = fetches.holding(104).unwrap();
        held.take(0, b"abcdef");
        let mut bytes = [0; 10];
        assert_eq!(held.read(&mut bytes, 104).unwrap(), Some(2));
        assert_eq!(bytes[..2], *b"ef");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| held.read(&mut [0; 4], 106).unwrap());
            thread::sleep(Duration::from_millis(10));
            held.take(6, b"ghij");
            assert_eq!(waiting.join().unwrap(), Some(4));
        });
        assert!(!guard.is_done(100, 0) && guard.is_done(111, 0));
        assert_eq!(held.read(&mut bytes, 100).unwrap(), Some(10));
        assert!(guard.is_done(100, 0));
        drop(guard);
        assert!(fetches.holding(104).is_err());
    }

    #[test]
    fn who_waits_for_what_fails_or_is_given_up_is_told_so() {
        let fetches = Arc::<Fetches>::default();
        let guard = fetch(&fetches, 0..4);
        let held = fetches.holding(0).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| held.read(&mut [0; 4], 0).unwrap());
            thread::sleep(Duration::from_millis(10));
            drop(guard);
            assert_eq!(waiting.join().unwrap(), None);
        });
        let guard = fetch(&fetches, 0..4);
        guard.fetch().fail(Fault::new(FaultKind::Changed, "gone"));
        let error = guard.fetch().read(&mut [0; 4], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StaleNetworkFileHandle);
    }

    #[test]
    fn who_waits_for_a_fetch_whose_task_is_lost_asks_himself() {
        let fetches = Arc::<Fetches>::default();
        let guard = fetch(&fetches, 0..4);
        let (tell, told) = mpsc::channel();
        let then = move |whole| tell.send(whole).unwrap();
        let ending = Ending::of(guard.fetch(), Some(Box::new(then)));
        let held = fetches.holding(0).unwrap();
        held.take(0, b"ab");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| held.read(&mut [0; 4], 2).unwrap());
            let lost = scope.spawn(move || {
                ending.fetch().begin();
                panic!("as where the system has no thread to look a host up on");
            });
            assert!(lost.join().is_err());
            assert_eq!(waiting.join().unwrap(), None);
        });
        assert_eq!(told.iter().collect::<Vec<_>>(), [false]);
        // What has come is read all the same.
        assert_eq!(held.read(&mut [0; 4], 0).unwrap(), Some(2));
    }

    #[test]
    fn who_is_to_be_told_of_the_end_of_a_fetch_is_told_once() {
        let fetches = Arc::<Fetches>::default();
        let guard = fetch(&fetches, 0..4);
        let (tell, told) = mpsc::channel();
        let then = move |whole| tell.send(whole).unwrap();
        let ending = Ending::of(guard.fetch(), Some(Box::new(then)));
        ending.fetch().take(0, b"abcd");
        ending.whole();
        assert_eq!(told.iter().collect::<Vec<_>>(), [true]);
        assert_eq!(guard.fetch().read(&mut [0; 4], 0).unwrap(), Some(4));
    }
}
