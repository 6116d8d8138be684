//! What formats are called and cost, and how far from the weights they are.

use super::WeightFormat;
use crate::model::{
    cpu::quant::Nf4,
    linear::{Linear, Matrix},
    testing::{engine, random, rng},
};

#[test]
fn every_format_is_found_by_its_name() {
    for format in WeightFormat::ALL {
        assert_eq!(WeightFormat::from_name(format.as_str()), Some(format));
    }
    assert_eq!(WeightFormat::from_name("int8"), Some(WeightFormat::Q8_0));
    assert_eq!(WeightFormat::from_name("int4"), None);
}

#[test]
fn formats_cost_what_their_blocks_say() {
    let bits = [32.0, 16.0, 16.0, 8.5, 4.625, 4.25, 4.5];
    for (format, bits) in WeightFormat::ALL.into_iter().zip(bits) {
        assert_eq!(format.bits_per_weight(), bits, "{}", format.as_str());
        assert_eq!(format.bytes(2048, 5632) as f64, bits / 8.0 * (2048 * 5632) as f64);
        assert_eq!(
            format.bytes(2033, 5632),
            format.bytes(2048, 5632),
            "filled up to panels"
        );
    }
    assert_eq!(WeightFormat::Q4_0.bytes(16, 65), WeightFormat::Q4_0.bytes(16, 128));
    assert_eq!(WeightFormat::F32.bytes(16, 65), 16 * 65 * 4);
}

/// f16 scales have 11 bits.
const SCALE: f32 = 1.0 / 2048.0;

/// How far a weight may move, by the scale of its block: half a step and what the rounding of the scale adds. `block` are the
/// weights that it is quantised with.
fn half_step(format: WeightFormat, weight: f32, block: &[f32]) -> f32 {
    let largest = block
        .iter()
        .fold(0.0_f32, |max, x| if x.abs() > max.abs() { *x } else { max });
    let size = largest.abs();
    let steps = match format {
        WeightFormat::Q8_0 => 0.5 / 127.0,
        // The largest is -8 steps whatever its sign, and there is no code for 8.
        WeightFormat::Q4_0 if weight / largest < -7.5 / 8.0 => 1.0 / 8.0,
        WeightFormat::Q4_0 => 0.5 / 8.0,
        WeightFormat::Nf4 => {
            let value = weight / size;
            let gap = Nf4::CODEBOOK.windows(2).find(|pair| value <= pair[1]);
            gap.map_or(0.0, |pair| (pair[1] - pair[0]) / 2.0)
        }
        // Scales and minima are chosen for the least squares and have 6 bits of the largest of a super-block.
        _ => {
            let [low, high] = [f32::min, f32::max].map(|of| block.iter().copied().fold(0.0, of));
            (high - low) / 15.0 / size
        }
    };
    size * (steps + SCALE)
}

fn block_of(format: WeightFormat) -> usize {
    match format {
        WeightFormat::Nf4 => 64,
        WeightFormat::Q4K => 256,
        _ => 32,
    }
}

#[test]
fn no_weight_moves_by_more_than_half_a_step_and_no_product_by_more_than_that_allows() {
    let (engine, mut rng) = (engine(), rng(41));
    let blocks = |format: &WeightFormat| format.dtype().is_none();
    for format in WeightFormat::ALL.into_iter().filter(blocks) {
        for [rows, cols] in [[1, 1], [16, 64], [33, 300], [70, 512]] {
            let numbers = random(&mut rng, rows * cols);
            let source = |range: std::ops::Range<usize>, out: &mut [f32]| {
                out.copy_from_slice(&numbers[range.start * cols..range.end * cols]);
            };
            let weight = Matrix::pack(format, [rows, cols], &source, &engine).unwrap();
            let kept = weight.to_f32();
            let x = random(&mut rng, cols);
            let found = Linear { weight, bias: None }.applied(&engine, &x);
            // They have x in 8 bits, by blocks of 32.
            let half_steps: Vec<f64> = x
                .chunks(32)
                .flat_map(|x| {
                    let largest = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
                    x.iter().map(move |_| f64::from(largest / 254.0))
                })
                .collect();
            for (row, found) in found.iter().enumerate() {
                let range = row * cols..(row + 1) * cols;
                let (weights, kept) = (&numbers[range.clone()], &kept[range]);
                let [mut expected, mut bound] = [0.0, 1e-7];
                for (k, (weight, kept)) in weights.iter().zip(kept).enumerate() {
                    let first = k - k % block_of(format);
                    let block = &weights[first..cols.min(first + block_of(format))];
                    let allowed = half_step(format, *weight, block);
                    let moved = (weight - kept).abs();
                    assert!(moved <= allowed * 1.0001, "{}: {weight} became {kept}", format.as_str());
                    expected += f64::from(*weight) * f64::from(x[k]);
                    // The products themselves are f32.
                    let product = f64::from(kept.abs()) * (half_steps[k] + 1e-6 * f64::from(x[k].abs()));
                    bound += f64::from(allowed) * f64::from(x[k].abs()) + product;
                }
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error <= bound,
                    "{} [{rows}, {cols}]: {error} is more than {bound}",
                    format.as_str()
                );
            }
        }
    }
}
