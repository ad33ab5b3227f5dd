//! `warpfs verify`.

use std::path::PathBuf;

use warpfs::recursive::verify_tree;
use warpfs::verify::{VerifyOptions, verify_file};

use super::outputs::without_outputs;
use super::urls::{refuse_trees, shown};
use super::{Outcome, Task, Volume, for_each_input, save_what_can_be, say};

/// Decode every chunk and check it all
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  warpfs verify -r /backup                     checks every .warp file in a tree
  warpfs verify --keep-going disk.img.warp     says which bytes are damaged")]
pub(super) struct Arguments {
    /// Files to verify, or trees with -r
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Verify every .warp file in a tree
    #[arg(short, long)]
    recursive: bool,
    /// Go on behind damage, and list the byte ranges of the original that are lost
    #[arg(long)]
    keep_going: bool,
    /// How many chunks to work on at once [default: the machine's cores]
    #[arg(long, value_name = "N", value_parser = super::threads_parser())]
    threads: Option<u16>,
}

pub(super) fn run(arguments: &Arguments, volume: Volume) -> warpfs::Result<Outcome> {
    refuse_trees("verify", &arguments.files);
    let options = VerifyOptions {
        threads: arguments.threads.map(usize::from),
        keep_going: arguments.keep_going,
    };
    let plan = without_outputs(&arguments.files, arguments.recursive);
    for_each_input(&plan, volume, |task| {
        save_what_can_be(options.keep_going, task, || verify(options, task))
    })
}

fn verify(options: VerifyOptions, task: &Task<'_>) -> warpfs::Result<Outcome> {
    if !task.tree {
        let summary = verify_file(task.input, options, task.control)?;
        task.progress
            .summarize(&shown(task.input), "whole", &summary);
        return Ok(Outcome::failed_if(summary.lost > 0));
    }
    let summary = verify_tree(task.input, options, task.control)?;
    if summary.files == 0 && summary.failed == 0 {
        // Also if summaries are not wanted: who asks for nothing but errors must not take this for success.
        say(format_args!(
            "warpfs: {}: nothing was verified: no file in it has a name that ends in .warp",
            task.input.display()
        ));
        return Ok(Outcome::Done);
    }
    task.progress
        .summarize_tree(task.input, "verified", &summary);
    Ok(Outcome::failed_if(summary.failed > 0))
}
