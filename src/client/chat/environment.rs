//! The Jinja environment of chat templates: what transformers adds to Jinja and takes away from it. Templates come from
//! strangers, so they see nothing but what they are given, and end.

use std::fmt;

use jiff::{Zoned, civil::DateTime, fmt::strtime, tz::TimeZone};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::ValueKind};

use super::{json, strings};

/// Steps that a template may take. Those of public models take a few dozen for each message.
const FUEL: u64 = 5_000_000;

/// The time that a template may ask for, in the zone of the person.
#[derive(Clone, Debug)]
pub struct LocalTime(Zoned);

impl LocalTime {
    /// What the clock of this machine shows.
    pub fn now() -> Self {
        Self(Zoned::now())
    }

    /// A time of which the zone does not matter, `YYYY-MM-DDTHH:MM:SS`; `None` if it is none.
    pub fn at(text: &str) -> Option<Self> {
        let time: DateTime = text.parse().ok()?;
        time.to_zoned(TimeZone::UTC).ok().map(Self)
    }

    /// As C's `strftime`.
    pub(super) fn format(&self, format: &str) -> Result<String, Error> {
        strtime::format(format, &self.0)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, "strftime_now: bad format").with_source(error))
    }
}

/// What a template says when it refuses a conversation.
#[derive(Debug)]
pub(super) struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Raised {
    /// The message, if that is what `error` came from.
    pub(super) fn find(error: &Error) -> Option<String> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Self(message)) = error.downcast_ref() {
                return Some(message.clone());
            }
            cause = error.source();
        }
        None
    }
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    let raised = Raised(message.to_owned());
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
}

/// An environment without templates.
pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    // The usual delimiters are no error.
    if let Ok(syntax) = syntax {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(strings::method);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", raise_exception);
    // Whatever can be indexed or counted, as `jinja2.tests.test_sequence`.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment
}

/// `{% generation %}` marks what a model is trained on and changes nothing in the text: a scope of its own, as there.
pub(super) fn without_generation_tags(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        plain.push_str(before);
        rest = tag;
        let sign = tag.len() - tag.trim_start_matches(['-', '+']).len();
        let name = tag[sign..].trim_start();
        let start = tag.len() - name.len();
        for (word, instead) in [("generation", "with"), ("endgeneration", "endwith")] {
            let Some(end) = name.strip_prefix(word) else { continue };
            let closed = end.trim_start().trim_start_matches(['-', '+']);
            if closed.starts_with("%}") {
                plain.push_str(&tag[..start]);
                plain.push_str(instead);
                rest = end;
            }
        }
    }
    plain.push_str(rest);
    plain
}
