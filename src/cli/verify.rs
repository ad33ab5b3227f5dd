//! `warpfs verify`.

use std::path::PathBuf;

use warpfs::job::Control;
use warpfs::recursive::verify_tree;
use warpfs::verify::verify_file;

use super::progress::Progress;
use super::{Outcome, Volume};

/// Decode every chunk and check it all
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  warpfs verify -r /backup      checks every file below whose name ends in .warp")]
pub(super) struct Arguments {
    /// Files to verify, or trees with -r
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Verify every .warp file in a tree
    #[arg(short, long)]
    recursive: bool,
    /// How many chunks to work on at once [default: the machine's cores]
    #[arg(long, value_name = "N", value_parser = super::threads_parser())]
    threads: Option<u16>,
}

pub(super) fn run(arguments: &Arguments, volume: Volume) -> warpfs::Result<Outcome> {
    let cancelled = super::stop_on_signals()?;
    let threads = arguments.threads.map(usize::from);
    let mut outcome = Outcome::Done;
    for path in &arguments.files {
        let tree = arguments.recursive && path.is_dir();
        let progress = Progress::new(volume, tree);
        let control = Control {
            observer: &progress,
            cancelled: &cancelled,
        };
        let done = match tree {
            true => verify_tree(path, threads, control).map(|summary| {
                progress.summarize_tree(path, "verified", &summary);
                Outcome::failed_if(summary.failed > 0)
            }),
            false => verify_file(path, threads, control).map(|summary| {
                progress.summarize(path, "whole", &summary);
                Outcome::Done
            }),
        };
        outcome = outcome.and(super::settle(done)?);
    }
    Ok(outcome)
}
