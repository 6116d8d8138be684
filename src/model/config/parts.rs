//! The parts that blocks and ends of all families are put together from. Descriptions only: `block.rs`, `attention.rs`
//! and `ends.rs` compute them. Sizes are counts of numbers.

use super::rope::RopeConfig;

/// How activations are brought to one size before a part of the block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// Which one.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
}

/// The kinds of norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) · w`
    Rms,
    /// `x / rms(x) · (1 + w)` (Gemma)
    RmsUnitOffset,
    /// `(x - mean(x)) / deviation(x) · w + b`
    LayerNorm,
}

/// How attention and feed-forward are added to what flows through the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += attention(norm(x))`, then `x += feed_forward(norm(x))`.
    Sequential,
    /// As `Sequential`, with a norm after each of the two parts as well (Gemma 2 and 3).
    SequentialPostNorm,
    /// `x += attention(y) + feed_forward(y)` with `y = norm(x)` (Phi-2, Falcon 7B).
    Parallel,
    /// As `Parallel`, with a norm of its own for each of the two parts (Falcon 40B and 180B).
    ParallelTwoNorms,
}

impl Residual {
    /// Attention and feed-forward read the same `x`.
    pub fn is_parallel(self) -> bool {
        matches!(self, Self::Parallel | Self::ParallelTwoNorms)
    }
}

/// What attention is besides its heads.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// How it knows where tokens are.
    pub position: Position,
    /// Multiplies query · key.
    pub scale: f32,
    /// Scores become `softcap · tanh(score / softcap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Blocks in which a query sees the latest tokens only.
    pub sliding: Option<SlidingWindow>,
    /// One learned score per query head takes part in the softmax and has no value (GPT-OSS).
    pub sinks: bool,
    /// Query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// The output projection has a bias.
    pub output_bias: bool,
    /// Each head of queries and keys is normed before it is rotated (Qwen3, Gemma 3).
    pub qk_norm: bool,
}

/// How attention knows where tokens are.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// Queries and keys are rotated.
    Rotary(RopeConfig),
    /// Scores grow with the position of the key.
    Alibi(AlibiKind),
}

/// Two ways to compute `slope · position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlibiKind {
    /// In f32, added to the scaled product of query and key (BLOOM).
    Exact,
    /// Slope, position and product are rounded to bfloat16; added before the product is scaled (Falcon RW, transformers
    /// `modeling_falcon.py: build_alibi_tensor`).
    Bfloat16,
}

/// Blocks in which a query sees itself and the `tokens - 1` tokens before it.
#[derive(Clone, Debug, PartialEq)]
pub struct SlidingWindow {
    /// Width.
    pub tokens: usize,
    /// For each block of the model, whether it is one of them.
    pub blocks: Vec<bool>,
    /// The rotation of these blocks, where it is not that of the others (Gemma 3).
    pub rope: Option<RopeConfig>,
}

/// The feed-forward part.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForwardConfig {
    /// Between the projections.
    pub activation: Activation,
    /// `down(activation(gate(x)) · up(x))`, otherwise `down(activation(up(x)))`.
    pub gated: bool,
    /// The projections have biases.
    pub bias: bool,
    /// There are several, and each token goes through some of them.
    pub experts: Option<ExpertsConfig>,
}

/// The non-linear function inside a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// With the error function.
    Gelu,
    /// Its approximation with the hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `g / (1 + e^(-1.702 g)) · (u + 1)` with `g = min(gate, limit)` and `u` between `-limit` and `limit` (GPT-OSS).
    ClampedSwiglu {
        /// Bound.
        limit: f32,
    },
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// How many there are.
    pub n_experts: usize,
    /// How many each token goes through.
    pub experts_per_token: usize,
    /// How they are chosen and weighted.
    pub routing: Routing,
    /// The router has a bias.
    pub router_bias: bool,
}

/// How the scores of a router become weights of experts; always in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Softmax over all experts, of which the largest are taken.
    SoftmaxAll,
    /// Softmax over the largest alone, which is the same as dividing their shares of all by the sum of these.
    SoftmaxChosen,
}

/// What a client computes around the blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndsConfig {
    /// Embeddings are multiplied by this, rounded to the weights' type (Gemma).
    pub embedding_scale: Option<f32>,
    /// Embeddings are normed (BLOOM).
    pub embedding_norm: bool,
    /// The head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// The head has a bias (Phi-2).
    pub head_bias: bool,
    /// Logits become `softcap · tanh(logit / softcap)` (Gemma 2).
    pub logit_softcap: Option<f32>,
}
