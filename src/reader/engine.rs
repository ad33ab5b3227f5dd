//! What all readers of one mount, or of one program, share: the cache and its budget, the worker threads that decode
//! ahead, and the contents of files that were open lately.

use std::fs::File;
use std::path::Path;
#[cfg(feature = "remote")]
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
#[cfg(feature = "remote")]
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Reader;
use super::distant::AllFetched;
use super::helpers::AtWork;
use super::shelf::Shelf;
use super::streams::Streams;
use crate::archive::{Archive, Conditions, Contents, Cut, OneCall, Source, Verify};
use crate::cache::Cache;
#[cfg(feature = "remote")]
use crate::disk_cache::DiskCache;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::identity::Identity;
use crate::job::thread_count;
#[cfg(feature = "remote")]
use crate::memory::Charge;
use crate::memory::{Budget, Buffer, Room, Urgency, default_budget};
use crate::occasionally::Occasionally;
#[cfg(feature = "remote")]
use crate::remote::{AllPlanned, Location, Object, Store, StoreOptions};
use crate::stats::{Counters, Stats};
#[cfg(feature = "remote")]
use crate::sync::Mutex;
use crate::sync::Workers;

/// Which part of the budget the contents of files that nobody has open may take: one in this many bytes.
const REMEMBERED_PART: u64 = 16;
/// How far ahead of a sequential reader chunks are decoded at most by default, in bytes; or the length of
/// [`CHUNKS_AHEAD`] chunks, if that is more.
const DEFAULT_PREFETCH: u64 = 16 << 20;
/// Most chunks are decoded by one thread from front to back, so a reader of large ones only has several threads work for it if
/// they are sent more than one chunk ahead.
const CHUNKS_AHEAD: u64 = 2;
/// Which part of the budget one reader's window may take by default: one in this many bytes.
const PREFETCH_PART: u64 = 4;

/// How often the log is told of reads that failed and may not fail again: a dying disk fails thousands in a second.
const FAILURES_TOLD: Duration = Duration::from_secs(1);

/// How an [`Engine`] is made.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The budget of all that grows with use, in bytes. By default the smaller of 512 MiB and an eighth of the memory
    /// this process may use.
    pub cache_size: u64,
    /// How many threads decode ahead; at least one. By default as many as there are processors.
    pub threads: usize,
    /// How far ahead of each sequential stream is decoded at most, in bytes; 0 for not at all. By default 16 MiB, or two
    /// chunks if that is more, but no more than a quarter of the budget.
    pub prefetch: Option<u64>,
    /// How decoded bytes are checked.
    pub verify: Verify,
    /// Where to keep what was read of files beyond this machine, if anywhere.
    #[cfg(feature = "remote")]
    pub disk_cache: Option<DiskCacheOptions>,
}

/// A directory of a local disk that compressed chunks of files beyond this machine are kept in. It outlives the engine, and many
/// processes may share it.
#[cfg(feature = "remote")]
#[derive(Debug, Clone)]
pub struct DiskCacheOptions {
    /// The directory; made if it is not there. It must belong to the user of this process, and others must not be allowed to
    /// write to it.
    pub directory: PathBuf,
    /// How much room to take on the disk at most, in bytes, 16 MiB or more. By default 10 GiB, but no more than a tenth of the
    /// file system.
    pub size: Option<u64>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            cache_size: default_budget(),
            threads: thread_count(None),
            prefetch: None,
            verify: Verify::default(),
            #[cfg(feature = "remote")]
            disk_cache: None,
        }
    }
}

/// What readers share: a cache of decoded chunks under one budget, and the threads that decode ahead. One for all files of a
/// program bounds its memory.
///
/// ```
/// use warpfs::{Engine, EngineOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::new(&EngineOptions { cache_size: 32 << 20, ..EngineOptions::default() })?;
/// let texts = engine.open("tests/data/v2-lz4-xxh64.warp")?;
/// let others = engine.open("tests/data/v2-snappy-none.warp")?;
/// let mut bytes = vec![0; 4096];
/// std::thread::scope(|scope| {
///     scope.spawn(|| texts.read_at(&mut [0; 100], 5_000));
///     others.read_at(&mut bytes, 10)
/// })?;
/// assert!(engine.stats().memory_used <= 32 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine {
    pub(super) cache: Cache,
    pub(super) counters: Arc<Counters>,
    pub(super) workers: Workers,
    /// How many of those can be at work at once: there may be more than processors.
    pub(super) at_once: usize,
    /// Threads that answer a read.
    pub(super) answering: AtWork,
    /// Workers that have something to do.
    pub(super) working: AtWork,
    pub(super) streams: Streams,
    pub(super) fetches: AllFetched,
    /// What was asked for ahead of readers of objects as they are.
    #[cfg(feature = "remote")]
    planned: Arc<AllPlanned>,
    /// Those that objects were opened in by their URLs.
    #[cfg(feature = "remote")]
    stores: Mutex<Vec<Weak<Store>>>,
    /// With what it may use of the budget.
    #[cfg(feature = "remote")]
    disk_cache: Option<(Arc<DiskCache>, Charge)>,
    /// Which chunks are decoded by one call.
    pub(super) one_call: OneCall,
    /// When to tell of failures that may pass.
    pub(super) failures: Occasionally,
    prefetch: Option<u64>,
    verify: Verify,
    shelf: Shelf,
    started: Instant,
}

impl Engine {
    /// An engine with its own cache, budget and threads.
    ///
    /// # Errors
    /// The threads cannot be started, or the disk cache's directory cannot be used.
    pub fn new(options: &EngineOptions) -> Result<Arc<Self>> {
        let counters = Arc::<Counters>::default();
        let budget = Budget::new(options.cache_size);
        #[cfg(feature = "remote")]
        let disk_cache = match &options.disk_cache {
            Some(wanted) => {
                let memory = DiskCache::memory_of(options.cache_size);
                let counters = Arc::clone(&counters);
                let cache = DiskCache::open(&wanted.directory, wanted.size, memory, counters)?;
                // What is put together for it takes some more.
                let memory = memory + memory / 8;
                Some((Arc::new(cache), budget.charge(memory, || false)?))
            }
            None => None,
        };
        Ok(Arc::new(Self {
            cache: Cache::new(budget, Arc::clone(&counters)),
            answering: AtWork::default(),
            working: AtWork::default(),
            streams: Streams::new(options.cache_size / 2),
            fetches: AllFetched::default(),
            #[cfg(feature = "remote")]
            planned: Arc::default(),
            #[cfg(feature = "remote")]
            stores: Mutex::new(Vec::new()),
            #[cfg(feature = "remote")]
            disk_cache,
            one_call: OneCall::under(options.cache_size),
            counters,
            workers: Workers::start(options.threads)?,
            at_once: options.threads.min(thread_count(None)),
            failures: Occasionally::every(FAILURES_TOLD),
            prefetch: options.prefetch,
            verify: options.verify,
            shelf: Shelf::new(options.cache_size / REMEMBERED_PART),
            started: Instant::now(),
        }))
    }

    /// Opens a `.warp` file for reading its original bytes; or, with the feature `remote`, the object that a URL names.
    ///
    /// # Errors
    /// The system's, or those of a file that is not what it should be. A file that was cut short is opened: reads of
    /// what is gone fail.
    ///
    /// # Panics
    /// Of a URL, where an async runtime runs the calling thread, as reads of it do there: they wait. Call them on a thread that may
    /// (`spawn_blocking`).
    pub fn open(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Reader> {
        let path = path.as_ref();
        #[cfg(feature = "remote")]
        if let Some(location) = Location::in_word(path)? {
            let shown = location.shown();
            let store = self.store_of(&location)?;
            let object = Object::open(&store, location.key()).context("cannot open", &shown)?;
            let identity = object.identity().context("cannot examine", &shown)?;
            return self.open_source(&shown, Box::new(object), identity);
        }
        let file = File::open(path).context("cannot open", path)?;
        let identity = file.identity().context("cannot examine", path)?;
        self.open_source(path, Box::new(file), identity)
    }

    /// The store that a location lies in: one that is in use, or another.
    #[cfg(feature = "remote")]
    fn store_of(&self, location: &Location) -> Result<Arc<Store>> {
        let in_use: Vec<_> = {
            let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
            stores.retain(|store| store.strong_count() > 0);
            stores.iter().filter_map(Weak::upgrade).collect()
        };
        if let Some(store) = in_use.iter().find(|store| store.holds(location)) {
            return Ok(Arc::clone(store));
        }
        let options = StoreOptions {
            disk_cache: self.disk_cache(),
            planned: self.planned(),
            beside: in_use.into_iter().next(),
            ..StoreOptions::default()
        };
        let counters = self.shared_counters();
        let make_room = || self.make_room();
        let store = Store::open(location, &options, counters, self.budget(), make_room)?;
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.push(Arc::downgrade(&store));
        Ok(store)
    }

    /// As [`Engine::open`], for a source that is open already; `path` is its name for messages.
    pub(crate) fn open_source(
        self: &Arc<Self>,
        path: &Path,
        source: Box<dyn Source>,
        identity: Identity,
    ) -> Result<Reader> {
        let contents = match self.shelf.find(&identity) {
            Some(contents) => contents,
            None => {
                // Who cannot come by it at a store would keep the others waiting for as long as each of them tries.
                let is_near = source.distant().is_none();
                let _reading = is_near.then(|| self.shelf.begin_reading(identity));
                match self.shelf.find(&identity) {
                    Some(contents) => contents,
                    None => self.read_contents(path, &*source, identity)?,
                }
            }
        };
        let archive = Archive::new(path, source, contents);
        Ok(Reader::new(Arc::clone(self), archive))
    }

    /// Reads the contents of a source and puts them on the shelf.
    fn read_contents(
        &self,
        path: &Path,
        source: &dyn Source,
        identity: Identity,
    ) -> Result<Arc<Contents>> {
        let budget = self.cache.budget();
        let read = || {
            let conditions = Conditions {
                cut: Cut::Accept,
                verify: self.verify,
                budget,
                make_room: &|| self.make_room(),
                cancelled: &AtomicBool::new(false),
            };
            let contents = Contents::read(source, path, &conditions);
            contents.inspect_err(|_| source.doubt(None))
        };
        let contents = match read() {
            // What is more than the whole budget gets no room by that.
            Err(error) if matches!(error.kind(), ErrorKind::OverBudget { needed, budget } if needed <= budget) =>
            {
                self.shelf.clear();
                read()
            }
            other => other,
        };
        let contents = contents
            .and_then(|contents| match contents.identity == identity {
                true => Ok(contents),
                // Changed since the caller looked, who would take the one for the other.
                false => Err(ErrorKind::Changed.into()),
            })
            .map_err(|error| error.in_file(path));
        let contents = contents.inspect_err(|error| self.report(error, &identity))?;
        Ok(self.shelf.put(contents))
    }

    /// How far ahead of a sequential reader of a file with such chunks to decode, in bytes.
    /// A source that is far away is asked for as much as its reader is found to need.
    pub(super) fn prefetch_limit(&self, chunk_len: u64, distant: bool) -> u64 {
        let most = self.cache.budget().total() / PREFETCH_PART;
        self.prefetch.unwrap_or(match distant {
            true => most,
            false => DEFAULT_PREFETCH
                .max(chunk_len.saturating_mul(CHUNKS_AHEAD))
                .min(most),
        })
    }

    /// Tells the log of a read of a plain file that failed, though not of each one.
    #[cfg(feature = "fuse")]
    pub(crate) fn tell_of_failure(&self, error: &Error) {
        if self.failures.is_due() {
            tracing::warn!("{error}");
        }
    }

    /// As [`Budget::acquire_beside`], of memory that readers decode with. Demand that tables leave no room for has those given up of
    /// files that nobody has open.
    ///
    /// # Errors
    /// As there.
    pub(super) fn acquire<const N: usize>(
        &self,
        lengths: [usize; N],
        beside: u64,
        urgency: Urgency,
    ) -> Result<Option<([Buffer; N], Room)>> {
        let budget = self.cache.budget();
        let acquire = || budget.acquire_beside(lengths, beside, urgency, || self.make_room());
        match acquire() {
            // What is more than the whole budget gets no room by that.
            Err(error) if matches!(error.kind(), ErrorKind::OverBudget { needed, budget } if needed <= budget) =>
            {
                self.shelf.clear();
                acquire()
            }
            other => other,
        }
    }

    /// Gives up something that counts against the budget; says whether there was anything.
    pub(crate) fn make_room(&self) -> bool {
        let made = self.cache.evict_one() || self.streams.evict_one() || self.fetches.give_one_up();
        #[cfg(feature = "remote")]
        let made = made || self.planned.give_one_up();
        made
    }

    /// What was asked for ahead of readers of objects as they are, and can be given up.
    #[cfg(feature = "remote")]
    pub(crate) fn planned(&self) -> Arc<AllPlanned> {
        Arc::clone(&self.planned)
    }

    /// What to count reads in.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// As [`Engine::counters`], to be kept.
    #[cfg(feature = "remote")]
    pub(crate) fn shared_counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Where what is far away is kept nearby.
    #[cfg(feature = "remote")]
    pub(crate) fn disk_cache(&self) -> Option<Arc<DiskCache>> {
        let cache = self.disk_cache.as_ref();
        cache.map(|(cache, _)| Arc::clone(cache))
    }

    /// What counts all that grows with use.
    #[cfg(feature = "remote")]
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        self.cache.budget()
    }

    /// What has been done so far.
    pub fn stats(&self) -> Stats {
        let budget = self.cache.budget();
        let used = budget.used();
        let idle = budget.spare() + self.cache.idle() + self.streams.idle() + self.shelf.idle();
        Stats {
            memory_used: used,
            // Taken one after the other: while all goes on, they need not fit together.
            memory_held: used.saturating_sub(idle),
            memory_budget: budget.total(),
            decoding: self.cache.decoding(),
            uptime: self.started.elapsed().as_secs(),
            ..self.counters.snapshot()
        }
    }

    /// Logs why a file cannot be opened, once for as long as it stays the same.
    fn report(&self, error: &Error, identity: &Identity) {
        let first = self.shelf.refuse(*identity);
        if first && !matches!(error.kind(), ErrorKind::Changed) {
            tracing::error!("{error}; the file cannot be opened");
        }
    }
}
