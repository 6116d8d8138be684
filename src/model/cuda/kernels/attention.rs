//! Attention over pages on a card. Sequences with few new tokens split their keys among many blocks of threads; those with
//! many have a block for some dozens of queries. A query's result depends on nothing but itself, the pages it sees, and which
//! of the two ways its sequence goes.

use std::sync::Arc;

use super::cache::CardHeads;
use crate::model::{
    attention::Scoring,
    cuda::{
        CudaError,
        device::Device,
        launch::{Argument, Grid},
        memory::{Buffer, View, ViewMut},
    },
    kv::{KvDType, PAGE_TOKENS},
};

/// Threads, keys of a split, keys of a tile, and what keeps rows of tiles apart; as in `attention.cu`.
const THREADS: usize = 256;
const SPLIT_KEYS: usize = 256;
const MANY_KEYS: usize = 32;
const PAD: usize = 4;
const WARPS: usize = 8;

/// New tokens of a sequence that are few.
const FEW_TOKENS: usize = 16;

/// The largest head that the kernels for many tokens take.
const MAX_MANY_DIM: usize = 256;

/// u32 words of a tile.
const TILE_WORDS: usize = 6;

/// How a block scores keys, on a card.
#[derive(Debug)]
pub(crate) struct CardScoring {
    scale: f32,
    softcap: f32,
    window: u32,
    /// `[n_heads, 2]`
    slopes: Option<Buffer<f32>>,
    rounded: bool,
    sinks: Option<Buffer<f32>>,
}

impl CardScoring {
    /// The same as `scoring`, of the CPU.
    ///
    /// # Errors
    /// When the card has no memory for it.
    pub(crate) fn of(scoring: &Scoring, device: &Arc<Device>) -> Result<Self, CudaError> {
        let slopes = scoring.alibi.as_ref().map(|alibi| alibi.slopes.as_slice());
        let numbers = slopes.map(|slopes| slopes.iter().flat_map(|slope| [slope.per_token, slope.scale]));
        Ok(Self {
            scale: scoring.scale,
            softcap: scoring.softcap.unwrap_or(0.0),
            window: scoring.window.map_or(u32::MAX, |window| window as u32),
            slopes: numbers
                .map(|numbers| Buffer::from_slice(device, &numbers.collect::<Vec<_>>()))
                .transpose()?,
            rounded: slopes.is_some_and(|slopes| slopes.iter().any(|slope| slope.rounded)),
            sinks: scoring
                .sinks
                .as_ref()
                .map(|sinks| Buffer::from_slice(device, sinks))
                .transpose()?,
        })
    }
}

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    /// Of the first new token.
    pub(crate) position: usize,
    pub(crate) tokens: usize,
}

impl Sequence {
    fn end(&self) -> usize {
        self.position + self.tokens
    }

    /// Pages that it has after the step.
    pub(crate) fn pages(&self) -> usize {
        self.end().div_ceil(PAGE_TOKENS)
    }
}

/// The sequences of a step as the kernels see them: made once, and the same for all blocks of a model.
#[derive(Debug)]
pub(crate) struct Sequences {
    tokens: usize,
    n_pages: usize,
    /// Position and first page of each token; then the tiles of few tokens, and those of many.
    words: Buffer<u32>,
    /// Where tiles begin in `words`, and how many there are.
    few: (usize, usize),
    many: (usize, usize),
    /// Rows of a tile of few tokens, and of many.
    few_rows: usize,
    many_rows: usize,
    /// Splits of the longest sequence with few tokens.
    max_splits: usize,
    /// Of splits that are joined afterwards.
    partials: Option<Buffer<f32>>,
}

impl Sequences {
    /// The new tokens of `sequences` come one after the other, and so do their pages in the table of each block.
    ///
    /// # Errors
    /// When the card has no memory for it.
    pub(crate) fn new(device: &Arc<Device>, heads: CardHeads, sequences: &[Sequence]) -> Result<Self, CudaError> {
        let group = heads.n_heads / heads.kv.n_kv_heads;
        let is_few = |sequence: &Sequence| sequence.tokens <= FEW_TOKENS || heads.kv.padded_dim() > MAX_MANY_DIM;
        let fews = || sequences.iter().filter(|sequence| is_few(sequence));
        let few_rows = match fews().map(|sequence| sequence.tokens * group).max().unwrap_or(0) {
            0 | 1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        let many_rows = many_rows(heads.kv.padded_dim(), device.shared_bytes());
        let max_splits = fews()
            .map(|sequence| sequence.end().div_ceil(SPLIT_KEYS))
            .max()
            .unwrap_or(0);
        let (mut words, mut few, mut many) = (Vec::new(), Vec::new(), Vec::new());
        let (mut first_token, mut first_page) = (0, 0);
        for sequence in sequences {
            for position in sequence.position..sequence.end() {
                words.extend([position as u32, first_page as u32]);
            }
            let (tiles, rows) = match is_few(sequence) {
                true => (&mut few, few_rows),
                false => (&mut many, many_rows),
            };
            let all = sequence.tokens * group;
            for first in (0..all).step_by(rows) {
                let partial = tiles.len() / TILE_WORDS * rows;
                let tile = [
                    first_page,
                    first_token,
                    sequence.position,
                    first,
                    rows.min(all - first),
                    partial,
                ];
                tiles.extend(tile.map(|number| number as u32));
            }
            first_token += sequence.tokens;
            first_page += sequence.pages();
        }
        let few_at = (words.len(), few.len() / TILE_WORDS);
        words.append(&mut few);
        let many_at = (words.len(), many.len() / TILE_WORDS);
        words.append(&mut many);
        let n_partials = few_at.1 * few_rows * heads.kv.n_kv_heads * max_splits * (heads.kv.padded_dim() + 2);
        let mut buffer = Buffer::temporary(device, words.len())?;
        buffer.upload(0, &words)?;
        Ok(Self {
            tokens: first_token,
            n_pages: first_page,
            words: buffer,
            few: few_at,
            many: many_at,
            few_rows,
            many_rows,
            max_splits,
            partials: match max_splits > 1 {
                true => Some(Buffer::temporary(device, n_partials)?),
                false => None,
            },
        })
    }

    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Pages of all sequences.
    pub(crate) fn n_pages(&self) -> usize {
        self.n_pages
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        self.words.device()
    }

    /// Position and first page of each token.
    pub(super) fn places(&self) -> View<'_, u32> {
        self.words.view(0..2 * self.tokens)
    }

    fn tiles(&self, (at, n): (usize, usize)) -> View<'_, u32> {
        self.words.view(at..at + n * TILE_WORDS)
    }
}

/// Queries that a block of threads has for many tokens with heads of `dim` numbers: as many as its shared memory has room
/// for. With the most numbers 32 take 71,168 bytes; cards of capability 7.5 have 65,536, all others that are used more.
fn many_rows(dim: usize, shared_bytes: usize) -> usize {
    match dim {
        ..=128 => 64,
        _ if many_shared(32, dim) * size_of::<f32>() <= shared_bytes => 32,
        _ => 16,
    }
}

/// Numbers in shared memory for many tokens.
fn many_shared(rows: usize, dim: usize) -> usize {
    (rows + MANY_KEYS) * (dim + PAD) + rows * (MANY_KEYS + PAD)
}

impl CardHeads {
    /// `queries` is `[tokens, n_heads, head_dim]` of all sequences, whose keys and values are in `pages`, those of all
    /// sequences one after the other: what is in there is not checked. `out` becomes the same shape.
    ///
    /// # Errors
    /// When the card refuses.
    ///
    /// # Panics
    /// If anything has another size.
    pub(crate) fn attend(
        self,
        scoring: &CardScoring,
        (sequences, pages): (&Sequences, View<'_, u64>),
        queries: View<'_, f32>,
        out: &mut ViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let size = sequences.tokens * self.n_heads * self.kv.head_dim;
        assert_eq!(queries.len(), size, "queries of other tokens");
        assert_eq!(out.len(), size, "room for other tokens");
        assert_eq!(pages.len(), sequences.n_pages, "pages of other sequences");
        let kernels = kernels(self.kv.dtype);
        let dim = self.kv.padded_dim();
        let launch = |kernel, tiles, blocks: u32, shared: usize| {
            let (_, n_tiles) = tiles;
            let arguments = self.arguments(scoring, (sequences, pages), sequences.tiles(tiles), (queries, &*out));
            let grid = Grid {
                blocks: [blocks, self.kv.n_kv_heads as u32, n_tiles as u32],
                threads: THREADS as u32,
                shared_bytes: (shared * size_of::<f32>()) as u32,
            };
            sequences.device().launch(kernel, grid, &arguments)
        };
        if sequences.few.1 > 0 {
            let rows = sequences.few_rows;
            let kernel = match rows {
                1 => kernels[0],
                4 => kernels[1],
                _ => kernels[2],
            };
            // At most 8 numbers of a value per thread.
            let sums = THREADS * if self.kv.dtype == KvDType::F32 { 4 } else { 8 };
            let shared = rows * (dim + SPLIT_KEYS + 2 * WARPS) + sums;
            launch(kernel, sequences.few, sequences.max_splits as u32, shared)?;
            self.join(kernels[6], scoring, sequences, out)?;
        }
        if sequences.many.1 > 0 {
            let rows = sequences.many_rows;
            let kernel = match rows {
                64 => kernels[3],
                32 => kernels[4],
                _ => kernels[5],
            };
            launch(kernel, sequences.many, 1, many_shared(rows, dim))?;
        }
        Ok(())
    }

    fn arguments(
        self,
        scoring: &CardScoring,
        (sequences, pages): (&Sequences, View<'_, u64>),
        tiles: View<'_, u32>,
        (queries, out): (View<'_, f32>, &ViewMut<'_, f32>),
    ) -> [Argument; 15] {
        let optional = |buffer: &Option<Buffer<f32>>| buffer.as_ref().map_or(Argument::NULL, Argument::from);
        [
            queries.into(),
            pages.into(),
            tiles.into(),
            out.into(),
            optional(&sequences.partials),
            (self.n_heads as u32).into(),
            (self.kv.n_kv_heads as u32).into(),
            (self.kv.head_dim as u32).into(),
            (sequences.max_splits as u32).into(),
            scoring.scale.into(),
            scoring.softcap.into(),
            scoring.window.into(),
            optional(&scoring.slopes),
            i32::from(scoring.rounded).into(),
            optional(&scoring.sinks),
        ]
    }

    /// Joins what the splits of few tokens gave, where there are several.
    fn join(
        self,
        kernel: &'static str,
        scoring: &CardScoring,
        sequences: &Sequences,
        out: &ViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let Some(partials) = &sequences.partials else {
            return Ok(());
        };
        let grid = Grid {
            blocks: [
                sequences.few_rows as u32,
                self.kv.n_kv_heads as u32,
                sequences.few.1 as u32,
            ],
            threads: 128,
            shared_bytes: 0,
        };
        let arguments = [
            sequences.tiles(sequences.few).into(),
            partials.into(),
            out.into(),
            (self.n_heads as u32).into(),
            (self.kv.n_kv_heads as u32).into(),
            (self.kv.head_dim as u32).into(),
            (sequences.max_splits as u32).into(),
            scoring.window.into(),
            scoring.sinks.as_ref().map_or(Argument::NULL, Argument::from),
        ];
        sequences.device().launch(kernel, grid, &arguments)
    }
}

/// For few tokens with 1, 4 and 8 rows of a tile, for many with 64 rows of up to 128 numbers, and 32 and 16 of up to 256, and
/// what joins splits.
fn kernels(dtype: KvDType) -> [&'static str; 7] {
    macro_rules! kernels {
        ($program:literal) => {
            [
                concat!($program, "/few_1"),
                concat!($program, "/few_4"),
                concat!($program, "/few_8"),
                concat!($program, "/many_64"),
                concat!($program, "/many_32"),
                concat!($program, "/many_16"),
                concat!($program, "/join_splits"),
            ]
        };
    }
    match dtype {
        KvDType::F32 => kernels!("attention_f32"),
        KvDType::Bf16 => kernels!("attention_bf16"),
        KvDType::F16 => kernels!("attention_f16"),
        KvDType::Int8 => kernels!("attention_i8"),
    }
}

#[cfg(test)]
mod tests;
