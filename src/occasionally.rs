//! A log that others cannot fill: what happens over and over, at their will, is told now and then.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Says when it is time to tell of something again.
#[derive(Debug)]
pub(crate) struct Occasionally {
    pause: Duration,
    last: Mutex<Option<Instant>>,
}

impl Occasionally {
    /// It is time at once, and after every pause of this length.
    pub(crate) fn every(pause: Duration) -> Self {
        Self {
            pause,
            last: Mutex::new(None),
        }
    }

    /// Whether it is time now; then it is not for a while.
    pub(crate) fn is_due(&self) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= self.pause);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_at_once_and_again_after_the_pause() {
        let long = Occasionally::every(Duration::from_secs(3600));
        assert_eq!([long.is_due(), long.is_due()], [true, false]);
        let short = Occasionally::every(Duration::from_millis(20));
        assert!(short.is_due());
        std::thread::sleep(Duration::from_millis(30));
        assert!(short.is_due());
    }
}
