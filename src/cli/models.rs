//! The `MODEL...` arguments of a server, and flags that may differ from model to model.
//!
//! Such a flag is given once for all models, `--blocks 0:4`, or once for each, `--blocks org/a=0:4 --blocks org/b=8:12`. The
//! name before the first `=` is a model as it was given, or the last part of its name. What names a model wins.

use std::str::FromStr;

use anyhow::bail;
use clap::Args as ClapArgs;

use super::model::{HubArgs, Model, ModelArgs};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct ModelsArgs {
    /// Folders or GGUF files, Hugging Face repositories such as org/name, org/name:FILE.gguf for a GGUF file in one, or `demo`
    /// for the built-in model. Several are served by one process. Flags marked [MODEL=] can be given for each of them:
    /// --revision org/a=main --revision org/b=v2.
    #[arg(value_name = "MODEL", required_unless_present = "converted_model")]
    models: Vec<String>,
    /// The same, as Petals spells it.
    #[arg(
        long = "converted_model_name_or_path",
        value_name = "MODEL",
        hide = true,
        conflicts_with = "models"
    )]
    converted_model: Option<String>,
    /// Name under which the model's blocks stand in the DHT [default: derived from MODEL as Petals does].
    #[arg(long, value_name = "[MODEL=]PREFIX", alias = "dht_prefix", value_parser = ForModel::<String>::parse)]
    dht_prefix: Vec<ForModel<String>>,
    /// Branch, tag or commit of the repository.
    #[arg(long, value_name = "[MODEL=]REV", value_parser = ForModel::<String>::parse)]
    revision: Vec<ForModel<String>>,
    #[command(flatten)]
    pub(super) hub: HubArgs,
}

/// A flag's value, for one model or for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForModel<T> {
    model: Option<String>,
    value: T,
}

impl<T> ForModel<T> {
    /// `VALUE` or `MODEL=VALUE`.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub(super) fn parse_with(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Self, String> {
        let (model, value) = match text.split_once('=') {
            Some((model, value)) if !model.is_empty() => (Some(model.to_owned()), value),
            _ => (None, text),
        };
        Ok(Self {
            model,
            value: parse(value)?,
        })
    }

    fn is_for(&self, model: &str) -> bool {
        let last = model.trim_end_matches('/').rsplit('/').next();
        self.model
            .as_deref()
            .is_some_and(|named| named == model || Some(named) == last)
    }
}

impl<T: FromStr<Err: std::fmt::Display>> ForModel<T> {
    /// The same for values that parse by themselves.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with(text, |value| value.parse().map_err(|error: T::Err| error.to_string()))
    }
}

/// What a flag says about `model`; the last one of those that say the same.
pub(super) fn of<'a, T>(flag: &'a [ForModel<T>], model: &str) -> Option<&'a T> {
    let named = flag.iter().rfind(|given| given.is_for(model));
    let given = named.or_else(|| flag.iter().rfind(|given| given.model.is_none()));
    given.map(|given| &given.value)
}

/// Whether a flag was given for this model by name.
pub(super) fn is_named<T>(flag: &[ForModel<T>], model: &str) -> bool {
    flag.iter().any(|given| given.is_for(model))
}

/// The first name in a flag that is none of `models`.
pub(super) fn stray<'a, T>(flag: &'a [ForModel<T>], models: &[String]) -> Option<&'a str> {
    let stray = |given: &&ForModel<T>| given.model.is_some() && !models.iter().any(|model| given.is_for(model));
    flag.iter().find(stray).and_then(|given| given.model.as_deref())
}

impl ModelsArgs {
    /// As given.
    pub(super) fn names(&self) -> Vec<String> {
        let converted = self.converted_model.iter();
        self.models.iter().chain(converted).cloned().collect()
    }

    /// Finds the models and reads their configurations.
    ///
    /// # Errors
    /// When one is nowhere, two have the same prefix, or a flag names a model that was not given.
    pub(super) async fn resolve(&self) -> anyhow::Result<Vec<Model>> {
        let names = self.names();
        for (flag, stray) in [
            ("--dht-prefix", stray(&self.dht_prefix, &names)),
            ("--revision", stray(&self.revision, &names)),
        ] {
            refuse_stray(flag, stray)?;
        }
        let mut models: Vec<Model> = Vec::new();
        for name in &names {
            let mut args = ModelArgs::named(name);
            args.dht_prefix = of(&self.dht_prefix, name).cloned();
            args.revision = of(&self.revision, name).cloned();
            args.hub = self.hub.clone();
            let model = args.resolve().await?;
            if let Some(twin) = models.iter().find(|other| other.prefix == model.prefix) {
                bail!(
                    "{} and {} both have the prefix {} in the DHT, so that requests could not be told apart: serve one of \
                     them, or give one another prefix with --dht-prefix {}=PREFIX",
                    twin.name,
                    model.name,
                    model.prefix,
                    model.name
                );
            }
            models.push(model);
        }
        Ok(models)
    }
}

/// # Errors
/// When there is a stray name.
pub(super) fn refuse_stray(flag: &str, stray: Option<&str>) -> anyhow::Result<()> {
    match stray {
        Some(model) => {
            bail!("{flag} {model}=… names a model that is not served: it has to be spelled as in the command")
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Vec<ForModel<u32>> {
        texts.iter().map(|text| ForModel::parse(text).unwrap()).collect()
    }

    #[test]
    fn what_names_a_model_wins_over_what_is_for_all() {
        let flag = parsed(&["org/a=1", "2", "b=3"]);
        assert_eq!(of(&flag, "org/a"), Some(&1));
        assert_eq!(of(&flag, "org/b"), Some(&3));
        assert_eq!(of(&flag, "org/c"), Some(&2));
        assert_eq!(of(&parsed(&["a=1"]), "org/c"), None);
        assert!(is_named(&flag, "org/a") && !is_named(&flag, "org/c"));
        assert_eq!(of(&parsed(&["1", "2"]), "x"), Some(&2));
    }

    #[test]
    fn a_name_that_is_no_model_is_found() {
        let models = ["org/a".to_owned(), "./folder/b/".to_owned()];
        assert_eq!(stray(&parsed(&["org/a=1", "b=2", "3"]), &models), None);
        assert_eq!(stray(&parsed(&["org/b=1"]), &models), Some("org/b"));
        assert!(ForModel::<u32>::parse("a=many").is_err());
        let flag = [ForModel::<String>::parse("a=b=c").unwrap()];
        assert_eq!(
            of(&flag, "org/a"),
            Some(&"b=c".to_owned()),
            "a value may contain what ends a name"
        );
    }

    #[tokio::test]
    async fn models_with_the_same_prefix_are_refused() {
        let args = |dht_prefix: &[&str]| ModelsArgs {
            models: vec!["demo".to_owned(), "demo".to_owned()],
            converted_model: None,
            dht_prefix: dht_prefix.iter().map(|text| ForModel::parse(text).unwrap()).collect(),
            revision: Vec::new(),
            hub: HubArgs::default(),
        };
        let error = args(&[]).resolve().await.unwrap_err().to_string();
        assert!(error.contains("both have the prefix demo-hf"), "{error}");
        let error = args(&["demon=x"]).resolve().await.unwrap_err().to_string();
        assert!(error.contains("--dht-prefix demon="), "{error}");
    }
}
