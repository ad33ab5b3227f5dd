//! How the kernel's scheduler treats a mount's threads: which policy they have, and which processors they are kept on.
//!
//! They displace nobody when they are woken.
//!
//! Who reads from a mount mostly does something with it (hashes it, searches it), and the kernel asks for what follows
//! meanwhile. A thread woken for that took its reader's processor, while others were idle before long. Woken without that
//! (`SCHED_BATCH`, sched(7)) it waits for its turn or for an idle processor, whichever comes first; its share of processors
//! stays the same. Two processors, a gigabyte in default chunks of zstd, cold, medians of five, in turn: `b2sum` 1.72 s instead
//! of 1.98, in an ordinary user's mount 1.68 instead of 1.87; `cat` 0.84 and 0.85. Where two programs that never sleep keep the
//! processors busy, `cat` takes up to a fifth longer and random reads as long as before. A lower priority (nice 5) would do the
//! former as well, but then `cat` takes 1.9 times as long.

use nix::errno::Errno;
use nix::libc;
use rustix::thread::CpuSet;

/// How a thread is scheduled; see sched(7). Policies with priorities are not among those that warpfs gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Ordinary,
    /// Displaces nobody when it is woken.
    Batch,
    /// Runs when nobody else wants to.
    Idle,
    Other,
}

/// A thread by its number, as gettid(2) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Thread(libc::pid_t);

impl Thread {
    /// The one that asks.
    pub(super) fn this() -> Self {
        Self(nix::unistd::gettid().as_raw())
    }

    #[expect(unsafe_code, reason = "no library has this call alone")]
    pub(super) fn policy(self) -> nix::Result<Policy> {
        // SAFETY: the call takes a number and returns one. (musl's function of that name always fails.)
        let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, self.0) };
        Ok(
            match libc::c_int::try_from(Errno::result(policy)?).unwrap_or(-1) {
                libc::SCHED_OTHER => Policy::Ordinary,
                libc::SCHED_BATCH => Policy::Batch,
                libc::SCHED_IDLE => Policy::Idle,
                _ => Policy::Other,
            },
        )
    }

    /// Has it be of another policy; its `nice` stays.
    #[expect(unsafe_code, reason = "no library has this call alone")]
    pub(super) fn be(self, policy: Policy) -> nix::Result<()> {
        let policy = match policy {
            Policy::Ordinary => libc::SCHED_OTHER,
            Policy::Batch => libc::SCHED_BATCH,
            Policy::Idle => libc::SCHED_IDLE,
            Policy::Other => return Err(Errno::EINVAL),
        };
        // `struct sched_param` of the system call, which the C library's may be longer than: other policies' priority.
        let parameters: libc::c_int = 0;
        // SAFETY: the parameters live until the call returns, and are all that it reads.
        let changed = unsafe {
            libc::syscall(
                libc::SYS_sched_setscheduler,
                self.0,
                policy,
                &raw const parameters,
            )
        };
        Errno::result(changed).map(drop)
    }
}

/// Has this thread, and those it starts from now on, displace nobody; unless somebody has decided otherwise (chrt(1)).
pub(super) fn displace_nobody() {
    let thread = Thread::this();
    let changed = match thread.policy() {
        Ok(Policy::Ordinary) => thread.be(Policy::Batch),
        other => other.map(drop),
    };
    if let Err(error) = changed {
        tracing::debug!("the scheduler's policy stays as it is: {error}");
    }
}

/// The processor that this thread is kept on, unless what it does needs any processor rather than that one: its reader goes
/// on beside it, and the kernel has the next of his requests answered meanwhile, all of which came from the same processor.
/// Where the thread may not be kept there it stays where it may, and is as right as slow.
pub(super) struct Home {
    processor: CpuSet,
    anywhere: Option<CpuSet>,
    kept: bool,
    left: bool,
}

impl Home {
    /// Keeps this thread on a processor.
    pub(super) fn new(processor: usize) -> Self {
        let mut only = CpuSet::new();
        if processor < CpuSet::MAX_CPU {
            only.set(processor);
        }
        Self {
            anywhere: rustix::thread::sched_getaffinity(None).ok(),
            kept: stay_on(&only),
            processor: only,
            left: false,
        }
    }

    /// Whether the thread may be kept there.
    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Has the thread be anywhere from now on, or come back.
    pub(super) fn leave_if(&mut self, leave: bool) {
        if leave != self.left
            && let Some(anywhere) = &self.anywhere
        {
            self.left = leave;
            stay_on(if leave { anywhere } else { &self.processor });
        }
    }
}

fn stay_on(processors: &CpuSet) -> bool {
    rustix::thread::sched_setaffinity(None, processors)
        .inspect_err(|error| tracing::debug!("those processors are not for us: {error}"))
        .is_ok()
}
