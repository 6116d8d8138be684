//! One thing that a file or the environment says, and where it says so.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What is said for one option.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// The command that it is for; empty for all that have the option.
    pub(super) scope: Vec<String>,
    /// The option, with dashes.
    pub(super) key: String,
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// A value before it is known what the option takes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    Bool(bool),
    /// A string, or a number or a date as it is written.
    Text(String),
    List(Vec<Raw>),
    Table(Vec<(String, Raw)>),
    /// An environment variable, which has no types.
    Variable(String),
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    Variable(String),
    File { path: PathBuf, line: usize },
    Default,
}

impl Origin {
    pub(super) fn in_file(path: &Path, line: usize) -> Self {
        let path = path.to_path_buf();
        Self::File { path, line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(text) | Self::Variable(text) => f.write_str(text),
            Self::List(values) => {
                let values: Vec<String> = values.iter().map(Self::to_string).collect();
                write!(f, "[{}]", values.join(", "))
            }
            Self::Table(pairs) => {
                let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key} = {value}")).collect();
                write!(f, "{{{}}}", pairs.join(", "))
            }
        }
    }
}
