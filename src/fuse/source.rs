//! What is mounted: a tree or a file of this machine, or what a URL names.

#[cfg(feature = "remote")]
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MountOptions;
use super::elsewhere::Elsewhere;
#[cfg(feature = "remote")]
use crate::error::Error;
use crate::error::{IoContext, Result};
#[cfg(feature = "remote")]
use crate::index::INDEX_NAME;
use crate::reader::{Engine, EngineOptions};
#[cfg(feature = "remote")]
use crate::remote::{Location, Protocol, Store, StoreOptions};
#[cfg(feature = "remote")]
use crate::tree::{ObjectTree, PrefixTree};
use crate::tree::{Shown, Tree};

/// What is to be mounted.
pub(super) enum Source {
    /// A tree of this machine, taken hold of before the mount covers it.
    Local(PathBuf, Arc<Tree>),
    /// What is asked for by a network. Nothing of it is before the process has gone to the background: that takes threads.
    #[cfg(feature = "remote")]
    Remote(Location),
}

impl Source {
    /// Looks for what is to be mounted; takes hold of it if it is on this machine.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub(super) fn open(options: &MountOptions, mount_point: &Path) -> Result<Self> {
        #[cfg(feature = "remote")]
        if let Some(location) = Location::in_word(&options.source)? {
            return Ok(Self::Remote(location));
        }
        #[cfg(feature = "remote")]
        if options.engine.disk_cache.is_some() {
            let why = "lies on this machine already: --disk-cache is for what lies elsewhere";
            return Err(Error::unusable(why).in_file(&options.source));
        }
        let source = options
            .source
            .canonicalize()
            .context("cannot open", &options.source)?;
        let tree = Tree::open(&source, mount_point, remembered_headers(&options.engine))?;
        Ok(Self::Local(source, Arc::new(tree)))
    }

    /// Its name, without secrets.
    pub(super) fn shown(&self) -> PathBuf {
        match self {
            Self::Local(source, _) => source.clone(),
            #[cfg(feature = "remote")]
            Self::Remote(location) => location.shown(),
        }
    }

    /// What the mount is to show, and who waits for it.
    #[cfg_attr(
        not(feature = "remote"),
        expect(unused_variables, reason = "what is on this machine is opened already")
    )]
    pub(super) fn tree(
        self,
        options: &MountOptions,
        mount_point: &Path,
        engine: &Arc<Engine>,
    ) -> Result<(Arc<dyn Shown>, Option<Elsewhere>)> {
        match self {
            Self::Local(_, tree) => Ok((tree, None)),
            #[cfg(feature = "remote")]
            Self::Remote(location) => {
                let store_options = StoreOptions {
                    deadline: options.remote_timeout,
                    disk_cache: engine.disk_cache(),
                    planned: engine.planned(),
                    ..StoreOptions::default()
                };
                let kind = mount_point.metadata();
                let onto_file = kind
                    .context("cannot use the mount point", mount_point)?
                    .is_file();
                let web_directory = location.web_directory(INDEX_NAME).filter(|_| !onto_file);
                let place = web_directory.as_ref().unwrap_or(&location);
                let store = Store::open(
                    place,
                    &store_options,
                    engine.shared_counters(),
                    engine.budget(),
                    || engine.make_room(),
                )?;
                if let Some(directory) = &web_directory {
                    let remembered = remembered_headers(&options.engine);
                    let tree = PrefixTree::of_index(&store, directory, remembered)?;
                    return Ok((Arc::new(tree), Some(Elsewhere::Store(store))));
                }
                let tree = remote_tree(&store, &location, onto_file, &options.engine)?;
                Ok((tree, Some(Elsewhere::Store(store))))
            }
        }
    }
}

/// What lies at `location`: one packed object, or all that lies beneath. What is called `.warp` is looked for as an object first.
#[cfg(feature = "remote")]
fn remote_tree(
    store: &Arc<Store>,
    location: &Location,
    onto_file: bool,
    options: &EngineOptions,
) -> Result<Arc<dyn Shown>> {
    let object = || ObjectTree::open(store, location, onto_file);
    if onto_file || location.protocol() == Protocol::Http {
        return Ok(Arc::new(object()?));
    }
    let is_packed = |name: &str| name.ends_with(".warp");
    if !location.is_prefix() && location.name().is_some_and(is_packed) {
        match object() {
            Err(error) if error.is_io(io::ErrorKind::NotFound) => {}
            found => return Ok(Arc::new(found?)),
        }
    }
    let tree = PrefixTree::open(store, location, remembered_headers(options))?;
    Ok(Arc::new(tree))
}

/// How many files' headers may be remembered: about 128 bytes each, a sixteenth of the budget all together.
fn remembered_headers(options: &EngineOptions) -> NonZeroUsize {
    let count = usize::try_from(options.cache_size / 16 / 128).unwrap_or(usize::MAX);
    NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)
}
