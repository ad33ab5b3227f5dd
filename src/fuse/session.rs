//! The session: threads that take the kernel's requests and have them answered, from the greeting to the end of the mount.
//!
//! Requests come by read(2) from /dev/fuse or, where the kernel offers it, by io_uring (see `ring`); the former still brings what
//! nobody waits for. Either way a request is answered on the thread that took it, because handing it over costs a wake-up. What
//! may take as long as a network does is handed over all the same, so that nothing else waits for it.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::elsewhere::Elsewhere;
use super::filesystem::WarpFilesystem;
use super::interrupts::{Wait, Waiting};
use super::permission::Permission;
use super::protocol::{self, Features, Greeting, Operation, Outlet, Reply, Request};
use super::relief::{Post, Relief};
use super::ring::Rings;
use super::schedule::Home;
use super::start;
use crate::error::{Error, Result};

/// The longest request of a mount of local files, in bytes, where the kernel reads ahead twice as far: then it makes two requests,
/// which two threads answer at once, each with what is still in its processor's cache. Measured, one sequential reader, cold: lz4
/// 2,160 MB/s, with 512 KiB 1,870.
pub(super) const LOCAL_REQUEST: u32 = 256 << 10;
/// That where it does not, in bytes, as in an ordinary user's mount, which it reads 128 KiB ahead: it reads twice as far ahead for who
/// announces that he reads in order, and then has two of these under way. docs/PERFORMANCE.md has what that gains.
const SHORT_REQUEST: u32 = 128 << 10;
/// The longest request there is, in bytes, which mounts of files beyond this machine have: the kernel's own limit for FUSE is
/// 256 pages unless raised.
pub(super) const LONGEST_REQUEST: u32 = 1 << 20;
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
    mount_point: PathBuf,
}

impl Session {
    /// Agrees with the kernel on what both can do. `threads` are to answer requests, more where io_uring is used, which takes a
    /// `permission` that is held meanwhile, and where they are held up. The kernel reads `readahead` bytes ahead.
    ///
    /// # Errors
    /// The kernel says nothing that is understood, or lacks what the mount cannot do without.
    pub(super) fn begin(
        mut filesystem: WarpFilesystem,
        (connection, mount_point): (Arc<OwnedFd>, PathBuf),
        threads: usize,
        permission: &Permission,
        readahead: u32,
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
        let local = filesystem.elsewhere().is_none();
        let longest = match local {
            true if readahead >= 2 * LOCAL_REQUEST => LOCAL_REQUEST,
            true => SHORT_REQUEST,
            false => LONGEST_REQUEST,
        };
        let by_ring = greeting.offered.has(Features::IO_URING) && permission.is_held();
        let rings = match by_ring && local {
            true => Rings::prepare(&connection),
            false => None,
        };
        if rings.is_some() {
            wanted = wanted.and(Features::IO_URING);
        }
        let (answer, agreed) = greeting.answer(wanted, longest, MAX_BACKGROUND);
        filesystem.agreed(agreed, (readahead >= 2 * longest).then_some(longest));
        Reply::new(request.unique, &mut Device(&connection)).bytes(&answer);
        Ok(Self {
            filesystem: Arc::new(filesystem),
            connection,
            rings: rings.filter(|_| agreed.has(Features::IO_URING)),
            threads,
            mount_point,
        })
    }

    /// Serves until the mount ends.
    ///
    /// # Errors
    /// The connection to the kernel breaks otherwise, or a thread cannot be started. Others may still serve then.
    pub(super) fn run(self) -> Result<()> {
        let (ended, ends) = mpsc::channel();
        let readers = Readers {
            filesystem: Arc::clone(&self.filesystem),
            connection: self.connection,
            waiting: Arc::default(),
            ended: ended.clone(),
        };
        let (filesystem, mount_point) = (self.filesystem, self.mount_point);
        match self.rings {
            None => {
                let relief = Relief::of(1);
                for number in 0..self.threads {
                    readers.start(number, Some(relief.post(0)))?;
                }
                let mut number = self.threads;
                start("relief".to_owned(), move || {
                    relief.clone().watch(|queue| {
                        number += 1;
                        is_relief(readers.start(number, Some(relief.post(queue))))
                    });
                })?;
            }
            Some(mut rings) => {
                // What nobody waits for.
                readers.start(0, None)?;
                drop(readers);
                let relief = Relief::of(rings.queues());
                rings.serve(&filesystem, &relief, &ended);
                let ended = ended.clone();
                start("relief".to_owned(), move || {
                    relief.clone().watch(|queue| {
                        let added = rings.reinforce(queue, &filesystem, &relief, &ended);
                        let added = added.map_err(|error| Error::io("cannot add a thread", error));
                        let added = is_relief(added);
                        if added {
                            ask_for_something(queue, mount_point.clone());
                        }
                        added
                    });
                })?;
            }
        }
        drop(ended);
        // With one queue unserved, whoever asks there would wait for ever: the first that breaks ends it all.
        ends.iter()
            .find(io::Result::is_err)
            .unwrap_or(Ok(()))
            .map_err(|error| Error::io("cannot take requests", error))
    }
}

/// Starts threads that read requests from /dev/fuse.
struct Readers {
    filesystem: Arc<WarpFilesystem>,
    connection: Arc<OwnedFd>,
    waiting: Arc<Waiting>,
    ended: Sender<io::Result<()>>,
}

impl Readers {
    fn start(&self, number: usize, post: Option<Post>) -> Result<()> {
        let (filesystem, connection) = (Arc::clone(&self.filesystem), Arc::clone(&self.connection));
        let (ended, waiting) = (self.ended.clone(), Arc::clone(&self.waiting));
        start(format!("requests-{number}"), move || {
            tell_end(&ended, || {
                serve(&filesystem, &connection, &waiting, post.as_ref())
            });
        })
    }
}

/// Whether a thread was added because others are held up; the log is told.
fn is_relief(added: Result<()>) -> bool {
    match &added {
        Ok(()) => tracing::warn!("requests are held up: one more thread takes some"),
        // Until there is one again, this is found every half a second.
        Err(error) => tracing::debug!("requests are held up, and no thread is to be had: {error}"),
    }
    added.is_ok()
}

/// Asks the mount for something from a processor, so that an entry that is new in its queue is given work: without that, what waited there before would
/// wait on. Nobody waits for this. It is a question that is answered without the source, which may be what does not answer.
///
/// Who asks cannot be ended until he is answered. So he must not keep the connection open that ends with all other threads: he gives up whatever
/// is open.
fn ask_for_something(processor: usize, mount_point: PathBuf) {
    let asked = start("relief-asks".to_owned(), move || {
        let home = Home::new(processor);
        if !home.is_kept() || !give_up_descriptors() {
            return;
        }
        // There is none of that name, and none is looked for.
        let _ = rustix::fs::getxattr(&mount_point, "security.warpfs", &mut [0; 1][..]);
    });
    if let Err(error) = asked {
        tracing::debug!("what waits is answered with what is asked for next: {error}");
    }
}

/// Has this thread no descriptor open, whatever the others have; says whether that was possible.
#[expect(unsafe_code, reason = "no library has this call")]
fn give_up_descriptors() -> bool {
    // SAFETY: it takes numbers alone. With this flag the thread has a table of descriptors of its own, so none that another one uses is closed;
    // and this one uses none.
    let given_up = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            0_u32,
            u32::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    given_up == 0
}

/// Serves, and tells how that has ended: a thread that is lost by a panic as well, for nobody takes its place.
pub(super) fn tell_end(ended: &Sender<io::Result<()>>, serve: impl FnOnce() -> io::Result<()>) {
    let outcome = catch_unwind(AssertUnwindSafe(serve));
    let lost = |_| Err(io::Error::other("a thread has failed; please report it"));
    // Nobody listens any more where another has failed before.
    let _ = ended.send(outcome.unwrap_or_else(lost));
}

/// Has answered what is read from /dev/fuse, until there is no more.
fn serve(
    filesystem: &Arc<WarpFilesystem>,
    connection: &Arc<OwnedFd>,
    waiting: &Arc<Waiting>,
    post: Option<&Post>,
) -> io::Result<()> {
    let mut message = vec![0; REQUEST_ROOM];
    while let Some(length) = receive(connection, &mut message)? {
        let _busy = post.map(Post::begin);
        let message = message.get(..length).unwrap_or_default();
        let Some(request) = Request::from_message(message) else {
            // The kernel's messages are whole; what is none has no number to answer to.
            tracing::error!("the kernel sent what is no request, {length} bytes long");
            continue;
        };
        if let Some(elsewhere) = filesystem.elsewhere()
            && let Operation::Interrupt { unique } = request.operation
        {
            interrupt(elsewhere, connection, waiting, request.unique, unique);
        } else if let Some(elsewhere) = filesystem.elsewhere_for(&request) {
            let wait = waiting.begin(request.unique);
            let (filesystem, connection) = (Arc::clone(filesystem), Arc::clone(connection));
            let message = message.to_vec();
            elsewhere.run(move || {
                let request = Request::from_message(&message).filter(|_| wait.goes_on());
                if let Some(request) = request {
                    let mut outlet = Late(Device(&connection), &wait);
                    filesystem.answer(&request, Reply::new(request.unique, &mut outlet));
                }
            });
        } else if filesystem.elsewhere().is_some()
            && let Operation::Read { .. } = request.operation
        {
            // As good as answered, as a rule; but what was at hand may have been given up by now.
            let wait = waiting.begin(request.unique);
            let mut outlet = Late(Device(connection), &wait);
            filesystem.answer(&request, Reply::new(request.unique, &mut outlet));
        } else {
            let mut device = Device(connection);
            filesystem.answer(&request, Reply::new(request.unique, &mut device));
        }
    }
    Ok(())
}

/// Has a request answered that somebody was interrupted in waiting for.
fn interrupt(
    elsewhere: &Elsewhere,
    connection: &Arc<OwnedFd>,
    waiting: &Arc<Waiting>,
    own: u64,
    unique: u64,
) {
    let Some(patience) = waiting.patience(unique) else {
        // It is answered, or about to wait: should it not be answered, the kernel is to say so again, which it does at once.
        Reply::new(own, &mut Device(connection)).error(Errno::AGAIN);
        return;
    };
    let (connection, waiting) = (Arc::clone(connection), Arc::clone(waiting));
    elsewhere.run_later(patience, move || {
        if waiting.end(unique) {
            Reply::new(unique, &mut Device(&connection)).error(Errno::INTR);
        }
    });
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
    fn send(&mut self, unique: u64, outcome: std::result::Result<&[u8], Errno>) -> bool {
        let header = protocol::header(unique, outcome.map(<[u8]>::len));
        let pieces = [
            IoSlice::new(&header),
            IoSlice::new(outcome.unwrap_or_default()),
        ];
        match rustix::io::writev(self.0, &pieces) {
            Ok(_) => true,
            // ENOENT: nobody waits for it any more.
            Err(Errno::NOENT | Errno::NODEV) => false,
            Err(error) => {
                tracing::warn!("cannot answer a request: {error}");
                false
            }
        }
    }

    fn more_wait(&self) -> bool {
        let mut polled = [PollFd::new(self.0, PollFlags::IN)];
        let answered = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        answered.is_ok_and(|count| count > 0)
    }
}

/// Replies to what waits, unless it was answered meanwhile.
struct Late<'a>(Device<'a>, &'a Wait);

impl Outlet for Late<'_> {
    fn send(&mut self, unique: u64, outcome: std::result::Result<&[u8], Errno>) -> bool {
        self.1.end() && self.0.send(unique, outcome)
    }

    fn more_wait(&self) -> bool {
        self.0.more_wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_lost_ends_the_mount_with_an_error() {
        let (ended, ends) = mpsc::channel();
        tell_end(&ended, || Ok(()));
        tell_end(&ended, || panic!("as a request does that is none"));
        assert!(ends.recv().unwrap().is_ok());
        let error = ends.recv().unwrap().unwrap_err();
        assert!(error.to_string().contains("please report it"), "{error}");
    }
}
