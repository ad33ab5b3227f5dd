//! `mount.fuse.warpfs`: what mount(8) runs for `mount -t fuse.warpfs` and for lines of /etc/fstab.
//!
//! It is the same program, called by that name through a link, and takes the same options behind `-o`; only the words
//! before that, and the exit codes, are as mount(8) wants them ("EXTERNAL HELPERS" there). Without that link mount(8) runs
//! `mount.fuse`, which calls a program by the name of the type, as `warpfs SOURCE MOUNTPOINT -o OPTIONS`: that is heard too.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use warpfs::Error;
use warpfs::error::OneLine;

use super::mount::{Mount, Sloppy};
use super::{Volume, mount_words, report, say, urls};

/// By which names mount(8) finds a helper for the types `fuse.warpfs` and `warpfs`.
const NAMES: [&str; 2] = ["mount.fuse.warpfs", "mount.warpfs"];

/// mount(8)'s exit codes for what was called wrongly, and for what could not be mounted.
const WRONGLY_CALLED: u8 = 1;
const NOT_MOUNTED: u8 = 32;

/// Mount packed files from /etc/fstab, or by "mount -t fuse.warpfs"
#[derive(Debug, Parser)]
#[command(name = "mount.fuse.warpfs", version, max_term_width = 100)]
#[command(after_help = "\
Examples:
  mount -t fuse.warpfs /data/packed /mnt/data
  mount -t fuse.warpfs -o allow_other,cache_size=1G /data/packed /mnt/data
In /etc/fstab:
  /data/packed  /mnt/data  fuse.warpfs  allow_other,nofail  0  0")]
struct Helper {
    /// A directory, or one .warp file; or a URL
    source: PathBuf,
    /// Where to show it: a directory, or for one file also an existing regular file
    mountpoint: PathBuf,
    /// Options, separated by commas: those of "warpfs mount" by their long names, and mount(8)'s own
    #[arg(short, value_name = "OPT[,OPT...]")]
    options: Vec<String>,
    /// Be sloppy: ignore options that are not known
    #[arg(short)]
    sloppy: bool,
    /// Fake: check the options, and mount nothing
    #[arg(short)]
    fake: bool,
    /// Do not write to /etc/mtab, which is never done
    #[arg(short)]
    no_mtab: bool,
    /// Be verbose; there is nothing more to say
    #[arg(short)]
    verbose: bool,
    /// Mount in this mount namespace
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// The file system's type, which is known
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// The helper's command line, for its manual.
pub(crate) fn command_line() -> clap::Command {
    Helper::command()
}

/// Who has called the program as mount(8) wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    Mount,
    /// It says `dev` and `suid` of whatever root mounts, whether anybody has asked for that or not.
    MountFuse,
}

/// Whether the program was called so, and by whom.
pub(super) fn is_asked_for() -> Option<Caller> {
    let called = std::env::args_os().collect::<Vec<_>>();
    let [program, words @ ..] = called.as_slice() else {
        return None;
    };
    let name = Path::new(program).file_name();
    if NAMES.iter().any(|known| name == Some(OsStr::new(known))) {
        return Some(Caller::Mount);
    }
    match words {
        [source, _, option, _] if option == "-o" => {
            let program = super::command_line();
            let is_command = program.find_subcommand(source).is_some();
            let words = source.as_encoded_bytes();
            // Else it is a command that was mistyped. URLs have slashes too.
            let is_source = words.contains(&b'/') || Path::new(source).symlink_metadata().is_ok();
            (is_source && !is_command && !words.starts_with(b"-")).then_some(Caller::MountFuse)
        }
        _ => None,
    }
}

/// Does what mount(8) says.
pub(super) fn run(caller: Caller) -> ExitCode {
    // As what this server is to be found by ps(1) and pidof(8).
    let _ = rustix::thread::set_name(c"warpfs");
    let parsed = command_line()
        .try_get_matches_from(urls::arguments())
        .and_then(|matches| Helper::from_arg_matches(&matches));
    match parsed {
        Ok(helper) => helper.mount(caller),
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            wrongly_called(line.trim_start_matches("error: "))
        }
    }
}

fn wrongly_called(why: impl std::fmt::Display) -> ExitCode {
    say(format_args!("mount.fuse.warpfs: {}", OneLine(why)));
    ExitCode::from(WRONGLY_CALLED)
}

impl Helper {
    fn mount(self, caller: Caller) -> ExitCode {
        let mut mount = Mount::new(&self.source, &self.mountpoint);
        let sloppy = match self.sloppy {
            true => Sloppy::Yes,
            false => Sloppy::No,
        };
        let words = self.options.iter().map(|list| mount_words::separate(list));
        // mount(8) says so where nothing is said. What is mounted is read-only all the same, as of a CD-ROM.
        let means_nothing = |word: &str| match word {
            "rw" => true,
            "dev" | "suid" => caller == Caller::MountFuse,
            _ => false,
        };
        for word in words.flatten().filter(|word| !means_nothing(word)) {
            if let Err(why) = mount.apply(word, sloppy) {
                return wrongly_called(format_args!(
                    "{}: -o {word}: {why}",
                    self.mountpoint.display()
                ));
            }
        }
        if let Err(why) = mount.check() {
            let mountpoint = urls::shown(&self.mountpoint);
            return wrongly_called(format_args!("{}: {why}", mountpoint.display()));
        }
        if self.fake {
            return ExitCode::SUCCESS;
        }
        let volume = Volume {
            quiet: false,
            verbose: false,
        };
        let mounted = self.enter_namespace().and_then(|()| mount.serve(volume));
        match mounted {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                report(&error);
                ExitCode::from(NOT_MOUNTED)
            }
        }
    }

    fn enter_namespace(&self) -> warpfs::Result<()> {
        let Some(namespace) = &self.namespace else {
            return Ok(());
        };
        let enter = || -> io::Result<()> {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(namespace, flags, Mode::empty())?;
            let kind = Some(LinkNameSpaceType::Mount);
            Ok(move_into_link_name_space(opened.as_fd(), kind)?)
        };
        enter().map_err(|error| Error::io("cannot enter the namespace", error).in_file(namespace))
    }
}
