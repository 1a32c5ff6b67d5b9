//! `completions` and `man`: made from the same definitions as `--help`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Arguments of `completions`.
#[derive(Clone, Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Clone, Debug, Args)]
pub(super) struct Man {
    /// Folder for a page of every command; without it the page of nearshore itself is printed.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints what makes a shell complete commands and options.
pub(super) fn completions(args: &Completions) -> anyhow::Result<ExitCode> {
    out_part!("{}", completion(args.shell)?);
    Ok(ExitCode::SUCCESS)
}

/// Prints a man page, or writes all of them.
pub(super) fn man(args: &Man) -> anyhow::Result<ExitCode> {
    match &args.out {
        Some(folder) => {
            write_pages(folder)?;
            note!(
                "man pages are in {}; man -l FILE shows one",
                folder.display()
            );
        }
        None => out_part!("{}", page()?),
    }
    Ok(ExitCode::SUCCESS)
}

fn completion(shell: Shell) -> anyhow::Result<String> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nearshore", &mut text);
    Ok(String::from_utf8(text)?)
}

fn page() -> anyhow::Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text)?;
    Ok(String::from_utf8(text)?)
}

fn write_pages(folder: &Path) -> anyhow::Result<()> {
    let what = || format!("man pages cannot be written to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(what)?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(what)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// The commands that `--help` shows.
    fn commands() -> Vec<String> {
        let command = Cli::command();
        let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
        shown.map(|it| it.get_name().to_owned()).collect()
    }

    #[test]
    fn every_shell_completes_every_command() {
        let commands = commands();
        assert!(commands.len() > 20, "{commands:?}");
        for shell in Shell::value_variants() {
            let text = completion(*shell).expect("a script");
            for command in &commands {
                assert!(text.contains(command.as_str()), "{shell}: {command}");
            }
        }
    }

    #[test]
    fn every_command_has_a_man_page_with_its_options() {
        let folder = tempfile::tempdir().expect("a folder");
        write_pages(folder.path()).expect("they are written");
        for command in commands() {
            let file = folder.path().join(format!("nearshore-{command}.1"));
            let text = std::fs::read_to_string(&file).expect("a page");
            assert!(text.contains(".SH SYNOPSIS"), "{command}");
        }
        assert!(page().expect("a page").contains("nearshore\\-inspect(1)"));
        let under_a_file = folder.path().join("nearshore.1/pages");
        let error = write_pages(&under_a_file).expect_err("a file is no folder");
        assert!(
            format!("{error:#}").contains("cannot be written"),
            "{error:#}"
        );
    }
}
