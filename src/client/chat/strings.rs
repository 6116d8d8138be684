//! Python's methods on the values of a template, beyond those that `minijinja-contrib` has.

use minijinja::{Error, ErrorKind, State, Value, value::from_args};
use minijinja_contrib::pycompat::unknown_method_callback;

/// A method of `value` that Jinja for Rust does not have by itself.
///
/// # Errors
/// There is none of that name in Python either, or none that templates use.
pub(super) fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => match of_text(text, name, args)? {
            Some(result) => Ok(result),
            None => unknown_method_callback(state, value, name, args),
        },
        None => unknown_method_callback(state, value, name, args),
    }
}

fn of_text(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            parts(text, separator, (before, after))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            parts(text, separator, (before, after))
        }
        "rsplit" => {
            let (separator, at_most): (&str, Option<usize>) = from_args(args)?;
            let mut found: Vec<&str> = match at_most {
                Some(at_most) => text.rsplitn(at_most + 1, separator).collect(),
                None => text.rsplit(separator).collect(),
            };
            found.reverse();
            found.into_iter().map(Value::from).collect()
        }
        "index" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = text
                .find(wanted)
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            text[..at].chars().count().into()
        }
        "casefold" => text.to_lowercase().into(),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let digits = text.trim_start_matches(['+', '-']);
            let sign = &text[..text.len() - digits.len()];
            let width = width.saturating_sub(sign.len()).min(u16::MAX.into());
            format!("{sign}{digits:0>width$}").into()
        }
        _ => return Ok(None),
    }))
}

/// A text that does not have the separator has an empty one.
fn parts(text: &str, separator: &str, (before, after): (&str, &str)) -> Value {
    let found = if text.contains(separator) { separator } else { "" };
    [before, found, after].into_iter().map(Value::from).collect()
}
