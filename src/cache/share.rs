//! How far ahead of each reader is decoded while there is too little memory for all of them.
//!
//! What is decoded ahead of one reader can drive out what was decoded ahead of another, for whom it is then decoded again: thirty
//! readers of chunks of 32 MiB did so to each other in a budget of 64 MiB until nothing was there any more when its reader came. So
//! each of them gets less whenever that happens, and more again while it does not, as senders do on a way that loses what they
//! send ("Congestion Avoidance and Control", V. Jacobson, 1988). Nobody has to know how many readers there are.

use std::time::{Duration, Instant};

/// The least that is decoded ahead of each reader, in bytes: a request or two.
const LEAST: u64 = 256 << 10;
/// How long it takes for the share to shrink again after it has: what was there before is still lost meanwhile.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the share takes to become twice as large.
const DOUBLING: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Share {
    most: u64,
    bytes: u64,
    /// When it shrank to that; `None` if it never did.
    shrank: Option<Instant>,
}

impl Share {
    /// All that may be decoded ahead, as long as nothing is lost.
    pub(super) fn new(most: u64) -> Self {
        Self {
            most,
            bytes: most,
            shrank: None,
        }
    }

    /// How far ahead of each reader it is worth decoding now, in bytes.
    pub(super) fn now(&self, now: Instant) -> u64 {
        let Some(shrank) = self.shrank else {
            return self.bytes;
        };
        let grown_for = now.saturating_duration_since(shrank).as_millis();
        let grown = u128::from(self.bytes) * grown_for / DOUBLING.as_millis();
        let grown = u64::try_from(grown).unwrap_or(u64::MAX);
        self.bytes.saturating_add(grown).min(self.most)
    }

    /// Takes notice that something was given up before its reader came.
    pub(super) fn lost(&mut self, now: Instant) {
        let paused = |shrank: Instant| now.saturating_duration_since(shrank) < PAUSE;
        if !self.shrank.is_some_and(paused) {
            self.bytes = (self.now(now) / 2).max(LEAST.min(self.most));
            self.shrank = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_halved_by_losses_and_comes_back_without_them() {
        let mut share = Share::new(32 << 20);
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(share.now(start), 32 << 20);
        share.lost(start);
        share.lost(at(1));
        assert_eq!(share.now(at(1)) >> 20, 16, "once for what was lost at once");
        for time in (20..400).step_by(20) {
            share.lost(at(time));
        }
        assert_eq!(share.now(at(380)), LEAST);
        assert_eq!(share.now(at(1380)), 2 * LEAST);
        assert_eq!(share.now(at(300_000)), 32 << 20);

        let mut small = Share::new(1000);
        small.lost(start);
        assert_eq!(small.now(start), 1000);
    }
}
