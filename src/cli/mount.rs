//! `warpfs mount` and `umount`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, FromArgMatches};
#[cfg(feature = "remote")]
use warpfs::DiskCacheOptions;
use warpfs::fuse::{self, FOREVER, MountOptions};
use warpfs::{EngineOptions, Verify};

use super::allocator::give_large_buffers_back;
use super::logging::{LogFile, begin_logging};
use super::urls::is_url;
use super::{Outcome, Volume, mount_words, say, size, threads_parser, wrong_usage};

/// Show a tree of .warp files, or one of them, as the originals, read-only
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  warpfs mount /data/packed /mnt/data       every x.warp in the one as x in the other
  warpfs mount disk.img.warp disk.img       a file shown on an (empty) file
  warpfs mount s3://bucket/disk.img.warp /mnt/disk
                                            an object of a store, in a directory
  warpfs mount -f -v --cache-size 1G a b    in the foreground, saying what happens
  warpfs umount /mnt/data")]
pub(super) struct Mount {
    /// A directory, or one .warp file; or an object's URL: s3://, gs://, az://, http://, https://
    source: PathBuf,
    /// Where to show it: a directory, or for one file also an existing regular file
    mountpoint: PathBuf,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Memory for all that grows with use, decoded chunks above all [default: the smaller of 512M and an eighth of the
    /// memory this process may use]
    #[arg(long, value_name = "SIZE", value_parser = cache_size)]
    cache_size: Option<u64>,
    /// How many threads decode ahead of readers [default: the number of processors]
    #[arg(long, value_name = "N", value_parser = threads_parser())]
    threads: Option<u16>,
    /// How far ahead of a reader to decode at most, or "off" [default: 16M, or two chunks if that is more, but at most
    /// a quarter of --cache-size; of a URL that quarter]
    #[arg(long, value_name = "SIZE|off", value_parser = prefetch)]
    prefetch: Option<u64>,
    /// How long the kernel may believe what it was told of names and attributes, or "forever"
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = time_to_live)]
    ttl: Duration,
    /// Let other users in, as far as the files' modes and access lists do
    #[arg(long)]
    allow_other: bool,
    /// How to check what is decoded by the digests that `pack` has put behind it: "fast" (XXH3 of every 32 KiB), "strict"
    /// (BLAKE3, up to the checksum of the whole file) or "off"
    #[arg(long, value_name = "fast|strict|off", default_value = "fast", value_parser = verify)]
    verify: Verify,
    /// Unmount also when this process is killed or crashes. Without it the mount point then answers with errors until
    /// "warpfs umount"; with it, what lies beneath shows, which programs may take for the truth
    #[arg(long)]
    auto_unmount: bool,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics: a port of this machine (127.0.0.1), or HOST:PORT. Who can
    /// reach it can read them; they name no files
    #[arg(long, value_name = "ADDRESS", value_parser = metrics_address)]
    metrics: Option<String>,
    /// Unmount when nobody has used the mount for so long: no request came, no file is open, nobody's working directory lies
    /// in it
    #[arg(long, value_name = "SECONDS", value_parser = seconds_above_zero)]
    idle_timeout: Option<Duration>,
    /// Of a SOURCE beyond this machine: how long a reader waits for it, further tries included, before a read fails
    #[cfg(feature = "remote")]
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds_above_zero)]
    remote_timeout: Duration,
    /// Of a SOURCE beyond this machine: keep compressed chunks in this directory, for later mounts and for other mounts at the same
    /// time. It must be yours, and writable by nobody else
    #[cfg(feature = "remote")]
    #[arg(long, value_name = "DIR")]
    disk_cache: Option<PathBuf>,
    /// How much room they may take there, at least 16M [default: the smaller of 10G and a tenth of the file system]
    #[cfg(feature = "remote")]
    #[arg(long, value_name = "SIZE", value_parser = disk_cache_size)]
    disk_cache_size: Option<u64>,
    /// Append what happens to this file; it may be rotated. SIGUSR1 has the mount say more, SIGUSR2 less
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,
    /// Options in mount(8)'s words, separated by commas: those above by their long names, noexec, nosymfollow, and what
    /// /etc/fstab may hold
    #[arg(short = 'o', value_name = "OPT[,OPT...]")]
    options: Vec<String>,
    #[arg(skip)]
    no_exec: bool,
    #[arg(skip)]
    no_symlinks: bool,
    #[arg(skip)]
    security_labels: Vec<String>,
}

/// Whether options that are not known are passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sloppy {
    Yes,
    No,
}

/// Unmount what `warpfs mount` has mounted
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  warpfs umount /mnt/data")]
pub(super) struct Umount {
    /// Where it is mounted
    mountpoint: PathBuf,
}

/// Below this there is no room for even one chunk of the usual sizes.
fn cache_size(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        size if size < 1 << 20 => Err("at least 1M".to_owned()),
        size => Ok(size),
    }
}

/// Below this a cache would hold hardly more than a few large chunks.
#[cfg(feature = "remote")]
fn disk_cache_size(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        size if size < 16 << 20 => Err("at least 16M".to_owned()),
        size => Ok(size),
    }
}

fn prefetch(text: &str) -> Result<u64, String> {
    if text == "off" {
        return Ok(0);
    }
    size::parse(text)
}

fn verify(text: &str) -> Result<Verify, String> {
    match text {
        "fast" => Ok(Verify::Fast),
        "strict" => Ok(Verify::Strict),
        "off" => Ok(Verify::Off),
        _ => Err("one of fast, strict and off".to_owned()),
    }
}

/// `PORT`, `:PORT` or `HOST:PORT`; without a host, this machine alone gets at it.
fn metrics_address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let port: u16 = port
        .parse()
        .map_err(|_| "write a port, or HOST:PORT".to_owned())?;
    match host {
        "" => Ok(format!("127.0.0.1:{port}")),
        host if host.contains(':') && !host.starts_with('[') => {
            Err(format!("write [{host}]:{port}"))
        }
        host => Ok(format!("{host}:{port}")),
    }
}

fn time_to_live(text: &str) -> Result<Duration, String> {
    if text == "forever" {
        return Ok(FOREVER);
    }
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map(|duration| duration.min(FOREVER))
        .ok_or_else(|| format!("'{text}' is no number of seconds, nor \"forever\""))
}

fn seconds_above_zero(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("'{text}' is no number of seconds above 0"))
}

/// Whether this is a directory with nothing in it.
fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

impl Mount {
    /// What a command line says that names only these two.
    pub(super) fn new(source: &Path, mountpoint: &Path) -> Self {
        let words = [Path::new("mount"), Path::new("--"), source, mountpoint];
        let matches = Self::augment_args(clap::Command::new("mount")).get_matches_from(words);
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Mounts as the command line says, and serves until the mount ends.
    pub(super) fn run(mut self, volume: Volume) -> warpfs::Result<Outcome> {
        for list in std::mem::take(&mut self.options) {
            for option in mount_words::separate(&list) {
                if let Err(why) = self.apply(option, Sloppy::No) {
                    wrong_usage("mount", format!("-o {option}: {why}"));
                }
            }
        }
        if let Err(why) = self.check() {
            wrong_usage("mount", why);
        }
        self.serve(volume)
    }

    /// Checks what no option says by itself.
    pub(super) fn check(&self) -> Result<(), String> {
        if is_url(&self.mountpoint) {
            return Err("a mount point is a directory or file of this machine".to_owned());
        }
        #[cfg(feature = "remote")]
        if self.disk_cache_size.is_some() && self.disk_cache.is_none() {
            let why =
                "--disk-cache-size (-o disk_cache_size=) wants --disk-cache DIR (-o disk_cache=)";
            return Err(why.to_owned());
        }
        Ok(())
    }

    /// Mounts, and serves until the mount ends.
    pub(super) fn serve(self, volume: Volume) -> warpfs::Result<Outcome> {
        if !volume.quiet
            && is_empty(&self.source)
            && self.mountpoint.is_dir()
            && !is_empty(&self.mountpoint)
        {
            say(format_args!(
                "warpfs: {}: is empty, and {} is not: are they the right way round?",
                self.source.display(),
                self.mountpoint.display()
            ));
        }
        let covered = fuse::shown_at(&self.mountpoint).ok().flatten();
        let covers = covered.filter(|_| !volume.quiet).map(|source| {
            format!(
                "warpfs: {}: covers {}, which is mounted here too, until \"warpfs umount\"",
                self.mountpoint.display(),
                source.display()
            )
        });
        let defaults = EngineOptions::default();
        let log = match &self.log_file {
            Some(path) => Some(LogFile::open(path)?),
            None => None,
        };
        #[cfg(feature = "remote")]
        let disk_cache = match self.disk_cache {
            Some(directory) => {
                // The mount leaves the directory it was started in.
                let found = std::path::absolute(&directory);
                let directory = found
                    .map_err(|error| warpfs::Error::io("cannot use", error).in_file(&directory))?;
                let size = self.disk_cache_size;
                Some(DiskCacheOptions { directory, size })
            }
            None => None,
        };
        give_large_buffers_back();
        let foreground = self.foreground;
        let options = MountOptions {
            source: self.source,
            mount_point: self.mountpoint,
            engine: EngineOptions {
                cache_size: self.cache_size.unwrap_or(defaults.cache_size),
                threads: self.threads.map_or(defaults.threads, usize::from),
                prefetch: self.prefetch,
                verify: self.verify,
                #[cfg(feature = "remote")]
                disk_cache,
            },
            time_to_live: self.ttl,
            allow_other: self.allow_other,
            no_exec: self.no_exec,
            no_symlinks: self.no_symlinks,
            security_labels: self.security_labels,
            idle_timeout: self.idle_timeout,
            foreground,
            auto_unmount: self.auto_unmount,
            #[cfg(feature = "remote")]
            remote_timeout: self.remote_timeout,
            metrics: self.metrics,
        };
        fuse::serve(&options, || {
            if let Some(covers) = covers {
                say(covers);
            }
            begin_logging(log, foreground, volume);
        })?;
        Ok(Outcome::Done)
    }

    /// Takes an option in mount(8)'s words: our own long options by their names, and what others mean. Of those that
    /// contradict each other the last holds.
    pub(super) fn apply(&mut self, option: &str, sloppy: Sloppy) -> Result<(), String> {
        let (name, quoted) = option.split_once('=').unwrap_or((option, ""));
        let value = mount_words::unquote(quoted);
        match name.replace('-', "_").as_str() {
            // `allow_other=no` is meant to keep others out.
            "allow_other" | "auto_unmount" | "exec" | "noexec" | "symfollow" | "nosymfollow"
                if option.contains('=') =>
            {
                return Err("takes no value: give the word alone, or leave it out".to_owned());
            }
            "allow_other" => self.allow_other = true,
            "auto_unmount" => self.auto_unmount = true,
            "cache_size" => self.cache_size = Some(cache_size(value)?),
            "threads" => {
                let threads = value.parse().ok();
                let threads = threads.filter(|threads| (1..=1024).contains(threads));
                self.threads = Some(threads.ok_or("not a number from 1 to 1024")?);
            }
            "prefetch" => self.prefetch = Some(prefetch(value)?),
            "ttl" => self.ttl = time_to_live(value)?,
            "verify" => self.verify = verify(value)?,
            "metrics" => self.metrics = Some(metrics_address(value)?),
            "idle_timeout" => self.idle_timeout = Some(seconds_above_zero(value)?),
            #[cfg(feature = "remote")]
            "disk_cache" => self.disk_cache = Some(value.into()),
            #[cfg(feature = "remote")]
            "disk_cache_size" => self.disk_cache_size = Some(disk_cache_size(value)?),
            #[cfg(feature = "remote")]
            "remote_timeout" => self.remote_timeout = seconds_above_zero(value)?,
            "log_file" => self.log_file = Some(value.into()),
            "exec" => self.no_exec = false,
            "noexec" => self.no_exec = true,
            "symfollow" => self.no_symlinks = false,
            "nosymfollow" => self.no_symlinks = true,
            "rw" => return Err("a warpfs mount is read-only".to_owned()),
            "suid" => {
                return Err("programs gain no rights in a warpfs mount: leave it out".to_owned());
            }
            "dev" => return Err("device files are dead in a warpfs mount: leave it out".to_owned()),
            "remount" => {
                return Err(
                    "a warpfs mount keeps its options: unmount it and mount it anew".to_owned(),
                );
            }
            _ if mount_words::is_security_label(name) => {
                self.security_labels.push(option.to_owned());
            }
            _ if mount_words::asks_nothing(name) || sloppy == Sloppy::Yes => {}
            _ => return Err("unknown option".to_owned()),
        }
        Ok(())
    }
}

impl Umount {
    pub(super) fn run(self) -> warpfs::Result<Outcome> {
        fuse::unmount(&self.mountpoint)?;
        Ok(Outcome::Done)
    }
}
