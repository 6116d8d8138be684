//! Pages: how many there are, who shares them, when they go.

use super::*;

const SHAPE: KvShape = KvShape {
    dtype: KvDType::Bf16,
    n_kv_heads: 2,
    head_dim: 4,
};

fn write(cache: &mut Cache, row: usize, position: usize, tokens: usize) {
    let numbers = vec![1.0; tokens * 8];
    let arena = cache.arena.clone();
    cache.chain[0][row].write(&arena, position, (&mut numbers.clone(), &numbers), |_, _| ());
}

#[test]
fn a_token_costs_a_key_and_a_value_of_every_head() {
    assert_eq!(SHAPE.bytes_per_token(), 2 * 2 * 4 * 2);
    let small = KvShape {
        dtype: KvDType::Int8,
        ..SHAPE
    };
    assert_eq!(small.bytes_per_token(), 2 * 2 * (4 + 4));
}
