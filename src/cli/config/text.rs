//! How options and what they are given are written: as in a file, and as JSON.

use serde_json::{Value, json};

use super::{
    merge::Effective,
    options::{Kind, Opt},
    value::Given,
};

/// Instead of a secret.
const NOT_SHOWN: &str = "(not shown)";

/// Columns of a comment.
const WIDTH: usize = 110;

/// What an option is given, or its default; null where it has none. Secrets are not shown.
pub(super) fn value(effective: &Effective<'_>) -> Value {
    match effective.given {
        Some(Given::Values(_)) if effective.option.is_secret() => json!(NOT_SHOWN),
        _ => plain(effective),
    }
}

/// The same with secrets.
pub(super) fn plain(effective: &Effective<'_>) -> Value {
    let option = effective.option;
    let values = match &effective.given {
        Some(Given::Bare(times)) if option.kind() == Kind::Count => return json!(times),
        Some(Given::Bare(_)) => return json!(true),
        Some(Given::Values(values)) => values.clone(),
        Some(Given::Off) | None => option.defaults(),
    };
    match option.kind() {
        Kind::Flag => json!(false),
        Kind::Count => json!(0),
        Kind::Many => values.iter().map(|value| typed(value)).collect(),
        Kind::One | Kind::AtMostOne => values.first().map_or(Value::Null, |value| typed(value)),
    }
}

/// A number where the text is exactly one.
fn typed(text: &str) -> Value {
    let number: Option<serde_json::Number> = text.parse().ok().filter(|number| format!("{number}") == text);
    number.map_or_else(|| json!(text), Value::Number)
}

/// The same as it stands in a file; what is not set is false there.
pub(super) fn literal(value: &Value) -> String {
    match value {
        Value::Null => "false".to_owned(),
        Value::String(text) => toml_edit::Value::from(text.as_str()).to_string(),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(literal).collect();
            format!("[{}]", values.join(", "))
        }
        other => other.to_string(),
    }
}

/// What an option is for, as it is in the help, in lines of a comment.
pub(super) fn comment(option: &Opt, more: &str) -> String {
    let help = option.arg.get_long_help().or(option.arg.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let mut text = String::new();
    let mut column = 0;
    for word in help.split_whitespace().chain(more.split_whitespace()) {
        let length = word.chars().count();
        if column == 0 || column + 1 + length > WIDTH {
            text.push_str(if column == 0 { "#" } else { "\n#" });
            column = 1;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + length;
    }
    text
}

/// What values of an option look like.
pub(super) fn form(option: &Opt) -> String {
    match (option.kind(), option.possible()) {
        (Kind::Flag | Kind::Count, _) => String::new(),
        (_, values) if !values.is_empty() => values.join(", "),
        (Kind::Many, _) => format!("{}, …", option.form()),
        (Kind::AtMostOne, _) => format!("true or {}", option.form()),
        (Kind::One, _) => option.form(),
    }
}
