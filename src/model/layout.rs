//! Which tensors of a checkpoint a block is made of: names, shapes, and which of their rows. Loading, downloading and
//! counting bytes all ask this one description. It reads nothing itself.

use super::{
    ModelConfig, WeightFormat,
    config::{
        packed::PackedWeights,
        parts::{FeedForwardConfig, NormKind, Residual},
    },
    family::{BlockNames, ExpertNames, FeedForwardNames, PlainExperts, QkvNames},
};

/// A matrix or vector that we compute with, as rows of a tensor in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    /// As in the checkpoint.
    pub(crate) name: String,
    /// As in the checkpoint: `[rows]`, `[rows, cols]`, or with the number of experts before these.
    pub(crate) shape: Vec<usize>,
    /// 1 for a vector.
    pub(crate) cols: usize,
    pub(crate) rows: Rows,
    pub(crate) packing: Packing,
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// One after the other, in the type that the file says.
    Plain,
    /// 4 bits each with a scale for every 32, in two tensors that are called `NAME_blocks` and `NAME_scales` (GPT-OSS).
    /// `shape` is that of the numbers.
    Mxfp4,
    /// Codes of 4 bits with scales and zeros of groups, in tensors that are called `qweight`, `scales` and `qzeros` instead
    /// of `weight` (GPTQ and AWQ). `shape` is that of the numbers.
    Grouped(PackedWeights),
}

/// Rows of a tensor whose dimensions but that of the columns are taken as one. Row `r` is stored row `start + (r / run) · stride + r % run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) start: usize,
    /// Rows that lie together.
    pub(crate) run: usize,
    /// From one run to the next.
    pub(crate) stride: usize,
    /// How many in all.
    pub(crate) count: usize,
}

impl Rows {
    /// `count` rows from `start` on.
    pub(crate) fn range(start: usize, count: usize) -> Self {
        Self {
            start,
            run: count,
            stride: count,
            count,
        }
    }

    /// Where row `row` is stored.
    pub(crate) fn stored(self, row: usize) -> usize {
        let run = self.run.max(1);
        self.start + row / run * self.stride + row % run
    }

    /// The first rows of the runs, as stored, and how many rows each has.
    pub(crate) fn runs(self) -> impl Iterator<Item = (usize, usize)> {
        let first_rows = (0..self.count).step_by(self.run.max(1));
        first_rows.enumerate().map(move |(i, first)| {
            let len = self.run.min(self.count - first);
            (self.start + i * self.stride, len)
        })
    }
}

impl TensorSpec {
    fn vector(name: String, len: usize) -> Self {
        Self {
            name,
            shape: vec![len],
            cols: 1,
            rows: Rows::range(0, len),
            packing: Packing::Plain,
        }
    }

    fn matrix(name: String, rows: usize, cols: usize) -> Self {
        Self {
            name,
            shape: vec![rows, cols],
            cols,
            rows: Rows::range(0, rows),
            packing: Packing::Plain,
        }
    }

    fn rows(&self, rows: Rows) -> Self {
        Self { rows, ..self.clone() }
    }

    /// Numbers that are taken.
    pub(crate) fn len(&self) -> usize {
        self.rows.count * self.cols
    }
}

/// A matrix and perhaps a bias.
#[derive(Clone, Debug)]
pub(crate) struct LinearSpec {
    pub(crate) weight: TensorSpec,
    pub(crate) bias: Option<TensorSpec>,
}

/// A norm; layer norms have a bias.
#[derive(Clone, Debug)]
pub(crate) struct NormSpec {
    pub(crate) weight: TensorSpec,
    pub(crate) bias: Option<TensorSpec>,
}

/// `down(activation(gate) · up)`, or without a gate.
#[derive(Clone, Debug)]
pub(crate) struct MlpSpec {
    pub(crate) gate: Option<LinearSpec>,
    pub(crate) up: LinearSpec,
    pub(crate) down: LinearSpec,
}

/// All tensors of a block, each where [`super::block::Block`] has it.
#[derive(Clone, Debug)]
pub(crate) struct BlockLayout {
    pub(crate) attention_norm: NormSpec,
    pub(crate) query: LinearSpec,
    pub(crate) key: LinearSpec,
    pub(crate) value: LinearSpec,
    /// Norms of the heads of queries and keys.
    pub(crate) qk_norm: Option<[NormSpec; 2]>,
    pub(crate) sinks: Option<TensorSpec>,
    pub(crate) output: LinearSpec,
    pub(crate) attention_post_norm: Option<NormSpec>,
    /// None where feed-forward reads what attention reads.
    pub(crate) mlp_norm: Option<NormSpec>,
    /// With `mlps`, one for each expert.
    pub(crate) router: Option<LinearSpec>,
    pub(crate) mlps: Vec<MlpSpec>,
    pub(crate) mlp_post_norm: Option<NormSpec>,
}

impl BlockLayout {
    /// The tensors of block `block_idx`. Where checkpoints differ in names, those are taken of which `exists` knows, the
    /// usual ones if it knows none.
    pub(crate) fn new(config: &ModelConfig, block_idx: u32, exists: &dyn Fn(&str) -> bool) -> Self {
        let names = config.family.block_names(config);
        let prefixes = config.family.block_prefixes(block_idx);
        let has_norm = |prefix: &&String| exists(&format!("{prefix}{}.weight", names.attention_norm));
        let prefix = prefixes.iter().find(has_norm).unwrap_or(&prefixes[0]);
        let mut layout = Namer { config, prefix, exists }.block(&names);
        if let Some(packed) = config.packed {
            // Any matrix may be left as it was.
            for weight in layout.packable().filter(|weight| !exists(&weight.name)) {
                weight.packing = Packing::Grouped(packed);
            }
        }
        layout
    }

    /// The matrices that those who pack weights take: all but routers.
    fn packable(&mut self) -> impl Iterator<Item = &mut TensorSpec> {
        let mlps = self.mlps.iter_mut().flat_map(|mlp| {
            let gate = mlp.gate.iter_mut();
            gate.chain([&mut mlp.up, &mut mlp.down])
        });
        let attention = [&mut self.query, &mut self.key, &mut self.value, &mut self.output];
        attention.into_iter().chain(mlps).map(|linear| &mut linear.weight)
    }

    /// Every weight matrix and its bias. Those of the router come first.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &LinearSpec> {
        let mlps = self
            .mlps
            .iter()
            .flat_map(|mlp| mlp.gate.iter().chain([&mlp.up, &mlp.down]));
        let attention = [&self.query, &self.key, &self.value, &self.output];
        self.router.iter().chain(attention).chain(mlps)
    }

    fn norms(&self) -> impl Iterator<Item = &NormSpec> {
        let optional = [&self.attention_post_norm, &self.mlp_norm, &self.mlp_post_norm];
        std::iter::once(&self.attention_norm)
            .chain(self.qk_norm.iter().flatten())
            .chain(optional.into_iter().flatten())
    }

    /// Every tensor; several may be parts of the same one.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        let linears = self.linears().map(|linear| (&linear.weight, &linear.bias));
        let norms = self.norms().map(|norm| (&norm.weight, &norm.bias));
        let pairs = linears.chain(norms);
        pairs
            .flat_map(|(weight, bias)| std::iter::once(weight).chain(bias))
            .chain(&self.sinks)
    }

    /// Every weight matrix.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &TensorSpec> {
        self.linears().map(|linear| &linear.weight)
    }

    /// Bytes of a block whose matrices are kept in `format` of each; the rest of it is f32.
    pub(crate) fn bytes(&self, format: impl Fn(&TensorSpec) -> WeightFormat) -> u64 {
        let packed: usize = self
            .matrices()
            .map(|matrix| format(matrix).bytes(matrix.rows.count, matrix.cols))
            .sum();
        let in_matrices: u64 = self.matrices().map(|matrix| matrix.len() as u64).sum();
        packed as u64 + (self.n_numbers() - in_matrices) * size_of::<f32>() as u64
    }

    /// How many numbers it has.
    pub(crate) fn n_numbers(&self) -> u64 {
        self.tensors().map(|tensor| tensor.len() as u64).sum()
    }
}

/// The tensors outside the blocks, each where [`super::ends::Ends`] has it.
#[derive(Clone, Debug)]
pub(crate) struct EndsLayout {
    pub(crate) embeddings: TensorSpec,
    pub(crate) embedding_norm: Option<NormSpec>,
    pub(crate) final_norm: NormSpec,
    /// None where the embeddings are the head.
    pub(crate) head: Option<LinearSpec>,
}

impl EndsLayout {
    /// As [`BlockLayout::new`].
    pub(crate) fn new(config: &ModelConfig, exists: &dyn Fn(&str) -> bool) -> Self {
        let names = config.family.end_names();
        let roots = config.family.roots();
        let has_norm = |root: &&&str| exists(&format!("{root}{}.weight", names.final_norm));
        let prefix = roots.iter().find(has_norm).copied().unwrap_or(roots[0]);
        let namer = Namer { config, prefix, exists };
        // Beside the model, not in it.
        let beside = prefix.strip_suffix("model.").filter(|rest| rest.ends_with('.'));
        let beside = Namer {
            prefix: beside.unwrap_or(""),
            ..namer
        };
        let (vocab, hidden, ends) = (config.vocab_size, config.hidden_size, config.ends);
        Self {
            embeddings: namer.linear(names.embeddings, false, vocab, hidden).weight,
            embedding_norm: ends.embedding_norm.then(|| namer.norm(names.embedding_norm, hidden)),
            final_norm: namer.norm(names.final_norm, hidden),
            head: (!ends.tie_word_embeddings).then(|| beside.linear(names.head, ends.head_bias, vocab, hidden)),
        }
    }

    /// Every tensor.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        let norms = self.embedding_norm.iter().chain([&self.final_norm]);
        let pairs = norms.map(|norm| (&norm.weight, &norm.bias));
        let pairs = pairs.chain(self.head.iter().map(|head| (&head.weight, &head.bias)));
        std::iter::once(&self.embeddings).chain(pairs.flat_map(|(weight, bias)| std::iter::once(weight).chain(bias)))
    }
}

/// Puts together what names a family has and what sizes a model has.
#[derive(Clone, Copy)]
struct Namer<'a> {
    config: &'a ModelConfig,
    prefix: &'a str,
    exists: &'a dyn Fn(&str) -> bool,
}

impl Namer<'_> {
    fn block(&self, names: &BlockNames) -> BlockLayout {
        let config = self.config;
        let attention = &config.attention;
        let post_norms = config.residual == Residual::SequentialPostNorm;
        let query_width = config.n_heads * config.head_dim;
        let [query, key, value] = self.qkv(&names.qkv);
        let (router, mlps) = self.feed_forward(&names.feed_forward);
        BlockLayout {
            attention_norm: self.norm(names.attention_norm, config.hidden_size),
            query,
            key,
            value,
            qk_norm: attention
                .qk_norm
                .then(|| names.qk_norm.map(|name| self.norm(name, config.head_dim))),
            sinks: attention
                .sinks
                .then(|| TensorSpec::vector(format!("{}{}", self.prefix, names.sinks), config.n_heads)),
            output: self.linear(names.output, attention.output_bias, config.hidden_size, query_width),
            attention_post_norm: post_norms.then(|| self.norm(names.attention_post_norm, config.hidden_size)),
            mlp_norm: (config.residual != Residual::Parallel).then(|| self.norm(names.mlp_norm, config.hidden_size)),
            router,
            mlps,
            mlp_post_norm: post_norms.then(|| self.norm(names.mlp_post_norm, config.hidden_size)),
        }
    }

    fn norm(&self, name: &str, width: usize) -> NormSpec {
        let tensor = |kind| TensorSpec::vector(format!("{}{name}.{kind}", self.prefix), width);
        NormSpec {
            weight: tensor("weight"),
            bias: (self.config.norm.kind == NormKind::LayerNorm).then(|| tensor("bias")),
        }
    }

    fn linear(&self, name: &str, bias: bool, rows: usize, cols: usize) -> LinearSpec {
        let name = format!("{}{name}", self.prefix);
        LinearSpec {
            weight: TensorSpec::matrix(format!("{name}.weight"), rows, cols),
            bias: bias.then(|| TensorSpec::vector(format!("{name}.bias"), rows)),
        }
    }

    fn qkv(&self, names: &QkvNames) -> [LinearSpec; 3] {
        let config = self.config;
        let (bias, hidden) = (config.attention.qkv_bias, config.hidden_size);
        let query_rows = config.n_heads * config.head_dim;
        let kv_rows = config.n_kv_heads * config.head_dim;
        let sizes = [query_rows, kv_rows, kv_rows];
        match names {
            QkvNames::Separate([query, key, value]) => [
                self.linear(query, bias, query_rows, hidden),
                self.linear(key, bias, kv_rows, hidden),
                self.linear(value, bias, kv_rows, hidden),
            ],
            QkvNames::Concatenated(name) => {
                let fused = self.linear(name, bias, query_rows + 2 * kv_rows, hidden);
                let starts = [0, query_rows, query_rows + kv_rows];
                [0, 1, 2].map(|i| fused.rows(Rows::range(starts[i], sizes[i])))
            }
            QkvNames::ByKvHead(name) => {
                let fused = self.linear(name, bias, query_rows + 2 * kv_rows, hidden);
                let (dim, group) = (config.head_dim, config.group_size());
                let runs = [(0, group * dim), (group * dim, dim), ((group + 1) * dim, dim)];
                [0, 1, 2].map(|i| {
                    fused.rows(Rows {
                        start: runs[i].0,
                        run: runs[i].1,
                        stride: (group + 2) * dim,
                        count: sizes[i],
                    })
                })
            }
        }
    }

    fn feed_forward(&self, names: &FeedForwardNames) -> (Option<LinearSpec>, Vec<MlpSpec>) {
        let FeedForwardConfig { bias, experts, .. } = self.config.feed_forward;
        let (inner, hidden) = (self.config.intermediate_size, self.config.hidden_size);
        match names {
            FeedForwardNames::Separate { gate, up, down } => {
                let mlp = MlpSpec {
                    gate: gate.map(|gate| self.linear(gate, bias, inner, hidden)),
                    up: self.linear(up, bias, inner, hidden),
                    down: self.linear(down, bias, hidden, inner),
                };
                (None, vec![mlp])
            }
            FeedForwardNames::GateUp { gate_up, down } => {
                let fused = self.linear(gate_up, bias, 2 * inner, hidden);
                let mlp = MlpSpec {
                    gate: Some(fused.rows(Rows::range(0, inner))),
                    up: fused.rows(Rows::range(inner, inner)),
                    down: self.linear(down, bias, hidden, inner),
                };
                (None, vec![mlp])
            }
            FeedForwardNames::Experts { router, experts: names } => {
                let (n_experts, router_bias) =
                    experts.map_or((1, false), |experts| (experts.n_experts, experts.router_bias));
                let router = self.linear(router, router_bias, n_experts, hidden);
                let mlps = (0..n_experts).map(|expert| match names {
                    ExpertNames::Plain(names) => self.expert(names, expert, n_experts),
                    ExpertNames::Mxfp4(names) => self.packed_expert(*names, expert, n_experts),
                });
                (Some(router), mlps.collect())
            }
        }
    }

    /// One tensor for each matrix, or one for the matrices of all experts.
    fn expert(&self, names: &PlainExperts, expert: usize, n_experts: usize) -> MlpSpec {
        let (inner, hidden) = (self.config.intermediate_size, self.config.hidden_size);
        let folder = names.folder;
        let [gate_up, down] = names.fused.map(|name| format!("{}{folder}{name}", self.prefix));
        if !(self.exists)(&gate_up) {
            let linear = |name: &str, rows, cols| self.linear(&format!("{folder}{expert}.{name}"), false, rows, cols);
            return MlpSpec {
                gate: Some(linear(names.gate, inner, hidden)),
                up: linear(names.up, inner, hidden),
                down: linear(names.down, hidden, inner),
            };
        }
        let of_all = |name, rows, cols| LinearSpec {
            weight: TensorSpec {
                shape: vec![n_experts, rows, cols],
                ..TensorSpec::matrix(name, rows, cols)
            },
            bias: None,
        };
        let (gate_up, first) = (of_all(gate_up, 2 * inner, hidden), expert * 2 * inner);
        MlpSpec {
            gate: Some(gate_up.rows(Rows::range(first, inner))),
            up: gate_up.rows(Rows::range(first + inner, inner)),
            down: of_all(down, hidden, inner).rows(Rows::range(expert * hidden, hidden)),
        }
    }

    /// MXFP4, the rows of gate and up by turns, biases in tensors of their own.
    fn packed_expert(&self, names: [&str; 2], expert: usize, n_experts: usize) -> MlpSpec {
        let (inner, hidden) = (self.config.intermediate_size, self.config.hidden_size);
        let [gate_up, down] = names.map(|name| format!("{}{name}", self.prefix));
        let of_all = |name: &str, rows, cols| LinearSpec {
            bias: Some(TensorSpec {
                shape: vec![n_experts, rows],
                ..TensorSpec::vector(format!("{name}_bias"), rows)
            }),
            weight: TensorSpec {
                shape: vec![n_experts, rows, cols],
                packing: Packing::Mxfp4,
                ..TensorSpec::matrix(name.to_owned(), rows, cols)
            },
        };
        let gate_up = of_all(&gate_up, 2 * inner, hidden);
        let every_second = |first: usize| Rows {
            start: expert * 2 * inner + first,
            run: 1,
            stride: 2,
            count: inner,
        };
        MlpSpec {
            gate: Some(gate_up.rows(every_second(0))),
            up: gate_up.rows(every_second(1)),
            down: of_all(&down, hidden, inner).rows(Rows::range(expert * hidden, hidden)),
        }
    }
}

impl LinearSpec {
    fn rows(&self, rows: Rows) -> Self {
        Self {
            weight: self.weight.rows(rows),
            bias: self.bias.as_ref().map(|bias| bias.rows(rows)),
        }
    }
}
