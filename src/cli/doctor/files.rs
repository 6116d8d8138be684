//! What a node keeps on disk: the model's files and its key. Nothing is downloaded but lists, nothing is created.

use std::path::Path;

use super::{
    finding::{Finding, causes},
    machine,
};
use crate::{
    cli::{environment, model::ModelArgs},
    p2p::Identity,
    server,
};

/// The model's files, and whether what is missing fits on the disk.
pub(super) async fn model(name: Option<&str>) -> Vec<Finding> {
    let cache = environment::hub_options(None, None).cache;
    let Some(name) = name else {
        return vec![
            Finding::note("model", "none named: give MODEL to check its files"),
            machine::disk(&cache, 0),
        ];
    };
    let model = match ModelArgs::named(name).resolve().await {
        Ok(model) => model,
        Err(error) => {
            let remedy = "check the name and HF_TOKEN, or copy it from a machine that has access";
            return vec![
                Finding::problem("model", causes(&error), remedy),
                machine::disk(&cache, 0),
            ];
        }
    };
    let (source, n_blocks) = (model.source.clone(), model.source.config().n_blocks);
    let missing = tokio::task::spawn_blocking(move || source.missing_files(0..n_blocks)).await;
    match missing {
        Ok(Ok(files)) if files.is_empty() => vec![
            Finding::fine("model", format!("{name}: {n_blocks} blocks, all files are here")),
            machine::disk(&cache, 0),
        ],
        Ok(Ok(files)) if model.source.repo_name().is_none() => {
            let seen = format!("{name}: {} of its files are missing, first {}", files.len(), files[0]);
            let remedy = "copy them into the folder, unless only blocks in the other files are to be served";
            vec![Finding::problem("model", seen, remedy), machine::disk(&cache, 0)]
        }
        Ok(Ok(files)) => {
            let whole = server::weight_bytes(model.source.config());
            let seen = format!(
                "{name}: {} files are to be downloaded; all {n_blocks} blocks would be about {}",
                files.len(),
                machine::gib(whole)
            );
            vec![Finding::note("model", seen), machine::disk(&cache, whole)]
        }
        Ok(Err(error)) => vec![Finding::problem(
            "model",
            causes(&error.into()),
            "repair or download it again",
        )],
        Err(error) => vec![Finding::problem("model", error.to_string(), "try again")],
    }
}

/// The key file, if one is named.
pub(super) fn identity(file: Option<&Path>) -> Finding {
    let Some(file) = file else {
        return Finding::note(
            "identity",
            "none named: the node will be a new one at every start; give --identity FILE",
        );
    };
    if !file.exists() {
        let folder = file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        return if folder.is_dir() {
            Finding::fine(
                "identity",
                format!("{} will be created at the first start", file.display()),
            )
        } else {
            Finding::problem(
                "identity",
                format!("there is no folder {}", folder.display()),
                "create it",
            )
        };
    }
    match Identity::load_or_create(file) {
        Ok(identity) => Finding::fine("identity", identity.peer_id().to_string()),
        Err(error) => Finding::problem(
            "identity",
            causes(&error.into()),
            "name another file with --identity, or repair this one",
        ),
    }
}
