//! The budget under many schedules; see `crate::sync`.

use super::*;
use crate::sync::{Mutex, explore};
use shuttle::sync::Barrier;
use shuttle::thread;
use std::sync::atomic::{AtomicU64, Ordering};

impl Budget {
    /// Checks that nothing but spare buffers counts and nobody waits.
    pub(crate) fn assert_at_rest(&self) {
        let state = self.lock();
        assert_eq!(state.used, state.spare, "bytes count that nobody holds");
        let spares: usize = state.spares.iter().map(Vec::len).sum();
        assert_eq!(state.spare, spares as u64);
        assert_eq!((state.charged, state.sleepers), (0, 0));
        assert!(state.queue.is_empty());
    }
}

/// Counts what threads hold, whatever the budget believes.
#[derive(Default)]
struct Held(AtomicU64);

impl Held {
    fn while_held(&self, budget: &Budget, bytes: u64, then: impl FnOnce()) {
        let held = self.0.fetch_add(bytes, Ordering::SeqCst) + bytes;
        assert!(held <= budget.total(), "{held} bytes are held");
        assert!(budget.used() <= budget.total());
        then();
        self.0.fetch_sub(bytes, Ordering::SeqCst);
    }
}

#[test]
fn all_demand_is_served_and_the_budget_never_exceeded() {
    explore(1.0, || {
        let budget = Budget::new(24 << 10);
        let held = Arc::new(Held::default());
        let start = |lengths: [usize; 2], beside: u64, urgency| {
            let (budget, held) = (Arc::clone(&budget), Arc::clone(&held));
            thread::spawn(move || {
                for _ in 0..2 {
                    let acquired = budget.acquire_beside(lengths, beside, urgency, || false);
                    let Some((buffers, room)) = acquired.unwrap() else {
                        assert_eq!(urgency, Urgency::Speculation);
                        continue;
                    };
                    let bytes = (lengths[0] + lengths[1]) as u64 + beside;
                    held.while_held(&budget, bytes, thread::yield_now);
                    drop((buffers, room));
                }
            })
        };
        let threads = [
            start([8 << 10, 4 << 10], 0, Urgency::Demand),
            start([4 << 10, 16 << 10], 0, Urgency::Demand),
            start([4 << 10, 4 << 10], 8 << 10, Urgency::Demand),
            start([8 << 10, 8 << 10], 0, Urgency::Speculation),
        ];
        for thread in threads {
            thread.join().unwrap();
        }
        budget.assert_at_rest();
    });
}

#[test]
fn who_waits_gets_what_is_given_up_or_uncharged() {
    explore(1.0, || {
        let budget = Budget::new(16 << 10);
        // What others have left where it can be given up, as a cache has.
        let left: Arc<Mutex<Vec<Buffer>>> = Arc::default();
        let threads = [8 << 10, 4 << 10, 4 << 10].map(|length: usize| {
            let (budget, left) = (Arc::clone(&budget), Arc::clone(&left));
            thread::spawn(move || {
                for _ in 0..2 {
                    let make_room = || {
                        let given_up = left.lock().unwrap().pop();
                        given_up.is_some()
                    };
                    let acquired = budget.acquire([length], Urgency::Demand, make_room);
                    let [buffer] = acquired.unwrap().unwrap();
                    assert!(budget.used() <= budget.total());
                    left.lock().unwrap().push(buffer);
                    budget.announce();
                }
            })
        });
        let charging = thread::spawn({
            let (budget, left) = (Arc::clone(&budget), Arc::clone(&left));
            move || {
                let make_room = || {
                    let given_up = left.lock().unwrap().pop();
                    given_up.is_some()
                };
                let charge = budget.charge(8 << 10, make_room).unwrap();
                assert!(budget.used() <= budget.total());
                drop(charge);
            }
        });
        for thread in threads {
            thread.join().unwrap();
        }
        charging.join().unwrap();
        left.lock().unwrap().clear();
        budget.assert_at_rest();
    });
}

#[test]
fn who_is_next_is_served_while_the_one_before_still_holds_its_memory() {
    explore(1.0, || {
        let budget = Budget::new(16 << 10);
        let acquire = |length| budget.acquire([length], Urgency::Demand, || false);
        let all = acquire(16 << 10).unwrap();
        let both = Arc::new(Barrier::new(2));
        let threads = [8 << 10, 4 << 10].map(|length: usize| {
            let (budget, both) = (Arc::clone(&budget), Arc::clone(&both));
            thread::spawn(move || {
                let buffer = budget.acquire([length], Urgency::Demand, || false);
                both.wait();
                drop(buffer);
            })
        });
        drop(all);
        for thread in threads {
            thread.join().unwrap();
        }
        budget.assert_at_rest();
    });
}
