//! That a warm step takes no memory: decode steps of several sessions together, of every family and weight format, with
//! and without prefixes that they share, and prompts that are computed again, are counted by an allocator that counts.
//! Alone in its program, so that nobody else is counted.
#![expect(unsafe_code, reason = "an allocator is unsafe to be, also one that only counts")]
#![expect(clippy::unwrap_used, reason = "all of this program is a test")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use sepal::model::{
    Adapter, Blocks, Cache, CacheOptions, Engine, Hidden, HubOptions, KvDType, ModelFiles, Part, Precision, Scratch,
    WeightDType, WeightFormat,
};

/// Sessions of one batch.
const N_SESSIONS: usize = 3;
/// Steps before anything is counted, and counted ones; together more than a page of the cache.
const WARM: usize = 12;
const COUNTED: usize = 12;
const ROUNDS: usize = 10;
/// Tokens of a page of the cache.
const FULL: usize = 16;
/// Tokens of a long step.
const PROMPT: usize = 300;
const MAX_LENGTH: usize = PROMPT;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it is the system's allocator, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promise, here and below.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Sessions through all blocks of a model, which share prefixes if the blocks do.
struct Run<'a, const N: usize> {
    blocks: &'a Blocks,
    caches: [Cache; N],
    xs: [Hidden; N],
    scratch: Scratch,
}

impl<'a, const N: usize> Run<'a, N> {
    /// Each of the sessions computes `tokens` at a time, every second one through an adapter if there is one.
    fn new(blocks: &'a Blocks, tokens: usize) -> Self {
        let (chain_len, width) = (blocks.span().len(), blocks.config().hidden_size);
        let chain: Vec<u32> = blocks.span().collect();
        let cache = |i: usize| {
            let adapter = blocks.adapter("everything").filter(|_| i.is_multiple_of(2));
            let mut cache = blocks.new_cache(chain_len, 1, MAX_LENGTH).with_adapter(adapter);
            // Each of a chain of its own: what one finds of another is put together in new memory.
            blocks.share_prefixes(&mut cache, &chain, &i.to_string());
            cache
        };
        let noise = |i: usize| ((i * 7919 % 2003) as f32) / 1001.5 - 1.0;
        let x = |_| Hidden::new((0..tokens * width).map(noise).collect(), 1, tokens, width).unwrap();
        Self {
            blocks,
            caches: std::array::from_fn(cache),
            xs: std::array::from_fn(x),
            scratch: Scratch::default(),
        }
    }

    /// All sessions together through every block.
    fn step(&mut self, position: usize) {
        for (cache, x) in self.caches.iter_mut().zip(&mut self.xs) {
            assert_eq!(self.blocks.begin_step(cache, x, position, false), 0);
        }
        for (chain_idx, block) in self.blocks.span().enumerate() {
            let mut caches = self.caches.each_mut().into_iter();
            let mut parts = self.xs.each_mut().map(|x| Part {
                cache: caches.next().unwrap(),
                chain_idx,
                rows: 0..x.batch,
                tokens: 0..x.tokens,
                x,
                position,
            });
            self.blocks.run_batch(&[block], &mut parts, &mut self.scratch).unwrap();
        }
        for (cache, x) in self.caches.iter_mut().zip(&mut self.xs) {
            cache.end_step(x);
        }
    }
}

/// That `run` takes no memory once it is warm. Threads share its work as it comes, so that one of them may meet a kind of
/// work first in any round; what takes memory in every round is not warm-up.
#[track_caller]
fn assert_takes_none(what: &str, mut run: impl FnMut()) {
    let takes_none = (0..ROUNDS).any(|_| {
        let before = ALLOCATIONS.load(SeqCst);
        run();
        ALLOCATIONS.load(SeqCst) == before
    });
    assert!(takes_none, "{what}");
}

fn load(folder: &Path, weights: WeightFormat, kv: KvDType, engine: &Engine) -> Blocks {
    load_to_share(folder, (weights, kv), engine, false)
}

fn load_to_share(
    folder: &Path,
    (weights, kv): (WeightFormat, KvDType),
    engine: &Engine,
    share_prefixes: bool,
) -> Blocks {
    let files = ModelFiles::from_folder(folder).unwrap();
    let n_blocks = files.config().n_blocks;
    let precision = Precision {
        weights,
        dtype: WeightDType::F32,
    };
    let blocks = Blocks::load(&files, 0..n_blocks, precision, engine).unwrap();
    let cache = CacheOptions {
        dtype: Some(kv),
        block_tokens: n_blocks as u64 * (N_SESSIONS * MAX_LENGTH) as u64,
        share_prefixes,
    };
    blocks.with_cache(cache).unwrap()
}

/// As [`assert_steps_take_none`], of sessions whose prefixes are known to others. The step that fills a page takes memory:
/// for the entry of the page in the index, and what the index puts it into. No other does, the one that begins the next
/// page included.
fn assert_steps_that_share_take_none(blocks: &Blocks, what: &str) {
    let mut run = Run::<N_SESSIONS>::new(blocks, 1);
    (0..FULL - 1).for_each(|position| run.step(position));
    assert_eq!(blocks.cache_counts().known, 0);
    run.step(FULL - 1);
    assert_eq!(blocks.cache_counts().known, N_SESSIONS, "a page of each");
    assert_takes_none(what, || (FULL..2 * FULL - 1).for_each(|position| run.step(position)));
    run.step(2 * FULL - 1);
    assert_eq!(blocks.cache_counts().known, 2 * N_SESSIONS, "all of it was followed");
}

fn assert_steps_take_none(blocks: &Blocks, what: &str) {
    let mut run = Run::<N_SESSIONS>::new(blocks, 1);
    (0..WARM).for_each(|position| run.step(position));
    // The steps that were counted in vain are forgotten by the next round, which begins at the same position.
    assert_takes_none(what, || (WARM..WARM + COUNTED).for_each(|position| run.step(position)));
}

#[test]
fn warm_steps_take_no_memory_whatever_the_family_the_format_and_the_adapter() {
    let vectors = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors"));
    let engine = Engine::new(NonZeroUsize::new(2)).unwrap();
    let mut folders: Vec<PathBuf> = Vec::new();
    for place in ["families", "petals"] {
        let entries = fs::read_dir(vectors.join(place)).unwrap();
        folders.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()));
    }
    assert!(folders.len() > 20);
    for folder in &folders {
        let blocks = load(folder, WeightFormat::F32, KvDType::F32, &engine);
        assert_steps_take_none(&blocks, &folder.display().to_string());
    }
    let llama = vectors.join("petals/tiny-llama");
    let caches = [KvDType::F32, KvDType::Bf16, KvDType::F16, KvDType::Int8];
    for (format, kv) in WeightFormat::ALL.into_iter().zip(caches.into_iter().cycle()) {
        let blocks = load(&llama, format, kv, &engine);
        assert_steps_take_none(&blocks, format.as_str());
    }
    // Enough for several threads and for the products of many tokens, in a cache that is filled again.
    for (format, kv) in [(WeightFormat::Bf16, KvDType::Bf16), (WeightFormat::Q8_0, KvDType::Int8)] {
        let blocks = load(&llama, format, kv, &engine);
        let mut run = Run::<1>::new(&blocks, PROMPT);
        assert_takes_none(format.as_str(), || run.step(0));
    }
    let hub = HubOptions::from_variables(|_| None);
    let adapter = Adapter::open(vectors.join("sepal/lora/everything").to_str().unwrap(), &hub).unwrap();
    let blocks = load(&llama, WeightFormat::Bf16, KvDType::Bf16, &engine);
    let blocks = blocks.with_adapters(&[adapter]).unwrap();
    assert!(blocks.adapter("everything").is_some());
    assert_steps_take_none(&blocks, "an adapter");
    for kv in [KvDType::F32, KvDType::Int8] {
        let blocks = load_to_share(&llama, (WeightFormat::Bf16, kv), &engine, true);
        assert_steps_that_share_take_none(&blocks, "known prefixes");
    }
}
