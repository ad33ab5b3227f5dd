//! Who is at a chunk under many schedules, decoders left out; see `crate::sync`.

use super::*;
use crate::sync::explore;
use shuttle::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const CHUNK: ChunkKey = ChunkKey {
    contents: 1,
    chunk: 0,
};

#[test]
fn whoever_waits_is_woken_and_every_errand_run_once() {
    explore(1.0, || {
        let streams = Arc::new(Streams::new(1 << 20));
        let (errands, left) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        // Wants the place, and is at it alone.
        let wants = |offset: u64| {
            let streams = Arc::clone(&streams);
            thread::spawn(move || {
                loop {
                    streams.wait_for(CHUNK, offset);
                    let Taken::Lease(mut lease) = streams.take(CHUNK, offset, true) else {
                        continue;
                    };
                    for position in 1..=offset + 1 {
                        lease.came_to(position);
                    }
                    break;
                }
            })
        };
        let guesses = |offset: u64| {
            let streams = Arc::clone(&streams);
            let (errands, left) = (Arc::clone(&errands), Arc::clone(&left));
            thread::spawn(move || {
                let errand = move || _ = errands.fetch_add(1, Ordering::SeqCst);
                match streams.take_ahead(CHUNK, offset, false, errand) {
                    Taken::Lease(_) => panic!("nothing was ever put aside"),
                    Taken::AtWork => _ = left.fetch_add(1, Ordering::SeqCst),
                    Taken::Nothing => {}
                }
            })
        };
        let threads = [wants(0), wants(2), wants(1), guesses(2), guesses(0)];
        for thread in threads {
            thread.join().unwrap();
        }
        let [errands, left] = [errands, left].map(|count| count.load(Ordering::SeqCst));
        assert_eq!(errands, left, "errands run, and left");
        let state = streams.lock();
        assert!(state.at_work.is_empty());
        assert_eq!(state.waiting, 0);
    });
}
