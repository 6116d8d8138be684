//! Where the tokenizer comes from if it is none that we can build.

use super::{super::testing::byte_level, *};

const OTHER: &[u8] = br#"{"version": "1.0"}"#;

fn file(base_url: &str) -> Vec<u8> {
    let config = small_config(json!({"vocab_size": 16, "tie_word_embeddings": true}));
    let mut metadata = metadata_of(&config);
    metadata.extend(byte_level("unheard-of"));
    metadata.push(("general.base_model.0.repo_url".to_owned(), text(base_url)));
    gguf_of(&config, &tensors(&config), GgmlDType::F32, &metadata)
}

#[test]
fn a_tokenizer_of_unknown_kind_is_replaced_by_that_of_the_repository_the_model_was_made_of() {
    let (folder, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let hub = FakeHub::with_files(&[("tokenizer.json", OTHER)]);
    let options = hub.options(cache.path());
    for hub_url in ["https://huggingface.co", &options.endpoint] {
        let path = written(&folder, &file(&format!("{hub_url}/{REPO}")));
        let source = ModelSource::resolve(path.to_str().unwrap(), &options).unwrap();
        assert_eq!(&*source.tokenizer_json().unwrap(), OTHER, "{hub_url}");
    }
}

#[test]
fn where_a_tokenizer_was_looked_for_is_said() {
    let (folder, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let hub = FakeHub::with_large_files(&[("m.gguf", &file("https://huggingface.co/owner/base"))]);
    let options = hub.options(cache.path());
    let said = |name: &str| {
        let error = ModelSource::resolve(name, &options)
            .unwrap()
            .tokenizer_json()
            .unwrap_err();
        let ResolveError::NoTokenizerForGguf { source, .. } = &error else {
            panic!("{error}")
        };
        assert!(source.to_string().contains("\"unheard-of\""), "{source}");
        error.to_string()
    };
    let error = said(&format!("{REPO}:m.gguf"));
    assert!(
        error.contains("owner/name and owner/base have no tokenizer.json"),
        "{error}"
    );
    let path = written(&folder, &file("https://elsewhere.example/owner/base"));
    let error = said(path.to_str().unwrap());
    assert!(error.contains("its folder has no tokenizer.json"), "{error}");
    fs::write(folder.path().join("tokenizer.json"), OTHER).unwrap();
    let beside = ModelSource::resolve(path.to_str().unwrap(), &options).unwrap();
    assert_eq!(&*beside.tokenizer_json().unwrap(), OTHER);
}
