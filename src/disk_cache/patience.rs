//! When the disk is asked for nothing: as long as it takes for something else already, and for a while after it has taken long or
//! failed. Who reads has the network to ask, which may be faster.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a disk that is well takes for a read at most, if it is asked by many.
const LONGEST_READ: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Patience {
    /// How long the disk is left alone.
    rest: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the reads under way have begun, by their numbers.
    under_way: BTreeMap<u64, Instant>,
    last_number: u64,
    rests_until: Option<Instant>,
}

/// A read of the disk that is under way for as long as this is kept.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    patience: &'a Patience,
    number: u64,
    began: Instant,
}

impl Patience {
    /// Leaves the disk alone for so long.
    pub(super) fn new(rest: Duration) -> Self {
        Self {
            rest,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read; `None` if the disk is to be left alone.
    pub(super) fn begin(&self) -> Option<Reading<'_>> {
        let began = Instant::now();
        let mut state = self.lock();
        let oldest = state.under_way.values().next();
        let hangs = oldest.is_some_and(|oldest| began.duration_since(*oldest) > LONGEST_READ);
        if hangs || state.rests_until.is_some_and(|until| began < until) {
            return None;
        }
        state.last_number += 1;
        let number = state.last_number;
        state.under_way.insert(number, began);
        drop(state);
        Some(Reading {
            patience: self,
            number,
            began,
        })
    }
}

impl Reading<'_> {
    /// Takes notice of how it went; says how long the disk has taken if it is left alone from now on.
    pub(super) fn end(self, failed: bool) -> Option<Duration> {
        let now = Instant::now();
        let took = now.duration_since(self.began);
        if !failed && took <= LONGEST_READ {
            return None;
        }
        self.patience.lock().rests_until = Some(now + self.patience.rest);
        Some(took)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.patience.lock().under_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_millis(100);

    #[test]
    fn a_disk_that_has_failed_is_left_alone_for_a_while() {
        let patience = Patience::new(REST);
        assert_eq!(patience.begin().unwrap().end(false), None);
        let beside = patience.begin().unwrap();
        assert!(patience.begin().unwrap().end(true).is_some());
        assert!(patience.begin().is_none());
        std::thread::sleep(REST);
        assert_eq!(patience.begin().unwrap().end(false), None);
        assert_eq!(beside.end(false), None);
    }

    #[test]
    fn a_disk_that_takes_long_is_left_alone_already_while_it_does() {
        let patience = Patience::new(REST);
        let slow = patience.begin().unwrap();
        assert_eq!(patience.begin().unwrap().end(false), None);
        std::thread::sleep(LONGEST_READ + Duration::from_millis(10));
        assert!(patience.begin().is_none());
        assert!(slow.end(false).unwrap() > LONGEST_READ);
        assert!(patience.begin().is_none());
        std::thread::sleep(REST);
        assert!(patience.begin().is_some());
    }
}
