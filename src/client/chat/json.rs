//! The filter `tojson` of chat templates: Python's `json.dumps` with the arguments that transformers passes on.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// How deep a value may be; Python has a limit as well.
const MAX_DEPTH: usize = 200;

/// How the text is laid out, and what of it is there.
struct Writer {
    ensure_ascii: bool,
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
    depth: usize,
    out: String,
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
    let mut writer = Writer {
        ensure_ascii: argument(0)?.is_true(),
        between_items: separator(0, between_items),
        after_key: separator(1, ": "),
        indent,
        sort_keys: argument(3)?.is_true(),
        depth: 0,
        out: String::new(),
    };
    named.assert_all_used()?;
    writer.write(value)?;
    Ok(writer.out)
}

impl Writer {
    fn write(&mut self, value: &Value) -> Result<(), Error> {
        if self.depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: too deep"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default()),
            ValueKind::Map => return self.write_map(value),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                return self.write_items(('[', ']'), items, |writer, item| writer.write(&item));
            }
            kind => {
                let message = format!("tojson: {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn write_map(&mut self, value: &Value) -> Result<(), Error> {
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
        self.write_items(('{', '}'), entries, |writer, (name, item)| {
            writer.write_text(&name);
            writer.out.push_str(&writer.after_key);
            writer.write(&item)
        })
    }

    fn write_items<T>(
        &mut self,
        (open, close): (char, char),
        items: Vec<T>,
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        self.depth += 1;
        let is_empty = items.is_empty();
        for (at, item) in items.into_iter().enumerate() {
            if at > 0 {
                self.out.push_str(&self.between_items);
            }
            self.start_line();
            write(self, item)?;
        }
        self.depth -= 1;
        if !is_empty {
            self.start_line();
        }
        self.out.push(close);
        Ok(())
    }

    fn start_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(self.depth));
        }
    }

    fn write_text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
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
