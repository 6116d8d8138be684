//! GGUF files as models: in a folder, by their path, or in a repository of the hub.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tracing::info;

use super::{CONFIG_FILE, ModelSource, Place, ResolveError, TOKENIZER_FILE, read};
use crate::model::{
    GgufError, LoadError, ModelFiles,
    gguf::{self, Gguf, is_gguf},
    hub::{HubError, HubOptions, HubRepo, Lease, Tensors, Want},
    load,
};

/// In the names of files in 4 bits, which most people choose.
const USUAL_KIND: &str = "Q4_K_M";

impl ModelSource {
    /// The tensors of `groups`, downloaded if need be; `None` if it is no GGUF file of a repository.
    pub(super) fn files_of_gguf(&self, groups: &[(String, Tensors)]) -> Result<Option<ModelFiles>, ResolveError> {
        let Place::Gguf {
            file, repo: Some(repo), ..
        } = &self.place
        else {
            return Ok(None);
        };
        let local = repo.clone().weights(&self.wants_of_gguf(groups))?;
        let mut tensors = HashMap::new();
        for path in &local.files {
            tensors.extend(tensors_in(path)?);
        }
        let path = local.files.first().cloned().unwrap_or_default();
        let file = Arc::new(file.with_tensors(tensors));
        let files = ModelFiles::from_gguf(self.config.clone(), (path, file), Some(local.lease));
        Ok(Some(files))
    }

    /// Each group in the files that have some of it.
    pub(super) fn wants_of_gguf(&self, groups: &[(String, Tensors)]) -> Vec<Want> {
        let Place::Gguf { file, names, .. } = &self.place else {
            return Vec::new();
        };
        let wants = groups.iter().flat_map(|group| {
            let parts = file.parts_with(&group.1).into_iter();
            parts.filter_map(|part| Some(want(names.get(part)?, group.clone())))
        });
        wants.collect()
    }

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
            source: Box::new(source),
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

/// The model in a GGUF file, or in those of which it is the first, of this machine or of a repository. Of one in a repository
/// only the header is downloaded, if it is not small.
pub(super) fn gguf_at(path: &Path, repo: Option<HubRepo>, options: &HubOptions) -> Result<Place, ResolveError> {
    let names = path
        .to_str()
        .map_or_else(|| vec![path.display().to_string()], gguf::parts);
    let (file, path, repo, lease) = match repo {
        Some(repo) => {
            let (file, path, repo, lease) = header_of(&names, repo)?;
            (file, path, Some(repo), Some(Arc::new(lease)))
        }
        None => {
            let paths: Vec<PathBuf> = if names.len() > 1 {
                names.iter().map(PathBuf::from).collect()
            } else {
                vec![path.to_owned()]
            };
            let contents = paths.iter().map(|path| load::map(path)).collect::<Result<_, _>>()?;
            let file = Gguf::read(contents).map_err(unusable_gguf(&paths[0]))?;
            (file, paths[0].clone(), None, None)
        }
    };
    // Whichever revision is asked for, it is one of the file's own repository.
    let of_base = HubOptions {
        revision: None,
        ..options.clone()
    };
    let base = file.base_repo(&options.endpoint);
    Ok(Place::Gguf {
        path,
        base: base.and_then(|name| HubRepo::open(name, &of_base).ok().map(Box::new)),
        file: Arc::new(file),
        repo,
        names,
        _lease: lease,
    })
}

/// What files of a repository begin with, where that is now, and what keeps it there.
fn header_of(names: &[String], mut repo: HubRepo) -> Result<(Gguf, PathBuf, HubRepo, Lease), ResolveError> {
    let wants: Vec<Want> = names.iter().map(|name| want(name, gguf::group_of_header())).collect();
    let local = repo.weights(&wants)?;
    let (mut beginnings, mut tensors) = (Vec::new(), HashMap::new());
    for path in &local.files {
        let mut found = tensors_in(path)?;
        beginnings.extend(found.remove(gguf::HEADER));
        tensors.extend(found);
    }
    let path = local.files.first().cloned().unwrap_or_default();
    let file = Gguf::without_tensors(&beginnings).map_err(unusable_gguf(&path))?;
    Ok((file.with_tensors(tensors), path, repo, local.lease))
}

fn want(file: &str, group: (String, Tensors)) -> Want {
    Want {
        file: file.to_owned(),
        group: Some(group),
    }
}

/// The tensors of a file of the cache by their names in the GGUF file that it is, or that it is a piece of.
fn tensors_in(path: &Path) -> Result<HashMap<String, Bytes>, ResolveError> {
    let content = load::map(path)?;
    if content.starts_with(b"GGUF") {
        let spans = gguf::spans(&content, content.len() as u64).map_err(unusable_gguf(path))?;
        let slice = |range: Range<u64>| content.slice(range.start as usize..range.end as usize);
        let spans = spans.unwrap_or_default().into_iter();
        return Ok(spans.map(|(name, range)| (name, slice(range))).collect());
    }
    Ok(load::tensors_of(path, &content)?)
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
            source: Box::new(error),
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
