//! `sepal completions` and `sepal man`: the command line as shells and as readers of manuals want it, made of the definition
//! that it is parsed by.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args as ClapArgs, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::output;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Such as: sepal completions bash >~/.local/share/bash-completion/completions/sepal")]
pub(super) struct Args {
    /// For which shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ManArgs {
    /// Write sepal.1 and a page for every command to this folder, which is made if need be.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// # Errors
/// None; it has the form of the others.
pub(super) fn print(args: &Args, mut command: Command) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "sepal", &mut text);
    output::piece(&String::from_utf8(text)?);
    Ok(())
}

/// # Errors
/// The folder cannot be written to.
pub(super) fn manual(args: &ManArgs, command: &Command) -> anyhow::Result<()> {
    let mut built = command.clone();
    // Names of commands and flags for all of them are put in place.
    built.build();
    let Some(folder) = &args.dir else {
        output::piece(&page(&built, "sepal")?);
        return Ok(());
    };
    make(folder)?;
    write(folder, "sepal", &built)
}

/// Writes the page of a command, and those of the commands in it.
fn write(folder: &Path, name: &str, command: &Command) -> anyhow::Result<()> {
    let file = folder.join(format!("{name}.1"));
    fs::write(&file, page(command, name)?).with_context(|| format!("cannot write {}", file.display()))?;
    output::line(file.display());
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
    for inner in commands.filter(|command| command.get_name() != "help") {
        write(folder, &format!("{name}-{}", inner.get_name()), inner)?;
    }
    Ok(())
}

fn make(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// A page in the language of manuals.
fn page(command: &Command, name: &str) -> anyhow::Result<String> {
    let mut text = Vec::new();
    Man::new(command.clone()).title(name.to_owned()).render(&mut text)?;
    Ok(String::from_utf8(text)?)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::cli::command;

    #[test]
    fn every_shell_can_complete_every_command() {
        for shell in Shell::value_variants() {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command(), "sepal", &mut text);
            let text = String::from_utf8(text).unwrap();
            for part in ["eligible", "initial-peers", "swarm-key"] {
                assert!(text.contains(part), "{shell}: {part}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page_that_names_its_flags() {
        let folder = tempfile::tempdir().unwrap();
        let args = ManArgs {
            dir: Some(folder.path().join("man/man1")),
        };
        manual(&args, &command()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join("man/man1").join(name)).unwrap();
        assert!(read("sepal.1").contains("eligible"));
        assert!(read("sepal-serve.1").contains("attn\\-cache\\-tokens"));
        assert!(read("sepal-eligible.1").starts_with(".ie"), "no page");
        assert!(read("sepal-job-submit.1").contains("priority"));
        assert!(read("sepal-receipts-verify.1").contains("FILE"));
        for none in ["sepal-help.1", "sepal-job-help.1"] {
            assert!(!folder.path().join("man/man1").join(none).exists(), "{none}");
        }
    }
}
