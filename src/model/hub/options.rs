//! Where the cache is and how the hub is reached, by the variables that every Hugging Face tool reads.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hf_hub::Cache;

use super::{
    lock::Patience,
    progress::{Progress, Silent},
    reach::Reach,
};

/// The hub that is meant when `HF_ENDPOINT` is not set.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How repositories are found. [`HubOptions::from_variables`] reads what other tools read.
#[derive(Clone)]
pub struct HubOptions {
    /// Holds one folder `models--OWNER--NAME` per repository; absolute.
    pub cache: PathBuf,
    /// Use the cache only.
    pub offline: bool,
    /// Shown to the hub with every request.
    pub token: Option<String>,
    /// Base of all URLs, with `http://` or `https://`.
    pub endpoint: String,
    /// Branch, tag or commit; `main` if absent.
    pub revision: Option<String>,
    /// Bytes the cache may take; the files that were not used for the longest time are deleted before more are
    /// downloaded. Without it only a full disk is a reason to.
    pub max_disk_space: Option<u64>,
    /// Wait for a hub that cannot be reached until it can, instead of two minutes: for servers, which nobody watches.
    pub keep_trying: bool,
    /// Is told how far downloads are.
    pub progress: Arc<dyn Progress>,
    pub(crate) tuning: Tuning,
    pub(crate) reach: Arc<Reach>,
}

/// Sizes and times of downloads, which tests make small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// The wait after the first of several failures; each further one doubles it.
    pub(crate) first_wait: Duration,
    /// The longest, unless the hub asks for a longer one.
    pub(crate) last_wait: Duration,
    /// Most bytes of one request.
    pub(crate) stretch: u64,
    /// How many bytes of a request may be lost when the process ends.
    pub(crate) note_every: u64,
    /// Bytes between two tensors that are cheaper to download and drop than to ask twice: what a fast line carries in
    /// the time of a request.
    pub(crate) max_gap: u64,
    /// Files up to this many bytes are downloaded whole.
    pub(crate) small_file: u64,
    /// How much of a file is asked for to see its header: that of most shards, with room.
    pub(crate) first_bytes: u64,
    /// With others that use the cache.
    pub(crate) patience: Patience,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_secs(1),
            last_wait: Duration::from_secs(30),
            stretch: 64 << 20,
            note_every: 8 << 20,
            max_gap: 1 << 20,
            small_file: 32 << 20,
            first_bytes: 256 << 10,
            patience: Patience::default(),
        }
    }
}

impl HubOptions {
    /// Reads `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_TOKEN_PATH` and
    /// `HF_ENDPOINT` through `variable`, and the names that some of them had before: `HUGGINGFACE_HUB_CACHE`,
    /// `TRANSFORMERS_OFFLINE` and `HUGGING_FACE_HUB_TOKEN`; with the precedence of `huggingface_hub` (`constants.py`,
    /// `utils/_auth.py`). A token may also lie in the file that logging in with the hub's own tool writes.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let user_home = set("HOME")
            .or_else(|| set("USERPROFILE"))
            .map(PathBuf::from)
            .unwrap_or_default();
        let path = |name: &str| set(name).map(|value| expand(&value, &user_home, &variable));
        let home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME")
                .unwrap_or_else(|| user_home.join(".cache"))
                .join("huggingface")
        });
        let usual = Cache::new(home.join("hub"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.unwrap_or_else(|| usual.path().clone());
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| usual.token_path());
        Self {
            // A relative cache is relative to the working directory, which a long-running program may change.
            cache: std::path::absolute(&cache).unwrap_or(cache),
            offline: set("HF_HUB_OFFLINE")
                .or_else(|| set("TRANSFORMERS_OFFLINE"))
                .is_some_and(|value| is_true(&value)),
            token: set("HF_TOKEN")
                .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| read_token(&token_file))
                .map(|token| token.trim().to_owned()),
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            revision: None,
            max_disk_space: None,
            keep_trying: false,
            progress: Arc::new(Silent),
            tuning: Tuning::default(),
            reach: Arc::default(),
        }
    }
}

/// A leading `~/` is the user's home, and `$NAME` and `${NAME}` are variables, as in `huggingface_hub`: what was set by
/// something else than a shell has them still. Variables that are not set stay as they are.
fn expand(value: &str, user_home: &Path, variable: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let value = match value.strip_prefix("~/") {
        Some(inside) => user_home.join(inside).to_string_lossy().into_owned(),
        None => value.to_owned(),
    };
    let (mut expanded, mut rest) = (String::new(), value.as_str());
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let (name, behind) = match after.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            Some(braced) => braced,
            None => after.split_at(after.find(|c: char| !is_of_name(c)).unwrap_or(after.len())),
        };
        match variable(name).filter(|_| !name.is_empty()) {
            Some(meant) => expanded.push_str(&meant),
            None => expanded.push_str(&rest[before.len()..rest.len() - behind.len()]),
        }
        rest = behind;
    }
    expanded.push_str(rest);
    PathBuf::from(expanded)
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_uppercase().as_str())
}

fn read_token(path: &Path) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .filter(|token| !token.trim().is_empty())
}

/// Without the token: options are logged.
impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("endpoint", &self.endpoint)
            .field("revision", &self.revision)
            .field("max_disk_space", &self.max_disk_space)
            .field("keep_trying", &self.keep_trying)
            .finish_non_exhaustive()
    }
}
