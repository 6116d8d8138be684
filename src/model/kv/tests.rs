//! Pages: how many there are, who shares them, when they go.

use std::collections::HashSet;

use super::*;

const SHAPE: KvShape = KvShape {
    dtype: WeightDType::Bf16,
    n_kv_heads: 2,
    head_dim: 4,
};

fn write(cache: &mut Cache, row: usize, position: usize, tokens: usize) {
    let numbers = vec![1.0; tokens * 8];
    cache.chain[0][row].write(SHAPE, position, &numbers, &numbers);
}

/// Bytes of all pages, shared ones once.
fn bytes(cache: &Cache) -> usize {
    let mut seen = HashSet::new();
    let pages = cache.chain.iter().flatten().flat_map(|row| &row.pages);
    let distinct = pages.filter(|page| seen.insert(Arc::as_ptr(page)));
    distinct.map(|page| page.capacity * SHAPE.bytes_per_token()).sum()
}

#[test]
fn a_token_costs_a_key_and_a_value_of_every_head() {
    assert_eq!(SHAPE.bytes_per_token(), 2 * 2 * 4 * 2);
}

#[test]
fn memory_grows_with_the_sequence_and_never_beyond_what_was_agreed() {
    let mut cache = Cache::new(SHAPE, 1, 2, 100);
    assert_eq!(bytes(&cache), 0);
    write(&mut cache, 0, 0, 3);
    assert_eq!(bytes(&cache), PAGE_TOKENS * SHAPE.bytes_per_token());
    for row in 0..2 {
        write(&mut cache, row, 0, 100);
    }
    assert_eq!(bytes(&cache), 2 * 100 * SHAPE.bytes_per_token());
}

#[test]
fn rewinding_gives_pages_back() {
    let mut cache = Cache::new(SHAPE, 1, 1, 200);
    write(&mut cache, 0, 0, 200);
    write(&mut cache, 0, 10, 1);
    assert_eq!(bytes(&cache), PAGE_TOKENS * SHAPE.bytes_per_token());
}

#[test]
fn beams_share_pages_until_one_of_them_writes() {
    let mut cache = Cache::new(SHAPE, 1, 2, 200);
    write(&mut cache, 0, 0, 100);
    cache.reorder(&[0, 0]).unwrap();
    assert_eq!(bytes(&cache), 128 * SHAPE.bytes_per_token());
    write(&mut cache, 1, 100, 1);
    assert_eq!(bytes(&cache), (128 + 64) * SHAPE.bytes_per_token());
    let ends = [100, 101].map(|tokens| {
        cache.chain[0][tokens - 100]
            .head(SHAPE, 1, tokens)
            .map(|page| page.keys.len())
    });
    assert_eq!(ends.map(Iterator::sum::<usize>), [100 * 4, 101 * 4]);
}
