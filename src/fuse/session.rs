//! The session: threads that take the kernel's requests and have them answered, from the greeting to the end of the mount.
//!
//! Requests come by read(2) from /dev/fuse or, where the kernel offers it, by io_uring (see `ring`); the former still brings what
//! nobody waits for. Either way a request is answered on the thread that took it, because handing it over costs a wake-up. What
//! may take as long as a network does is handed over all the same, so that nothing else waits for it.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use rustix::io::Errno;

use super::filesystem::WarpFilesystem;
use super::protocol::{self, Features, Greeting, Outlet, Reply, Request};
use super::ring::Rings;
use super::start;
use crate::error::{Error, Result};

/// The longest request, in bytes: the kernel's own limit for FUSE is 256 pages unless raised.
pub(super) const MAX_REQUEST: u32 = 1 << 20;
/// How many requests of readahead the kernel may have under way.
const MAX_BACKGROUND: u16 = 64;
/// Room for a request, in bytes. The longest that come tell of names and of nodes that are forgotten; the kernel fills it with
/// as many of those as it can.
const REQUEST_ROOM: usize = 64 << 10;

/// A mount's server, which the kernel has been greeted by.
pub(super) struct Session {
    filesystem: Arc<WarpFilesystem>,
    connection: Arc<OwnedFd>,
    rings: Option<Rings>,
    threads: usize,
}

impl Session {
    /// Agrees with the kernel on what both can do. `threads` are to answer requests, more where io_uring is used.
    ///
    /// # Errors
    /// The kernel says nothing that is understood, or lacks what the mount cannot do without.
    pub(super) fn begin(
        mut filesystem: WarpFilesystem,
        connection: Arc<OwnedFd>,
        threads: usize,
    ) -> Result<Self> {
        let mut message = vec![0; REQUEST_ROOM];
        let failed = |error: Errno| Error::io("cannot take the kernel's greeting", error.into());
        let length = receive(&connection, &mut message).map_err(failed)?;
        let message = message.get(..length.unwrap_or(0)).unwrap_or_default();
        let (Some(request), Some(greeting)) =
            (Request::from_message(message), Greeting::parse(message))
        else {
            return Err(Error::unusable(
                "the kernel says nothing that is understood",
            ));
        };
        let mut device = Device(&connection);
        let mut refuse = |why: &str| {
            Reply::new(request.unique, &mut device).error(Errno::PROTO);
            Err(Error::unusable(why.to_owned()))
        };
        if !greeting.is_understood() {
            let (major, minor) = greeting.version;
            let version = format!("FUSE {major}.{minor}");
            return refuse(&format!("this kernel is too old: it speaks {version}"));
        }
        let mut wanted = filesystem.wanted();
        if !greeting.offered.has(Features::POSIX_ACL) && filesystem.allows_others() {
            return refuse(
                "this kernel cannot enforce access control lists through FUSE: mount without --allow-other",
            );
        }
        let rings = match greeting.offered.has(Features::IO_URING) && !filesystem.is_far() {
            true => Rings::prepare(&connection),
            false => None,
        };
        if rings.is_some() {
            wanted = wanted.and(Features::IO_URING);
        }
        let (answer, agreed) = greeting.answer(wanted, MAX_REQUEST, MAX_BACKGROUND);
        filesystem.agreed(agreed);
        Reply::new(request.unique, &mut Device(&connection)).bytes(&answer);
        Ok(Self {
            filesystem: Arc::new(filesystem),
            connection,
            rings: rings.filter(|_| agreed.has(Features::IO_URING)),
            threads,
        })
    }

    /// Serves until the mount ends.
    ///
    /// # Errors
    /// The connection to the kernel breaks otherwise, or a thread cannot be started. Others may still serve then.
    pub(super) fn run(self) -> Result<()> {
        let (ended, ends) = mpsc::channel();
        let by_read = match &self.rings {
            Some(_) => 1,
            None => self.threads,
        };
        for number in 0..by_read {
            let (filesystem, connection) =
                (Arc::clone(&self.filesystem), Arc::clone(&self.connection));
            let ended = ended.clone();
            start(format!("requests-{number}"), move || {
                let _ = ended.send(serve(&filesystem, &connection));
            })?;
        }
        if let Some(rings) = self.rings {
            rings.serve(&self.filesystem, &ended);
        }
        drop(ended);
        // With one queue unserved, whoever asks there would wait for ever: the first that breaks ends it all.
        ends.iter()
            .find(io::Result::is_err)
            .unwrap_or(Ok(()))
            .map_err(|error| Error::io("cannot take requests", error))
    }
}

/// Has answered what is read from /dev/fuse, until there is no more.
fn serve(filesystem: &Arc<WarpFilesystem>, connection: &Arc<OwnedFd>) -> io::Result<()> {
    let mut message = vec![0; REQUEST_ROOM];
    while let Some(length) = receive(connection, &mut message)? {
        let message = message.get(..length).unwrap_or_default();
        let Some(request) = Request::from_message(message) else {
            // The kernel's messages are whole; what is none has no number to answer to.
            tracing::error!("the kernel sent what is no request, {length} bytes long");
            continue;
        };
        match filesystem.elsewhere_for(&request) {
            None => answer(filesystem, connection, &request),
            Some(elsewhere) => {
                let (filesystem, connection) = (Arc::clone(filesystem), Arc::clone(connection));
                let message = message.to_vec();
                elsewhere.run(move || {
                    if let Some(request) = Request::from_message(&message) {
                        answer(&filesystem, &connection, &request);
                    }
                });
            }
        }
    }
    Ok(())
}

fn answer(filesystem: &WarpFilesystem, connection: &OwnedFd, request: &Request<'_>) {
    let mut device = Device(connection);
    filesystem.answer(request, Reply::new(request.unique, &mut device));
}

/// Waits for a request and says how long it is; `None` when the mount has ended.
fn receive(connection: &OwnedFd, message: &mut [u8]) -> rustix::io::Result<Option<usize>> {
    loop {
        match rustix::io::read(connection, &mut *message) {
            Ok(length) => return Ok(Some(length)),
            // ENOENT: who asked has been interrupted meanwhile.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
            Err(Errno::NODEV) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Replies by write(2).
struct Device<'a>(&'a OwnedFd);

impl Outlet for Device<'_> {
    fn send(&mut self, unique: u64, outcome: std::result::Result<&[u8], Errno>) {
        let header = protocol::header(unique, outcome.map(<[u8]>::len));
        let pieces = [
            IoSlice::new(&header),
            IoSlice::new(outcome.unwrap_or_default()),
        ];
        match rustix::io::writev(self.0, &pieces) {
            // ENOENT: nobody waits for it any more.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::warn!("cannot answer a request: {error}"),
        }
    }
}
