//! The command line: arguments in, exit code out.
//!
//! Exit codes: 0 done, 1 the data or the system said no, 2 wrong usage (which clap answers itself). Errors are one line on
//! standard error; results go to standard output; progress goes to standard error, if that is a terminal.

mod info;
mod mount;
mod outputs;
mod pack;
mod progress;
mod size;
mod unpack;
mod verify;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser, Subcommand};
use warpfs::job::Control;
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
    /// No progress and no summaries; errors are always shown
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more: a line for every chunk (number, sizes, time, MB/s), or in a mount's log what is done without
    #[arg(short, long, global = true)]
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
    Stats(mount::Stats),
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
        outcome = outcome.and(settle(job(&task))?);
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

/// Does what the command line says.
pub(crate) fn run() -> ExitCode {
    let Arguments { command, volume } = Arguments::parse();
    let outcome = match command {
        Command::Mount(arguments) => arguments.run(volume),
        Command::Umount(arguments) => arguments.run(),
        Command::Pack(arguments) => pack::run(&arguments, volume),
        Command::Unpack(arguments) => unpack::run(&arguments, volume),
        Command::Verify(arguments) => verify::run(&arguments, volume),
        Command::Info(arguments) => info::run(&arguments),
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

/// Shows an error. A reader of our output that has gone away is not one.
fn report(error: &Error) {
    if let ErrorKind::Io { source, .. } = error.kind()
        && source.kind() == std::io::ErrorKind::BrokenPipe
    {
        return;
    }
    eprintln!("warpfs: {error}");
}

/// Ends the process as clap does for wrong usage of a command.
fn wrong_usage(command: &str, message: impl std::fmt::Display) -> ! {
    let mut program = Arguments::command();
    // So that the usage of a command begins with the program's name.
    program.build();
    let command = match program.find_subcommand_mut(command) {
        Some(command) => command,
        None => &mut program,
    };
    command
        .error(clap::error::ErrorKind::ArgumentConflict, message)
        .exit()
}

/// The numbers of threads one can ask for.
fn threads_parser() -> impl clap::builder::TypedValueParser<Value = u16> {
    clap::value_parser!(u16).range(1..=1024)
}

/// A flag that SIGINT and SIGTERM set.
fn stop_on_signals() -> warpfs::Result<Arc<AtomicBool>> {
    let cancelled = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, cancelled.clone())
            .map_err(|error| Error::io("cannot listen to signals", error))?;
    }
    Ok(cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_s_help_ends_with_an_example() {
        for command in Arguments::command().get_subcommands() {
            let after = command.get_after_help().map(ToString::to_string);
            assert!(
                after.is_some_and(|after| after.contains("warpfs ")),
                "{}",
                command.get_name()
            );
        }
    }
}
