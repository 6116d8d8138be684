//! The names of models in the DHT, and the addresses through which the public swarm is joined. Pure; it reads no model.

use thiserror::Error;

/// The nodes through which the public Petals swarm is joined, in the order in which Petals tries them.
pub const PUBLIC_INITIAL_PEERS: [&str; 6] = [
    "/dns/bootstrap1.petals.dev/tcp/31337/p2p/QmedTaZXmULqwspJXz44SsPZyTNKxhnnFvYRajfH7MGhCY",
    "/dns/bootstrap2.petals.dev/tcp/31338/p2p/QmQGTqmM7NKjV6ggU1ZCap8zWiyKR89RViDXiqehSiCpY5",
    "/dns6/bootstrap1.petals.dev/tcp/31337/p2p/QmedTaZXmULqwspJXz44SsPZyTNKxhnnFvYRajfH7MGhCY",
    "/dns6/bootstrap2.petals.dev/tcp/31338/p2p/QmQGTqmM7NKjV6ggU1ZCap8zWiyKR89RViDXiqehSiCpY5",
    "/ip4/159.89.214.152/tcp/31337/p2p/QmedTaZXmULqwspJXz44SsPZyTNKxhnnFvYRajfH7MGhCY",
    "/ip4/159.203.156.48/tcp/31338/p2p/QmQGTqmM7NKjV6ggU1ZCap8zWiyKR89RViDXiqehSiCpY5",
];

/// A prefix that would break the names of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadPrefix {
    /// Nothing at all.
    #[error("the DHT prefix is empty")]
    Empty,
    /// A dot separates a prefix from a block number, a space one block name from the next.
    #[error("the DHT prefix contains {0:?}, which separates the parts of block names")]
    Separator(char),
}

/// The prefix under which servers of the model `repo` (a hub repository, not a folder) find each other, by the rules of
/// the model families in `petals/models/*/config.py`; families that Petals does not have follow the rule of Llama.
/// `model_type` is the one in the model's configuration.
pub fn dht_prefix(model_type: &str, repo: &str) -> String {
    let last = repo.rsplit('/').next().unwrap_or(repo);
    let name = match model_type {
        "falcon" => last.to_string(),
        "mixtral" => repo.to_string(),
        "bloom" => format!("{repo}-petals"),
        _ if last.ends_with("-hf") => last.to_string(),
        _ => format!("{last}-hf"),
    };
    name.replace('.', "-")
}

/// Checks a prefix that a user chose.
///
/// # Errors
///
/// [`BadPrefix`] if names of blocks could not be taken apart again.
pub fn check_prefix(prefix: &str) -> Result<(), BadPrefix> {
    if prefix.is_empty() {
        return Err(BadPrefix::Empty);
    }
    match prefix.chars().find(|c| matches!(c, '.' | ' ')) {
        Some(separator) => Err(BadPrefix::Separator(separator)),
        None => Ok(()),
    }
}

/// Whether servers of this model keep it out of the public registry.
pub fn is_private(prefix: &str) -> bool {
    prefix.starts_with('_')
}

/// What the registry says a model is: the page of a hub repository. The health monitor shows no others.
pub fn repository_url(repo: &str) -> String {
    format!("https://huggingface.co/{repo}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{p2p::Multiaddr, swarm::testing::vectors};

    #[test]
    fn prefixes_equal_those_of_petals() {
        let file = vectors("models.json");
        let cases = file["dht_prefixes"].as_array().unwrap();
        let hub = cases.iter().filter(|case| !case["dht_prefix"].is_null());
        let mut n_cases = 0;
        for case in hub {
            let prefix = dht_prefix(case["family"].as_str().unwrap(), case["repo"].as_str().unwrap());
            assert_eq!(Some(prefix.as_str()), case["dht_prefix"].as_str(), "{}", case["repo"]);
            check_prefix(&prefix).unwrap();
            n_cases += 1;
        }
        assert_eq!(n_cases, 20);
        assert_eq!(dht_prefix("qwen3", "Qwen/Qwen3-0.6B"), "Qwen3-0-6B-hf");
    }

    #[test]
    fn prefixes_that_break_block_names_are_refused() {
        assert_eq!(check_prefix(""), Err(BadPrefix::Empty));
        assert_eq!(check_prefix("llama-3.1"), Err(BadPrefix::Separator('.')));
        assert_eq!(check_prefix("my model"), Err(BadPrefix::Separator(' ')));
        assert_eq!(check_prefix("_mine/model"), Ok(()));
    }

    #[test]
    fn public_peers_are_addresses_with_a_peer_id() {
        for address in PUBLIC_INITIAL_PEERS {
            address.parse::<Multiaddr>().unwrap();
            assert!(address.contains("/p2p/Qm"));
        }
    }
}
