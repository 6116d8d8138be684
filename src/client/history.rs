//! What a hop was sent, in the dtype it was sent in, so that another server can be brought to the same state.

use std::ops::Range;

use bytes::Bytes;
use sepal_protocol::{
    WireError,
    tensor::{DType, WireTensor},
};

use crate::model::{Hidden, PAGE_TOKENS};

/// Most tokens (rows × tokens) in one message. Below every server's default `max_batch_size`, so that a long prompt or a
/// long history never fails for its size alone.
const MESSAGE_TOKENS: usize = 1024;
/// Most bytes of activations in one message, as float32: well below what a stream takes.
const MESSAGE_BYTES: usize = 8 << 20;

/// The inputs of one hop from the start of the session, `[batch, tokens, width]`.
#[derive(Debug)]
pub(crate) struct History {
    dtype: DType,
    width: usize,
    tokens: usize,
    /// One sequence of items each.
    rows: Vec<Vec<u8>>,
}

impl History {
    /// Nothing yet; `dtype` is what the hop is sent.
    pub(crate) fn new(dtype: DType) -> Self {
        Self {
            dtype,
            width: 0,
            tokens: 0,
            rows: Vec::new(),
        }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Appends the tokens of `sent`, `[batch, tokens, width]` of the history's dtype.
    pub(crate) fn push(&mut self, sent: &WireTensor) {
        let [batch, tokens, width] = sent.shape[..] else { return };
        self.rows.resize(batch, Vec::new());
        self.width = width;
        self.tokens += tokens;
        let row_bytes = (tokens * width * self.dtype.size()).max(1);
        for (row, items) in self.rows.iter_mut().zip(sent.data.chunks(row_bytes)) {
            row.extend_from_slice(items);
        }
    }

    /// Forgets everything from `tokens` on.
    pub(crate) fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
        let bytes = self.tokens * self.width * self.dtype.size();
        for row in &mut self.rows {
            row.truncate(bytes);
        }
    }

    /// What was pushed, from token `start` on, in messages of bounded size, each made when it is asked for: as float32 a
    /// long history takes several times its size. The last `tail` tokens are in messages of their own. None is an error in
    /// practice: what was a tensor once is one again.
    pub(crate) fn replay(&self, start: usize, tail: usize) -> impl Iterator<Item = Result<Hidden, WireError>> {
        let tail = self.tokens.saturating_sub(tail).max(start);
        [start..tail, tail..self.tokens]
            .into_iter()
            .flat_map(|part| {
                let ranges = ranges([self.rows.len(), part.len(), self.width], part.start, usize::MAX);
                ranges
                    .into_iter()
                    .map(move |tokens| part.start + tokens.start..part.start + tokens.end)
            })
            .map(|tokens| self.part(tokens))
    }

    fn part(&self, tokens: Range<usize>) -> Result<Hidden, WireError> {
        let token_bytes = self.width * self.dtype.size();
        let rows = self
            .rows
            .iter()
            .map(|row| &row[tokens.start * token_bytes..tokens.end * token_bytes]);
        let data = Bytes::from(rows.collect::<Vec<_>>().concat());
        let (batch, tokens) = (self.rows.len(), tokens.len());
        let tensor = WireTensor::new(self.dtype, [batch, tokens, self.width], data)?;
        Ok(Hidden {
            data: tensor.to_f32_vec(),
            batch,
            tokens,
            width: self.width,
        })
    }
}

/// Cuts activations from `position` on along the tokens into messages of bounded size, and of at most so many tokens; no
/// tokens are one message as well.
pub(crate) fn pieces(x: Hidden, position: usize, most: usize) -> Vec<Hidden> {
    let ranges = ranges([x.batch, x.tokens, x.width], position, most);
    if ranges.len() <= 1 {
        return vec![x];
    }
    ranges.into_iter().map(|tokens| narrow(&x, tokens)).collect()
}

/// The first so many tokens, and the others.
pub(crate) fn split(x: &Hidden, first: usize) -> (Hidden, Hidden) {
    let first = first.min(x.tokens);
    (narrow(x, 0..first), narrow(x, first..x.tokens))
}

/// Which tokens, the first of which is at `position`, go into which message. Messages of a page and more end with one: what
/// servers know of inputs they know by pages, and by those whose end they are sent.
fn ranges([batch, tokens, width]: [usize; 3], position: usize, most: usize) -> Vec<Range<usize>> {
    let bytes_per_token = size_of::<f32>() * width * batch;
    let per_message = (MESSAGE_TOKENS / batch.max(1))
        .min(MESSAGE_BYTES / bytes_per_token.max(1))
        .min(most)
        .max(1);
    let mut ranges = Vec::new();
    let mut start = 0;
    while start < tokens {
        let mut end = start.saturating_add(per_message);
        if end >= tokens {
            end = tokens;
        } else if per_message >= PAGE_TOKENS {
            end -= (position + end) % PAGE_TOKENS;
        }
        ranges.push(start..end);
        start = end;
    }
    ranges
}

/// The activations of some of the tokens.
fn narrow(x: &Hidden, tokens: Range<usize>) -> Hidden {
    let rows = (0..x.batch).map(|row| {
        let first = (row * x.tokens + tokens.start) * x.width;
        &x.data[first..first + tokens.len() * x.width]
    });
    Hidden {
        data: rows.collect::<Vec<_>>().concat(),
        batch: x.batch,
        tokens: tokens.len(),
        width: x.width,
    }
}

/// Joins pieces along the tokens.
pub(crate) fn concat(mut parts: Vec<Hidden>) -> Hidden {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let (batch, width) = parts.first().map_or((0, 0), |part| (part.batch, part.width));
    let tokens = parts.iter().map(|part| part.tokens).sum();
    let rows = (0..batch).flat_map(|row| {
        parts.iter().map(move |part| {
            let len = part.tokens * part.width;
            &part.data[row * len..][..len]
        })
    });
    Hidden {
        data: rows.collect::<Vec<_>>().concat(),
        batch,
        tokens,
        width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(batch: usize, tokens: usize, width: usize) -> Hidden {
        Hidden {
            data: (0..batch * tokens * width).map(|i| i as f32).collect(),
            batch,
            tokens,
            width,
        }
    }

    fn sent(x: &Hidden, dtype: DType) -> WireTensor {
        WireTensor::from_f32(&x.data, [x.batch, x.tokens, x.width], dtype).unwrap()
    }

    #[test]
    fn long_activations_are_cut_along_the_tokens_and_joined_again() {
        let x = numbered(3, 1000, 2);
        let tokens = |parts: &[Hidden]| -> Vec<usize> { parts.iter().map(|part| part.tokens).collect() };
        let parts = pieces(x.clone(), 0, usize::MAX);
        assert_eq!(tokens(&parts), [336, 336, 328]);
        assert_eq!(parts[1].data[0], 672.0);
        assert_eq!(concat(parts).data, x.data);
        let parts = pieces(x.clone(), 5, 300);
        assert_eq!(
            tokens(&parts),
            [299, 288, 288, 125],
            "so that all but the last end with a page"
        );
        assert_eq!(concat(parts).data, x.data);
        let parts = pieces(x.clone(), 5, 7);
        assert_eq!(parts.len(), 1000_usize.div_ceil(7));
        assert_eq!(concat(parts).data, x.data);
        let (first, rest) = split(&x, 10);
        assert_eq!((first.tokens, rest.tokens), (10, 990));
        assert_eq!(concat(vec![first, rest]).data, x.data);
    }

    #[test]
    fn a_short_step_is_one_message() {
        assert_eq!(pieces(numbered(1, MESSAGE_TOKENS, 1), 0, usize::MAX).len(), 1);
        assert_eq!(pieces(numbered(1, 0, 4), 0, usize::MAX).len(), 1);
        assert_eq!(pieces(numbered(1, 4, MESSAGE_BYTES / 8), 0, usize::MAX).len(), 2);
        assert_eq!(pieces(numbered(MESSAGE_TOKENS + 5, 2, 1), 0, usize::MAX).len(), 2);
    }

    #[test]
    fn single_tokens_are_replayed_in_as_few_messages_as_possible() {
        let x = numbered(2, 600, 4);
        let mut history = History::new(DType::F32);
        assert!(history.replay(0, 0).next().is_none());
        for token in 0..600 {
            history.push(&sent(&narrow(&x, token..token + 1), DType::F32));
        }
        let replay: Vec<Hidden> = history.replay(0, 0).map(Result::unwrap).collect();
        assert_eq!(replay.iter().map(|part| part.tokens).collect::<Vec<_>>(), [512, 88]);
        assert_eq!(concat(replay).data, x.data);
        // From anywhere on, and with the end apart.
        let tokens = |start, tail| -> Vec<usize> {
            let parts = history.replay(start, tail).map(Result::unwrap);
            parts.map(|part| part.tokens).collect()
        };
        assert_eq!(tokens(590, 0), [10]);
        assert_eq!(tokens(0, 3), [512, 85, 3]);
        assert_eq!(tokens(599, 3), [1]);
        let last = history.replay(599, 1).next().unwrap().unwrap();
        assert_eq!(last.data, narrow(&x, 599..600).data);
    }

    #[test]
    fn what_was_taken_back_is_not_replayed() {
        let x = numbered(2, 6, 3);
        let mut history = History::new(DType::F32);
        history.push(&sent(&x, DType::F32));
        history.truncate(4);
        history.push(&sent(&narrow(&x, 5..6), DType::F32));
        let replay = concat(history.replay(0, 0).map(Result::unwrap).collect());
        assert_eq!(replay.data, concat(vec![narrow(&x, 0..4), narrow(&x, 5..6)]).data);
    }

    #[test]
    fn what_is_replayed_is_what_was_sent() {
        let x = Hidden {
            data: vec![1.001, -2.5],
            batch: 1,
            tokens: 1,
            width: 2,
        };
        let mut history = History::new(DType::Bf16);
        let tensor = sent(&x, DType::Bf16);
        history.push(&tensor);
        assert_eq!(history.replay(0, 0).next().unwrap().unwrap().data, tensor.to_f32_vec());
    }
}
