//! One description of the models of all families: sizes, and which parts they are put together from (`config/parts.rs`).
//! The keys of a family's `config.json` are read in `family/`.

pub(crate) mod packed;
pub(crate) mod parts;
pub(crate) mod read;
pub(crate) mod rope;

use packed::PackedWeights;
use parts::{AttentionConfig, EndsConfig, FeedForwardConfig, NormConfig, Position, Residual};
use read::{optional, with_rope_outside};
use rope::{RopeConfig, RopeScaling};
use serde_json::{Map, Value};

use super::{
    ConfigError, Family, WeightFormat,
    kv::{KvDType, KvShape},
    layout::{BlockLayout, EndsLayout},
};

/// The number type of weights and cached keys and values. Activations are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightDType {
    /// 4 bytes, IEEE single.
    F32,
    /// 2 bytes, the upper half of an f32.
    Bf16,
    /// 2 bytes, IEEE half.
    F16,
}

impl WeightDType {
    /// As Petals announces it (`torch_dtype` of a server's record).
    pub fn as_torch_str(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// The inverse of [`WeightDType::as_torch_str`]; `None` for every other name.
    pub fn from_torch_str(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16]
            .into_iter()
            .find(|dtype| dtype.as_torch_str() == name)
    }

    /// The nearest number of this type.
    pub(crate) fn round(self, number: f32) -> f32 {
        match self {
            Self::F32 => number,
            Self::Bf16 => half::bf16::from_f32(number).to_f32(),
            Self::F16 => half::f16::from_f32(number).to_f32(),
        }
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// The shape of a model and of its blocks. Sizes are counts of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which block it is made of.
    pub family: Family,
    /// Transformer blocks in the whole model.
    pub n_blocks: u32,
    /// Width of the activations between blocks.
    pub hidden_size: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Numbers per head; explicit in some configurations, else `hidden_size / n_heads`.
    pub head_dim: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// All norms.
    pub norm: NormConfig,
    /// The order of the parts of a block.
    pub residual: Residual,
    /// Attention, besides its heads.
    pub attention: AttentionConfig,
    /// Feed-forward part; `intermediate_size` is its width, or that of each expert.
    pub feed_forward: FeedForwardConfig,
    /// What comes before and after the blocks.
    pub ends: EndsConfig,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; any of them does.
    pub eos_token_ids: Vec<u32>,
    /// The type the checkpoint was saved in, if it is said and one of ours.
    pub torch_dtype: Option<WeightDType>,
    /// How the matrices of its blocks are packed, if they are.
    pub packed: Option<PackedWeights>,
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Not JSON, an unknown `model_type`, a missing size, or sizes that do not fit together.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let raw: Map<String, Value> = serde_json::from_slice(json).map_err(ConfigError::Json)?;
        let model_type: String = optional(&raw, "model_type")?.unwrap_or_default();
        let raw = with_rope_outside(&raw)?;
        let mut config = Family::of_model_type(&model_type)?.read_config(&raw)?;
        config.packed = packed::read(&raw)?;
        config.check()?;
        Ok(config)
    }

    /// The dtype `--dtype auto` means: the checkpoint's own, but bfloat16 where that is float32 or not said
    /// (Petals `server/block_utils.py: resolve_block_dtype`).
    pub fn auto_dtype(&self) -> WeightDType {
        match self.torch_dtype {
            Some(dtype) if dtype != WeightDType::F32 => dtype,
            _ => WeightDType::Bf16,
        }
    }

    /// Bytes of K and V for one token of one sequence in one block, kept as `dtype`.
    pub fn cache_bytes_per_token(&self, dtype: KvDType) -> usize {
        KvShape::new(self, dtype).bytes_per_token()
    }

    /// How many weights a block has: those that the loader would read.
    pub fn numbers_per_block(&self) -> u64 {
        BlockLayout::new(self, 0, &|_| false).n_numbers()
    }

    /// Bytes that a block takes in memory with its matrices in `format`.
    pub fn block_bytes(&self, format: WeightFormat) -> u64 {
        BlockLayout::new(self, 0, &|_| false).bytes(|_| format)
    }

    /// Bytes of a block's weights that one token reads: of experts, those that it is sent to.
    pub fn bytes_read_per_token(&self, format: WeightFormat) -> u64 {
        let mut layout = BlockLayout::new(self, 0, &|_| false);
        if let Some(experts) = self.feed_forward.experts {
            layout.mlps.truncate(experts.experts_per_token);
        }
        layout.bytes(|_| format)
    }

    /// How many weights the whole model has.
    pub fn n_parameters(&self) -> u64 {
        let ends = EndsLayout::new(self, &|_| false);
        let in_ends: u64 = ends.tensors().map(|tensor| tensor.len() as u64).sum();
        u64::from(self.n_blocks) * self.numbers_per_block() + in_ends
    }

    /// What the processor's matrices take that are to be multiplied as `format`: those of a checkpoint of 16 bits are not
    /// widened to float32 before they are multiplied. Bf16 counts with all its bits, which most weights do not take.
    pub fn kept_on_host(&self, format: WeightFormat) -> WeightFormat {
        match self.torch_dtype {
            Some(stored) if format == WeightFormat::F32 => stored.into(),
            _ => format,
        }
    }

    /// Bytes of activations while up to `max_tokens` tokens are computed: a handful of vectors of each width per token, and
    /// no more than `max_chunk_bytes` of them; and the tokens themselves. What passes over whole sequences hold comes on top
    /// of that.
    pub fn scratch_bytes(&self, max_tokens: usize, max_chunk_bytes: usize) -> u64 {
        let per_token = (6 * self.hidden_size + 2 * self.intermediate_size) * size_of::<f32>();
        let activations = max_tokens.saturating_mul(per_token).min(max_chunk_bytes);
        let request = max_tokens.saturating_mul(self.hidden_size * size_of::<f32>());
        activations.saturating_add(request) as u64
    }

    /// Query heads per key/value head.
    pub fn group_size(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The longest text the model was made for, in tokens, stretched as vLLM derives `max_model_len`; `None` if positions
    /// are not counted.
    pub fn context_length(&self) -> Option<usize> {
        let Position::Rotary(rope) = &self.attention.position else {
            return None;
        };
        let stretched = |positions: usize, factor: f32| (positions as f32 * factor.max(1.0)) as usize;
        let stretched = match &rope.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => stretched(rope.max_positions, *factor),
            RopeScaling::Yarn {
                factor,
                original_max_positions,
                ..
            } => stretched(*original_max_positions, *factor),
            RopeScaling::Default | RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } => 0,
        };
        Some(stretched.max(rope.max_positions))
    }

    /// The rotation in block `block_idx`; `None` if positions are told otherwise.
    pub fn rope(&self, block_idx: u32) -> Option<&RopeConfig> {
        let sliding = self.attention.sliding.as_ref();
        let local = sliding.filter(|_| self.window(block_idx).is_some());
        match (
            local.and_then(|sliding| sliding.rope.as_ref()),
            &self.attention.position,
        ) {
            (Some(rope), _) | (None, Position::Rotary(rope)) => Some(rope),
            (None, Position::Alibi(_)) => None,
        }
    }

    /// How many tokens a query of block `block_idx` sees, itself included; `None` for all before it.
    pub fn window(&self, block_idx: u32) -> Option<usize> {
        let sliding = self.attention.sliding.as_ref()?;
        let slides = sliding.blocks.get(block_idx as usize).copied().unwrap_or(false);
        slides.then_some(sliding.tokens)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut sizes = vec![
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
        ];
        if let Some(sliding) = &self.attention.sliding {
            sizes.push(("sliding_window", sliding.tokens));
        }
        let mut parts = vec![("num_hidden_layers", self.n_blocks as usize)];
        if let Some(experts) = &self.feed_forward.experts {
            parts.push(("num_experts", experts.n_experts));
            parts.push(("num_experts_per_tok", experts.experts_per_token));
        }
        let sizes = sizes.into_iter().map(|(field, size)| (field, size, MAX_SIZE));
        let parts = parts.into_iter().map(|(field, size)| (field, size, MAX_PARTS));
        for (field, size, max) in sizes.chain(parts) {
            if size == 0 || size > max {
                return Err(ConfigError::Value {
                    field,
                    problem: "is out of range",
                });
            }
        }
        let value = |field, problem| Err(ConfigError::Value { field, problem });
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return value("num_key_value_heads", "does not divide num_attention_heads");
        }
        if !(self.norm.eps.is_finite() && self.norm.eps >= 0.0) {
            return value("rms_norm_eps", "is not a number >= 0");
        }
        if !(self.attention.scale.is_finite() && self.attention.scale > 0.0) {
            return value("query_pre_attn_scalar", "is not a number > 0");
        }
        let experts = self.feed_forward.experts;
        if experts.is_some_and(|experts| experts.experts_per_token > experts.n_experts) {
            return value("num_experts_per_tok", "is more than there are experts");
        }
        let position = match &self.attention.position {
            Position::Rotary(rope) => Some(rope),
            Position::Alibi(_) => None,
        };
        let local = self
            .attention
            .sliding
            .as_ref()
            .and_then(|sliding| sliding.rope.as_ref());
        position
            .into_iter()
            .chain(local)
            .try_for_each(|rope| rope.check(self.head_dim))
    }
}

/// No published model has a dimension near this; it keeps products of two sizes far from overflow.
const MAX_SIZE: usize = 1 << 28;
/// Nor so many blocks, or experts in one: each of them is described before any of it is read.
const MAX_PARTS: usize = 1 << 14;

#[cfg(test)]
mod tests;
