//! Servers that hold files, and what can go wrong on the way to them: `servers` has a real object store and a real web server,
//! `proxy` stands in front of one, counts, delays and breaks; [`Bucket`] and [`Site`] put them together.
//!
//! Everything is on loopback, on ports that the system chooses, and ends with the test, also when it fails.

pub mod proxy;
pub mod servers;

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::{Mounted, warpfs};
use proxy::Proxy;
use servers::{S3, Web};

/// What nobody but the server may get to see.
pub const SECRET: &str = "wJalrXUtnFEMI-not-for-anybody-EXAMPLEKEY";
/// Who asks.
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";

/// A bucket of a real object store, behind a proxy.
pub struct Bucket {
    pub proxy: Proxy,
    pub store: S3,
}

impl Bucket {
    /// Its name.
    pub const NAME: &'static str = "bucket";

    /// An empty one.
    pub fn new() -> Self {
        let store = S3::start();
        store.make_bucket(Self::NAME);
        let proxy = Proxy::to(store.address);
        Self { proxy, store }
    }

    /// One that holds these files of the vectors, and the original they have in common.
    pub fn with_vectors(names: &[&str]) -> Self {
        let bucket = Self::new();
        for name in names {
            bucket.put(name, &fs::read(super::vector(name)).unwrap());
        }
        bucket
    }

    /// Puts an object there, in the place of what has its name.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.store.put(Self::NAME, key, bytes);
    }

    /// The URL of an object or a prefix.
    pub fn url(&self, key: &str) -> PathBuf {
        PathBuf::from(format!("s3://{}/{key}", Self::NAME))
    }

    /// The program, in an environment that leads it here, through the proxy.
    pub fn command(&self) -> Command {
        let mut command = warpfs();
        self.lead(&mut command);
        command
    }

    /// Sets the environment that leads a program here, through the proxy.
    pub fn lead(&self, command: &mut Command) {
        command
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.proxy.address))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_REGION", "us-east-1");
    }

    /// Mounts an object or a prefix on a directory of its own.
    pub fn mount(&self, key: &str, arguments: &[&str]) -> Mounted {
        Mounted::by(self.command(), &self.url(key), arguments)
    }
}

/// A directory of a real web server, behind a proxy.
pub struct Site {
    pub proxy: Proxy,
    pub server: Web,
}

impl Site {
    /// An empty one.
    pub fn new() -> Self {
        let server = Web::start();
        let proxy = Proxy::to(server.address);
        Self { proxy, server }
    }

    /// The directory that is served.
    pub fn root(&self) -> PathBuf {
        self.server.root()
    }

    /// Puts a file there, in the place of what has its name, at once.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        servers::put_file(&self.root().join(name), bytes);
    }

    /// The URL of a file or a directory.
    pub fn url(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("http://{}/{name}", self.proxy.address))
    }

    /// Mounts a file, or a tree by its index, on a directory of its own.
    pub fn mount(&self, name: &str, arguments: &[&str]) -> Mounted {
        Mounted::by(warpfs(), &self.url(name), arguments)
    }
}

/// Runs a command with further arguments, and demands success.
pub fn succeeds(mut command: Command, arguments: &[impl AsRef<OsStr>]) {
    let output = command.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
