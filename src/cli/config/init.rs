//! `sepal init`: writes a file with every option there is, what it is for, and its default, as comments.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args as ClapArgs, Command};

use super::{
    Stop, innermost,
    merge::{Effective, merge},
    options::{Catalogue, Opt, Options},
    setting::Origin,
    text, typed,
};
use crate::cli::output;

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// The file to write; - prints it.
    #[arg(value_name = "FILE", default_value = "sepal.toml")]
    file: PathBuf,
    /// Write it also if it is there, and lose what it says.
    #[arg(long)]
    force: bool,
    /// A command line to set in the file, such as: -- serve org/model --port 31337.
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<OsString>,
}

const HEAD: &str = "\
# Options of sepal, by the names of their flags. Those above the first table are for all commands that have them, those
# in a table for its command. A variable of the environment (SEPAL_PORT, or SEPAL_SERVE_PORT for one command) counts
# more than this file, and a flag more than both. Paths start from where the command is started.
#
# Where no space is behind the #, it stands before an option with its default; false means that it is not set.
# `sepal config` shows what is set and where, `sepal config serve` everything that `sepal serve` would run with.
";

/// # Errors
/// If the command line in `args` is wrong, or the file cannot be written.
pub(in crate::cli) fn run(command: &Command, args: &Args) -> Result<(), Stop> {
    let catalogue = Catalogue::of(command.clone());
    let line: Vec<OsString> = [OsString::from("sepal")]
        .into_iter()
        .chain(args.command.clone())
        .collect();
    let matches = match args.command.is_empty() {
        true => None,
        false => Some(typed(command, &line)?),
    };
    let given = match &matches {
        Some(matches) => {
            let (path, of_command) = innermost(matches);
            let options = catalogue.command(&path);
            let given = options.map(|options| merge(options, Some(of_command), &[]).map(|given| (options, given)));
            given.transpose().map_err(Stop::Wrong)?
        }
        None => None,
    };
    let written = document(&catalogue, given.as_ref());
    if args.file == Path::new("-") {
        output::piece(&written);
        return Ok(());
    }
    let has_secrets = given
        .iter()
        .flat_map(|(_, given)| given)
        .any(|effective| effective.option.is_secret() && effective.origin == Origin::Flag);
    write(args, &written, has_secrets).map_err(|error| {
        let file = args.file.display();
        Stop::Wrong(vec![match error.kind() {
            io::ErrorKind::AlreadyExists => format!("{file} is there already; --force overwrites it"),
            _ => format!("cannot write {file}: {error}"),
        }])
    })?;
    output::line(format_args!("wrote {}", args.file.display()));
    Ok(())
}

fn write(args: &Args, text: &str, has_secrets: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    match args.force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    if has_secrets {
        options.mode(0o600);
    }
    options.open(&args.file)?.write_all(text.as_bytes())
}

/// The whole file, with what a command is `given` by flags set in its table.
pub(super) fn document(catalogue: &Catalogue, given: Option<&(&Options, Vec<Effective<'_>>)>) -> String {
    let mut document = HEAD.to_owned();
    for (option, owners) in shared(catalogue) {
        let owners: Vec<String> = owners.iter().map(|options| options.path.join(" ")).collect();
        let owners = match owners.len() == catalogue.commands.len() {
            true => "(all commands)".to_owned(),
            false => format!("({})", owners.join(", ")),
        };
        entry(&mut document, &Effective::default_of(option), &owners);
    }
    for options in catalogue
        .commands
        .iter()
        .filter(|options| catalogue.is_table(&options.path))
    {
        let given = given.filter(|(command, _)| command.path == options.path);
        let is_shared = |option: &Opt| {
            let owners = owners(catalogue, option);
            owners.len() > 1 && owners.iter().any(|owner| owner.path == options.path)
        };
        document.push_str(&format!("\n[{}]\n", options.path.join(".")));
        for option in &options.options {
            let by_flag = given.and_then(|(_, given)| {
                let is_it = |effective: &&Effective<'_>| effective.option.key() == option.key();
                given
                    .iter()
                    .filter(is_it)
                    .find(|effective| effective.origin == Origin::Flag)
            });
            match by_flag {
                Some(effective) => entry(&mut document, effective, ""),
                None if option.arg.is_hide_set() || is_shared(option) => {}
                None => entry(&mut document, &Effective::default_of(option), ""),
            }
        }
    }
    document
}

fn entry(document: &mut String, effective: &Effective<'_>, more: &str) {
    let option = effective.option;
    let off = if effective.origin == Origin::Default { "#" } else { "" };
    let line = format!("{off}{} = {}", option.key(), text::literal(&text::plain(effective)));
    let form = match text::form(option) {
        form if form.is_empty() => form,
        form => format!("  # {form}"),
    };
    document.push_str(&format!("\n{}\n{line}{form}\n", text::comment(option, more)));
}

/// The options that several commands have, and all of them alike, each once, with these commands.
fn shared(catalogue: &Catalogue) -> Vec<(&Opt, Vec<&Options>)> {
    let mut shared: Vec<(&Opt, Vec<&Options>)> = Vec::new();
    for option in catalogue.commands.iter().flat_map(|options| &options.options) {
        let owners = owners(catalogue, option);
        let is_there = shared.iter().any(|(other, _)| other.key() == option.key());
        if owners.len() > 1 && !option.arg.is_hide_set() && !is_there {
            shared.push((option, owners));
        }
    }
    shared
}

/// The commands that a line with this option above the tables is for, if all of them have it in the same words.
fn owners<'a>(catalogue: &'a Catalogue, option: &Opt) -> Vec<&'a Options> {
    let help = |option: &Opt| option.arg.get_help().map(ToString::to_string);
    let same = |other: &Opt| {
        help(other) == help(option) && other.kind() == option.kind() && other.defaults() == option.defaults()
    };
    let all = catalogue.commands.iter();
    let named: Vec<_> = all
        .filter_map(|options| options.takes(&[], option.key()).map(|other| (options, other)))
        .collect();
    match named.iter().all(|(_, other)| same(other)) {
        true => named.into_iter().map(|(options, _)| options).collect(),
        false => Vec::new(),
    }
}
