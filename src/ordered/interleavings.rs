//! The engine of whole-file jobs under many schedules; see `crate::sync`.

use super::*;
use crate::sync::explore;
use std::panic::resume_unwind;
use std::sync::atomic::AtomicU64;

const ITEMS: u64 = 6;

/// Runs a job of numbers on three threads, where `fail` decides about each item's drawing, working and committing; returns
/// the outcome and how many were committed.
fn job(fail: impl Fn(&str, u64) -> Result<()> + Sync + Send) -> (Result<()>, u64) {
    let (mut next, committed) = (0..ITEMS, AtomicU64::new(0));
    let started = AtomicU64::new(0);
    let outcome = run(
        3,
        &AtomicBool::new(false),
        || (),
        || {
            let Some(item) = next.next() else {
                return Ok(None);
            };
            fail("drawing", item)?;
            let ahead =
                started.fetch_add(1, Ordering::SeqCst) + 1 - committed.load(Ordering::SeqCst);
            // Two more than the window: the one that is committed now, and this one.
            assert!(ahead <= 3 * WINDOW_PER_THREAD as u64 + 2);
            Ok(Some(item))
        },
        |(), item| {
            shuttle::thread::yield_now();
            fail("working", item).map(|()| item)
        },
        |item| {
            assert_eq!(item, committed.load(Ordering::SeqCst), "out of order");
            fail("committing", item)?;
            committed.fetch_add(1, Ordering::SeqCst);
            Ok(())
        },
    );
    (outcome, committed.into_inner())
}

#[test]
fn every_item_is_committed_in_order_and_all_threads_end() {
    explore(1.0, || {
        let (outcome, committed) = job(|_, _| Ok(()));
        outcome.unwrap();
        assert_eq!(committed, ITEMS);
    });
}

#[test]
fn an_error_or_a_panic_anywhere_ends_all_threads_and_the_first_in_order_is_told() {
    for failing in ["drawing", "working", "committing"] {
        explore(0.3, move || {
            let (outcome, committed) = job(|what, item| match item {
                3 | 4 if what == failing => Err(crate::Error::unusable(format!("item {item}"))),
                _ => Ok(()),
            });
            assert_eq!(outcome.unwrap_err().to_string(), "item 3");
            assert_eq!(committed, 3);
            let (outcome, _) = job(|what, item| match item {
                // As a panic, but without its message.
                3 if what == failing => resume_unwind(Box::new("as the test wants it")),
                _ => Ok(()),
            });
            assert!(matches!(outcome.unwrap_err().kind(), ErrorKind::Panicked));
        });
    }
}

#[test]
fn a_job_that_is_cancelled_ends_whatever_its_threads_are_at() {
    explore(1.0, || {
        let cancelled = AtomicBool::new(false);
        let mut numbers = 0_u64..;
        let outcome = run(
            3,
            &cancelled,
            || (),
            || Ok(numbers.next()),
            |(), item| Ok(item),
            |item| {
                cancelled.fetch_or(item == 2, Ordering::Relaxed);
                Ok(())
            },
        );
        assert!(matches!(outcome.unwrap_err().kind(), ErrorKind::Cancelled));
    });
}
