//! Going to the background: the starting process waits until the mount answers and exits with what came of it.
//!
//! The fork happens before any thread is started, because only the forking thread lives on in the child. The child
//! keeps the terminal until it is ready, so that what goes wrong is said where the user looks.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::unistd::{ForkResult, fork};
use rustix::process::WaitOptions;

use crate::error::{Error, IoContext, Result};

/// What could not be done when there is no child.
const CANNOT_DETACH: &str = "cannot go to the background";

/// The child's side of the promise to say when it is ready.
#[derive(Debug)]
pub(super) struct Readiness {
    /// Nothing if the process stays in the foreground.
    waiting: Option<OwnedFd>,
}

impl Readiness {
    /// The readiness nobody waits for.
    pub(super) fn foreground() -> Self {
        Self { waiting: None }
    }

    /// Lets the starting process exit with success, and leaves its terminal.
    ///
    /// # Errors
    /// The standard streams cannot be given up.
    pub(super) fn announce(self) -> Result<()> {
        let Some(waiting) = self.waiting else {
            return Ok(());
        };
        give_streams_up()?;
        // Whoever waited may be gone; the mount stands all the same.
        let _ = File::from(waiting).write_all(&[1]);
        Ok(())
    }
}

/// Continues in a child process with its own session; the calling process never returns from here: it exits with 0
/// when the child is ready, and if that ends before, having said why, with the child's exit code.
///
/// Must be called while the process has one thread.
///
/// # Errors
/// No child can be made.
pub(super) fn detach() -> Result<Readiness> {
    let failed = |error: rustix::io::Errno| Error::io(CANNOT_DETACH, error.into());
    let (ours, theirs) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    match fork_while_alone(CANNOT_DETACH)? {
        ForkResult::Parent { child } => {
            drop(theirs);
            let ready = File::from(ours).read_exact(&mut [0]).is_ok();
            std::process::exit(if ready { 0 } else { exit_code_of(child) });
        }
        ForkResult::Child => {
            drop(ours);
            rustix::process::setsid().map_err(failed)?;
            Ok(Readiness {
                waiting: Some(theirs),
            })
        }
    }
}

/// Waits for a child that has failed, and gives its exit code: 1 if a signal has ended it.
fn exit_code_of(child: nix::unistd::Pid) -> i32 {
    let ended = rustix::process::Pid::from_raw(child.as_raw())
        .and_then(|child| rustix::process::waitpid(Some(child), WaitOptions::empty()).ok()?);
    ended
        .and_then(|(_, status)| status.exit_status())
        .unwrap_or(1)
}

/// Forks. `action` is what cannot be done if that fails.
///
/// Must be called while the process has one thread: only the calling one lives on in the child.
///
/// # Errors
/// No child can be made.
#[expect(unsafe_code, reason = "there is no other way to fork")]
pub(super) fn fork_while_alone(action: &'static str) -> Result<ForkResult> {
    // SAFETY: in a process of one thread, as the caller promises, the child may do everything its parent might.
    unsafe { fork() }.map_err(|error| Error::io(action, error.into()))
}

/// Lets the standard streams go.
///
/// # Errors
/// They cannot be redirected.
pub(super) fn give_streams_up() -> Result<()> {
    let null_path = Path::new("/dev/null");
    let null = File::options()
        .read(true)
        .write(true)
        .open(null_path)
        .context("cannot open", null_path)?;
    let redirect = || -> rustix::io::Result<()> {
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)
    };
    redirect().context("cannot redirect to", null_path)
}
