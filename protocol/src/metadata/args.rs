//! `args_structure`: the call's positional and keyword arguments, with a marker in place of each tensor.
//!
//! Source: `pack_args_kwargs` (petals, `utils/packaging.py`). A tensor that is passed twice is sent once and referred to
//! twice, which is why the order of the tensors alone is not enough.

use crate::{
    error::WireError,
    msgpack::{self, Value},
};

const WHAT: &str = "args_structure";

/// What stands for a tensor: these bytes, then its index in decimal digits.
const TENSOR_MARKER: &[u8] = b"__T";

/// The structure of a call with `n_tensors` positional arguments, each sent once: `((__T0, __T1, …), {})`.
pub fn args_structure(n_tensors: usize) -> Value {
    let marker = |idx: usize| Value::Binary([TENSOR_MARKER, idx.to_string().as_bytes()].concat());
    let args = (0..n_tensors).map(marker).collect();
    msgpack::tuple(vec![msgpack::tuple(args), Value::Map(Vec::new())])
}

/// Which of the `n_tensors` sent tensors is the first argument, which the second, and so on.
///
/// Without a structure the tensors are the arguments in the order in which they came. With one, the list ends before
/// the first argument that is not a tensor: no call has an argument after it. Keyword arguments are never used.
///
/// # Errors
/// [`WireError`] if the structure is not a pair of arguments and keyword arguments, or refers to a tensor that was not
/// sent.
pub fn tensor_order(structure: Option<&Value>, n_tensors: usize) -> Result<Vec<usize>, WireError> {
    let Some(structure) = structure.filter(|structure| !structure.is_nil()) else {
        return Ok((0..n_tensors).collect());
    };
    let wrong = |field, expected| WireError::WrongType {
        what: WHAT,
        field,
        expected,
    };
    let parts = msgpack::as_sequence(structure).ok_or(wrong("the value", "a tuple or an array"))?;
    let [args, _kwargs] = parts.as_slice() else {
        return Err(wrong("the content", "arguments and keyword arguments"));
    };
    let args = msgpack::as_sequence(args).ok_or(wrong("the list of arguments", "a tuple or an array"))?;
    let mut order = Vec::with_capacity(args.len());
    for idx in args.iter().map_while(tensor_idx) {
        match idx {
            Some(idx) if idx < n_tensors => order.push(idx),
            _ => {
                return Err(WireError::OutOfRange {
                    what: WHAT,
                    field: "a tensor",
                    expected: "among those sent",
                });
            }
        }
    }
    Ok(order)
}

/// The index in a tensor marker: `None` if the argument is no tensor, `Some(None)` if the index is none.
fn tensor_idx(argument: &Value) -> Option<Option<usize>> {
    let Value::Binary(bytes) = argument else { return None };
    let digits = bytes.strip_prefix(TENSOR_MARKER)?;
    Some(std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()))
}
