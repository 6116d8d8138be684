//! The house rules that a compiler does not check, as tests over the source text: layering, fences, headers, file sizes.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Which modules of ours a top-level module may name. Leaves may be named by everyone.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("task", &[]),
    ("metrics", &[]),
    ("p2p", &["task"]),
    ("receipt", &["task", "p2p"]),
    ("jobs", &["task", "metrics", "p2p", "receipt"]),
    ("dht", &["task", "p2p"]),
    ("swarm", &["task", "p2p", "dht"]),
    ("model", &["task"]),
    (
        "server",
        &["task", "metrics", "p2p", "receipt", "dht", "swarm", "model"],
    ),
    ("client", &["task", "p2p", "receipt", "dht", "swarm", "model"]),
    ("http", &["task", "metrics", "p2p", "swarm", "model", "client"]),
    ("control", &["task", "p2p", "swarm", "server"]),
    (
        "cli",
        &[
            "task", "metrics", "p2p", "receipt", "jobs", "dht", "swarm", "model", "server", "client", "http", "control",
        ],
    ),
];

/// Crates that only one layer may name, so that replacing one touches one folder.
const FENCES: &[(&str, &[&str])] = &[
    ("libp2p", &["p2p"]),
    ("candle_core", &["model"]),
    ("hf_hub", &["model"]),
    ("safetensors", &["model"]),
    ("ureq", &["model", "swarm", "cli"]),
    ("libloading", &["model"]),
    ("memmap2", &["model"]),
    ("rustix", &["model"]),
    ("blake3", &["model", "receipt"]),
    ("core_affinity", &["model"]),
    ("tokenizers", &["client"]),
    ("minijinja", &["client"]),
    ("minijinja_contrib", &["client"]),
    ("jiff", &["client", "cli"]),
    ("llguidance", &["client"]),
    ("axum", &["http"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("UnixListener", &["control"]),
    ("UnixStream", &["control"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("ratatui", &["cli"]),
    ("rustyline", &["cli"]),
    ("anyhow", &["cli"]),
    ("nvml_wrapper", &["cli"]),
    ("rlimit", &["cli"]),
    ("strsim", &["cli"]),
    ("toml_edit", &["cli"]),
    ("indicatif", &["cli"]),
    ("tracing_subscriber", &["cli"]),
    ("prost", &[]),
    ("rmpv", &[]),
];

const MAX_LINES: usize = 600;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "protocol/src", "tests", "examples", "interop-tests"] {
        sources(&root.join(folder), &mut found);
    }
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(root).unwrap().to_path_buf(), text)
        })
        .collect()
}

/// The top-level module a file of `src/` belongs to.
fn layer(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    MAY_IMPORT
        .iter()
        .any(|(layer, _)| *layer == name)
        .then(|| name.to_string())
}

fn names_crate(line: &str, krate: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    code.match_indices(krate).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            && code[at + krate.len()..].starts_with("::")
    })
}

#[test]
fn every_file_says_what_it_is_in_its_first_line() {
    for (path, text) in all_sources() {
        if path.components().any(|part| part.as_os_str() == "generated") {
            continue;
        }
        assert!(
            text.starts_with("//! "),
            "{} does not start with a //! line",
            path.display()
        );
    }
}

#[test]
fn no_file_is_longer_than_the_limit() {
    for (path, text) in all_sources() {
        let lines = text.lines().count();
        assert!(
            lines <= MAX_LINES,
            "{} has {lines} lines, limit {MAX_LINES}: a part is missing",
            path.display()
        );
    }
}

#[test]
fn imports_only_go_down() {
    for (path, text) in all_sources() {
        let Some(layer) = layer(&path) else { continue };
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == layer).unwrap().1;
        for (other, _) in MAY_IMPORT
            .iter()
            .filter(|(name, _)| *name != layer && !allowed.contains(name))
        {
            let needle = format!("crate::{other}");
            for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
                let names_it = line
                    .match_indices(&needle)
                    .any(|(at, _)| !line[at + needle.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'));
                assert!(!names_it, "{} ({layer}) may not name {needle}: {line}", path.display());
            }
        }
    }
}

#[test]
fn fenced_crates_are_named_in_their_layer_only() {
    for (path, text) in all_sources() {
        let Some(layer) = layer(&path) else { continue };
        for (krate, layers) in FENCES.iter().filter(|(_, layers)| !layers.contains(&layer.as_str())) {
            for line in text.lines() {
                assert!(
                    !names_crate(line, krate),
                    "{} names {krate}, which belongs to {layers:?}",
                    path.display()
                );
            }
        }
    }
}
