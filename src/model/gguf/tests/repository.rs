//! What is downloaded of a GGUF file in a repository.

use super::*;
use crate::model::HubOptions;

const FILE: &str = "model-Q8_0.gguf";
/// What is asked for first to see the header, which has less.
const FIRST_BYTES: u64 = 10_000;

/// Of blocks of a few hundred kilobytes, with factors of its rotation.
fn file() -> Vec<u8> {
    let config = config();
    let mut tensors = tensors(&config);
    tensors.insert("rope_freqs.weight".to_owned(), (vec![16], vec![1.0; 16]));
    gguf_of(&config, &tensors, GgmlDType::Q8_0, &metadata_of(&config))
}

fn source(options: &HubOptions) -> ModelSource {
    ModelSource::resolve(&format!("{REPO}:{FILE}"), options).unwrap()
}

fn block(source: &ModelSource, block: u32) -> Vec<f32> {
    let files = source.files_for_span(block..block + 1).unwrap();
    let blocks = Blocks::load(&files, block..block + 1, WeightDType::F32, engine()).unwrap();
    let mut x = random_hidden(&mut rng(7), 1, 5, source.config().hidden_size);
    blocks.forward(block, &mut x).unwrap();
    x.data
}

fn logits(source: &ModelSource) -> Vec<f32> {
    let ends = Ends::load(&source.files_for_ends().unwrap(), WeightDType::F32, &engine()).unwrap();
    ends.logits(&ends.embed(&[3, 15]).unwrap().data).unwrap()
}

#[test]
fn only_the_header_and_the_wanted_tensors_are_downloaded_and_each_once() {
    let (folder, cache, file) = (TempDir::new().unwrap(), TempDir::new().unwrap(), file());
    let (hub, here) = (FakeHub::with_large_files(&[(FILE, &file)]), written(&folder, &file));
    let (options, expected) = (hub.options(cache.path()), resolve(&here).unwrap());
    let found = source(&options);
    assert_eq!(found.config(), expected.config());
    let header = hub.sent(FILE);
    assert!(header < FIRST_BYTES + 1000, "{header} bytes for the header");
    assert_eq!(found.missing_files(1..2).unwrap(), [FILE]);
    assert_eq!(logits(&found), logits(&expected));
    let ends = hub.sent(FILE) - header;
    assert!(ends < 10_000, "{ends} bytes for embeddings and norm");
    assert_eq!(block(&found, 1), block(&expected, 1));
    let most = file.len() as u64 / 2 + header + ends;
    assert!(hub.sent(FILE) <= most, "{} of {}", hub.sent(FILE), file.len());
    assert!(found.missing_files(1..2).unwrap().is_empty());

    let sent = hub.sent(FILE);
    let offline = HubOptions {
        offline: true,
        ..options.clone()
    };
    for options in [&options, &offline] {
        let again = source(options);
        assert_eq!(
            (block(&again, 1), logits(&again)),
            (block(&expected, 1), logits(&expected))
        );
        assert_eq!(hub.sent(FILE), sent);
    }
    assert!(source(&offline).files_for_span(0..1).is_err());
    assert_eq!(block(&found, 0), block(&expected, 0));
}

#[test]
fn a_file_of_which_most_is_wanted_comes_whole_as_does_one_from_a_server_without_ranges() {
    let (folder, file) = (TempDir::new().unwrap(), file());
    let expected = block(&resolve(&written(&folder, &file)).unwrap(), 0);
    for (ignores_ranges, blocks) in [(false, 0..2), (true, 0..1)] {
        let (hub, cache) = (FakeHub::with_large_files(&[(FILE, &file)]), TempDir::new().unwrap());
        hub.change(FILE, |stored| stored.ignores_ranges = ignores_ranges);
        let source = source(&hub.options(cache.path()));
        source.files_for_span(blocks).unwrap();
        let snapshots = cache.path().join("models--owner--name/snapshots");
        let snapshot = fs::read_dir(snapshots).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read(snapshot.join(FILE)).unwrap(), file);
        assert_eq!(block(&source, 0), expected);
    }
}

#[test]
fn another_file_with_that_name_is_refused() {
    let mut garbage = vec![0; 100_000];
    let refused = |bytes: &[u8]| {
        let (hub, cache) = (FakeHub::with_large_files(&[(FILE, bytes)]), TempDir::new().unwrap());
        ModelSource::resolve(&format!("{REPO}:{FILE}"), &hub.options(cache.path())).unwrap_err()
    };
    assert!(matches!(refused(&garbage), ResolveError::Hub(_)));
    garbage[..8].copy_from_slice(b"GGUF\x03\0\0\0");
    garbage[8..24].fill(0xff);
    assert!(matches!(refused(&garbage), ResolveError::Hub(_)));
}
