//! mount(8)'s words: what stands behind `-o`, in the fourth column of /etc/fstab, and in an automounter's map.
//!
//! Of these words some are ours, some are for the kernel, and most are mount(8)'s own or say what is so anyway. A word that
//! is none of them is an error, unless mount(8) was told to be sloppy: what an administrator asks for must not be
//! ignored, least of all where it keeps somebody out.

/// Separates options at the commas that do not stand in double quotes.
pub(super) fn separate(options: &str) -> Vec<&str> {
    let mut quoted = false;
    let separated = options.split(|character: char| {
        quoted ^= character == '"';
        character == ',' && !quoted
    });
    separated.filter(|option| !option.is_empty()).collect()
}

/// What an option's value says: double quotes around it only keep its commas together.
pub(super) fn unquote(value: &str) -> &str {
    let inner = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or(value)
}

/// Whether the kernel's security module is meant.
pub(super) fn is_security_label(name: &str) -> bool {
    matches!(name, "context" | "fscontext" | "defcontext" | "rootcontext")
}

/// Whether the word asks nothing of us: it is mount(8)'s or fstab's own, says what is so anyway, or is about writing.
pub(super) fn asks_nothing(name: &str) -> bool {
    let of_fstab = matches!(
        name,
        "defaults"
            | "auto"
            | "noauto"
            | "nofail"
            | "_netdev"
            | "user"
            | "nouser"
            | "users"
            | "nousers"
            | "owner"
            | "noowner"
            | "group"
            | "nogroup"
            | "comment"
    );
    let is_so_anyway = matches!(name, "ro" | "nosuid" | "nodev" | "default_permissions");
    let of_writing = matches!(
        name,
        "sync"
            | "async"
            | "dirsync"
            | "atime"
            | "noatime"
            | "diratime"
            | "nodiratime"
            | "relatime"
            | "norelatime"
            | "strictatime"
            | "nostrictatime"
            | "lazytime"
            | "nolazytime"
            | "iversion"
            | "noiversion"
            | "mand"
            | "nomand"
            | "silent"
            | "loud"
    );
    let of_others = name.starts_with("x-") || name.starts_with("X-");
    of_fstab || is_so_anyway || of_writing || of_others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_quotes_separate_nothing() {
        assert_eq!(
            separate(r#"ro,,context="a:c0,c1",log_file=/x,"#),
            ["ro", r#"context="a:c0,c1""#, "log_file=/x"]
        );
        assert_eq!(unquote(r#""/a,b""#), "/a,b");
        assert_eq!(unquote(r#"""#), r#"""#);
    }
}
