//! The decoder block, in the order of the paper. A family chooses its parts and their names; it adds no code here.

use rayon::prelude::*;

use super::{
    LoadError, ModelConfig,
    attention::{Heads, Queries},
    cpu::{rms_norm, silu_times},
    kv::Row,
    linear::{Linear, WORTH_THREADS},
    load::TensorReader,
    rope::{Angles, Rope},
};

/// What a family calls the tensors of a block, after the block's prefix and before `.weight` and `.bias`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockNames {
    pub(crate) attention_norm: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) output: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
}

/// The weights of one block. Norms are f32, whatever the matrices are.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    pub(crate) mlp_norm: Vec<f32>,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// What all blocks of a model share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) heads: Heads,
    pub(crate) rope: Rope,
    pub(crate) rms_eps: f32,
}

/// Consecutive new tokens of one sequence, and where its keys and values are kept.
#[derive(Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) row: &'a mut Row,
    /// Of the first token.
    pub(crate) position: usize,
    pub(crate) tokens: usize,
    /// Tokens of the sequence after the whole step, of which this may be a part.
    pub(crate) sequence_len: usize,
}

impl Block {
    /// Reads block `block_idx` of a checkpoint.
    ///
    /// # Errors
    /// The first tensor that is missing or not as the configuration says.
    pub(crate) fn load(reader: &mut TensorReader<'_>, config: &ModelConfig, block_idx: u32) -> Result<Self, LoadError> {
        let names = config.family.block_names();
        let prefix = config.family.block_prefix(block_idx);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let query_width = config.n_heads * config.head_dim;
        let kv_width = config.n_kv_heads * config.head_dim;
        let mut linear = |name: &str, bias: bool, rows: usize, cols: usize| {
            Ok::<_, LoadError>(Linear {
                weight: reader.matrix(&format!("{prefix}{name}.weight"), rows, cols)?,
                bias: bias
                    .then(|| reader.vector(&format!("{prefix}{name}.bias"), rows))
                    .transpose()?,
            })
        };
        let (attention_bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        let query = linear(names.query, attention_bias, query_width, hidden)?;
        let key = linear(names.key, attention_bias, kv_width, hidden)?;
        let value = linear(names.value, attention_bias, kv_width, hidden)?;
        let output = linear(names.output, attention_bias, hidden, query_width)?;
        let gate = linear(names.gate, mlp_bias, inner, hidden)?;
        let up = linear(names.up, mlp_bias, inner, hidden)?;
        let down = linear(names.down, mlp_bias, hidden, inner)?;
        let mut norm = |name: &str| reader.vector(&format!("{prefix}{name}.weight"), hidden);
        Ok(Self {
            attention_norm: norm(names.attention_norm)?,
            query,
            key,
            value,
            output,
            mlp_norm: norm(names.mlp_norm)?,
            gate,
            up,
            down,
        })
    }

    /// Replaces `x`, `[tokens, hidden]` of all segments one after the other, by the block's output. Keys and values
    /// are cached before anything attends to them.
    pub(crate) fn run(&self, shared: &Shared, x: &mut [f32], segments: &mut [Segment<'_>]) {
        let normed = norm(x, &self.attention_norm, shared.rms_eps);
        let attended = self.attend(shared, &normed, segments);
        add(x, &self.output.apply(shared.heads.kernels, &attended));

        let normed = norm(x, &self.mlp_norm, shared.rms_eps);
        add(x, &self.feed_forward(shared, &normed));
    }

    fn attend(&self, shared: &Shared, x: &[f32], segments: &mut [Segment<'_>]) -> Vec<f32> {
        let heads = shared.heads;
        let mut queries = self.query.apply(heads.kernels, x);
        let mut keys = self.key.apply(heads.kernels, x);
        let values = self.value.apply(heads.kernels, x);

        let mut angles = Angles::new(&shared.rope);
        for segment in segments.iter() {
            let positions = segment.position..segment.position + segment.tokens;
            angles.push(&shared.rope, positions, segment.sequence_len);
        }
        rotate(&angles, heads.kv.head_dim, self.query.weight.rows(), &mut queries);
        rotate(&angles, heads.kv.head_dim, self.key.weight.rows(), &mut keys);

        let (mut keys, mut values) = (keys.as_slice(), values.as_slice());
        for segment in segments.iter_mut() {
            let len = segment.tokens * self.key.weight.rows();
            let (new_keys, keys_left) = keys.split_at(len);
            let (new_values, values_left) = values.split_at(len);
            (keys, values) = (keys_left, values_left);
            segment.row.write(heads.kv, segment.position, new_keys, new_values);
        }
        let sequences: Vec<Queries<'_>> = segments
            .iter()
            .map(|segment| Queries {
                row: segment.row,
                position: segment.position,
                tokens: segment.tokens,
            })
            .collect();
        heads.attend(&sequences, &queries)
    }

    fn feed_forward(&self, shared: &Shared, x: &[f32]) -> Vec<f32> {
        let kernels = shared.heads.kernels;
        let mut gate = self.gate.apply(kernels, x);
        let up = self.up.apply(kernels, x);
        if gate.len() < WORTH_THREADS {
            silu_times(&mut gate, &up);
        } else {
            const SHARE: usize = 1 << 14;
            let shares = gate.par_chunks_mut(SHARE).zip(up.par_chunks(SHARE));
            shares.for_each(|(gate, up)| silu_times(gate, up));
        }
        self.down.apply(kernels, &gate)
    }

    /// Bytes of f32 activations that [`Block::run`] holds at a time for each token.
    pub(crate) fn scratch_bytes_per_token(&self) -> usize {
        let hidden = self.output.weight.rows();
        let attention = 4 * self.query.weight.rows() + 2 * self.key.weight.rows();
        let feed_forward = 2 * self.gate.weight.rows();
        size_of::<f32>() * (2 * hidden + attention.max(feed_forward))
    }
}

fn norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (out, x) in out.chunks_exact_mut(weight.len()).zip(x.chunks_exact(weight.len())) {
        rms_norm(x, weight, eps, out);
    }
    out
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Turns every head of every token; `width` is that of all heads of a token.
fn rotate(angles: &Angles, head_dim: usize, width: usize, data: &mut [f32]) {
    for (token, heads) in data.chunks_exact_mut(width).enumerate() {
        for head in heads.chunks_exact_mut(head_dim) {
            angles.rotate(token, head);
        }
    }
}
