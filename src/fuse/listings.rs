//! What the listings of open directories take, by the user who has opened them.
//!
//! A directory that is open keeps its entries as they were when it was read, so that a listing can be gone on with anywhere. Whoever
//! could hold any number of them of large directories would have the server grow without an end. So a user whose listings take
//! a certain amount of memory gets no further one until some are closed; others still do. The largest of his does not count: who goes
//! through a tree keeps a directory open while he is in those beneath it, however many entries it has.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::occasionally::Occasionally;
use crate::tree::Listing;

/// How much a user's listings may always take, in bytes: more than a million entries, which no walk through a tree holds at once.
const ALWAYS: u64 = 64 << 20;
/// The part of the budget that they may take if that is more.
const PART: u64 = 4;
/// How often the log is told.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Listings {
    /// By user.
    held: Mutex<HashMap<u32, Held>>,
    /// In bytes.
    most: u64,
    told: Occasionally,
}

/// The listings of a user.
#[derive(Debug, Default)]
struct Held {
    /// All of them together, in bytes.
    bytes: u64,
    /// How many there are of so many bytes.
    sizes: BTreeMap<u64, u64>,
}

impl Held {
    /// All but the largest, in bytes.
    fn counted(&self) -> u64 {
        let largest = self.sizes.last_key_value();
        self.bytes - largest.map_or(0, |(bytes, _)| *bytes)
    }
}

/// A listing that counts for as long as it lives.
#[derive(Debug)]
pub(super) struct OpenListing {
    listing: Listing,
    user: u32,
    bytes: u64,
    listings: Arc<Listings>,
}

impl Listings {
    /// Listings beside a budget of so many bytes.
    pub(super) fn beside(budget: u64) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::default(),
            most: ALWAYS.max(budget / PART),
            told: Occasionally::every(TOLD_AGAIN),
        })
    }

    /// Checks that a user may hold one more, however large it is; if not, the log says so, once a minute.
    ///
    /// # Errors
    /// Those he holds take as much as they may (ENOMEM).
    pub(super) fn check(&self, user: u32) -> Result<()> {
        let held = self.held().get(&user).map_or(0, Held::counted);
        if held < self.most {
            return Ok(());
        }
        let why = format!(
            "no memory for one more listing: the open directories of user {user} take {held} bytes beside the largest; close some of them, or \
             mount with a larger --cache-size"
        );
        if self.told.is_due() {
            tracing::error!("{why}");
        }
        Err(Error::io("cannot list", Errno::NOMEM.into()))
    }

    /// Counts a listing that a user has had made.
    pub(super) fn count(self: &Arc<Self>, listing: Listing, user: u32) -> OpenListing {
        let bytes = listing.memory() as u64;
        let mut held = self.held();
        let of_user = held.entry(user).or_default();
        of_user.bytes += bytes;
        *of_user.sizes.entry(bytes).or_default() += 1;
        drop(held);
        OpenListing {
            listing,
            user,
            bytes,
            listings: Arc::clone(self),
        }
    }

    /// The memory that all of them take, in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.held().values().map(|held| held.bytes).sum()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<u32, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for OpenListing {
    type Target = Listing;

    fn deref(&self) -> &Listing {
        &self.listing
    }
}

impl Drop for OpenListing {
    fn drop(&mut self) {
        let mut held = self.listings.held();
        let Some(of_user) = held.get_mut(&self.user) else {
            return;
        };
        of_user.bytes = of_user.bytes.saturating_sub(self.bytes);
        if let Some(count) = of_user.sizes.get_mut(&self.bytes) {
            *count -= 1;
            if *count == 0 {
                of_user.sizes.remove(&self.bytes);
            }
        }
        if of_user.sizes.is_empty() {
            held.remove(&self.user);
        }
    }
}
