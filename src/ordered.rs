//! The engine of all whole-file jobs: work in parallel, results in order, memory bounded.
//!
//! A few threads share one list of items. Each takes the next item, works on it, and puts the result into its place;
//! whoever finds the result at the head of the list commits it, so no thread is there only to wait. Items are started no
//! further than a window ahead of the head, which bounds what is in memory whatever the length of the list.
//!
//! Invariants: items are drawn and committed in order, each by one thread at a time. The lock guards the bookkeeping
//! alone: drawing, working and committing run outside of it, with the closures of the first and the last taken out of the
//! shared state for as long. A thread sleeps only where there is nothing to draw or to commit; whoever leaves such a thing
//! behind as it goes to work on another wakes one that sleeps, and no more than one: with more threads than cores, waking
//! all of them is most of what a job costs beside its work.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use crate::error::{ErrorKind, Result};
use crate::sync::{self, Condvar, Mutex, MutexGuard};

/// How many items per thread may be started and not yet committed: one being worked on, one done and waiting its turn.
const WINDOW_PER_THREAD: usize = 2;

/// Draws items with `next` until there are none, works on up to `threads` of them at once, and commits the results in
/// the order the items were drawn in. `scratch` makes what each thread keeps from item to item.
///
/// # Errors
/// The first error in the order of the items stops everything and is returned; so does `cancelled`, once set, with
/// [`ErrorKind::Cancelled`], and a panic with [`ErrorKind::Panicked`].
pub(crate) fn run<Item: Send, Done: Send, Scratch>(
    threads: usize,
    cancelled: &AtomicBool,
    scratch: impl Fn() -> Scratch + Sync,
    next: impl FnMut() -> Result<Option<Item>> + Send,
    work: impl Fn(&mut Scratch, Item) -> Result<Done> + Sync,
    commit: impl FnMut(Done) -> Result<()> + Send,
) -> Result<()> {
    let threads = threads.max(1);
    let engine = Engine {
        window: if threads == 1 {
            1
        } else {
            threads * WINDOW_PER_THREAD
        },
        cancelled,
        state: Mutex::new(State {
            in_flight: VecDeque::new(),
            head: 0,
            next: Some(next),
            commit: Some(commit),
            exhausted: false,
            sleepers: 0,
            outcome: Ok(()),
        }),
        changed: Condvar::new(),
    };
    if threads == 1 {
        engine.take_part(&scratch, &work);
    } else {
        sync::scope(|scope| {
            for _ in 1..threads {
                let part = || engine.take_part(&scratch, &work);
                // Where no more threads may be had, those there are do the work; this one is always there.
                if !sync::spawn_scoped(scope, part) {
                    break;
                }
            }
            engine.take_part(&scratch, &work);
        });
    }
    let state = engine.state.into_inner();
    state.unwrap_or_else(PoisonError::into_inner).outcome
}

struct Engine<'a, Next, Commit, Done> {
    window: usize,
    cancelled: &'a AtomicBool,
    state: Mutex<State<Next, Commit, Done>>,
    changed: Condvar,
}

struct State<Next, Commit, Done> {
    /// The results of the items drawn and not committed, from the head on; `None` while one is worked on.
    in_flight: VecDeque<Option<Result<Done>>>,
    /// How many items left the list at its head.
    head: u64,
    /// `None` while a thread draws an item.
    next: Option<Next>,
    /// `None` while a thread commits.
    commit: Option<Commit>,
    /// No items are drawn any more.
    exhausted: bool,
    /// How many threads sleep: waking nobody costs a system call too.
    sleepers: usize,
    /// Once an error, every thread leaves.
    outcome: Result<()>,
}

impl<Next, Commit, Done> State<Next, Commit, Done> {
    fn is_over(&self) -> bool {
        let idle = self.next.is_some() && self.commit.is_some();
        self.outcome.is_err() || (self.exhausted && idle && self.in_flight.is_empty())
    }

    /// Whether the head of the list can be committed now.
    fn can_commit(&self) -> bool {
        self.commit.is_some() && matches!(self.in_flight.front(), Some(Some(_)))
    }

    /// Whether an item can be drawn now, `window` being the most there may be in flight.
    fn can_draw(&self, window: usize) -> bool {
        self.next.is_some() && !self.exhausted && self.in_flight.len() < window
    }

    fn fail(&mut self, error: crate::Error) {
        if self.outcome.is_ok() {
            self.outcome = Err(error);
        }
    }
}

impl<Item, Done, Next, Commit> Engine<'_, Next, Commit, Done>
where
    Next: FnMut() -> Result<Option<Item>>,
    Commit: FnMut(Done) -> Result<()>,
{
    /// What every thread does until all is done.
    fn take_part<Scratch>(
        &self,
        scratch: &impl Fn() -> Scratch,
        work: &impl Fn(&mut Scratch, Item) -> Result<Done>,
    ) {
        let mut scratch = scratch();
        let mut state = self.lock();
        while !state.is_over() {
            if self.cancelled.load(Ordering::Relaxed) {
                state.fail(ErrorKind::Cancelled.into());
                break;
            }
            if state.can_commit()
                && let Some(commit) = state.commit.take()
            {
                state = self.commit_head(state, commit);
            } else if state.can_draw(self.window)
                && let Some(next) = state.next.take()
            {
                state = self.draw_and_work(state, next, &mut scratch, work);
            } else {
                state.sleepers += 1;
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.sleepers -= 1;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn commit_head<'s>(
        &'s self,
        mut state: MutexGuard<'s, State<Next, Commit, Done>>,
        mut commit: Commit,
    ) -> MutexGuard<'s, State<Next, Commit, Done>> {
        let done = state.in_flight.pop_front().flatten();
        state.head += 1;
        self.leave(state);
        let committed = match done {
            Some(Ok(done)) => guarded(|| commit(done)),
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        let mut state = self.lock();
        state.commit = Some(commit);
        if let Err(error) = committed {
            state.fail(error);
        }
        state
    }

    /// Gives the lock up to do something that takes time, and has somebody else do what can be done meanwhile.
    fn leave(&self, state: MutexGuard<'_, State<Next, Commit, Done>>) {
        let wanted = state.sleepers > 0 && (state.can_commit() || state.can_draw(self.window));
        drop(state);
        if wanted {
            self.changed.notify_one();
        }
    }

    fn draw_and_work<'s, Scratch>(
        &'s self,
        state: MutexGuard<'s, State<Next, Commit, Done>>,
        mut next: Next,
        scratch: &mut Scratch,
        work: &impl Fn(&mut Scratch, Item) -> Result<Done>,
    ) -> MutexGuard<'s, State<Next, Commit, Done>> {
        self.leave(state);
        let drawn = guarded(&mut next);
        let mut state = self.lock();
        state.next = Some(next);
        let number = state.head + state.in_flight.len() as u64;
        let done = match drawn {
            Ok(Some(item)) => {
                state.in_flight.push_back(None);
                self.leave(state);
                let done = guarded(|| work(scratch, item));
                state = self.lock();
                done
            }
            Ok(None) => {
                state.exhausted = true;
                return state;
            }
            Err(error) => {
                state.in_flight.push_back(None);
                Err(error)
            }
        };
        // What follows a failed item is not wanted, but what precedes it is: it may have failed as well.
        state.exhausted |= done.is_err();
        let place = usize::try_from(number - state.head).unwrap_or(usize::MAX);
        if let Some(slot) = state.in_flight.get_mut(place) {
            *slot = Some(done);
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State<Next, Commit, Done>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns a panic into an error; its text has gone to standard error by then.
fn guarded<T>(job: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_| Err(ErrorKind::Panicked.into()))
}

/// Buffers that go from thread to thread, so that a long job allocates only its first few. Whoever wants one gets one that it
/// had before, if there is one: what it was last filled with is in the caches of that thread's core, and to overwrite what
/// is in another's takes longer.
#[derive(Default)]
pub(crate) struct Buffers {
    idle: Mutex<Vec<Lent>>,
}

/// A buffer, and who had it first.
pub(crate) struct Lent {
    bytes: Vec<u8>,
    borrower: ThreadId,
}

impl Deref for Lent {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Buffers {
    /// A buffer with whatever it was last used for in it.
    pub(crate) fn take(&self) -> Lent {
        let borrower = std::thread::current().id();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let own = idle.iter().rposition(|lent| lent.borrower == borrower);
        let any = own.or(idle.len().checked_sub(1));
        let bytes = any.map(|at| idle.swap_remove(at).bytes).unwrap_or_default();
        Lent { bytes, borrower }
    }

    /// Gives a buffer back.
    pub(crate) fn give(&self, buffer: Lent) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(buffer);
    }
}

/// Makes a buffer exactly `len` bytes long, its contents unspecified. A new one comes from the system as zero pages and
/// takes memory only as it is filled.
///
/// # Errors
/// There is not so much memory.
pub(crate) fn resize(buffer: &mut Vec<u8>, len: u64) -> Result<()> {
    if len > buffer.capacity() as u64 {
        *buffer = Vec::new();
        *buffer = vec![0; check_available(len)?];
    }
    buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    Ok(())
}

/// Checks that there is so much memory, so that a size that cannot be had is an error and not the end of the process.
///
/// # Errors
/// There is not.
pub(crate) fn check_available(len: u64) -> Result<usize> {
    let too_large = || ErrorKind::NoMemory(format!("a chunk of {len} bytes"));
    let len = usize::try_from(len).map_err(|_| too_large())?;
    Vec::<u8>::new()
        .try_reserve_exact(len)
        .map_err(|_| too_large())?;
    Ok(len)
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    fn counter(end: u64) -> impl FnMut() -> Result<Option<u64>> {
        let mut numbers = 0..end;
        move || Ok(numbers.next())
    }

    /// Takes longer for some items than for others.
    fn uneven(item: u64) {
        std::thread::sleep(Duration::from_micros(
            item.wrapping_mul(2_654_435_761) % 300,
        ));
    }

    #[test]
    fn results_come_in_order_and_no_further_ahead_than_the_window() {
        for threads in [1, 2, 5] {
            let pending = AtomicUsize::new(0);
            let most = AtomicUsize::new(0);
            let mut seen = Vec::new();
            run(
                threads,
                &AtomicBool::new(false),
                || (),
                counter(500),
                |(), item| {
                    most.fetch_max(pending.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    uneven(item);
                    Ok(item)
                },
                |item| {
                    pending.fetch_sub(1, Ordering::SeqCst);
                    seen.push(item);
                    Ok(())
                },
            )
            .unwrap();
            assert!(seen.into_iter().eq(0..500));
            // One more than the window: an item leaves the list before its commit has run.
            assert!(most.into_inner() <= threads * WINDOW_PER_THREAD + 1);
        }
    }

    #[test]
    fn the_first_error_in_order_is_returned_and_nothing_behind_it_committed() {
        for threads in [1, 4] {
            let mut committed = 0;
            let error = run(
                threads,
                &AtomicBool::new(false),
                || (),
                counter(1000),
                |(), item| {
                    uneven(item);
                    match item {
                        40 | 41 | 43 => Err(crate::Error::unusable(format!("item {item}"))),
                        _ => Ok(item),
                    }
                },
                |item| {
                    committed = item;
                    Ok(())
                },
            )
            .unwrap_err();
            assert_eq!(error.to_string(), "item 40");
            assert_eq!(committed, 39);
        }
    }

    #[test]
    fn errors_of_drawing_and_committing_stop_the_job() {
        let never = AtomicBool::new(false);
        let mut left = 10;
        let error = run(
            3,
            &never,
            || (),
            || {
                left -= 1;
                match left {
                    0 => Err(crate::Error::unusable("drawing")),
                    _ => Ok(Some(left)),
                }
            },
            |(), item| Ok(item),
            |_| Ok(()),
        );
        assert_eq!(error.unwrap_err().to_string(), "drawing");
        let error = run(
            3,
            &never,
            || (),
            counter(100),
            |(), item| Ok(item),
            |item| match item {
                7 => Err(crate::Error::unusable("committing")),
                _ => Ok(()),
            },
        );
        assert_eq!(error.unwrap_err().to_string(), "committing");
    }

    #[test]
    fn a_panic_is_an_error_and_ends_the_other_threads() {
        for threads in [1, 4] {
            let error = run(
                threads,
                &AtomicBool::new(false),
                || (),
                counter(100),
                |(), item| {
                    if item == 5 {
                        panic!("on purpose")
                    } else {
                        Ok(item)
                    }
                },
                |_| Ok(()),
            );
            assert!(matches!(error.unwrap_err().kind(), ErrorKind::Panicked));
        }
    }

    #[test]
    fn cancelling_stops_an_endless_job() {
        for threads in [1, 3] {
            let cancelled = AtomicBool::new(false);
            let error = run(
                threads,
                &cancelled,
                || (),
                counter(u64::MAX),
                |(), item| Ok(item),
                |item| {
                    if item == 50 {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                    Ok(())
                },
            );
            assert!(matches!(error.unwrap_err().kind(), ErrorKind::Cancelled));
        }
    }

    #[test]
    fn a_thread_gets_the_buffer_that_it_had_before() {
        let buffers = Buffers::default();
        let give = |byte: u8| {
            let mut buffer = buffers.take();
            *buffer = vec![byte];
            buffer
        };
        let own = give(1);
        let other = std::thread::scope(|scope| scope.spawn(|| give(2)).join().unwrap());
        buffers.give(own);
        buffers.give(other);
        assert_eq!(*buffers.take(), [1]);
        assert_eq!(*buffers.take(), [2]);
        assert!(buffers.take().is_empty());
    }

    #[test]
    fn a_buffer_too_large_to_have_is_an_error() {
        let mut buffer = vec![1; 10];
        resize(&mut buffer, 5).unwrap();
        assert_eq!(buffer.len(), 5);
        resize(&mut buffer, 1 << 20).unwrap();
        assert_eq!(buffer.len(), 1 << 20);
        assert!(resize(&mut buffer, u64::MAX).is_err());
    }
}
