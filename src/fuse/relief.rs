//! Relief for threads that are held up.
//!
//! A request is answered on the thread that took it, and of those there are few. It may take as long as a disk does that no longer
//! answers, or as decoding does what a hostile file announces. When all threads of a queue have been at the same requests for a
//! while, whoever asks there next would wait for them, whatever he asks for. So the queue gets one more thread then, and again when that is held
//! up too, up to a limit for the mount.
//!
//! Nobody is relieved before: where more threads answer than processors are there, a reader in order is slower (see `ring`). And what was
//! once added stays until the mount ends, for the kernel lets no entry go. It costs the memory of a reply.
//!
//! Who watches sleeps until all threads of a queue are at work, and then looks twice a second as long as that lasts.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For how long all of a queue's threads are at the same requests before it gets another.
const PATIENCE: Duration = Duration::from_millis(500);
/// How many threads a mount gets beyond those it began with.
const MOST: usize = 32;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Relief {
    queues: Vec<Queue>,
    patience: Duration,
    /// There was a queue all of whose threads are at work, and it is looked at.
    watching: AtomicBool,
    /// Threads that take requests.
    posts: AtomicUsize,
    /// All of them have ended.
    over: Mutex<bool>,
    changed: Condvar,
}

/// The threads that take requests from one queue. Each processor has one, so they do not share a line of its cache.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Queue {
    /// How many of them wait for requests.
    free: AtomicUsize,
    /// How many requests they have taken.
    taken: AtomicU64,
}

/// A thread that takes requests from a queue, for as long as it does.
#[derive(Debug)]
pub(super) struct Post {
    relief: Arc<Relief>,
    queue: usize,
}

/// A request that is being answered.
pub(super) struct Busy<'a>(&'a Queue);

impl Relief {
    /// For so many queues.
    pub(super) fn of(queues: usize) -> Arc<Self> {
        Self::after(PATIENCE, queues)
    }

    fn after(patience: Duration, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            queues: (0..queues).map(|_| Queue::default()).collect(),
            patience,
            watching: AtomicBool::new(false),
            posts: AtomicUsize::new(0),
            over: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// A place for one more thread that takes requests from a queue.
    pub(super) fn post(self: &Arc<Self>, queue: usize) -> Post {
        self.posts.fetch_add(1, Ordering::SeqCst);
        if let Some(queue) = self.queues.get(queue) {
            queue.free.fetch_add(1, Ordering::SeqCst);
        }
        Post {
            relief: Arc::clone(self),
            queue,
        }
    }

    /// Watches until no thread takes requests any more, and has `relieve` add a thread to each queue that needs one; it says whether it has.
    pub(super) fn watch(&self, mut relieve: impl FnMut(usize) -> bool) {
        let mut left = MOST;
        while left > 0 && self.is_called() {
            let held = self.held_up();
            if held.is_empty() {
                self.watching.store(false, Ordering::SeqCst);
                // Whoever took the last place meanwhile has seen that it was watched.
                if !self.held_up().is_empty() {
                    self.watching.store(true, Ordering::SeqCst);
                }
                continue;
            }
            if self.is_over_within(self.patience) {
                return;
            }
            for was in held {
                if left > 0 && self.held_up().contains(&was) {
                    left -= usize::from(relieve(was.0));
                }
            }
        }
    }

    /// Queues all of whose threads are at work, and how many requests each had taken.
    fn held_up(&self) -> Vec<(usize, u64)> {
        let queues = self.queues.iter().enumerate();
        queues
            .filter(|(_, queue)| queue.free.load(Ordering::SeqCst) == 0)
            .map(|(number, queue)| (number, queue.taken.load(Ordering::SeqCst)))
            .collect()
    }

    /// Waits until there is something to look at; says whether there is, or it is over.
    fn is_called(&self) -> bool {
        let quiet = |over: &mut bool| !*over && !self.watching.load(Ordering::SeqCst);
        let over = self.changed.wait_while(self.over(), quiet);
        !*over.unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over_within(&self, time: Duration) -> bool {
        let over = self
            .changed
            .wait_timeout_while(self.over(), time, |over| !*over);
        *over.unwrap_or_else(PoisonError::into_inner).0
    }

    fn over(&self) -> MutexGuard<'_, bool> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Post {
    /// Takes notice of a request that was taken; it is answered when what is given is dropped.
    pub(super) fn begin(&self) -> Option<Busy<'_>> {
        let relief = &self.relief;
        let queue = relief.queues.get(self.queue)?;
        queue.taken.fetch_add(1, Ordering::SeqCst);
        if queue.free.fetch_sub(1, Ordering::SeqCst) == 1
            && !relief.watching.swap(true, Ordering::SeqCst)
        {
            // Under the lock, so that it does not come between a look and the sleep after it.
            let _over = relief.over();
            relief.changed.notify_all();
        }
        Some(Busy(queue))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        let relief = &self.relief;
        if let Some(queue) = relief.queues.get(self.queue) {
            queue.free.fetch_sub(1, Ordering::SeqCst);
        }
        if relief.posts.fetch_sub(1, Ordering::SeqCst) == 1 {
            *relief.over() = true;
            relief.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn a_queue_gets_a_thread_when_all_it_has_are_held_up_and_no_other_does() {
        let relief = Relief::after(SHORT, 2);
        let posts = [0, 0, 1, 1].map(|queue| relief.post(queue));
        let (relieved, relieves) = mpsc::channel();
        let watcher = {
            let relief = Arc::clone(&relief);
            thread::spawn(move || relief.watch(|queue| relieved.send(queue).is_ok()))
        };
        // One is held up, and the others go on.
        let held = posts[0].begin();
        let deadline = Instant::now() + 6 * SHORT;
        while Instant::now() < deadline {
            drop(posts[1].begin());
            let both = (posts[2].begin(), posts[3].begin());
            thread::sleep(Duration::from_millis(1));
            drop(both);
        }
        assert!(relieves.try_recv().is_err());
        // Both are, and so is who comes to help.
        let held = (held, posts[1].begin());
        assert_eq!(relieves.recv_timeout(100 * SHORT), Ok(0));
        let more = relief.post(0);
        let helping = more.begin();
        assert_eq!(relieves.recv_timeout(100 * SHORT), Ok(0));
        drop((held, helping));
        drop((posts, more));
        watcher.join().unwrap();
        assert!(relieves.try_recv().is_err());
    }

    #[test]
    fn a_mount_has_no_more_threads_added_than_so_many() {
        let relief = Relief::after(SHORT / 50, 1);
        let post = relief.post(0);
        let _held = post.begin();
        let mut added = 0;
        let mut refused = 0;
        relief.watch(|_| {
            // There is none to be had for a while.
            refused += usize::from(refused < 3);
            added += usize::from(refused == 3);
            refused == 3
        });
        assert_eq!(added, MOST);
    }
}
