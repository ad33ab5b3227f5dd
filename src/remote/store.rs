//! One store: requests within bounds and deadlines.
//!
//! Whoever asks waits no longer than the deadline, however often it is tried. How many requests may be under way at once, `places`
//! says.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use object_store::list::PaginatedListOptions;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectMeta};

use super::attempts::{Attempts, Trouble};
use super::backend::Backend;
use super::blocks::Blocks;
use super::fault::{Fault, FaultKind};
use super::location::{Location, Protocol};
use super::on_disk::Shelf;
use super::places::{Place, Places};
use super::planned::AllPlanned;
use super::round_trip::RoundTrip;
use super::runtimes::Runtimes;
use super::version::{Listed, Page, Version};
use super::wire::{Connector, odd_names, status};
use crate::disk_cache::DiskCache;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::memory::{Budget, Charge, Urgency};
use crate::occasionally::Occasionally;
use crate::stats::Counters;

/// Which part of the budget is set aside for what describes objects: one in this many bytes, up to [`MOST_ASIDE`].
const ASIDE_PART: u64 = 16;
/// The most that is set aside for it, in bytes: the records of digests of 40 GiB.
const MOST_ASIDE: u64 = 32 << 20;
/// How often it is told that something has to be waited for.
const WAITING_TOLD: Duration = Duration::from_secs(60);
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
    /// Where what is asked for ahead can be given up.
    pub(crate) planned: Arc<AllPlanned>,
    /// Whether somebody looks on who is to be told that there is something to wait for.
    pub(crate) tells: bool,
    /// Another store of the same budget, whose memory for what describes objects it shares.
    pub(crate) beside: Option<Arc<Store>>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            // Longer than a server takes to start again.
            deadline: Duration::from_secs(120),
            disk_cache: None,
            planned: Arc::default(),
            tells: false,
            beside: None,
        }
    }
}

/// See the module's description.
pub(crate) struct Store {
    location: Location,
    runtimes: Runtimes,
    pub(super) backend: Backend,
    deadline: Duration,
    counters: Arc<Counters>,
    budget: Arc<Budget>,
    /// Counts for what the blocks may take.
    aside: Arc<Charge>,
    blocks: Arc<Blocks>,
    disk_cache: Option<Arc<Shelf>>,
    planned: Arc<AllPlanned>,
    places: Places,
    /// Set when the server was found to say of an object what it is only with some of its bytes.
    refuses_heads: AtomicBool,
    /// When to tell that something has to be waited for, if anybody is to be told.
    told: Option<Occasionally>,
    round_trip: RoundTrip,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.location)
    }
}

impl Store {
    /// The store that `location` lies in. Starts threads. `make_room` gives up something that counts against the budget and says
    /// whether there was anything.
    ///
    /// # Errors
    /// What the environment says is not enough to speak to it, or cannot be right.
    pub(crate) fn open(
        location: &Location,
        options: &StoreOptions,
        counters: Arc<Counters>,
        budget: &Arc<Budget>,
        make_room: impl FnMut() -> bool,
    ) -> Result<Arc<Self>> {
        // Whoever came first has chosen; there is nothing to choose between.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connector = Connector {
            counters: Arc::clone(&counters),
            goes_elsewhere: location.protocol() == Protocol::Http,
            machine: Vec::new(),
        };
        let backend = Backend::of(location, connector).map_err(|error| {
            let fault = Fault::of(&error, &Default::default());
            Error::unusable(format!("cannot be asked for: {}", fault.what))
                .in_file(&location.shown())
        })?;
        let (aside, blocks) = match &options.beside {
            Some(other) => (Arc::clone(&other.aside), Arc::clone(&other.blocks)),
            None => {
                let aside = (budget.total() / ASIDE_PART).min(MOST_ASIDE);
                let charge = budget.charge(aside, make_room)?;
                (Arc::new(charge), Arc::new(Blocks::new(aside)))
            }
        };
        Ok(Arc::new(Self {
            location: location.clone(),
            runtimes: Runtimes::start()?,
            backend,
            deadline: options.deadline,
            counters,
            budget: Arc::clone(budget),
            aside,
            blocks,
            round_trip: RoundTrip::default(),
            disk_cache: options
                .disk_cache
                .clone()
                .map(|cache| Arc::new(Shelf::new(cache, budget.total()))),
            planned: Arc::clone(&options.planned),
            places: Places::default(),
            refuses_heads: AtomicBool::new(false),
            told: options.tells.then(|| Occasionally::every(WAITING_TOLD)),
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
        let (store, place) = (self.location.store_name(), &self.backend.place);
        let name = format!("{store}\0{place}\0{key}");
        Identity::of_object(&name, size, etag, modified)
    }

    /// The first `length` bytes of several objects, or all there are of a shorter one, and which version each is. None of them may
    /// be empty. Once the store has not answered for one, those not asked for yet share its fate, and are not waited for.
    pub(crate) fn beginnings(
        &self,
        keys: &[Key],
        length: usize,
    ) -> Vec<io::Result<(Vec<u8>, Version)>> {
        let silence = OnceLock::<Fault>::new();
        let one = async |key| {
            if let Some(fault) = silence.get() {
                return Err(fault.clone());
            }
            let loaded = self.load(key, None, 0..length as u64).await;
            let passing = loaded.as_ref().err();
            if let Some(fault) = passing.filter(|fault| fault.kind == FaultKind::Passing) {
                // Of several, any will do.
                let _ = silence.set(fault.clone());
            }
            loaded
        };
        let all = futures_util::stream::iter(keys.iter().map(one));
        let all = async { Ok(all.buffered(BEGINNINGS).collect::<Vec<_>>().await) };
        match self.runtimes.wait(all) {
            Ok(found) => found
                .into_iter()
                .map(|found: Result<_, Fault>| found.map_err(Fault::into_io))
                .collect(),
            Err(error) => keys.iter().map(|_| Err(error.kind().into())).collect(),
        }
    }

    /// Whether another location lies in it as well.
    pub(crate) fn holds(&self, location: &Location) -> bool {
        self.location.protocol() == location.protocol()
            && self.location.store_name() == location.store_name()
    }

    /// The location it was opened for.
    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// What keeps on a local disk what was read.
    pub(super) fn disk_cache(&self) -> Option<&Arc<Shelf>> {
        self.disk_cache.as_ref()
    }

    /// What an object is now.
    ///
    /// # Errors
    /// There is none, it may not be read, or the store does not answer in time.
    pub(crate) fn head(&self, key: &Key) -> io::Result<Version> {
        self.runtimes.wait(self.ask(key))
    }

    /// As [`Store::head`], for the runtime.
    pub(super) async fn ask(&self, key: &Key) -> Result<Version, Fault> {
        let (_place, attempts) = self.begin().await?;
        let asked = attempts.until_answered(|| async {
            if !self.refuses_heads.load(Ordering::Relaxed) {
                let options = GetOptions {
                    head: true,
                    ..GetOptions::default()
                };
                match self.backend.objects.get_opts(key, options).await {
                    Ok(found) => return Ok(Version::of(found.meta)?),
                    Err(_) if self.may_refuse_heads() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let version = self.get(key, None, 0..1, |_| {}).await?;
            self.refuses_heads.store(true, Ordering::Relaxed);
            Ok(version)
        });
        asked.await
    }

    /// Whether the way in which this task has just asked may be what was refused: a URL is signed for one method, and not every
    /// web server knows all.
    fn may_refuse_heads(&self) -> bool {
        let is_web = self.location.protocol() == Protocol::Http;
        is_web && matches!(status(), Some(401 | 403 | 405 | 501))
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
        self.runtimes.wait(async {
            let (place, attempts) = self.begin().await?;
            let read = self.fetch(&place, attempts, key, meant, range, take);
            read.await
        })
    }

    /// As [`Store::read`], for the runtime: the bytes themselves, and which version they are of.
    pub(super) async fn load(
        &self,
        key: &Key,
        meant: Option<&Version>,
        range: Range<u64>,
    ) -> Result<(Vec<u8>, Version), Fault> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        let take = |at: usize, part: &[u8]| {
            if let Some(room) = bytes.get_mut(at..at + part.len()) {
                room.copy_from_slice(part);
            }
        };
        let loaded = async {
            let (place, attempts) = self.begin().await?;
            let read = self.fetch(&place, attempts, key, meant, range, take);
            read.await
        };
        let (read, version) = self.runtimes.until_closed(loaded).await?;
        bytes.truncate(read);
        Ok((bytes, version))
    }

    /// A place for a request that somebody waits for, whose time begins now: he waits no longer than that for the place and the
    /// answer together.
    async fn begin(&self) -> Result<(Place, Attempts<'_>), Fault> {
        let mut attempts = self.attempts();
        let place = attempts.before(self.places.wait(Urgency::Demand)).await?;
        Ok((place, attempts))
    }

    /// As [`Store::read`], for the runtime: `take` is given the bytes as they come, with their place behind the range's
    /// beginning. Without a version that is meant, it may be given the same place again.
    pub(super) async fn fetch(
        &self,
        _place: &Place,
        mut attempts: Attempts<'_>,
        key: &Key,
        meant: Option<&Version>,
        range: Range<u64>,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<(usize, Version), Fault> {
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
                    // Without a version that is meant, nothing that has come is of use.
                    if let Some(meant) = meant {
                        if done > base && range.start + done as u64 == range.end {
                            // All is here but the end of the answer.
                            return Ok((done, meant.clone()));
                        }
                        if done > base {
                            attempts.went_on((done - base) as u64);
                        }
                        fault.kind = match fault.kind {
                            // It was there when it was opened,
                            FaultKind::NotFound => FaultKind::Changed,
                            // and so were they.
                            FaultKind::NoCredentials => FaultKind::Passing,
                            kind => kind,
                        };
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
        let version = Version::of(found.meta.clone())?;
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

    /// Those who make requests about its objects at once.
    pub(super) fn places(&self) -> &Places {
        &self.places
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
        let (found, left_out) = self.runtimes.wait(self.retrying(|| {
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
            version: Version::listed(meta),
        };
        Ok(Page {
            objects: found.result.objects.into_iter().map(listed).collect(),
            prefixes: found.result.common_prefixes,
            left_out,
            next: found.page_token.filter(|next| !next.is_empty()),
        })
    }

    /// Where its requests are driven and waited for.
    pub(crate) fn runtimes(&self) -> &Runtimes {
        &self.runtimes
    }

    /// What its buffers count against.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// What was asked for ahead.
    pub(super) fn planned(&self) -> &AllPlanned {
        &self.planned
    }

    /// What describes its objects.
    pub(super) fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    /// Makes requests until one of them is answered, or it is no use to go on.
    pub(super) async fn retrying<T, W: Future<Output = Result<T, Trouble>>>(
        &self,
        work: impl FnMut() -> W,
    ) -> Result<T, Fault> {
        self.attempts().until_answered(work).await
    }

    /// Tries, whose time begins now.
    pub(super) fn attempts(&self) -> Attempts<'_> {
        let told = self.told.as_ref();
        Attempts::new(self.deadline, &self.location, &self.counters, told)
    }
}

#[cfg(test)]
mod tests {
    use super::super::runtimes::WAITING_THREADS;
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Instant;

    fn store(url: &str, deadline: Duration) -> Arc<Store> {
        let location = Location::in_word(Path::new(url)).unwrap().unwrap();
        let options = StoreOptions {
            deadline,
            ..StoreOptions::default()
        };
        let budget = Budget::unlimited();
        Store::open(&location, &options, Arc::default(), &budget, || false).unwrap()
    }

    #[test]
    fn nobody_waits_longer_than_the_deadline_behind_others_who_wait() {
        // Whoever connects is never spoken to.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", silent.local_addr().unwrap());
        let deadline = Duration::from_secs(2);
        let store = store(&url, deadline);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 * Places::REQUESTS {
                scope.spawn(|| {
                    let error = store.head(&Key::default()).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
                });
            }
        });
        let took = start.elapsed();
        assert!(took >= deadline && took < 2 * deadline, "{took:?}");
    }

    /// A server that answers whatever it is asked with what `answer` says of a request's number, and closes the connection. Its URL.
    fn server(host: &str, answer: impl Fn(usize) -> Vec<u8> + Send + 'static) -> String {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{host}:{}/x", server.local_addr().unwrap().port());
        std::thread::spawn(move || {
            for (number, client) in server.incoming().enumerate() {
                let mut client = client.unwrap();
                let mut request = BufReader::new(&client).lines();
                while request.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                // Who has heard enough is gone.
                let _ = client.write_all(&answer(number));
            }
        });
        url
    }

    #[test]
    fn a_host_is_looked_up_however_many_wait_for_it() {
        let answer = b"HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let url = server("localhost", |_| answer.to_vec());
        let store = store(&url, Duration::from_secs(5));
        let (tell, told) = mpsc::channel();
        for _ in 0..2 * WAITING_THREADS {
            let (asking, tell) = (Arc::clone(&store), tell.clone());
            store.runtimes.run_waiting(move || {
                let _ = tell.send(asking.head(&Key::default()).map_err(|error| error.kind()));
            });
        }
        drop(tell);
        let mut answers = 0;
        for answer in told {
            assert_eq!(answer.unwrap_err(), io::ErrorKind::NotFound);
            answers += 1;
        }
        assert_eq!(answers, 2 * WAITING_THREADS);
    }

    #[test]
    fn an_answer_that_always_breaks_off_is_asked_for_no_longer_than_the_deadline() {
        const PATIENCE: usize = 20;
        let whole = 128 << 10;
        let url = server("127.0.0.1", move |number| {
            let head = format!(
                "HTTP/1.1 206 Part\r\ncontent-range: bytes 0-{}/{whole}\r\ncontent-length: {whole}\r\n\
                 etag: \"a\"\r\nconnection: close\r\n\r\n",
                whole - 1
            );
            // So that a client who never gives up is found out.
            let sent = if number < PATIENCE { whole / 2 } else { whole };
            [head.into_bytes(), vec![7; sent]].concat()
        });
        let store = store(&url, Duration::from_secs(1));
        let start = Instant::now();
        let read = store.read(&Key::default(), None, 0, &mut vec![0; whole]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(3));
        assert!(store.counters.remote_requests.get() < 8);
    }

    #[test]
    fn bytes_that_have_all_come_are_no_failure_though_the_answer_has_no_end() {
        let url = server("127.0.0.1", |_| {
            b"HTTP/1.1 206 Part\r\ncontent-range: bytes 0-9/10\r\ncontent-length: 20\r\n\
              etag: \"a\"\r\nconnection: close\r\n\r\n0123456789"
                .to_vec()
        });
        let store = store(&url, Duration::from_secs(2));
        let meant = Version {
            size: 10,
            etag: Some("\"a\"".to_owned()),
            modified: SystemTime::UNIX_EPOCH,
        };
        let mut bytes = [0; 10];
        let read = store.read(&Key::default(), Some(&meant), 0, &mut bytes);
        assert_eq!(read.unwrap(), (10, meant));
        assert_eq!(bytes, *b"0123456789");
    }

    #[test]
    fn an_answer_that_comes_a_byte_at_a_time_is_waited_for_where_any_byte_counts() {
        let slow = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", slow.local_addr().unwrap());
        std::thread::spawn(move || {
            for client in slow.incoming() {
                let mut client = client.unwrap();
                let mut request = BufReader::new(&client).lines();
                while request.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let head =
                    b"HTTP/1.1 206 Part\r\ncontent-range: bytes 0-9/10\r\ncontent-length: 10\r\n\
                             etag: \"a\"\r\nconnection: close\r\n\r\n";
                client.write_all(head).unwrap();
                for _ in 0..10 {
                    std::thread::sleep(Duration::from_millis(200));
                    // Who has given up is gone.
                    let _ = client.write_all(b" ");
                }
            }
        });
        let store = store(&url, Duration::from_millis(700));
        let key = Key::default();
        let get = || store.get(&key, None, 0..10, |_| {});
        let patient = store.attempts().by_any_byte().until_answered(get);
        assert!(store.runtimes.wait(patient).is_ok());
        let error = store.runtimes.wait(store.retrying(get)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_answer_that_is_no_part_of_an_object_is_not_read_without_end() {
        let url = server("127.0.0.1", |_| {
            let head = b"HTTP/1.1 200 All\r\ncontent-length: 20000000\r\nconnection: close\r\n\r\n";
            [&head[..], &vec![b' '; 20_000_000]].concat()
        });
        let store = store(&url, Duration::from_secs(20));
        let whole = async || {
            let (objects, key) = (&store.backend.objects, Key::default());
            let found = objects.get_opts(&key, GetOptions::default());
            Ok(found.await?.bytes().await?)
        };
        let error = store.runtimes.wait(store.retrying(whole)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let received = store.counters.remote_bytes_received.get();
        let tries = store.counters.remote_requests.get();
        assert!(received < tries * 5_000_000, "{received} in {tries}");
    }
}
