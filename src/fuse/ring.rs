//! The kernel's requests by io_uring, a queue for each processor.
//!
//! Whoever asks is answered on the processor it asks from: a request goes to the queue of that processor, and so to a thread that
//! is kept there. A wake-up across processors, which halted ones of virtual machines take tens of microseconds for, is spared
//! twice a request. Measured on two cores, one reader of 4 KiB at random, 55 microseconds of work for each: 93 µs a read by
//! read(2) and write(2), 64 µs so; without any work 15 and 8.
//!
//! A queue has several threads, each with one entry, so that one slow request holds up nobody; when all are held up it gets another
//! (see `relief`). They share nothing: each has its own ring and its own memory, which the kernel fills with a request and takes the reply
//! from.
//!
//! Once agreed on there is no way back: the kernel lets nobody ask for anything before every queue has an entry. So the rings
//! are made, and seen to work, before the kernel is answered.
//!
//! The kernel has to be told by its administrator that servers may do so (see `permission`). Layouts and commands are those of
//! linux/fuse.h (`fuse_uring_req_header`, `fuse_uring_cmd_req`) and of the kernel's fuse-io-uring.rst.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use rustix::io::Errno;

use super::aside::{Answerer, Askers};
use super::filesystem::WarpFilesystem;
use super::pages::Pages;
use super::protocol::{self, Outlet, REPLY_HEADER, REQUEST_HEADER, Reply, Request};
use super::relief::{Post, Relief};
use super::schedule::Home;
use super::session::{LOCAL_REQUEST, tell_end};
use super::start;

/// How many threads a queue has: with one alone, a read that waits would hold up all others of its processor. Three make one
/// sequential reader slower on two processors (1,080 instead of 1,300 MB/s, zstd): more want to run than can.
const THREADS_PER_QUEUE: usize = 2;
/// How many queues there may be. The kernel wants one for each processor that the machine may ever have, each with threads
/// and memory of its own; beyond this read(2) has to do.
const MOST_QUEUES: usize = 64;
/// The longest reply, in bytes, whose reader goes on where he was (see `aside`). What he copies of a longer one takes
/// him a while, in which the kernel has more of it asked for: chunks of 1 MiB of zstd took him 1.05 instead of 0.85 s so.
const SHORT_REPLY: usize = 64 << 10;

/// Which processors the machine may ever have.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Threads with rings that have been made and wait for the kernel's agreement. Dropped, they end.
pub(super) struct Rings {
    connection: Arc<OwnedFd>,
    queues: usize,
    /// For the agreement, each for its queue.
    waiting: Vec<(usize, Sender<Agreement>)>,
    /// Whom its threads answer, if they may step aside.
    askers: Option<Arc<Askers>>,
}

/// What a thread needs when there is agreement.
struct Agreement {
    filesystem: Arc<WarpFilesystem>,
    post: Post,
    /// Told when the entry is in its queue.
    registered: Option<Sender<()>>,
    /// Told how it ended.
    ended: Sender<io::Result<()>>,
}

impl Rings {
    /// Makes a ring for each entry; `None` if that cannot be, and the log says why.
    pub(super) fn prepare(connection: &Arc<OwnedFd>) -> Option<Self> {
        let prepared = possible_processors().and_then(|processors| {
            if processors > MOST_QUEUES {
                return Err(io::Error::other("there are too many processors"));
            }
            let mut rings = Self {
                connection: Arc::clone(connection),
                queues: processors,
                waiting: Vec::new(),
                askers: Askers::new().map(Arc::new),
            };
            for queue in 0..processors {
                for _ in 0..THREADS_PER_QUEUE {
                    rings.add(queue)?;
                }
            }
            Ok(rings)
        });
        prepared
            .inspect_err(|error| tracing::debug!("requests do not come by io_uring: {error}"))
            .ok()
    }

    /// How many queues there are.
    pub(super) fn queues(&self) -> usize {
        self.queues
    }

    /// Makes a ring for one more entry of a queue, and a thread that waits with it for the agreement.
    fn add(&mut self, queue: usize) -> io::Result<()> {
        let (made, is_made) = mpsc::channel();
        let (waiting, agreement) = mpsc::channel::<Agreement>();
        let connection = Arc::clone(&self.connection);
        let askers = self.askers.clone();
        let thread = start(format!("queue-{queue}"), move || {
            let home = Home::new(queue);
            match Entry::new(queue, connection) {
                Ok(entry) => {
                    let _ = made.send(Ok(()));
                    // Nobody tells of one if the kernel agrees to none.
                    if let Ok(agreement) = agreement.recv() {
                        tell_end(&agreement.ended, || {
                            serve(entry, home, askers.as_ref(), &agreement)
                        });
                    }
                }
                Err(error) => drop(made.send(Err(error))),
            }
        });
        thread.map_err(io::Error::other)?;
        let ended = |_| io::Error::other("a thread has ended unexpectedly");
        is_made.recv().map_err(ended)??;
        self.waiting.push((queue, waiting));
        Ok(())
    }

    /// Has the threads that wait answer the kernel's requests from now on, until the mount ends; each tells `ended` then.
    pub(super) fn serve(
        &mut self,
        filesystem: &Arc<WarpFilesystem>,
        relief: &Arc<Relief>,
        ended: &Sender<io::Result<()>>,
    ) {
        self.agree(filesystem, relief, None, ended);
    }

    /// Adds a thread to a queue of a mount that is served, and returns when its entry is there. What waited in the queue before, it gets
    /// only after something new was asked for there.
    ///
    /// # Errors
    /// There can be no such thread.
    pub(super) fn reinforce(
        &mut self,
        queue: usize,
        filesystem: &Arc<WarpFilesystem>,
        relief: &Arc<Relief>,
        ended: &Sender<io::Result<()>>,
    ) -> io::Result<()> {
        let (registered, is_registered) = mpsc::channel();
        self.add(queue)?;
        self.agree(filesystem, relief, Some(&registered), ended);
        drop(registered);
        let ended = |_| io::Error::other("a thread has ended unexpectedly");
        is_registered.recv().map_err(ended)
    }

    fn agree(
        &mut self,
        filesystem: &Arc<WarpFilesystem>,
        relief: &Arc<Relief>,
        registered: Option<&Sender<()>>,
        ended: &Sender<io::Result<()>>,
    ) {
        for (queue, waiting) in self.waiting.drain(..) {
            let agreement = Agreement {
                filesystem: Arc::clone(filesystem),
                post: relief.post(queue),
                registered: registered.cloned(),
                ended: ended.clone(),
            };
            if waiting.send(agreement).is_err() {
                let error = io::Error::other("a thread has ended unexpectedly");
                let _ = ended.send(Err(error));
            }
        }
    }
}

/// How many threads may come to answer requests by io_uring, each with a ring that takes a descriptor, but for those that are added
/// where others are held up: where there is no descriptor left they are not.
pub(super) fn threads() -> usize {
    match possible_processors() {
        Ok(processors) if processors <= MOST_QUEUES => processors * THREADS_PER_QUEUE,
        _ => 0,
    }
}

/// How many queues the kernel has: one for each processor up to the highest number there may be.
fn possible_processors() -> io::Result<usize> {
    let ranges = fs::read_to_string(POSSIBLE)?;
    let highest = ranges.trim().rsplit([',', '-']).next().unwrap_or_default();
    let highest: usize = highest.parse().map_err(io::Error::other)?;
    Ok(highest.saturating_add(1))
}

/// Answers what comes to this entry until the mount ends.
fn serve(
    mut entry: Entry,
    mut home: Home,
    askers: Option<&Arc<Askers>>,
    agreement: &Agreement,
) -> io::Result<()> {
    let Agreement {
        filesystem,
        post,
        registered,
        ..
    } = agreement;
    let answerer = askers
        .filter(|_| home.is_kept())
        .map(|askers| Answerer::new(askers, entry.queue));
    let mut rest = Vec::new();
    entry.register()?;
    if let Some(registered) = registered {
        entry.hand_in();
        let _ = registered.send(());
    }
    while entry.wait()? {
        let _busy = post.begin();
        let (headers, payload) = entry.memory();
        // The reply goes where the request came from.
        let asked = *headers;
        let (header, others) = asked.split_at(ARGUMENTS);
        let (arguments, entry_header) = others.split_at(ENTRY_HEADER - ARGUMENTS);
        let length = number_at(entry_header, PAYLOAD_LENGTH).unwrap_or(0) as usize;
        rest.clear();
        rest.extend_from_slice(payload.get(..length).unwrap_or_default());
        let mut slot = Slot {
            headers,
            payload,
            length: 0,
            busy: false,
        };
        let mut alone = None;
        if let Some(request) = Request::parse(header, arguments, &rest) {
            alone = answerer
                .as_ref()
                .filter(|_| request.is_awaited())
                .and_then(|answerer| answerer.asked_by(request.thread));
            let reply = Reply::new(request.unique, &mut slot);
            filesystem.answer(&request, reply);
        } else {
            // The kernel's requests are whole; but without a reply whoever asked would wait for ever.
            tracing::error!("the kernel sent what is no request");
            slot.answer(request_number(header), Err(Errno::IO));
        }
        let (length, busy) = (slot.length, slot.busy);
        home.leave_if(busy);
        entry.commit(commit_number(entry_header))?;
        if let Some(alone) = alone.filter(|_| !busy && length <= SHORT_REPLY) {
            alone.answer(|| entry.hand_in());
        }
    }
    Ok(())
}

/// Where the parts of `struct fuse_uring_req_header` begin, and how long all of it is, in bytes.
const ARGUMENTS: usize = 128;
const ENTRY_HEADER: usize = 256;
const HEADERS: usize = 288;
/// Where the parts of `struct fuse_uring_ent_in_out` begin, which is the last third of that.
const COMMIT_NUMBER: usize = 8;
const PAYLOAD_LENGTH: usize = 16;
/// The command that brings an entry in, and the one that has its reply taken (`enum fuse_uring_cmd`).
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

fn number_at(bytes: &[u8], place: usize) -> Option<u32> {
    let bytes = bytes.get(place..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// The number of a request (`unique` of `struct fuse_in_header`), whatever else it is.
fn request_number(header: &[u8]) -> u64 {
    let bytes = header.get(8..).unwrap_or_default();
    bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes)
}

fn commit_number(entry_header: &[u8]) -> u64 {
    let bytes = entry_header.get(COMMIT_NUMBER..).unwrap_or_default();
    bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes)
}

/// Where the reply to an entry's request goes.
struct Slot<'a> {
    headers: &'a mut [u8; HEADERS],
    payload: &'a mut [u8],
    /// Of the reply, in bytes.
    length: usize,
    /// The request kept a processor busy.
    busy: bool,
}

impl Slot<'_> {
    fn answer(&mut self, unique: u64, outcome: std::result::Result<usize, Errno>) {
        let header = protocol::header(unique, outcome);
        self.length = outcome.unwrap_or(0);
        let length = u32::try_from(self.length).unwrap_or(0);
        let place = ENTRY_HEADER + PAYLOAD_LENGTH;
        for (place, bytes) in [(0, &header[..]), (place, &length.to_ne_bytes())] {
            if let Some(room) = self.headers.get_mut(place..place + bytes.len()) {
                room.copy_from_slice(bytes);
            }
        }
    }
}

impl Outlet for Slot<'_> {
    fn send(&mut self, unique: u64, outcome: std::result::Result<&[u8], Errno>) -> bool {
        let outcome = outcome.and_then(|bytes| {
            let place = self.payload.get_mut(..bytes.len()).ok_or(Errno::INVAL)?;
            place.copy_from_slice(bytes);
            Ok(bytes.len())
        });
        self.answer(unique, outcome);
        true
    }

    fn room(&mut self) -> Option<&mut [u8]> {
        Some(self.payload)
    }

    fn send_filled(&mut self, unique: u64, length: usize, busy: bool) {
        self.busy = busy;
        self.answer(unique, Ok(length));
    }

    /// What waits in the queues cannot be seen.
    fn more_wait(&self) -> bool {
        false
    }
}

const _: () = assert!(REPLY_HEADER <= ARGUMENTS && REQUEST_HEADER <= ARGUMENTS);

/// An entry of a queue: a ring of its own, and the memory that the kernel reads and writes while it has the entry.
struct Entry {
    ring: IoUring<Entry128, cqueue::Entry>,
    queue: u16,
    connection: Arc<OwnedFd>,
    memory: Box<Memory>,
    /// Whether the kernel has the memory.
    given: bool,
}

struct Memory {
    headers: [u8; HEADERS],
    payload: Pages,
    pieces: [Piece; 2],
}

/// `struct iovec`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Piece {
    base: *mut u8,
    length: usize,
}

impl Entry {
    fn new(queue: usize, connection: Arc<OwnedFd>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(2)?;
        let none = Piece {
            base: std::ptr::null_mut(),
            length: 0,
        };
        Ok(Self {
            ring,
            queue: u16::try_from(queue).map_err(io::Error::other)?,
            connection,
            memory: Box::new(Memory {
                headers: [0; HEADERS],
                payload: Pages::zeroed(LOCAL_REQUEST as usize),
                pieces: [none; 2],
            }),
            given: false,
        })
    }

    /// What the kernel has written, and where the reply goes; only between [`Entry::wait`] and [`Entry::commit`].
    fn memory(&mut self) -> (&mut [u8; HEADERS], &mut [u8]) {
        (&mut self.memory.headers, &mut self.memory.payload)
    }

    /// Brings the entry into its queue.
    fn register(&mut self) -> io::Result<()> {
        let Memory {
            headers,
            payload,
            pieces,
        } = &mut *self.memory;
        *pieces = [
            Piece {
                base: headers.as_mut_ptr(),
                length: headers.len(),
            },
            Piece {
                base: payload.as_mut_ptr(),
                length: payload.len(),
            },
        ];
        let address = pieces.as_ptr() as u64;
        self.push(REGISTER, 0, address, 2)
    }

    /// Gives the reply to the request of this number; the kernel takes it with [`Entry::hand_in`] or else [`Entry::wait`].
    fn commit(&mut self, number: u64) -> io::Result<()> {
        self.push(COMMIT_AND_FETCH, number, 0, 0)
    }

    /// Has the kernel take the reply or the entry, if it can; what it does not take now it does when it is waited for.
    fn hand_in(&mut self) {
        if let Err(error) = self.ring.submit() {
            tracing::debug!("the kernel takes it later: {error}");
        }
    }

    #[expect(unsafe_code, reason = "io_uring is given memory by address")]
    fn push(&mut self, command: u32, number: u64, address: u64, pieces: u32) -> io::Result<()> {
        // `struct fuse_uring_cmd_req`: flags, the number, the queue.
        let mut arguments = [0; 80];
        let (numbers, _) = arguments.split_at_mut(18);
        let (numbers, queue) = numbers.split_at_mut(16);
        let (_, committed) = numbers.split_at_mut(8);
        committed.copy_from_slice(&number.to_ne_bytes());
        queue.copy_from_slice(&self.queue.to_ne_bytes());
        let mut entry = opcode::UringCmd80::new(types::Fd(self.connection.as_raw_fd()), command)
            .cmd(arguments)
            .addr(Some(address))
            .build();
        // SAFETY: an entry is the kernel's `struct io_uring_sqe` (it is `repr(C)`, 128 bytes long), which has the length that
        // belongs to the address, here a number of pieces, as a u32 at byte 24; the builder has no word for it.
        unsafe {
            (&raw mut entry).cast::<u32>().add(6).write(pieces);
        }
        self.given = true;
        // SAFETY: the memory behind the address, and what the kernel notes down of it, is this entry's box, which stays where
        // it is and is not touched before the command completes; one that does not is never freed (see `drop`).
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)
    }

    /// Waits until the kernel has put a request into the memory; says whether it has, or the mount has ended.
    fn wait(&mut self) -> io::Result<bool> {
        loop {
            // There may be one since the reply was handed in.
            let Some(completed) = self.ring.completion().next() else {
                match self.ring.submit_and_wait(1) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => drop(other?),
                }
                continue;
            };
            self.given = false;
            if completed.result() >= 0 {
                return Ok(true);
            }
            let error = io::Error::from_raw_os_error(-completed.result());
            return match Errno::from_io_error(&error) {
                Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::NODEV | Errno::CANCELED) => {
                    Ok(false)
                }
                _ => Err(error),
            };
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.given {
            // The kernel may yet write to it.
            let empty = Box::new(Memory {
                headers: [0; HEADERS],
                payload: Pages::none(),
                pieces: self.memory.pieces,
            });
            std::mem::forget(std::mem::replace(&mut self.memory, empty));
        }
    }
}
