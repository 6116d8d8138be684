//! The decoder block of all families, in the order of the paper: which parts it has is in its weights and in the
//! configuration. A family adds no code here.

use std::{cell::RefCell, ops::Range, sync::Arc};

use super::{
    LoadError, ModelConfig,
    attention::{self, Alibi, Heads, Scoring},
    config::parts::{Position, Residual},
    cpu::{AT_A_TIME, Engine, Source, add, for_parts},
    feed_forward::{self, FeedForward},
    kv::{Arena, Row},
    layout::{BlockLayout, NormSpec},
    linear::{Linear, apply_each},
    load::TensorReader,
    lora::{self, AdapterId, BlockAdapter, Target, Updates},
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
    /// Where the caches of sessions take their pages.
    pub(crate) arena: Arc<Arena>,
    /// Where passes over whole sequences take theirs: it has none of its own, so that nothing is taken from sessions.
    pub(crate) passes: Arc<Arena>,
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
    pub(crate) fn run(&self, shared: &Shared, x: &mut [f32], segments: &mut [Segment<'_>], scratch: &mut Scratch) {
        let engine = &shared.heads.engine;
        let mut spans = std::mem::take(&mut scratch.spans);
        let updates = Updates::new(&self.adapters, segments, &mut spans);
        scratch.normed.resize(x.len(), 0.0);
        self.project(engine, updates, x, scratch);
        self.attend(shared, segments, scratch);
        let Scratch {
            normed,
            heads,
            out,
            feed_forward,
            ..
        } = scratch;
        let parallel = self.residual.is_parallel();
        if let (true, Some(norm)) = (parallel, &self.mlp_norm) {
            let width = norm.weight.len();
            for_parts(&engine.pool, x.len(), (normed, width), &|i, normed| {
                engine
                    .quant
                    .vectorise(|| norm.apply_to(&x[i * width..][..width], normed));
            });
        }
        let attended = Projection {
            linear: &self.output,
            target: Target::Output,
            norm: self.attention_post_norm.as_ref(),
        };
        attended.add_to(engine, updates, (heads, x), (out, &mut feed_forward.updates));

        let norm = |first: usize, out: &mut [f32]| norm_rows(engine, self.mlp_norm.as_ref(), (x, first), out);
        let source = match &self.mlp_norm {
            Some(_) if !parallel => Source::Made {
                make: &norm,
                first: 0,
                out: normed,
            },
            _ => Source::Ready(normed),
        };
        self.feed_forward.begin(engine, updates, source, feed_forward);
        match &self.feed_forward {
            FeedForward::Dense(mlp) => {
                let fed = Projection {
                    linear: &mlp.down,
                    target: Target::Down,
                    norm: self.mlp_post_norm.as_ref(),
                };
                let feed_forward::Scratch {
                    inner,
                    updates: buffers,
                    ..
                } = feed_forward;
                fed.add_to(engine, updates, (inner, x), (out, buffers));
            }
            FeedForward::Experts(experts) => {
                experts.mix(engine, normed, feed_forward, out);
                add_normed(engine, self.mlp_post_norm.as_ref(), out, x);
            }
        }
        scratch.spans = spans;
    }

    /// Queries, keys and values of all tokens. Leaves what attention reads in `scratch.normed`.
    fn project(&self, engine: &Engine, updates: Updates<'_>, x: &[f32], scratch: &mut Scratch) {
        let Scratch {
            normed,
            queries,
            keys,
            values,
            feed_forward,
            ..
        } = scratch;
        let norm = |first: usize, out: &mut [f32]| norm_rows(engine, Some(&self.attention_norm), (x, first), out);
        let source = Source::Made {
            make: &norm,
            first: 0,
            out: normed,
        };
        let projections = [&self.query, &self.key, &self.value];
        apply_each(engine, projections, source, [queries, keys, values]);
        for (target, out) in [(Target::Query, queries), (Target::Key, keys), (Target::Value, values)] {
            updates.add(target, engine, (normed, out), &mut feed_forward.updates);
        }
    }

    /// What the output projection gets, of what was projected: `scratch.heads`.
    fn attend(&self, shared: &Shared, segments: &mut [Segment<'_>], scratch: &mut Scratch) {
        let heads = &shared.heads;
        let engine = &heads.engine;
        let Scratch {
            queries,
            keys,
            values,
            angles,
            ..
        } = scratch;
        if let Some(rope) = &self.rope {
            angles.reset(rope);
            for segment in &*segments {
                let positions = segment.position..segment.position + segment.tokens;
                angles.push(rope, positions, segment.sequence_len, &engine.pool);
            }
        }
        let angles = self.rope.is_some().then_some(&*angles);
        let turn = |norm: Option<&Norm>, token: usize, head: &mut [f32]| {
            if let Some(norm) = norm {
                norm.apply_in_place(head);
            }
            if let Some(angles) = angles {
                angles.rotate(token, head);
            }
        };
        let [query_norm, key_norm] = self
            .qk_norm
            .as_ref()
            .map_or([None; 2], |norms| norms.each_ref().map(Some));
        let (mut keys, mut values, mut first_token) = (keys.as_slice(), values.as_slice(), 0);
        for segment in segments.iter_mut() {
            let len = segment.tokens * self.key.weight.rows();
            let (new_keys, keys_left) = keys.split_at(len);
            let (new_values, values_left) = values.split_at(len);
            (keys, values) = (keys_left, values_left);
            let turn = |token: usize, head: &mut [f32]| turn(key_norm, first_token + token, head);
            let row = &mut *segment.row;
            row.write(&engine.pool, segment.position, (new_keys, new_values, &turn));
            first_token += segment.tokens;
        }
        let turn = |token: usize, head: &mut [f32]| turn(query_norm, token, head);
        heads.attend(
            &self.scoring,
            (segments, queries, &turn),
            &mut scratch.attention,
            &mut scratch.heads,
        );
    }

    /// Bytes of f32 activations that [`Block::run`] holds at a time for each token.
    pub(crate) fn scratch_bytes_per_token(&self) -> usize {
        let hidden = self.output.weight.rows();
        let attention = 4 * self.query.weight.rows() + 2 * self.key.weight.rows();
        size_of::<f32>() * (3 * hidden + attention + self.feed_forward.scratch_per_token())
    }
}

/// Memory of a block's run that is used again: a warm run takes none.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// What attention or feed-forward read, `[tokens, hidden]`.
    normed: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    angles: Angles,
    attention: attention::Scratch,
    /// What attention gives.
    heads: Vec<f32>,
    feed_forward: feed_forward::Scratch,
    /// What is added to `x`, if it cannot be added at once.
    out: Vec<f32>,
    /// Which tokens want which adapter.
    spans: Vec<(Range<usize>, usize)>,
}

/// A projection whose outputs are added to what flows through the block, perhaps normed before.
struct Projection<'a> {
    linear: &'a Linear,
    target: Target,
    norm: Option<&'a Norm>,
}

impl Projection<'_> {
    /// `x += norm(linear(input) + update)`
    fn add_to(
        &self,
        engine: &Engine,
        updates: Updates<'_>,
        (input, x): (&[f32], &mut [f32]),
        (out, buffers): (&mut Vec<f32>, &mut lora::Buffers),
    ) {
        if self.norm.is_none() && !updates.change(&[self.target]) {
            return self.linear.add_to(engine, input, x);
        }
        self.linear.apply(engine, input, out);
        updates.add(self.target, engine, (input, out), buffers);
        add_normed(engine, self.norm, out, x);
    }
}

/// `out = norm(x)` of as many rows as `out` has, from row `first` on.
fn norm_rows(engine: &Engine, norm: Option<&Norm>, (x, first): (&[f32], usize), out: &mut [f32]) {
    let Some(norm) = norm else { return };
    let x = &x[first * norm.weight.len()..][..out.len()];
    engine.quant.vectorise(|| norm.apply_to(x, out));
}

/// `x += norm(y)`
fn add_normed(engine: &Engine, norm: Option<&Norm>, y: &[f32], x: &mut [f32]) {
    // Without a norm there are no rows to mind.
    let width = norm.map_or(AT_A_TIME, |norm| norm.weight.len());
    for_parts(&engine.pool, x.len(), (x, width), &|i, x| {
        let y = &y[i * width..][..x.len()];
        engine.quant.vectorise(|| match norm {
            Some(norm) => norm.add_to(y, x),
            None => add(x, y),
        });
    });
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
