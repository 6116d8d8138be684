//! GGUF files as models: in a folder, by their path, or in a repository of the hub.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::info;

use super::{CONFIG_FILE, ModelSource, Place, ResolveError, TOKENIZER_FILE, read};
use crate::model::{
    GgufError, LoadError,
    gguf::{self, Gguf, is_gguf},
    hub::{HubError, HubOptions, HubRepo},
    load,
};

/// In the names of files in 4 bits, which most people choose.
const USUAL_KIND: &str = "Q4_K_M";

impl ModelSource {
    /// Beside the file or in its repository, or else what the file itself has, or that of the model it was made of.
    pub(super) fn tokenizer_of_gguf(&self) -> Result<Cow<'static, [u8]>, ResolveError> {
        let Place::Gguf {
            path, file, repo, base, ..
        } = &self.place
        else {
            return Err(ResolveError::NoTokenizer {
                model: self.name.clone(),
            });
        };
        if let Some(beside) = beside_gguf(path, repo.as_ref(), TOKENIZER_FILE)? {
            return Ok(Cow::Owned(read(&beside)?));
        }
        let source = match file.tokenizer_json() {
            Ok(json) => return Ok(Cow::Owned(json)),
            Err(source) => source,
        };
        let mut looked = repo.as_ref().map_or("its folder", HubRepo::name).to_owned();
        if let Some(base) = base {
            let why = &source as &dyn std::error::Error;
            info!(
                error = why,
                "taking the tokenizer.json of {} for {}",
                base.name(),
                self.name
            );
            if let Some(path) = base.clone().get_optional(TOKENIZER_FILE)? {
                return Ok(Cow::Owned(read(&path)?));
            }
            looked = format!("{looked} and {}", base.name());
        }
        let verb = if base.is_some() { "have" } else { "has" };
        Err(ResolveError::NoTokenizerForGguf {
            model: self.name.clone(),
            looked: format!("{looked} {verb}"),
            source,
        })
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
pub(super) fn gguf_at(path: &Path, mut repo: Option<HubRepo>, options: &HubOptions) -> Result<Place, ResolveError> {
    let paths = match (path.to_str().map(gguf::parts), &mut repo) {
        (Some(names), Some(repo)) => names.iter().map(|name| repo.get(name)).collect::<Result<Vec<_>, _>>()?,
        (Some(names), None) => names.into_iter().map(PathBuf::from).collect(),
        (None, _) => vec![path.to_owned()],
    };
    let contents = paths.iter().map(|path| load::map(path)).collect::<Result<_, _>>()?;
    let file = Gguf::read(contents).map_err(unusable_gguf(&paths[0]))?;
    // Whichever revision is asked for, it is one of the file's own repository.
    let of_base = HubOptions {
        revision: None,
        ..options.clone()
    };
    let base = file.base_repo(&options.endpoint);
    Ok(Place::Gguf {
        path: paths[0].clone(),
        paths,
        base: base.and_then(|name| HubRepo::open(name, &of_base).ok()),
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
