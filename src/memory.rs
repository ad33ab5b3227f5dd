//! The one byte budget of everything that grows with use: decoded chunks, chunks being decoded, their compressed input,
//! prefetch, and the tables of open files.
//!
//! A [`Buffer`] is memory that counts; it stops counting when it is dropped. A job asks for all the buffers it needs
//! at once ([`Budget::acquire`]), so that two jobs can never hold one half each and wait for the other. Demand waits
//! its turn, first come first served, and is only refused what could never be granted; speculation never waits, and
//! is refused while demand waits. Dropped buffers are kept for reuse, counted, until somebody needs the room: page
//! faults on fresh memory cost as much as decoding LZ4.
//!
//! The budget knows nothing of the cache. Who holds memory that could be given up says so by the `make_room` callback.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};

use crate::error::{ErrorKind, Result};
use crate::machine::usable_memory;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How much memory dropped buffers that are kept for reuse may take, in bytes: a reader's window of 16 MiB is given back and
/// asked for again in waves.
const SPARE_BYTES: u64 = 16 << 20;
/// How many dropped buffers are kept for reuse at most: they are looked through one by one.
const SPARES: usize = 256;

/// How a request for memory is treated when there is none left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Somebody waits for the data: it waits its turn and gets it.
    Demand,
    /// A guess: it is refused at once.
    Speculation,
}

/// A number of bytes, and who uses how many of them now.
#[derive(Debug)]
pub(crate) struct Budget {
    total: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes in buffers, spares and charges; never more than the total.
    used: u64,
    /// The part of `used` that tables hold: it is given up only when files are closed.
    charged: u64,
    /// Demand that waits, by ticket, the first in front.
    queue: VecDeque<u64>,
    next_ticket: u64,
    spares: Vec<Vec<u8>>,
    /// The part of `used` that the spares are.
    spare: u64,
    /// Counts what could let a waiter go on, so that no wake-up between its look and its sleep is lost.
    changes: u64,
    /// How many threads sleep until the next change: waking nobody costs a system call too.
    sleepers: usize,
}

impl State {
    /// Spares that fit, and what may be allocated for the rest. Others make way for that as far as they have to: `freed` is to be
    /// dropped when the caller has let go of the lock.
    fn grant<const N: usize>(
        &mut self,
        classes: &[usize; N],
        beside: u64,
        total: u64,
        freed: &mut Vec<Vec<u8>>,
    ) -> Option<[Vec<u8>; N]> {
        let mut granted = [const { Vec::new() }; N];
        for (slot, &class) in granted.iter_mut().zip(classes) {
            // The one dropped last is the likeliest to be in the processor's caches.
            if let Some(at) = self.spares.iter().rposition(|spare| spare.len() == class) {
                *slot = self.spares.remove(at);
                self.spare -= class as u64;
            }
        }
        let fresh: u64 = granted
            .iter()
            .zip(classes)
            .filter(|(slot, _)| slot.is_empty())
            .map(|(_, &class)| class as u64)
            .sum::<u64>()
            + beside;
        if self.used - self.spare + fresh > total {
            for slot in granted.into_iter().filter(|slot| !slot.is_empty()) {
                self.spare += slot.len() as u64;
                self.spares.push(slot);
            }
            return None;
        }
        while self.used + fresh > total {
            freed.push(self.free_spare()?);
        }
        self.used += fresh;
        Some(granted)
    }

    /// Gives up the spare buffer that was dropped longest ago, if there is one.
    fn free_spare(&mut self) -> Option<Vec<u8>> {
        if self.spares.is_empty() {
            return None;
        }
        let freed = self.spares.remove(0);
        self.used -= freed.len() as u64;
        self.spare -= freed.len() as u64;
        Some(freed)
    }
}

impl Budget {
    /// A budget of `total` bytes.
    pub(crate) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self {
            total,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// A budget for jobs that bound their memory themselves.
    pub(crate) fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX / 2)
    }

    /// The whole budget, in bytes.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// What is in use now, in bytes, spare buffers included.
    pub(crate) fn used(&self) -> u64 {
        self.lock().used
    }

    /// The part of what is in use that spare buffers are, in bytes.
    pub(crate) fn spare(&self) -> u64 {
        self.lock().spare
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Buffers of the given lengths in bytes, all of them or none. `make_room` gives up something that counts and
    /// says whether there was anything; it is called without a lock held.
    ///
    /// `None` is for speculation only: there is no room now.
    ///
    /// # Errors
    /// [`ErrorKind::OverBudget`] for demand that could not be met with everything else given up.
    pub(crate) fn acquire<const N: usize>(
        self: &Arc<Self>,
        lengths: [usize; N],
        urgency: Urgency,
        make_room: impl FnMut() -> bool,
    ) -> Result<Option<[Buffer; N]>> {
        let granted = self.acquire_beside(lengths, 0, urgency, make_room)?;
        Ok(granted.map(|(buffers, _)| buffers))
    }

    /// As [`Budget::acquire`], with room for `beside` bytes more that are allocated elsewhere, in the same moment.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn acquire_beside<const N: usize>(
        self: &Arc<Self>,
        lengths: [usize; N],
        beside: u64,
        urgency: Urgency,
        mut make_room: impl FnMut() -> bool,
    ) -> Result<Option<([Buffer; N], Room)>> {
        let classes = lengths.map(size_class);
        let needed = classes
            .iter()
            .fold(beside, |sum, &class| sum.saturating_add(class as u64));
        let mut turn = Turn {
            budget: self,
            ticket: None,
        };
        // Dropped without the lock: giving pages back to the system takes a while.
        let mut freed = Vec::new();
        let mut state = self.lock();
        let granted = loop {
            let first = match turn.ticket {
                Some(ticket) => state.queue.front() == Some(&ticket),
                None => state.queue.is_empty(),
            };
            if needed > self.total - state.charged {
                drop(state);
                return match urgency {
                    Urgency::Speculation => Ok(None),
                    Urgency::Demand => Err(ErrorKind::OverBudget {
                        needed,
                        budget: self.total,
                    }
                    .into()),
                };
            }
            if first && let Some(granted) = state.grant(&classes, beside, self.total, &mut freed) {
                break granted;
            }
            match urgency {
                Urgency::Speculation if !first => return Ok(None),
                Urgency::Demand if turn.ticket.is_none() => {
                    let ticket = state.next_ticket;
                    state.next_ticket += 1;
                    state.queue.push_back(ticket);
                    turn.ticket = Some(ticket);
                    continue;
                }
                _ => {}
            }
            let seen = state.changes;
            if first {
                drop(state);
                let made = make_room();
                state = self.lock();
                if made {
                    continue;
                }
                if urgency == Urgency::Speculation {
                    return Ok(None);
                }
            }
            state = self.sleep(state, seen);
        };
        drop(state);
        drop(turn);
        drop(freed);
        let room = Room {
            budget: Arc::clone(self),
            bytes: beside,
        };
        let mut granted = granted.into_iter().zip(classes).zip(lengths);
        let buffers = std::array::from_fn(|_| {
            let (bytes, length) = match granted.next() {
                Some(((bytes, class), length)) if bytes.is_empty() => (vec![0; class], length),
                Some(((bytes, _), length)) => (bytes, length),
                None => (Vec::new(), 0),
            };
            Buffer {
                budget: Arc::clone(self),
                bytes,
                length,
            }
        });
        Ok(Some((buffers, room)))
    }

    /// Checks that [`Budget::charge`] would count `bytes` if it counted nothing else.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn check_charge(&self, bytes: u64) -> Result<()> {
        match bytes > self.total / 4 * 3 {
            true => Err(ErrorKind::OverBudget {
                needed: bytes,
                budget: self.total,
            }
            .into()),
            false => Ok(()),
        }
    }

    /// Counts `bytes` that are allocated elsewhere, a table's say, for as long as the result lives.
    ///
    /// # Errors
    /// [`ErrorKind::OverBudget`] if such charges would leave less than a quarter of the budget to chunks.
    pub(crate) fn charge(
        self: &Arc<Self>,
        bytes: u64,
        mut make_room: impl FnMut() -> bool,
    ) -> Result<Charge> {
        let mut freed = Vec::new();
        let mut state = self.lock();
        loop {
            if state.charged.saturating_add(bytes) > self.total / 4 * 3 {
                return Err(ErrorKind::OverBudget {
                    needed: bytes,
                    budget: self.total,
                }
                .into());
            }
            if state.used + bytes <= self.total {
                break;
            }
            if let Some(spare) = state.free_spare() {
                freed.push(spare);
                continue;
            }
            let seen = state.changes;
            drop(state);
            let made = make_room();
            state = self.lock();
            if !made {
                state = self.sleep(state, seen);
            }
        }
        state.used += bytes;
        state.charged += bytes;
        drop(state);
        Ok(Charge {
            budget: Arc::clone(self),
            bytes,
        })
    }

    /// Tells those who wait that there may be something to give up now which was not there before.
    pub(crate) fn announce(&self) {
        self.wake(self.lock());
    }

    /// Sleeps until something has changed since `seen`.
    fn sleep<'a>(&'a self, mut state: MutexGuard<'a, State>, seen: u64) -> MutexGuard<'a, State> {
        state.sleepers += 1;
        while state.changes == seen {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.sleepers -= 1;
        state
    }

    /// Records a change and wakes who sleeps.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        state.changes += 1;
        let anybody = state.sleepers > 0;
        drop(state);
        if anybody {
            self.changed.notify_all();
        }
    }
}

/// Buffers come in classes an eighth of a power of two apart, so that a dropped one fits the next request of about
/// its size: at most an eighth or a page is wasted, and nothing for powers of two, which chunk sizes mostly are. Lengths
/// that no memory has room for are a class of their own.
fn size_class(length: usize) -> usize {
    if length == 0 {
        return 0;
    }
    let power = length.checked_next_power_of_two().unwrap_or(usize::MAX);
    let step = (power / 8).max(4096);
    length.div_ceil(step).saturating_mul(step)
}

/// A place in the queue; leaving it lets the next one look.
struct Turn<'a> {
    budget: &'a Budget,
    ticket: Option<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.budget.lock();
            state.queue.retain(|&waiting| waiting != ticket);
            self.budget.wake(state);
        }
    }
}

/// Bytes that count against a [`Budget`].
#[derive(Debug)]
pub(crate) struct Buffer {
    budget: Arc<Budget>,
    /// As long as its size class, and initialised; the buffer is the first `length` bytes of it.
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// How many bytes count, which may be more than it is long.
    pub(crate) fn counted(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return;
        }
        let mut state = self.budget.lock();
        let spare = state.spare + bytes.len() as u64;
        let room = spare <= SPARE_BYTES && state.spares.len() < SPARES;
        // Also where somebody waits for memory: it is spares that are taken first, or given up if they do not fit.
        let unwanted = if room {
            state.spare = spare;
            state.spares.push(bytes);
            None
        } else {
            state.used -= bytes.len() as u64;
            Some(bytes)
        };
        self.budget.wake(state);
        // Freed without the lock: giving pages back to the system takes a while.
        drop(unwanted);
    }
}

/// Bytes allocated elsewhere, by a decoder say, that count against a [`Budget`] and may be given up as buffers are.
#[derive(Debug)]
pub(crate) struct Room {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Room {
    /// Room for what takes no memory, which nobody has to be asked for.
    pub(crate) fn of_nothing(budget: &Arc<Budget>) -> Self {
        Self {
            budget: Arc::clone(budget),
            bytes: 0,
        }
    }

    /// How many there are.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut state = self.budget.lock();
            state.used -= self.bytes;
            self.budget.wake(state);
        }
    }
}

/// Bytes allocated elsewhere that count against a [`Budget`] for as long as a file is open.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    /// How many there are.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back all but `bytes`, if it is more.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let excess = self.bytes.saturating_sub(bytes);
        self.bytes -= excess;
        let mut state = self.budget.lock();
        state.used -= excess;
        state.charged -= excess;
        self.budget.wake(state);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// What `--cache-size` is by default: the smaller of 512 MiB and an eighth of the memory this process may use, but at least
/// 8 MiB.
pub(crate) fn default_budget() -> u64 {
    (usable_memory() / 8).clamp(8 << 20, 512 << 20)
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn demand<const N: usize>(budget: &Arc<Budget>, lengths: [usize; N]) -> [Buffer; N] {
        budget
            .acquire(lengths, Urgency::Demand, || false)
            .unwrap()
            .unwrap()
    }

    #[test]
    fn what_could_never_fit_is_refused_at_once() {
        let budget = Budget::new(64 << 10);
        let error = budget
            .acquire([60 << 10, 8 << 10], Urgency::Demand, || false)
            .unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OverBudget { .. }));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn speculation_that_could_never_fit_is_refused_and_no_error() {
        let budget = Budget::new(64 << 10);
        let guess = budget.acquire([60 << 10, 8 << 10], Urgency::Speculation, || false);
        assert!(guess.unwrap().is_none());
    }

    #[test]
    fn speculation_is_refused_where_demand_waits_and_is_served() {
        let budget = Budget::new(64 << 10);
        let held = demand(&budget, [48 << 10]);
        let guess = budget.acquire([32 << 10], Urgency::Speculation, || false);
        assert!(guess.unwrap().is_none());
        let waiter = std::thread::spawn({
            let budget = Arc::clone(&budget);
            move || demand(&budget, [32 << 10]).map(|buffer| buffer.len())
        });
        while budget.lock().queue.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // There is room for this one, but demand comes first.
        let guess = budget.acquire([4 << 10], Urgency::Speculation, || false);
        assert!(guess.unwrap().is_none());
        drop(held);
        assert_eq!(waiter.join().unwrap(), [32 << 10]);
    }

    #[test]
    fn a_dropped_buffer_is_used_again_and_given_up_when_room_is_needed() {
        let budget = Budget::new(64 << 10);
        let [mut first] = demand(&budget, [32 << 10]);
        first[0] = 7;
        let place = first.as_ptr();
        drop(first);
        assert_eq!(budget.used(), 32 << 10);
        let [again] = demand(&budget, [32 << 10]);
        assert_eq!(again.as_ptr(), place);
        drop(again);
        let [other] = demand(&budget, [64 << 10]);
        assert_eq!(budget.used(), 64 << 10);
        drop(other);
    }

    #[test]
    fn charges_count_and_leave_a_quarter_to_chunks() {
        let budget = Budget::new(64 << 10);
        let charge = budget.charge(40 << 10, || false).unwrap();
        assert_eq!(budget.used(), 40 << 10);
        assert!(budget.charge(16 << 10, || false).is_err());
        assert!(
            budget
                .acquire([32 << 10], Urgency::Demand, || false)
                .is_err()
        );
        drop(charge);
        demand(&budget, [32 << 10]);
    }

    #[test]
    fn many_threads_never_exceed_the_budget_and_all_are_served() {
        let budget = Budget::new(256 << 10);
        let in_use = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                let (budget, in_use) = (&budget, &in_use);
                scope.spawn(move || {
                    for round in 0..500 {
                        let length = 4096 * (1 + (thread * 7 + round) % 30);
                        let buffers = demand(budget, [length, 4096]);
                        let now = in_use.fetch_add(length + 4096, Ordering::SeqCst);
                        assert!(now + length + 4096 <= 256 << 10);
                        assert!(budget.used() <= 256 << 10);
                        in_use.fetch_sub(length + 4096, Ordering::SeqCst);
                        drop(buffers);
                    }
                });
            }
        });
        assert!(budget.used() <= 256 << 10);
    }

    #[test]
    fn lengths_that_no_memory_has_room_for_are_refused() {
        let budget = Budget::unlimited();
        for lengths in [
            [usize::MAX, 1],
            [usize::MAX, usize::MAX],
            [usize::MAX - 4999, 4096],
        ] {
            assert!(budget.acquire(lengths, Urgency::Demand, || false).is_err());
        }
        assert_eq!(budget.used(), 0);
    }
}
