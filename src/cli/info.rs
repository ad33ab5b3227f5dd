//! `warpfs info`: what files say of themselves, a map of a file's chunks, and trees summed up.
//!
//! The map is for a person at a terminal. What is piped has none, and stays as it is for who reads it by a program; `--svg`
//! draws the map into a file.

mod map;
mod strip;
mod svg;
mod tree;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use warpfs::Error;
use warpfs::error::OneLine;
use warpfs::format::{Container, Release};
use warpfs::info::{Found, Info, TreeInfo, survey};

use self::strip::Terminal;
use super::size::{human, percent};
use super::urls::{is_url, refuse_trees};
use super::{Outcome, Volume, cannot_print, report, wrong_usage};

/// Show what .warp files say of themselves: version, codec, sizes, ratio, chunks, checksum; nothing is decoded
///
/// For one file on a terminal, a map shows how many tenths are left of each part of the original. Colours are left out where
/// NO_COLOR is set. With -r, the files of a tree are summed up.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  warpfs info disk.img.warp                   with a map, on a terminal
  warpfs info --chunks disk.img.warp          also where each chunk lies
  warpfs info --svg disk.svg disk.img.warp    the map as a picture
  warpfs info -r /backup                      sums up a tree: sizes, ratios, codecs
  warpfs info -r --json /backup               the tree and each file, for programs")]
pub(super) struct Arguments {
    /// Files to show, or trees with -r
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Sum up trees; with -v, show every .warp file too
    #[arg(short, long)]
    recursive: bool,
    /// Print a JSON array with an object for each file, and one for each tree behind its files'; sizes are bytes
    #[arg(long)]
    json: bool,
    /// Also show every chunk
    #[arg(long)]
    chunks: bool,
    /// Draw the map of the file's chunks as a picture; OUT must not exist yet
    #[arg(long, value_name = "OUT", conflicts_with = "recursive")]
    svg: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, volume: Volume) -> warpfs::Result<Outcome> {
    refuse_trees("info", &arguments.files);
    if arguments.svg.is_some() && arguments.files.len() > 1 {
        wrong_usage("info", "--svg draws one FILE");
    }
    let is_tree = |path: &Path| arguments.recursive && !is_url(path) && path.is_dir();
    let single = arguments.files.len() == 1 && !arguments.files.iter().any(|file| is_tree(file));
    let mut printer = Printer {
        out: BufWriter::new(io::stdout().lock()),
        style: match (arguments.json, single) {
            (true, _) => Style::Json,
            (false, true) => Style::Lines,
            (false, false) => Style::Columns,
        },
        chunks: arguments.chunks,
        terminal: terminal(),
        printed: 0,
    };
    let mut outcome = Outcome::Done;
    let every_file = arguments.json || arguments.chunks || volume.verbose;
    for path in &arguments.files {
        if !is_tree(path) {
            let info = Info::read(path);
            outcome = outcome.and(printer.show(info.as_ref())?);
            if let (Some(out), Ok(info)) = (&arguments.svg, &info)
                && let Err(error) = draw(info, out)
            {
                // What is printed is brought to its end all the same: half an array is no JSON.
                report(&error);
                outcome = Outcome::Failed;
            }
            continue;
        }
        let mut sums = TreeInfo::default();
        for found in survey(path) {
            sums.add(&found);
            let shown = match &found {
                Ok(Found::Packed(info)) if every_file => printer.show(Ok(&**info))?,
                Ok(Found::Packed(info)) => settle(Ok(&**info)),
                Ok(_) => Outcome::Done,
                Err(error) => settle(Err(error)),
            };
            outcome = outcome.and(shown);
        }
        printer.print_tree(path, &sums).map_err(cannot_print)?;
    }
    printer.finish().map_err(cannot_print)?;
    Ok(outcome)
}

/// Reports what is wrong with a file.
fn settle(info: Result<&Info, &Error>) -> Outcome {
    let wrong = match info {
        Ok(info) => info.cut().or(info.record_damage()),
        Err(error) => Some(error),
    };
    wrong.inspect(|error| report(error));
    Outcome::failed_if(wrong.is_some())
}

/// The terminal that standard output is, if it is one.
fn terminal() -> Option<Terminal> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let size = rustix::termios::tcgetwinsize(out).ok();
    let columns = size
        .map(|size| usize::from(size.ws_col))
        .filter(|&columns| columns > 0);
    Some(Terminal {
        columns: columns.unwrap_or(80),
        // https://no-color.org
        colours: set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb"),
    })
}

/// Draws a file's map into `out`, which nothing is overwritten for.
fn draw(info: &Info, out: &Path) -> warpfs::Result<()> {
    let Some(picture) = svg::svg(info) else {
        let why = "there is nothing to draw: the file is empty, or only decoding tells where its chunks begin";
        return Err(Error::unusable(why).in_file(info.path()));
    };
    let cannot_write = |error| Error::io("cannot write", error).in_file(out);
    let mut file = File::create_new(out).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::unusable("exists already: remove it, or give another name").in_file(out)
        }
        _ => cannot_write(error),
    })?;
    file.write_all(picture.as_bytes()).map_err(|error| {
        // Half a picture is none.
        let _ = std::fs::remove_file(out);
        cannot_write(error)
    })
}

#[derive(Clone, Copy)]
enum Style {
    Json,
    /// One file, a line for each of its properties.
    Lines,
    /// A line for each file.
    Columns,
}

struct Printer<W: Write> {
    out: W,
    style: Style,
    chunks: bool,
    terminal: Option<Terminal>,
    printed: u64,
}

impl<W: Write> Printer<W> {
    /// Shows a file, or reports why it cannot be shown.
    fn show(&mut self, info: Result<&Info, &Error>) -> warpfs::Result<Outcome> {
        if let Ok(info) = info {
            self.print(info).map_err(cannot_print)?;
        }
        Ok(settle(info))
    }

    fn print_tree(&mut self, root: &Path, tree: &TreeInfo) -> io::Result<()> {
        match self.style {
            Style::Json => self.print_object(&tree::as_json(root, tree))?,
            Style::Lines | Style::Columns => {
                if self.printed > 0 {
                    writeln!(self.out)?;
                }
                tree::print(&mut self.out, root, tree)?;
            }
        }
        self.printed += 1;
        Ok(())
    }

    fn print(&mut self, info: &Info) -> io::Result<()> {
        match self.style {
            Style::Json => self.print_object(&FileObject {
                fields: as_json(info),
                chunk_table: self.chunks.then_some(ChunkTable(info)),
            })?,
            Style::Lines => self.print_lines(info)?,
            Style::Columns => self.print_columns(info)?,
        }
        self.printed += 1;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        if let Style::Json = self.style {
            let end = if self.printed == 0 { "[]" } else { "\n]" };
            writeln!(self.out, "{end}")?;
        }
        self.out.flush()
    }

    fn print_object(&mut self, object: &impl Serialize) -> io::Result<()> {
        let start = if self.printed == 0 { "[\n" } else { ",\n" };
        self.out.write_all(start.as_bytes())?;
        serde_json::to_writer(&mut self.out, object)?;
        Ok(())
    }

    fn print_lines(&mut self, info: &Info) -> io::Result<()> {
        let size = |bytes: u64| format!("{bytes} bytes ({})", human(bytes));
        let checksum = match info.checksum() {
            Some((checksum, digest)) => format!("{checksum} {digest}"),
            None if lacks_its_end(info) => "cut off, if there was one".to_owned(),
            None => "none".to_owned(),
        };
        // Labels of 9: the line of the longest digest fits a terminal of 80 columns.
        let out = &mut self.out;
        writeln!(out, "file     {}", OneLine(info.path().display()))?;
        writeln!(out, "version  {}", version(info.container()))?;
        writeln!(out, "codec    {}", info.encodings())?;
        writeln!(out, "original {}", size(info.original_size()))?;
        writeln!(out, "packed   {}", size(info.packed_size()))?;
        let ratio = percent(info.packed_size(), info.original_size());
        writeln!(out, "ratio    {ratio}")?;
        let largest = match info.largest_chunk() {
            Some(largest) => format!("the largest of {}", size(largest)),
            None => "whose sizes only decoding tells".to_owned(),
        };
        writeln!(out, "chunks   {}, {largest}", info.chunk_count())?;
        writeln!(out, "checksum {checksum}")?;
        match (info.record_damage(), info.record_len()) {
            _ if lacks_its_end(info) => writeln!(out, "digests  cut off, if there were any")?,
            (Some(_), _) => writeln!(out, "digests  damaged: no read can be checked by them")?,
            (None, Some(len)) => writeln!(out, "digests  of every part, {}", size(len))?,
            (None, None) => writeln!(
                out,
                "digests  none: no part can be checked without the rest"
            )?,
        }
        if info.cut().is_some() {
            let (whole, lost) = (info.original_size(), "what follows is lost");
            match info.held() {
                Some(held) => writeln!(
                    out,
                    "cut      bytes 0..{held} are there ({}), {lost}",
                    percent(held, whole)
                )?,
                None => writeln!(out, "cut      only decoding tells where: {lost}")?,
            }
        }
        if let Some(map) = self
            .terminal
            .and_then(|terminal| strip::strip(info, terminal))
        {
            write!(out, "\n{map}")?;
        }
        self.print_chunks(info)
    }

    fn print_columns(&mut self, info: &Info) -> io::Result<()> {
        if self.printed == 0 || self.chunks {
            writeln!(
                self.out,
                "{:<7} {:<9} {:>14} {:>14} {:>7} {:>9} {:<8} FILE",
                "VERSION", "CODEC", "ORIGINAL", "PACKED", "RATIO", "CHUNKS", "CHECKSUM"
            )?;
        }
        let checksum = info.checksum();
        writeln!(
            self.out,
            "{:<7} {:<9} {:>14} {:>14} {:>7} {:>9} {:<8} {}",
            info.container(),
            match info.encodings().iter().count() {
                0 | 1 => info.encodings().to_string(),
                _ => "mixed".to_owned(),
            },
            info.original_size(),
            info.packed_size(),
            percent(info.packed_size(), info.original_size()),
            info.chunk_count(),
            match checksum {
                Some((checksum, _)) => checksum.name(),
                None if lacks_its_end(info) => "cut off",
                None => "none",
            },
            OneLine(info.path().display()),
        )?;
        self.print_chunks(info)
    }

    fn print_chunks(&mut self, info: &Info) -> io::Result<()> {
        if !self.chunks {
            return Ok(());
        }
        writeln!(
            self.out,
            "{:>10} {:>16} {:>12} {:>16} {:>12} {:>7} CODEC",
            "CHUNK", "PACKED AT", "PACKED", "ORIGINAL AT", "ORIGINAL", "RATIO"
        )?;
        let known = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
        for chunk in info.chunks() {
            writeln!(
                self.out,
                "{:>10} {:>16} {:>12} {:>16} {:>12} {:>7} {}",
                chunk.chunk,
                chunk.packed_offset,
                chunk.packed_size,
                known(chunk.original_offset),
                known(chunk.original_size),
                percent(chunk.packed_size, chunk.original_size.unwrap_or(0)),
                chunk.encoding,
            )?;
        }
        Ok(())
    }
}

/// Whether a file was cut off before a checksum and a record that it may have had; older releases wrote neither.
fn lacks_its_end(info: &Info) -> bool {
    info.cut().is_some() && matches!(info.container(), Container::Table(_))
}

fn version(container: Container) -> String {
    let releases = match container {
        Container::Table(version) => return version.number().to_string(),
        Container::Release(Release::V0_1_2) => "releases 0.1.2 to 0.1.5",
        Container::Release(Release::V0_7_0) => "release 0.7.0",
        Container::Release(Release::V0_7_1) => "releases 0.7.1 to 0.7.5",
    };
    format!("that of {releases} of the Python package")
}

/// A file's object.
#[derive(Serialize)]
struct FileObject<'a> {
    #[serde(flatten)]
    fields: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_table: Option<ChunkTable<'a>>,
}

/// Its chunks, of which there may be millions: made as they are printed.
struct ChunkTable<'a>(&'a Info);

impl Serialize for ChunkTable<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.chunks().map(|chunk| {
            json!({
                "codec": chunk.encoding.name(),
                "packed_offset": chunk.packed_offset,
                "packed_size": chunk.packed_size,
                "original_offset": chunk.original_offset,
                "original_size": chunk.original_size,
            })
        }))
    }
}

fn as_json(info: &Info) -> Value {
    let (checksum, digest) = match info.checksum() {
        Some((checksum, digest)) => (Some(checksum.name()), Some(digest)),
        None if lacks_its_end(info) => (None, None),
        None => (Some("none"), None),
    };
    let ratio = match info.original_size() {
        0 => None,
        original => Some(info.packed_size() as f64 / original as f64),
    };
    json!({
        "file": name_of(info.path()),
        "version": match info.container() {
            Container::Table(version) => json!(version.number()),
            Container::Release(release) => json!(release.name()),
        },
        "codec": info.encodings().to_string(),
        "original_size": info.original_size(),
        "packed_size": info.packed_size(),
        "ratio": ratio,
        "chunks": info.chunk_count(),
        "largest_chunk": info.largest_chunk(),
        "checksum": checksum,
        "digest": digest,
        "record_size": info.record_len(),
        "record_damage": info.record_damage().map(|error| error.kind().to_string()),
        "cut": info.cut().map(|error| error.kind().to_string()),
        "held": info.held(),
    })
}

/// A name for JSON, which has no bytes that are not UTF-8.
fn name_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
