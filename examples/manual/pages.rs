//! Manual pages: the options as the command line defines them, and around them what only words can tell.

use std::io::{self, Write};

use clap_mangen::Man;
use roff::{Inline, Roff, bold, roman};

const EVERY_COMMAND: &[&str] = &["warpfs(1)"];

/// What a page says beyond its options. In the text of a paragraph, words between stars are bold.
struct Page {
    name: &'static str,
    description: &'static [&'static str],
    /// Sections of headed paragraphs.
    sections: &'static [(&'static str, &'static [(&'static str, &'static str)])],
    files: &'static [(&'static str, &'static str)],
    see_also: &'static [&'static str],
}

const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Everything asked for was done."),
    (
        "1",
        "The data or the system said no: a damaged file, a checksum that does not match, something that exists already, an \
         input/output error. One line on standard error names the file and says what to do.",
    ),
    ("2", "Wrong usage."),
];

const HELPER_EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "It is mounted."),
    (
        "1",
        "Wrong usage, or an option that is not known or cannot be had.",
    ),
    (
        "32",
        "It could not be mounted; one line on standard error says why.",
    ),
];

const WARP_FILES: (&str, &str) = (
    "*.warp",
    "Packed files: chunks, each compressed on its own, behind a table of their sizes, so that any part can be read without \
     the rest.",
);

const PAGES: &[Page] = &[
    Page {
        name: "warpfs",
        description: &[
            "*warpfs* keeps huge files compressed and lets every program use them as if they were not. *warpfs pack* turns *x* \
             into *x.warp*; *warpfs mount* shows a tree of such files as the originals, read-only: *grep*, *sqlite3*, a virtual \
             machine, any program reads them at any offset, and only what it reads is decoded.",
            "Each command has a page of its own, *warpfs-mount*(1) and so on, and *warpfs* COMMAND *--help* is its short form. \
             Sizes are bytes, or have K, M or G behind them (powers of 1024). Progress is shown on a terminal only. What *info*, \
             *estimate* and *stats* show and *unpack -c* writes goes to standard output; all else, also what *verify* finds, to \
             standard error.",
        ],
        sections: &[],
        files: &[WARP_FILES],
        see_also: &[
            "warpfs-mount(1)",
            "warpfs-pack(1)",
            "warpfs-unpack(1)",
            "warpfs-verify(1)",
            "warpfs-info(1)",
            "warpfs-estimate(1)",
            "warpfs-stats(1)",
            "warpfs-umount(1)",
            "mount.fuse.warpfs(8)",
        ],
    },
    Page {
        name: "warpfs-mount",
        description: &[
            "Shows every *x.warp* below SOURCE as the plain file *x* below MOUNTPOINT, with the original's size and contents; \
             everything else shows as it is. The mount is read-only and SOURCE is never written to. If SOURCE is one *.warp* \
             file, MOUNTPOINT is a directory, which then holds that one file, or an (empty) regular file, which then reads as \
             the original. A directory may be mounted over itself: programs go on finding their files at the same path.",
            "The command ends when the mount answers, and a server goes on in the background; with *-f* it stays. *warpfs umount*, \
             *umount*(8), *fusermount3 -u*, SIGINT, SIGTERM and SIGHUP end it. Files may be added to SOURCE, replaced by rename \
             and removed while it is mounted.",
            "Everybody may mount what he may read, through *fusermount3*(1). Nobody but who mounted sees into the mount, not \
             even root, unless *--allow-other* is given; for an ordinary user the administrator allows that by a line \
             *user_allow_other* in /etc/fuse.conf.",
            "SOURCE may be a URL: *s3://BUCKET/PREFIX/*, *gs://*, *az://* or *http(s)://*, of a packed file or, with a slash at the \
             end, of a tree. What is read of it is fetched, and what lies ahead of who reads in order.",
            "A chunk that is damaged is an input/output error for the bytes it holds and for no others, and one line in the log \
             says which file and chunk. Nothing is ever read as zeros instead.",
        ],
        sections: &[
            (
                "MOUNT OPTIONS",
                &[
                    (
                        "cache_size=, threads=, prefetch=, ttl=, verify=, idle_timeout=, metrics=, disk_cache=, disk_cache_size=, remote_timeout=, \
                         log_file=, allow_other, auto_unmount",
                        "Behind *-o*: the long options of the same names, with a value where those have one. A value with commas \
                         stands in double quotes.",
                    ),
                    (
                        "noexec, exec",
                        "Programs may not, or may, be run from the mount.",
                    ),
                    (
                        "nosymfollow, symfollow",
                        "The kernel follows no symbolic link of the mount, or does.",
                    ),
                    (
                        "context=, fscontext=, defcontext=, rootcontext=",
                        "Labels for the kernel's security module; see *mount*(8).",
                    ),
                    (
                        "ro, nosuid, nodev, default_permissions",
                        "So it is anyway; *suid*, *dev* and, on this command's line, *rw* are refused.",
                    ),
                    (
                        "defaults, auto, noauto, nofail, _netdev, user, users, owner, group, comment, x-*, noatime, relatime, sync and the like",
                        "Taken for what they mean to *mount*(8) and /etc/fstab, or because nothing is written. A word that is \
                         none of all these is an error.",
                    ),
                ],
            ),
            (
                "SIGNALS",
                &[
                    (
                        "SIGINT, SIGTERM, SIGHUP",
                        "Unmount and end. What is in use is detached and no longer seen.",
                    ),
                    (
                        "SIGUSR1, SIGUSR2",
                        "Log one level more (up to debug), or one less (down to errors alone). The log says which level it is at.",
                    ),
                ],
            ),
            (
                "ENVIRONMENT",
                &[
                    (
                        "NOTIFY_SOCKET",
                        "With *-f*: who is told when the mount answers (READY=1) and when it ends (STOPPING=1); see *sd_notify*(3).",
                    ),
                    (
                        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, AWS_PROFILE; GOOGLE_*; AZURE_STORAGE_*",
                        "Where a store is, and who asks it: the variables that the stores' own programs have.",
                    ),
                ],
            ),
        ],
        files: &[
            WARP_FILES,
            (
                "/etc/fstab",
                "May hold lines of type fuse.warpfs; see *mount.fuse.warpfs*(8).",
            ),
            (
                "/etc/fuse.conf",
                "Whether ordinary users may give *--allow-other*; see *fusermount3*(1).",
            ),
            (
                "/etc/warpfs/NAME.conf, ~/.config/warpfs/NAME.conf",
                "What the units warpfs@NAME.service of the system and of a user's session mount.",
            ),
            (
                "The log file",
                "Appended to. It may be renamed or removed while the mount runs, as logrotate does: the next line begins it anew.",
            ),
        ],
        see_also: &[
            "warpfs(1)",
            "warpfs-umount(1)",
            "warpfs-stats(1)",
            "mount.fuse.warpfs(8)",
            "mount(8)",
            "fusermount3(1)",
        ],
    },
    Page {
        name: "warpfs-umount",
        description: &[
            "Ends a mount that *warpfs mount* or *mount*(8) has made, and cleans up one whose server was killed. A mount in use \
             stays, and the command says so: *fuser -vm* MOUNTPOINT lists who uses it.",
        ],
        sections: &[],
        files: &[],
        see_also: &["warpfs(1)", "warpfs-mount(1)", "umount(8)", "fuser(1)"],
    },
    Page {
        name: "warpfs-pack",
        description: &[
            "Compresses each file in chunks into *x.warp* beside it, or where *-o* says. The input is kept unless *--rm* is \
             given, which removes it only when what was written has been synced, read back, decoded and compared with it. \
             Output appears under its name only when it is whole and on the disk, with the mode, times, owner and extended user attributes of its input.",
            "Small chunks make random reads through a mount fast, large ones compress better. The same input and settings give \
             the same bytes, whatever *--threads*. Memory is a few chunks a thread, whatever the file's size.",
        ],
        sections: &[],
        files: &[
            WARP_FILES,
            (
                ".NAME.*.part",
                "What is being written. One that a killed run has left may be removed.",
            ),
        ],
        see_also: &[
            "warpfs(1)",
            "warpfs-estimate(1)",
            "warpfs-unpack(1)",
            "warpfs-verify(1)",
            "warpfs-mount(1)",
        ],
    },
    Page {
        name: "warpfs-unpack",
        description: &[
            "Restores originals from packed files, with their mode, times, owner and extended user attributes. Everything is checked on \
             the way, by sizes, digests and the checksum of the whole file, and a file that does not match is not kept. Long \
             zeros become holes.",
            "With *--keep-going* what can be saved of a damaged file is written, the byte ranges that are lost are listed, and \
             the exit status is 1.",
        ],
        sections: &[(
            "A DAMAGED BEGINNING",
            &[
                (
                    "What is refused",
                    "Without header and table nothing tells where the chunks lie, so *--keep-going* refuses such a file. Of one \
                     that was packed with zstd or lz4 the codec's own program still decodes the chunks: they are whole frames, \
                     one behind the other.",
                ),
                (
                    "LC_ALL=C grep -abom1 $'\\x28\\xb5\\x2f\\xfd' x.warp | head -1",
                    "finds the first frame of zstd; that of lz4 begins with $'\\x04\\x22\\x4d\\x18'. The number is its OFFSET.",
                ),
                (
                    "tail -c +$((OFFSET + 1)) x.warp | zstd -dc > x",
                    "decodes up to the first damaged chunk, or to the footer, which zstd complains of when all is written. For \
                     lz4 it is *lz4 -dc*.",
                ),
            ],
        )],
        files: &[WARP_FILES],
        see_also: &["warpfs(1)", "warpfs-pack(1)", "warpfs-verify(1)"],
    },
    Page {
        name: "warpfs-verify",
        description: &[
            "Decodes every chunk of packed files and checks sizes, digests and checksums, writing nothing. With *--keep-going* \
             it goes on behind damage and says which byte ranges of the original are lost.",
        ],
        sections: &[],
        files: &[WARP_FILES],
        see_also: &["warpfs(1)", "warpfs-info(1)", "warpfs-unpack(1)"],
    },
    Page {
        name: "warpfs-info",
        description: &[
            "Shows what packed files say of themselves: version, codec, sizes, ratio, chunks, checksum. Nothing is decoded, so \
             it is quick for files of any size, and finds no damage behind the tables; *warpfs verify* does. Of a file that was \
             cut short it shows what is still there.",
            "For one file on a terminal, a map shows how many tenths are left of each part of the original. With *-r* the files of \
             a tree are summed up.",
        ],
        sections: &[(
            "ENVIRONMENT",
            &[("NO_COLOR", "Where it is set, the map has no colours.")],
        )],
        files: &[WARP_FILES],
        see_also: &["warpfs(1)", "warpfs-verify(1)"],
    },
    Page {
        name: "warpfs-stats",
        description: &[
            "Shows what a running mount has done since it began: reads, what was found decoded and what had to be decoded, what \
             was decoded ahead of readers, errors, and memory against its budget.",
        ],
        sections: &[],
        files: &[],
        see_also: &["warpfs(1)", "warpfs-mount(1)"],
    },
    Page {
        name: "mount.fuse.warpfs",
        description: &[
            "*mount*(8) runs this for *mount -t fuse.warpfs* and for lines of that type in /etc/fstab; it is a link to \
             *warpfs*(1), in a directory where *mount*(8) looks for it (/sbin). The options behind *-o* are described in \
             *warpfs-mount*(1). *rw*, which *mount*(8) passes where nothing is said, is accepted; the mount is read-only all the \
             same. *umount*(8) unmounts. The options of a mount stay as they are: *remount* is refused.",
            "A mount made by root is for root alone, unless *allow_other* is among the options, which most lines of /etc/fstab \
             want. With *user* or *users* there, ordinary users may mount, through *fusermount3*(1), what they may read.",
        ],
        sections: &[(
            "FSTAB",
            &[
                (
                    "/data/packed /mnt/data fuse.warpfs allow_other,nofail 0 0",
                    "At boot; the boot goes on if it fails.",
                ),
                (
                    "/data/packed /mnt/data fuse.warpfs allow_other,noauto,x-systemd.automount,x-systemd.idle-timeout=10min 0 0",
                    "When somebody first comes by, and unmounted when nobody has used it for ten minutes.",
                ),
                (
                    "/net/packed /mnt/data fuse.warpfs allow_other,_netdev,x-systemd.requires-mounts-for=/net 0 0",
                    "After the file system that SOURCE lies on, which is on the network.",
                ),
                (
                    "/home/me/packed /home/me/data fuse.warpfs noauto,user 0 0",
                    "By an ordinary user: *mount /home/me/data*.",
                ),
            ],
        )],
        files: &[("/etc/fstab", "The file systems to mount; see *fstab*(5).")],
        see_also: &[
            "warpfs-mount(1)",
            "mount(8)",
            "fstab(5)",
            "systemd.mount(5)",
        ],
    },
];

/// Writes one page.
pub(crate) fn write(
    command: &clap::Command,
    name: &str,
    section: &str,
    output: &mut impl Write,
) -> io::Result<()> {
    let page = PAGES.iter().find(|page| page.name == name);
    let manual = match section {
        "8" => "System Administration",
        _ => "User Commands",
    };
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(section)
        .source(concat!("warpfs ", env!("CARGO_PKG_VERSION")))
        .manual(manual);
    man.render_title(output)?;
    man.render_name_section(output)?;
    synopsis(command).to_writer(output)?;
    match page {
        Some(page) => paragraphs("DESCRIPTION", page.description).to_writer(output)?,
        None => man.render_description_section(output)?,
    }
    man.render_options_section(output)?;
    if command.has_subcommands() {
        commands(command).to_writer(output)?;
    }
    for (title, entries) in page.map_or(&[][..], |page| page.sections) {
        headed(title, entries).to_writer(output)?;
    }
    if let Some(examples) = command.get_after_help() {
        self::examples(&examples.to_string()).to_writer(output)?;
    }
    let exit_status = match section {
        "8" => HELPER_EXIT_STATUS,
        _ => EXIT_STATUS,
    };
    headed("EXIT STATUS", exit_status).to_writer(output)?;
    let files = page.map_or(&[][..], |page| page.files);
    if !files.is_empty() {
        headed("FILES", files).to_writer(output)?;
    }
    see_also(page.map_or(EVERY_COMMAND, |page| page.see_also)).to_writer(output)
}

/// The usage as the command's help has it, without the marks of that.
fn synopsis(command: &clap::Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").replace(['<', '>'], "");
    let (name, words) = usage.split_at(usage.find('[').unwrap_or(usage.len()));
    let mut page = Roff::new();
    page.control("SH", ["SYNOPSIS"]);
    page.text([bold(name), roman(words)]);
    page
}

/// Text in which words between stars are bold.
fn inlines(text: &str) -> Vec<Inline> {
    let parts = text.split('*').enumerate();
    parts
        .map(|(index, part)| match index % 2 {
            1 => bold(part),
            _ => roman(part),
        })
        .collect()
}

fn paragraphs(title: &str, texts: &[&str]) -> Roff {
    let mut page = Roff::new();
    page.control("SH", [title]);
    for text in texts {
        page.control("PP", []);
        page.text(inlines(text));
    }
    page
}

/// Paragraphs with a heading each, which is taken as it is.
fn headed(title: &str, entries: &[(&str, &str)]) -> Roff {
    let mut page = Roff::new();
    page.control("SH", [title]);
    for (heading, text) in entries {
        page.control("TP", []);
        page.text([bold(*heading)]);
        page.text(inlines(text));
    }
    page
}

fn commands(program: &clap::Command) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["COMMANDS"]);
    for command in program.get_subcommands() {
        page.control("TP", []);
        page.text([bold("warpfs "), bold(command.get_name())]);
        let about = command.get_about().map(ToString::to_string);
        page.text([roman(about.unwrap_or_default()), roman(".")]);
    }
    page
}

/// The examples that a command's help ends with: command lines, with what they do behind three blanks or more.
fn examples(help: &str) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["EXAMPLES"]);
    for line in help.lines() {
        let Some(example) = line.strip_prefix("  ") else {
            // "Examples:" is the section's title already; other lines between lead over.
            if !line.starts_with("Example") && !line.is_empty() {
                page.control("PP", []);
                page.text([roman(line)]);
            }
            continue;
        };
        match example.split_once("   ") {
            Some((command, what)) => {
                page.control("TP", []);
                page.text([bold(command)]);
                page.text([roman(what.trim())]);
            }
            None => {
                page.control("PP", []);
                page.text([bold(example)]);
            }
        }
    }
    page
}

fn see_also(pages: &[&str]) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (index, name) in pages.iter().enumerate() {
        let (name, section) = name.split_once('(').unwrap_or((name, "1)"));
        line.extend([bold(name), roman("("), roman(section)]);
        if index + 1 < pages.len() {
            line.push(roman(", "));
        }
    }
    page.text(line);
    page
}
