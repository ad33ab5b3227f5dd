//! How far away a store is: the time from a request to the beginning of its answer.
//!
//! The shortest of late: what waits behind others, or first has to connect, takes longer than the way does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Which part of the difference a longer time counts for: one in so many.
const SLOWNESS: u64 = 16;

/// See the module's description. In microseconds; 0 as long as there is none.
#[derive(Debug, Default)]
pub(super) struct RoundTrip(AtomicU64);

impl RoundTrip {
    /// Takes notice of what a request took.
    pub(super) fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let change = |known: u64| {
            Some(match known {
                0 => took,
                _ if took < known => took,
                _ => known + (took - known) / SLOWNESS,
            })
        };
        // It always changes.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// The time; none as long as nothing was noted.
    pub(super) fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fast_counts_at_once_and_what_is_slow_when_it_stays_so() {
        let round_trip = RoundTrip::default();
        let note = |millis: u64, times: usize| {
            (0..times).for_each(|_| round_trip.note(Duration::from_millis(millis)));
            round_trip.get().as_millis()
        };
        assert_eq!(round_trip.get(), Duration::ZERO);
        assert_eq!(note(150, 1), 150);
        assert_eq!(note(50, 1), 50);
        assert!(note(100, 1) < 55);
        assert!((98..=100).contains(&note(100, 100)));
        assert_eq!(note(20, 1), 20);
    }
}
