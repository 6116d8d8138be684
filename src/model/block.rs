//! The decoder block of all families, in the order of the paper: which parts it has is in its weights and in the
//! configuration. A family adds no code here.

use std::{cell::RefCell, sync::Arc};

use super::{
    LoadError, ModelConfig,
    attention::{self, Alibi, Heads, Scoring},
    config::parts::{Position, Residual},
    feed_forward::FeedForward,
    kv::{Arena, Row},
    layout::{BlockLayout, NormSpec},
    linear::{Linear, apply_each},
    load::TensorReader,
    lora::{AdapterId, BlockAdapter, Target, Updates},
    norm::Norm,
    rope::{Angles, Rope},
};

/// The weights of one block. Norms, biases and routers are f32, whatever the matrices are.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) residual: Residual,
    pub(crate) attention_norm: Norm,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    /// Norms of each head of queries and keys.
    pub(crate) qk_norm: Option<[Norm; 2]>,
    /// None where positions are told by scores.
    pub(crate) rope: Option<Rope>,
    pub(crate) scoring: Scoring,
    pub(crate) output: Linear,
    pub(crate) attention_post_norm: Option<Norm>,
    /// None where feed-forward reads what attention reads.
    pub(crate) mlp_norm: Option<Norm>,
    pub(crate) feed_forward: FeedForward,
    pub(crate) mlp_post_norm: Option<Norm>,
    /// By [`AdapterId`].
    pub(crate) adapters: Vec<BlockAdapter>,
}

/// What all blocks of a model share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) heads: Heads,
    /// Where caches take their pages.
    pub(crate) arena: Arc<Arena>,
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
    /// What its sequence goes through besides the frozen weights.
    pub(crate) adapter: Option<AdapterId>,
}

impl Block {
    /// Reads block `block_idx` of a checkpoint.
    ///
    /// # Errors
    /// The first tensor that is missing or not as the configuration says.
    pub(crate) fn load(reader: &mut TensorReader<'_>, config: &ModelConfig, block_idx: u32) -> Result<Self, LoadError> {
        let reader = RefCell::new(reader);
        let layout = BlockLayout::new(config, block_idx, &|tensor| reader.borrow_mut().exists(tensor));
        let reader = reader.into_inner();
        let query = reader.linear(&layout.query)?;
        let key = reader.linear(&layout.key)?;
        let value = reader.linear(&layout.value)?;
        let output = reader.linear(&layout.output)?;
        let feed_forward = FeedForward::load(reader, config, &layout)?;
        let sinks = layout.sinks.as_ref().map(|sinks| reader.vector(sinks)).transpose()?;
        let mut norm = |spec: &NormSpec| Norm::load(reader, config.norm, spec);
        Ok(Self {
            residual: config.residual,
            attention_norm: norm(&layout.attention_norm)?,
            qk_norm: match &layout.qk_norm {
                Some([query, key]) => Some([norm(query)?, norm(key)?]),
                None => None,
            },
            attention_post_norm: layout.attention_post_norm.as_ref().map(&mut norm).transpose()?,
            mlp_norm: layout.mlp_norm.as_ref().map(&mut norm).transpose()?,
            mlp_post_norm: layout.mlp_post_norm.as_ref().map(&mut norm).transpose()?,
            query,
            key,
            value,
            rope: config.rope(block_idx).map(Rope::new),
            scoring: scoring(config, block_idx, sinks),
            output,
            feed_forward,
            adapters: Vec::new(),
        })
    }

    /// Replaces `x`, `[tokens, hidden]` of all segments one after the other, by the block's output. Keys and values
    /// are cached before anything attends to them.
    pub(crate) fn run(
        &self,
        shared: &Shared,
        x: &mut [f32],
        segments: &mut [Segment<'_>],
        scratch: &mut attention::Scratch,
    ) {
        let engine = &shared.heads.engine;
        let updates = Updates::new(&self.adapters, segments);
        let mut normed = self.attention_norm.apply(x);
        let heads = self.attend(shared, &updates, &normed, (segments, scratch));
        let mut attended = self.output.applied(engine, &heads);
        updates.add(Target::Output, engine, &heads, &mut attended);
        if !self.residual.is_parallel() {
            add(x, &normed_by(self.attention_post_norm.as_ref(), attended));
            if let Some(norm) = &self.mlp_norm {
                normed = norm.apply(x);
            }
            let fed = self.feed_forward.run(engine, &updates, &normed);
            add(x, &normed_by(self.mlp_post_norm.as_ref(), fed));
        } else {
            if let Some(norm) = &self.mlp_norm {
                normed = norm.apply(x);
            }
            add(x, &attended);
            add(x, &self.feed_forward.run(engine, &updates, &normed));
        }
    }

    fn attend(
        &self,
        shared: &Shared,
        updates: &Updates<'_>,
        x: &[f32],
        (segments, scratch): (&mut [Segment<'_>], &mut attention::Scratch),
    ) -> Vec<f32> {
        let heads = &shared.heads;
        let engine = &heads.engine;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let projections = [&self.query, &self.key, &self.value];
        apply_each(engine, projections, x, [&mut queries, &mut keys, &mut values]);
        updates.add(Target::Query, engine, x, &mut queries);
        updates.add(Target::Key, engine, x, &mut keys);
        updates.add(Target::Value, engine, x, &mut values);

        if let Some([query_norm, key_norm]) = &self.qk_norm {
            queries = query_norm.apply(&queries);
            keys = key_norm.apply(&keys);
        }
        let angles = self.rope.as_ref().map(|rope| angles(rope, segments));
        let turn = |token: usize, head: &mut [f32]| {
            if let Some(angles) = &angles {
                angles.rotate(token, head);
            }
        };
        for (token, queries) in queries.chunks_exact_mut(self.query.weight.rows()).enumerate() {
            queries
                .chunks_exact_mut(heads.kv.head_dim)
                .for_each(|head| turn(token, head));
        }

        let (mut keys, mut values, mut first_token) = (keys.as_mut_slice(), values.as_slice(), 0);
        for segment in segments.iter_mut() {
            let len = segment.tokens * self.key.weight.rows();
            let (new_keys, keys_left) = keys.split_at_mut(len);
            let (new_values, values_left) = values.split_at(len);
            (keys, values) = (keys_left, values_left);
            let turn = |token: usize, head: &mut [f32]| turn(first_token + token, head);
            let row = &mut *segment.row;
            row.write(&shared.arena, segment.position, (new_keys, new_values), turn);
            first_token += segment.tokens;
        }
        let mut out = Vec::new();
        heads.attend(&self.scoring, (segments, &queries), scratch, &mut out);
        out
    }

    /// Bytes of f32 activations that [`Block::run`] holds at a time for each token.
    pub(crate) fn scratch_bytes_per_token(&self) -> usize {
        let hidden = self.output.weight.rows();
        let attention = 4 * self.query.weight.rows() + 2 * self.key.weight.rows();
        size_of::<f32>() * (3 * hidden + attention.max(self.feed_forward.scratch_per_token()))
    }
}

fn scoring(config: &ModelConfig, block_idx: u32, sinks: Option<Vec<f32>>) -> Scoring {
    let attention = &config.attention;
    Scoring {
        scale: attention.scale,
        softcap: attention.softcap,
        window: config.window(block_idx),
        alibi: match attention.position {
            Position::Alibi(kind) => Some(Alibi::new(config.n_heads, kind, attention.scale)),
            Position::Rotary(_) => None,
        },
        sinks,
    }
}

fn normed_by(norm: Option<&Norm>, x: Vec<f32>) -> Vec<f32> {
    match norm {
        Some(norm) => norm.apply(&x),
        None => x,
    }
}

fn angles(rope: &Rope, segments: &[Segment<'_>]) -> Angles {
    let mut angles = Angles::new(rope);
    for segment in segments {
        let positions = segment.position..segment.position + segment.tokens;
        angles.push(rope, positions, segment.sequence_len);
    }
    angles
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
