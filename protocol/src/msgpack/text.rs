//! Values as Python prints them, for error texts that quote what a peer sent.

use std::fmt;

use super::{Value, as_sequence};

/// Shows a value as `str()` of Python would; of anything long only the beginning.
///
/// Petals' error texts quote the offending value (`got None`), and people search for them.
#[derive(Debug, Clone, Copy)]
pub struct PythonText<'v>(pub Option<&'v Value>);

/// Characters of text or bytes, and elements of containers, that are shown.
const SHOWN: usize = 32;

impl fmt::Display for PythonText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Value::String(text)) => write!(f, "{}", shortened(text.as_str().unwrap_or_default())),
            Some(value) => repr(value, f, 0),
            None => write!(f, "None"),
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

fn repr(value: &Value, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
    const MAX_SHOWN_DEPTH: usize = 3;
    if depth > MAX_SHOWN_DEPTH {
        return write!(f, "...");
    }
    match value {
        Value::Nil => write!(f, "None"),
        Value::Boolean(true) => write!(f, "True"),
        Value::Boolean(false) => write!(f, "False"),
        Value::Integer(number) => write!(f, "{number}"),
        Value::F32(number) => float(f64::from(*number), f),
        Value::F64(number) => float(*number, f),
        Value::String(text) => write!(f, "'{}'", shortened(text.as_str().unwrap_or_default())),
        Value::Binary(bytes) => write!(f, "b'{}'", bytes[..bytes.len().min(SHOWN)].escape_ascii()),
        Value::Array(elements) => list(elements, "[", "]", f, depth),
        Value::Map(entries) => {
            write!(f, "{{")?;
            for (idx, (key, value)) in entries.iter().take(SHOWN).enumerate() {
                write!(f, "{}", if idx == 0 { "" } else { ", " })?;
                repr(key, f, depth + 1)?;
                write!(f, ": ")?;
                repr(value, f, depth + 1)?;
            }
            write!(f, "}}")
        }
        Value::Ext(code, _) => match as_sequence(value) {
            Some(elements) if elements.len() == 1 => list(&elements, "(", ",)", f, depth),
            Some(elements) => list(&elements, "(", ")", f, depth),
            None => write!(f, "ExtType({code})"),
        },
    }
}

fn list(elements: &[Value], open: &str, close: &str, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
    write!(f, "{open}")?;
    for (idx, element) in elements.iter().take(SHOWN).enumerate() {
        write!(f, "{}", if idx == 0 { "" } else { ", " })?;
        repr(element, f, depth + 1)?;
    }
    write!(f, "{close}")
}

fn float(number: f64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match number {
        _ if number.is_nan() => write!(f, "nan"),
        _ if number.is_infinite() => write!(f, "{}inf", if number < 0.0 { "-" } else { "" }),
        _ => write!(f, "{number:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgpack::tuple;

    #[test]
    fn values_print_as_in_python() {
        let shown = |value: Value| PythonText(Some(&value)).to_string();
        assert_eq!(PythonText(None).to_string(), "None");
        assert_eq!(shown(Value::Nil), "None");
        assert_eq!(shown(Value::from(true)), "True");
        assert_eq!(shown(Value::from(-5)), "-5");
        assert_eq!(shown(Value::from(5.0)), "5.0");
        assert_eq!(shown(Value::from(f64::NEG_INFINITY)), "-inf");
        assert_eq!(shown(Value::from("5")), "5");
        assert_eq!(shown(tuple(vec![Value::from("a")])), "('a',)");
        assert_eq!(
            shown(Value::Array(vec![Value::from(1), Value::Binary(vec![0, b'a'])])),
            "[1, b'\\x00a']"
        );
        let map = Value::Map(vec![(Value::from("k"), Value::Nil), (Value::from("l"), Value::from(1))]);
        assert_eq!(shown(map), "{'k': None, 'l': 1}");
    }

    #[test]
    fn long_values_are_cut() {
        let text = PythonText(Some(&Value::from("x".repeat(1000)))).to_string();
        assert_eq!(text.len(), SHOWN);
    }
}
