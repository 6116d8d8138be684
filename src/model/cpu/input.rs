//! What products multiply: tokens, in the forms that their weights take. They are made part by part, each brought into
//! all forms while it is in a cache, on all threads. So what comes before a product, such as a norm, costs no pass.

use super::{
    Engine,
    dense::{Interleaved, InterleavedWriter},
    memory::Buffer,
    panels::MAX_TOKEN_GROUP,
    parts::WORTH_SHARING,
    quant::{QuantTokens, QuantWriter},
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
    /// For dense weights.
    pub(crate) numbers: bool,
    /// For bf16 that is multiplied in pairs.
    pub(crate) pairs: bool,
    /// Whether rows of both are enough: there are few tokens.
    pub(crate) few: bool,
    /// For quantised weights.
    pub(crate) blocks: bool,
}

/// Tokens in other forms than rows, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pub(crate) interleaved: Interleaved,
    /// `[tokens, words]`
    pairs: Buffer,
    n_pairs: usize,
    pub(crate) interleaved_pairs: Interleaved,
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
    /// Rows of pairs, `[tokens, cols / 2]`, if they were wanted.
    pub(crate) fn pairs(&self) -> &[f32] {
        self.pairs.as_slice(self.n_pairs)
    }

    /// Takes the tokens of `source` in all forms that are wanted. Returns them in rows.
    ///
    /// # Panics
    /// If they are not whole tokens of `cols` numbers.
    pub(crate) fn set<'a>(&mut self, engine: &Engine, wanted: Wanted, source: Source<'a>, cols: usize) -> &'a [f32] {
        let len = source.len();
        assert_eq!(len % cols, 0, "activations are not whole vectors");
        let tokens = len / cols;
        let writer = self.resize(wanted, [tokens, cols]);
        let given = match source {
            Source::Ready(x) if !writer.any() => return x,
            Source::Ready(x) => Given::Ready(x),
            Source::Made { make, first, out } => Given::Made(make, first, Start(out.as_mut_ptr())),
        };
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
            // SAFETY: there is room for all tokens, of which these are this part's alone; parts are whole groups.
            unsafe { writer.write(engine, i * PART_TOKENS, x) };
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

    /// Makes room for tokens in the forms that are wanted.
    fn resize(&mut self, wanted: Wanted, [tokens, cols]: [usize; 2]) -> Writer<'_> {
        let Wanted { pairs, few, blocks, .. } = wanted;
        let (interleaved, words) = (wanted.numbers && !few, cols / 2);
        if interleaved {
            self.interleaved.resize(tokens, cols);
        }
        if blocks {
            self.quantised.resize(tokens, cols);
        }
        self.n_pairs = if pairs { tokens * words } else { 0 };
        let rows = self.pairs.numbers(self.n_pairs).as_mut_ptr();
        if pairs && !few {
            self.interleaved_pairs.resize(tokens, words);
        }
        let interleaved_pairs = &mut self.interleaved_pairs;
        Writer {
            interleaved: interleaved.then(|| self.interleaved.writer()),
            pairs: pairs.then_some((Start(rows), words)),
            interleaved_pairs: (pairs && !few).then(|| interleaved_pairs.writer()),
            quantised: blocks.then(|| self.quantised.writer()),
        }
    }
}

/// The forms of an [`Input`] that are being written.
struct Writer<'a> {
    interleaved: Option<InterleavedWriter<'a>>,
    /// And how many words a token has.
    pairs: Option<(Start<f32>, usize)>,
    interleaved_pairs: Option<InterleavedWriter<'a>>,
    quantised: Option<QuantWriter<'a>>,
}

impl Writer<'_> {
    fn any(&self) -> bool {
        self.interleaved.is_some() || self.pairs.is_some() || self.quantised.is_some()
    }

    /// Takes the tokens `x` from number `first` on.
    ///
    /// # Safety
    /// As [`InterleavedWriter::write`].
    unsafe fn write(&self, engine: &Engine, first: usize, x: &[f32]) {
        // SAFETY: the caller's promise, of the same tokens in each form.
        unsafe {
            if let Some(interleaved) = &self.interleaved {
                interleaved.write(engine, first, x);
            }
            if let Some((pairs, words)) = &self.pairs {
                let pairs = std::slice::from_raw_parts_mut(pairs.at(first * words), x.len() / 2);
                engine.kernels.round_to_pairs(x, pairs);
                if let Some(interleaved) = &self.interleaved_pairs {
                    interleaved.write(engine, first, pairs);
                }
            }
            if let Some(quantised) = &self.quantised {
                quantised.write(engine, first, x);
            }
        }
    }
}

/// A [`Source`] that threads share.
enum Given<'a> {
    Ready(&'a [f32]),
    Made(Make<'a>, usize, Start<f32>),
}
