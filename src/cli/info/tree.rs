//! What `warpfs info -r` says of a tree as a whole.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use warpfs::error::OneLine;
use warpfs::info::{Share, TreeInfo};

use super::name_of;
use crate::cli::size::{count, human, percent};

/// Prints the sums of the tree at `root`.
pub(super) fn print(out: &mut impl Write, root: &Path, tree: &TreeInfo) -> io::Result<()> {
    let packed = &tree.packed;
    let size = |share: &Share| {
        format!(
            "{} as {} ({})",
            human(share.original_size),
            human(share.packed_size),
            percent(share.packed_size, share.original_size)
        )
    };
    writeln!(out, "tree        {}", OneLine(root.display()))?;
    writeln!(
        out,
        "packed      {}, {}",
        count(packed.files, "file"),
        size(packed)
    )?;
    let plain = count(tree.plain_files, "file");
    writeln!(out, "plain       {plain}, {}", human(tree.plain_size))?;
    if tree.further_names > 0 {
        let names = count(tree.further_names, "further name");
        writeln!(out, "hard links  {names} of these files, counted once")?;
    }
    let shown = packed.original_size.saturating_add(tree.plain_size);
    let taken = packed.packed_size.saturating_add(tree.plain_size);
    let saved = shown.saturating_sub(taken);
    writeln!(
        out,
        "together    {} shown, {} taken, {} saved ({})",
        human(shown),
        human(taken),
        human(saved),
        percent(saved, shown)
    )?;
    match tree.unverified.files {
        0 if packed.files == 0 => {}
        0 => writeln!(
            out,
            "unverified  none: every read of a packed file is checked"
        )?,
        files => writeln!(
            out,
            "unverified  {}, {}: no record of digests,\n            only their codec checks what is read; packed anew they have one",
            count(files, "file"),
            human(tree.unverified.original_size)
        )?,
    }
    let wrong = [
        (tree.damaged, "damaged"),
        (tree.record_damaged, "with a damaged record of digests"),
        (tree.foreign, "named .warp that are none"),
        (tree.unreadable, "unreadable"),
    ];
    let wrong: Vec<String> = wrong
        .iter()
        .filter(|(files, _)| *files > 0)
        .map(|(files, what)| format!("{} {what}", indicatif::HumanCount(*files)))
        .collect();
    if !wrong.is_empty() {
        writeln!(out, "wrong       {}", wrong.join(", "))?;
    }
    print_shares(out, "CODEC", &tree.by_codec)?;
    print_shares(out, "CHECKSUM", &tree.by_checksum)?;
    print_files(out, "LARGEST", &tree.largest)?;
    print_files(out, "LEAST SHRUNK", &tree.least_shrunk)
}

fn print_shares(
    out: &mut impl Write,
    title: &str,
    shares: &BTreeMap<String, Share>,
) -> io::Result<()> {
    if shares.is_empty() {
        return Ok(());
    }
    // The names of several encodings in one file may be long.
    let width = shares.keys().map(String::len).max().unwrap_or(0).max(10);
    let title_width = width + 2;
    writeln!(
        out,
        "\n{title:<title_width$}{:>12} {:>14} {:>14} {:>8}",
        "FILES", "ORIGINAL", "PACKED", "RATIO"
    )?;
    for (name, share) in shares {
        writeln!(
            out,
            "  {name:<width$}{:>12} {:>14} {:>14} {:>8}",
            indicatif::HumanCount(share.files).to_string(),
            human(share.original_size),
            human(share.packed_size),
            percent(share.packed_size, share.original_size)
        )?;
    }
    Ok(())
}

fn print_files(out: &mut impl Write, title: &str, files: &[(PathBuf, u64, u64)]) -> io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title:<14}{:>12} {:>8}  FILE", "PACKED", "RATIO")?;
    for (path, original, packed) in files {
        writeln!(
            out,
            "  {:<12}{:>12} {:>8}  {}",
            human(*original),
            human(*packed),
            percent(*packed, *original),
            OneLine(path.display())
        )?;
    }
    Ok(())
}

/// The sums as JSON: an object that has "tree" where a file's has "file".
pub(super) fn as_json(root: &Path, tree: &TreeInfo) -> Value {
    let share = |share: &Share| {
        json!({
            "files": share.files,
            "original_size": share.original_size,
            "packed_size": share.packed_size,
        })
    };
    let shares = |shares: &BTreeMap<String, Share>| -> Value {
        let named = shares
            .iter()
            .map(|(name, each)| (name.clone(), share(each)));
        Value::Object(named.collect())
    };
    let files = |files: &[(PathBuf, u64, u64)]| -> Value {
        let named = files.iter().map(|(path, original, packed)| {
            json!({"file": name_of(path), "original_size": original, "packed_size": packed})
        });
        named.collect()
    };
    json!({
        "tree": name_of(root),
        "packed": share(&tree.packed),
        "plain": {"files": tree.plain_files, "size": tree.plain_size},
        "further_names": tree.further_names,
        "codecs": shares(&tree.by_codec),
        "checksums": shares(&tree.by_checksum),
        "unverified": share(&tree.unverified),
        "record_damaged": tree.record_damaged,
        "damaged": tree.damaged,
        "foreign": tree.foreign,
        "unreadable": tree.unreadable,
        "largest": files(&tree.largest),
        "least_shrunk": files(&tree.least_shrunk),
    })
}
