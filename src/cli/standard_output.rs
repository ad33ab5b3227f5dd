//! Standard output as a place for any number of bytes.
//!
//! A pipe whose reader does not read holds its writer up for good. A signal must end that, so a pipe is opened anew for
//! this process alone, where writing can be told not to wait, and is waited for with an eye on the flag that stops a job.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// How long a full pipe is waited for before a look at whether to stop.
const POLL_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// See the module's description.
pub(super) struct StandardOutput<'a> {
    file: File,
    cancelled: &'a AtomicBool,
}

impl<'a> StandardOutput<'a> {
    /// Standard output, without the buffer of [`io::Stdout`], which is made for lines.
    pub(super) fn new(cancelled: &'a AtomicBool) -> io::Result<Self> {
        let own = io::stdout().as_fd().try_clone_to_owned()?;
        let file = File::from(pipe_anew(&own).unwrap_or(own));
        Ok(Self { file, cancelled })
    }
}

/// The pipe that `output` is, if it is one that may be opened; the flag set here is not seen by those who share it.
fn pipe_anew(output: &OwnedFd) -> Option<OwnedFd> {
    let stat = rustix::fs::fstat(output).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return None;
    }
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/fd/1", flags, Mode::empty()).ok()
}

impl Write for StandardOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                // Not `Interrupted`, after which writers try again.
                return Err(io::Error::other("interrupted"));
            }
            match poll(
                &mut [PollFd::new(&self.file, PollFlags::OUT)],
                Some(&POLL_INTERVAL),
            ) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            match self.file.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
