//! One object, as a source of an archive's bytes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use object_store::path::Path as Key;

use super::store::{Store, Version};
use crate::archive::Source;
use crate::identity::Identity;

/// How much of an object is read to find out what it is, in bytes: header and table of most, and all of many.
const BEGINNING: usize = 64 << 10;

/// An object of a store, in one version: what was opened is what is read, or nothing.
#[derive(Debug)]
pub(crate) struct Object {
    store: Arc<Store>,
    key: Key,
    version: Version,
    identity: Identity,
    /// What was read already: the object's first bytes.
    beginning: Box<[u8]>,
    /// Set when the store has another version of it.
    changed: AtomicBool,
}

impl Object {
    /// The object `key` of a store, as it is now. One request, which brings its first bytes as well.
    ///
    /// # Errors
    /// There is none, it may not be read, or the store does not answer in time.
    pub(crate) fn open(store: &Arc<Store>, key: &Key) -> io::Result<Self> {
        let mut beginning = vec![0; BEGINNING];
        let (length, version) = store.read(key, None, 0, &mut beginning)?;
        beginning.truncate(length);
        Ok(Self::new(store, key, version, beginning.into()))
    }

    /// The object as a listing has shown it. No request.
    pub(crate) fn listed(store: &Arc<Store>, key: &Key, version: Version) -> Self {
        Self::new(store, key, version, Box::default())
    }

    fn new(store: &Arc<Store>, key: &Key, version: Version, beginning: Box<[u8]>) -> Self {
        let url = format!("{}\0{key}", store.location().store_name());
        Self {
            store: Arc::clone(store),
            key: key.clone(),
            identity: Identity::of_object(
                &url,
                version.size,
                version.etag.as_deref(),
                version.modified,
            ),
            version,
            beginning,
            changed: AtomicBool::new(false),
        }
    }

    /// Which version of the object it is.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }
}

impl Source for Object {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.version.size.saturating_sub(offset);
        let length = buffer
            .len()
            .min(usize::try_from(rest).unwrap_or(usize::MAX));
        let Some(wanted) = buffer.get_mut(..length).filter(|wanted| !wanted.is_empty()) else {
            return Ok(0);
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(known) = self.beginning.get(from..from.saturating_add(length)) {
            wanted.copy_from_slice(known);
            return Ok(length);
        }
        let outcome = self
            .store
            .read(&self.key, Some(&self.version), offset, wanted);
        if let Err(error) = &outcome
            && error.kind() == io::ErrorKind::StaleNetworkFileHandle
        {
            self.changed.store(true, Ordering::Relaxed);
        }
        outcome.map(|(read, _)| read)
    }

    fn identity(&self) -> io::Result<Identity> {
        match self.changed.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StaleNetworkFileHandle.into()),
            false => Ok(self.identity),
        }
    }
}
