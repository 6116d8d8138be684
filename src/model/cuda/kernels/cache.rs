//! Keys and values into pages on a card, turned by their positions on the way, and queries turned in place.

use super::attention::Sequences;
use crate::model::{
    cuda::{
        CudaError,
        launch::{Argument, Grid},
        memory::{View, ViewMut},
    },
    kv::{KvDType, KvShape, PAGE_TOKENS},
};

const THREADS: u32 = 256;
const WARP: usize = 32;

/// The heads of a model: of queries, and what is cached of those of keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CardHeads {
    pub(crate) n_heads: usize,
    pub(crate) kv: KvShape,
}

/// Bytes of a page on a card, as `pages.cuh` lays it out. Pages must begin at multiples of 16.
pub(crate) fn page_bytes(shape: KvShape) -> usize {
    let numbers = 2 * PAGE_TOKENS * shape.padded_dim() * shape.dtype.size();
    let scales = match shape.dtype {
        KvDType::Int8 => 2 * PAGE_TOKENS * size_of::<f32>(),
        KvDType::F32 | KvDType::Bf16 | KvDType::F16 => 0,
    };
    shape.n_kv_heads * (numbers + scales)
}

impl CardHeads {
    /// Turns `queries`, `[tokens, n_heads, head_dim]`, and writes keys, turned, and values, each
    /// `[tokens, n_kv_heads, head_dim]`, to the pages of their sequences. `angles` is `[tokens, 2, half]`, cosines and sines of
    /// the first `2 · half` numbers of a head. `pages` are the addresses of all sequences' pages in this block: what is in
    /// there is not checked.
    ///
    /// # Errors
    /// When the card refuses.
    ///
    /// # Panics
    /// If anything has another size.
    pub(crate) fn cache(
        self,
        (sequences, pages): (&Sequences, View<'_, u64>),
        angles: Option<View<'_, f32>>,
        queries: &mut ViewMut<'_, f32>,
        [keys, values]: [View<'_, f32>; 2],
    ) -> Result<(), CudaError> {
        let tokens = sequences.tokens();
        let KvShape {
            dtype,
            n_kv_heads,
            head_dim,
        } = self.kv;
        assert_eq!(
            queries.len(),
            tokens * self.n_heads * head_dim,
            "queries of other tokens"
        );
        assert_eq!(keys.len(), tokens * n_kv_heads * head_dim, "keys of other tokens");
        assert_eq!(values.len(), keys.len(), "values of other tokens");
        assert_eq!(pages.len(), sequences.n_pages(), "pages of other sequences");
        let half = angles.map_or(0, |angles| angles.len() / (2 * tokens.max(1)));
        assert!(2 * half <= head_dim, "angles of larger heads");
        let kernel = match dtype {
            KvDType::F32 => "cache/cache_f32",
            KvDType::Bf16 => "cache/cache_bf16",
            KvDType::F16 => "cache/cache_f16",
            KvDType::Int8 => "cache/cache_i8",
        };
        let warps = tokens * (self.n_heads + n_kv_heads);
        let grid = Grid {
            blocks: [(warps * WARP).div_ceil(THREADS as usize) as u32, 1, 1],
            threads: THREADS,
            shared_bytes: 0,
        };
        let arguments = [
            (&*queries).into(),
            keys.into(),
            values.into(),
            angles.map_or(Argument::NULL, Argument::from),
            (half as u32).into(),
            sequences.places().into(),
            pages.into(),
            (self.n_heads as u32).into(),
            (n_kv_heads as u32).into(),
            (head_dim as u32).into(),
            (tokens as u32).into(),
        ];
        sequences.device().launch(kernel, grid, &arguments)
    }
}
