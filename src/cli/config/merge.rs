//! Whose word counts: flags before variables before the file before defaults, and what is for one command before what is for
//! all. What is said for one option silences another one that excludes it and is said by somebody who counts for less.

use std::ffi::OsString;

use clap::{ArgMatches, parser::ValueSource};

use super::{
    options::{Opt, Options},
    setting::{Origin, Setting},
    value::{self, Given},
};

/// Options that the command line takes together, one for some models and the other for others, and that exclude each other
/// where both are for all models.
const ALTERNATIVES: [[&str; 2]; 1] = [["blocks", "num-blocks"]];

/// An option of a command and what it is given in the end.
#[derive(Debug)]
pub(super) struct Effective<'a> {
    pub(super) option: &'a Opt,
    /// None: its default.
    pub(super) given: Option<Given>,
    pub(super) origin: Origin,
    /// Whoever has less counts more.
    rank: usize,
}

/// All options of a command whose flags are `matches`.
///
/// # Errors
/// One line for each value that its option does not take.
pub(super) fn merge<'a>(
    options: &'a Options,
    matches: Option<&ArgMatches>,
    settings: &[Setting],
) -> Result<Vec<Effective<'a>>, Vec<String>> {
    let mut problems = Vec::new();
    let mut all: Vec<Effective<'a>> = options
        .options
        .iter()
        .map(|option| {
            by_flag(option, matches).unwrap_or_else(|| {
                by_setting(options, option, settings).unwrap_or_else(|problem| {
                    problems.push(problem);
                    Effective::default_of(option)
                })
            })
        })
        .collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let silenced: Vec<bool> = all
        .iter()
        .map(|one| all.iter().any(|other| one.is_silenced_by(other, options)))
        .collect();
    for (effective, _) in all.iter_mut().zip(silenced).filter(|(_, silenced)| *silenced) {
        *effective = Effective::default_of(effective.option);
    }
    Ok(all)
}

/// `line` with what is said elsewhere: options before a `--`, what has no name behind it.
pub(super) fn completed(line: &[OsString], effective: &[Effective<'_>]) -> Vec<OsString> {
    let (mut named, mut bare) = (Vec::new(), Vec::new());
    for effective in effective.iter().filter(|effective| effective.origin != Origin::Flag) {
        let Some(given) = &effective.given else { continue };
        let arguments = value::arguments(effective.option, given)
            .into_iter()
            .map(OsString::from);
        match effective.option.arg.is_positional() {
            true => bare.extend(arguments),
            false => named.extend(arguments),
        }
    }
    let end = line.iter().position(|argument| argument == "--").unwrap_or(line.len());
    let mut completed = line[..end].to_vec();
    completed.append(&mut named);
    match line.get(end..) {
        Some([]) | None if bare.is_empty() => {}
        Some([]) | None => completed.push("--".into()),
        Some(rest) => completed.extend_from_slice(rest),
    }
    completed.append(&mut bare);
    completed
}

fn by_flag<'a>(option: &'a Opt, matches: Option<&ArgMatches>) -> Option<Effective<'a>> {
    let (matches, id) = (matches?, option.arg.get_id().as_str());
    if matches.value_source(id) != Some(ValueSource::CommandLine) {
        return None;
    }
    let given = match option.arg.get_action() {
        clap::ArgAction::SetTrue | clap::ArgAction::SetFalse => Given::Bare(1),
        clap::ArgAction::Count => Given::Bare(matches.get_count(id)),
        _ => {
            let raw = matches.get_raw(id).unwrap_or_default();
            Given::Values(raw.map(|value| value.to_string_lossy().into_owned()).collect())
        }
    };
    Some(Effective {
        option,
        given: Some(given),
        origin: Origin::Flag,
        rank: 0,
    })
}

fn by_setting<'a>(options: &Options, option: &'a Opt, settings: &[Setting]) -> Result<Effective<'a>, String> {
    let about = |setting: &&Setting| {
        let meant = options.takes(&setting.scope, &setting.key);
        meant.is_some_and(|meant| meant.key() == option.key())
    };
    let Some(setting) = settings.iter().filter(about).min_by_key(|setting| rank(setting)) else {
        return Ok(Effective::default_of(option));
    };
    let wrong = |what: String| {
        let shown = match option.is_secret() {
            true => "its value is not shown".to_owned(),
            false => setting.raw.to_string(),
        };
        match &setting.origin {
            Origin::Variable(name) => format!("{name}={shown}: {what}"),
            place => format!("{place}: {} = {shown}: {what}", setting.key),
        }
    };
    let twin = settings
        .iter()
        .filter(about)
        .find(|other| rank(other) == rank(setting) && other.origin != setting.origin);
    if let Some(twin) = twin {
        return Err(wrong(format!("{} says the same option, as {}", twin.origin, twin.key)));
    }
    Ok(Effective {
        option,
        given: Some(value::given(option, &setting.raw).map_err(wrong)?),
        origin: setting.origin.clone(),
        rank: rank(setting),
    })
}

/// The environment counts more than the file, and in both the command's own word more than the one for all.
fn rank(setting: &Setting) -> usize {
    /// More than commands are ever nested.
    const DEEPEST: usize = 8;
    let layer = match setting.origin {
        Origin::Flag => 0,
        Origin::Variable(_) => 1,
        Origin::File { .. } => 2,
        Origin::Default => 3,
    };
    layer * DEEPEST + (DEEPEST - 1).saturating_sub(setting.scope.len())
}

impl<'a> Effective<'a> {
    pub(super) fn default_of(option: &'a Opt) -> Self {
        Self {
            option,
            given: None,
            origin: Origin::Default,
            rank: usize::MAX,
        }
    }

    fn says_something(&self) -> bool {
        !matches!(self.given, None | Some(Given::Off))
    }

    /// Whether it says the same thing of all models, which `other` says in another way.
    fn is_alternative_to(&self, other: &Self) -> bool {
        let for_all = |effective: &Self| match &effective.given {
            Some(Given::Values(values)) => !values.iter().any(|value| value.contains('=')),
            _ => false,
        };
        let (own, others) = (self.option.key(), other.option.key());
        let is_pair = ALTERNATIVES
            .iter()
            .any(|pair| *pair == [own, others] || *pair == [others, own]);
        is_pair && for_all(self) && for_all(other)
    }

    fn is_silenced_by(&self, other: &Self, options: &Options) -> bool {
        let excluded = |a: &Opt, b: &Opt| {
            let conflicts = options.command.get_arg_conflicts_with(&a.arg);
            conflicts.iter().any(|arg| arg.get_id() == b.arg.get_id())
        };
        self.says_something()
            && other.says_something()
            && other.rank < self.rank
            && (excluded(self.option, other.option)
                || excluded(other.option, self.option)
                || self.is_alternative_to(other))
    }
}
