//! Mounting and unmounting: the system calls where they are allowed, fusermount3 where they are not.
//!
//! A session is only handed a descriptor; this module alone mounts and unmounts: exactly the mount it made, recognised by its
//! device number. A path may be another's by the time it is unmounted, a busy mount may stay, and fusermount3 may be allowed
//! what the user is not, so it is asked before anything is concluded from /dev/fuse.

use std::ffi::{CString, OsStr};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::MountOptions;
use super::mount_point::MountPoint;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::mount_table::{self, FILE_SYSTEM_TYPE, Mounted};

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// How far the kernel reads ahead in a mount that nobody has set it for, in bytes (`VM_READAHEAD_PAGES`), where it does not say so.
const FIRST_READAHEAD: u32 = 128 << 10;

/// How often an unmount of a busy mount is tried, ten milliseconds apart: a request that was just answered keeps it busy
/// for a moment.
const TRIES: u32 = 10;

/// A mount of ours. Dropping it leaves it mounted: [`Mount::end`] unmounts.
#[derive(Debug)]
pub(super) struct Mount {
    mount_point: PathBuf,
    device: (u32, u32),
    /// What the kernel's requests come from, which tells when the mount has ended; only who serves it has that.
    connection: Option<OwnedFd>,
}

/// Whether a mount could be got at to end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It is no longer there.
    Ended,
    /// Another mount covers it, at the same place or at a directory above.
    Covered,
}

/// Mounts on `place`, and returns the descriptor the kernel's requests come from. `source` is what the mount table shows.
///
/// # Errors
/// Neither the system nor fusermount3 lets us, or the place has been moved.
pub(super) fn mount(
    source: &Path,
    place: &MountPoint,
    onto_file: bool,
    options: &MountOptions,
) -> Result<(OwnedFd, Mount)> {
    let missing = |error| matches!(error, Errno::NOENT | Errno::NXIO | Errno::NODEV);
    if rustix::fs::stat(DEVICE).is_err_and(missing) {
        return Err(Error::unusable(format!(
            "there is no {DEVICE}: load the kernel module fuse, or let the container use the device"
        )));
    }
    let mount_point = place.path();
    let directly = mount_directly(source, place, onto_file, options);
    let by_helper = matches!(directly, Err(Errno::PERM | Errno::ACCESS));
    let connection = match by_helper {
        true => mount_by_helper(source, mount_point, options)?,
        false => directly.context("cannot mount here", mount_point)?,
    };
    let mount = made(source, place, &connection).inspect_err(|_| {
        // Without its connection the mount would be there and dead.
        match by_helper {
            true => drop(unmount(mount_point, true)),
            false => place.clear(source),
        }
    })?;
    Ok((connection, mount))
}

/// The mount of `source` that was just made on `place`. Something else may cover it already.
fn made(source: &Path, place: &MountPoint, connection: &OwnedFd) -> Result<Mount> {
    let mount_point = place.path();
    let found = match place.is_in_place()? {
        true => mount_table::last_of_ours_at(mount_point, source)?,
        false => None,
    };
    let Some(entry) = found else {
        let why = "somebody has renamed, replaced or unmounted it while it was being mounted on";
        return Err(Error::unusable(why).in_file(mount_point));
    };
    let watched = connection.try_clone();
    Ok(Mount {
        connection: Some(watched.context("cannot watch", mount_point)?),
        ..Mount::known(mount_point, entry.device)
    })
}

fn mount_directly(
    source: &Path,
    place: &MountPoint,
    onto_file: bool,
    wanted: &MountOptions,
) -> Result<OwnedFd, Errno> {
    let connection = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let root_mode = if onto_file { 0o100_000 } else { 0o040_000 };
    let mut options = format!(
        "fd={},rootmode={root_mode:o},user_id={},group_id={},default_permissions",
        connection.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if wanted.allow_other {
        options.push_str(",allow_other");
    }
    for label in &wanted.security_labels {
        options.push(',');
        options.push_str(label);
    }
    let mut flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::NOEXEC, wanted.no_exec);
    flags.set(MountFlags::NOSYMFOLLOW, wanted.no_symlinks);
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(
        source,
        place.by_descriptor(),
        FILE_SYSTEM_TYPE,
        flags,
        options.as_c_str(),
    )?;
    Ok(connection)
}

/// Has fusermount3 mount for us. It sends the connection's descriptor through the socket that the environment names.
fn mount_by_helper(source: &Path, mount_point: &Path, wanted: &MountOptions) -> Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("cannot make a socket to mount", mount_point)?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())
        .context("cannot make a socket to mount", mount_point)?;
    let mut options = OsStr::new("ro,nosuid,nodev,default_permissions,subtype=warpfs,").to_owned();
    if wanted.allow_other {
        options.push("allow_other,");
    }
    if wanted.no_exec {
        options.push("noexec,");
    }
    // These it does not know, and says so, rather than that they are not heeded.
    if wanted.no_symlinks {
        options.push("nosymfollow,");
    }
    for label in &wanted.security_labels {
        options.push(label);
        options.push(",");
    }
    options.push("fsname=");
    options.push(escape_commas(source.as_os_str()));
    let output = Command::new(HELPER)
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(mount_point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output();
    drop(theirs);
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::unusable(
                "mounting without root's rights needs fusermount3: ask root to install the package fuse3",
            ));
        }
        Err(error) => return Err(Error::io("cannot run fusermount3", error)),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let why = why_refused(said.trim().trim_start_matches("fusermount3: "));
        return Err(Error::unusable(why).in_file(mount_point));
    }
    receive_descriptor(&ours)
        .context("cannot receive the connection of", mount_point)?
        .ok_or_else(|| Error::unusable("fusermount3 sent no connection").in_file(mount_point))
}

/// Why fusermount3 refused, given what it said, and what to ask root for where that is not for the user to change.
fn why_refused(said: &str) -> String {
    let wanted = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    if rustix::fs::access(DEVICE, wanted) == Err(Errno::ACCESS) {
        return format!(
            "{DEVICE} is closed to you: ask root for \"chmod 666 {DEVICE}\" (udev makes it so where it runs), or to \
             mount this with --allow-other"
        );
    }
    let powerless = match said.contains("Operation not permitted") {
        true => {
            "; ask root whether it is setuid root, as the package fuse3 installs it, and whether you may mount here at all"
        }
        false => "",
    };
    format!("fusermount3 refuses: {said}{powerless}")
}

fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

fn escape_commas(name: &OsStr) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let escaped = name.as_bytes().iter().flat_map(|&byte| {
        let escape: &[u8] = if matches!(byte, b',' | b'\\') {
            b"\\"
        } else {
            b""
        };
        escape.iter().copied().chain([byte])
    });
    OsStringExt::from_vec(escaped.collect())
}

impl Mount {
    /// A mount that another process has made.
    pub(super) fn known(mount_point: &Path, device: (u32, u32)) -> Self {
        Self {
            mount_point: mount_point.to_owned(),
            device,
            connection: None,
        }
    }

    /// Lets the connection go, which breaks when nobody serves it any more.
    pub(super) fn let_connection_go(&mut self) {
        self.connection = None;
    }

    /// Whether the kernel has ended the mount: then its device number may be another's, however soon that is.
    fn has_ended(&self) -> bool {
        let Some(connection) = &self.connection else {
            return false;
        };
        let mut polled = [PollFd::new(connection, PollFlags::empty())];
        let at_once = Timespec::default();
        let answered = rustix::event::poll(&mut polled, Some(&at_once));
        answered.is_ok_and(|count| count > 0)
    }

    /// Where it was mounted.
    pub(super) fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Its device number, as stat(2) gives it.
    pub(super) fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Lets the kernel read ahead up to `bytes` in this mount, and says how far it does. INIT can only lower what a mount
    /// begins with; more is the administrator's to give, so nothing happens where we are not allowed to.
    pub(super) fn set_readahead(&self, bytes: u32) -> u32 {
        let (major, minor) = self.device;
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        let Err(error) = std::fs::write(&file, (bytes / 1024).to_string()) else {
            return bytes;
        };
        tracing::debug!("the kernel's readahead stays as it is: {file}: {error}");
        let set = std::fs::read_to_string(&file).ok();
        let set: Option<u32> = set.and_then(|set| set.trim().parse().ok());
        set.map_or(FIRST_READAHEAD, |kibibytes| kibibytes.saturating_mul(1024))
    }

    /// Unmounts, unless somebody else has done so, wherever it has come to lie meanwhile. A mount that is in use
    /// disappears from the tree at once and ends when its last user does. Beneath another mount it cannot be
    /// reached.
    ///
    /// # Errors
    /// The mount cannot be looked for, or the system refuses.
    pub(super) fn end(&self) -> Result<Reach> {
        let places = mount_table::of_device(self.device)?;
        // Asked after it was looked for: what was found was this one.
        if self.has_ended() {
            return Ok(Reach::Ended);
        }
        self.take_away(&places, |place| match unmount(place, false) {
            Err(error) if is_busy(&error) => {
                tracing::warn!("{} is still in use: it is detached", place.display());
                unmount(place, true)
            }
            other => other,
        })
    }

    /// Unmounts unless it is in use, and says whether it is gone. One that another mount covers, or that is bound to a second
    /// place, is in use.
    ///
    /// # Errors
    /// The mount cannot be looked for, or the system refuses.
    pub(super) fn end_unless_used(&self) -> Result<bool> {
        let places = mount_table::of_device(self.device)?;
        if self.has_ended() {
            return Ok(true);
        }
        if places.len() > 1 || places.iter().any(|place| place.covered) {
            return Ok(false);
        }
        match self.take_away(&places, |place| unmount(place, false)) {
            Err(error) if is_busy(&error) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// Unmounts if the connection to its server is broken. Who can no longer be sure that the mount is there asks for
    /// this: its device number may be another's by now.
    ///
    /// # Errors
    /// As [`Mount::end`].
    pub(super) fn end_if_dead(&self) -> Result<Reach> {
        let places = mount_table::of_device(self.device)?;
        if !places.iter().all(is_dead) {
            return Ok(Reach::Ended);
        }
        self.take_away(&places, |place| unmount(place, true))
    }

    /// Unmounts it by `unmount` at these places. They are not looked for again: when the last is gone, the device number
    /// may be given to another mount at once.
    fn take_away(
        &self,
        places: &[Mounted],
        unmount: impl Fn(&Path) -> Result<()>,
    ) -> Result<Reach> {
        for place in places.iter().filter(|place| !place.covered) {
            // One of the places may have taken others along.
            let topmost = mount_table::topmost_at(&place.mount_point)?;
            if topmost.is_some_and(|topmost| topmost.device == self.device) && !self.has_ended() {
                unmount(&place.mount_point)?;
            }
        }
        match places.iter().any(|place| place.covered) {
            true => Ok(Reach::Covered),
            false => Ok(Reach::Ended),
        }
    }
}

/// Whether the connection to the server of what is mounted there is broken; it cannot be asked where another covers it.
fn is_dead(place: &Mounted) -> bool {
    let asked = rustix::fs::statfs(&place.mount_point);
    let broken = |error| {
        matches!(
            error,
            // The third from a queue of io_uring whose thread has just died.
            Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED | Errno::CONNREFUSED
        )
    };
    place.covered || asked.is_err_and(broken)
}

/// Says that there is no warpfs at a mount point.
pub(super) fn none_here(mount_point: &Path) -> Error {
    let why = "no warpfs is mounted here ('findmnt -t fuse.warpfs' lists where one is)";
    Error::unusable(why).in_file(mount_point)
}

/// Unmounts what `warpfs mount` has mounted on `mount_point`.
///
/// # Errors
/// No warpfs is mounted there, it is in use, or the system refuses.
pub fn unmount_command(mount_point: &Path) -> Result<()> {
    let canonical = canonical_mount_point(mount_point)?;
    let mounted = mount_table::topmost_at(&canonical)?
        .is_some_and(|entry| entry.file_system_type == FILE_SYSTEM_TYPE);
    if !mounted {
        return Err(none_here(mount_point));
    }
    unmount(&canonical, false).map_err(|error| {
        if is_busy(&error) {
            Error::unusable(format!(
                "in use: end the programs that use it ('fuser -vm {}' lists them)",
                mount_point.display()
            ))
            .in_file(mount_point)
        } else {
            error
        }
    })
}

/// The mount point as the mount table spells it. Only its parent is resolved, so that a mount whose server is gone
/// can be named too.
fn canonical_mount_point(mount_point: &Path) -> Result<PathBuf> {
    if let Ok(canonical) = mount_point.canonicalize() {
        return Ok(canonical);
    }
    match (mount_point.parent(), mount_point.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            Ok(parent
                .canonicalize()
                .context("cannot find", mount_point)?
                .join(name))
        }
        _ => Err(Error::unusable("no mount point").in_file(mount_point)),
    }
}

fn unmount(mount_point: &Path, detach: bool) -> Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if detach {
        flags |= UnmountFlags::DETACH;
    }

    for _ in 0..TRIES {
        let outcome = match rustix::mount::unmount(mount_point, flags) {
            Err(Errno::PERM) => unmount_by_helper(mount_point, detach),
            outcome => outcome.context("cannot unmount", mount_point),
        };
        match outcome {
            Err(error) if is_busy(&error) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
    Err(Errno::BUSY).context("cannot unmount", mount_point)
}

fn unmount_by_helper(mount_point: &Path, detach: bool) -> Result<()> {
    let mut command = Command::new(HELPER);
    command.arg("-u");
    if detach {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(mount_point)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io("cannot run fusermount3", error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(Errno::BUSY).context("cannot unmount", mount_point);
    }
    Err(Error::unusable(format!("fusermount3 refuses: {}", said.trim())).in_file(mount_point))
}

fn is_busy(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io { source, .. }
        if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_a_source_do_not_end_the_option() {
        assert_eq!(escape_commas(OsStr::new(r"a,b\c")), r"a\,b\\c");
    }
}
