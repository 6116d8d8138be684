//! Shapes of common models as their `config.json` says them, without a repository or a network: to tell what a machine could
//! serve, and to measure with a block of that shape. Whoever serves one reads the configuration of its repository.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ConfigError, ModelConfig};

/// One object a model, from the smallest to the largest: the keys of `config.json` that sizes depend on.
const MODELS: &str = include_str!("known.json");

/// A model that many people serve.
#[derive(Clone, Debug)]
pub struct KnownModel {
    /// Its repository.
    pub name: String,
    /// `model_type` of its configuration.
    pub model_type: String,
    /// Its shape.
    pub config: Arc<ModelConfig>,
    /// The text that the shape was read from.
    pub config_json: String,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    config: Box<RawValue>,
}

#[derive(Deserialize)]
struct Typed {
    model_type: String,
}

/// All of them, the smallest first.
///
/// # Errors
/// When the table of the program is broken.
pub fn known_models() -> Result<Vec<KnownModel>, ConfigError> {
    let entries: Vec<Entry> = serde_json::from_str(MODELS).map_err(ConfigError::Json)?;
    let read = |entry: Entry| {
        let config_json = entry.config.get().to_owned();
        let typed: Typed = serde_json::from_str(&config_json).map_err(ConfigError::Json)?;
        Ok(KnownModel {
            name: entry.name,
            model_type: typed.model_type,
            config: Arc::new(ModelConfig::from_json(config_json.as_bytes())?),
            config_json,
        })
    };
    entries.into_iter().map(read).collect()
}

impl KnownModel {
    /// The model that is called `name`: its repository, or the last part of that, in any case.
    ///
    /// # Errors
    /// As [`known_models`].
    pub fn find(name: &str) -> Result<Option<Self>, ConfigError> {
        let is_it = |known: &Self| {
            let last = known.name.rsplit('/').next().unwrap_or(&known.name);
            known.name.eq_ignore_ascii_case(name) || last.eq_ignore_ascii_case(name)
        };
        Ok(known_models()?.into_iter().find(is_it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the makers, or the hub's count of the published tensors, say.
    const PARAMETERS: &[(&str, u64)] = &[
        ("SmolLM2-360M", 361_821_120),
        ("Qwen2.5-0.5B", 494_032_768),
        ("TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        ("Llama-3.2-1B", 1_235_814_400),
        ("SmolLM2-1.7B", 1_711_376_384),
        ("Llama-3.2-3B", 3_212_749_824),
        ("Phi-3-mini-4k-instruct", 3_821_079_552),
        ("Mistral-7B-v0.1", 7_241_732_096),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Llama-3.1-8B", 8_030_261_248),
        ("Qwen3-8B", 8_190_735_360),
        ("gemma-2-9b", 9_241_705_984),
        ("gpt-oss-20b", 20_914_757_184),
        ("gemma-2-27b", 27_227_128_320),
        ("Qwen3-30B-A3B", 30_532_122_624),
        ("Qwen2.5-32B", 32_763_876_352),
        ("Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
        ("StableBeluga2", 68_976_648_192),
        ("Llama-3.1-70B", 70_553_706_496),
        ("Qwen2.5-72B", 72_706_203_648),
        ("gpt-oss-120b", 116_829_156_672),
        ("Mixtral-8x22B-v0.1", 140_620_634_112),
        ("bloom", 176_247_271_424),
        ("Llama-3.1-405B", 405_853_388_800),
    ];

    #[test]
    fn shapes_give_the_published_numbers_of_parameters() {
        for (name, parameters) in PARAMETERS {
            let known = KnownModel::find(name).unwrap().unwrap();
            assert_eq!(known.config.n_parameters(), *parameters, "{name}");
        }
    }

    #[test]
    fn models_go_from_small_to_large_and_are_found_by_their_name() {
        let sizes: Vec<u64> = known_models()
            .unwrap()
            .iter()
            .map(|m| m.config.n_parameters())
            .collect();
        assert!(sizes.is_sorted(), "{sizes:?}");
        assert!(KnownModel::find("meta-llama/llama-3.1-8b").unwrap().is_some());
        assert!(KnownModel::find("no/such-model").unwrap().is_none());
    }

    #[test]
    fn a_token_reads_the_experts_that_it_is_sent_to() {
        let mixtral = KnownModel::find("Mixtral-8x7B-Instruct-v0.1").unwrap().unwrap().config;
        let format = crate::model::WeightFormat::Bf16;
        let (all, read) = (mixtral.block_bytes(format), mixtral.bytes_read_per_token(format));
        // 12.9 of 46.7 thousand million parameters, embeddings included.
        assert!((0.26..0.29).contains(&(read as f64 / all as f64)), "{read} of {all}");
        let llama = KnownModel::find("Llama-3.1-8B").unwrap().unwrap().config;
        assert_eq!(llama.block_bytes(format), llama.bytes_read_per_token(format));
    }
}
