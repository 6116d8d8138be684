//! What can be configured: the options of every command, read off the definition of the command line. There is no second
//! list of them anywhere, so a new flag is in the file and in the environment as soon as it exists.

use std::{any::TypeId, path::PathBuf};

use clap::{Arg, ArgAction, Command};

/// Commands that are about this program itself. They take nothing from the configuration, so nothing in it stops them.
const ABOUT_ITSELF: [&str; 4] = ["init", "config", "completions", "man"];

/// The command that is about a swarm other than those of all other commands, and its options that say which. A port or a key
/// that is set for all commands is not meant for that swarm, so these options only take what is said for the command itself.
const OF_ANOTHER_SWARM: (&str, [&str; 3]) = ("connect", ["name", "port", "swarm-key"]);

/// The option that names the file. The file cannot name itself.
pub(super) const FILE_OPTION: &str = "config";

/// Similarity (Jaro, 0 to 1) from which two names may have been meant for each other; clap's own for its suggestions.
const SIMILAR: f64 = 0.7;

/// The options of all commands.
#[derive(Debug)]
pub(super) struct Catalogue {
    pub(super) commands: Vec<Options>,
}

/// The options of one command.
#[derive(Debug)]
pub(super) struct Options {
    /// Its name, after those of the commands it is in.
    pub(super) path: Vec<String>,
    pub(super) command: Command,
    pub(super) options: Vec<Opt>,
}

/// One option of one command.
#[derive(Debug)]
pub(super) struct Opt {
    pub(super) arg: Arg,
    /// What it is called in a file, with dashes; the first name is the one that is shown.
    pub(super) keys: Vec<String>,
}

/// How an option takes values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is there or not.
    Flag,
    /// How often it is there counts.
    Count,
    One,
    /// One value, or none behind the option.
    AtMostOne,
    Many,
}

/// A name as it is compared: with dashes, in small letters.
pub(super) fn normal(name: &str) -> String {
    name.replace('_', "-").to_lowercase()
}

/// The one of `names` that is most like `name`, if any is like it.
pub(super) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |other: &str| strsim::jaro(name, other);
    let like = names.into_iter().filter(|other| likeness(other) > SIMILAR);
    like.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

impl Catalogue {
    /// `command` is the whole command line.
    pub(super) fn of(mut command: Command) -> Self {
        command.build();
        let mut commands = Vec::new();
        collect(&command, &[], &mut commands);
        Self { commands }
    }

    pub(super) fn command(&self, path: &[String]) -> Option<&Options> {
        self.commands.iter().find(|options| options.path == path)
    }

    /// Whether `path` is a table: a command, or what commands are in. A name that is also an option where the table would
    /// be, as `swarm-key` is, is the option.
    pub(super) fn is_table(&self, path: &[String]) -> bool {
        let hides = |n: usize| self.knows(&path[..n], &path[n]);
        let hidden = (0..path.len()).any(hides);
        !hidden && self.commands.iter().any(|options| options.path.starts_with(path))
    }

    /// The commands that a key in the table `scope` is for.
    pub(super) fn within<'a, 's>(&'a self, scope: &'s [String]) -> impl Iterator<Item = &'a Options> + use<'a, 's> {
        self.commands
            .iter()
            .filter(move |options| options.path.starts_with(scope))
    }

    /// Whether a command within `scope` has this option, and takes what is said there for it.
    pub(super) fn knows(&self, scope: &[String], key: &str) -> bool {
        self.within(scope).any(|options| options.takes(scope, key).is_some())
    }

    /// What may stand in the table `scope`: options, and tables.
    pub(super) fn names<'a>(&'a self, scope: &[String]) -> Vec<&'a str> {
        let tables = self.within(scope).filter_map(|options| options.path.get(scope.len()));
        let keys = self.within(scope).flat_map(move |options| {
            let heeds = move |option: &&Opt| options.heeds(scope, option);
            options.options.iter().filter(heeds).flat_map(|option| &option.keys)
        });
        tables.chain(keys).map(String::as_str).collect()
    }

    /// Every table: none, and each command.
    pub(super) fn scopes(&self) -> Vec<&[String]> {
        let mut scopes: Vec<&[String]> = self
            .commands
            .iter()
            .flat_map(|options| (0..=options.path.len()).map(|n| &options.path[..n]))
            .collect();
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }
}

fn collect(command: &Command, path: &[String], found: &mut Vec<Options>) {
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let path = [path, &[sub.get_name().to_owned()]].concat();
        if sub.has_subcommands() {
            collect(sub, &path, found);
        } else if !ABOUT_ITSELF.contains(&sub.get_name()) {
            found.push(Options {
                path,
                command: sub.clone(),
                options: sub.get_arguments().filter_map(Opt::of).collect(),
            });
        }
    }
}

impl Options {
    pub(super) fn find(&self, key: &str) -> Option<&Opt> {
        self.options.iter().find(|option| option.is_called(key))
    }

    /// The option that is meant by a key in the table `scope`, if this command is within that and takes its word.
    pub(super) fn takes(&self, scope: &[String], key: &str) -> Option<&Opt> {
        let is_within = self.path.starts_with(scope);
        self.find(key).filter(|option| is_within && self.heeds(scope, option))
    }

    /// Whether an option takes what is said for all commands of the table `scope`.
    fn heeds(&self, scope: &[String], option: &Opt) -> bool {
        let (command, options) = OF_ANOTHER_SWARM;
        let is_of_another_swarm = self.path == [command] && options.contains(&option.key());
        !is_of_another_swarm || !scope.is_empty()
    }
}

impl Opt {
    fn of(arg: &Arg) -> Option<Self> {
        let explains_itself = matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
        if explains_itself || arg.get_id() == FILE_OPTION {
            return None;
        }
        let mut keys = vec![normal(arg.get_long().unwrap_or(arg.get_id().as_str()))];
        for alias in arg.get_all_aliases().unwrap_or_default() {
            let alias = normal(alias);
            if !keys.contains(&alias) {
                keys.push(alias);
            }
        }
        Some(Self { arg: arg.clone(), keys })
    }

    pub(super) fn key(&self) -> &str {
        &self.keys[0]
    }

    pub(super) fn is_called(&self, key: &str) -> bool {
        self.keys.iter().any(|own| own == key)
    }

    pub(super) fn kind(&self) -> Kind {
        match self.arg.get_action() {
            ArgAction::SetTrue | ArgAction::SetFalse => Kind::Flag,
            ArgAction::Count => Kind::Count,
            ArgAction::Append => Kind::Many,
            _ if self.arg.get_num_args().is_some_and(|range| range.min_values() == 0) => Kind::AtMostOne,
            _ => Kind::One,
        }
    }

    /// What a value looks like.
    pub(super) fn form(&self) -> String {
        let names = self.arg.get_value_names().unwrap_or_default();
        names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Values of which one is taken, if they are such.
    pub(super) fn possible(&self) -> Vec<String> {
        let values = self.arg.get_possible_values();
        values
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| value.get_name().to_owned())
            .collect()
    }

    /// The words among the values that it takes, also where the form of a value only says them: `auto|cpu|cuda[:N]`.
    pub(super) fn words(&self) -> Vec<String> {
        let is_word = |text: &&str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        match self.possible() {
            values if values.is_empty() => {
                let form = self.form();
                let form = form.strip_prefix("[MODEL=]").unwrap_or(&form);
                form.split('|').filter(is_word).map(str::to_owned).collect()
            }
            values => values,
        }
    }

    pub(super) fn defaults(&self) -> Vec<String> {
        let values = self.arg.get_default_values();
        values
            .iter()
            .map(|value| value.to_string_lossy().into_owned())
            .collect()
    }

    /// Whether the value itself must not be shown. The path of a file with a secret may.
    pub(super) fn is_secret(&self) -> bool {
        let last = self.key().rsplit('-').next().unwrap_or_default();
        let names_a_secret = ["key", "keys", "token", "password", "secret"].contains(&last);
        names_a_secret && self.arg.get_value_parser().type_id() != TypeId::of::<PathBuf>()
    }
}
