//! The manual pages, the completions and the units are whole: made from the command line as it is, read by the programs that
//! people read them with.
//!
//! Where a shell or a reader of manual pages is missing, what is checked with it is left out; `scripts/test` installs all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::place::said;

/// The manual as `scripts/package` makes it.
fn manual() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = MADE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--example", "manual", "--"])
            .arg(directory.path())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        directory
    });
    directory.path()
}

fn pages() -> Vec<PathBuf> {
    let files = ["man/man1", "man/man8"].map(|kind| fs::read_dir(manual().join(kind)).unwrap());
    let pages = files.into_iter().flatten();
    pages.map(|page| page.unwrap().path()).collect()
}

/// Runs a program if it is there.
fn run_if_there(program: &str, arguments: &[&str], file: &Path) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).arg(file);
    match command
        .env("LC_ALL", "C.UTF-8")
        .env("MANWIDTH", "80")
        .output()
    {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            common::left_out(&format!("{program} is missing"));
            None
        }
        other => Some(other.unwrap()),
    }
}

#[test]
fn every_command_has_a_page_that_tells_all_its_options() {
    let help = |words: &[&str]| {
        let output = common::run(words.iter().chain(&["--help"]));
        String::from_utf8(output.stdout).unwrap()
    };
    let commands = help(&[]);
    let (_, commands) = commands.split_once("Commands:\n").unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names: Vec<&str> = commands
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(names.contains(&"mount") && names.len() >= 7, "{names:?}");
    for name in names {
        let page = manual().join(format!("man/man1/warpfs-{name}.1"));
        let page = fs::read_to_string(&page).unwrap().replace('\\', "");
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXAMPLES",
            "\"EXIT STATUS\"",
            "\"SEE ALSO\"",
        ] {
            assert!(
                page.contains(&format!(".SH {section}")),
                "{name}: {section}"
            );
        }
        let help = help(&[name]);
        let mut options = 0;
        for word in help
            .split([' ', '\n', ','])
            .filter(|word| word.starts_with("--"))
        {
            let word = word.trim_end_matches(['.', ')', ':']);
            assert!(page.contains(word), "{name}: {word}");
            options += 1;
        }
        assert!(options > 0);
    }
}

#[test]
fn readers_of_manual_pages_have_nothing_to_complain_of() {
    assert!(pages().len() >= 9);
    for page in pages() {
        if let Some(output) = run_if_there("man", &["--warnings", "-E", "UTF-8", "-l"], &page) {
            assert!(output.status.success());
            assert_eq!(said(&output), "", "{}", page.display());
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("EXIT STATUS"), "{text}");
        }
        if let Some(output) = run_if_there("mandoc", &["-T", "lint", "-W", "error"], &page) {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}");
        }
    }
}

/// What bash offers for the last of these words.
fn offered(words: &[&str]) -> String {
    let file = manual().join("bash-completion/completions/warpfs");
    let script = "source \"$1\"; shift
        COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1))
        complete -p warpfs
        _warpfs warpfs \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(file)
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_options_values_and_files() {
    let lines = |words: &[&str]| {
        let text = offered(words);
        let mut lines = text.lines().map(str::to_owned);
        // Where nothing is offered, bash completes names of files.
        let how = lines.next().unwrap();
        assert!(
            how.contains("-o default") && how.contains("-F _warpfs"),
            "{how}"
        );
        lines.filter(|line| !line.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(lines(&["warpfs", "mo"]), ["mount"]);
    assert_eq!(lines(&["warpfs", "mount", "--cac"]), ["--cache-size"]);
    assert_eq!(lines(&["warpfs", "pack", "--codec", "sn"]), ["snappy"]);
    assert_eq!(lines(&["warpfs", "pack", "disk."]), [""; 0]);

    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("disk.img"), "").unwrap();
    let start = directory.path().join("dis");
    let expected = directory.path().join("disk.img");
    assert_eq!(
        lines(&["warpfs", "pack", "-o", start.to_str().unwrap()]),
        [expected.to_str().unwrap()]
    );
}

#[test]
fn zsh_and_fish_take_their_completions() {
    let zsh = manual().join("zsh/vendor-completions/_warpfs");
    assert!(
        fs::read_to_string(&zsh)
            .unwrap()
            .starts_with("#compdef warpfs")
    );
    for (shell, file) in [
        ("zsh", zsh),
        (
            "fish",
            manual().join("fish/vendor_completions.d/warpfs.fish"),
        ),
    ] {
        if let Some(output) = run_if_there(shell, &["-n"], &file) {
            assert!(output.status.success(), "{shell}: {}", said(&output));
            assert_eq!(said(&output), "");
        }
    }
    let fish = manual().join("fish/vendor_completions.d/warpfs.fish");
    let ask = format!("source {}; complete -C 'warpfs mo'", fish.display());
    if let Some(output) = run_if_there("fish", &["-c"], Path::new(&ask)) {
        let offered = String::from_utf8(output.stdout).unwrap();
        assert!(offered.starts_with("mount\t"), "{offered}");
        assert_eq!(offered.lines().count(), 1, "{offered}");
    }
}

/// Types the words and a tab into a zsh with a terminal of its own, and has it show what then stands in the line.
const TYPE_INTO_ZSH: &str = r#"
zmodload zsh/zpty
zpty shell env -i TERM=dumb PATH=$PATH zsh -f -i
zpty -w shell "fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; cd $2; echo com''pletes"
zpty -r -m shell output '*completes*'
zpty -w -n shell "$3"$'\t'
zpty -w shell $'\C-a echo "<\C-e>"'
zpty -r -m shell output $'*\n<*>*'
print -r -- "$output""#;

#[test]
fn zsh_completes_commands_options_values_and_files_as_they_are_typed() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("disk.img"), "").unwrap();
    let functions = manual().join("zsh/vendor-completions");
    for (typed, expected) in [
        ("warpfs mo", "warpfs mount"),
        ("warpfs mount --cac", "warpfs mount --cache-size"),
        ("warpfs pack --codec sn", "warpfs pack --codec snappy"),
        ("warpfs pack --for rand", "warpfs pack --for random"),
        ("warpfs info dis", "warpfs info disk.img"),
    ] {
        let arguments = [
            "30",
            "zsh",
            "-f",
            "-c",
            TYPE_INTO_ZSH,
            "zsh",
            functions.to_str().unwrap(),
            directory.path().to_str().unwrap(),
        ];
        if run_if_there("zsh", &["-f", "-c"], Path::new("true")).is_none() {
            return;
        }
        let output = run_if_there("timeout", &arguments, Path::new(typed)).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = text.split(['\r', '\n']);
        let line = lines.find_map(|line| line.strip_prefix('<')?.strip_suffix('>'));
        assert_eq!(line.map(str::trim_end), Some(expected), "{text}");
    }
}

#[test]
fn systemd_understands_the_units() {
    for kind in ["system", "user"] {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("packaging/systemd")
            .join(kind)
            .join("warpfs@.service");
        // Where the package puts the program, nothing may be yet.
        let text = fs::read_to_string(unit).unwrap();
        let text = text.replace("/usr/bin/warpfs", env!("CARGO_BIN_EXE_warpfs"));
        let directory = tempfile::tempdir().unwrap();
        let unit = directory.path().join("warpfs@.service");
        let verify = |text: &str| {
            fs::write(&unit, text).unwrap();
            run_if_there("systemd-analyze", &["verify", "--man=no"], &unit)
        };
        let Some(output) = verify(&text) else {
            return;
        };
        assert!(output.status.success(), "{}", said(&output));
        assert!(!said(&output).contains("warpfs@"), "{}", said(&output));
        let broken = verify(&text.replace("Type=notify", "Type=nothing")).unwrap();
        assert!(said(&broken).contains("warpfs@"), "{}", said(&broken));
    }
}
