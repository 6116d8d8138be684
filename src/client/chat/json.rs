//! The filter `tojson` of chat templates: Python's `json.dumps` with the arguments that transformers passes on.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// How deep a value may be; Python has a limit as well.
const MAX_DEPTH: usize = 200;

/// How the text is laid out.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
///
/// # Errors
/// Something that JSON does not have, such as an undefined value.
pub(super) fn tojson(value: &Value, given: &[Value], named: Kwargs) -> Result<String, Error> {
    const ORDER: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if given.len() > ORDER.len() {
        return Err(ErrorKind::TooManyArguments.into());
    }
    let argument = |at: usize| -> Result<Value, Error> {
        let by_name: Option<Value> = named.get(ORDER[at])?;
        Ok(given.get(at).cloned().or(by_name).unwrap_or(Value::from(())))
    };
    let indent = argument(1)?;
    let indent = match indent.kind() {
        ValueKind::None => None,
        ValueKind::String => Some(indent.to_string()),
        _ => Some(" ".repeat(usize::try_from(indent).unwrap_or(0))),
    };
    let separators: Vec<String> = match argument(2)? {
        none if none.is_none() => Vec::new(),
        pair => pair.try_iter()?.map(|separator| separator.to_string()).collect(),
    };
    // Lines end without a space behind the comma.
    let between_items = if indent.is_some() { "," } else { ", " };
    let separator = |at: usize, default: &str| separators.get(at).cloned().unwrap_or_else(|| default.to_owned());
    let style = Style {
        ensure_ascii: argument(0)?.is_true(),
        between_items: separator(0, between_items),
        after_key: separator(1, ": "),
        indent,
        sort_keys: argument(3)?.is_true(),
    };
    named.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: too deep"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => return self.write_map(value, depth, out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                return self.write_items(('[', ']'), items, depth, out, |item, depth, out| {
                    self.write(&item, depth, out)
                });
            }
            kind => {
                let message = format!("tojson: {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn write_map(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let mut entries = Vec::new();
        for key in value.try_iter()? {
            let name = match key.kind() {
                ValueKind::Bool => key.is_true().to_string(),
                ValueKind::None => "null".to_owned(),
                _ => key.to_string(),
            };
            entries.push((name, value.get_item(&key)?));
        }
        if self.sort_keys {
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        self.write_items(('{', '}'), entries, depth, out, |(name, item), depth, out| {
            self.write_text(&name, out);
            out.push_str(&self.after_key);
            self.write(&item, depth, out)
        })
    }

    fn write_items<T>(
        &self,
        (open, close): (char, char),
        items: Vec<T>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let is_empty = items.is_empty();
        for (at, item) in items.into_iter().enumerate() {
            if at > 0 {
                out.push_str(&self.between_items);
            }
            self.write_line_start(depth + 1, out);
            write(item, depth + 1, out)?;
        }
        if !is_empty {
            self.write_line_start(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn write_line_start(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Integers as they are, others as `repr` writes them.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => float(number),
        _ => value.to_string(),
    }
}

/// Rust writes the same digits and changes to exponents at the same sizes, but writes these without sign and zeros.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "NaN".to_owned()
        } else if number > 0.0 {
            "Infinity".to_owned()
        } else {
            "-Infinity".to_owned()
        };
    }
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (number, text) in [
            (0.1, "0.1"),
            (2.0, "2.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (-1e-5, "-1e-05"),
            (1e100, "1e+100"),
            (123_456_789.25, "123456789.25"),
            (0.0001, "0.0001"),
        ] {
            assert_eq!(float(number), text);
        }
    }
}
