//! One store: requests within bounds and deadlines, and in an async runtime of its own.
//!
//! Whoever asks waits on a thread of their own, and no longer than the deadline, however often it is tried. Requests that
//! somebody waits for may all be under way at once; those that are a guess share some of the places, so that a reader never
//! stands behind speculation.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use object_store::list::PaginatedListOptions;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectMeta};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;

use super::attempts::{Attempts, Trouble};
use super::backend::Backend;
use super::blocks::Blocks;
use super::fault::{Fault, FaultKind};
use super::location::Location;
use super::on_disk::Shelf;
use super::round_trip::RoundTrip;
use super::version::{Listed, Page, Version};
use super::wire::{Connector, odd_names};
use crate::disk_cache::DiskCache;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::memory::{Budget, Charge, Urgency};
use crate::stats::Counters;

/// How many threads drive the requests: they copy bytes and decrypt them.
const RUNTIME_THREADS: usize = 2;
/// How many threads may wait for it.
const WAITING_THREADS: usize = 256;
/// How many requests about objects may be under way at once.
const REQUESTS: usize = 64;
/// How many of those may be guesses.
const GUESSES: usize = 32;
/// Which part of the budget is set aside for what describes objects: one in this many bytes, up to [`MOST_ASIDE`].
const ASIDE_PART: u64 = 16;
/// The most that is set aside for it, in bytes: the records of digests of 40 GiB.
const MOST_ASIDE: u64 = 32 << 20;
/// How many objects' beginnings are asked for at once.
const BEGINNINGS: usize = 32;
/// How many entries a page of a listing has at most.
const PAGE_LEN: usize = 1000;

/// How a [`Store`] is used.
#[derive(Debug, Clone)]
pub(crate) struct StoreOptions {
    /// How long whoever asks for something waits for it, tries and all.
    pub(crate) deadline: Duration,
    /// Where to keep what was read.
    pub(crate) disk_cache: Option<Arc<DiskCache>>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            // Longer than a server takes to start again.
            deadline: Duration::from_secs(120),
            disk_cache: None,
        }
    }
}

/// See the module's description.
pub(crate) struct Store {
    location: Location,
    /// `Some` until it is dropped.
    runtime: Option<Runtime>,
    pub(super) backend: Backend,
    deadline: Duration,
    counters: Arc<Counters>,
    budget: Arc<Budget>,
    /// Counts for what the blocks may take.
    _aside: Charge,
    blocks: Arc<Blocks>,
    disk_cache: Option<Arc<Shelf>>,
    requests: Arc<Semaphore>,
    guesses: Arc<Semaphore>,
    round_trip: RoundTrip,
    closed: watch::Sender<bool>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.location)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Requests under way may never end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Store {
    /// The store that `location` lies in. Starts threads.
    ///
    /// # Errors
    /// What the environment says is not enough to speak to it, or cannot be right.
    pub(crate) fn open(
        location: &Location,
        options: &StoreOptions,
        counters: Arc<Counters>,
        budget: &Arc<Budget>,
    ) -> Result<Arc<Self>> {
        let aside = (budget.total() / ASIDE_PART).min(MOST_ASIDE);
        // Whoever came first has chosen; there is nothing to choose between.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connector = Connector {
            counters: Arc::clone(&counters),
        };
        let backend = Backend::of(location, connector).map_err(|error| {
            let fault = Fault::of(&error, &Default::default());
            Error::unusable(format!("cannot be asked for: {}", fault.what))
                .in_file(&location.shown())
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .max_blocking_threads(WAITING_THREADS)
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(|error| Error::io("cannot start a thread", error))?;
        Ok(Arc::new(Self {
            location: location.clone(),
            runtime: Some(runtime),
            backend,
            deadline: options.deadline,
            counters,
            budget: Arc::clone(budget),
            _aside: budget.charge(aside, &|| false)?,
            blocks: Arc::new(Blocks::new(aside)),
            round_trip: RoundTrip::default(),
            disk_cache: options
                .disk_cache
                .clone()
                .map(|cache| Arc::new(Shelf::new(cache, budget.total()))),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            guesses: Arc::new(Semaphore::new(GUESSES)),
            closed: watch::Sender::new(false),
        }))
    }

    /// What the state of an object is known by.
    pub(crate) fn identity(
        &self,
        key: &str,
        size: u64,
        etag: Option<&str>,
        modified: SystemTime,
    ) -> Identity {
        let url = format!("{}\0{key}", self.location.store_name());
        Identity::of_object(&url, size, etag, modified)
    }

    /// The first `length` bytes of several objects, or all there are of a shorter one, and which version each is. None of them may
    /// be empty.
    pub(crate) fn beginnings(
        &self,
        keys: &[Key],
        length: usize,
    ) -> Vec<io::Result<(Vec<u8>, Version)>> {
        let one = |key| async move {
            let mut bytes = vec![0; length];
            let take = |at: usize, part: &[u8]| {
                if let Some(room) = bytes.get_mut(at..at + part.len()) {
                    room.copy_from_slice(part);
                }
            };
            let range = 0..length as u64;
            let place = self.place(Urgency::Demand).await;
            let (read, version) = self.fetch(&place, key, None, range, take).await?;
            bytes.truncate(read);
            Ok((bytes, version))
        };
        let all = futures_util::stream::iter(keys.iter().map(one));
        let all = async { Ok(all.buffered(BEGINNINGS).collect::<Vec<_>>().await) };
        match self.wait(all) {
            Ok(found) => found
                .into_iter()
                .map(|found: Result<_, Fault>| found.map_err(Fault::into_io))
                .collect(),
            Err(error) => keys.iter().map(|_| Err(error.kind().into())).collect(),
        }
    }

    /// The location it was opened for.
    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// What keeps on a local disk what was read.
    pub(super) fn disk_cache(&self) -> Option<&Arc<Shelf>> {
        self.disk_cache.as_ref()
    }

    /// Ends all waiting, now and later, with an error.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// What an object is now.
    ///
    /// # Errors
    /// There is none, it may not be read, or the store does not answer in time.
    pub(crate) fn head(&self, key: &Key) -> io::Result<Version> {
        self.wait(async {
            let _place = self.place(Urgency::Demand).await;
            let asked = self.retrying(|| async {
                let options = GetOptions {
                    head: true,
                    ..GetOptions::default()
                };
                let found = self.backend.objects.get_opts(key, options).await?;
                Ok(Version::of(found.meta))
            });
            asked.await
        })
    }

    /// Reads the bytes of an object at `offset` into `buffer`, in one request unless that fails. It must be the version that is
    /// `meant`, and reach to the buffer's end; without one, whatever is there is read. Says how much,
    /// and of which version.
    ///
    /// # Errors
    /// The object is another by now ([`io::ErrorKind::StaleNetworkFileHandle`]), or cannot be read in time.
    pub(crate) fn read(
        &self,
        key: &Key,
        meant: Option<&Version>,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<(usize, Version)> {
        let range = offset..offset.saturating_add(buffer.len() as u64);
        let take = |at: usize, bytes: &[u8]| {
            if let Some(room) = buffer.get_mut(at..at + bytes.len()) {
                room.copy_from_slice(bytes);
            }
        };
        self.wait(async {
            let place = self.place(Urgency::Demand).await;
            self.fetch(&place, key, meant, range, take).await
        })
    }

    /// A place among the requests that may be under way, if there is one now.
    pub(super) fn place_at_once(&self, urgency: Urgency) -> Option<Place> {
        let guess = match urgency {
            Urgency::Speculation => Some(self.guesses.clone().try_acquire_owned().ok()?),
            Urgency::Demand => None,
        };
        Some(Place {
            _guess: guess,
            _request: Some(self.requests.clone().try_acquire_owned().ok()?),
        })
    }

    /// A place among the requests that may be under way, when there is one.
    pub(super) async fn place(&self, urgency: Urgency) -> Place {
        let guess = match urgency {
            Urgency::Speculation => self.guesses.clone().acquire_owned().await.ok(),
            Urgency::Demand => None,
        };
        Place {
            _guess: guess,
            _request: self.requests.clone().acquire_owned().await.ok(),
        }
    }

    /// As [`Store::read`], for the runtime: `take` is given the bytes as they come, with their place behind the range's
    /// beginning. Without a version that is meant, it may be given the same place again.
    pub(super) async fn fetch(
        &self,
        _place: &Place,
        key: &Key,
        meant: Option<&Version>,
        range: Range<u64>,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<(usize, Version), Fault> {
        let mut attempts = self.attempts();
        let mut done = 0;
        loop {
            if meant.is_none() {
                // What comes now may be another object.
                done = 0;
            }
            let rest = range.start + done as u64..range.end;
            let base = done;
            let work = self.get(key, meant, rest, |bytes| {
                take(done, bytes);
                done += bytes.len();
            });
            let outcome = attempts.once(work).await;
            match outcome {
                Ok(version) => return Ok((done, version)),
                Err(mut fault) => {
                    if done > base {
                        attempts.went_on((done - base) as u64);
                    }
                    if meant.is_some() && fault.kind == FaultKind::NotFound {
                        // It was there when it was opened.
                        fault.kind = FaultKind::Changed;
                    }
                    attempts.pause(fault).await?;
                }
            }
        }
    }

    /// One request for a part of an object.
    async fn get(
        &self,
        key: &Key,
        meant: Option<&Version>,
        range: Range<u64>,
        mut take: impl FnMut(&[u8]),
    ) -> Result<Version, Trouble> {
        let mut options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        if let Some(meant) = meant {
            meant.require(&mut options);
        }
        let began = Instant::now();
        let found = self.backend.objects.get_opts(key, options).await?;
        self.round_trip.note(began.elapsed());
        let version = Version::of(found.meta.clone());
        if meant.is_some_and(|meant| !meant.is_same(&version)) {
            let what = "the object is another by now";
            return Err(Fault::new(FaultKind::Changed, what).into());
        }
        let promised = range.start..range.end.min(version.size);
        if found.range != promised || meant.is_some() && promised != range {
            let what = "the server sent another part than it was asked for";
            return Err(Fault::new(FaultKind::Garbled, what).into());
        }
        let mut left = promised.end - promised.start;
        let mut body = found.into_stream();
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            let Some(rest) = left.checked_sub(bytes.len() as u64) else {
                let what = "the server sent more than it was asked for";
                return Err(Fault::new(FaultKind::Garbled, what).into());
            };
            take(&bytes);
            left = rest;
        }
        match left {
            0 => Ok(version),
            _ => {
                let what = "the server sent less than it was asked for";
                Err(Fault::new(FaultKind::Garbled, what).into())
            }
        }
    }

    /// How long it takes until an answer begins to come; no time at all if nobody has asked yet.
    pub(super) fn round_trip(&self) -> Duration {
        self.round_trip.get()
    }

    /// One page of the names that begin with `beginning`, up to their next slash: the first page, or the one that `next` of the
    /// page before it names.
    ///
    /// # Errors
    /// The store cannot list, or does not answer in time.
    pub(crate) fn list(&self, beginning: &str, next: Option<&str>) -> io::Result<Page> {
        let unable = || Fault::new(FaultKind::Unable, "a web server cannot say what it holds");
        let pages = self.backend.pages.as_ref().ok_or_else(unable);
        let pages = pages.map_err(Fault::into_io)?;
        let beginning = Some(beginning).filter(|beginning| !beginning.is_empty());
        let (found, left_out) = self.wait(self.retrying(|| {
            let options = PaginatedListOptions {
                delimiter: Some("/".into()),
                max_keys: Some(PAGE_LEN),
                page_token: next.map(str::to_owned),
                ..PaginatedListOptions::default()
            };
            async {
                let found = pages.list_paginated(beginning, options).await?;
                Ok((found, odd_names()))
            }
        }))?;
        let listed = |meta: ObjectMeta| Listed {
            key: meta.location.clone(),
            version: Version::of(meta),
        };
        Ok(Page {
            objects: found.result.objects.into_iter().map(listed).collect(),
            prefixes: found.result.common_prefixes,
            left_out,
            next: found.page_token.filter(|next| !next.is_empty()),
        })
    }

    /// Waits for something, but no longer than until the store is closed.
    pub(super) fn wait<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> io::Result<T> {
        let closed = || Fault::new(FaultKind::Unable, "the mount is ending").into_io();
        let runtime = self.runtime.as_ref().ok_or_else(closed)?;
        runtime.block_on(async {
            let mut end = self.closed.subscribe();
            let end = pin!(end.wait_for(|closed| *closed));
            match select(pin!(work), end).await {
                Either::Left((outcome, _)) => outcome.map_err(Fault::into_io),
                Either::Right(_) => Err(closed()),
            }
        })
    }

    /// Does something in the runtime, which nobody waits for.
    pub(super) fn spawn(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Option<AbortHandle> {
        let runtime = self.runtime.as_ref()?;
        Some(runtime.spawn(work).abort_handle())
    }

    /// What its buffers count against.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// What describes its objects.
    pub(super) fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    /// Does something that may wait for this store, on a thread of its own.
    pub(crate) fn run_waiting(&self, work: impl FnOnce() + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn_blocking(work);
        }
    }

    /// Does something after a while, which must not wait for anything.
    pub(crate) fn run_later(&self, delay: Duration, work: impl FnOnce() + Send + 'static) {
        self.spawn(async move {
            tokio::time::sleep(delay).await;
            work();
        });
    }

    /// Makes requests until one of them is answered, or it is no use to go on.
    pub(super) async fn retrying<T, W: Future<Output = Result<T, Trouble>>>(
        &self,
        mut work: impl FnMut() -> W,
    ) -> Result<T, Fault> {
        let mut attempts = self.attempts();
        loop {
            match attempts.once(work()).await {
                Ok(done) => return Ok(done),
                Err(fault) => attempts.pause(fault).await?,
            }
        }
    }

    fn attempts(&self) -> Attempts<'_> {
        Attempts::new(self.deadline, &self.location, &self.counters)
    }
}

/// A place among the requests that may be under way at once.
#[derive(Debug)]
pub(super) struct Place {
    _guess: Option<OwnedSemaphorePermit>,
    _request: Option<OwnedSemaphorePermit>,
}
