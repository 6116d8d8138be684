//! Blocks on cards against the same blocks on the processor: every family, every format, many sessions, several cards. On
//! the emulated card (`interop-tests/cuda`) or on a real one.

mod together;

use std::num::NonZeroUsize;

use serde_json::json;

use super::*;
use crate::model::{
    Adapter, Blocks, Cache, CacheOptions, Cards, ComputeError, Engine, Family, Hidden, HubOptions, KvDType, LoadError,
    Machine, ModelFiles, Part, Precision, Scratch, WeightDType, WeightFormat, testing::*,
};

/// The first card. Twice it is two places, as far as blocks can tell.
fn machine(n_cards: usize) -> Machine {
    Machine::with_cards(engine(), &Cards::These(vec![0; n_cards]), &Toolkit::default()).unwrap()
}

fn load(files: &ModelFiles, precision: impl Into<Precision>, machine: impl Into<Machine>) -> Blocks {
    Blocks::load(files, 0..files.config().n_blocks, precision, machine).unwrap()
}

/// A model with the adapters "queries-and-values" and "everything".
fn with_adapters(precision: impl Into<Precision>, machine: Machine) -> Blocks {
    let (files, _) = fixture("tiny-llama");
    let adapters = ["queries-and-values", "everything"].map(|name| {
        let folder = vectors("sepal/lora").join(name);
        let mut options = HubOptions::from_variables(|_| None);
        options.offline = true;
        Adapter::open(folder.to_str().unwrap(), &options).unwrap()
    });
    load(&files, precision, machine).with_adapters(&adapters).unwrap()
}

/// A random model on the processor and on a card.
fn both(changes: serde_json::Value, seed: u64, precision: impl Into<Precision>) -> [Blocks; 2] {
    let (config, precision) = (small_config(changes), precision.into());
    let folder = write_model(&config, &random_tensors(&config, seed));
    let files = ModelFiles::from_folder(folder.path()).unwrap();
    [load(&files, precision, engine()), load(&files, precision, machine(1))]
}

/// The whole of `x` through all blocks, in steps of these many tokens.
fn through(blocks: &Blocks, x: &Hidden, steps: &[usize]) -> Vec<f32> {
    let chain: Vec<u32> = blocks.span().collect();
    let mut cache = blocks.new_cache(chain.len(), x.batch, x.tokens);
    let (mut position, mut out) = (0, Vec::new());
    for n in steps {
        let mut step = tokens(x, position..position + n);
        run(blocks, &chain, (&mut cache, &mut step), position);
        position += n;
        out.push(step);
    }
    assert_eq!(position, x.tokens);
    let rows = (0..x.batch).flat_map(|row| out.iter().flat_map(move |step| sequence(step, row).data));
    rows.collect()
}

fn run(blocks: &Blocks, chain: &[u32], (cache, x): (&mut Cache, &mut Hidden), position: usize) {
    blocks.step_through(chain, (cache, 0), x, position).unwrap();
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |largest, x| largest.max(x.abs()))
}

/// Differences are at most `part` of the largest number.
fn assert_near(found: &[f32], expected: &[f32], part: f32) {
    assert_close(found, expected, part * largest(expected));
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn float32_blocks_of_every_family_are_those_of_the_processor() {
    let machine = machine(1);
    for family in Family::ALL {
        let fixtures = family.support().fixtures.iter();
        for path in fixtures.filter(|path| !path.ends_with(".json")) {
            println!("{path}");
            let (files, _) = fixture_at(path);
            let x = random_hidden(&mut rng(1), 1, 43, files.config().hidden_size);
            let [host, card] =
                [engine().into(), machine.clone()].map(|machine| load(&files, WeightDType::F32, machine));
            // Few tokens, many, and one after the other across the end of a page.
            let steps = [3, 36, 1, 1, 1, 1];
            assert_near(&through(&card, &x, &steps), &through(&host, &x, &steps), 2e-4);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn blocks_in_every_format_are_those_of_the_processor() {
    for weights in WeightFormat::ALL {
        let dtype = weights.dtype().unwrap_or(WeightDType::Bf16);
        let [host, card] = both(json!({}), 5, Precision { weights, dtype });
        let x = random_hidden(&mut rng(2), 2, 90, host.config().hidden_size);
        // The card rounds what bf16 and NF4 are multiplied with in prompts, the processor may for every token.
        let of_few = match weights {
            WeightFormat::Bf16 | WeightFormat::Nf4 => 3e-2,
            _ => 5e-3,
        };
        for (steps, part) in [(vec![5; 18], of_few), (vec![86, 4], 3e-2)] {
            println!("{weights:?} {steps:?}");
            assert_near(&through(&card, &x, &steps), &through(&host, &x, &steps), part);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn keys_and_values_in_every_type_are_those_of_the_processor() {
    for (dtype, part) in [
        (KvDType::F32, 2e-4),
        (KvDType::Bf16, 5e-3),
        (KvDType::F16, 2e-3),
        (KvDType::Int8, 5e-3),
    ] {
        let options = CacheOptions {
            dtype: Some(dtype),
            block_tokens: 512,
            share_prefixes: false,
        };
        let [host, card] = both(json!({}), 6, WeightDType::F32).map(|blocks| blocks.with_cache(options).unwrap());
        let x = random_hidden(&mut rng(3), 2, 40, host.config().hidden_size);
        let steps = [30, 7, 1, 1, 1];
        println!("{dtype:?}");
        assert_near(&through(&card, &x, &steps), &through(&host, &x, &steps), part);
        assert_eq!(
            card.cache_counts().free,
            card.cache_counts().total,
            "all pages are back"
        );
        assert!(card.cache_counts().total >= 32);
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn short_steps_of_many_sessions_are_what_they_are_alone_bit_for_bit() {
    for weights in [
        WeightFormat::F32,
        WeightFormat::Bf16,
        WeightFormat::Q8_0,
        WeightFormat::Q4K,
        WeightFormat::Nf4,
    ] {
        let dtype = weights.dtype().unwrap_or(WeightDType::F32);
        let [_, card] = both(json!({}), 7, Precision { weights, dtype });
        let (chain, width): (Vec<u32>, _) = (card.span().collect(), card.config().hidden_size);
        let sessions: Vec<Hidden> = [(1, 20), (2, 9), (1, 33)]
            .into_iter()
            .enumerate()
            .map(|(i, (batch, length))| random_hidden(&mut rng(i as u64), batch, length, width))
            .collect();
        let cache = |x: &Hidden| card.new_cache(chain.len(), x.batch, x.tokens);
        let mut caches: Vec<Cache> = sessions.iter().map(cache).collect();
        let mut out: Vec<Vec<Hidden>> = vec![Vec::new(); sessions.len()];
        let mut scratch = Scratch::default();
        for position in 0..33 {
            let open = |x: &Hidden| position < x.tokens;
            let mut steps: Vec<Hidden> = sessions
                .iter()
                .filter(|x| open(x))
                .map(|x| tokens(x, position..position + 1))
                .collect();
            let riding = caches.iter_mut().zip(&sessions).filter(|(_, x)| open(x));
            let mut parts: Vec<Part<'_>> = riding
                .zip(&mut steps)
                .map(|((cache, _), x)| Part {
                    cache,
                    chain_idx: 0,
                    rows: 0..x.batch,
                    tokens: 0..1,
                    x,
                    position,
                })
                .collect();
            card.run_batch(&chain, &mut parts, &mut scratch).unwrap();
            let riding = out.iter_mut().zip(&sessions).filter(|(_, x)| open(x));
            riding.zip(steps).for_each(|((out, _), step)| out.push(step));
        }
        for (x, out) in sessions.iter().zip(&out) {
            let rows = (0..x.batch).flat_map(|row| out.iter().flat_map(move |step| sequence(step, row).data));
            println!("{weights:?}");
            assert_same_bits(&rows.collect::<Vec<_>>(), &through(&card, x, &vec![1; x.tokens]));
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn beams_share_pages_until_one_writes_and_sessions_go_back() {
    let both = both(json!({}), 8, WeightDType::F32);
    let [host, card] = both.each_ref().map(|blocks| {
        let chain: Vec<u32> = blocks.span().collect();
        let width = blocks.config().hidden_size;
        let mut cache = blocks.new_cache(chain.len(), 3, 60);
        let mut out = Vec::new();
        let mut step = |cache: &mut Cache, seed: u64, n: usize, position: usize| {
            let mut x = random_hidden(&mut rng(seed), 3, n, width);
            run(blocks, &chain, (cache, &mut x), position);
            out.append(&mut x.data);
        };
        step(&mut cache, 1, 21, 0);
        cache.reorder(&[2, 2, 0]).unwrap();
        assert!(blocks.cache_counts().shared > 0);
        step(&mut cache, 2, 1, 21);
        step(&mut cache, 3, 14, 22);
        // Back to the middle of a page that was shared, and to the start of one.
        cache.reorder(&[1, 0, 1]).unwrap();
        step(&mut cache, 4, 3, 18);
        step(&mut cache, 5, 5, 16);
        drop(cache);
        let counts = blocks.cache_counts();
        assert_eq!((counts.overflow, counts.shared), (0, 0));
        out
    });
    assert_near(&card, &host, 2e-4);
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn what_a_session_computed_is_there_for_those_that_begin_alike() {
    let [_, card] = both(json!({}), 9, WeightDType::F32);
    let card = card
        .with_cache(CacheOptions {
            dtype: None,
            block_tokens: 1024,
            share_prefixes: true,
        })
        .unwrap();
    let chain: Vec<u32> = card.span().collect();
    let x = random_hidden(&mut rng(4), 1, 50, card.config().hidden_size);
    let session = || {
        let mut cache = card.new_cache(chain.len(), 1, 50);
        card.share_prefixes(&mut cache, &chain, "");
        let mut step = x.clone();
        let known = card.begin_step(&mut cache, &mut step, 0, false);
        run(&card, &chain, (&mut cache, &mut step), known);
        cache.end_step(&mut step);
        (known, step.data)
    };
    let (first, second) = (session(), session());
    assert_eq!((first.0, second.0), (0, 48));
    assert_near(&second.1, &first.1, 1e-4);
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn what_is_known_of_a_block_is_of_no_use_to_it_on_another_card() {
    let config = small_config(json!({ "num_hidden_layers": 4 }));
    let folder = write_model(&config, &random_tensors(&config, 13));
    let files = ModelFiles::from_folder(folder.path()).unwrap();
    let (machine, precision) = (machine(2), Precision::from(WeightDType::F32));
    let load = |span, shares: &[usize]| Blocks::load_at(&files, span, precision, (&machine, shares)).unwrap();
    let options = CacheOptions {
        dtype: None,
        block_tokens: 1024,
        share_prefixes: true,
    };
    let blocks = load(0..4, &[2, 2]).with_cache(options).unwrap();
    let x = random_hidden(&mut rng(14), 1, 50, blocks.config().hidden_size);
    let known = |blocks: &Blocks| {
        let chain: Vec<u32> = blocks.span().collect();
        let (mut cache, mut step) = (blocks.new_cache(chain.len(), 1, 50), x.clone());
        blocks.share_prefixes(&mut cache, &chain, "");
        let known = blocks.begin_step(&mut cache, &mut step, 0, false);
        run(blocks, &chain, (&mut cache, &mut step), known);
        cache.end_step(&mut step);
        known
    };
    assert_eq!([known(&blocks), known(&blocks)], [0, 48]);
    let away = blocks.moved(&blocks, 2..4).unwrap();
    drop(blocks);
    // Block 1 is on the second card now.
    let back = away.moved(&load(0..2, &[1, 1]), 0..4).unwrap();
    assert!(back.has_cache_of(&away));
    assert_eq!([known(&back), known(&back)], [0, 48]);
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_span_on_two_cards_is_what_it_is_on_one() {
    let (files, _) = fixture_at("petals/tiny-llama31");
    let x = random_hidden(&mut rng(5), 2, 30, files.config().hidden_size);
    let all = Device::count().unwrap() - 1;
    let pair = Cards::These(vec![0, all]);
    let two = Machine::with_cards(engine(), &pair, &Toolkit::default()).unwrap();
    let options = CacheOptions {
        dtype: None,
        block_tokens: 640,
        share_prefixes: false,
    };
    let two = load(&files, WeightDType::F32, two).with_cache(options).unwrap();
    let one = load(&files, WeightDType::F32, machine(1));
    let steps = [20, 8, 1, 1];
    assert_same_bits(&through(&two, &x, &steps), &through(&one, &x, &steps));
    assert_eq!(two.cache_counts().overflow, 0);
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn long_prompts_are_computed_in_parts_and_give_the_same() {
    let [_, card] = both(json!({}), 10, WeightDType::F32);
    let x = random_hidden(&mut rng(6), 2, 70, card.config().hidden_size);
    let whole = through(&card, &x, &[70]);
    let few_bytes = card.clone().with_max_chunk_bytes(60_000);
    assert_near(&through(&few_bytes, &x, &[70]), &whole, 2e-4);
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn gradients_and_adapters_are_those_of_the_processor() {
    let [host, card] = [engine().into(), machine(1)].map(|machine| with_adapters(WeightDType::F32, machine));
    let x = random_hidden(&mut rng(7), 2, 20, host.config().hidden_size);
    let by_out = random_hidden(&mut rng(8), 2, 20, host.config().hidden_size);
    for name in [None, Some("queries-and-values"), Some("everything")] {
        let [expected, found] = [&host, &card].map(|blocks| {
            let adapter = name.and_then(|name| blocks.adapter(name));
            let mut out = x.clone();
            blocks.forward_with(1, adapter, &mut out).unwrap();
            (out, blocks.backward(1, adapter, &x, &by_out).unwrap())
        });
        assert_near(&found.0.data, &expected.0.data, 2e-4);
        assert_near(&found.1.data, &expected.1.data, 2e-4);
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_card_without_memory_refuses_and_goes_on() {
    let (files, _) = fixture_at("petals/tiny-llama31");
    let machine = machine(1);
    let blocks = load(&files, WeightDType::F32, machine.clone());
    let (_, total) = machine.cards[0].memory().unwrap();
    let options = CacheOptions {
        dtype: None,
        block_tokens: total as u64,
        share_prefixes: false,
    };
    let error = blocks.clone().with_cache(options).unwrap_err();
    assert!(
        matches!(error, LoadError::Card(CudaError::OutOfMemory { .. })),
        "{error:?}"
    );
    let x = random_hidden(&mut rng(9), 1, 4, files.config().hidden_size);
    assert_near(
        &through(&blocks, &x, &[4]),
        &through(&load(&files, WeightDType::F32, engine()), &x, &[4]),
        2e-4,
    );
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_step_that_a_card_has_no_memory_for_fails_alone_and_can_be_done_again() {
    let machine = machine(1);
    let (files, _) = fixture_at("petals/tiny-llama31");
    let blocks = load(&files, WeightDType::F32, machine.clone());
    let chain: Vec<u32> = blocks.span().collect();
    let x = random_hidden(&mut rng(11), 2, 40, files.config().hidden_size);
    let expected = through(&blocks, &x, &[39, 1]);
    let mut cache = blocks.new_cache(chain.len(), x.batch, x.tokens);
    run(&blocks, &chain, (&mut cache, &mut tokens(&x, 0..39)), 0);

    let (mut rest, mut taken) = (machine.cards[0].memory().unwrap().0, Vec::new());
    while rest > 0 {
        match Buffer::<u8>::zeros(&machine.cards[0], rest) {
            Ok(buffer) => taken.push(buffer),
            Err(_) => rest /= 2,
        }
    }
    let before = tokens(&x, 39..40);
    let mut step = before.clone();
    let part = Part {
        cache: &mut cache,
        chain_idx: 0,
        rows: 0..step.batch,
        tokens: 0..1,
        x: &mut step,
        position: 39,
    };
    let error = blocks
        .run_batch(&chain, &mut [part], &mut Scratch::default())
        .unwrap_err();
    let ComputeError::Card(error) = error else {
        panic!("{error:?}")
    };
    assert!(
        matches!(error, CudaError::OutOfMemory { .. }) && !error.is_fatal(),
        "{error}"
    );
    assert_same_bits(&step.data, &before.data);

    drop(taken);
    run(&blocks, &chain, (&mut cache, &mut step), 39);
    let width = x.width;
    for row in 0..x.batch {
        let last = (row + 1) * x.tokens * width;
        assert_same_bits(&sequence(&step, row).data, &expected[last - width..last]);
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_card_proves_itself_in_every_format_and_there_is_no_card_beyond_the_last() {
    let formats = WeightFormat::ALL.map(|weights| {
        let dtype = weights.dtype().unwrap_or(WeightDType::Bf16);
        (Precision { weights, dtype }, dtype.into())
    });
    machine(1).proven(&Cards::These(vec![0]), &formats).unwrap();
    let n_cards = Device::count().unwrap();
    let engine = Engine::new(NonZeroUsize::new(1)).unwrap();
    let error = Machine::with_cards(engine, &Cards::These(vec![n_cards]), &Toolkit::default()).unwrap_err();
    assert_eq!(
        error,
        CudaError::NoSuchCard {
            ordinal: n_cards,
            n_cards
        }
    );
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_card_that_is_too_old_for_the_kernels_is_refused() {
    if !testing::is_on_card(
        &[("EMULATED_CAPABILITY", "61")],
        a_card_that_is_too_old_for_the_kernels_is_refused,
    ) {
        return;
    }
    match Device::open(0, &Toolkit::default()) {
        Ok(card) => assert!(!card.name().starts_with("Emulated"), "{}", card.name()),
        Err(error) => assert_eq!(
            error,
            CudaError::TooOld {
                card: 0,
                capability: 61
            }
        ),
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_card_that_is_lost_is_left_out_where_all_are_wanted() {
    let last = Device::count().unwrap() - 1;
    let formats = [(Precision::from(WeightDType::F32), KvDType::F32)];
    let all = Machine::with_cards(engine(), &Cards::All, &Toolkit::default()).unwrap();
    assert_eq!(all.cards.len(), last + 1);
    all.cards[last].lose();
    let named = Cards::These((0..=last).collect());
    assert!(all.clone().proven(&named, &formats).is_err());
    assert!(Machine::with_cards(engine(), &named, &Toolkit::default()).is_err());
    let others = [
        all.clone().proven(&Cards::All, &formats).ok(),
        Machine::with_cards(engine(), &Cards::All, &Toolkit::default()).ok(),
    ];
    for others in others {
        let left: Vec<usize> = others
            .iter()
            .flat_map(|others| others.cards.iter().map(|card| card.ordinal()))
            .collect();
        assert_eq!(left, (0..last).collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn kept_kernels_that_are_damaged_or_that_the_driver_refuses_are_compiled_anew() {
    let folder = tempfile::tempdir().unwrap();
    let toolkit = Toolkit {
        folders: Vec::new(),
        kernels: Some(folder.path().to_owned()),
    };
    let compute = || {
        let card = Device::open(0, &toolkit).unwrap();
        let mut x = Buffer::from_slice(&card, &[1.5_f32]).unwrap();
        let y = Buffer::from_slice(&card, &[2.0_f32]).unwrap();
        kernels::elementwise::add(&card, &mut x.all_mut(), y.all()).unwrap();
        let mut sum = [0.0];
        x.download(0, &mut sum).unwrap();
        assert_eq!(sum, [3.5]);
    };
    compute();
    let file = folder.path().read_dir().unwrap().next().unwrap().unwrap().path();
    let made = std::fs::read(&file).unwrap();
    let garbage = [b"no kernels".as_slice(); 9].concat();
    let refused = [blake3::hash(&garbage).as_bytes().as_slice(), &garbage].concat();
    for damaged in [&[], &made[..made.len() / 2], &garbage, &refused] {
        std::fs::write(&file, damaged).unwrap();
        compute();
        assert!(std::fs::read(&file).unwrap() == made, "the file was not replaced");
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}
