//! URLs among the words of a command line: what they are called, and what of them must not be seen.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::wrong_usage;

/// What a word is called in messages: itself, or a URL without its secrets.
pub(super) fn shown(word: &Path) -> Cow<'_, Path> {
    #[cfg(feature = "remote")]
    if let Some(shown) = warpfs::remote::shown(word) {
        return shown.into();
    }
    word.into()
}

/// Whether a word is a URL.
pub(super) fn is_url(word: &Path) -> bool {
    #[cfg(feature = "remote")]
    return warpfs::remote::shown(word).is_some();
    #[cfg(not(feature = "remote"))]
    {
        let _ = word;
        false
    }
}

/// Ends the process if a job on files of this machine and single objects is asked of a URL that names a tree.
pub(super) fn refuse_trees(command: &str, words: &[PathBuf]) {
    let is_tree = |word: &&PathBuf| in_prefix(word, Path::new("")).is_some();
    if let Some(tree) = words.iter().find(is_tree) {
        let tree = shown(tree);
        let why = format!(
            "'{}' is a tree beyond this machine, which no job walks: name its objects, or mount it",
            tree.display()
        );
        wrong_usage(command, why);
    }
}

/// The name that a file or an object has in its directory.
pub(super) fn own_name(word: &Path) -> Option<PathBuf> {
    #[cfg(feature = "remote")]
    if is_url(word) {
        return warpfs::remote::object_name(word).map(PathBuf::from);
    }
    word.file_name().map(PathBuf::from)
}

/// The place of what is called `name` in a store's prefix, if the word is the URL of one: it ends in a slash. Whatever means something
/// in a URL is written so that it is part of the name.
pub(super) fn in_prefix(word: &Path, name: &Path) -> Option<PathBuf> {
    if !is_url(word) || !word.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return None;
    }
    let mut place = OsString::from(word);
    for &byte in name.as_os_str().as_encoded_bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' => place.push(char::from(byte).to_string()),
            _ if byte.is_ascii_alphanumeric() => place.push(char::from(byte).to_string()),
            _ => place.push(format!("%{byte:02X}")),
        }
    }
    Some(place.into())
}

/// Hides the secrets of signed URLs from whoever lists processes: this process begins anew, with these words in its
/// environment, which only its user can read.
#[cfg(feature = "remote")]
pub(super) fn hide_secrets() {
    use std::os::unix::process::CommandExt;

    let arguments: Vec<OsString> = std::env::args_os().collect();
    let has_secrets = |word: &OsString| {
        let shown = shown(Path::new(word));
        is_url(Path::new(word)) && shown.as_os_str() != word.as_os_str()
    };
    let Some((program, words)) = arguments.split_first() else {
        return;
    };
    if std::env::var_os(HIDDEN).is_some() || !words.iter().any(has_secrets) {
        return;
    }
    let Ok(hidden) =
        serde_json::to_string(&words.iter().map(|word| word.to_str()).collect::<Vec<_>>())
    else {
        return;
    };
    let Ok(own) = std::env::current_exe() else {
        return;
    };
    // If it cannot be done, it goes on as it was called.
    let _ = std::process::Command::new(own)
        .arg0(program)
        .args(words.iter().map(|word| shown(Path::new(word)).into_owned()))
        .env(HIDDEN, hidden)
        .exec();
}

/// The words of the command line as they were given.
pub(super) fn arguments() -> Vec<OsString> {
    let given = std::env::args_os().collect::<Vec<_>>();
    #[cfg(feature = "remote")]
    if let Ok(hidden) = std::env::var(HIDDEN)
        && let Ok(words) = serde_json::from_str::<Vec<Option<String>>>(&hidden)
    {
        let (program, shown) = given.split_at(1.min(given.len()));
        if words.len() == shown.len() {
            let words = words.into_iter().zip(shown);
            let words = words.map(|(word, shown)| word.map_or(shown.clone(), OsString::from));
            return program.iter().cloned().chain(words).collect();
        }
    }
    given
}

/// What holds the words of the command line that is not shown.
#[cfg(feature = "remote")]
const HIDDEN: &str = "WARPFS_ARGUMENTS";
