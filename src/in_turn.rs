//! One at a time for each thing: who wants to do what another is doing waits for him, and may find it done then.
//!
//! The mark of who is at it is a guard: it clears when it is dropped, on every path, panics included.

use std::hash::Hash;
use std::sync::PoisonError;

use hashbrown::HashSet;

use crate::sync::{Condvar, Mutex, MutexGuard};

/// See the module's description.
#[derive(Debug)]
pub(crate) struct InTurn<T> {
    state: Mutex<State<T>>,
    done: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// What somebody is at.
    begun: HashSet<T>,
    /// How many threads wait for one of those: waking nobody costs a system call too.
    waiting: usize,
}

impl<T> Default for InTurn<T> {
    fn default() -> Self {
        let state = State {
            begun: HashSet::new(),
            waiting: 0,
        };
        Self {
            state: Mutex::new(state),
            done: Condvar::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> InTurn<T> {
    /// Waits until nobody else is at it; then it is the caller's turn, until the mark is dropped.
    pub(crate) fn begin(&self, thing: T) -> Turn<'_, T> {
        let mut state = self.lock();
        while !state.begun.insert(thing) {
            state.waiting += 1;
            let woken = self.done.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        drop(state);
        Turn {
            in_turn: self,
            thing,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mark of who is at something.
#[derive(Debug)]
pub(crate) struct Turn<'a, T: Copy + Eq + Hash> {
    in_turn: &'a InTurn<T>,
    thing: T,
}

impl<T: Copy + Eq + Hash> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let mut state = self.in_turn.lock();
        state.begun.remove(&self.thing);
        let anybody = state.waiting > 0;
        drop(state);
        if anybody {
            self.in_turn.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    #[test]
    fn one_is_at_a_thing_at_a_time_and_others_at_other_things() {
        let in_turn = InTurn::default();
        let (at_it, done) = (AtomicU32::new(0), AtomicU32::new(0));
        let _another = in_turn.begin(2);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _turn = in_turn.begin(1);
                    assert_eq!(at_it.fetch_add(1, SeqCst), 0);
                    std::thread::yield_now();
                    at_it.fetch_sub(1, SeqCst);
                    done.fetch_add(1, SeqCst);
                });
            }
        });
        assert_eq!(done.into_inner(), 8);
    }

    #[test]
    fn who_panics_lets_the_next_one_on() {
        let in_turn = InTurn::default();
        std::thread::scope(|scope| {
            let panicking = scope.spawn(|| {
                let _turn = in_turn.begin(1);
                panic!("as it may happen");
            });
            assert!(panicking.join().is_err());
        });
        drop(in_turn.begin(1));
    }
}
