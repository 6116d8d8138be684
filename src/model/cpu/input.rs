//! What products multiply: tokens, in the forms that their weights take. They are made part by part, each brought into
//! all forms while it is in a cache, on all threads. So what comes before a product, such as a norm, costs no pass.

use super::{
    Engine,
    dense::Interleaved,
    panels::MAX_TOKEN_GROUP,
    parts::WORTH_SHARING,
    quant::{Forms, QuantTokens},
    tiles::Start,
};

/// Tokens of a part: the largest group that the dense kernel interleaves.
const PART_TOKENS: usize = MAX_TOKEN_GROUP;

/// Writes whole tokens, of which the first has the number it is given.
pub(crate) type Make<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// Where tokens, `[tokens, cols]`, come from.
pub(crate) enum Source<'a> {
    Ready(&'a [f32]),
    /// They are made on the way to the product, and kept.
    Made {
        make: Make<'a>,
        /// Number of the first token.
        first: usize,
        out: &'a mut [f32],
    },
}

/// The forms that tokens are brought into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// For dense weights and many tokens.
    pub(crate) interleaved: bool,
    /// For quantised weights.
    pub(crate) forms: Forms,
}

/// Tokens in other forms than rows, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pub(crate) interleaved: Interleaved,
    pub(crate) quantised: QuantTokens,
}

impl<'a> Source<'a> {
    /// All tokens in rows. Those that are made are there after a product of them.
    pub(crate) fn rows(self) -> &'a [f32] {
        match self {
            Self::Ready(x) => x,
            Self::Made { out, .. } => out,
        }
    }

    /// Numbers of all tokens together.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ready(x) => x.len(),
            Self::Made { out, .. } => out.len(),
        }
    }

    /// The tokens `range`, of `cols` numbers each.
    pub(crate) fn tokens(&mut self, range: std::ops::Range<usize>, cols: usize) -> Source<'_> {
        let numbers = range.start * cols..range.end * cols;
        match self {
            Self::Ready(x) => Source::Ready(&x[numbers]),
            Self::Made { make, first, out } => Source::Made {
                make,
                first: *first + range.start,
                out: &mut out[numbers],
            },
        }
    }
}

impl Input {
    /// Takes the tokens of `source` in all forms that are wanted. Returns them in rows.
    ///
    /// # Panics
    /// If they are not whole tokens of `cols` numbers.
    pub(crate) fn set<'a>(&mut self, engine: &Engine, wanted: Wanted, source: Source<'a>, cols: usize) -> &'a [f32] {
        let len = source.len();
        assert_eq!(len % cols, 0, "activations are not whole vectors");
        let tokens = len / cols;
        if wanted.interleaved {
            self.interleaved.resize(tokens, cols);
        }
        if wanted.forms.any() {
            self.quantised.resize(wanted.forms, tokens, cols);
        }
        if let Source::Ready(x) = source
            && !wanted.interleaved
            && !wanted.forms.any()
        {
            return x;
        }
        let given = match source {
            Source::Ready(x) => Given::Ready(x),
            Source::Made { make, first, out } => Given::Made(make, first, Start(out.as_mut_ptr())),
        };
        let (interleaved, quantised) = (self.interleaved.writer(), self.quantised.writer());
        let part = |i: usize| {
            let range = i * PART_TOKENS * cols..len.min((i + 1) * PART_TOKENS * cols);
            let x = match &given {
                Given::Ready(x) => &x[range],
                Given::Made(make, first, out) => {
                    // SAFETY: the range is inside `out`, which nobody else has, and this part's alone.
                    let x = unsafe { std::slice::from_raw_parts_mut(out.at(range.start), range.len()) };
                    make(first + i * PART_TOKENS, x);
                    x
                }
            };
            // SAFETY: both were made for all tokens, of which these are this part's alone; parts are whole groups.
            unsafe {
                if wanted.interleaved {
                    interleaved.write(engine, i * PART_TOKENS, x);
                }
                if wanted.forms.any() {
                    quantised.write(engine, i * PART_TOKENS, x);
                }
            }
        };
        let n_parts = tokens.div_ceil(PART_TOKENS);
        if len < WORTH_SHARING {
            (0..n_parts).for_each(part);
        } else {
            engine.pool.run(n_parts, &part);
        }
        match given {
            Given::Ready(x) => x,
            // SAFETY: it is the `out` that was given away above, and nobody writes to it any more.
            Given::Made(_, _, out) => unsafe { std::slice::from_raw_parts(out.0, len) },
        }
    }
}

/// A [`Source`] that threads share.
enum Given<'a> {
    Ready(&'a [f32]),
    Made(Make<'a>, usize, Start<f32>),
}
