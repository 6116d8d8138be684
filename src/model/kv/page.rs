//! A page: keys and values of 16 consecutive tokens of one sequence in one block, laid out so that scores and weighted
//! sums are both products of panels. Who owns a page is not decided here.
//!
//! ```text
//! head 0: keys [head_dim][16 tokens] · values [⌈head_dim / 16⌉][16 tokens][16 dims]      head 1: ...
//! i8 only, after all heads, per head: 16 scales of keys · 16 scales of values
//! ```
//!
//! On a card keys and values are both `[16 tokens][head_dim]`, in the same order otherwise.

use bytemuck::{cast_slice, cast_slice_mut};
use half::{bf16, f16};

use super::{KvDType, KvShape};
use crate::model::{
    CudaError,
    cpu::LANES,
    cuda::Piece,
    number::{Number, Slice},
};

/// Tokens per page: the lanes of a panel.
pub(crate) const PAGE_TOKENS: usize = LANES;

/// f32 words of a cache line. Pages start at one, so that loads of whole registers do not straddle two.
const LINE_WORDS: usize = 16;

/// The largest whole number keys and values are scaled to.
const I8_MAX: f32 = 127.0;

/// Memory for 16 tokens of one sequence in one block.
#[derive(Debug)]
pub(crate) struct Page {
    words: Vec<f32>,
    /// Where the first cache line starts in `words`.
    start: usize,
    /// Whether everything in it is finite, what nobody sees any more included: nothing times a number is nothing, but
    /// nothing times infinity is not.
    finite: bool,
    home: Home,
    /// Where it is if it is on a card; `words` is empty then.
    on_card: Option<Piece>,
}

/// Where a page came from and goes back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// The arena's pages of this place.
    Arena(usize),
    /// The heap or the driver, because the arena had no more for this place.
    Overflow(usize),
    /// The heap: what only the index has, where the arena has no memory of the host.
    Index,
}

/// The part of a page that belongs to one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadPage<'a> {
    /// One panel, `[head_dim][16 tokens]`.
    pub(crate) keys: Slice<'a>,
    /// Panels of 16 dimensions, `[⌈head_dim / 16⌉][16 tokens][16]`.
    pub(crate) values: Slice<'a>,
    /// What each token's keys and values are worth; empty unless they are i8.
    pub(crate) key_scales: &'a [f32],
    pub(crate) value_scales: &'a [f32],
    /// Whether all values are finite, those of tokens that were never written or are forgotten included.
    pub(crate) finite: bool,
}

/// Numbers of one head of a page, and all of it.
#[derive(Clone, Copy, Debug)]
struct Layout {
    key_words: usize,
    head_words: usize,
    scales_at: usize,
    words: usize,
}

impl Layout {
    fn new(shape: KvShape) -> Self {
        // A panel has 16 numbers per row, so that a row is whole words even of bytes.
        let words_per_row = PAGE_TOKENS * shape.dtype.size() / size_of::<f32>();
        let key_words = shape.head_dim * words_per_row;
        let head_words = key_words + shape.padded_dim() * words_per_row;
        let scales_at = shape.n_kv_heads * head_words;
        let scales = match shape.dtype {
            KvDType::Int8 => shape.n_kv_heads * 2 * PAGE_TOKENS,
            _ => 0,
        };
        Self {
            key_words,
            head_words,
            scales_at,
            words: scales_at + scales,
        }
    }
}

impl Page {
    /// A page of an arena, whose memory is really there: it was written to. `None` if there is no memory.
    pub(super) fn try_new(shape: KvShape) -> Option<Self> {
        let n_words = Layout::new(shape).words + LINE_WORDS;
        let mut words = Vec::new();
        words.try_reserve_exact(n_words).ok()?;
        // The optimiser would otherwise ask the system for zeros, which it only gives when they are used.
        words.resize(n_words, std::hint::black_box(0.0));
        Some(Self::of(words, Home::Arena(0)))
    }

    /// A page of the heap.
    pub(super) fn on_heap(shape: KvShape, home: Home) -> Self {
        Self::of(vec![0.0; Layout::new(shape).words + LINE_WORDS], home)
    }

    /// A page on a card.
    pub(super) fn on_card(piece: Piece, home: Home) -> Self {
        Self {
            on_card: Some(piece),
            ..Self::of(Vec::new(), home)
        }
    }

    fn of(words: Vec<f32>, home: Home) -> Self {
        let into_line = words.as_ptr() as usize / size_of::<f32>() % LINE_WORDS;
        Self {
            words,
            start: (LINE_WORDS - into_line) % LINE_WORDS,
            finite: true,
            home,
            on_card: None,
        }
    }

    /// A page of no size, for where a page was taken from.
    pub(crate) fn nothing() -> Self {
        Self {
            words: Vec::new(),
            start: 0,
            finite: true,
            home: Home::Index,
            on_card: None,
        }
    }

    pub(super) fn home(&self) -> Home {
        self.home
    }

    pub(crate) fn is_overflow(&self) -> bool {
        matches!(self.home, Home::Overflow(_))
    }

    /// Bytes of the host that it takes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.words.as_slice())
    }

    /// Its address on the card it is on; 0 if it is on none.
    pub(crate) fn address(&self) -> u64 {
        self.on_card.as_ref().map_or(0, Piece::address)
    }

    /// Makes the page usable by anybody: what is left in it must not be seen, even as a factor of nothing.
    pub(crate) fn retire(&mut self) {
        if !self.finite {
            self.words.fill(0.0);
            self.finite = true;
        }
    }

    /// Takes over what `other`, a page of the same shape, has.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let len = (self.words.len() - self.start).min(other.words.len() - other.start);
        self.words[self.start..self.start + len].copy_from_slice(&other.words[other.start..other.start + len]);
        self.finite = other.finite;
    }

    /// As [`Page::copy_from`], of a page on a card by one on the same card.
    ///
    /// # Errors
    /// When the card is lost.
    pub(super) fn copy_on_card(&self, other: &Self) -> Result<(), CudaError> {
        match (&self.on_card, &other.on_card) {
            (Some(to), Some(from)) => to.copy_from(from),
            _ => Ok(()),
        }
    }

    /// Its memory as words, for whoever keeps something else in it.
    pub(crate) fn words(&self) -> &[f32] {
        &self.words[self.start..self.words.len() - (LINE_WORDS - self.start)]
    }

    /// As [`Page::words`]. Tokens that see them do so as factors of nothing, so they count as not finite.
    pub(crate) fn words_mut(&mut self) -> &mut [f32] {
        self.finite = false;
        let end = self.words.len() - (LINE_WORDS - self.start);
        &mut self.words[self.start..end]
    }

    /// Writes key and value of head `head` of token `slot`, each `head_dim` numbers.
    pub(crate) fn write(&mut self, shape: KvShape, (head, slot): (usize, usize), key: &[f32], value: &[f32]) {
        let layout = Layout::new(shape);
        let at = self.start + head * layout.head_words;
        let (keys, values) = self.words[at..at + layout.head_words].split_at_mut(layout.key_words);
        self.finite &= match shape.dtype {
            KvDType::F32 => put::<f32>((keys, values), slot, key, value),
            KvDType::Bf16 => put::<bf16>((keys, values), slot, key, value),
            KvDType::F16 => put::<f16>((keys, values), slot, key, value),
            KvDType::Int8 => {
                let scales = [
                    quantise(key, |i, q| cast_slice_mut(keys)[key_at(slot, i)] = q),
                    quantise(value, |i, q| cast_slice_mut(values)[value_at(slot, i)] = q),
                ];
                let at = self.start + layout.scales_at + head * 2 * PAGE_TOKENS + slot;
                self.words[at] = scales[0];
                self.words[at + PAGE_TOKENS] = scales[1];
                true // whole numbers are; a scale that is not finite is no factor of tokens that nobody sees
            }
        };
    }

    /// What head `head` has.
    pub(crate) fn head(&self, shape: KvShape, head: usize) -> HeadPage<'_> {
        let layout = Layout::new(shape);
        let at = self.start + head * layout.head_words;
        let (keys, values) = self.words[at..at + layout.head_words].split_at(layout.key_words);
        let numbers = |words| match shape.dtype {
            KvDType::F32 => Slice::F32(words),
            KvDType::Bf16 => Slice::Bf16(cast_slice(words)),
            KvDType::F16 => Slice::F16(cast_slice(words)),
            KvDType::Int8 => Slice::I8(cast_slice(words)),
        };
        let scales: &[f32] = match shape.dtype {
            KvDType::Int8 => &self.words[self.start + layout.scales_at + head * 2 * PAGE_TOKENS..][..2 * PAGE_TOKENS],
            _ => &[],
        };
        let (key_scales, value_scales) = scales.split_at(scales.len() / 2);
        HeadPage {
            keys: numbers(keys),
            values: numbers(values),
            key_scales,
            value_scales,
            finite: self.finite,
        }
    }
}

fn key_at(slot: usize, dim: usize) -> usize {
    dim * PAGE_TOKENS + slot
}

fn value_at(slot: usize, dim: usize) -> usize {
    (dim / LANES * PAGE_TOKENS + slot) * LANES + dim % LANES
}

/// Writes one token of one head; whether all of it is finite as it was written.
fn put<N: Number>((keys, values): (&mut [f32], &mut [f32]), slot: usize, key: &[f32], value: &[f32]) -> bool {
    let (keys, values): (&mut [N], &mut [N]) = (cast_slice_mut(keys), cast_slice_mut(values));
    for (dim, key) in key.iter().enumerate() {
        keys[key_at(slot, dim)] = N::from_f32(*key);
    }
    let mut finite = true;
    for (panel, value) in values.chunks_exact_mut(PAGE_TOKENS * LANES).zip(value.chunks(LANES)) {
        for (place, value) in panel[slot * LANES..].iter_mut().zip(value) {
            *place = N::from_f32(*value);
            finite &= place.to_f32().is_finite();
        }
    }
    finite
}

/// Rounds `numbers` to whole multiples of the scale it returns, at most half of it off: the largest is 127 of them.
/// One that is not finite makes the scale NaN, and so all of them.
fn quantise(numbers: &[f32], mut put: impl FnMut(usize, i8)) -> f32 {
    let largest = numbers
        .iter()
        .fold(0.0_f32, |largest, number| largest.max(number.abs()));
    let finite = numbers.iter().all(|number| number.is_finite());
    let scale = if finite { largest / I8_MAX } else { f32::NAN };
    let per_scale = if scale > 0.0 { I8_MAX / largest } else { 0.0 };
    // Adding 1.5 · 2^23 rounds to a whole number, ties to even, without a call.
    const ROUND: f32 = 12_582_912.0;
    for (i, number) in numbers.iter().enumerate() {
        put(i, (number * per_scale + ROUND - ROUND) as i8);
    }
    scale
}
