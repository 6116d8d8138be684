//! Sessions in one batch on a card: each is what it is alone, bit for bit, whatever is beside it.

use std::ops::Range;

use super::*;
use crate::model::AdapterId;

/// What goes through the blocks: all but the last token of each sequence, and then that one.
struct Session {
    x: Hidden,
    adapter: Option<AdapterId>,
}

/// Sessions of so many sequences of so many tokens.
fn sessions(blocks: &Blocks, sizes: &[(usize, usize)]) -> Vec<Session> {
    let session = |(i, (batch, tokens)): (usize, &(usize, usize))| Session {
        x: random_hidden(&mut rng(i as u64), *batch, *tokens, blocks.config().hidden_size),
        adapter: None,
    };
    sizes.iter().enumerate().map(session).collect()
}

/// What comes out for each session, both steps.
fn computed(blocks: &Blocks, sessions: &[Session]) -> Vec<Vec<f32>> {
    let chain: Vec<u32> = blocks.span().collect();
    let cache = |session: &Session| {
        let Hidden { batch, tokens, .. } = session.x;
        blocks
            .new_cache(chain.len(), batch, tokens)
            .with_adapter(session.adapter)
    };
    let mut caches: Vec<Cache> = sessions.iter().map(cache).collect();
    let mut out = vec![Vec::new(); sessions.len()];
    for is_last in [false, true] {
        let before_last = |session: &Session| session.x.tokens - 1;
        let step = |session: &Session| {
            let end = before_last(session);
            tokens(&session.x, if is_last { end..end + 1 } else { 0..end })
        };
        let mut steps: Vec<Hidden> = sessions.iter().map(step).collect();
        let places = caches.iter_mut().zip(sessions);
        let mut parts: Vec<Part<'_>> = places
            .zip(&mut steps)
            .map(|((cache, session), x)| Part {
                cache,
                chain_idx: 0,
                rows: 0..x.batch,
                tokens: 0..x.tokens,
                x,
                position: if is_last { before_last(session) } else { 0 },
            })
            .collect();
        blocks.run_batch(&chain, &mut parts, &mut Scratch::default()).unwrap();
        out.iter_mut().zip(steps).for_each(|(out, step)| out.extend(step.data));
    }
    out
}

#[track_caller]
fn assert_as_alone(blocks: &Blocks, sessions: &[Session]) {
    let together = computed(blocks, sessions);
    for (session, together) in sessions.iter().zip(&together) {
        let alone = computed(blocks, std::slice::from_ref(session));
        assert_same_bits(together, &alone[0]);
    }
}

/// More than 64 tokens at a time, of sequences that are all short.
const SHORT: [(usize, usize); 20] = {
    let mut sizes = [(1, 3); 20];
    (sizes[3], sizes[8], sizes[19]) = ((2, 17), (20, 2), (1, 2));
    sizes
};

/// Short ones between long ones, which are long for every format.
const MIXED: [(usize, usize); 7] = [(1, 4), (1, 91), (3, 2), (1, 17), (2, 70), (1, 67), (1, 2)];

fn formats(of: &[WeightFormat]) -> impl Iterator<Item = Precision> {
    of.iter().map(|weights| Precision {
        weights: *weights,
        dtype: weights.dtype().unwrap_or(WeightDType::Bf16),
    })
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn many_sessions_together_are_what_each_is_alone() {
    for precision in formats(&[
        WeightFormat::F32,
        WeightFormat::Bf16,
        WeightFormat::Q8_0,
        WeightFormat::Nf4,
    ]) {
        println!("{precision:?}");
        let [_, card] = both(
            json!({"num_hidden_layers": 1, "max_position_embeddings": 128}),
            11,
            precision,
        );
        assert_as_alone(&card, &sessions(&card, &SHORT));
        assert_as_alone(&card, &sessions(&card, &MIXED));
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn sessions_that_share_experts_are_what_each_is_alone() {
    let (files, _) = fixture_at("petals/tiny-mixtral");
    for precision in formats(&[WeightFormat::Bf16, WeightFormat::Q4K]) {
        println!("{precision:?}");
        let card = load(&files, precision, machine(1));
        assert_as_alone(&card, &sessions(&card, &SHORT));
        assert_as_alone(&card, &sessions(&card, &MIXED));
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn sessions_with_adapters_of_their_own_are_what_each_is_alone_and_on_the_processor() {
    let [host, card] = [engine().into(), machine(1)].map(|machine| with_adapters(WeightDType::F32, machine));
    for sizes in [&SHORT[..9], &MIXED] {
        let wanted = [None, Some("queries-and-values"), Some("everything"), Some("everything")];
        let [on_host, on_card] = [&host, &card].map(|blocks| {
            let mut sessions = sessions(blocks, sizes);
            for (session, name) in sessions.iter_mut().zip(wanted.iter().cycle()) {
                session.adapter = name.map(|name| blocks.adapter(name).unwrap());
            }
            sessions
        });
        assert_as_alone(&card, &on_card);
        let pairs = computed(&card, &on_card).into_iter().zip(computed(&host, &on_host));
        for (found, expected) in pairs {
            assert_near(&found, &expected, 2e-4);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn prompts_that_are_computed_in_parts_are_cut_as_they_are_alone() {
    let [_, card] = both(json!({"max_position_embeddings": 128}), 12, WeightDType::Bf16);
    let few_bytes = card.clone().with_max_chunk_bytes(60_000);
    assert_as_alone(&few_bytes, &sessions(&card, &MIXED));
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn short_steps_are_what_their_tokens_are_one_at_a_time() {
    for precision in formats(&[WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q4_0]) {
        println!("{precision:?}");
        let [_, card] = both(json!({}), 13, precision);
        let x = random_hidden(&mut rng(10), 2, 24, card.config().hidden_size);
        assert_same_bits(&through(&card, &x, &[16, 5, 3]), &through(&card, &x, &[1; 24]));
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_wide_step_is_the_same_whichever_of_its_sequences_go_at_a_time() {
    let [_, card] = both(json!({}), 14, WeightDType::Bf16);
    let chain: Vec<u32> = card.span().collect();
    let x = random_hidden(&mut rng(11), 5, 3, card.config().hidden_size);
    let in_rows = |cuts: &[Range<usize>]| {
        let (mut cache, mut x) = (card.new_cache(chain.len(), x.batch, x.tokens), x.clone());
        for rows in cuts {
            let part = Part {
                cache: &mut cache,
                chain_idx: 0,
                rows: rows.clone(),
                tokens: 0..x.tokens,
                x: &mut x,
                position: 0,
            };
            card.run_batch(&chain, &mut [part], &mut Scratch::default()).unwrap();
        }
        x.data
    };
    let whole = in_rows(std::slice::from_ref(&(0..5)));
    assert_same_bits(&in_rows(&[0..2, 2..5]), &whole);
    assert_same_bits(&in_rows(&[0..1, 1..4, 4..5]), &whole);
}
