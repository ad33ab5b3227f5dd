//! One object, as a source of an archive's bytes.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::path::Path as Key;

use super::blocks::{BLOCK_LEN, Found};
use super::fetches::{Ending, Fetches, Guard};
use super::on_disk::OnDisk;
use super::planned::{Planned, planned_len};
use super::store::Store;
use super::version::Version;
use crate::archive::{Distant, Kept, Source, Then};
use crate::identity::Identity;
use crate::memory::{Buffer, Urgency};

/// How many requests for what is read from front to back are under way or unread at once.
const PLANNED: usize = 8;
/// How far behind a reader who goes from front to back something may lie unread that he still comes to, in bytes: others
/// read with him.
const PLAN_SLACK: u64 = 64 << 20;

/// An object of a store, in one version: what was opened is what is read, or nothing.
#[derive(Debug)]
pub(crate) struct Object {
    store: Arc<Store>,
    key: Key,
    version: Version,
    identity: Identity,
    /// Set when the store has another version of it.
    changed: AtomicBool,
    fetches: Arc<Fetches>,
    plan: Mutex<Plan>,
    on_disk: Option<Arc<OnDisk>>,
}

/// What is going to be read from front to back.
#[derive(Debug, Default)]
struct Plan {
    /// What was not asked for yet.
    rest: Range<u64>,
    under_way: Vec<Arc<Planned>>,
}

impl Object {
    /// The object `key` of a store, as it is now. One request, which brings its first bytes as well, unless they may be on a local
    /// disk.
    ///
    /// # Errors
    /// There is none, it may not be read, or the store does not answer in time.
    pub(crate) fn open(store: &Arc<Store>, key: &Key) -> io::Result<Self> {
        if store.disk_cache().is_some() {
            // Its bytes may be here.
            return Ok(Self::listed(store, key, store.head(key)?));
        }
        let mut beginning = vec![0; BLOCK_LEN as usize];
        let (length, version) = store.read(key, None, 0, &mut beginning)?;
        let object = Self::listed(store, key, version);
        let beginning = beginning.get(..length).unwrap_or_default();
        store.blocks().keep(object.identity, 0, beginning);
        Ok(object)
    }

    /// The object as a listing has shown it. No request.
    pub(crate) fn listed(store: &Arc<Store>, key: &Key, version: Version) -> Self {
        let etag = version.etag.as_deref();
        let identity = store.identity(key.as_ref(), version.size, etag, version.modified);
        let disk_cache = store.disk_cache();
        Self {
            on_disk: disk_cache
                .and_then(|cache| OnDisk::of(cache, &identity, &version))
                .map(Arc::new),
            identity,
            store: Arc::clone(store),
            key: key.clone(),
            version,
            changed: AtomicBool::new(false),
            fetches: Arc::default(),
            plan: Mutex::default(),
        }
    }

    /// Takes notice that the object `key` is going to be opened, and that these bytes describe it, if it is what it was when it was
    /// known by `identity`: so they are asked for while it is asked what it is now. What may be on a local disk is not.
    pub(crate) fn expect(store: &Arc<Store>, key: &Key, identity: Identity, bytes: &Range<u64>) {
        if store.disk_cache().is_some() {
            return;
        }
        // Its first bytes come when it is opened.
        let bytes = bytes.start.max(BLOCK_LEN)..bytes.end.min(identity.size);
        for loading in store.blocks().claim(identity, &bytes) {
            let (held, key) = (Arc::clone(store), key.clone());
            // Not on the threads that wait: all of them may come to wait for this.
            store.runtimes().spawn(async move {
                let range = loading.range(identity.size);
                let length = (range.end - range.start) as usize;
                let Ok((bytes, version)) = held.load(&key, None, range).await else {
                    return;
                };
                let etag = version.etag.as_deref();
                let found = held.identity(key.as_ref(), version.size, etag, version.modified);
                if found == identity && length == bytes.len() {
                    loading.land(&bytes);
                }
            });
        }
    }

    /// The store it lies in.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Which version of the object it is.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// The part of a buffer that the object has bytes for, from `offset` on.
    fn within<'a>(&self, buffer: &'a mut [u8], offset: u64) -> &'a mut [u8] {
        let rest = self.version.size.saturating_sub(offset);
        let length = buffer
            .len()
            .min(usize::try_from(rest).unwrap_or(usize::MAX));
        buffer.get_mut(..length).unwrap_or_default()
    }

    /// Reads in one request.
    fn request(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let outcome = self
            .store
            .read(&self.key, Some(&self.version), offset, buffer);
        outcome
            .map(drop)
            .inspect_err(|error| self.note_change(error))
    }

    fn note_change(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::StaleNetworkFileHandle {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    fn begin_fetch(
        &self,
        range: Range<u64>,
        room: Buffer,
        urgency: Urgency,
        then: Option<Then>,
    ) -> Guard {
        let place = self.store.places().at_once(urgency);
        let guard = self.fetches.add(range.clone(), room, place.is_some());
        let ending = Ending::of(guard.fetch(), then);
        let (store, key, version) = (self.store.clone(), self.key.clone(), self.version.clone());
        let task = self.store.runtimes().spawn(async move {
            let place = match place {
                Some(place) => place,
                None => store.places().wait(urgency).await,
            };
            let fetch = ending.fetch();
            fetch.begin();
            let take = |at: usize, bytes: &[u8]| fetch.take(at, bytes);
            let attempts = store.attempts();
            let outcome = store.fetch(&place, attempts, &key, Some(&version), range, take);
            let outcome = outcome.await;
            drop(place);
            match outcome {
                Ok(_) => ending.whole(),
                // A guess had its own time, which may have been a bad one: who needs the bytes asks anew, in his.
                Err(fault) if urgency == Urgency::Speculation && !fault.is_change() => {}
                Err(fault) => fetch.fail(fault),
            }
        });
        guard.breaking_off(task)
    }

    /// Goes on with what is planned, for a reader that has come to `offset`.
    fn go_on(&self, offset: u64) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        if plan.under_way.is_empty() && plan.rest.is_empty() {
            return;
        }
        plan.under_way
            .retain(|fetch| !fetch.is_done(offset, PLAN_SLACK));
        let budget = self.store.budget();
        while plan.under_way.len() < PLANNED && !plan.rest.is_empty() {
            let length = planned_len(budget.total());
            let end = plan.rest.end.min(plan.rest.start.saturating_add(length));
            let range = plan.rest.start..end;
            let length = range.end - range.start;
            let Some(planned) = self.store.planned().place(length, budget.total()) else {
                break;
            };
            let length = length as usize;
            let Ok(Some([room])) = budget.acquire([length], Urgency::Speculation, || false) else {
                break;
            };
            plan.rest.start = end;
            // Somebody is going to wait for it.
            let fetch = self.begin_fetch(range, room, Urgency::Demand, None);
            planned.hold(fetch, budget);
            plan.under_way.push(planned);
        }
    }
}

impl Object {
    /// Reads what has to come by the network, and may have been asked for already.
    fn read_far(&self, wanted: &mut [u8], offset: u64) -> io::Result<usize> {
        self.go_on(offset);
        let mut done = 0;
        while let Some(rest) = wanted.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let place = offset + done as u64;
            let next = match self.fetches.holding(place) {
                Ok(fetch) => match fetch.read(rest, place) {
                    Ok(Some(read)) => {
                        done += read;
                        continue;
                    }
                    Ok(None) => u64::MAX,
                    Err(error) => {
                        self.note_change(&error);
                        return Err(error);
                    }
                },
                Err(next) => next,
            };
            let length = (next - place).min(rest.len() as u64) as usize;
            self.request(rest.get_mut(..length).unwrap_or_default(), place)?;
            done += length;
        }
        Ok(done)
    }

    /// Reads blocks that describe the object, from a block's beginning on.
    fn read_blocks(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let on_disk = self.on_disk.as_ref();
        if on_disk.is_some_and(|on_disk| on_disk.read_blocks(buffer, offset)) {
            return Ok(());
        }
        let read = self
            .store
            .read(&self.key, Some(&self.version), offset, buffer);
        read.inspect_err(|error| self.note_change(error))?;
        if let Some(on_disk) = on_disk {
            on_disk.keep_blocks(buffer, offset);
        }
        Ok(())
    }
}

impl Source for Object {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let wanted = self.within(buffer, offset);
        let Some(on_disk) = self.on_disk.as_ref().filter(|_| !wanted.is_empty()) else {
            return self.read_far(wanted, offset);
        };
        if !on_disk.read(wanted, offset) {
            self.read_far(wanted, offset)?;
            on_disk.keep(wanted, offset);
        }
        Ok(wanted.len())
    }

    fn read_part(&self, buffer: &mut [u8], offset: u64, whole: &Range<u64>) -> io::Result<usize> {
        let wanted = self.within(buffer, offset);
        let Some(on_disk) = &self.on_disk else {
            return self.read_far(wanted, offset);
        };
        let mut done = 0;
        while let Some(rest) = wanted.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let (there, missing) = on_disk.read_parts(rest, offset + done as u64, whole);
            done += there;
            if missing == 0 {
                break;
            }
            let room = wanted.get_mut(done..done + missing).unwrap_or_default();
            let place = offset + done as u64;
            if !on_disk.read_bit(room, place) {
                self.read_far(room, place)?;
                on_disk.keep_parts(room, place, whole);
            }
            done += missing;
        }
        Ok(done)
    }

    fn doubt(&self, payload: Option<&Range<u64>>) {
        if payload.is_none() {
            self.store.blocks().forget(self.identity);
        }
        match (&self.on_disk, payload) {
            (Some(on_disk), Some(payload)) => on_disk.forget(payload),
            (Some(on_disk), None) => on_disk.forget_description(self.version.size),
            (None, _) => {}
        }
    }

    fn read_description(&self, buffer: &mut [u8], offset: u64, until: u64) -> io::Result<usize> {
        let until = until.min(self.version.size);
        let wanted = self.within(buffer, offset);
        let mut done = 0;
        while let Some(rest) = wanted.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let place = offset + done as u64;
            let end = until.max(place + rest.len() as u64);
            let block = match self.store.blocks().find(self.identity, place, end) {
                Found::Held(block) => block,
                Found::Missing(loading) => {
                    let range = loading.range(self.version.size);
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    self.read_blocks(&mut bytes, range.start)?;
                    loading.land(&bytes);
                    bytes.into()
                }
            };
            let skip = (place % BLOCK_LEN) as usize;
            let there = block.get(skip..).unwrap_or_default();
            let length = there.len().min(rest.len());
            if length == 0 {
                break;
            }
            if let Some((room, there)) = rest.get_mut(..length).zip(there.get(..length)) {
                room.copy_from_slice(there);
            }
            done += length;
        }
        Ok(done)
    }

    fn expect_description(&self, range: Range<u64>) {
        let range = range.start..range.end.min(self.version.size);
        for loading in self.store.blocks().claim(self.identity, &range) {
            let range = loading.range(self.version.size);
            let (store, key, version) =
                (self.store.clone(), self.key.clone(), self.version.clone());
            let on_disk = self.on_disk.clone();
            // Not on the threads that wait: all of them may come to wait for this.
            self.store.runtimes().spawn(async move {
                let (start, length) = (range.start, (range.end - range.start) as usize);
                if let Some(on_disk) = on_disk.clone() {
                    // The network's threads wait for no disk.
                    let found = tokio::task::spawn_blocking(move || {
                        let mut bytes = vec![0; length];
                        on_disk.read_blocks(&mut bytes, start).then_some(bytes)
                    });
                    if let Ok(Some(bytes)) = found.await {
                        return loading.land(&bytes);
                    }
                }
                // Whoever needs it asks again, and is told what is wrong.
                if let Ok((bytes, _)) = store.load(&key, Some(&version), range).await {
                    if let Some(on_disk) = on_disk {
                        on_disk.keep_blocks(&bytes, start);
                    }
                    loading.land(&bytes);
                }
            });
        }
    }

    fn identity(&self) -> io::Result<Identity> {
        match self.changed.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StaleNetworkFileHandle.into()),
            false => Ok(self.identity),
        }
    }

    fn distant(&self) -> Option<&dyn Distant> {
        Some(self)
    }
}

impl Distant for Object {
    fn fetch(&self, range: Range<u64>, room: Buffer, urgency: Urgency, then: Option<Then>) -> Kept {
        Kept(Box::new(self.begin_fetch(range, room, urgency, then)))
    }

    fn is_kept(&self, wanted: &Range<u64>, whole: &Range<u64>) -> bool {
        let on_disk = self.on_disk.as_ref();
        on_disk.is_some_and(|on_disk| on_disk.has(wanted, whole))
    }

    fn run_waiting(&self, work: Box<dyn FnOnce() + Send>) {
        match self.on_disk {
            Some(_) => self.store.runtimes().run_waiting(work),
            // There is nothing to wait for.
            None => work(),
        }
    }

    fn round_trip(&self) -> Duration {
        self.store.round_trip()
    }

    fn is_coming(&self, offset: u64) -> bool {
        self.fetches.holding(offset).is_ok()
    }

    fn expect(&self, range: Range<u64>) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        plan.rest = range.start..range.end.min(self.version.size);
        let given_up = std::mem::take(&mut plan.under_way);
        let start = plan.rest.start;
        drop(plan);
        drop(given_up);
        self.go_on(start);
    }
}
