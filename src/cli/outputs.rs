//! Where the results for each input go.
//!
//! All of it is worked out before the first input is read, because a clash that is noticed later is noticed too late:
//! with `--force --rm` the second of two files of the same name would take the place of the first one's result when the
//! first one is gone already. So a clash is wrong usage, whatever the other flags.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::builder::TypedValueParser;

use super::urls::{in_prefix, is_url, own_name, shown};

/// One input, and what is to become of it.
pub(super) struct Planned<'a> {
    pub(super) input: &'a Path,
    /// Whether the input is a tree, and to be taken as one.
    pub(super) tree: bool,
    /// Where the result goes. `None` for a tree that is worked on in place, and for a file without a name of its own
    /// for the result.
    pub(super) output: Option<PathBuf>,
}

/// The inputs as they are, without any results.
pub(super) fn without_outputs(inputs: &[PathBuf], recursive: bool) -> Vec<Planned<'_>> {
    let plan = inputs.iter().map(|input| Planned {
        input,
        // Also where a directory here has the name of the URL.
        tree: recursive && !is_url(input) && input.is_dir(),
        output: None,
    });
    plan.collect()
}

/// Where every result goes: with `output` to that very name for a single input, unless it is a directory that files are
/// to be put into; into that directory for several; without `output` beside the input. `name` makes a result's name of
/// a file's; trees keep theirs.
///
/// # Errors
/// What is wrong with the command line: two results of one name, for example.
pub(super) fn plan<'a>(
    inputs: &'a [PathBuf],
    recursive: bool,
    output: Option<&Path>,
    replace: bool,
    name: impl Fn(&Path) -> Option<PathBuf>,
) -> Result<Vec<Planned<'a>>, String> {
    let mut plan = without_outputs(inputs, recursive);
    let single = plan.len() == 1;
    for planned in &mut plan {
        planned.output = match (output, planned.tree) {
            (None, true) => None,
            // What has no directory here gets a place in the current one.
            (None, false) if is_url(planned.input) => {
                own_name(planned.input).and_then(|own| name(&own))
            }
            (None, false) => name(planned.input),
            (Some(output), true) if single => Some(output.to_owned()),
            (Some(output), true) => Some(output.join(tree_name(planned.input)?)),
            (Some(output), false) if in_prefix(output, Path::new("")).is_some() => {
                let own = own_name(planned.input).and_then(|own| name(&own));
                own.and_then(|name| in_prefix(output, &name))
            }
            (Some(output), false) if !is_url(output) && output.is_dir() => {
                let own = own_name(planned.input);
                own.and_then(|own| name(&own)).map(|name| output.join(name))
            }
            (Some(output), false) if single => Some(output.to_owned()),
            (Some(output), false) => {
                return Err(format!(
                    "--output '{}' must be a directory, for there are several inputs",
                    output.display()
                ));
            }
        };
    }
    check_for_clashes(&plan, replace)?;
    Ok(plan)
}

/// A tree's own name, also if it is called `..` or `.`.
fn tree_name(input: &Path) -> Result<PathBuf, String> {
    let canonical = || input.canonicalize().ok();
    input
        .file_name()
        .map(PathBuf::from)
        .or_else(|| canonical()?.file_name().map(PathBuf::from))
        .ok_or_else(|| format!("'{}' has no name to go by in --output", input.display()))
}

fn check_for_clashes(plan: &[Planned<'_>], replace: bool) -> Result<(), String> {
    let mut results: HashMap<PathBuf, &Path> = HashMap::new();
    for planned in plan {
        let Some(output) = &planned.output else {
            continue;
        };
        if let Some(other) = results.insert(place(output), planned.input) {
            return Err(format!(
                "'{}' and '{}' would both become '{}'",
                shown(other).display(),
                shown(planned.input).display(),
                shown(output).display()
            ));
        }
    }
    // Without leave to replace anything, such an input is refused as what exists already.
    let replaced = plan.iter().filter(|_| replace).find_map(|planned| {
        let by = results.get(&place(planned.input))?;
        (*by != planned.input).then_some((planned.input, by))
    });
    match replaced {
        Some((input, by)) => Err(format!(
            "'{}' would be replaced by what '{}' becomes: do one after the other",
            input.display(),
            by.display()
        )),
        None => Ok(()),
    }
}

/// A name that is the same however its directory is spelt.
fn place(path: &Path) -> PathBuf {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return path.to_owned(),
    };
    match (directory.canonicalize(), path.file_name()) {
        (Ok(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

/// Takes an `--output`, which is never standard output: what is written is gone back in, synced and renamed.
pub(super) fn output_parser() -> impl TypedValueParser<Value = PathBuf> {
    clap::builder::PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("results are files ('./-' is one called '-'); unpack has --stdout"),
        false => Ok(path),
    })
}
