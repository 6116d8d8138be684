//! The fields of a request, read with the errors that name them. What is null is not there, what is unknown is not looked at.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// An object of a request. `path` names it in errors, with a dot at its end; empty for the request itself.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    pub(crate) fn of_request(object: &'a Map<String, Value>) -> Self {
        Self {
            object,
            path: String::new(),
        }
    }

    /// `value`, if it is an object; `path` is what errors call it.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn of(value: &'a Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Self {
                object,
                path: format!("{path}."),
            }),
            other => Err(ApiError::invalid(
                path,
                format!("{path} must be an object, not {}", kind(other)),
            )),
        }
    }

    /// What errors call the field `name`.
    pub(crate) fn path_of(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn object(&self) -> &'a Map<String, Value> {
        self.object
    }

    /// That the field `name` is wrong.
    pub(crate) fn wrong(&self, name: &str, why: &str) -> ApiError {
        let path = self.path_of(name);
        ApiError::invalid(&path, format!("{path} {why}"))
    }

    fn typed<T>(
        &self,
        name: &str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let wrong = || self.wrong(name, &format!("must be {what}, not {}", kind(value)));
        read(value).map(Some).ok_or_else(wrong)
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(crate) fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.typed(name, "an array", |value| value.as_array().map(Vec::as_slice))
    }

    /// A nested object.
    pub(crate) fn nested(&self, name: &str) -> Result<Option<Self>, ApiError> {
        self.get(name)
            .map(|value| Self::of(value, &self.path_of(name)))
            .transpose()
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f32>, ApiError> {
        self.typed(name, "a number", |value| value.as_f64().map(|number| number as f32))
    }

    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        // Some clients write whole numbers with a point.
        let whole = |value: &Value| {
            let float = value
                .as_f64()
                .filter(|number| number.fract() == 0.0 && number.abs() < 9e15);
            value.as_i64().or(float.map(|number| number as i64))
        };
        self.typed(name, "an integer", whole)
    }

    pub(crate) fn count(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ApiError> {
        let Some(number) = self.integer(name)? else {
            return Ok(None);
        };
        let fits = usize::try_from(number).ok().filter(|number| range.contains(number));
        match fits {
            Some(number) => Ok(Some(number)),
            None if *range.end() == usize::MAX => {
                Err(self.wrong(name, &format!("must be at least {}, not {number}", range.start())))
            }
            None => {
                let (least, most) = range.into_inner();
                Err(self.wrong(name, &format!("must be from {least} to {most}, not {number}")))
            }
        }
    }

    /// Refuses a field that would change what comes out, unless it has one of the values that ask for what is done anyway.
    ///
    /// # Errors
    /// It asks for something else.
    pub(crate) fn only(&self, name: &str, harmless: &[Value], why: &str) -> Result<(), ApiError> {
        match self.get(name) {
            Some(value) if !harmless.contains(value) => Err(self.wrong(name, why)),
            _ => Ok(()),
        }
    }
}

/// What a value is, for errors.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "this number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_name_the_field_and_what_it_should_be() {
        let request = json!({"n": 0, "stream": "yes", "a": {"b": 1}, "none": null, "whole": 3.0, "part": 3.5});
        let fields = Fields::of_request(request.as_object().unwrap());
        let message = |error: ApiError| error.body()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(
            message(fields.count("n", 1..=8).unwrap_err()),
            "n must be from 1 to 8, not 0"
        );
        assert_eq!(
            message(fields.flag("stream").unwrap_err()),
            "stream must be true or false, not a string"
        );
        let nested = fields.nested("a").unwrap().unwrap();
        assert_eq!(nested.text("b").unwrap_err().body()["error"]["param"], "a.b");
        assert_eq!(fields.text("none").unwrap(), None);
        assert_eq!(fields.integer("whole").unwrap(), Some(3));
        assert!(fields.integer("part").is_err());
        assert!(fields.only("n", &[json!(0)], "is not supported").is_ok());
        assert!(fields.only("n", &[json!(1)], "is not supported").is_err());
    }
}
