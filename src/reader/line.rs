//! What was named ahead of the readers of a file that is far away, and waits for its turn to be fetched.
//!
//! A new request goes out when one has ended, and not when the reader has gone on: as many are under way all the time as
//! the way holds. If they went out all at once, they would also end at once, and the way be idle until there are new ones. So
//! the first are short and each next one as long as all that are under way, which lets them end one after the other; and
//! towards the end of the file they are short again, for what comes last is decoded when nothing else comes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::distant::Fetched;

/// The longest request, in bytes.
pub(super) const LONGEST_FETCH: u64 = 4 << 20;
/// The least that is worth a request of its own, in bytes: what comes in the time that asking takes.
pub(super) const LEAST_FETCH: u64 = 256 << 10;
/// How many requests of a file are under way at least, if so much was named: stores give each connection only so much.
const LEAST_UNDER_WAY: usize = 8;
/// How many are under way at most.
const MOST_UNDER_WAY: usize = 32;
/// How fast a way is held to be at most, in bytes a second, when it is asked for as much as it may hold.
const FASTEST: u64 = 640_000_000;
/// How fast a way is held to be, in bytes a second, of which nothing is known but its length: a gigabit.
const LIKELY: u64 = 125_000_000;
/// The most that is fetched of a file before its reader has had to wait for any of it, in bytes.
const MOST_AT_FIRST: u64 = 16 << 20;
/// Into how many requests the rest of a file is divided at least.
const LAST_REQUESTS: u64 = 8;

/// How many requests may be under way, for an answer to each of which it takes so long to begin.
pub(super) fn most_under_way(round_trip: Duration) -> usize {
    let requests = held_by_way(round_trip, FASTEST) / LONGEST_FETCH;
    usize::try_from(requests)
        .unwrap_or(MOST_UNDER_WAY)
        .clamp(LEAST_UNDER_WAY, MOST_UNDER_WAY)
}

/// How much to fetch ahead of a reader who has just begun, in bytes: what the way holds, and as much again, which is asked for
/// while that comes.
pub(super) fn first_window(round_trip: Duration) -> u64 {
    let twice = held_by_way(round_trip, LIKELY).saturating_mul(2);
    twice.clamp(LEAST_FETCH, MOST_AT_FIRST)
}

/// Latency times bandwidth, in bytes.
fn held_by_way(round_trip: Duration, bytes_a_second: u64) -> u64 {
    let bytes = round_trip.as_micros() * u128::from(bytes_a_second) / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Line(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes of the original, the next first.
    named: VecDeque<Range<u64>>,
    under_way: Vec<Arc<Fetched>>,
    /// What has come, for as long as somebody is going to decode it.
    there: Vec<Weak<Fetched>>,
    /// How many requests are about to be made.
    turns: usize,
}

/// The right to make a request. What of the named bytes it is not for has to be given back.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    line: &'a Line,
    /// The bytes of the original that were named next.
    pub(super) named: Range<u64>,
    /// How much is under way by now, in bytes.
    under_way: u64,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes of the original, which are going to be read after all others.
    pub(super) fn add(&self, named: Range<u64>) {
        if named.is_empty() {
            return;
        }
        let mut state = self.lock();
        match state.named.back_mut() {
            Some(last) if last.end == named.start => last.end = named.end,
            _ => state.named.push_back(named),
        }
    }

    /// What was fetched, or is being, for these bytes of the original. For as long as that is kept, nobody has to ask for them again:
    /// who decodes ahead leaves to their reader what he has come to.
    pub(super) fn fetched_for(&self, range: &Range<u64>) -> Vec<Arc<Fetched>> {
        let state = self.lock();
        let there = state.there.iter().filter_map(Weak::upgrade);
        let mut all: Vec<_> = state.under_way.iter().cloned().chain(there).collect();
        // Perhaps nobody else keeps some by now, and they are freed here.
        drop(state);
        all.retain(|fetched| fetched.is_for(range));
        all
    }

    /// Whether there is a turn to be had. Takes notice of what has ended.
    pub(super) fn has_turn(&self, most: usize) -> bool {
        let mut state = self.lock();
        let ended = state.take_ended();
        let has_turn = !state.is_busy(most) && !state.named.is_empty();
        drop(state);
        // What nobody decodes is freed without the lock.
        drop(ended);
        has_turn
    }

    /// The next turn, if anything was named and no more than `most` requests are then under way.
    pub(super) fn turn(&self, most: usize) -> Option<Turn<'_>> {
        let mut state = self.lock();
        let ended = state.take_ended();
        let busy = state.is_busy(most);
        let named = if busy { None } else { state.named.pop_front() };
        state.turns += usize::from(named.is_some());
        let lengths = state.under_way.iter().map(|fetched| fetched.len() as u64);
        let under_way = lengths.sum();
        drop(state);
        // What nobody decodes is freed without the lock.
        drop(ended);
        Some(Turn {
            line: self,
            named: named?,
            under_way,
        })
    }
}

impl State {
    /// Whether `most` requests are under way, or about to be.
    fn is_busy(&self, most: usize) -> bool {
        self.under_way.len() + self.turns >= most
    }

    /// Takes what is no longer under way from what is, and notes down that it is there.
    fn take_ended(&mut self) -> Vec<Arc<Fetched>> {
        let ended = self
            .under_way
            .extract_if(.., |fetched| !fetched.is_coming());
        let ended: Vec<_> = ended.collect();
        self.there.retain(|fetched| fetched.strong_count() > 0);
        self.there.extend(ended.iter().map(Arc::downgrade));
        ended
    }
}

impl Turn<'_> {
    /// How long the request should be, in bytes, if the file has `rest` more of them from there on.
    pub(super) fn length(&self, rest: u64) -> u64 {
        self.under_way
            .min(rest / LAST_REQUESTS)
            .clamp(LEAST_FETCH, LONGEST_FETCH)
    }

    /// Gives back what was not asked for.
    pub(super) fn give_back(&self, rest: Range<u64>) {
        if !rest.is_empty() {
            self.line.lock().named.push_front(rest);
        }
    }

    /// Takes notice of the request that was made.
    pub(super) fn is_taken_by(&self, fetched: Arc<Fetched>) {
        self.line.lock().under_way.push(fetched);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        state.turns = state.turns.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_way_holds_more() {
        let millis = Duration::from_millis;
        assert_eq!(most_under_way(Duration::ZERO), LEAST_UNDER_WAY);
        assert_eq!(most_under_way(millis(100)), 15);
        assert_eq!(most_under_way(Duration::MAX), MOST_UNDER_WAY);
        assert_eq!(first_window(Duration::ZERO), LEAST_FETCH);
        assert_eq!(first_window(millis(20)), 5_000_000);
        assert_eq!(first_window(Duration::MAX), MOST_AT_FIRST);
    }

    #[test]
    fn each_request_is_as_long_as_all_that_are_under_way_and_the_last_are_short() {
        let line = Line::default();
        let end = 100 << 20;
        line.add(0..end / 2);
        line.add(end / 2..end);
        let (mut lengths, mut start) = (Vec::new(), 0);
        while let Some(turn) = line.turn(8) {
            assert_eq!(turn.named, start..end);
            let length = turn.length(end - start);
            start += length;
            turn.is_taken_by(Arc::new(Fetched::new(
                length as usize,
                start - length..start,
            )));
            turn.give_back(start..end);
            lengths.push(length >> 10);
        }
        assert_eq!(lengths, [256, 256, 512, 1024, 2048, 4096, 4096, 4096]);
        // One has ended, and is still there for who reads it.
        let first = line.fetched_for(&(0..1));
        first[0].end();
        let turn = line.turn(8).unwrap();
        assert_eq!(line.fetched_for(&(0..300 << 10)).len(), 2);
        drop(first);
        assert_eq!(line.fetched_for(&(0..300 << 10)).len(), 1);
        assert_eq!(turn.length(8 << 20), 1 << 20);
        assert_eq!(turn.length(1 << 20), LEAST_FETCH);
        assert!(line.turn(8).is_none(), "its turn is not over");
        turn.give_back(start..end);
        assert!(!line.has_turn(8));
        drop(turn);
        assert!(line.has_turn(8) && !line.has_turn(7));
        assert_eq!(line.turn(8).unwrap().named, start..end);
        assert!(line.turn(8).is_none(), "nothing was given back");
    }
}
