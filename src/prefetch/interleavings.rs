//! Readers of one handle under many schedules; see `crate::sync`.

use super::*;
use crate::sync::explore;
use shuttle::thread;
use std::sync::Arc;

const UNIT: u64 = 256 << 10;
const UNITS: u64 = 16;

#[test]
fn threads_that_read_one_stream_together_have_every_byte_named_once() {
    explore(1.0, || {
        let prefetch = Arc::new(Prefetch::new(2 * UNIT, None));
        let threads = [[0, 2], [1, 3], [1, 2]].map(|places: [u64; 2]| {
            let prefetch = Arc::clone(&prefetch);
            thread::spawn(move || {
                let unit_end = |offset| (offset < UNITS * UNIT).then(|| (offset / UNIT + 1) * UNIT);
                let mut named = Vec::new();
                // A few requests may overtake each other and still be one stream.
                for place in places {
                    let read = place * UNIT..(place + 1) * UNIT;
                    named.push(prefetch.observe(&read, unit_end));
                    prefetch.outran(&read);
                }
                named
            })
        });
        let mut named: Vec<_> = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .filter(|range| !range.is_empty())
            .collect();
        named.sort_by_key(|range| range.start);
        assert!(!named.is_empty());
        assert!(
            named.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "{named:?}"
        );
        assert_eq!(prefetch.lock().followed.len(), 1);
    });
}
