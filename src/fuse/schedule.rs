//! How the kernel's scheduler treats a mount's threads: as those that displace nobody when they are woken.
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

/// Has this thread, and those it starts from now on, displace nobody; unless somebody has decided otherwise (chrt(1)).
pub(super) fn displace_nobody() {
    if let Err(error) = try_to_displace_nobody() {
        tracing::debug!("the scheduler's policy stays as it is: {error}");
    }
}

#[expect(unsafe_code, reason = "no library has these calls alone")]
fn try_to_displace_nobody() -> nix::Result<()> {
    let this_thread = 0;
    // `struct sched_param` of the system call, which the C library's may be longer than: other policies' priority.
    let parameters: libc::c_int = 0;
    // SAFETY: the call takes numbers alone.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, this_thread) };
    if Errno::result(policy)? != libc::c_long::from(libc::SCHED_OTHER) {
        return Ok(());
    }
    // SAFETY: the parameters live until the call returns, and are all that it reads.
    let changed = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            this_thread,
            libc::SCHED_BATCH,
            &raw const parameters,
        )
    };
    Errno::result(changed).map(drop)
}
