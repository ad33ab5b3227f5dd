//! Bringing compressed bytes from a source that is far away, before they are decoded.
//!
//! What is decoded ahead lies end to end in the file as in the original, so the chunks of a window are fetched in a few large
//! requests, several at a time, by the network's own threads; the workers get them when they are there. The room they
//! come into counts against the budget, and is a guess as they are. What is kept nearby is not fetched. A reader who comes to one
//! that is on its way waits for that; to any other, he makes a request of his own.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Shared;
use super::line::{LEAST_FETCH, LONGEST_FETCH, Turn, first_window, most_under_way};
use crate::archive::{Archive, Distant, Kept};
use crate::memory::Urgency;
use crate::prefetch::{Far, PROOF};

/// How much of a large chunk's payload is fetched beside what a piece of it takes by proportion, in bytes: parts of a chunk
/// differ.
pub(super) const PIECE_SLACK: u64 = 64 << 10;

/// Which part of the budget may be fetched ahead and not decoded yet: one in this many bytes.
const FETCHED_PART: u64 = 4;

/// How to name ahead what comes from a source that is far away; `None` if it is near.
pub(super) fn way(archive: &Archive) -> Option<Far> {
    let distant = archive.distant()?;
    let table = archive.table();
    let original = |packed: u64| {
        let length = u128::from(packed) * u128::from(table.original_size())
            / u128::from(table.payload_end().max(1));
        u64::try_from(length).unwrap_or(u64::MAX).max(LEAST_FETCH)
    };
    Some(Far {
        proof: PROOF,
        believes_beginnings: true,
        batch: original(LONGEST_FETCH),
        first_window: original(first_window(distant.round_trip())),
    })
}

/// Bytes of the original that come together.
struct Group {
    /// Those of the file they are decoded from; `None` if these are kept nearby.
    packed: Option<Range<u64>>,
    original: Range<u64>,
}

/// What was fetched ahead, for as long as somebody is going to decode it.
#[derive(Debug)]
pub(super) struct Fetched {
    length: usize,
    /// Which bytes of the original are decoded from it.
    original: Range<u64>,
    kept: Mutex<Option<Kept>>,
    /// Whether nothing more comes.
    ended: AtomicBool,
}

/// All that was fetched ahead, of all files, the oldest first.
#[derive(Debug, Default)]
pub(super) struct AllFetched(Mutex<Vec<Weak<Fetched>>>);

impl AllFetched {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Fetched>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so many bytes more may be fetched, of a budget of so many.
    fn have_room(&self, length: usize, budget: u64) -> bool {
        let all = self.lock();
        let held = all.iter().filter_map(Weak::upgrade);
        let held: usize = held.map(|fetched| fetched.length).sum();
        (held.saturating_add(length)) as u64 <= budget / FETCHED_PART
    }

    fn add(&self, length: usize, original: Range<u64>) -> Arc<Fetched> {
        let fetched = Arc::new(Fetched::new(length, original));
        let mut all = self.lock();
        all.retain(|fetched| fetched.strong_count() > 0);
        all.push(Arc::downgrade(&fetched));
        drop(all);
        fetched
    }

    /// Gives up what was fetched, or is being, for the longest time; says whether there was anything.
    pub(super) fn give_one_up(&self) -> bool {
        let all = self.lock();
        let given_up = all.iter().filter_map(Weak::upgrade).find_map(|fetched| {
            // What is being asked for just now has nothing to give up yet.
            let kept = fetched.kept().take()?;
            fetched.end();
            Some((fetched, kept))
        });
        drop(all);
        // Freed without the lock.
        given_up.is_some()
    }
}

impl Shared {
    /// Has more fetched of what was named ahead, if it is time for that. Waits for nothing: whoever calls may have the network to
    /// drive, or other requests to take.
    pub(super) fn have_fetched_on(self: &Arc<Self>, distant: &dyn Distant) {
        if !self.line.has_turn(most_under_way(distant.round_trip())) {
            return;
        }
        let shared = Arc::downgrade(self);
        distant.run_waiting(Box::new(move || {
            // Nobody may read the file any more.
            if let Some(shared) = shared.upgrade()
                && let Some(distant) = shared.archive.distant()
            {
                shared.fetch_on(distant);
            }
        }));
    }

    /// Goes on fetching what was named ahead, and has the workers decode it.
    fn fetch_on(self: &Arc<Self>, distant: &dyn Distant) {
        let most = most_under_way(distant.round_trip());
        while let Some(turn) = self.line.turn(most) {
            let Some(group) = self.next_group(distant, &turn) else {
                continue;
            };
            let original = group.original;
            turn.give_back(original.end..turn.named.end);
            if !self.prefetch.still_wants(&original) {
                continue;
            }
            self.archive.expect_checks(&original);
            let Some(packed) = group.packed else {
                self.send_ahead(original, None);
                continue;
            };
            match self.fetch_group(distant, packed, original.clone()) {
                Some(fetched) => turn.is_taken_by(fetched),
                // Later, when there is room.
                None => return turn.give_back(original),
            }
        }
    }

    /// What to ask for next, or has not to be asked for; `None` if nothing of what was named can be.
    fn next_group(&self, distant: &dyn Distant, turn: &Turn<'_>) -> Option<Group> {
        let table = self.archive.table();
        let mut group: Option<Group> = None;
        let mut offset = turn.named.start;
        while offset < turn.named.end {
            let chunk = table.chunks_holding(&(offset..offset + 1)).start;
            let whole = self.bytes(chunk);
            let original = offset
                ..whole
                    .end
                    .min(turn.named.end)
                    .min(offset.saturating_add(self.step(chunk)));
            if original.is_empty() || self.check_whole(chunk).is_err() {
                break;
            }
            offset = original.end;
            let packed = self.packed_part(chunk, &original);
            let payload = table.compressed_range(chunk).unwrap_or_default();
            let packed = (!distant.is_kept(&packed, &payload)).then_some(packed);
            let Some(group) = &mut group else {
                group = Some(Group { packed, original });
                continue;
            };
            match (&mut group.packed, packed) {
                (None, None) => {}
                (Some(held), Some(packed)) if held.end >= packed.start => {
                    let rest = table.payload_end().saturating_sub(held.start);
                    if packed.end.saturating_sub(held.start) > turn.length(rest) {
                        break;
                    }
                    held.end = packed.end.max(held.end);
                }
                _ => break,
            }
            group.original.end = original.end;
        }
        group
    }

    /// Fetches payloads in one request, and hands the bytes of the original that they are of to the workers when they are there;
    /// `None` if there is no memory for it.
    fn fetch_group(
        self: &Arc<Self>,
        distant: &dyn Distant,
        packed: Range<u64>,
        original: Range<u64>,
    ) -> Option<Arc<Fetched>> {
        let length = usize::try_from(packed.end - packed.start).unwrap_or(usize::MAX);
        let make_room = || self.engine.make_room();
        let budget = self.engine.cache.budget();
        let room = match self.engine.fetches.have_room(length, budget.total()) {
            true => budget.acquire([length], Urgency::Speculation, make_room),
            false => Ok(None),
        };
        let Ok(Some([room])) = room else {
            self.engine.counters.prefetch_refused.add(1);
            return None;
        };
        let fetched = self.engine.fetches.add(length, original.clone());
        let shared = Arc::downgrade(self);
        let held = Arc::downgrade(&fetched);
        let then = move |whole: bool| {
            // Nobody reads the file any more, or the memory was needed.
            let (Some(shared), Some(fetched)) = (shared.upgrade(), held.upgrade()) else {
                return;
            };
            fetched.end();
            if !whole {
                // What is behind may be no better. Whoever comes there asks by himself.
                let given_up = fetched.kept().take();
                drop(given_up);
                return;
            }
            shared.send_ahead(original, Some(&fetched));
            if let Some(distant) = shared.archive.distant() {
                shared.have_fetched_on(distant);
            }
        };
        let kept = distant.fetch(packed, room, Urgency::Speculation, Some(Box::new(then)));
        self.keep(&fetched, kept);
        Some(fetched)
    }

    /// Keeps what is being fetched until somebody needs its memory, and lets who waits for some know.
    fn keep(&self, fetched: &Fetched, kept: Kept) {
        *fetched.kept() = Some(kept);
        self.engine.cache.budget().announce();
    }

    /// Begins to fetch what a read needs of several chunks in one request, if none of it is on its way. It is given up when memory
    /// is short: whoever reads then asks for each by itself.
    pub(super) fn bring_read(&self, range: &Range<u64>) -> Option<Arc<Fetched>> {
        let distant = self.archive.distant()?;
        let table = self.archive.table();
        let mut packed: Option<Range<u64>> = None;
        let mut missing = 0;
        let mut offset = range.start;
        while offset < range.end
            && let Some((unit, bytes)) = self.unit_at(offset)
        {
            offset = bytes.end;
            if unit.piece.is_some() || self.check_whole(unit.chunk).is_err() {
                return None;
            }
            if self.engine.cache.knows(self.key(unit)) {
                continue;
            }
            let payload = table.compressed_range(unit.chunk)?;
            if distant.is_kept(&payload, &payload) {
                continue;
            }
            let start = packed.map_or(payload.start, |packed| packed.start);
            packed = Some(start..payload.end);
            missing += 1;
        }
        let packed = packed.filter(|packed| {
            missing > 1
                && packed.end - packed.start <= LONGEST_FETCH
                && !distant.is_coming(packed.start)
        })?;
        let length = usize::try_from(packed.end - packed.start).ok()?;
        let budget = self.engine.cache.budget();
        let make_room = || self.engine.make_room();
        let room = budget.acquire([length], Urgency::Speculation, make_room);
        let [room] = room.ok().flatten()?;
        let fetched = self.engine.fetches.add(length, range.clone());
        self.keep(&fetched, distant.fetch(packed, room, Urgency::Demand, None));
        Some(fetched)
    }

    /// Begins to fetch what a piece of a large chunk takes, for a decoder that stands at `from`; both in bytes from the chunk's
    /// beginning. What is near, or fits no budget, is read as it is needed.
    pub(super) fn bring_piece(&self, chunk: u32, from: u64, to: u64) -> Option<Kept> {
        let distant = self.archive.distant()?;
        let origin = self.bytes(chunk).start;
        let packed = self.packed_part(chunk, &(origin + from..origin + to));
        let payload = self.archive.table().compressed_range(chunk)?;
        if distant.is_coming(packed.start) || distant.is_kept(&packed, &payload) {
            return None;
        }
        let length = usize::try_from(packed.end - packed.start).ok()?;
        let budget = self.engine.cache.budget();
        let make_room = || self.engine.make_room();
        let room = budget.acquire([length], Urgency::Speculation, make_room);
        let [room] = room.ok().flatten()?;
        Some(distant.fetch(packed, room, Urgency::Demand, None))
    }

    /// How much of a chunk is fetched in one request, in bytes of the original.
    fn step(&self, chunk: u32) -> u64 {
        let packed = self.archive.table().compressed_range(chunk);
        let packed = packed.map_or(0, |packed| packed.end - packed.start);
        let whole = self.bytes(chunk);
        let step = u128::from(whole.end - whole.start) * u128::from(LONGEST_FETCH)
            / u128::from(packed.max(1));
        u64::try_from(step).unwrap_or(u64::MAX / 2).max(LEAST_FETCH)
    }

    /// The part of a chunk's payload that some of its bytes are to be decoded from: all of a short one, and of a long one about as
    /// much as they are of the chunk.
    pub(super) fn packed_part(&self, chunk: u32, original: &Range<u64>) -> Range<u64> {
        let packed = self.archive.table().compressed_range(chunk);
        let packed = packed.unwrap_or_default();
        let whole = self.bytes(chunk);
        let length = packed.end - packed.start;
        if length <= LEAST_FETCH {
            return packed;
        }
        let share = |offset: u64| {
            let part = u128::from(length) * u128::from(offset - whole.start);
            packed.start + (part / u128::from((whole.end - whole.start).max(1))) as u64
        };
        let start = match original.start == whole.start {
            true => packed.start,
            false => share(original.start).saturating_sub(PIECE_SLACK),
        };
        let end = match original.end == whole.end {
            true => packed.end,
            false => share(original.end).saturating_add(PIECE_SLACK),
        };
        start.max(packed.start)..end.min(packed.end)
    }
}

impl Fetched {
    /// So many bytes, of which none is there, for these of the original.
    pub(super) fn new(length: usize, original: Range<u64>) -> Self {
        Self {
            length,
            original,
            kept: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    /// How many bytes it is.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Whether any of these bytes of the original are decoded from it.
    pub(super) fn is_for(&self, range: &Range<u64>) -> bool {
        self.original.start < range.end && range.start < self.original.end
    }

    /// Whether it is under way.
    pub(super) fn is_coming(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    /// Takes notice that all of it has come, or nothing more will.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
