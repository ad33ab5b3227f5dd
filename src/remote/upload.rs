//! An object on its way to a store, in parts, of which several are sent at a time. It appears there when it is whole, or not at
//! all.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{Either, select};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{MultipartId, PutMode, PutPayload};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::LOOK;
use super::fault::{Fault, FaultKind};
use super::store::Store;
use super::version::Version;

/// The length of a part, in bytes: the least that stores take, but for the last. An object has 10,000 parts at most, so later ones
/// are longer.
const FIRST_PART: usize = 8 << 20;
/// After how many parts their length doubles.
const DOUBLED_EVERY: usize = 1000;

/// How many bytes of parts are sent at a time, if that is more than one part.
const UNDER_WAY: usize = 32 << 20;

/// For how long an object is looked for whose store has not said whether it is complete.
const LOOKED_FOR: Duration = Duration::from_secs(60);
/// After how long it is looked for again.
const LOOKED_AGAIN: Duration = Duration::from_secs(2);

/// See the module's description. Dropped before it is completed, it is aborted.
pub(crate) struct Upload<'a> {
    store: Arc<Store>,
    parts_store: Arc<dyn MultipartStore>,
    key: Key,
    /// Whether it takes the place of what is there.
    replaces: bool,
    /// The upload, once there is a part that is not the only one.
    id: Option<MultipartId>,
    parts: Vec<PartId>,
    /// What is being sent of those that follow, in their order.
    under_way: VecDeque<Sending>,
    gathered: Vec<u8>,
    /// How much was written, in bytes.
    length: u64,
    cancelled: &'a AtomicBool,
}

/// A part that is being sent, by a task of the store's. Dropped, it is broken off.
struct Sending {
    length: usize,
    task: Option<AbortHandle>,
    outcome: oneshot::Receiver<Result<PartId, Fault>>,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl<'a> Upload<'a> {
    /// Begins to write the object `key`, which `replaces` what is there, or must not be there. Once `cancelled` is set, nothing more
    /// is sent.
    ///
    /// # Errors
    /// The store takes none.
    pub(crate) fn begin(
        store: &Arc<Store>,
        key: &Key,
        replaces: bool,
        cancelled: &'a AtomicBool,
    ) -> io::Result<Self> {
        let unable = || {
            let what = "a web server takes no uploads from here: pack to a store, or copy the packed file there";
            Fault::new(FaultKind::Unable, what).into_io()
        };
        Ok(Self {
            parts_store: store.backend.parts.clone().ok_or_else(unable)?,
            store: Arc::clone(store),
            key: key.clone(),
            replaces,
            id: None,
            parts: Vec::new(),
            under_way: VecDeque::new(),
            gathered: Vec::new(),
            length: 0,
            cancelled,
        })
    }

    /// Waits for something, until the job is cancelled.
    fn wait<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> io::Result<T> {
        let stopped = async {
            while !self.cancelled.load(Ordering::Relaxed) {
                tokio::time::sleep(LOOK).await;
            }
            Fault::new(FaultKind::Unable, "interrupted")
        };
        self.store.runtimes().wait(async {
            match select(pin!(work), pin!(stopped)).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right((stopped, _)) => Err(stopped),
            }
        })
    }

    fn part_len(&self) -> usize {
        FIRST_PART << (self.next_part() / DOUBLED_EVERY).min(8)
    }

    /// The number of the part that is to be sent next.
    fn next_part(&self) -> usize {
        self.parts.len() + self.under_way.len()
    }

    /// Waits until at most so many bytes of parts are under way.
    fn wait_for_parts(&mut self, most: usize) -> io::Result<()> {
        let sum =
            |sent: &VecDeque<Sending>| sent.iter().map(|sending| sending.length).sum::<usize>();
        while sum(&self.under_way) > most
            && let Some(mut sending) = self.under_way.pop_front()
        {
            let lost = |_| Err(Fault::new(FaultKind::Unable, "interrupted"));
            let outcome = async { (&mut sending.outcome).await.unwrap_or_else(lost) };
            let part = self.wait(outcome)?;
            self.parts.push(part);
        }
        Ok(())
    }

    fn send_part(&mut self, bytes: Bytes) -> io::Result<()> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => {
                let begin = || async { Ok(self.parts_store.create_multipart(&self.key).await?) };
                let id = self.wait(self.store.retrying(begin))?;
                self.id.insert(id).clone()
            }
        };
        let length = bytes.len();
        self.wait_for_parts(UNDER_WAY.saturating_sub(length))?;
        let (tell, outcome) = oneshot::channel();
        let number = self.next_part();
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        let parts_store = Arc::clone(&self.parts_store);
        let task = self.store.runtimes().spawn(async move {
            let send = || async {
                let payload = PutPayload::from(bytes.clone());
                Ok(parts_store.put_part(&key, &id, number, payload).await?)
            };
            let _ = tell.send(store.retrying(send).await);
        });
        self.under_way.push_back(Sending {
            length,
            task,
            outcome,
        });
        Ok(())
    }

    /// What is there now, if anything is.
    fn found(&self) -> io::Result<Option<Version>> {
        match self.wait(self.store.ask(&self.key)) {
            Ok(version) => Ok(Some(version)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether all has arrived though an answer says that it has not: one that told of it was lost, and the request was made again.
    /// It is looked for until `patience` is over.
    fn has_arrived(&self, before: &io::Result<Option<Version>>, patience: Duration) -> bool {
        // What is there may have been there before.
        let Ok(before) = before else { return false };
        let until = Instant::now() + patience;
        loop {
            if let Ok(Some(found)) = self.found()
                && found.size == self.length
                && before.as_ref() != Some(&found)
            {
                return true;
            }
            let pause = async {
                tokio::time::sleep(LOOKED_AGAIN).await;
                Ok(())
            };
            if Instant::now() >= until || self.wait(pause).is_err() {
                return false;
            }
        }
    }

    /// Makes the object appear, whole.
    ///
    /// # Errors
    /// The store does not take it; there is no object then, or what was there before. [`io::ErrorKind::AlreadyExists`] if that must
    /// not be replaced.
    pub(crate) fn complete(mut self) -> io::Result<()> {
        let rest = Bytes::from(std::mem::take(&mut self.gathered));
        if self.id.is_none() {
            return self.put(&rest);
        }
        if !rest.is_empty() {
            self.send_part(rest)?;
        }
        self.wait_for_parts(0)?;
        let Some(id) = &self.id else { return Ok(()) };
        let before = self.found();
        if !self.replaces {
            match before {
                Ok(None) => {}
                Ok(Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
                Err(error) => return Err(error),
            }
        }
        let tries = Cell::new(0);
        let complete = || async {
            tries.set(tries.get() + 1);
            let parts = self.parts.clone();
            let done = self.parts_store.complete_multipart(&self.key, id, parts);
            done.await?;
            Ok(())
        };
        // Stores send a space now and then while they put the parts together, which takes minutes.
        let attempts = self.store.attempts().by_any_byte();
        if let Err(error) = self.wait(attempts.until_answered(complete)) {
            // What was begun may still come to its end.
            let may_come = matches!(
                error.kind(),
                io::ErrorKind::TimedOut | io::ErrorKind::InvalidData
            );
            let patience = if may_come { LOOKED_FOR } else { Duration::ZERO };
            let may_be_there = may_come || tries.get() > 1;
            if !may_be_there || !self.has_arrived(&before, patience) {
                return Err(error);
            }
        }
        self.id = None;
        Ok(())
    }

    /// Sends all at once.
    fn put(&self, bytes: &Bytes) -> io::Result<()> {
        let tries = Cell::new(0);
        let put = |mode: PutMode| {
            self.wait(self.store.retrying(|| async {
                tries.set(tries.get() + 1);
                let payload = PutPayload::from(bytes.clone());
                let objects = &self.store.backend.objects;
                let sent = objects.put_opts(&self.key, payload, mode.clone().into());
                sent.await?;
                Ok(())
            }))
        };
        if self.replaces {
            return put(PutMode::Overwrite);
        }
        match put(PutMode::Create) {
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && tries.get() > 1
                    && self.has_arrived(&Ok(None), Duration::ZERO) =>
            {
                Ok(())
            }
            // It knows of no conditions. When this began, there was none.
            Err(error)
                if error.kind() == io::ErrorKind::Unsupported
                    && !self.cancelled.load(Ordering::Relaxed) =>
            {
                put(PutMode::Overwrite)
            }
            outcome => outcome,
        }
    }
}

impl io::Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        self.length += bytes.len() as u64;
        while self.gathered.len() > self.part_len() {
            let behind = self.gathered.split_off(self.part_len());
            let part = std::mem::replace(&mut self.gathered, behind);
            self.send_part(part.into())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        // Parts that arrive later than that would stay, and cost.
        self.under_way.clear();
        if let Some(id) = self.id.take() {
            let abort = || async {
                self.parts_store.abort_multipart(&self.key, &id).await?;
                Ok(())
            };
            let aborted = self.store.runtimes().wait(self.store.retrying(abort));
            if let Err(error) = aborted.or_else(none_left) {
                tracing::warn!(
                    "{}: parts of an upload are left: {error}",
                    self.store.location()
                );
            }
        }
    }
}

/// An upload that is not there has left nothing.
fn none_left(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}
