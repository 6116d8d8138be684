//! Where chat templates are found, and which comes first.

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::model::{
    HubOptions,
    gguf::testing::demo_gguf,
    hub::testing::{self, FakeHub, REPO},
    testing::vectors,
};

fn nowhere() -> HubOptions {
    HubOptions {
        offline: true,
        ..testing::options()
    }
}

/// A folder with a model in it and these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = fs::read(vectors("petals/tiny-llama").join("config.json")).unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn chat_files(folder: &TempDir) -> Result<ChatFiles, ResolveError> {
    ModelSource::resolve(&folder.path().display().to_string(), &nowhere())
        .unwrap()
        .chat_files()
}

fn names(files: &ChatFiles) -> Vec<(&str, &str)> {
    files
        .templates
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect()
}

#[test]
fn the_built_in_model_has_a_template_and_its_tokens() {
    let files = ModelSource::resolve("demo", &nowhere()).unwrap().chat_files().unwrap();
    assert_eq!(files.templates.len(), 1);
    assert_eq!(files.special_tokens["bos_token"], "<bos>");
    assert_eq!(files.special_tokens["eos_token"], "<eos>");
}

#[test]
fn a_model_without_templates_has_none() {
    assert_eq!(chat_files(&folder(&[])).unwrap(), ChatFiles::default());
}

#[test]
fn templates_and_tokens_are_read_in_all_their_spellings() {
    let config = json!({
        "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null, "add_bos_token": true,
        "chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}],
    });
    let map = r#"{"eos_token": "older", "unk_token": {"content": "<unk>"}}"#;
    let folder = folder(&[
        ("tokenizer_config.json", &config.to_string()),
        ("special_tokens_map.json", map),
    ]);
    let files = chat_files(&folder).unwrap();
    assert_eq!(names(&files), [("default", "a"), ("tool_use", "b")]);
    let expected = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    assert_eq!(Value::Object(files.special_tokens), expected);
}

#[test]
fn files_with_templates_come_before_the_configuration() {
    let folder = folder(&[
        ("tokenizer_config.json", r#"{"chat_template": "old"}"#),
        ("chat_template.jinja", "new"),
        ("additional_chat_templates/rag.jinja", "rag"),
        ("additional_chat_templates/notes.txt", "no"),
    ]);
    assert_eq!(
        names(&chat_files(&folder).unwrap()),
        [("default", "new"), ("rag", "rag")]
    );
}

#[test]
fn templates_of_a_repository_are_downloaded_also_from_their_folder() {
    let cache = TempDir::new().unwrap();
    let config = fs::read(vectors("petals/tiny-llama").join("config.json")).unwrap();
    let hub = FakeHub::with_files(&[
        ("config.json", &config),
        ("chat_template.jinja", b"usual"),
        ("additional_chat_templates/tool_use.jinja", b"tools"),
    ]);
    let source = ModelSource::resolve(REPO, &hub.options(cache.path())).unwrap();
    for _ in 0..2 {
        let files = source.chat_files().unwrap();
        assert_eq!(names(&files), [("default", "usual"), ("tool_use", "tools")]);
    }
    assert_eq!(hub.sent("chat_template.jinja"), 5, "downloaded once");
}

#[test]
fn a_configuration_that_is_no_json_is_named() {
    let error = chat_files(&folder(&[("tokenizer_config.json", "{")])).unwrap_err();
    assert!(error.to_string().starts_with("tokenizer_config.json of "), "{error}");
}

#[test]
fn gguf_files_bring_their_template_unless_one_lies_beside_them() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, demo_gguf()).unwrap();
    let source = ModelSource::resolve(&path.display().to_string(), &nowhere()).unwrap();
    let files = source.chat_files().unwrap();
    let built_in = ModelSource::resolve("demo", &nowhere()).unwrap().chat_files().unwrap();
    assert_eq!(files.templates, built_in.templates);
    assert_eq!(files.special_tokens["bos_token"], "<bos>");
    fs::write(folder.path().join("chat_template.jinja"), "beside").unwrap();
    assert_eq!(names(&source.chat_files().unwrap()), [("default", "beside")]);
}
