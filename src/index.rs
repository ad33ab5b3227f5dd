//! Indexes: what a tree of files holds, for those who can only ask for files by name, as of a web server.
//!
//! An index is a text of lines, each a JSON object (`docs/FORMAT.md`, "Indexes"): the first says what it is, each other one names a
//! file. It is written by `pack -r --index` into the tree it is of, and read by a mount of that tree's URL. What it says is only
//! believed as far as it costs nothing: a wrong size shows, but a file that is opened is asked for itself.

use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::archive::glance;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::Container;
use crate::job::Control;
use crate::output::{NewFile, check_room as check_name, temporary_of};
use crate::pack::open_entry;
use crate::place::Place;
use crate::recursive::is_named_packed;
use crate::walk::{Entry, Step, Walk};

/// The name of an index, in the directory it is of.
pub const INDEX_NAME: &str = "warpfs-index.json";
/// The version that is written and read.
const VERSION: u32 = 1;
/// How long a line may be, in bytes: the longest path there can be, each letter written as an escape.
const LONGEST_LINE: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct First {
    warpfs_index: u32,
}

/// A file of an indexed tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Indexed {
    /// Its path from the tree's root, with slashes between names.
    pub(crate) path: String,
    /// Its size, in bytes.
    pub(crate) size: u64,
    /// When it was last modified: whole seconds since 1970, or 0 for before.
    #[serde(default)]
    pub(crate) modified: u64,
    /// The version of its container, if it is packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u8>,
    /// The size of its original, in bytes, if it is packed and says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) original: Option<u64>,
}

/// Checks that the tree that `root` is packed to, in `output` or beside itself, can have an index. An older index makes room for it;
/// what else has its name, by `replace` alone.
///
/// # Errors
/// [`ErrorKind::Exists`], or a directory is there; or something in `root` would be missing in `output`, for its name is the index's there.
pub fn check_room(root: &Path, output: Option<&Path>, replace: bool) -> Result<()> {
    // Where there is no such directory yet, nothing is in the way.
    if let Ok(place) = Place::of(&output.unwrap_or(root).join(INDEX_NAME)) {
        check_name(&place, replace || is_index(&place))?;
    }
    if output.is_some()
        && let Ok(place) = Place::of(&root.join(INDEX_NAME))
        && place.stat().is_ok()
        && !is_index(&place)
    {
        let why = "is no index, and what it would become has the name of one: rename it, or leave --index out";
        return Err(Error::unusable(why).in_file(&place.path));
    }
    Ok(())
}

/// Whether an index is there, of whatever version.
fn is_index(place: &Place) -> bool {
    let Ok((file, _)) = open_entry(&*place.directory, &place.name, &place.path) else {
        return false;
    };
    let mut line = Vec::new();
    let read = BufReader::new(file.take(LONGEST_LINE)).read_until(b'\n', &mut line);
    read.is_ok() && serde_json::from_slice::<First>(&line).is_ok()
}

/// Writes the index of the tree at `root` into it, in the place of an older one, and says how many files it names. What is neither
/// file nor directory is not named, links above all, nor is what has a name that is no UTF-8: `left_out` is told of each.
///
/// # Errors
/// As [`check_room`]; the tree cannot be read, or the index cannot be written; or cancellation.
pub fn write(
    root: &Path,
    replace: bool,
    control: Control<'_>,
    mut left_out: impl FnMut(&Path),
) -> Result<u64> {
    let target = Place::of(&root.join(INDEX_NAME))?;
    let replace = replace || is_index(&target);
    let new = NewFile::create(target, replace, None)?;
    let cannot = "cannot write the index";
    let mut output = BufWriter::new(new.file());
    let first = First {
        warpfs_index: VERSION,
    };
    let mut count = 0;
    put(&mut output, &first).context(cannot, new.target())?;
    for step in Walk::new(root, None) {
        if control.cancelled.load(Ordering::Relaxed) {
            return Err(ErrorKind::Cancelled.into());
        }
        let Step::Other(entry) = step? else { continue };
        if temporary_of(&entry.name).is_some() || entry.relative == Path::new(INDEX_NAME) {
            continue;
        }
        if entry.kind() != FileType::RegularFile {
            left_out(&entry.path);
            continue;
        }
        match indexed(&entry) {
            Some(indexed) => {
                put(&mut output, &indexed).context(cannot, new.target())?;
                count += 1;
            }
            None => left_out(&entry.path),
        }
    }
    output.flush().context(cannot, new.target())?;
    drop(output);
    new.publish()?;
    Ok(count)
}

fn put(output: &mut impl Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, line)?;
    output.write_all(b"\n")
}

/// `None` if its name cannot be written down.
fn indexed(entry: &Entry) -> Option<Indexed> {
    let size = u64::try_from(entry.stat.st_size).unwrap_or(0);
    let mut indexed = Indexed {
        path: entry.relative.to_str()?.to_owned(),
        size,
        modified: u64::try_from(entry.stat.st_mtime).unwrap_or(0),
        version: None,
        original: None,
    };
    if is_named_packed(&entry.name)
        && let Ok((file, _)) = open_entry(&*entry.directory, &entry.name, &entry.path)
        && let Ok(Some(found)) = glance(&file, &entry.path, size)
        && let Container::Table(version) = found.container
    {
        indexed.version = Some(version.number());
        indexed.original = Some(found.original_size);
    }
    Some(indexed)
}

/// Reads an index, and hands on what it names.
///
/// # Errors
/// It cannot be read, or is none.
pub(crate) fn read(
    mut input: impl BufRead,
    path: &Path,
    mut found: impl FnMut(Indexed),
) -> Result<()> {
    let refuse = |number: u64, why: &dyn std::fmt::Display| {
        Error::unusable(format!(
            "not an index that can be read: line {number}: {why}"
        ))
        .in_file(path)
    };
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        let mut limited = input.by_ref().take(LONGEST_LINE);
        limited
            .read_until(b'\n', &mut line)
            .context("cannot read", path)?;
        if line.is_empty() && number > 0 {
            return Ok(());
        }
        number += 1;
        if line.len() as u64 == LONGEST_LINE {
            return Err(refuse(number, &"too long"));
        }
        if number > 1 {
            found(serde_json::from_slice(&line).map_err(|error| refuse(number, &error))?);
            continue;
        }
        let first: First = serde_json::from_slice(&line).map_err(|error| refuse(number, &error))?;
        if first.warpfs_index != VERSION {
            let why = format!("version {} is not known here", first.warpfs_index);
            return Err(refuse(number, &why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn parsed(text: &str) -> Result<Vec<Indexed>> {
        let mut all = Vec::new();
        read(text.as_bytes(), Path::new("index"), |indexed| {
            all.push(indexed)
        })?;
        Ok(all)
    }

    #[test]
    fn an_index_names_the_files_of_its_tree() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("d")).unwrap();
        std::fs::write(tree.path().join("d/plain"), "12345").unwrap();
        let vector = "tests/data/v2-zstd-blake3.warp";
        std::fs::copy(vector, tree.path().join("d/x.warp")).unwrap();
        std::fs::write(tree.path().join("none.warp"), "none").unwrap();
        // Not every name with such an ending is of a file in the making.
        std::fs::write(tree.path().join("first.part"), "1").unwrap();
        std::fs::write(tree.path().join(".x.0123456789abcdef.part"), "?").unwrap();
        std::os::unix::fs::symlink("d", tree.path().join("link")).unwrap();
        for _ in 0..2 {
            let mut left_out = Vec::new();
            let count = write(tree.path(), false, Control::default(), |path| {
                left_out.push(path.to_owned())
            });
            assert_eq!(count.unwrap(), 4);
            assert_eq!(left_out, [tree.path().join("link")]);
        }
        let text = std::fs::read_to_string(tree.path().join(INDEX_NAME)).unwrap();
        let all = parsed(&text).unwrap();
        let paths: Vec<_> = all.iter().map(|indexed| indexed.path.as_str()).collect();
        assert_eq!(paths, ["d/plain", "d/x.warp", "first.part", "none.warp"]);
        let originals: Vec<_> = all.iter().map(|indexed| indexed.original).collect();
        assert_eq!(originals, [None, Some(100_003), None, None]);
        assert_eq!(all[0].size, 5);
    }

    #[test]
    fn what_has_the_name_of_an_index_and_is_none_stays_unless_it_may_be_replaced() {
        let tree = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let target = tree.path().join(INDEX_NAME);
        for (found, is_index) in [
            ("", false),
            ("{\"name\":\"mine\"}\n", false),
            ("[\n{\"warpfs_index\":1}\n]", false),
            ("{\"warpfs_index\":1}\n", true),
            ("{\"warpfs_index\":2,\"of\":\"later\"}\n{}\n", true),
        ] {
            std::fs::write(&target, found).unwrap();
            let into = check_room(tree.path(), Some(other.path()), true);
            assert_eq!(into.is_ok(), is_index, "{found}");
            let written = write(tree.path(), false, Control::default(), |_| ());
            let is_refused =
                matches!(&written, Err(error) if matches!(error.kind(), ErrorKind::Exists));
            assert_eq!(is_refused, !is_index, "{found}");
            let text = std::fs::read_to_string(&target).unwrap();
            assert_eq!(text == found, !is_index || found.len() == 19, "{found}");
            write(tree.path(), true, Control::default(), |_| ()).unwrap();
            let text = std::fs::read_to_string(&target).unwrap();
            assert_eq!(text, "{\"warpfs_index\":1}\n");
        }
        let missing = tree.path().join("missing");
        check_room(other.path(), Some(&missing), false).unwrap();
        std::os::unix::fs::symlink(&target, other.path().join(INDEX_NAME)).unwrap();
        assert!(check_room(other.path(), None, false).is_err());
    }

    #[test]
    fn one_who_is_told_to_stop_writes_no_index_and_leaves_nothing_of_it() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("x"), "12345").unwrap();
        let control = Control {
            cancelled: &AtomicBool::new(true),
            ..Control::default()
        };
        let stopped = write(tree.path(), false, control, |_| ()).unwrap_err();
        assert!(matches!(stopped.kind(), ErrorKind::Cancelled), "{stopped}");
        assert_eq!(std::fs::read_dir(tree.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        let long = format!(
            "{{\"warpfs_index\":1}}\n{{\"path\":\"{}\"",
            "a".repeat(1 << 17)
        );
        for refused in [
            "",
            "{}",
            "<html>",
            "{\"warpfs_index\":2}\n",
            "{\"warpfs_index\":1}\n{\"path\":1}\n",
            &long,
        ] {
            assert!(parsed(refused).is_err(), "{refused:.40}");
        }
        let two = "{\"warpfs_index\":1}\n{\"path\":\"a\",\"size\":1,\"later\":2}\n{\"path\":\"b\",\"size\":18446744073709551615}";
        assert_eq!(parsed(two).unwrap().len(), 2);
    }
}
