//! Adapters as peft saves them: `adapter_config.json` and `adapter_model.safetensors`, in a folder or on a hub. Which
//! tensor belongs to which projection is told by its name.
//!
//! As Petals does (`utils/peft.py`) with three differences: a module is found by its whole path in the block, where
//! Petals looks for its last name anywhere in the key; `target_modules` may name it by more than its last name, as in
//! peft; and what we cannot apply to a block is an error, where Petals leaves it out. What is in no block is left out
//! here too, with a warning: it is clients that have the embedding and the head.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::warn;

use super::{AdapterError, BlockAdapter, LowRank, Target, f32_linear};
use crate::model::{
    Engine, HubOptions, ModelConfig, WeightFormat,
    hub::HubRepo,
    layout::{BlockLayout, LinearSpec},
};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What the blocks of a model are called in names of modules (peft `COMMON_LAYERS_PATTERN`).
const BLOCKS: [&str; 5] = ["layers", "h", "block", "blocks", "layer"];

/// What peft puts before the names of a model's modules.
const WRAPPED: &str = "base_model.model.";

/// Most modules to name in a warning, which is one line however many are left out.
const MAX_NAMED: usize = 3;

/// An adapter, read and not yet applied to anything.
#[derive(Clone)]
pub struct Adapter {
    name: String,
    config: Config,
    /// The whole file of weights.
    content: Arc<[u8]>,
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The keys of `adapter_config.json` that change what is computed.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    peft_type: String,
    lora_alpha: f32,
    target_modules: Option<Value>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    layer_replication: Option<Value>,
}

/// The two matrices of one module, by their names in the file.
#[derive(Default)]
struct Pair {
    a: Option<String>,
    b: Option<String>,
}

impl Adapter {
    /// Reads the adapter in a folder, or of a repository on a hub (from the cache if it is there). `NAME=FOLDER` gives the
    /// folder another name than its own; a repository has its own. Clients ask for adapters by these names.
    ///
    /// # Errors
    /// The files cannot be had, or the adapter is of a kind that we cannot apply.
    pub fn open(place: &str, hub: &HubOptions) -> Result<Self, AdapterError> {
        let (name, folder) = match place.split_once('=') {
            Some((name, folder)) => (name, Some(PathBuf::from(folder))),
            None => (place, Some(PathBuf::from(place)).filter(|folder| folder.is_dir())),
        };
        let Some(folder) = folder else {
            return Self::from_hub(name, hub);
        };
        let own_name = folder.file_name().and_then(|name| name.to_str());
        let name = if place == name { own_name.unwrap_or(name) } else { name };
        Self::read(name, &folder.join(CONFIG_FILE), &folder.join(WEIGHTS_FILE))
    }

    fn from_hub(name: &str, hub: &HubOptions) -> Result<Self, AdapterError> {
        let failed = |source| AdapterError::Hub {
            name: name.to_owned(),
            source: Box::new(source),
        };
        // The revision that may be named is the model's.
        let options = HubOptions {
            revision: None,
            ..hub.clone()
        };
        let mut repo = HubRepo::open(name, &options).map_err(failed)?;
        let config = repo.get(CONFIG_FILE).map_err(failed)?;
        let weights = repo.get(WEIGHTS_FILE).map_err(failed)?;
        Self::read(name, &config, &weights)
    }

    fn read(name: &str, config_path: &Path, weights: &Path) -> Result<Self, AdapterError> {
        let bytes = read(config_path)?;
        let config: Config = serde_json::from_slice(&bytes).map_err(|source| AdapterError::Config {
            path: config_path.to_owned(),
            source,
        })?;
        let adapter = Self {
            name: name.to_owned(),
            config,
            content: read(weights)?.into(),
        };
        adapter.check()?;
        if let Some(modules) = outside(&adapter.tensors()?) {
            warn!(
                adapter = name,
                modules, "modules in no block are left out: clients have the model's own"
            );
        }
        Ok(adapter)
    }

    /// What clients ask for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that its updates of a block of the model take in memory; of the block where they take most.
    pub fn block_bytes(&self, config: &ModelConfig) -> u64 {
        // It could be read when it was opened.
        let Ok(tensors) = self.tensors() else { return 0 };
        let of_block = |block_idx: u32| {
            let ranks: BTreeMap<&str, usize> = tensors
                .iter()
                .filter_map(|(key, matrix)| {
                    let module = inside_block(key, block_idx)?.strip_suffix(".lora_A.weight")?;
                    self.targets(key).then_some((module, *matrix.shape().first()?))
                })
                .collect();
            let layout = BlockLayout::new(config, block_idx, &|_| false);
            let updates = projections(&layout).into_iter().map(|(_, spec)| {
                let name = format!(".{}", spec.weight.name);
                let module = inside_block(&name, block_idx).and_then(|inside| inside.strip_suffix(".weight"));
                let rank = module.and_then(|module| ranks.get(module)).copied().unwrap_or(0);
                let (rows, cols) = (spec.weight.rows.count, spec.weight.cols);
                WeightFormat::F32.bytes(rank, cols) + WeightFormat::F32.bytes(rows, rank)
            });
            updates.sum::<usize>() as u64
        };
        (0..config.n_blocks).map(of_block).max().unwrap_or(0)
    }

    /// Bytes of its file, which stays in memory for blocks that are loaded later.
    pub fn file_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn check(&self) -> Result<(), AdapterError> {
        let config = &self.config;
        if config.peft_type != "LORA" {
            return Err(self.unsupported(format!("is of type {}", config.peft_type)));
        }
        if config.use_dora {
            return Err(self.unsupported("is a DoRA adapter".to_owned()));
        }
        if config.bias.as_deref().is_some_and(|bias| bias != "none") {
            return Err(self.unsupported("changes biases".to_owned()));
        }
        if config.alpha_pattern.as_ref().is_some_and(|pattern| !pattern.is_empty()) {
            return Err(self.unsupported("has an alpha_pattern".to_owned()));
        }
        if config
            .layer_replication
            .as_ref()
            .is_some_and(|layers| !layers.is_null())
        {
            return Err(self.unsupported("repeats blocks".to_owned()));
        }
        self.tensors().map(drop)
    }

    /// Its updates of block `block_idx`.
    ///
    /// # Errors
    /// Tensors that do not fit the block, or that change something other than its projections.
    pub(crate) fn block(
        &self,
        layout: &BlockLayout,
        block_idx: u32,
        engine: &Engine,
    ) -> Result<BlockAdapter, AdapterError> {
        let tensors = self.tensors()?;
        let mut modules: BTreeMap<&str, Pair> = BTreeMap::new();
        for key in tensors.names() {
            let Some(inside) = inside_block(key, block_idx) else {
                continue;
            };
            if let Some(module) = inside.strip_suffix(".lora_A.weight") {
                modules.entry(module).or_default().a = Some(key.to_owned());
            } else if let Some(module) = inside.strip_suffix(".lora_B.weight") {
                modules.entry(module).or_default().b = Some(key.to_owned());
            } else {
                return Err(self.unsupported(format!("has a tensor {key}")));
            }
        }
        let mut block = BlockAdapter::default();
        let targeted = |pair: &Pair| pair.a.iter().chain(&pair.b).any(|key| self.targets(key));
        for (module, pair) in modules.into_iter().filter(|(_, pair)| targeted(pair)) {
            let mut known = false;
            for (target, spec) in projections(layout) {
                if is_module(spec, module, block_idx) {
                    block.set(target, self.low_rank(&tensors, module, (&pair, spec), engine)?);
                    known = true;
                }
            }
            if !known {
                return Err(match layout.linears().any(|spec| is_module(spec, module, block_idx)) {
                    true => self.unsupported(format!("changes {module} of block {block_idx}")),
                    false => AdapterError::Foreign {
                        name: self.name.clone(),
                        module: module.to_owned(),
                        block: block_idx,
                    },
                });
            }
        }
        Ok(block)
    }

    /// Whether the configuration names the module of this tensor: by its whole key or by the last parts of it, as in
    /// peft (`check_target_module_exists`), which shortens long lists to as many parts as tell modules apart. A pattern
    /// was applied when the adapter was made: what is in the file are the modules that matched.
    fn targets(&self, tensor: &str) -> bool {
        let Some(Value::Array(names)) = &self.config.target_modules else {
            return true;
        };
        let module = module_of(tensor);
        names.iter().filter_map(Value::as_str).any(|name| {
            let before = module.strip_suffix(name);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }

    fn low_rank(
        &self,
        tensors: &SafeTensors<'_>,
        module: &str,
        (pair, spec): (&Pair, &LinearSpec),
        engine: &Engine,
    ) -> Result<LowRank, AdapterError> {
        let [rows, cols] = spec.weight.shape[..] else {
            return Err(self.unsupported(format!("changes {module}")));
        };
        let (a_shape, a) = self.matrix(tensors, pair.a.as_deref(), &format!("{module}.lora_A.weight"))?;
        let (b_shape, b) = self.matrix(tensors, pair.b.as_deref(), &format!("{module}.lora_B.weight"))?;
        let rank = a_shape[0];
        for (key, found, expected) in [(&pair.a, a_shape, [rank, cols]), (&pair.b, b_shape, [rows, rank])] {
            if found != expected || rank == 0 {
                return Err(AdapterError::Shape {
                    name: self.name.clone(),
                    tensor: key.clone().unwrap_or_default(),
                    found: found.to_vec(),
                });
            }
        }
        // Where several projections are parts of one matrix, its update is cut as the matrix is.
        let runs = spec.weight.rows.runs();
        let b: Vec<f32> = runs
            .flat_map(|(first, n)| b[first * rank..(first + n) * rank].to_vec())
            .collect();
        let divisor = if self.config.use_rslora {
            (rank as f32).sqrt()
        } else {
            rank as f32
        };
        Ok(LowRank {
            a: f32_linear([rank, cols], &a, engine),
            b: f32_linear([spec.weight.rows.count, rank], &b, engine),
            scale: self.config.lora_alpha / divisor,
        })
    }

    fn matrix(
        &self,
        tensors: &SafeTensors<'_>,
        key: Option<&str>,
        wanted: &str,
    ) -> Result<([usize; 2], Vec<f32>), AdapterError> {
        let Some(tensor) = key.and_then(|key| tensors.tensor(key).ok()) else {
            return Err(AdapterError::Incomplete {
                name: self.name.clone(),
                tensor: wanted.to_owned(),
            });
        };
        let [rows, cols] = tensor.shape()[..] else {
            return Err(AdapterError::Shape {
                name: self.name.clone(),
                tensor: wanted.to_owned(),
                found: tensor.shape().to_vec(),
            });
        };
        let numbers =
            numbers(&tensor).ok_or_else(|| self.unsupported(format!("has weights of type {:?}", tensor.dtype())))?;
        Ok(([rows, cols], numbers))
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, AdapterError> {
        SafeTensors::deserialize(&self.content).map_err(|source| AdapterError::Damaged {
            name: self.name.clone(),
            source,
        })
    }

    fn unsupported(&self, what: String) -> AdapterError {
        AdapterError::Unsupported {
            name: self.name.clone(),
            what,
        }
    }
}

/// The projections that can be updated: those that every token goes through.
fn projections(layout: &BlockLayout) -> Vec<(Target, &LinearSpec)> {
    let mut all = vec![
        (Target::Query, &layout.query),
        (Target::Key, &layout.key),
        (Target::Value, &layout.value),
        (Target::Output, &layout.output),
    ];
    if let ([mlp], None) = (&layout.mlps[..], &layout.router) {
        all.extend(mlp.gate.iter().map(|gate| (Target::Gate, gate)));
        all.extend([(Target::Up, &mlp.up), (Target::Down, &mlp.down)]);
    }
    all
}

/// Whether the matrix is that of `module` of block `block_idx`. Where experts are in one tensor, that is a module's name.
fn is_module(spec: &LinearSpec, module: &str, block_idx: u32) -> bool {
    let name = format!(".{}", spec.weight.name);
    inside_block(&name, block_idx).is_some_and(|inside| inside.strip_suffix(".weight").unwrap_or(inside) == module)
}

/// What follows the number of block `block_idx` in the name of a tensor; `None` if it is not in that block.
fn inside_block(key: &str, block_idx: u32) -> Option<&str> {
    BLOCKS.iter().find_map(|blocks| {
        let (_, inside) = key.split_once(&format!(".{blocks}.{block_idx}."))?;
        Some(inside)
    })
}

/// The module that a tensor is of, by its key in the file.
fn module_of(tensor: &str) -> &str {
    let lora = tensor.rsplit_once(".lora_");
    let (module, _) = lora.or_else(|| tensor.rsplit_once('.')).unwrap_or((tensor, ""));
    module
}

/// The modules in no block, the first of them by name; `None` if there are none.
fn outside(tensors: &SafeTensors<'_>) -> Option<String> {
    let keys = tensors.names().into_iter().filter(|key| !is_in_a_block(key));
    let modules: BTreeSet<&str> = keys.map(module_of).collect();
    let named = modules.iter().take(MAX_NAMED);
    let named: Vec<&str> = named
        .map(|module| module.strip_prefix(WRAPPED).unwrap_or(module))
        .collect();
    match modules.len() - named.len() {
        _ if modules.is_empty() => None,
        0 => Some(named.join(", ")),
        more => Some(format!("{} and {more} more", named.join(", "))),
    }
}

/// Whether [`inside_block`] finds the tensor in a block of some number.
fn is_in_a_block(key: &str) -> bool {
    let parts: Vec<&str> = key.split('.').collect();
    let mut threes = parts.windows(3).skip(1);
    threes.any(|three| BLOCKS.contains(&three[0]) && three[1].parse::<u32>().is_ok())
}

fn numbers(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => Some(data.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()),
        Dtype::F16 => Some(
            data.chunks_exact(2)
                .map(|x| bytemuck::pod_read_unaligned::<f16>(x).to_f32())
                .collect(),
        ),
        Dtype::BF16 => Some(
            data.chunks_exact(2)
                .map(|x| bytemuck::pod_read_unaligned::<bf16>(x).to_f32())
                .collect(),
        ),
        _ => None,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AdapterError> {
    fs::read(path).map_err(|source| AdapterError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{
        layout::{Packing, Rows, TensorSpec},
        testing::{engine, safetensors_of},
    };

    #[test]
    fn the_update_of_one_matrix_for_several_projections_is_cut_as_the_matrix_is() {
        let (a, b) = ("h.0.query_key_value.lora_A.weight", "h.0.query_key_value.lora_B.weight");
        let numbers = |n: u8| (0..n).map(f32::from).collect();
        let tensors = [
            (a.to_owned(), (vec![2, 3], numbers(6))),
            (b.to_owned(), (vec![6, 2], numbers(12))),
        ];
        let adapter = Adapter {
            name: "a".to_owned(),
            config: serde_json::from_str(r#"{"peft_type": "LORA", "lora_alpha": 8}"#).unwrap(),
            content: safetensors_of(&tensors.into()).into(),
        };
        let spec = LinearSpec {
            weight: TensorSpec {
                name: "h.0.query_key_value.weight".to_owned(),
                shape: vec![6, 3],
                cols: 3,
                packing: Packing::Plain,
                // The keys, where each head has a query, a key and a value of one row.
                rows: Rows {
                    start: 1,
                    run: 1,
                    stride: 3,
                    count: 2,
                },
            },
            bias: None,
        };
        let pair = Pair {
            a: Some(a.to_owned()),
            b: Some(b.to_owned()),
        };
        let update = adapter
            .low_rank(
                &adapter.tensors().unwrap(),
                "query_key_value",
                (&pair, &spec),
                &engine(),
            )
            .unwrap();
        assert_eq!(update.a.weight.to_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(update.b.weight.to_f32(), [2.0, 3.0, 8.0, 9.0]);
        assert!((update.scale - 4.0).abs() < 1e-6);
    }

    fn adapter(config: &Value, keys: &[&str]) -> Adapter {
        let tensors = keys.iter().map(|key| ((*key).to_owned(), (vec![1, 1], vec![1.0])));
        Adapter {
            name: "a".to_owned(),
            config: serde_json::from_value(config.clone()).unwrap(),
            content: safetensors_of(&tensors.collect()).into(),
        }
    }

    #[test]
    fn a_module_is_named_by_its_whole_key_or_by_the_last_parts_of_it() {
        let inside = "model.layers.0.self_attn.q_proj";
        let targets = |name: &str, module: &str| {
            let config = json!({"peft_type": "LORA", "lora_alpha": 8, "target_modules": ["down_proj", name]});
            adapter(&config, &[]).targets(&format!("{module}.lora_A.weight"))
        };
        for module in [inside, &format!("base_model.model.{inside}")] {
            let parts: Vec<&str> = inside.split('.').collect();
            for name in (0..parts.len()).map(|first| parts[first..].join(".")) {
                assert!(targets(&name, module), "{name} of {module}");
            }
            for name in ["proj", "", "attn.q_proj", "10.self_attn.q_proj", "k_proj", "self_attn"] {
                assert!(!targets(name, module), "{name} of {module}");
            }
        }
        assert!(!targets("q_proj", "model.layers.0.self_attn.xq_proj"));
        assert!(!targets("0.self_attn.q_proj", "model.layers.10.self_attn.q_proj"));
        for all in [json!(r".*\.q_proj"), Value::Null] {
            let config = json!({"peft_type": "LORA", "lora_alpha": 8, "target_modules": all});
            assert!(adapter(&config, &[]).targets(&format!("{inside}.lora_A.weight")));
        }
    }

    #[test]
    fn modules_in_no_block_are_named_up_to_three() {
        let outside = |keys: &[&str]| {
            let config = json!({"peft_type": "LORA", "lora_alpha": 8});
            outside(&adapter(&config, keys).tensors().unwrap())
        };
        let (a, b) = (
            "base_model.model.transformer.h.11.mlp.dense_h_to_4h.lora_A.weight",
            "base_model.model.transformer.h.11.mlp.dense_h_to_4h.lora_B.weight",
        );
        assert_eq!(outside(&[a, b]), None);
        let head = [
            "base_model.model.lm_head.lora_A.weight",
            "base_model.model.lm_head.lora_B.weight",
        ];
        assert_eq!(outside(&[a, b, head[0], head[1]]).unwrap(), "lm_head");
        let embedding = "base_model.model.model.embed_tokens.lora_embedding_A";
        let (norm, saved) = ("base_model.model.model.norm.weight", "base_model.model.score.weight");
        assert_eq!(
            outside(&[head[0], embedding, norm, saved]).unwrap(),
            "lm_head, model.embed_tokens, model.norm and 1 more"
        );
    }

    #[test]
    fn a_tensor_is_inside_the_block_whose_number_follows_the_word_for_blocks() {
        let llama = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
        assert_eq!(inside_block(llama, 1), Some("self_attn.q_proj.lora_A.weight"));
        assert_eq!(inside_block(llama, 0), None);
        let bloom = "base_model.model.transformer.h.11.mlp.dense_h_to_4h.lora_B.weight";
        assert_eq!(inside_block(bloom, 11), Some("mlp.dense_h_to_4h.lora_B.weight"));
        assert_eq!(inside_block(bloom, 1), None);
        assert!([llama, bloom].into_iter().all(is_in_a_block));
    }
}
