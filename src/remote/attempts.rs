//! Trying again: what may be, after waits that double and are jittered, or for as long as the server says, until a deadline. No
//! library below tries by itself.
//!
//! The deadline is for a server that does nothing: one that is slow, or far, moves it with every so many bytes.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fault::{Fault, FaultKind};
use super::location::Location;
use super::wire::{Note, noting};
use crate::occasionally::Occasionally;
use crate::stats::Counters;

/// The first wait before another try; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest such wait.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// How often a server is asked that gives answers to something else.
const GARBLED_TRIES: u32 = 4;

/// How many bytes have to move within a deadline for another one to begin.
const LEAST_MOVED: u64 = 64 << 10;

/// What can go wrong with one request: the library says it, or we do.
#[derive(Debug)]
pub(super) enum Trouble {
    Library(object_store::Error),
    Ours(Fault),
}

impl From<object_store::Error> for Trouble {
    fn from(error: object_store::Error) -> Self {
        Self::Library(error)
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Ours(fault)
    }
}

/// The tries that something takes.
pub(super) struct Attempts<'a> {
    location: &'a Location,
    counters: &'a Counters,
    told: Option<&'a Occasionally>,
    deadline: Duration,
    until: Instant,
    made: u32,
    backoff: Duration,
    /// How many bytes have to move within a deadline for another one to begin, while one is under way.
    least: u64,
}

impl<'a> Attempts<'a> {
    /// None yet; they may take so long from now on. `told` says when to tell whoever looks on that there are further ones.
    pub(super) fn new(
        deadline: Duration,
        location: &'a Location,
        counters: &'a Counters,
        told: Option<&'a Occasionally>,
    ) -> Self {
        Self {
            location,
            counters,
            told,
            deadline,
            until: Instant::now() + deadline,
            made: 0,
            backoff: FIRST_BACKOFF,
            least: LEAST_MOVED,
        }
    }

    /// For work that takes the server its time, which it says by a byte now and then.
    pub(super) fn by_any_byte(mut self) -> Self {
        self.least = 1;
        self
    }

    /// Waits for what there has to be before one can be made, for as long as bytes move for anybody.
    pub(super) async fn before<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Fault> {
        let mut work = pin!(work);
        let received = || self.counters.remote_bytes_received.get();
        let mut seen = received();
        loop {
            match tokio::time::timeout_at(self.until, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if received().saturating_sub(seen) >= LEAST_MOVED => {
                    seen = received();
                    self.until = Instant::now() + self.deadline;
                }
                Err(_) => {
                    self.counters.remote_failures.add(1);
                    let what = "the server does not answer those who have asked before";
                    return Err(Fault::new(FaultKind::Passing, what));
                }
            }
        }
    }

    /// Makes one, for as long as bytes move.
    pub(super) async fn once<T>(
        &mut self,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Fault> {
        self.made += 1;
        let note = Arc::<Note>::default();
        let mut noted = pin!(noting(Arc::clone(&note), work));
        let mut moved = 0;
        loop {
            match tokio::time::timeout_at(self.until, &mut noted).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(Trouble::Library(error))) => return Err(Fault::of(&error, &note.seen())),
                Ok(Err(Trouble::Ours(fault))) => return Err(fault),
                Err(_) if note.moved() - moved >= self.least => {
                    moved = note.moved();
                    self.until = Instant::now() + self.deadline;
                }
                Err(_) => return Err(Fault::new(FaultKind::Passing, "the server does not answer")),
            }
        }
    }

    /// Makes requests until one of them is answered, or it is no use to go on.
    pub(super) async fn until_answered<T, W: Future<Output = Result<T, Trouble>>>(
        mut self,
        mut work: impl FnMut() -> W,
    ) -> Result<T, Fault> {
        loop {
            match self.once(work()).await {
                Ok(done) => return Ok(done),
                Err(fault) => self.pause(fault).await?,
            }
        }
    }

    /// So many bytes were done, and need not be done again: the next failure is a new one.
    pub(super) fn went_on(&mut self, bytes: u64) {
        self.backoff = FIRST_BACKOFF;
        self.made = 0;
        if bytes >= LEAST_MOVED {
            self.until = Instant::now() + self.deadline;
        }
    }

    /// Waits before another try; or says that there is none.
    pub(super) async fn pause(&mut self, fault: Fault) -> Result<(), Fault> {
        let again = match fault.kind {
            FaultKind::Passing => true,
            FaultKind::Garbled => self.made < GARBLED_TRIES,
            _ => false,
        };
        if !again {
            return Err(fault);
        }
        let wait = jittered(self.backoff).max(fault.retry_after.unwrap_or_default());
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        if Instant::now() + wait >= self.until {
            self.counters.remote_failures.add(1);
            let tries = self.made;
            let within = self.deadline.as_secs_f32();
            let what = format!(
                "{} (given up after {tries} tries within {within} s)",
                fault.what
            );
            return Err(Fault { what, ..fault });
        }
        self.counters.remote_retries.add(1);
        let (location, what) = (self.location, &fault.what);
        match self.told.is_some_and(Occasionally::is_due) {
            true => {
                let within = self.deadline.as_secs_f32();
                tracing::warn!("{location}: {what}; tried again for up to {within} s");
            }
            false => tracing::debug!("{location}: {what}; trying again"),
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// From half of a wait to all of it, so that those who failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    wait.mul_f64(0.5 + (random as u32) as f64 / f64::from(u32::MAX) / 2.0)
}
