//! The command line: arguments in, exit code out.
//!
//! Exit codes: 0 done, 1 the data or the system said no, 2 wrong usage. Errors are one line on
//! standard error, and so is what `verify` finds; what was asked for goes to standard output; progress goes to standard error, if
//! that is a terminal.

mod allocator;
mod estimate;
mod info;
mod logging;
mod mount;
pub(crate) mod mount_helper;
mod mount_words;
mod outputs;
mod pack;
mod progress;
mod size;
mod standard_output;
mod stats;
mod unpack;
mod urls;
mod verify;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser, Subcommand};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use warpfs::error::{OneLine, Part};
use warpfs::info::may_have_a_table;
use warpfs::job::{Control, is_ignored};
use warpfs::{Error, ErrorKind};

use self::outputs::Planned;
use self::progress::Progress;

/// Mount compressed .warp files as the files they hold, and pack, unpack and verify them.
#[derive(Debug, Parser)]
#[command(name = "warpfs", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    volume: Volume,
}

/// How much is said.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Volume {
    /// No progress, summaries or warnings; a mount logs errors alone. Errors are always shown
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        display_order = 900
    )]
    quiet: bool,
    /// Say more, if the command has more to say
    #[arg(short, long, global = true, display_order = 900)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::Mount),
    Umount(mount::Umount),
    Pack(pack::Arguments),
    Unpack(unpack::Arguments),
    Verify(verify::Arguments),
    Info(info::Arguments),
    Estimate(estimate::Arguments),
    Stats(stats::Stats),
}

/// Whether everything asked for was done; what was not has been reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
}

impl Outcome {
    /// Fails as well if the other did.
    fn and(self, other: Outcome) -> Outcome {
        match self {
            Outcome::Done => other,
            Outcome::Failed => Outcome::Failed,
        }
    }

    fn failed_if(failed: bool) -> Outcome {
        match failed {
            true => Outcome::Failed,
            false => Outcome::Done,
        }
    }
}

/// What a job is given with each input.
struct Task<'a> {
    input: &'a Path,
    /// Whether the input is a tree, and to be taken as one.
    tree: bool,
    /// Where the result goes, as in [`Planned`].
    output: Option<&'a Path>,
    progress: &'a Progress,
    control: Control<'a>,
}

/// Does a job for every input, the others too if one of them fails; signals stop it.
fn for_each_input(
    plan: &[Planned<'_>],
    volume: Volume,
    job: impl Fn(&Task<'_>) -> warpfs::Result<Outcome>,
) -> warpfs::Result<Outcome> {
    let cancelled = stop_on_signals()?;
    let mut outcome = Outcome::Done;
    for planned in plan {
        let progress = Progress::new(volume, planned.tree);
        let task = Task {
            input: planned.input,
            tree: planned.tree,
            output: planned.output.as_deref(),
            progress: &progress,
            control: Control {
                observer: &progress,
                cancelled: &cancelled,
            },
        };
        let done = job(&task);
        // Else the bar is drawn once more in front of what is said now.
        drop(progress);
        outcome = outcome.and(settle(done)?);
    }
    Ok(outcome)
}

/// Lets the other inputs go on after one that failed, but not after an interruption.
fn settle(done: warpfs::Result<Outcome>) -> warpfs::Result<Outcome> {
    match done {
        Err(error) if !matches!(error.kind(), ErrorKind::Cancelled) => {
            report(&error);
            Ok(Outcome::Failed)
        }
        done => done,
    }
}

/// The command line, as the manual and the shells' completions describe it.
pub(crate) fn command_line() -> clap::Command {
    Arguments::command()
}

/// Does what the command line says.
pub(crate) fn run() -> ExitCode {
    #[cfg(feature = "remote")]
    urls::hide_secrets();
    if let Some(caller) = mount_helper::is_asked_for() {
        return mount_helper::run(caller);
    }
    let Arguments { command, volume } = Arguments::parse_from(urls::arguments());
    if let Command::Pack(_) | Command::Unpack(_) | Command::Verify(_) | Command::Info(_) = command {
        logging::show_warnings(volume);
    }
    let outcome = match command {
        Command::Mount(arguments) => arguments.run(volume),
        Command::Umount(arguments) => arguments.run(),
        Command::Pack(arguments) => pack::run(&arguments, volume),
        Command::Unpack(arguments) => unpack::run(&arguments, volume),
        Command::Verify(arguments) => verify::run(&arguments, volume),
        Command::Estimate(arguments) => estimate::run(&arguments, volume),
        Command::Info(arguments) => info::run(&arguments, volume),
        Command::Stats(arguments) => arguments.run(),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Does a job that reads a packed file, and says what is left to do where damage has ended it. One that did `keep_going` ends
/// only where nothing tells where the chunks lie.
fn save_what_can_be(
    keep_going: bool,
    task: &Task<'_>,
    job: impl FnOnce() -> warpfs::Result<Outcome>,
) -> warpfs::Result<Outcome> {
    let done = job();
    let Err(error) = &done else {
        return done;
    };
    match keep_going {
        _ if !error.is_damage() => return done,
        false if may_be_saved(error) => task.progress.line(&format!(
            "warpfs: {error}; --keep-going goes on behind damage, and tells which bytes are lost"
        )),
        true if (is_of_beginning(error) || !may_be_saved(error))
            && may_have_a_table(task.input) =>
        {
            task.control.observer.failed(error);
            task.progress.line(&format!(
                "warpfs: {}: --keep-going needs header and table: {WITHOUT_THEM}",
                urls::shown(task.input).display()
            ));
        }
        _ => return done,
    }
    Ok(Outcome::Failed)
}

/// What to do where header or table may tell of chunks what is not true.
const WITHOUT_THEM: &str = "\"A damaged beginning\" in \"man warpfs-unpack\" and docs/FORMAT.md says how to save the \
                            chunks without";

fn is_of_beginning(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DamagedBeginning)
}

/// Whether more can be saved of a file with this damage than was: the table says where the chunks lie.
fn may_be_saved(error: &Error) -> bool {
    error.chunk().is_some()
        || matches!(
            error.kind(),
            ErrorKind::EndsInside(Part::Payload | Part::ChunkHeader | Part::Footer)
                | ErrorKind::UnknownChecksum(_)
                | ErrorKind::DigestLength { .. }
                | ErrorKind::DamagedBeginning
                | ErrorKind::DamagedRecord(_)
                | ErrorKind::ChecksumMismatch { .. }
        )
}

/// Shows an error. A reader of our output that has gone away is not one.
fn report(error: &Error) {
    if let ErrorKind::Io { source, .. } = error.kind()
        && source.kind() == io::ErrorKind::BrokenPipe
    {
        return;
    }
    say(format_args!("warpfs: {error}"));
}

/// Writes a line to standard error. Where nobody can be told, the work goes on all the same.
fn say(line: impl std::fmt::Display) {
    let line = format!("{}\n", OneLine(line));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Standard output did not take what there is to show.
fn cannot_print(error: io::Error) -> Error {
    Error::io("cannot write to standard output", error)
}

/// Ends the process as clap does for wrong usage of a command.
fn wrong_usage(command: &str, message: impl std::fmt::Display) -> ! {
    let mut program = command_line();
    // So that the usage of a command begins with the program's name.
    program.build();
    let command = match program.find_subcommand_mut(command) {
        Some(command) => command,
        None => &mut program,
    };
    command
        .error(clap::error::ErrorKind::ArgumentConflict, OneLine(message))
        .exit()
}

/// The numbers of threads one can ask for.
fn threads_parser() -> impl clap::builder::TypedValueParser<Value = u16> {
    clap::value_parser!(u16).range(1..=1024)
}

/// A flag that SIGINT, SIGTERM and SIGHUP set, but for the first and last where whoever started this has had them ignored, as shells do in
/// the background and nohup does. A second signal ends the process at once, whatever holds it up.
fn stop_on_signals() -> warpfs::Result<Arc<AtomicBool>> {
    let cannot_listen = |error| Error::io("cannot listen to signals", error);
    let cancelled = Arc::new(AtomicBool::new(false));
    let meant = |signal: &i32| *signal == SIGTERM || !is_ignored(*signal);
    for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(meant) {
        // In this order: the first signal finds the flag not set yet.
        flag::register_conditional_default(signal, cancelled.clone()).map_err(cannot_listen)?;
        flag::register(signal, cancelled.clone()).map_err(cannot_listen)?;
    }
    // Writing beyond the limit of a file's size is then an error as any other.
    flag::register(SIGXFSZ, Arc::default()).map_err(cannot_listen)?;
    Ok(cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command_line().debug_assert();
        mount_helper::command_line().debug_assert();
    }

    #[test]
    fn every_command_s_help_ends_with_an_example() {
        for command in command_line().get_subcommands() {
            let after = command.get_after_help().map(ToString::to_string);
            assert!(
                after.is_some_and(|after| after.contains("warpfs ")),
                "{}",
                command.get_name()
            );
        }
    }
}
