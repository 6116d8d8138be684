//! GGUF files as models: in a folder, by their path, or in a repository of the hub.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{CONFIG_FILE, ModelSource, Place, ResolveError, TOKENIZER_FILE, read};
use crate::model::{
    GgufError, LoadError,
    gguf::{self, Gguf, is_gguf},
    hub::{HubError, HubRepo},
    load,
};

/// In the names of files in 4 bits, which most people choose.
const USUAL_KIND: &str = "Q4_K_M";

impl ModelSource {
    /// Beside the file or in its repository, or else what the file itself has.
    pub(super) fn tokenizer_of_gguf(
        &self,
        path: &Path,
        file: &Gguf,
        repo: Option<&HubRepo>,
    ) -> Result<Cow<'static, [u8]>, ResolveError> {
        match beside_gguf(path, repo, TOKENIZER_FILE)? {
            Some(beside) => Ok(Cow::Owned(read(&beside)?)),
            None => Ok(Cow::Owned(file.tokenizer_json().map_err(unusable_gguf(path))?)),
        }
    }
}

/// The GGUF files of a folder that has no other model, by their names; the first of those that one model is in.
pub(super) fn gguf_models(folder: &Path) -> Vec<PathBuf> {
    if folder.join(CONFIG_FILE).exists() {
        return Vec::new();
    }
    // A folder that cannot be read has no configuration either, and that is said.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| is_gguf(path) && !gguf::is_later_part(path));
    files.sort();
    files
}

/// The model in a GGUF file, or in those of which it is the first, of this machine or of a repository.
pub(super) fn gguf_at(path: &Path, mut repo: Option<HubRepo>) -> Result<Place, ResolveError> {
    let paths = match (path.to_str().map(gguf::parts), &mut repo) {
        (Some(names), Some(repo)) => names.iter().map(|name| repo.get(name)).collect::<Result<Vec<_>, _>>()?,
        (Some(names), None) => names.into_iter().map(PathBuf::from).collect(),
        (None, _) => vec![path.to_owned()],
    };
    let contents = paths.iter().map(|path| load::map(path)).collect::<Result<_, _>>()?;
    let file = Gguf::read(contents).map_err(unusable_gguf(&paths[0]))?;
    Ok(Place::Gguf {
        path: paths[0].clone(),
        paths,
        file: Arc::new(file),
        repo,
    })
}

/// What to say of a repository that has no `file`: whether it is one of GGUF files.
pub(super) fn without_file(model: &str, repo: &HubRepo, file: &'static str, error: HubError) -> ResolveError {
    if !matches!(error, HubError::NotFound { .. } | HubError::Offline { .. }) {
        return error.into();
    }
    let mut files = repo.list();
    files.retain(|file| is_gguf(Path::new(file)) && !gguf::is_later_part(Path::new(file)));
    let usual = files.iter().find(|file| file.contains(USUAL_KIND)).or(files.first());
    let by_name = || model.to_lowercase().contains("gguf").then(|| "FILE.gguf".to_owned());
    match usual.cloned().or_else(by_name) {
        Some(example) => ResolveError::OnlyGguf {
            model: model.to_owned(),
            file,
            example,
            source: error,
        },
        None => error.into(),
    }
}

/// A file that need not be beside a GGUF file, or in its repository.
pub(super) fn beside_gguf(path: &Path, repo: Option<&HubRepo>, file: &str) -> Result<Option<PathBuf>, HubError> {
    match repo {
        Some(repo) => repo.clone().get_optional(file),
        None => Ok(Some(path.with_file_name(file)).filter(|path| path.is_file())),
    }
}

pub(super) fn unusable_gguf(path: &Path) -> impl FnOnce(GgufError) -> LoadError {
    move |source| LoadError::Gguf {
        path: path.to_owned(),
        source: Box::new(source),
    }
}
