//! From what a file or the environment says to what the option is given, checked by what checks the flag.

use clap::{
    Command,
    builder::Resettable,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    file,
    options::{Kind, Opt, nearest},
    setting::Raw,
};

/// What an option is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// Nothing, whatever others say who count for less.
    Off,
    /// The flag, so many times; an option whose value may be left out, once.
    Bare(u8),
    Values(Vec<String>),
}

/// # Errors
/// What is wrong with the value.
pub(super) fn given(option: &Opt, raw: &Raw) -> Result<Given, String> {
    let given = match option.kind() {
        Kind::Flag => flag(raw),
        Kind::Count => count(raw),
        Kind::AtMostOne => match boolean(raw) {
            Some(true) => Ok(Given::Bare(1)),
            Some(false) => Ok(Given::Off),
            None => one(option, raw),
        },
        Kind::One => one(option, raw),
        Kind::Many => many(option, raw),
    }?;
    match &given {
        Given::Values(values) => accepted(option, values).map(|()| given),
        Given::Off | Given::Bare(_) => Ok(given),
    }
}

/// The arguments that give an option this, and those of them that stand alone: of options without a name.
pub(super) fn arguments(option: &Opt, given: &Given) -> Vec<String> {
    let Some(long) = option.arg.get_long() else {
        return match given {
            Given::Values(values) => values.clone(),
            Given::Off | Given::Bare(_) => Vec::new(),
        };
    };
    match given {
        Given::Off => Vec::new(),
        Given::Bare(times) => vec![format!("--{long}"); usize::from(*times)],
        Given::Values(values) => values.iter().map(|value| format!("--{long}={value}")).collect(),
    }
}

fn boolean(raw: &Raw) -> Option<bool> {
    match raw {
        Raw::Bool(value) => Some(*value),
        Raw::Variable(text) => match text.to_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Some(true),
            "0" | "false" | "no" | "off" => Some(false),
            _ => None,
        },
        Raw::Text(_) | Raw::List(_) | Raw::Table(_) => None,
    }
}

fn flag(raw: &Raw) -> Result<Given, String> {
    match boolean(raw) {
        Some(true) => Ok(Given::Bare(1)),
        Some(false) => Ok(Given::Off),
        None => Err("expected true or false".to_owned()),
    }
}

fn count(raw: &Raw) -> Result<Given, String> {
    let times = match raw {
        Raw::Bool(value) => Some(u8::from(*value)),
        Raw::Text(text) | Raw::Variable(text) => text.parse().ok(),
        Raw::List(_) | Raw::Table(_) => None,
    };
    match times {
        Some(0) => Ok(Given::Off),
        Some(times) => Ok(Given::Bare(times)),
        None => Err("expected how many times".to_owned()),
    }
}

fn one(option: &Opt, raw: &Raw) -> Result<Given, String> {
    match raw {
        // Takes back what stands above the tables, unless it is a value.
        Raw::Bool(false) if accepted(option, &["false".to_owned()]).is_err() || is_text(option) => Ok(Given::Off),
        Raw::Table(_) => Err(format!("expected {}, not a table", wanted(option))),
        // One line may be for commands that take many, and for others.
        Raw::List(values) => match values.as_slice() {
            [] => Ok(Given::Off),
            [value] => one(option, value),
            _ => Err(format!("expected {}, not a list", wanted(option))),
        },
        Raw::Bool(true) if is_text(option) => Err(format!("expected {}", wanted(option))),
        scalar => Ok(Given::Values(vec![scalar.to_string()])),
    }
}

/// Whether any word would do, so that true and false cannot be meant as values.
fn is_text(option: &Opt) -> bool {
    accepted(option, &["xyzzy".to_owned()]).is_ok()
}

fn wanted(option: &Opt) -> String {
    match option.possible() {
        values if values.is_empty() => format!("one value, {}", option.form()),
        values => format!("one of {}", values.join(", ")),
    }
}

fn many(option: &Opt, raw: &Raw) -> Result<Given, String> {
    let values = match raw {
        Raw::List(values) => values.iter().map(scalar).collect::<Result<Vec<_>, _>>()?,
        Raw::Table(pairs) if option.form().contains('=') => pairs
            .iter()
            .map(|(key, value)| scalar(value).map(|value| format!("{key}={value}")))
            .collect::<Result<Vec<_>, _>>()?,
        Raw::Table(_) => return Err(format!("expected a list of {}, not a table", option.form())),
        Raw::Bool(false) => Vec::new(),
        Raw::Bool(true) => return Err(format!("expected a list of {}", option.form())),
        Raw::Text(text) => vec![text.clone()],
        Raw::Variable(text) => match file::list(text) {
            Some(list) => return many(option, &list),
            None => text
                .split(option.arg.get_value_delimiter().unwrap_or(','))
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect(),
        },
    };
    Ok(match values.is_empty() {
        true => Given::Off,
        false => Given::Values(values),
    })
}

fn scalar(raw: &Raw) -> Result<String, String> {
    match raw {
        Raw::List(_) | Raw::Table(_) => Err(format!("expected text or a number, got {raw}")),
        scalar => Ok(scalar.to_string()),
    }
}

/// Whether the flag would take these values: asks a command line that has nothing else.
fn accepted(option: &Opt, values: &[String]) -> Result<(), String> {
    let alone = option
        .arg
        .clone()
        .long("value")
        .index(None)
        .short(None)
        .global(false)
        .required(false)
        .last(false)
        .trailing_var_arg(false)
        .requires(Resettable::Reset)
        .conflicts_with(Resettable::Reset)
        .overrides_with(Resettable::Reset)
        .required_unless_present(Resettable::Reset)
        .group(Resettable::Reset);
    let command = Command::new("value").no_binary_name(true).arg(alone);
    let arguments = values.iter().map(|value| format!("--value={value}"));
    match command.try_get_matches_from(arguments) {
        Ok(_) => Ok(()),
        Err(error) => Err(complaint(option, &error)),
    }
}

fn complaint(option: &Opt, error: &clap::Error) -> String {
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.as_str(),
        _ => "",
    };
    let words = option.words();
    let near = nearest(value, words.iter().map(String::as_str));
    let hint = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
    match std::error::Error::source(error) {
        Some(source) => format!("{source}{hint}"),
        None if error.kind() == ErrorKind::InvalidValue && !words.is_empty() => {
            format!("expected one of {}{hint}", words.join(", "))
        }
        None => format!("expected {}{hint}", option.form()),
    }
}
