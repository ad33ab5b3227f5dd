//! What was asked for ahead of those who read objects as they are: of all objects together no more than a part of the budget, and
//! given up when somebody needs the memory. Who holds an object open need not read on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::fetches::Guard;
use crate::memory::Budget;

/// Which part of the budget it may take: one in this many bytes.
const PLANNED_PART: u64 = 4;
/// The length of one request, in bytes.
const PLANNED_LEN: u64 = 4 << 20;
/// How many requests that part has room for: where it is small, they are shorter ...
const AT_LEAST: u64 = 4;
/// ... but no shorter than this, in bytes.
const LEAST_LEN: u64 = 256 << 10;

/// All that was planned, of all objects, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct AllPlanned(Mutex<Vec<Weak<Planned>>>);

/// A request that is made ahead, for as long as somebody is going to read what it brings.
#[derive(Debug)]
pub(super) struct Planned {
    length: u64,
    guard: Mutex<Option<Guard>>,
}

/// How much is asked for in one request, of a budget of so many bytes.
pub(super) fn planned_len(budget: u64) -> u64 {
    (budget / PLANNED_PART / AT_LEAST).clamp(LEAST_LEN, PLANNED_LEN)
}

impl AllPlanned {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Planned>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for so many bytes, of a budget of so many, if there is one.
    pub(super) fn place(&self, length: u64, budget: u64) -> Option<Arc<Planned>> {
        let mut all = self.lock();
        all.retain(|planned| planned.strong_count() > 0);
        let held = all.iter().filter_map(Weak::upgrade);
        let held = held.fold(length, |sum, planned| sum.saturating_add(planned.length));
        if held > budget / PLANNED_PART {
            return None;
        }
        let planned = Arc::new(Planned {
            length,
            guard: Mutex::default(),
        });
        all.push(Arc::downgrade(&planned));
        Some(planned)
    }

    /// Gives up what was asked for the longest time ago; says whether there was anything.
    pub(crate) fn give_one_up(&self) -> bool {
        let mut all = self.lock();
        all.retain(|planned| planned.strong_count() > 0);
        let found = all.iter().enumerate().find_map(|(at, planned)| {
            let guard = planned.upgrade()?.lock().take()?;
            Some((at, guard))
        });
        let Some((at, guard)) = found else {
            return false;
        };
        all.remove(at);
        // It is broken off and freed without the lock.
        drop(all);
        drop(guard);
        true
    }
}

impl Planned {
    fn lock(&self) -> MutexGuard<'_, Option<Guard>> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a request, which may be given up from now on.
    pub(super) fn hold(&self, guard: Guard, budget: &Budget) {
        *self.lock() = Some(guard);
        budget.announce();
    }

    /// Whether it was given up, or read, or nobody who reads from front to back and is at `offset` is going to.
    pub(super) fn is_done(&self, offset: u64, slack: u64) -> bool {
        let guard = self.lock();
        guard
            .as_ref()
            .is_none_or(|guard| guard.is_done(offset, slack))
    }
}
