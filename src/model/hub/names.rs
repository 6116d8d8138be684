//! Repositories that Petals means otherwise than they are named, or takes at one revision.

/// The repository whose files are used: converted copies of BLOOM (`bigscience/bloom-petals`) are replaced by the original
/// (Petals `models/bloom/config.py`).
pub(super) fn original(repo: &str) -> &str {
    match repo.strip_suffix("-petals") {
        Some(original) if repo.starts_with("bigscience/") => original,
        _ => repo,
    }
}

/// The revision that is meant when none is named, where it is not the newest: those from when transformers got Falcon
/// (Petals `utils/auto_config.py`).
pub(super) fn pinned_revision(repo: &str) -> Option<&'static str> {
    match repo {
        "tiiuae/falcon-40b" => Some("f1ba7d328c06aa6fbb4a8afd3c756f46d7e6b232"),
        "tiiuae/falcon-40b-instruct" => Some("7475ff8cfc36ed9a962b658ae3c33391566a85a5"),
        "tiiuae/falcon-7b" => Some("4e2d06f0a7c6370ebabbc30c6f59377ae8f73d76"),
        "tiiuae/falcon-7b-instruct" => Some("f8dac3fff96d5debd43edf56fb4e1abcfffbef28"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::vectors;

    #[test]
    fn repositories_and_revisions_are_those_of_petals() {
        let recorded = std::fs::read(vectors("petals/models.json")).unwrap();
        let recorded: serde_json::Value = serde_json::from_slice(&recorded).unwrap();
        for case in recorded["dht_prefixes"].as_array().unwrap() {
            let repo = case["repo"].as_str().unwrap();
            assert_eq!(pinned_revision(repo), case["revision"].as_str(), "{repo}");
            assert_eq!(original(repo), repo);
        }
        assert_eq!(original("bigscience/bloom-petals"), "bigscience/bloom");
        assert_eq!(original("someone/bloom-petals"), "someone/bloom-petals");
    }
}
