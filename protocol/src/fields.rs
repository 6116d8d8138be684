//! Typed access to the entries of a MessagePack map, with errors that name the field.

use crate::{
    error::WireError,
    msgpack::{self, Value},
};

/// The entries of a map that should hold certain fields. A nil counts as absence everywhere.
pub(crate) struct Fields<'v> {
    what: &'static str,
    entries: &'v [(Value, Value)],
}

impl<'v> Fields<'v> {
    pub(crate) fn of(what: &'static str, value: &'v Value) -> Result<Self, WireError> {
        match value {
            Value::Map(entries) => Ok(Self { what, entries }),
            _ => Err(WireError::WrongType {
                what,
                field: "the value",
                expected: "a map",
            }),
        }
    }

    /// The entries as they came.
    pub(crate) fn entries(&self) -> &'v [(Value, Value)] {
        self.entries
    }

    pub(crate) fn value(&self, field: &'static str) -> Option<&'v Value> {
        msgpack::get(self.entries, field).filter(|value| !value.is_nil())
    }

    pub(crate) fn text(&self, field: &'static str) -> Result<Option<String>, WireError> {
        self.read(field, "text", |value| value.as_str().map(str::to_string))
    }

    /// A whole number; a boolean is none, although Python's `int` contains it.
    pub(crate) fn uint(&self, field: &'static str) -> Result<Option<u64>, WireError> {
        self.read(field, "a whole number from 0", Value::as_u64)
    }

    pub(crate) fn boolean(&self, field: &'static str) -> Result<Option<bool>, WireError> {
        self.read(field, "a boolean", Value::as_bool)
    }

    pub(crate) fn sequence(&self, field: &'static str) -> Result<Option<Vec<Value>>, WireError> {
        self.read(field, "a tuple or an array", msgpack::as_sequence)
    }

    /// The value of a field, read by `read`, which returns `None` for a wrong type.
    pub(crate) fn read<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, WireError> {
        match self.value(field) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or(WireError::WrongType {
                what: self.what,
                field,
                expected,
            }),
        }
    }

    /// Turns absence into an error.
    pub(crate) fn require<T>(&self, field: &'static str, value: Option<T>) -> Result<T, WireError> {
        value.ok_or(WireError::Missing { what: self.what, field })
    }
}
