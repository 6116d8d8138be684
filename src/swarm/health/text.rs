//! Texts that strangers wrote, made fit for a map: bounded, and safe where they become part of a command. Pure.
//!
//! Nothing is escaped for HTML or a terminal here: that is for whoever draws it.

use super::state::{Contributor, ServerView};
use crate::swarm::{
    health::state::{Condition, ModelState},
    models,
};

/// Most characters of a name, version or other short text of a record.
const MAX_TEXT: usize = 100;

/// Most characters of an address, a model's name or an error.
const MAX_LONG_TEXT: usize = 300;

/// Longest prefix of a model, in bytes, that is looked for.
pub(crate) const MAX_PREFIX: usize = 200;

/// Blocks from which on a server's name is shown among the contributors, and characters of it, as health.petals.dev
/// has it.
const CONTRIBUTOR_MIN_BLOCKS: u32 = 10;
const CONTRIBUTOR_NAME: usize = 20;

/// How many contributors are shown, as health.petals.dev does.
const N_CONTRIBUTORS: usize = 5;

/// What repositories of models that may be linked to start with; health.petals.dev shows no others.
const HUB: &str = "https://huggingface.co/";

/// The first characters of a short text.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// The first characters of a text that may be longer.
pub(crate) fn long(text: &str) -> String {
    text.chars().take(MAX_LONG_TEXT).collect()
}

/// `repository` if it is a page of the hub and not unreasonably long.
pub(crate) fn hub_page(repository: &str) -> Option<String> {
    let name = repository.strip_prefix(HUB)?;
    let fits = !name.is_empty() && repository.chars().count() <= MAX_LONG_TEXT;
    fits.then(|| repository.to_string())
}

/// The name of the repository behind a page of the hub.
pub(crate) fn hub_name(page: &str) -> Option<&str> {
    page.strip_prefix(HUB)
}

/// A word of a command line as a POSIX shell has to be given it. None for words with control characters, which a
/// terminal might act on before the shell sees them.
pub(crate) fn shell_word(word: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._:-".contains(c);
    if word.chars().any(char::is_control) {
        None
    } else if !word.is_empty() && word.chars().all(plain) && !word.starts_with('-') {
        Some(word.to_string())
    } else if word.starts_with('-') {
        None
    } else {
        Some(format!("'{}'", word.replace('\'', r"'\''")))
    }
}

/// Whether servers of the repository `name` find each other under `prefix` without being told so, by the rule of any
/// family of models.
pub(crate) fn is_usual_prefix(name: &str, prefix: &str) -> bool {
    ["llama", "falcon", "mixtral", "bloom"]
        .into_iter()
        .any(|family| models::dht_prefix(family, name) == prefix)
}

/// Who holds most blocks: names of servers that are online and hold at least ten. Of the rule of health.petals.dev the
/// part that asks for an official model is left out: here, no model is more official than another.
pub(crate) fn contributors(models: &[ModelState]) -> Vec<Contributor> {
    let mut found: Vec<Contributor> = Vec::new();
    let servers = models.iter().flat_map(|model| &model.servers);
    for (server, public_name) in servers.filter_map(|server| Some((server, named(server)?))) {
        let (name, url) = name_and_link(public_name);
        let blocks = server.end - server.start;
        match found.iter_mut().find(|other| other.name == name && other.url == url) {
            Some(other) => other.blocks = other.blocks.saturating_add(blocks),
            None => found.push(Contributor { name, url, blocks }),
        }
    }
    found.sort_by(|a, b| b.blocks.cmp(&a.blocks).then_with(|| a.name.cmp(&b.name)));
    found.truncate(N_CONTRIBUTORS);
    found
}

/// Whether the owner's name of this server is shown, by the rule of health.petals.dev.
pub fn named(server: &ServerView) -> Option<&str> {
    let shown = server.state == Condition::Online && server.end - server.start >= CONTRIBUTOR_MIN_BLOCKS;
    server.public_name.as_deref().filter(|name| shown && !name.is_empty())
}

/// A name that starts like an address of a page is one: it is shown without the scheme and leads there.
fn name_and_link(public_name: &str) -> (String, Option<String>) {
    let rest = ["https://", "http://"]
        .into_iter()
        .find_map(|scheme| public_name.strip_prefix(scheme));
    let name = rest.map_or(public_name, |rest| rest.trim_end_matches('/'));
    let name = name.chars().take(CONTRIBUTOR_NAME).collect();
    (name, rest.map(|_| public_name.to_string()))
}
