//! One configuration: a file before it the environment before it the command line, and every option in all three. The two
//! below the command line are read into more arguments of it, so there is one definition of every option, one check of
//! every value, and commands need not know where a value came from.
//!
//! ```text
//! sepal.toml ── file ──────┐                                        ┌─▶ clap ─▶ the command
//! SEPAL_*    ── variables ─┼─▶ settings ─▶ merge ─▶ more arguments ─┤
//! flags ──────── clap ─────┘     ▲           ▲                      └─▶ show (`sepal config`)
//! definition of all flags ───────┴─ options ─┘
//! ```

mod file;
pub(super) mod init;
mod merge;
mod options;
mod setting;
pub(super) mod show;
#[cfg(test)]
mod tests;
mod text;
mod value;
mod variables;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{ArgMatches, Command, error::ErrorKind};

use self::{
    merge::{Effective, completed, merge},
    options::{Catalogue, FILE_OPTION},
    setting::{Origin, Setting},
    variables::Variables,
};
use super::{environment, output};

/// What is not on the command line.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// The environment.
    pub(super) variables: Vec<(String, String)>,
    /// Where files of the configuration usually are; the first one counts.
    pub(super) files: Vec<PathBuf>,
}

/// A command line with everything that goes with it.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) matches: ArgMatches,
    /// The file that was read.
    pub(super) file: Option<PathBuf>,
    /// What should be said about the environment.
    pub(super) warnings: Vec<String>,
}

/// Why there is no command to run.
#[derive(Debug)]
pub(super) enum Stop {
    /// Help, or a command line that cannot be understood, and where those of its arguments stand that were not typed.
    Usage(clap::Error, Vec<String>),
    /// One line for each thing that is wrong with the file or the environment.
    Wrong(Vec<String>),
}

/// Parses the command line `args`, the program's name first, with what surrounds it.
///
/// # Errors
/// If there is no command to run.
pub(super) fn parse(command: &Command, args: &[OsString], around: &Surroundings) -> Result<Parsed, Stop> {
    let typed = typed(command, args)?;
    let catalogue = Catalogue::of(command.clone());
    let (path, of_command) = innermost(&typed);
    let Some(options) = catalogue.command(&path) else {
        // It takes nothing from the configuration; and its own arguments must be whole.
        let matches = command.clone().try_get_matches_from(args).map_err(usage)?;
        return Ok(Parsed {
            matches,
            file: None,
            warnings: Vec::new(),
        });
    };
    let configuration = Configuration::read(&catalogue, file_option(&typed), around).map_err(Stop::Wrong)?;
    let effective = merge(options, Some(of_command), &configuration.settings).map_err(Stop::Wrong)?;
    let whole = completed(args, &effective);
    let matches = command.clone().try_get_matches_from(whole);
    Ok(Parsed {
        matches: matches.map_err(|error| with_places(error, &effective))?,
        file: configuration.file,
        warnings: configuration.warnings,
    })
}

/// What is on the command line, which need not be whole.
fn typed(command: &Command, args: &[OsString]) -> Result<ArgMatches, Stop> {
    match command.clone().try_get_matches_from(args) {
        Ok(matches) => Ok(matches),
        // What is missing may be in the file.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
            let lenient = command.clone().ignore_errors(true).try_get_matches_from(args);
            lenient.map_err(|_| usage(error))
        }
        Err(error) => Err(usage(error)),
    }
}

/// What is said outside of the command line.
#[derive(Debug)]
struct Configuration {
    file: Option<PathBuf>,
    settings: Vec<Setting>,
    warnings: Vec<String>,
}

impl Configuration {
    /// `named` is the file that the command line asks for.
    ///
    /// # Errors
    /// One line for each thing that is wrong with the file.
    fn read(catalogue: &Catalogue, named: Option<PathBuf>, around: &Surroundings) -> Result<Self, Vec<String>> {
        let variables = Variables::read(&around.variables, catalogue);
        let file = file::find(named.or(variables.file.map(PathBuf::from)), &around.files);
        let mut settings = variables.settings;
        if let Some(path) = &file {
            settings.extend(file::read(path, catalogue)?);
        }
        Ok(Self {
            file,
            settings,
            warnings: variables.warnings,
        })
    }
}

/// The names of the command that runs, and what is given to it.
fn innermost(matches: &ArgMatches) -> (Vec<String>, &ArgMatches) {
    let (mut path, mut of_command) = (Vec::new(), matches);
    while let Some((name, matches)) = of_command.subcommand() {
        path.push(name.to_owned());
        of_command = matches;
    }
    (path, of_command)
}

fn file_option(matches: &ArgMatches) -> Option<PathBuf> {
    let (_, of_command) = innermost(matches);
    of_command.get_one::<PathBuf>(FILE_OPTION).cloned()
}

fn usage(error: clap::Error) -> Stop {
    Stop::Usage(error, Vec::new())
}

/// An error about arguments of which some were not typed; these are named.
fn with_places(error: clap::Error, effective: &[Effective<'_>]) -> Stop {
    let text = error.to_string();
    let elsewhere = effective.iter().filter(|effective| {
        let named = effective.option.arg.get_long().map(|long| format!("'--{long}"));
        effective.given.is_some()
            && effective.origin != Origin::Flag
            && named.is_some_and(|named| text.contains(&named))
    });
    let places = elsewhere.map(|effective| format!("{} is from {}", effective.option.key(), effective.origin));
    Stop::Usage(error, places.collect())
}

impl Surroundings {
    /// Those of this process.
    pub(super) fn here() -> Self {
        Self {
            variables: environment::own_variables(),
            files: environment::configuration_files(),
        }
    }
}

impl Stop {
    /// Says it.
    pub(super) fn report(self) -> ExitCode {
        match self {
            Self::Usage(error, places) => {
                let code = output::usage(&error);
                for place in places {
                    output::note(&format!("note: {place}"));
                }
                code
            }
            Self::Wrong(problems) => output::misconfigured(&problems),
        }
    }
}
