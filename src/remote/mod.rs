//! `.warp` files beyond this machine: in object stores and behind web servers.
//!
//! `location` knows URLs, and what of them may be shown; `backend` what the library that speaks to the stores has to be told,
//! and `profile` where S3's own tools keep it; `wire` stands between that library and the network, and sees every request,
//! `names` what listings name; `fault` knows what went wrong and `attempts` when to try again; `version` is what a store says
//! of its objects, `round_trip` how far away it is. A `Store` is one store: requests within bounds (`places`) and deadlines, in an async
//! runtime of its own; an `Object` is a source of an archive's bytes, a `Plain` one that is read as it is, `planned` what is asked
//! for ahead of its readers, `blocks` what is remembered of what describes an object,
//! `on_disk` what a local disk has of it, `fetches` what was asked for ahead; an `Upload` is the way back.
//!
//! An object is its ETag. Every request for a part of it says which one is meant (`If-Match`), and every answer is looked at
//! for it; where a server gives none, size and `Last-Modified` stand in. What was opened is read to its end or not at all:
//! an object that was replaced is [`ErrorKind::Changed`], and who opens it anew has the new one.
//!
//! Threads that want something wait for it, and no longer than the deadline. All else happens in the store's runtime, which
//! must not be started before a mount has forked.

mod attempts;
mod backend;
mod blocks;
mod fault;
mod fetches;
mod location;
mod names;
mod object;
mod on_disk;
mod places;
mod plain;
mod planned;
mod profile;
mod round_trip;
mod runtimes;
mod store;
mod upload;
mod version;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) use object_store::path::Path as Key;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::memory::Budget;
use crate::stats::Counters;

pub(crate) use location::{Location, Protocol};
pub(crate) use object::Object;
pub(crate) use plain::Plain;
pub(crate) use planned::AllPlanned;
pub(crate) use store::{Store, StoreOptions};
pub(crate) use upload::Upload;
pub(crate) use version::{Page, Version};

/// How often it is looked whether a job is to stop that waits for a network.
const LOOK: Duration = Duration::from_millis(50);

/// What a command line's word is called in messages, if it is a URL: the same without its secrets.
pub fn shown(word: &Path) -> Option<PathBuf> {
    match Location::in_word(word) {
        Ok(location) => location.map(|location| location.shown()),
        // It is said what is wrong with it when it is used.
        Err(error) => error.path().map(Path::to_owned),
    }
}

/// The last part of the path of a URL that names an object; `None` for what is no URL, or names none.
pub fn object_name(word: &Path) -> Option<String> {
    let location = Location::in_word(word).ok().flatten()?;
    let name = location.name().filter(|_| !location.is_prefix())?;
    Some(name.to_owned())
}

/// A store for a job, which bounds its memory itself.
fn store_for_job(location: &Location) -> Result<Arc<Store>> {
    let options = StoreOptions {
        tells: true,
        ..StoreOptions::default()
    };
    let counters = Arc::<Counters>::default();
    Store::open(location, &options, counters, &Budget::unlimited(), || false)
}

/// Opens the object that a command line's word names, with its name for messages; `None` if that is no URL.
///
/// # Errors
/// The word is a URL that cannot be used; there is no such object, or the store's.
pub(crate) fn open(word: &Path) -> Result<Option<(PathBuf, Object)>> {
    let Some(location) = Location::in_word(word)? else {
        return Ok(None);
    };
    let shown = location.shown();
    let store = store_for_job(&location)?;
    let object = Object::open(&store, location.key()).context("cannot open", &shown)?;
    Ok(Some((shown, object)))
}

/// Where an object is to go that a command line's word names, with its name for messages; `None` if that is no URL.
///
/// # Errors
/// The word is a URL that names no object, or cannot be used.
pub(crate) fn destination(word: &Path) -> Result<Option<(PathBuf, Arc<Store>, Key)>> {
    let Some(location) = Location::in_word(word)? else {
        return Ok(None);
    };
    let shown = location.shown();
    if location.is_prefix() {
        let why = "names no object: give the URL of the .warp file to write";
        return Err(Error::unusable(why).in_file(&shown));
    }
    let store = store_for_job(&location)?;
    Ok(Some((shown, store, location.key().clone())))
}

/// Does some work that may wait for a store, until `cancelled` is set.
///
/// # Errors
/// The work's; [`ErrorKind::Cancelled`] if it was stopped.
pub(crate) fn stoppable<T>(
    store: &Store,
    cancelled: &AtomicBool,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let done = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if cancelled.load(Ordering::Relaxed) {
                    return store.runtimes().close();
                }
                std::thread::park_timeout(LOOK);
            }
        });
        let _done = Done(&done);
        work()
    });
    match outcome {
        Err(_) if cancelled.load(Ordering::Relaxed) => Err(ErrorKind::Cancelled.into()),
        outcome => outcome,
    }
}

/// Says on every path that something is done.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
