//! `warpfs pack`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use warpfs::Error;
use warpfs::format::{Checksum, Codec};
use warpfs::index::{self, INDEX_NAME};
use warpfs::pack::{
    DEFAULT_BROTLI_QUALITY, DEFAULT_ZSTD_LEVEL, Level, PackOptions, pack_file, pack_standard_input,
    packed_name,
};
use warpfs::recursive::{Selection, TreeOptions, pack_tree};

use super::outputs::{Planned, output_parser, plan};
use super::urls::{in_prefix, is_url, shown};
use super::{Outcome, Task, Volume, for_each_input, size, wrong_usage};

/// Pack files: x becomes x.warp beside it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A tree packed again into the same other tree: only what is missing, or has another size or time than it had, is packed (with \
--force all of it). Settings are not compared, and what is gone from the tree stays in the output. Beside the files, the packed \
file of one that has changed since is not replaced without --force. With -v there is a line for every chunk.

Examples:
  warpfs pack --codec zstd --chunk-size 256K disk.img   writes disk.img.warp
  warpfs pack -r photos -o /backup/photos               packs a tree into another
  warpfs pack -r --exclude '*.jpg' --exclude cache/ photos -o /backup/photos
  warpfs pack -r --in-place models                      files become packed ones")]
pub(super) struct Arguments {
    /// Files to pack, or trees with -r; - is standard input
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Where the result goes: a file, a directory to put files into, or a tree with -r
    #[arg(short, long, value_name = "PATH", value_parser = output_parser())]
    output: Option<PathBuf>,
    /// Pack trees: beside the files, or with -o into another tree, where files that do not shrink are copied
    #[arg(short, long)]
    recursive: bool,
    /// Replace what exists; pack what is packed already, but for that in a tree
    #[arg(short, long)]
    force: bool,
    /// Remove the input, once what was written has been read back and verified
    #[arg(long)]
    rm: bool,
    /// With -r: replace the files of a tree, x by x.warp, each once it is verified; those that free no room stay as they are
    #[arg(long, requires = "recursive", conflicts_with = "output")]
    in_place: bool,
    /// With -r: leave out what matches: names at any depth, or with a slash in it paths from the tree's root on; with a slash at
    /// the end directories alone. An excluded directory is not entered. Wins over --include
    #[arg(long, value_name = "GLOB", requires = "recursive")]
    exclude: Vec<String>,
    /// With -r: of the files take only those that match, or are in a directory that does
    #[arg(long, value_name = "GLOB", requires = "recursive")]
    include: Vec<String>,
    /// With -r: do not pack files smaller than this, but copy them, or leave them where they are
    #[arg(long, value_name = "SIZE", requires = "recursive", value_parser = size::parse)]
    min_size: Option<u64>,
    /// With -r: do not go into other file systems mounted in the tree; their mount points become empty directories
    #[arg(long, requires = "recursive")]
    one_file_system: bool,
    /// With -r: write a list of the files into the resulting tree, by which it can be mounted from a web server
    #[arg(long, requires = "recursive")]
    index: bool,
    /// What to aim for; zstd and brotli have levels of their own, see below
    #[arg(long, default_value = "auto", value_parser = level_parser())]
    level: Level,
    /// Instead of a level: what the files are for; 'warpfs estimate' shows what each comes to. archive is zstd at level 19
    /// in chunks of 1M, balanced is --level auto, random is zstd at level 9 in chunks of 16K (larger ones in files of more
    /// than 16G); with --codec lz4, archive and random are lz4's thorough encoder, in the same chunks
    #[arg(long = "for", value_name = "PURPOSE", value_parser = purpose_parser(),
          conflicts_with_all = ["level", "zstd_level", "zstd_threads", "brotli_quality"])]
    purpose: Option<Level>,
    /// The codec, instead of the level's choice
    #[arg(long, value_parser = codec_parser())]
    codec: Option<Codec>,
    /// How much is compressed, and read, at a time: 4K to 1G [default: 128K, or the purpose's or level's, doubled until there are no more than
    /// 1048576 chunks]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_chunk_size)]
    chunk_size: Option<u64>,
    /// How many chunks to work on at once [default: the machine's cores]
    #[arg(long, value_name = "N", value_parser = super::threads_parser())]
    threads: Option<u16>,
    /// Zstandard's level, -7 to 22
    #[arg(long, value_name = "N", default_value_t = DEFAULT_ZSTD_LEVEL, allow_hyphen_values = true,
          value_parser = clap::value_parser!(i32).range(-7..=22))]
    zstd_level: i32,
    /// Zstandard's own threads within a chunk [default: 0, or the level's choice]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=200))]
    zstd_threads: Option<u32>,
    /// Brotli's quality, 0 to 11
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BROTLI_QUALITY,
          value_parser = clap::value_parser!(u32).range(0..=11))]
    brotli_quality: u32,
    /// The checksum of the whole file
    #[arg(long, default_value = "blake3", value_parser = checksum_parser())]
    checksum: ChecksumChoice,
}

/// A checksum or none.
#[derive(Debug, Clone, Copy)]
struct ChecksumChoice(Option<Checksum>);

fn level_parser() -> impl TypedValueParser<Value = Level> {
    PossibleValuesParser::new(["auto", "fastest", "max", "throughput"]).map(|name| {
        match name.as_str() {
            "fastest" => Level::Fastest,
            "max" => Level::Max,
            "throughput" => Level::Throughput,
            _ => Level::Auto,
        }
    })
}

fn purpose_parser() -> impl TypedValueParser<Value = Level> {
    PossibleValuesParser::new(["archive", "balanced", "random"]).map(|name| match name.as_str() {
        "archive" => Level::Archive,
        "random" => Level::Random,
        _ => Level::Auto,
    })
}

fn codec_parser() -> impl TypedValueParser<Value = Codec> {
    // Of a name that is one of these there is a codec.
    let named = |name: String| Codec::ALL.into_iter().find(|codec| codec.name() == name);
    PossibleValuesParser::new(Codec::ALL.map(Codec::name))
        .try_map(move |name| named(name).ok_or("no such codec"))
}

fn checksum_parser() -> impl TypedValueParser<Value = ChecksumChoice> {
    let names = Checksum::ALL.map(Checksum::name);
    PossibleValuesParser::new(names.into_iter().chain(["none"])).map(|name| {
        let chosen = Checksum::ALL
            .into_iter()
            .find(|checksum| checksum.name() == name);
        ChecksumChoice(chosen)
    })
}

/// What stands for standard input among the inputs.
const STANDARD_INPUT: &str = "-";

pub(super) fn run(arguments: &Arguments, volume: Volume) -> warpfs::Result<Outcome> {
    let plan = checked_plan(arguments).unwrap_or_else(|why| wrong_usage("pack", why));
    let mut exclude = arguments.exclude.clone();
    if arguments.index {
        // The one of the last time.
        exclude.push(format!("/{INDEX_NAME}"));
    }
    let selection = Selection::new(&exclude, &arguments.include)
        .unwrap_or_else(|why| wrong_usage("pack", why))
        .one_file_system(arguments.one_file_system);
    let tree = TreeOptions {
        selection,
        min_size: arguments.min_size.unwrap_or(0),
        in_place: arguments.in_place,
    };
    let options = PackOptions {
        level: arguments.purpose.unwrap_or(arguments.level),
        codec: arguments.codec,
        chunk_size: arguments.chunk_size,
        threads: arguments.threads.map(usize::from),
        zstd_level: arguments.zstd_level,
        zstd_threads: arguments.zstd_threads,
        brotli_quality: arguments.brotli_quality,
        checksum: arguments.checksum.0,
        force: arguments.force,
        remove: arguments.rm || arguments.in_place,
    };
    if let [_, last] = arguments.inputs.as_slice()
        && arguments.output.is_none()
        && !is_url(last)
        && last.as_path() != Path::new(STANDARD_INPUT)
        && std::fs::symlink_metadata(last).is_err_and(|error| error.kind() == ErrorKind::NotFound)
    {
        // As cp(1) is told; else the first would be packed beside itself, where nobody wants it.
        let why = "there is no such file; where the result is to go stands behind -o";
        return Err(Error::unusable(why).in_file(last));
    }
    for_each_input(&plan, volume, |task| match task.tree {
        true => tree_of(&options, &tree, arguments.index, task),
        false => file(&options, task),
    })
}

/// Where the results go, or what is wrong with the command line.
fn checked_plan(arguments: &Arguments) -> Result<Vec<Planned<'_>>, String> {
    let output = arguments.output.as_deref();
    if arguments.rm && arguments.recursive && output.is_some() {
        return Err("--rm with --recursive packs in place: leave --output out".to_owned());
    }
    let inputs = &arguments.inputs;
    if inputs
        .iter()
        .any(|input| input == Path::new(STANDARD_INPUT))
    {
        let holds_files =
            |output: &Path| output.is_dir() || in_prefix(output, Path::new("")).is_some();
        if inputs.len() > 1 || output.is_none_or(holds_files) {
            return Err(
                "standard input comes alone and has no name: give the result one with --output"
                    .to_owned(),
            );
        }
        if arguments.rm {
            return Err("--rm cannot remove standard input".to_owned());
        }
    }
    if let Some(url) = inputs.iter().find(|input| is_url(input)) {
        let url = shown(url);
        return Err(format!(
            "'{}' is no file of this machine, and only those are packed",
            url.display()
        ));
    }
    let name = |input: &Path| Some(packed_name(input));
    let plan = plan(inputs, arguments.recursive, output, arguments.force, name)?;
    if let Some(url) = output.filter(|output| is_url(output))
        && let Some(planned) = plan.iter().find(|planned| planned.tree)
    {
        return Err(format!(
            "'{}' is a tree, and those are not packed into a store: pack it into a directory, and copy that to '{}'",
            planned.input.display(),
            shown(url).display()
        ));
    }
    let of_trees = [
        ("--in-place", arguments.in_place),
        ("--exclude", !arguments.exclude.is_empty()),
        ("--include", !arguments.include.is_empty()),
        ("--min-size", arguments.min_size.is_some()),
        ("--index", arguments.index),
    ];
    // What is not there fails by itself, later, and the others are packed.
    let is_file = |planned: &&Planned<'_>| {
        let input = planned.input;
        !planned.tree && (input == Path::new(STANDARD_INPUT) || input.symlink_metadata().is_ok())
    };
    if let Some((flag, _)) = of_trees.iter().find(|(_, given)| *given)
        && let Some(planned) = plan.iter().find(is_file)
    {
        return Err(format!(
            "'{}' is not a directory, and {flag} is for trees: name the directory, or leave {flag} out",
            planned.input.display()
        ));
    }
    let nameless = |planned: &&Planned<'_>| !planned.tree && planned.output.is_none();
    match plan.iter().find(nameless) {
        Some(planned) => Err(format!("'{}' has no name", planned.input.display())),
        None => Ok(plan),
    }
}

fn tree_of(
    options: &PackOptions,
    tree: &TreeOptions,
    index: bool,
    task: &Task<'_>,
) -> warpfs::Result<Outcome> {
    if index {
        // Before there is anything to undo.
        index::check_room(task.input, task.output, options.force)?;
    }
    let summary = pack_tree(task.input, task.output, options, tree, task.control)?;
    if index {
        let mut others = 0_u64;
        let observer = task.control.observer;
        let left_out = |path: &Path| match path.to_str() {
            Some(_) => others += 1,
            None => observer.skipped(path, "not in the index, for its name is no UTF-8"),
        };
        let root = task.output.unwrap_or(task.input);
        index::write(root, options.force, task.control, left_out)?;
        if others > 0 {
            let why = format!("{others} links, or what else is no file, are not in the index");
            observer.skipped(root, &why);
        }
    }
    task.progress.summarize_tree(task.input, "packed", &summary);
    Ok(Outcome::failed_if(summary.failed > 0))
}

fn file(options: &PackOptions, task: &Task<'_>) -> warpfs::Result<Outcome> {
    // The plan has an output for every file.
    let output = task.output.unwrap_or(task.input);
    let summary = match task.input == Path::new(STANDARD_INPUT) {
        true => pack_standard_input(output, options, task.control)?,
        false => pack_file(task.input, output, options, task.control)?,
    };
    task.progress.summarize(&shown(output), "packed", &summary);
    Ok(Outcome::Done)
}
