//! Finding out which objects are packed: their first bytes are asked for, of many objects at once.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Prefix;
use super::entries::Brief;
use crate::archive::{Glance, Source, glance};
use crate::error::{Error, IoContext, Result};
use crate::identity::Identity;
use crate::remote::{Key, Object, Version};

/// How much of an object is asked for to see whether it is packed, in bytes: the longest header there is.
const HEADER_LEN: usize = 64;
/// How many more requests may be made for an object that does not say in its header how large its original is.
const MOST_REQUESTS: u32 = 16;

impl Prefix {
    /// Whether an object is packed, and of what; and its version now, which may be another than the one that was listed.
    ///
    /// # Errors
    /// The store does not answer, or does not let us look.
    pub(super) fn header(&self, key: &str, listed: Brief) -> Result<(Brief, Option<Glance>)> {
        let (brief, known) = self.known_of(listed);
        if let Some(packed) = known {
            return Ok((brief, packed));
        }
        self.look(&[(key.to_owned(), brief)])
            .pop()
            .unwrap_or_else(|| {
                let why = io::ErrorKind::NotFound.into();
                Err(Error::io("cannot look at it", why))
            })
    }

    /// What is known of an object without asking the store: its version, and whether that is packed, and of what.
    fn known_of(&self, listed: Brief) -> (Brief, Option<Option<Glance>>) {
        let brief = self.memory.completed(listed);
        let packed = self.memory.packed(&brief);
        (brief, packed.or_else(|| indexed(&brief)))
    }

    /// Whether an object is packed, if that is known without asking the store.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn is_known_as_packed(&self, listed: Brief) -> Result<bool> {
        let (_, known) = self.known_of(listed);
        let silent = || Error::io("cannot look at it", io::ErrorKind::TimedOut.into());
        known.map(|packed| packed.is_some()).ok_or_else(silent)
    }

    /// Looks at all of these that nobody has looked at before, many at a time; says whether the store answers. What else goes wrong
    /// is found again by who asks for one.
    pub(super) fn look_ahead(&self, objects: impl Iterator<Item = (String, Brief)>) -> bool {
        let unknown: Vec<_> = objects
            .map(|(key, listed)| (key, self.memory.completed(listed)))
            .filter(|(_, brief)| self.memory.packed(brief).is_none() && brief.indexed.is_none())
            .collect();
        // One is as well looked at when it is asked for.
        if unknown.len() <= 1 {
            return true;
        }
        let looked = self.look(&unknown);
        let mut errors = looked.iter().filter_map(|found| found.as_ref().err());
        let silence = errors.find(|error| error.is_io(io::ErrorKind::TimedOut));
        silence.inspect(|error| self.tell_of(error)).is_none()
    }

    fn look(&self, objects: &[(String, Brief)]) -> Vec<Result<(Brief, Option<Glance>)>> {
        // A part of nothing cannot be asked for.
        let long = |brief: &Brief| brief.identity.size > 0;
        let wanted = objects.iter().filter(|(_, brief)| long(brief));
        let keys: Result<Vec<_>> = wanted.map(|(key, _)| self.key(key)).collect();
        let mut found = match keys {
            Ok(keys) => self.store.beginnings(&keys, HEADER_LEN).into_iter(),
            Err(error) => return vec![Err(error)],
        };
        let outcomes = objects.iter().map(|(key, brief)| {
            let shown = self.shown(key);
            if !long(brief) {
                return Ok((*brief, None));
            }
            let gone = || Err(io::ErrorKind::NotFound.into());
            let (bytes, version) = found
                .next()
                .unwrap_or_else(gone)
                .context("cannot read", &shown)?;
            let brief = Brief::new(&self.store, key, &version);
            let packed = self.judge(key, version, bytes, &shown)?;
            self.memory.note(brief, Some(packed));
            Ok((brief, packed))
        });
        outcomes.collect()
    }

    /// What an object is, by its first bytes. The log says why one that is called `.warp` is none.
    fn judge(
        &self,
        key: &str,
        version: Version,
        beginning: Vec<u8>,
        shown: &Path,
    ) -> Result<Option<Glance>> {
        let size = version.size;
        let glimpse = Glimpse {
            beginning,
            object: Object::listed(&self.store, &self.key(key)?, version),
            requests: AtomicU32::new(0),
        };
        match glance(&glimpse, shown, size) {
            Ok(Some(found)) => Ok(Some(found)),
            Ok(None) => {
                tracing::warn!("shown as it is: {}", too_many_chunks(shown));
                Ok(None)
            }
            Err(error) if error.is_damage() => {
                tracing::warn!("shown as it is: {}", error.in_file(shown));
                Ok(None)
            }
            Err(_) if glimpse.requests.load(Ordering::Relaxed) > MOST_REQUESTS => {
                tracing::warn!("shown as it is: {}", too_many_chunks(shown));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The name of an object for the store.
    pub(super) fn key(&self, key: &str) -> Result<Key> {
        Key::parse(key).map_err(|_| {
            let why = "there can be no object of this name";
            Error::unusable(why).in_file(&self.shown(key))
        })
    }
}

/// What an object is packed of, as an index says.
fn indexed(brief: &Brief) -> Option<Option<Glance>> {
    let (container, original_size) = brief.indexed?;
    Some(Some(Glance {
        container,
        packed_size: brief.identity.size,
        original_size,
        encodings: None,
        chunk_count: None,
    }))
}

/// What is said of an object without a table that cannot be read from here.
pub(in crate::tree) fn too_many_chunks(path: &Path) -> Error {
    let why = "has no table and more chunks than can be followed from here; unpack it to read it";
    Error::unusable(why).in_file(path)
}

/// An object whose first bytes are there. The rest costs requests, and only so many are made.
#[derive(Debug)]
struct Glimpse {
    beginning: Vec<u8>,
    object: Object,
    requests: AtomicU32,
}

impl Source for Glimpse {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.object.version().size.saturating_sub(offset);
        let length = buffer
            .len()
            .min(usize::try_from(rest).unwrap_or(usize::MAX));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let known = self.beginning.get(from..from.saturating_add(length));
        if let (Some(known), Some(room)) = (known, buffer.get_mut(..length)) {
            room.copy_from_slice(known);
            return Ok(length);
        }
        if self.requests.fetch_add(1, Ordering::Relaxed) >= MOST_REQUESTS {
            self.requests.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::other("too many parts to look at"));
        }
        self.object.read_at(buffer, offset)
    }

    fn identity(&self) -> io::Result<Identity> {
        self.object.identity()
    }
}
