//! What a model's `generation_config.json` says about choosing tokens and when to stop. Values only; `sample` uses them.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ConfigError, ModelConfig, SamplingParams, config::read::token_ids};

/// `top_k` of transformers where sampling is on and nothing else is said (`generation/configuration_utils.py`).
const TRANSFORMERS_TOP_K: usize = 50;

/// Defaults of a model for generation. Everything absent means: as transformers does it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Any of these ends the text.
    pub eos_token_ids: Vec<u32>,
    choices: Choices,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct Choices {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads the text of a `generation_config.json`. End tokens that it does not name are those of `config`, as in
    /// transformers, where they move from one file to the other.
    ///
    /// # Errors
    /// Not JSON, or a value of another type than transformers writes.
    pub fn from_json(json: &[u8], config: &ModelConfig) -> Result<Self, ConfigError> {
        let raw: Map<String, Value> = serde_json::from_slice(json).map_err(ConfigError::Json)?;
        let mut eos_token_ids = token_ids(&raw, "eos_token_id")?;
        if eos_token_ids.is_empty() {
            eos_token_ids.clone_from(&config.eos_token_ids);
        }
        let choices = serde_json::from_value(Value::Object(raw)).map_err(ConfigError::Json)?;
        Ok(Self { eos_token_ids, choices })
    }

    /// With further tokens that end the text.
    pub(crate) fn ending_at(mut self, tokens: &[u32]) -> Self {
        for token in tokens {
            if !self.eos_token_ids.contains(token) {
                self.eos_token_ids.push(*token);
            }
        }
        self
    }

    /// For a model without the file.
    pub fn of_config(config: &ModelConfig) -> Self {
        Self {
            eos_token_ids: config.eos_token_ids.clone(),
            choices: Choices::default(),
        }
    }

    /// How the model's makers want tokens chosen: greedily unless the file turns sampling on.
    pub fn sampling(&self) -> SamplingParams {
        let choices = &self.choices;
        let defaults = SamplingParams {
            repetition_penalty: choices.repetition_penalty.unwrap_or(1.0),
            ..SamplingParams::default()
        };
        if choices.do_sample != Some(true) {
            return defaults;
        }
        SamplingParams {
            temperature: choices.temperature.unwrap_or(1.0),
            top_k: choices.top_k.unwrap_or(TRANSFORMERS_TOP_K),
            top_p: choices.top_p.unwrap_or(1.0),
            ..defaults
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &[u8] = include_bytes!("demo/config.json");

    fn parse(json: &str) -> Result<GenerationConfig, ConfigError> {
        GenerationConfig::from_json(json.as_bytes(), &ModelConfig::from_json(CONFIG).unwrap())
    }

    #[test]
    fn a_model_whose_makers_sample_is_sampled_from() {
        let json =
            r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [7, 9], "bos_token_id": 1}"#;
        let config = parse(json).unwrap();
        assert_eq!(config.eos_token_ids, [7, 9]);
        let expected = SamplingParams {
            temperature: 0.6,
            top_k: 50,
            top_p: 0.9,
            ..SamplingParams::default()
        };
        assert_eq!(config.sampling(), expected);
    }

    #[test]
    fn without_do_sample_the_choice_is_greedy_whatever_else_is_said() {
        let config = parse(r#"{"temperature": 0.6, "repetition_penalty": 1.1, "top_k": null}"#).unwrap();
        let expected = SamplingParams {
            repetition_penalty: 1.1,
            ..SamplingParams::default()
        };
        assert_eq!(config.sampling(), expected);
    }

    #[test]
    fn end_tokens_come_from_the_model_configuration_where_the_file_names_none() {
        assert_eq!(parse("{}").unwrap().eos_token_ids, [2]);
        assert_eq!(parse(r#"{"eos_token_id": 5}"#).unwrap().eos_token_ids, [5]);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused() {
        assert!(parse(r#"{"temperature": "hot"}"#).is_err());
        assert!(parse("[]").is_err());
    }
}
