//! `sepal.toml`: options by the names of their flags, for one command in its table, for all that have them above the tables.

use std::{
    fs,
    path::{Path, PathBuf},
};

use toml_edit::{Document, Item, TableLike, Value};

use super::{
    options::{Catalogue, nearest, normal},
    setting::{Origin, Raw, Setting},
};

/// The file to read: the one that was asked for, or else the first of the usual ones that there is.
pub(super) fn find(named: Option<PathBuf>, usual: &[PathBuf]) -> Option<PathBuf> {
    named.or_else(|| usual.iter().find(|path| path.is_file()).cloned())
}

/// What the file says, for all commands.
///
/// # Errors
/// One line for each thing that is wrong with it.
pub(super) fn read(path: &Path, catalogue: &Catalogue) -> Result<Vec<Setting>, Vec<String>> {
    let text = fs::read_to_string(path).map_err(|error| vec![format!("cannot read {}: {error}", path.display())])?;
    parse(path, &text, catalogue)
}

/// The same of its text.
///
/// # Errors
/// See [`read`].
pub(super) fn parse(path: &Path, text: &str, catalogue: &Catalogue) -> Result<Vec<Setting>, Vec<String>> {
    let document = Document::parse(text).map_err(|error| {
        let (line, column) = place(text, error.span().map_or(0, |span| span.start));
        let message = error.message().trim_end().replace('\n', ", ");
        vec![format!("{}:{line}:{column}: {message}", path.display())]
    })?;
    let mut reading = Reading {
        path,
        text,
        catalogue,
        settings: Vec::new(),
        problems: Vec::new(),
    };
    reading.table(&[], document.as_table());
    if reading.problems.is_empty() {
        Ok(reading.settings)
    } else {
        Err(reading.problems)
    }
}

struct Reading<'a> {
    path: &'a Path,
    text: &'a str,
    catalogue: &'a Catalogue,
    settings: Vec<Setting>,
    problems: Vec<String>,
}

impl Reading<'_> {
    fn table(&mut self, scope: &[String], table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
            let (line, _) = place(self.text, span.map_or(0, |span| span.start));
            let key = normal(name);
            let inner = [scope, std::slice::from_ref(&key)].concat();
            if self.catalogue.is_table(&inner) {
                match item.as_table_like() {
                    Some(table) => self.table(&inner, table),
                    None => self.problem(
                        line,
                        format!("{name} is a command, so it is a table: [{}]", inner.join(".")),
                    ),
                }
            } else if !self.catalogue.knows(scope, &key) {
                let what = unknown(self.catalogue, scope, name);
                self.problem(line, what);
            } else if let Some(raw) = raw(item) {
                self.settings.push(Setting {
                    scope: scope.to_vec(),
                    key,
                    raw,
                    origin: Origin::in_file(self.path, line),
                });
            } else {
                self.problem(line, format!("{name} is an option, not a list of tables"));
            }
        }
    }

    fn problem(&mut self, line: usize, what: String) {
        self.problems
            .push(format!("{}: {what}", Origin::in_file(self.path, line)));
    }
}

/// What to say about a key that nothing has.
fn unknown(catalogue: &Catalogue, scope: &[String], name: &str) -> String {
    let key = normal(name);
    let place = scope.join(".");
    let (here, list) = match scope {
        [] => (String::new(), "sepal init - writes all of them".to_owned()),
        scope => (
            format!(" in [{place}]"),
            format!("sepal config {} lists them", scope.join(" ")),
        ),
    };
    let owners: Vec<String> = catalogue
        .commands
        .iter()
        .filter(|options| options.find(&key).is_some())
        .map(|options| format!("[{}]", options.path.join(".")))
        .collect();
    let hint = match nearest(&key, catalogue.names(scope)) {
        _ if !owners.is_empty() => format!("it is an option of {}", owners.join(", ")),
        Some(near) if catalogue.is_table(&[scope, &[near.to_owned()]].concat()) => {
            format!("did you mean the table [{near}]?")
        }
        Some(near) => format!("did you mean {near}?"),
        None => list,
    };
    format!("unknown key {name}{here}; {hint}")
}

/// None for what is no value: a list of tables.
fn raw(item: &Item) -> Option<Raw> {
    match item {
        Item::Value(value) => Some(raw_value(value)),
        Item::Table(table) => {
            let pairs = table.iter().map(|(key, item)| Some((key.to_owned(), raw(item)?)));
            pairs.collect::<Option<_>>().map(Raw::Table)
        }
        Item::ArrayOfTables(_) | Item::None => None,
    }
}

fn raw_value(value: &Value) -> Raw {
    match value {
        Value::String(text) => Raw::Text(text.value().clone()),
        Value::Boolean(value) => Raw::Bool(*value.value()),
        Value::Integer(number) => Raw::Text(number.value().to_string()),
        // As it is written: 1.0 may be the name of a revision.
        Value::Float(number) => Raw::Text(number.display_repr().replace('_', "")),
        Value::Datetime(time) => Raw::Text(time.value().to_string()),
        Value::Array(values) => Raw::List(values.iter().map(raw_value).collect()),
        Value::InlineTable(table) => Raw::Table(
            table
                .iter()
                .map(|(key, value)| (key.to_owned(), raw_value(value)))
                .collect(),
        ),
    }
}

/// A list as it would stand in a file; none if this is no such list.
pub(super) fn list(text: &str) -> Option<Raw> {
    let value: Value = text.trim().parse().ok()?;
    value.is_array().then(|| raw_value(&value))
}

/// Line and column, both from 1, of a byte.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}
