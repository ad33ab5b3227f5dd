//! The primitives that threads meet at, by name: the standard library's, and rayon's threads.
//!
//! With `--cfg shuttle` they are those of shuttle instead, which runs the threads of a test one at a time and decides at
//! every lock, wait and wake-up who goes on: so the tests called `interleavings` try thousands of schedules, where the
//! machine's own scheduler shows a few, and one that fails can be repeated. Nothing else differs: what is tested is the very
//! code that is shipped. `scripts/interleavings` builds and runs them.
//!
//! Whatever may be held, waited for or looked at while another thread is let on has to come from here; a lock that no other
//! primitive is touched under may stay the standard library's.

#[cfg(not(shuttle))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicUsize},
    sync::{Condvar, Mutex, MutexGuard},
    thread::{Scope, scope},
};

#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::atomic::{AtomicBool, AtomicUsize},
    sync::{Condvar, Mutex, MutexGuard},
    thread::{Scope, scope},
};

pub(crate) use self::workers::Workers;

/// Starts a thread within a scope, if there may be one more; says whether there is.
#[cfg(not(shuttle))]
pub(crate) fn spawn_scoped<'scope>(
    scope: &'scope Scope<'scope, '_>,
    run: impl FnOnce() + Send + 'scope,
) -> bool {
    let started = std::thread::Builder::new().spawn_scoped(scope, run);
    started.is_ok()
}

#[cfg(shuttle)]
pub(crate) fn spawn_scoped<'scope>(
    scope: &'scope Scope<'scope, '_>,
    run: impl FnOnce() + Send + 'scope,
) -> bool {
    scope.spawn(run);
    true
}

/// Threads that work off what they are given, first come first served.
///
/// All of it is work that may as well be left undone. So it is dropped when too much waits already: that comes about when all of
/// them wait for a disk or a server that does not answer, while others go on reading what does.
#[cfg(not(shuttle))]
mod workers {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use crate::error::{Error, Result};

    /// How many pieces of work wait at most: some hundred bytes each, and what readers want who have gone hundreds of MiB ahead.
    const MOST_WAITING: usize = 4096;

    /// So many threads.
    #[derive(Debug)]
    pub(crate) struct Workers {
        pool: rayon::ThreadPool,
        waiting: Arc<AtomicUsize>,
    }

    /// A piece of work that waits, until it is dropped.
    struct Waiting(Arc<AtomicUsize>);

    impl Waiting {
        /// One more; `None` if too many wait already.
        fn begin(waiting: &Arc<AtomicUsize>) -> Option<Self> {
            // Before it is looked at: so it is taken back by the guard in either case.
            let before = waiting.fetch_add(1, Relaxed);
            let begun = Self(Arc::clone(waiting));
            (before < MOST_WAITING).then_some(begun)
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Relaxed);
        }
    }

    impl Workers {
        /// Starts `threads` of them, but one at least.
        ///
        /// # Errors
        /// They cannot be started.
        pub(crate) fn start(threads: usize) -> Result<Self> {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads.max(1))
                .thread_name(|number| format!("prefetch-{number}"))
                // A panic in a decoder is reported to whoever waits for the chunk; the worker goes on.
                .panic_handler(|_| {})
                .build()
                .map(|pool| Self {
                    pool,
                    waiting: Arc::default(),
                })
                .map_err(|error| Error::unusable(format!("cannot start threads: {error}")))
        }

        /// Has one of them do some work, unless too much waits to be done.
        pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
            let Some(waiting) = Waiting::begin(&self.waiting) else {
                return;
            };
            self.pool.spawn_fifo(move || {
                drop(waiting);
                work();
            });
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use std::sync::mpsc;

        #[test]
        fn what_waits_for_workers_that_hang_is_bounded_and_all_is_done_again_when_they_go_on() {
            let workers = Workers::start(1).unwrap();
            let (go_on, held_up) = mpsc::channel::<()>();
            let (began, has_begun) = mpsc::channel();
            workers.spawn(move || {
                began.send(()).unwrap();
                let _ = held_up.recv();
            });
            has_begun.recv().unwrap();
            let done = Arc::new(AtomicUsize::new(0));
            let count = || {
                let done = Arc::clone(&done);
                workers.spawn(move || _ = done.fetch_add(1, Relaxed));
            };
            for _ in 0..3 * MOST_WAITING {
                count();
            }
            // Each that waits has one of these, and what was dropped has none.
            assert_eq!(Arc::strong_count(&done), 1 + MOST_WAITING);
            drop(go_on);
            while Arc::strong_count(&done) > 1 {
                std::thread::yield_now();
            }
            assert_eq!(done.load(Relaxed), MOST_WAITING);
            count();
            while done.load(Relaxed) == MOST_WAITING {
                std::thread::yield_now();
            }
        }
    }
}

/// A thread for each piece of work: every order in which a pool might do it is one of theirs.
#[cfg(shuttle)]
mod workers {
    use crate::error::Result;
    use shuttle::thread::JoinHandle;

    #[derive(Debug)]
    pub(crate) struct Workers(std::sync::Mutex<Vec<Handle>>);

    struct Handle(JoinHandle<()>);

    impl std::fmt::Debug for Handle {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("a thread")
        }
    }

    impl Workers {
        pub(crate) fn start(_threads: usize) -> Result<Self> {
            Ok(Self(std::sync::Mutex::default()))
        }

        pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
            let handle = Handle(shuttle::thread::spawn(work));
            self.0.lock().unwrap().push(handle);
        }

        /// Waits until all work is done, also what was added meanwhile.
        #[cfg(test)]
        pub(crate) fn finish(&self) {
            loop {
                let Some(Handle(handle)) = self.0.lock().unwrap().pop() else {
                    return;
                };
                handle.join().unwrap();
            }
        }
    }
}

/// Runs `test` under many schedules: half of them random, half of them with few but ill-timed interruptions
/// (probabilistic concurrency testing, of up to three). `share` of the usual number is for those that take longer;
/// `WARPFS_INTERLEAVINGS` says how many times that number to run, by default once. A schedule that fails is printed;
/// `WARPFS_SCHEDULE` runs a test with that one alone.
#[cfg(all(test, shuttle))]
pub(crate) fn explore(share: f64, test: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
    use shuttle::{Config, Runner};
    use std::sync::Arc;

    /// How many schedules each of the schedulers tries.
    const SCHEDULES: f64 = 5000.0;

    let times = std::env::var("WARPFS_INTERLEAVINGS")
        .map_or(1.0, |times| times.parse::<f64>().expect("a number"));
    let schedules = (SCHEDULES * share * times) as usize;
    let mut config = Config::new();
    // Decoders want more than the default.
    config.stack_size = 512 << 10;
    let test = Arc::new(test);
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let test = Arc::clone(&test);
        Runner::new(scheduler, config.clone()).run(move || test());
    };
    if let Ok(schedule) = std::env::var("WARPFS_SCHEDULE") {
        run(Box::new(ReplayScheduler::new_from_encoded(&schedule)));
        return;
    }
    // Other schedules every time: what is rare is found in the course of many runs.
    run(Box::new(RandomScheduler::new(schedules)));
    for interruptions in 1..=3 {
        run(Box::new(PctScheduler::new(interruptions, schedules / 3)));
    }
}
