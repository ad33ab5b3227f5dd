//! Files that the kernel reads by itself (passthrough), registered at the connection by number.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Setter, ioctl, opcode};

/// A file that is registered, until it is dropped.
#[derive(Debug)]
pub(super) struct BackingFile {
    number: u32,
    connection: Weak<OwnedFd>,
}

impl BackingFile {
    /// Has the kernel note an open file down.
    ///
    /// # Errors
    /// It does not take it: a file on a stacked file system, say, or one of a server without the privilege.
    #[expect(unsafe_code, reason = "no crate wraps this ioctl")]
    pub(super) fn register(connection: &Arc<OwnedFd>, file: &File) -> io::Result<Self> {
        let map = BackingMap {
            descriptor: file.as_raw_fd(),
            flags: 0,
            padding: 0,
        };
        // SAFETY: the argument is as linux/fuse.h has it for this operation, which only reads it.
        let number = unsafe { ioctl(connection, Open(map)) }?;
        Ok(Self {
            number,
            connection: Arc::downgrade(connection),
        })
    }

    /// The number that the kernel knows it by.
    pub(super) fn number(&self) -> i32 {
        self.number.cast_signed()
    }
}

impl Drop for BackingFile {
    #[expect(unsafe_code, reason = "no crate wraps this ioctl")]
    fn drop(&mut self) {
        const CLOSE: Opcode = opcode::write::<u32>(MAGIC, 2);
        let Some(connection) = self.connection.upgrade() else {
            return;
        };
        // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE takes a pointer to a number, which it only reads.
        let closed = unsafe { ioctl(&connection, Setter::<CLOSE, u32>::new(self.number)) };
        if let Err(error) = closed {
            // It goes with the connection.
            tracing::debug!("a backing file stays registered: {error}");
        }
    }
}

/// Whether a file, which nobody else has, cannot be read past the page cache. One that it reads by itself the kernel opens with
/// the flags it was asked with, and it says EIO of this; EINVAL, as on the file's own file system, tells programs to do without.
pub(super) fn has_no_direct_reads(file: &File) -> bool {
    let set = |flags| fcntl_setfl(file, flags);
    let refused =
        |flags| set(flags | OFlags::DIRECT).and_then(|()| set(flags)) == Err(Errno::INVAL);
    fcntl_getfl(file).is_ok_and(refused)
}

/// FUSE_DEV_IOC_MAGIC.
const MAGIC: u8 = 229;

/// `struct fuse_backing_map`.
#[derive(Debug)]
#[repr(C)]
struct BackingMap {
    descriptor: i32,
    flags: u32,
    padding: u64,
}

/// FUSE_DEV_IOC_BACKING_OPEN, which returns the number.
struct Open(BackingMap);

#[expect(unsafe_code, reason = "no crate wraps this ioctl")]
// SAFETY: the operation reads what is pointed to, which lives as long as this, and gives its result as the return value.
unsafe impl Ioctl for Open {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        ioctl::opcode::write::<BackingMap>(MAGIC, 1)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(returned: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        Ok(returned.cast_unsigned())
    }
}
