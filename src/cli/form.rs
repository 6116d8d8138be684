//! What generated text has to be like: the flags for JSON, JSON of a schema, and regular expressions.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args as ClapArgs;

use super::model::Model;
use crate::client::{Constraint, Constraints, TextCodec};

#[derive(Debug, Default, ClapArgs)]
pub(super) struct FormArgs {
    /// File with a JSON schema: the text is JSON that it describes.
    #[arg(long, value_name = "FILE", alias = "json_schema", conflicts_with_all = ["regex", "json_object"])]
    json_schema: Option<PathBuf>,
    /// The text is a JSON object.
    #[arg(long, alias = "json_object", conflicts_with = "regex")]
    json_object: bool,
    /// The text is what this regular expression matches.
    #[arg(long, value_name = "PATTERN")]
    regex: Option<String>,
}

impl FormArgs {
    /// The constraint for texts of `model`, if there is to be one.
    ///
    /// # Errors
    /// The schema cannot be read, or text of this model cannot be constrained so.
    pub(super) fn constraint(&self, model: &Model, codec: Option<&TextCodec>) -> anyhow::Result<Option<Constraint>> {
        if self.json_schema.is_none() && self.regex.is_none() && !self.json_object {
            return Ok(None);
        }
        let Some(codec) = codec else {
            bail!("--json-schema, --json-object and --regex need the model's tokenizer");
        };
        let ends = &model.source.generation_config().eos_token_ids;
        let constraints = Constraints::new(codec, model.source.config().vocab_size, ends)?;
        if let Some(path) = &self.json_schema {
            let read = || -> anyhow::Result<Constraint> {
                let schema = serde_json::from_slice(&std::fs::read(path)?).context("not JSON")?;
                Ok(constraints.json_schema(&schema)?)
            };
            return read()
                .map(Some)
                .with_context(|| format!("--json-schema {}", path.display()));
        }
        Ok(Some(match &self.regex {
            Some(pattern) => constraints.regex(pattern).context("--regex")?,
            None => constraints.json_object()?,
        }))
    }
}
