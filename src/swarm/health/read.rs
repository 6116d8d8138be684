//! What the DHT says: which models there are, and the records of all their blocks, those apart that cannot be true.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use sepal_protocol::{dht_id::DhtId, record::ModelInfo};

use super::{Config, model::ModelFacts, text};
use crate::{
    dht::{Dht, Freshness},
    swarm::{
        directory::{self, block_key},
        hygiene::{Sorted, Sorting},
        models,
    },
};

/// Models shown, and blocks of one and of all together. The registry is anybody's to write; no model has 2048 blocks.
const MAX_MODELS: usize = 64;
const MAX_BLOCKS: u32 = 2048;
const MAX_BLOCKS_IN_ALL: u32 = 8192;

/// Blocks that are asked for in one read, so that a large swarm does not have all its records in memory twice.
const BLOCKS_PER_READ: usize = 512;

/// The models of the registry and those named in `config`, with all their records.
pub(crate) async fn models(dht: &Dht, config: &Config) -> Vec<ModelFacts> {
    let models = chosen(directory::read_registry(dht).await, config);
    let now = dht.now();
    let mut sorting: Vec<Sorting> = models
        .iter()
        .map(|chosen| Sorting::new(0, chosen.n_blocks, now))
        .collect();
    let keys: Vec<(usize, u32)> = (0..)
        .zip(&models)
        .flat_map(|(model, chosen)| (0..chosen.n_blocks).map(move |block| (model, block)))
        .collect();
    for part in keys.chunks(BLOCKS_PER_READ) {
        let names = part
            .iter()
            .map(|(model, block)| block_key(&models[*model].facts.prefix, *block));
        let names: Vec<DhtId> = names.collect();
        let found = dht.get_many(names, Freshness::Latest).await;
        for ((model, _), found) in part.iter().zip(found) {
            sorting[*model].add(found);
        }
    }
    let sorted = models.into_iter().zip(sorting).map(|(chosen, sorting)| ModelFacts {
        records: sorting.finish(),
        ..chosen.facts
    });
    sorted.collect()
}

/// A model whose records are to be read.
struct Chosen {
    n_blocks: u32,
    facts: ModelFacts,
}

/// Which models are shown: those the user named, then the largest, as health.petals.dev orders them.
fn chosen(registry: BTreeMap<String, ModelInfo>, config: &Config) -> Vec<Chosen> {
    let mut wanted: Vec<Chosen> = Vec::new();
    for named in &config.models {
        let registered = registry.get(&named.prefix);
        let mut model = describe(&named.prefix, named.n_blocks, registered, config);
        model.facts.name = named.name.clone().or(model.facts.name);
        wanted.push(model);
    }
    let mut others: Vec<(&String, &ModelInfo)> = registry.iter().collect();
    others.retain(|(prefix, _)| models::check_prefix(prefix).is_ok() && prefix.len() <= text::MAX_PREFIX);
    others.sort_by_key(|(prefix, info)| (Reverse(info.num_blocks), *prefix));
    wanted.extend(
        others
            .into_iter()
            .map(|(prefix, info)| describe(prefix, info.num_blocks, Some(info), config)),
    );

    let mut seen: HashMap<String, ()> = HashMap::new();
    let mut left = MAX_BLOCKS_IN_ALL;
    wanted.retain(|model| {
        let fits = model.n_blocks <= MAX_BLOCKS.min(left) && seen.insert(model.facts.prefix.clone(), ()).is_none();
        if fits {
            left -= model.n_blocks;
        }
        fits
    });
    wanted.truncate(MAX_MODELS);
    wanted
}

fn describe(prefix: &str, n_blocks: u32, registered: Option<&ModelInfo>, config: &Config) -> Chosen {
    let repository = registered.and_then(|info| text::hub_page(info.repository.as_deref()?));
    let name = repository.as_deref().and_then(text::hub_name).map(|name| {
        let alias = config.aliases.iter().find(|alias| alias.repository == name);
        alias.map_or(name, |alias| &alias.name).to_string()
    });
    let facts = ModelFacts {
        prefix: prefix.to_string(),
        name,
        repository,
        in_registry: registered.is_some(),
        records: Sorted::default(),
    };
    Chosen { n_blocks, facts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::health::{Alias, NamedModel};

    fn info(num_blocks: u32, repository: &str) -> ModelInfo {
        ModelInfo {
            num_blocks,
            repository: Some(repository.to_string()),
        }
    }

    #[test]
    fn named_models_come_first_then_the_largest_and_none_twice() {
        let registry = BTreeMap::from([
            ("small-hf".to_string(), info(4, "https://huggingface.co/x/small")),
            ("large-hf".to_string(), info(80, "https://huggingface.co/x/large")),
            ("demo-hf".to_string(), info(8, "https://huggingface.co/sepal/demo")),
            ("evil".to_string(), info(2, "javascript:alert(1)")),
            ("has space".to_string(), info(2, "https://huggingface.co/x/y")),
            ("endless".to_string(), info(u32::MAX, "https://huggingface.co/x/y")),
        ]);
        let named = |prefix: &str, n_blocks| NamedModel {
            prefix: prefix.to_string(),
            n_blocks,
            name: None,
        };
        let config = Config {
            models: vec![named("_mine", 6), named("small-hf", 4)],
            aliases: vec![Alias {
                repository: "sepal/demo".to_string(),
                name: "demo".to_string(),
            }],
            ..Config::default()
        };
        let chosen = chosen(registry, &config);
        let seen: Vec<_> = chosen
            .iter()
            .map(|model| {
                (
                    model.facts.prefix.as_str(),
                    model.facts.name.as_deref(),
                    model.facts.in_registry,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("_mine", None, false),
                ("small-hf", Some("x/small"), true),
                ("large-hf", Some("x/large"), true),
                ("demo-hf", Some("demo"), true),
                ("evil", None, true),
            ]
        );
        assert_eq!(chosen[4].facts.repository, None);
    }

    #[test]
    fn a_registry_full_of_models_is_cut() {
        let registry = (0..500).map(|i| (format!("m{i}"), info(200, "https://huggingface.co/x/y")));
        let chosen = chosen(registry.collect(), &Config::default());
        let blocks: u32 = chosen.iter().map(|model| model.n_blocks).sum();
        assert!(blocks <= MAX_BLOCKS_IN_ALL && chosen.len() <= MAX_MODELS);
    }
}
