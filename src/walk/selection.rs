//! Which part of a tree a walk goes through.
//!
//! Patterns are what users of tar, rsync and grep are used to, with one rule instead of an order: something is left out if
//! any pattern excludes it or a directory it is in; of what is left, files are taken if none, or any, of the patterns to
//! include matches them or a directory they are in. Excluded directories are not entered.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use rustix::fs::FileType;

use crate::error::{Error, Result};

/// What of a tree is taken; all of it by default.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    exclude: Patterns,
    /// `None` takes all that is not excluded.
    include: Option<Patterns>,
    one_file_system: bool,
}

#[derive(Debug, Clone, Default)]
struct Patterns {
    anything: GlobSet,
    /// Those that end in a slash.
    directories: GlobSet,
}

impl Selection {
    /// Leaves out what one of `exclude` matches, and if there is any `include`, all files that none of these matches.
    ///
    /// A pattern without a slash matches names at any depth; one with a slash matches paths from the tree's root on; one that
    /// ends in a slash matches directories alone. `*` and `?` stand for anything but a slash, `**` for any directories, `[a-z]`
    /// for one of these characters and `{a,b}` for one of these words; a backslash takes the next character as it is.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn new(
        exclude: impl IntoIterator<Item = impl AsRef<str>>,
        include: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self> {
        let mut include = include.into_iter().peekable();
        Ok(Self {
            exclude: Patterns::new(exclude)?,
            include: match include.peek() {
                Some(_) => Some(Patterns::new(include)?),
                None => None,
            },
            one_file_system: false,
        })
    }

    /// Whether other file systems mounted in the tree are left out: their mount points are then empty directories.
    #[must_use]
    pub fn one_file_system(mut self, one: bool) -> Self {
        self.one_file_system = one;
        self
    }

    /// Whether what is in a directory on that device is taken, in a tree whose root is on the other.
    pub(super) fn enters(&self, device: u64, root: u64) -> bool {
        !self.one_file_system || device == root
    }

    /// Whether something is taken, whose path from the root this is, if the directory it is in was entered.
    pub(crate) fn takes(&self, relative: &Path, kind: FileType) -> bool {
        let directory = kind == FileType::Directory;
        if self.exclude.match_this(relative, directory) {
            return false;
        }
        match &self.include {
            Some(include) if !directory => {
                let above = relative.ancestors().skip(1);
                let mut above = above.filter(|above| !above.as_os_str().is_empty());
                include.match_this(relative, false)
                    || above.any(|above| include.match_this(above, true))
            }
            _ => true,
        }
    }
}

impl Patterns {
    fn new(patterns: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        let mut anything = GlobSetBuilder::new();
        let mut directories = GlobSetBuilder::new();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let bare = pattern.strip_suffix('/').unwrap_or(pattern);
            let name = bare.strip_prefix("./").unwrap_or(bare);
            let name = name.strip_prefix('/').unwrap_or(name);
            if matches!(name, "" | "." | "..") {
                return Err(Error::unusable(format!(
                    "'{pattern}' matches nothing: it has no name in it"
                )));
            }
            let glob = match bare.contains('/') {
                true => name.to_owned(),
                false => format!("**/{name}"),
            };
            let glob = GlobBuilder::new(&glob)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|error| Error::unusable(format!("'{pattern}': {}", error.kind())))?;
            match bare == pattern {
                true => anything.add(glob),
                false => directories.add(glob),
            };
        }
        let built = |set: GlobSetBuilder| {
            let cannot = |error| Error::unusable(format!("too much of a pattern: {error}"));
            set.build().map_err(cannot)
        };
        Ok(Self {
            anything: built(anything)?,
            directories: built(directories)?,
        })
    }

    fn match_this(&self, relative: &Path, directory: bool) -> bool {
        self.anything.is_match(relative) || (directory && self.directories.is_match(relative))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    const NONE: [&str; 0] = [];

    fn takes(selection: &Selection, path: &str) -> bool {
        selection.takes(Path::new(path), FileType::RegularFile)
    }

    /// Whether a file is taken by whom goes down to it.
    fn is_met(selection: &Selection, path: &Path) -> bool {
        let mut above = path.ancestors().skip(1);
        selection.takes(path, FileType::RegularFile)
            && above.all(|above| {
                above.as_os_str().is_empty() || selection.takes(above, FileType::Directory)
            })
    }

    #[test]
    fn a_pattern_without_a_slash_is_of_names_and_one_with_a_slash_of_paths() {
        let selection = Selection::new(["*.o", "/build", "a/?.log", "cache/"], NONE).unwrap();
        for left_out in ["x.o", "deep/down/x.o", "build", "a/1.log"] {
            assert!(!takes(&selection, left_out), "{left_out}");
        }
        for taken in ["x.oo", "deep/build", "b/a/1.log", "a/12.log", "cache"] {
            assert!(takes(&selection, taken), "{taken}");
        }
        assert!(!selection.takes(Path::new("deep/cache"), FileType::Directory));
        let not_utf_8 = Path::new(OsStr::from_bytes(b"d/\xff.o"));
        assert!(!selection.takes(not_utf_8, FileType::RegularFile));
    }

    #[test]
    fn what_is_included_limits_files_and_what_is_excluded_wins() {
        let selection = Selection::new(["tmp"], ["*.{log,txt}", "src/"]).unwrap();
        assert!(takes(&selection, "a/b.log") && takes(&selection, "src/deep/x"));
        assert!(!takes(&selection, "a/b") && !takes(&selection, "src"));
        assert!(selection.takes(Path::new("a"), FileType::Directory));
        assert!(!is_met(&selection, Path::new("tmp/b.log")));
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_its_text() {
        for wrong in ["", "/", "./", "[a", "{a"] {
            let error = Selection::new([wrong], NONE).unwrap_err().to_string();
            assert!(error.contains(&format!("'{wrong}'")), "{error}");
        }
    }

    /// Matches `*` and `?` within a name, by trying everything.
    fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|skip| matches_name(rest, &name[skip..])),
            [b'?', rest @ ..] => !name.is_empty() && matches_name(rest, &name[1..]),
            [byte, rest @ ..] => name.first() == Some(byte) && matches_name(rest, &name[1..]),
        }
    }

    /// Whether a pattern matches a path, by the rule in words.
    fn matches(pattern: &str, path: &[&str], directory: bool) -> bool {
        let bare = pattern.trim_end_matches('/');
        if bare != pattern && !directory {
            return false;
        }
        let parts: Vec<_> = bare.trim_start_matches('/').split('/').collect();
        match bare.contains('/') {
            false => matches_name(bare.as_bytes(), path[path.len() - 1].as_bytes()),
            true => {
                parts.len() == path.len()
                    && parts
                        .iter()
                        .zip(path)
                        .all(|(part, name)| matches_name(part.as_bytes(), name.as_bytes()))
            }
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        let part =
            "[ab*?]{1,3}".prop_filter("two stars are another thing", |part| !part.contains("**"));
        let parts = proptest::collection::vec(part, 1..3).prop_map(|parts| parts.join("/"));
        (any::<bool>(), parts, any::<bool>()).prop_map(|(anchored, parts, directory)| {
            let begin = if anchored { "/" } else { "" };
            let end = if directory { "/" } else { "" };
            format!("{begin}{parts}{end}")
        })
    }

    proptest! {
        #[test]
        fn any_patterns_select_what_the_rule_says(
            exclude in proptest::collection::vec(pattern(), 0..3),
            include in proptest::collection::vec(pattern(), 0..3),
            path in proptest::collection::vec("[ab]{1,3}", 1..4),
        ) {
            let selection = Selection::new(&exclude, &include).unwrap();
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let any = |patterns: &[String]| {
                (1..=path.len()).any(|depth| {
                    let directory = depth < path.len();
                    patterns.iter().any(|pattern| matches(pattern, &path[..depth], directory))
                })
            };
            let expected = !any(&exclude) && (include.is_empty() || any(&include));
            prop_assert_eq!(is_met(&selection, Path::new(&path.join("/"))), expected);
        }
    }
}
