//! Writes the manual pages and the shells' completions, as `scripts/package` installs them:
//!
//!     cargo run --example manual -- OUT_DIR
//!
//! Both are made from the one definition of the command line in `src/cli`; what a definition of options cannot tell stands in
//! `pages`.

#[allow(
    dead_code,
    unreachable_pub,
    reason = "the commands are described here, not run"
)]
#[path = "../../src/cli/mod.rs"]
mod cli;
mod pages;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap_complete::Shell;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: cargo run --example manual -- OUT_DIR");
        return ExitCode::from(2);
    };
    match write_all(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(directory: &Path) -> io::Result<()> {
    let mut program = cli::command_line().disable_help_subcommand(true);
    program.build();
    write_page(directory, &program, "warpfs", "1")?;
    for command in program.get_subcommands() {
        let name = format!("warpfs-{}", command.get_name());
        write_page(directory, command, &name, "1")?;
    }
    let mut helper = cli::mount_helper::command_line();
    helper.build();
    write_page(directory, &helper, "mount.fuse.warpfs", "8")?;

    // Under the names by which each shell looks for them.
    for (shell, file) in [
        (Shell::Bash, "bash-completion/completions/warpfs"),
        (Shell::Zsh, "zsh/vendor-completions/_warpfs"),
        (Shell::Fish, "fish/vendor_completions.d/warpfs.fish"),
    ] {
        let mut command_line = cli::command_line();
        clap_complete::generate(
            shell,
            &mut command_line,
            "warpfs",
            &mut create(directory, file)?,
        );
    }
    Ok(())
}

fn write_page(
    directory: &Path,
    command: &clap::Command,
    name: &str,
    section: &str,
) -> io::Result<()> {
    let file = format!("man/man{section}/{name}.{section}");
    let mut page = create(directory, &file)?;
    pages::write(command, name, section, &mut page)?;
    page.flush()
}

fn create(directory: &Path, file: &str) -> io::Result<File> {
    let path = directory.join(file);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(path)
}
