//! Tensors cut into parts for streams, and joined again. It reads and writes no stream itself.
//!
//! The first part carries all fields, the first bytes and `chunks`, the number of parts; the others carry only bytes. As
//! in Hivemind, a part with a dtype starts the next tensor, and `chunks` does not say where a tensor ends: here it only
//! serves to notice a tensor that lost its end.

use bytes::Bytes;

use super::{Head, TensorError};
use crate::{compress, error::WireError, proto};

/// Bytes of data in one part, as Petals cuts its streams: 4 MiB.
pub const DEFAULT_PART_BYTES: usize = 4 << 20;

/// Cuts a tensor into parts of at most `part_bytes` bytes of data (0 counts as 1), sharing the data.
///
/// A tensor without data is one part with `chunks` 0.
pub fn split(tensor: proto::Tensor, part_bytes: usize) -> Vec<proto::Tensor> {
    let mut data = tensor.buffer.clone();
    let n_parts = data.len().div_ceil(part_bytes.max(1));
    let mut next = || data.split_to(data.len().min(part_bytes.max(1)));
    let first = proto::Tensor {
        buffer: next(),
        chunks: i32::try_from(n_parts).unwrap_or(i32::MAX),
        ..tensor
    };
    let rest = (1..n_parts).map(|_| proto::Tensor {
        buffer: next(),
        ..proto::Tensor::default()
    });
    std::iter::once(first).chain(rest).collect()
}

/// Joins a stream of parts into the tensors they were cut from.
///
/// Holds one tensor at a time. Its memory is bounded by the byte budget of the whole stream (twice that while a tensor
/// of many parts grows).
#[derive(Debug)]
pub struct Joiner {
    open: Option<Open>,
    n_started: usize,
    bytes_left: usize,
    max_bytes: usize,
    max_tensors: usize,
}

/// A tensor of which more parts may come. The buffer of `first` is moved to `data`.
#[derive(Debug)]
struct Open {
    first: proto::Tensor,
    data: Data,
    n_parts: usize,
}

/// A tensor of one part keeps the message's own bytes; more parts are copied behind each other once.
#[derive(Debug)]
enum Data {
    One(Bytes),
    Many(Vec<u8>),
}

impl Joiner {
    /// A joiner for a stream of at most `max_tensors` tensors, with `max_bytes` bytes of data altogether.
    pub fn new(max_bytes: usize, max_tensors: usize) -> Joiner {
        Joiner {
            open: None,
            n_started: 0,
            bytes_left: max_bytes,
            max_bytes,
            max_tensors,
        }
    }

    /// Takes the next part. Returns the tensor before, when this part starts another one.
    ///
    /// # Errors
    /// When the part starts a tensor that cannot be valid, exceeds a limit, continues no tensor, or shows that the
    /// tensor before it is not complete. The joiner is of no use after an error.
    pub fn push(&mut self, part: proto::Tensor) -> Result<Option<proto::Tensor>, WireError> {
        let bytes_left = self.bytes_left.checked_sub(part.buffer.len());
        self.bytes_left = bytes_left.ok_or(TensorError::TooManyBytes { max: self.max_bytes })?;
        if part.dtype.is_empty() {
            self.open.as_mut().ok_or(TensorError::NoTensorOpen)?.append(part.buffer);
            return Ok(None);
        }
        let finished = self.close()?;
        if self.n_started == self.max_tensors {
            return Err(TensorError::TooManyTensors { max: self.max_tensors }.into());
        }
        Head::of(&part).map_err(|source| invalid(self.n_started, source))?;
        self.n_started += 1;
        self.open = Some(Open::new(part));
        Ok(finished)
    }

    /// Ends the stream. Returns the last tensor, or `None` when no part came at all.
    ///
    /// # Errors
    /// When the last tensor is not complete; the error says which one it is.
    pub fn finish(mut self) -> Result<Option<proto::Tensor>, WireError> {
        Ok(self.close()?)
    }

    /// Takes the open tensor and checks that it is whole.
    fn close(&mut self) -> Result<Option<proto::Tensor>, TensorError> {
        let Some(open) = self.open.take() else { return Ok(None) };
        let tensor = self.n_started - 1;
        let parts = open.n_parts;
        let announced = usize::try_from(open.first.chunks).unwrap_or(0);
        if parts < announced {
            return Err(TensorError::Truncated {
                tensor,
                parts,
                announced,
            });
        }
        let joined = open.join();
        let head = Head::of(&joined);
        head.and_then(|head| compress::check(&head, &joined.buffer))
            .map_err(|source| invalid(tensor, source))?;
        Ok(Some(joined))
    }
}

impl Open {
    fn new(mut first: proto::Tensor) -> Open {
        let data = Data::One(std::mem::take(&mut first.buffer));
        Open {
            first,
            data,
            n_parts: 1,
        }
    }

    fn append(&mut self, more: Bytes) {
        self.n_parts = self.n_parts.saturating_add(1);
        if more.is_empty() {
            return;
        }
        if let Data::One(first) = &self.data {
            let mut joined = Vec::with_capacity(first.len() + more.len());
            joined.extend_from_slice(first);
            self.data = Data::Many(joined);
        }
        if let Data::Many(joined) = &mut self.data {
            joined.extend_from_slice(&more);
        }
    }

    fn join(self) -> proto::Tensor {
        let buffer = match self.data {
            Data::One(bytes) => bytes,
            Data::Many(joined) => Bytes::from(joined),
        };
        proto::Tensor { buffer, ..self.first }
    }
}

fn invalid(tensor: usize, source: TensorError) -> TensorError {
    TensorError::Streamed {
        tensor,
        source: Box::new(source),
    }
}
