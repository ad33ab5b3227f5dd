//! `warpfs estimate`.

use std::io::Write;
use std::path::{Path, PathBuf};

use warpfs::Error;
use warpfs::estimate::{Estimate, Trial, estimate};
use warpfs::job::Control;

use super::progress::Progress;
use super::size::{count, human, percent};
use super::urls::{is_url, shown};
use super::{Outcome, Volume, cannot_print, stop_on_signals, wrong_usage};

/// Show what packing files or trees would come to, from samples, in a few seconds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes are close for all settings. Speeds are of compressing and decompressing in memory, with all cores; disks come on \
top. 'random 4K' is the time of decoding what such a read needs; the way through a mount takes some 50 us more.

Example:
  warpfs estimate disk.img logs/   then: warpfs pack --for random disk.img")]
pub(super) struct Arguments {
    /// Files and trees
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, volume: Volume) -> warpfs::Result<Outcome> {
    for path in &arguments.paths {
        if is_url(path) {
            let path = shown(path);
            let why = format!(
                "'{}': samples are taken of files of this machine",
                path.display()
            );
            wrong_usage("estimate", why);
        }
        if path
            .extension()
            .is_some_and(|extension| extension == "warp")
            && path.is_file()
        {
            let why = "is packed already: \"warpfs info\" shows what it comes to";
            return Err(Error::unusable(why).in_file(path));
        }
    }
    let cancelled = stop_on_signals()?;
    let progress = Progress::new(volume, true);
    let control = Control {
        observer: &progress,
        cancelled: &cancelled,
    };
    let found = estimate(&arguments.paths, control)?;
    drop(progress);
    print(arguments, &found).map_err(cannot_print)?;
    Ok(Outcome::failed_if(found.failed > 0))
}

fn print(arguments: &Arguments, found: &Estimate) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} in {}, {} of it sampled",
        human(found.size),
        count(found.files, "file"),
        human(found.sampled)
    )?;
    writeln!(out)?;
    let head = (
        "codec",
        "chunks",
        "packed",
        "saved",
        "pack/s",
        "read/s",
        "random 4K",
    );
    let (codec, chunks, packed, saved, pack, read, random) = head;
    writeln!(
        out,
        "{:<9} {codec:<9} {chunks:>6} {packed:>7} {saved:>10} {pack:>9} {read:>9} {random:>10}",
        ""
    )?;
    for trial in &found.trials {
        writeln!(out, "{}", row("", trial, found.size))?;
    }
    writeln!(out)?;
    for (name, trial) in ["archive", "balanced", "random"]
        .iter()
        .zip(&found.purposes)
    {
        writeln!(out, "{}", row(name, trial, found.size))?;
    }
    writeln!(out)?;
    let tree = arguments.paths.iter().any(|path| path.is_dir());
    let words = if tree { "-r " } else { "" };
    // Beside their originals, packed trees save nothing.
    let output = match arguments.paths.as_slice() {
        [path] if tree => format!(" -o {}", quoted(&packed_tree(path))),
        _ => String::new(),
    };
    let paths: Vec<_> = arguments.paths.iter().map(|path| quoted(path)).collect();
    let paths = paths.join(" ");
    for (name, meaning) in [
        ("archive", "smallest, seldom read"),
        ("balanced", "the default"),
        ("random", "for databases and disk images"),
    ] {
        let line = format!("warpfs pack {words}--for {name} {paths}{output}");
        writeln!(
            out,
            "{}",
            warpfs::error::OneLine(format!("{line:<44}  # {meaning}"))
        )?;
    }
    let best = found.purposes.iter().map(|trial| trial.packed_size).min();
    if best.is_some_and(|best| best as f64 > found.size as f64 * 0.95) {
        writeln!(
            out,
            "\nThis hardly gets smaller: it may be compressed already. Leave it as it is."
        )?;
    }
    Ok(())
}

/// What a packed tree may be called: as the tree, beside it.
fn packed_tree(tree: &Path) -> PathBuf {
    // Without a slash at the end, or what is there would be in the tree; `.` and `..` have no name of their own.
    let tree = match tree.file_name() {
        Some(_) => tree.components().collect(),
        None => tree.canonicalize().unwrap_or_else(|_| tree.to_owned()),
    };
    let mut name = tree.into_os_string();
    name.push(".packed");
    name.into()
}

/// A path as it is typed in a shell.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    // There is no path with a zero byte in it, which alone cannot be quoted.
    shlex::try_quote(&path).map_or_else(|_| path.to_string(), |quoted| quoted.into_owned())
}

fn row(name: &str, trial: &Trial, size: u64) -> String {
    let codec = match trial.level {
        Some(level) => format!("{} {level}", trial.codec),
        None => trial.codec.to_string(),
    };
    let chunks = match trial.chunk_size >> 20 {
        0 => format!("{}K", trial.chunk_size >> 10),
        mebibytes => format!("{mebibytes}M"),
    };
    let microseconds = trial.random_read.as_secs_f64() * 1e6;
    format!(
        "{name:<9} {codec:<9} {chunks:>6} {:>7} {:>10} {:>9} {:>9} {:>10}",
        percent(trial.packed_size, size),
        match size.checked_sub(trial.packed_size) {
            Some(saved) => human(saved),
            None => "-".to_owned(),
        },
        per_second(trial.pack_rate),
        per_second(trial.read_rate),
        match microseconds < 10.0 {
            true => format!("{microseconds:.1} us"),
            false => format!("{microseconds:.0} us"),
        }
    )
}

/// Bytes in a second, in two digits or so: more of them say nothing of another machine, or of this one tomorrow.
fn per_second(rate: f64) -> String {
    match rate / f64::from(1 << 20) {
        rate if rate < 10.0 => format!("{rate:.1} MiB"),
        rate if rate < 1000.0 => format!("{rate:.0} MiB"),
        rate => format!("{:.1} GiB", rate / 1024.0),
    }
}
