//! Looking at a running mount: its statistics, for whoever asks through the mount or through `--metrics`.

use std::sync::Arc;

use super::directories::Directories;
use super::handles::Handles;
use super::listings::Listings;
use crate::error::{Error, Result};
use crate::reader::Engine;
use crate::stats::{FileActivity, Stats};
use crate::tree::Shown;

/// How many of the busiest files are told of at most.
const MOST_FILES: usize = 20;
/// How long a list of files may be as JSON, in bytes: the kernel passes on values of 64 KiB at most.
const LONGEST_LIST: usize = 60 << 10;

/// What there is to look at.
#[derive(Debug, Clone)]
pub(super) struct Observation {
    engine: Arc<Engine>,
    tree: Arc<dyn Shown>,
    handles: Arc<Handles>,
    directories: Arc<Directories>,
    listings: Arc<Listings>,
}

impl Observation {
    pub(super) fn new(
        engine: &Arc<Engine>,
        tree: &Arc<dyn Shown>,
        handles: &Arc<Handles>,
        directories: &Arc<Directories>,
        listings: &Arc<Listings>,
    ) -> Self {
        Self {
            engine: Arc::clone(engine),
            tree: Arc::clone(tree),
            handles: Arc::clone(handles),
            directories: Arc::clone(directories),
            listings: Arc::clone(listings),
        }
    }

    /// The mount's statistics, without the names of files.
    pub(super) fn stats(&self) -> Stats {
        Stats {
            open_files: self.handles.open_files(),
            memory_names: (self.tree.memory() + self.directories.memory()) as u64
                + self.listings.memory(),
            ..self.engine.stats()
        }
    }

    /// The files that most was read of, as JSON; as many as an attribute's value has room for.
    ///
    /// # Errors
    /// They cannot be written down.
    pub(super) fn busiest(&self) -> Result<Vec<u8>> {
        let mut files: Vec<FileActivity> = self.handles.busiest(MOST_FILES);
        loop {
            let json = serde_json::to_vec(&files)
                .map_err(|error| Error::io("cannot write down the busiest files", error.into()))?;
            if json.len() <= LONGEST_LIST || files.pop().is_none() {
                return Ok(json);
            }
        }
    }
}
