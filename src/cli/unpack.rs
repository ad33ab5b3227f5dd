//! `warpfs unpack`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use warpfs::Error;
use warpfs::job::Control;
use warpfs::recursive::unpack_tree;
use warpfs::unpack::{UnpackOptions, original_name, unpack_file, unpack_to};

use super::outputs::{output_parser, plan, without_outputs};
use super::standard_output::StandardOutput;
use super::urls::{is_url, refuse_trees, shown};
use super::{
    Outcome, Task, Volume, cannot_print, for_each_input, save_what_can_be, size, wrong_usage,
};

/// Unpack files: x.warp becomes x beside it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  warpfs unpack disk.img.warp                        writes disk.img
  warpfs unpack -c --range 1M..2M disk.img.warp      prints the second MiB")]
pub(super) struct Arguments {
    /// Files to unpack, or trees with -r
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the result goes: a file, a directory to put files into, or a tree with -r
    #[arg(short, long, value_name = "PATH", value_parser = output_parser())]
    output: Option<PathBuf>,
    /// Write the originals to standard output, one after the other
    #[arg(short = 'c', long, conflicts_with_all = ["output", "recursive", "rm"])]
    stdout: bool,
    /// Unpack trees: beside the files, or with -o into another tree, where other files are copied
    #[arg(short, long)]
    recursive: bool,
    /// Replace what exists
    #[arg(short, long)]
    force: bool,
    /// Remove the .warp file, once what was written has been read back and compared
    #[arg(long)]
    rm: bool,
    /// Only these bytes of the original, END not included; the whole file's checksum is then not checked
    #[arg(long, value_name = "START..END", value_parser = size::parse_range,
          conflicts_with_all = ["recursive", "rm"])]
    range: Option<Range<u64>>,
    /// Go on behind damage: write what can be saved and zeros for the rest, list the byte ranges that are lost, and exit with 1
    #[arg(long, conflicts_with = "rm")]
    keep_going: bool,
    /// How many chunks to work on at once [default: the machine's cores]
    #[arg(long, value_name = "N", value_parser = super::threads_parser())]
    threads: Option<u16>,
}

pub(super) fn run(arguments: &Arguments, volume: Volume) -> warpfs::Result<Outcome> {
    refuse_trees("unpack", &arguments.files);
    if arguments.output.as_deref().is_some_and(is_url) {
        wrong_usage(
            "unpack",
            "--output is a URL, but originals are written to files of this machine alone",
        );
    }
    if arguments.rm && arguments.recursive && arguments.output.is_some() {
        wrong_usage(
            "unpack",
            "--rm with --recursive unpacks in place: leave --output out",
        );
    }
    let options = UnpackOptions {
        range: arguments.range.clone(),
        threads: arguments.threads.map(usize::from),
        force: arguments.force,
        remove: arguments.rm,
        keep_going: arguments.keep_going,
    };
    let (files, recursive) = (&arguments.files, arguments.recursive);
    let output = arguments.output.as_deref();
    let plan = match arguments.stdout {
        true => without_outputs(files, recursive),
        false => plan(files, recursive, output, options.force, original_name)
            .unwrap_or_else(|why| wrong_usage("unpack", why)),
    };
    let job = |task: &Task<'_>| match (task.tree, arguments.stdout) {
        (true, _) => tree_of(&options, task),
        (false, true) => to_standard_output(task.input, &options, task.control),
        (false, false) => file(&options, task),
    };
    for_each_input(&plan, volume, |task| {
        save_what_can_be(options.keep_going, task, || job(task))
    })
}

fn to_standard_output(
    input: &Path,
    options: &UnpackOptions,
    control: Control<'_>,
) -> warpfs::Result<Outcome> {
    let mut output = StandardOutput::new(control.cancelled).map_err(cannot_print)?;
    let summary = unpack_to(input, &mut output, options, control)?;
    Ok(Outcome::failed_if(summary.lost > 0))
}

fn tree_of(options: &UnpackOptions, task: &Task<'_>) -> warpfs::Result<Outcome> {
    let summary = unpack_tree(task.input, task.output, options, task.control)?;
    task.progress
        .summarize_tree(task.input, "unpacked", &summary);
    Ok(Outcome::failed_if(summary.failed > 0))
}

fn file(options: &UnpackOptions, task: &Task<'_>) -> warpfs::Result<Outcome> {
    let output = task.output.ok_or_else(|| {
        Error::unusable("the name does not end in .warp: name the result with --output")
            .in_file(&shown(task.input))
    })?;
    let summary = unpack_file(task.input, output, options, task.control)?;
    task.progress.summarize(output, "unpacked", &summary);
    Ok(Outcome::failed_if(summary.lost > 0))
}
