//! BLOCKWISE_8BIT: i64 A ‖ i64 C ‖ A × f32 scale ‖ C × f32 codebook ‖ N × u8, blocks of 4096 over the flattened tensor.
//!
//! An item is its codebook value times its block's scale, the largest magnitude of the block. Encoders send
//! `dynamic_map.rs` as the codebook; any other is read. Items of every dtype go through `f32`.

use bytes::Bytes;

use super::{
    Head, codebook,
    codebook::{COUNT_BYTES, N_BINS},
    dynamic_map::dynamic_map,
};
use crate::tensor::{DType, TensorError, build, read_f32};

/// Items that share a scale: the block size of bitsandbytes' default, which Hivemind does not change.
const BLOCK_ITEMS: usize = 4096;

/// The parts of a buffer.
pub(super) struct Parts<'a> {
    scales: &'a [u8],
    quantized: codebook::Parts<'a>,
}

pub(super) fn parse<'a>(head: &Head, buffer: &'a [u8]) -> Result<Parts<'a>, TensorError> {
    let (n_scales, rest) = codebook::read_count(head, buffer, 2 * COUNT_BYTES)?;
    let (n_values, rest) = codebook::read_count(head, rest, COUNT_BYTES)?;
    let tables = (n_scales + n_values) * 4;
    head.check_length((2 * COUNT_BYTES + tables) as u64 + head.n_items as u64, buffer.len())?;
    let expected = head.n_items.div_ceil(BLOCK_ITEMS);
    if n_scales != expected {
        return Err(TensorError::ScaleCount {
            expected,
            actual: n_scales,
        });
    }
    let (scales, rest) = rest.split_at(n_scales * 4);
    let (codebook, codes) = rest.split_at(n_values * 4);
    Ok(Parts {
        scales,
        quantized: codebook::Parts { codebook, codes },
    })
}

pub(super) fn decode(head: &Head, buffer: &[u8]) -> Result<Bytes, TensorError> {
    let parts = parse(head, buffer)?;
    let table = codebook::table(&parts.quantized)?;
    let mut scales = vec![0.0; parts.scales.len() / 4];
    read_f32(DType::F32, parts.scales, &mut scales);
    Ok(build(head.dtype, head.n_items, |start, block| {
        codebook::look_up(&table, &parts.quantized.codes[start..], block);
        // The blocks built here divide those of the codec, so one scale holds for all of a block.
        let scale = scales[start / BLOCK_ITEMS];
        for value in block {
            *value *= scale;
        }
    }))
}

const _: () = assert!(BLOCK_ITEMS.is_multiple_of(crate::tensor::BLOCK));

pub(super) fn encode(head: &Head, data: &[u8]) -> Bytes {
    let values = super::values(head, data);
    let map = dynamic_map();
    let borders = borders(&map);
    let n_blocks = values.len().div_ceil(BLOCK_ITEMS);
    let mut buffer = Vec::with_capacity(2 * COUNT_BYTES + (n_blocks + N_BINS) * 4 + values.len());
    buffer.extend_from_slice(&(n_blocks as i64).to_le_bytes());
    buffer.extend_from_slice(&(N_BINS as i64).to_le_bytes());
    for block in values.chunks(BLOCK_ITEMS) {
        buffer.extend_from_slice(&scale(block).to_le_bytes());
    }
    for value in map {
        buffer.extend_from_slice(&value.to_le_bytes());
    }
    for block in values.chunks(BLOCK_ITEMS) {
        let scale = scale(block);
        // A block of zeros would divide by zero; its items are zero under any divisor.
        let divisor = if scale > 0.0 { scale } else { 1.0 };
        buffer.extend(block.iter().map(|value| nearest(&borders, value / divisor)));
    }
    Bytes::from(buffer)
}

/// The largest magnitude of a block; NaN if an item is NaN, so that the receiver sees that something was broken.
fn scale(block: &[f32]) -> f32 {
    let larger = |largest: f32, value: &f32| if value.abs() <= largest { largest } else { value.abs() };
    let largest = block.iter().fold(0.0, larger);
    if block.iter().any(|value| value.is_nan()) {
        f32::NAN
    } else {
        largest
    }
}

/// The values halfway between neighbours of the map.
fn borders(map: &[f32; N_BINS]) -> Vec<f32> {
    map.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect()
}

/// The index of the map's value nearest to `value`.
fn nearest(borders: &[f32], value: f32) -> u8 {
    borders.partition_point(|border| *border < value) as u8
}
