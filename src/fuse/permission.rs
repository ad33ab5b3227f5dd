//! The permission to use io_uring, which the machine's administrator gives to all FUSE servers by a parameter of the kernel's module.
//!
//! Root's mounts give it to themselves for the moment in which the kernel asks, and take it back; servers that do so at the same time wait for each
//! other, by a lock on the parameter's file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// The file that says whether servers may use io_uring.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
/// How long to wait for others who are about to mount, who take some milliseconds each.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);

/// Lets this process's mount use io_uring while it is held, where only root may allow that and has not.
///
/// The kernel asks for permission at the greeting alone, so it is given for as long as that takes, and taken back: what other
/// file systems of this machine may do stays as it was. Whoever cannot give it holds it all the same, so that nobody takes it back
/// between the kernel's offer and the answer: it would be there for a moment, and the mount would end with it. Without holding it
/// no offer is to be accepted.
#[derive(Debug)]
pub(super) struct Permission {
    held: Option<File>,
    given: bool,
}

impl Permission {
    /// Gives permission if it may and must be given; there is nothing to be done if not.
    pub(super) fn give() -> Self {
        Self::try_to_give().unwrap_or_else(|error| {
            tracing::debug!("{PARAMETER} is not to be had: {error}");
            Self {
                held: None,
                given: false,
            }
        })
    }

    /// Whether it stays as it is for as long as this is held.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    fn try_to_give() -> io::Result<Self> {
        let Ok(mut parameter) = File::options().read(true).write(true).open(PARAMETER) else {
            let parameter = File::open(PARAMETER)?;
            wait_to_hold(&parameter, FlockOperation::NonBlockingLockShared)?;
            return Ok(Self {
                held: Some(parameter),
                given: false,
            });
        };
        // Others who do the same wait, and find it as it was.
        wait_to_hold(&parameter, FlockOperation::NonBlockingLockExclusive)?;
        let mut before = String::new();
        parameter.read_to_string(&mut before)?;
        let given = before.trim() != "Y";
        if given {
            parameter.write_all(b"Y")?;
        }
        Ok(Self {
            held: Some(parameter),
            given,
        })
    }
}

impl Drop for Permission {
    fn drop(&mut self) {
        if self.given
            && let Some(parameter) = &mut self.held
            && let Err(error) = parameter.write_all(b"N")
        {
            tracing::warn!("{PARAMETER} stays at Y: {error}");
        }
    }
}

/// Waits to hold a file, but not for ever: whoever may read it can keep others from that.
fn wait_to_hold(file: &File, how: FlockOperation) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(file, how) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(POLL),
            outcome => return Ok(outcome?),
        }
    }
}
