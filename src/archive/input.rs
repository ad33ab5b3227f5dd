//! What a job is given to read: a file by its name or, with the feature `remote`, an object by its URL.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::source::Source;
use super::{Archive, Cut, Verify, open_regular};
use crate::error::Result;
#[cfg(feature = "remote")]
use crate::remote::{self, Object, Plain};

/// What an opened file's bytes come from.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A file of this machine.
    File(Arc<File>),
    /// An object in a store.
    #[cfg(feature = "remote")]
    Object(Arc<Object>),
    /// One that is read as it is, by many.
    #[cfg(feature = "remote")]
    Plain(Arc<Plain>),
}

impl Content {
    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&File> {
        match self {
            Content::File(file) => Some(file),
            #[cfg(feature = "remote")]
            Content::Object(_) | Content::Plain(_) => None,
        }
    }

    /// The object, if it is one.
    #[cfg(feature = "remote")]
    pub(crate) fn object(&self) -> Option<&Object> {
        match self {
            Content::File(_) => None,
            Content::Object(object) => Some(object),
            Content::Plain(plain) => Some(plain.object()),
        }
    }

    /// The source to read an archive from.
    pub(crate) fn source(&self) -> Box<dyn Source> {
        match self {
            Content::File(file) => Box::new(Arc::clone(file)),
            #[cfg(feature = "remote")]
            Content::Object(object) => Box::new(Arc::clone(object)),
            #[cfg(feature = "remote")]
            Content::Plain(plain) => Box::new(Arc::clone(plain.object())),
        }
    }

    /// As [`Source::read_at`].
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Content::File(file) => Source::read_at(file, buffer, offset),
            #[cfg(feature = "remote")]
            Content::Object(object) => Source::read_at(object, buffer, offset),
            #[cfg(feature = "remote")]
            Content::Plain(plain) => plain.read_at(buffer, offset),
        }
    }
}

impl From<File> for Content {
    fn from(file: File) -> Self {
        Content::File(Arc::new(file))
    }
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Input {
    /// Its name for messages, which holds no secrets.
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
}

impl Input {
    /// Opens what a name or a URL names.
    ///
    /// # Errors
    /// There is nothing, or it is no regular file; or the store's.
    pub(crate) fn open(word: &Path) -> Result<Self> {
        #[cfg(feature = "remote")]
        if let Some((path, object)) = remote::open(word)? {
            let content = Content::Object(Arc::new(object));
            return Ok(Self { path, content });
        }
        Ok(Self {
            path: word.to_owned(),
            content: open_regular(word)?.into(),
        })
    }

    /// As [`Archive::from_source`].
    pub(crate) fn archive(
        &self,
        verify: Verify,
        cut: Cut,
        cancelled: &AtomicBool,
    ) -> Result<Archive> {
        Archive::from_source(self.content.source(), &self.path, verify, cut, cancelled)
    }

    /// Does some work with it. What waits for a network meanwhile stops when the job is told to.
    pub(crate) fn stoppable<T>(
        &self,
        cancelled: &AtomicBool,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        #[cfg(feature = "remote")]
        if let Some(object) = self.content.object() {
            return remote::stoppable(object.store(), cancelled, work);
        }
        let _ = cancelled;
        work()
    }
}
