//! Tells a service manager how far the mount's life has come, in the words of sd_notify(3): systemd's, and those of
//! whoever else sets `NOTIFY_SOCKET`. A unit of `Type=notify` is then started when the mount answers, not before.
//!
//! Only a mount in the foreground does so: one that goes to the background is ready when its command ends, and what it
//! was started by may be somebody else's service.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::OneLine;

/// Where the service manager listens, if one does.
#[derive(Debug)]
pub(super) struct ServiceManager {
    address: Option<SocketAddr>,
}

impl ServiceManager {
    /// The one that nobody is told of.
    pub(super) fn none() -> Self {
        Self { address: None }
    }

    /// The one that the environment names.
    pub(super) fn from_environment() -> Self {
        let address = std::env::var_os("NOTIFY_SOCKET").and_then(|name| match address(&name) {
            Ok(address) => Some(address),
            Err(error) => {
                tracing::warn!(
                    "the service manager cannot be told when the mount is ready: NOTIFY_SOCKET={}: {error}",
                    name.display()
                );
                None
            }
        });
        Self { address }
    }

    /// The mount answers; `status` is what the service manager shows of it.
    pub(super) fn ready(&self, status: impl std::fmt::Display) {
        self.tell(&format!("READY=1\nSTATUS={}", OneLine(status)));
    }

    /// The mount is about to end.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, state: &str) {
        let Some(address) = &self.address else {
            return;
        };
        let told = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to_addr(state.as_bytes(), address));
        if let Err(error) = told {
            tracing::warn!("cannot tell the service manager {state:?}: {error}");
        }
    }
}

/// The address behind a name: a path, or behind an at sign a name in the kernel's abstract name space.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().split_first() {
        Some((b'@', abstract_name)) => SocketAddr::from_abstract_name(abstract_name),
        _ => SocketAddr::from_pathname(name),
    }
}
