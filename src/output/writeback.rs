//! Writing to the disk begun early.
//!
//! What is written stays in memory until it is synced at the end, and the disk has nothing to do as long as the cores encode
//! or decode. So the system is asked to begin with what has been written already, a step at a time, without waiting for it:
//! the sync at the end then finds little left. All of it is advice: a failure shows in that sync and nowhere else.
//!
//! There is no call that only begins to write among those that need no `unsafe`. `POSIX_FADV_DONTNEED` begins to write what
//! has not been written, and drops from memory what has; pages that it has only just begun to write stay, so that most of a
//! file asked for but once is still in memory afterwards.
//!
//! The call waits where the disk's queue is full, so it has a thread of its own. That one has at most one step waiting: a
//! disk that does not keep up is asked for less often and for more at a time.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::fs::Advice;

/// How much is asked for at a time, in bytes: enough for the disk to be written to in long runs, little to be left at the
/// end.
const STEP: u64 = 8 << 20;
/// Files up to this size, in bytes, are left to the sync, which has them written in one run in a moment.
const BEGIN_AT: u64 = 32 << 20;

/// The writeback of one file that is written from front to back.
pub(super) struct Writeback<'a> {
    file: &'a File,
    /// Up to where it was asked for.
    begun: u64,
    thread: Option<Thread>,
}

struct Thread {
    steps: SyncSender<Range<u64>>,
    handle: JoinHandle<()>,
}

impl<'a> Writeback<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            file,
            begun: 0,
            thread: None,
        }
    }

    /// Notes that all bytes in front of `end` have been written, and will not be again. Returns at once.
    pub(super) fn written_up_to(&mut self, end: u64) {
        let end = end / STEP * STEP;
        if end < BEGIN_AT || end <= self.begun {
            return;
        }
        if self.thread.is_none() {
            self.thread = Thread::start(self.file);
        }
        if let Some(thread) = &self.thread
            && thread.steps.try_send(self.begun..end).is_ok()
        {
            self.begun = end;
        }
    }
}

impl Drop for Writeback<'_> {
    fn drop(&mut self) {
        if let Some(Thread { steps, handle }) = self.thread.take() {
            drop(steps);
            // It does not panic.
            let _ = handle.join();
        }
    }
}

impl Thread {
    /// `None` if there is no thread to be had.
    fn start(file: &File) -> Option<Self> {
        let own = file.try_clone().ok()?;
        let (steps, taken) = sync_channel(1);
        let handle = std::thread::Builder::new()
            .name("writeback".to_owned())
            .spawn(move || begin_each(&own, &taken))
            .ok()?;
        Some(Self { steps, handle })
    }
}

fn begin_each(file: &File, steps: &Receiver<Range<u64>>) {
    for step in steps {
        // None would be all up to the end of the file; no step is empty.
        let len = NonZeroU64::new(step.end.saturating_sub(step.start));
        let _ = rustix::fs::fadvise(file, step.start, len, Advice::DontNeed);
    }
}

/// Writes to a file, from an offset on, and has it written back meanwhile.
pub(crate) struct Appender<'a> {
    file: &'a File,
    offset: u64,
    writeback: Writeback<'a>,
}

impl<'a> Appender<'a> {
    /// The first byte goes to `offset`.
    pub(crate) fn new(file: &'a File, offset: u64) -> Self {
        Self {
            file,
            offset,
            writeback: Writeback::new(file),
        }
    }
}

impl Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.offset)?;
        self.offset += written as u64;
        self.writeback.written_up_to(self.offset);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_gets_no_thread_and_a_large_one_is_asked_for_in_whole_steps() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 * STEP).unwrap();
        let mut writeback = Writeback::new(&file);
        writeback.written_up_to(BEGIN_AT - 1);
        assert!(writeback.thread.is_none());
        assert_eq!(writeback.begun, 0);
        writeback.written_up_to(BEGIN_AT + 1);
        assert!(writeback.thread.is_some());
        assert_eq!(writeback.begun, BEGIN_AT);
        writeback.written_up_to(BEGIN_AT + STEP - 1);
        assert_eq!(writeback.begun, BEGIN_AT);
    }

    #[test]
    fn what_is_appended_lies_from_the_offset_on() {
        let file = tempfile::tempfile().unwrap();
        let block: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 253) as u8).collect();
        let mut appender = Appender::new(&file, 77);
        for _ in 0..20 {
            appender.write_all(&block).unwrap();
        }
        assert!(appender.writeback.begun >= BEGIN_AT);
        drop(appender);
        assert_eq!(file.metadata().unwrap().len(), 77 + 20 * 3_000_001);
        let mut read = vec![0; block.len()];
        for n in 0..20 {
            file.read_exact_at(&mut read, 77 + n * 3_000_001).unwrap();
            assert!(read == block);
        }
    }
}
