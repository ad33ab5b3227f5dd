//! `warpfs info`.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use warpfs::error::OneLine;
use warpfs::format::{Container, Release};
use warpfs::info::Info;
use warpfs::recursive::infos;

use super::size::{human, percent};
use super::{Outcome, cannot_print, report};

/// Show what .warp files say of themselves: version, codec, sizes, ratio, chunks, checksum; nothing is decoded
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  warpfs info --chunks disk.img.warp      also where each chunk lies
  warpfs info -r --json /backup           every .warp file below, for a program to read")]
pub(super) struct Arguments {
    /// Files to show, or trees with -r
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Show every .warp file in a tree
    #[arg(short, long)]
    recursive: bool,
    /// Print a JSON array with an object for each file; sizes are bytes
    #[arg(long)]
    json: bool,
    /// Also show every chunk
    #[arg(long)]
    chunks: bool,
}

pub(super) fn run(arguments: &Arguments) -> warpfs::Result<Outcome> {
    let single = arguments.files.len() == 1
        && !arguments
            .files
            .iter()
            .any(|file| arguments.recursive && file.is_dir());
    let mut printer = Printer {
        out: BufWriter::new(io::stdout().lock()),
        style: match (arguments.json, single) {
            (true, _) => Style::Json,
            (false, true) => Style::Lines,
            (false, false) => Style::Columns,
        },
        chunks: arguments.chunks,
        printed: 0,
    };
    let mut outcome = Outcome::Done;
    for path in &arguments.files {
        let mut show = |info: warpfs::Result<Info>| match info {
            Ok(info) => printer.print(&info).map_err(cannot_print),
            Err(error) => {
                report(&error);
                outcome = Outcome::Failed;
                Ok(())
            }
        };
        match arguments.recursive && path.is_dir() {
            true => infos(path).try_for_each(show)?,
            false => show(Info::read(path))?,
        }
    }
    printer.finish().map_err(cannot_print)?;
    Ok(outcome)
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
    printed: u64,
}

impl<W: Write> Printer<W> {
    fn print(&mut self, info: &Info) -> io::Result<()> {
        match self.style {
            Style::Json => self.print_json(info)?,
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

    fn print_json(&mut self, info: &Info) -> io::Result<()> {
        let start = if self.printed == 0 { "[\n" } else { ",\n" };
        self.out.write_all(start.as_bytes())?;
        serde_json::to_writer(&mut self.out, &as_json(info, self.chunks))?;
        Ok(())
    }

    fn print_lines(&mut self, info: &Info) -> io::Result<()> {
        let size = |bytes: u64| format!("{bytes} bytes ({})", human(bytes));
        let checksum = match info.checksum() {
            Some((checksum, digest)) => format!("{checksum} {digest}"),
            None => "none".to_owned(),
        };
        let out = &mut self.out;
        writeln!(out, "file      {}", OneLine(info.path().display()))?;
        writeln!(out, "version   {}", version(info.container()))?;
        writeln!(out, "codec     {}", info.encodings())?;
        writeln!(out, "original  {}", size(info.original_size()))?;
        writeln!(out, "packed    {}", size(info.packed_size()))?;
        let ratio = percent(info.packed_size(), info.original_size());
        writeln!(out, "ratio     {ratio}")?;
        let largest = match info.largest_chunk() {
            Some(largest) => format!("the largest of {}", size(largest)),
            None => "whose sizes only decoding tells".to_owned(),
        };
        writeln!(out, "chunks    {}, {largest}", info.chunk_count())?;
        writeln!(out, "checksum  {checksum}")?;
        match info.record_len() {
            Some(len) => writeln!(out, "digests   of every part, {}", size(len))?,
            None => writeln!(
                out,
                "digests   none: no part can be checked without the rest"
            )?,
        }
        self.print_chunks(info)
    }

    fn print_columns(&mut self, info: &Info) -> io::Result<()> {
        if self.printed == 0 || self.chunks {
            writeln!(
                self.out,
                "{:<7} {:<6} {:>14} {:>14} {:>7} {:>9} {:<8} FILE",
                "VERSION", "CODEC", "ORIGINAL", "PACKED", "RATIO", "CHUNKS", "CHECKSUM"
            )?;
        }
        let checksum = info.checksum();
        writeln!(
            self.out,
            "{:<7} {:<6} {:>14} {:>14} {:>7} {:>9} {:<8} {}",
            info.container(),
            match info.encodings().iter().count() {
                0 | 1 => info.encodings().to_string(),
                _ => "mixed".to_owned(),
            },
            info.original_size(),
            info.packed_size(),
            percent(info.packed_size(), info.original_size()),
            info.chunk_count(),
            checksum.map_or("none", |(checksum, _)| checksum.name()),
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

fn version(container: Container) -> String {
    let releases = match container {
        Container::Table(version) => return version.number().to_string(),
        Container::Release(Release::V0_1_2) => "releases 0.1.2 to 0.1.5",
        Container::Release(Release::V0_7_0) => "release 0.7.0",
        Container::Release(Release::V0_7_1) => "releases 0.7.1 to 0.7.5",
    };
    format!("that of {releases} of the Python package")
}

fn as_json(info: &Info, chunks: bool) -> Value {
    let (checksum, digest) = match info.checksum() {
        Some((checksum, digest)) => (checksum.name(), Some(digest)),
        None => ("none", None),
    };
    let ratio = match info.original_size() {
        0 => None,
        original => Some(info.packed_size() as f64 / original as f64),
    };
    let mut object = json!({
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
    });
    if chunks && let Some(object) = object.as_object_mut() {
        let table = info.chunks().map(|chunk| {
            json!({
                "codec": chunk.encoding.name(),
                "packed_offset": chunk.packed_offset,
                "packed_size": chunk.packed_size,
                "original_offset": chunk.original_offset,
                "original_size": chunk.original_size,
            })
        });
        object.insert("chunk_table".to_owned(), table.collect());
    }
    object
}

/// A name for JSON, which has no bytes that are not UTF-8.
fn name_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
