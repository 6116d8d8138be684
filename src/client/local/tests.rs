//! Whole models in this process: the same numbers as without threads and caches, and what is refused.

use super::*;
use crate::model::{Blocks, Hidden, HubOptions, WeightDType, WeightFormat, testing::engine};

fn demo() -> ModelSource {
    ModelSource::resolve("demo", &HubOptions::from_variables(|_| None)).unwrap()
}

fn model() -> LocalModel {
    LocalModel::load(&demo(), &engine(), &LocalOptions::default()).unwrap()
}

const TOKENS: [u32; 9] = [1, 40, 7, 300, 12, 12, 99, 450, 3];

/// What the blocks and the head give without any thread or cache of ours.
fn expected(tokens: &[u32]) -> Vec<f32> {
    let (source, dtype) = (demo(), WeightDType::Bf16);
    let n_blocks = source.config().n_blocks;
    let blocks = Blocks::load(
        &source.files_for_span(0..n_blocks).unwrap(),
        0..n_blocks,
        dtype,
        engine(),
    )
    .unwrap();
    let ends = Ends::load(&source.files_for_ends().unwrap(), dtype, &engine()).unwrap();
    let mut x: Hidden = ends.embed(tokens).unwrap();
    (0..n_blocks).for_each(|block| blocks.forward(block, &mut x).unwrap());
    ends.logits(&x.data).unwrap()
}

#[tokio::test]
async fn a_whole_model_gives_the_same_logits_in_pieces_as_at_once_and_after_a_rewind() {
    let (expected, vocab) = (expected(&TOKENS), demo().config().vocab_size);
    let mut session = model().session(16);
    let mut found = session.logits(&TOKENS[..4]).await.unwrap();
    session.feed(&[5, 6, 7, 8, 9]).await.unwrap();
    assert_eq!(session.position(), 9);
    session.rewind(4);
    for token in &TOKENS[4..] {
        found.extend(session.logits(std::slice::from_ref(token)).await.unwrap());
    }
    assert_eq!(found.len(), TOKENS.len() * vocab);
    assert_eq!(found, expected);
    session.rewind(2);
    let last = session.next(&TOKENS[2..]).await.unwrap();
    assert_eq!(last, expected[expected.len() - vocab..]);
}

#[tokio::test]
async fn sessions_at_the_same_time_give_what_each_gives_alone() {
    let (model, expected) = (model(), expected(&TOKENS));
    let vocab = model.config().vocab_size;
    let sessions = (1..TOKENS.len()).map(|first| {
        let (mut session, expected) = (model.session(TOKENS.len()), &expected);
        async move {
            let mut found = session.logits(&TOKENS[..first]).await.unwrap();
            for token in &TOKENS[first..] {
                found.extend(session.logits(&[*token]).await.unwrap());
            }
            assert_eq!(found.len(), TOKENS.len() * vocab);
            assert_eq!(&found, expected);
        }
    });
    futures::future::join_all(sessions).await;
}

#[tokio::test]
async fn a_step_that_does_not_fit_changes_nothing() {
    let mut session = model().session(8);
    session.feed(&TOKENS[..7]).await.unwrap();
    let error = session.logits(&TOKENS[7..]).await.unwrap_err();
    assert!(matches!(error, LocalError::Compute(_)), "{error}");
    assert!(session.logits(&[100_000]).await.is_err());
    let found = session.logits(&TOKENS[7..8]).await.unwrap();
    let expected = expected(&TOKENS[..8]);
    assert_eq!(found, expected[expected.len() - found.len()..]);
}

#[tokio::test]
async fn a_session_whose_step_was_not_waited_for_begins_again() {
    let mut session = model().session(8);
    session.feed(&TOKENS[..3]).await.unwrap();
    {
        let mut step = std::pin::pin!(session.logits(&TOKENS[3..5]));
        assert!(futures::poll!(step.as_mut()).is_pending());
    }
    assert!(matches!(session.logits(&[1]).await, Err(LocalError::Ended)));
    session.rewind(0);
    assert_eq!(session.logits(&TOKENS[..5]).await.unwrap(), expected(&TOKENS[..5]));
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_format_that_would() {
    let source = demo();
    let with = |memory, quant| LocalOptions {
        memory: Some(memory),
        quant,
        cache_tokens: 0,
    };
    let (config, ends) = (source.config(), 2 * 512 * 128 * 2);
    let smaller = with(0, Some(WeightFormat::Q8_0)).bytes(&source, config.n_blocks) + ends;
    let error = LocalModel::load(&source, &engine(), &with(smaller, None)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("all blocks, embeddings and head of demo need ") && text.ends_with("; as q8_0 they would fit"),
        "{text}"
    );
    LocalModel::load(&source, &engine(), &with(smaller, Some(WeightFormat::Q8_0))).unwrap();
    let error = LocalModel::load(&source, &engine(), &with(1, None)).unwrap_err();
    assert!(
        error.to_string().ends_with("1.0 KiB are free here") || error.to_string().ends_with("0.0 KiB are free here")
    );
}
