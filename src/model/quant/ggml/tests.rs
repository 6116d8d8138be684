//! The layouts against candle's, which quantises and widens every one of ggml's types.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};

use super::GgmlType;
use crate::model::{
    cpu::quant::testing::numbers,
    quant::{QuantMatrix, WeightFormat, encode_panel},
};

const ROWS: usize = 19;
const COLS: usize = 768;

/// GGUF's number of each type, and candle's name for it.
const TYPES: [(u32, GgmlDType); 12] = [
    (0, GgmlDType::F32),
    (1, GgmlDType::F16),
    (2, GgmlDType::Q4_0),
    (3, GgmlDType::Q4_1),
    (6, GgmlDType::Q5_0),
    (7, GgmlDType::Q5_1),
    (8, GgmlDType::Q8_0),
    (10, GgmlDType::Q2K),
    (11, GgmlDType::Q3K),
    (12, GgmlDType::Q4K),
    (13, GgmlDType::Q5K),
    (14, GgmlDType::Q6K),
];

fn quantised(dtype: GgmlDType, weights: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let tensor = Tensor::from_slice(weights, (ROWS, COLS), &Device::Cpu).unwrap();
    let tensor = QTensor::quantize(&tensor, dtype).unwrap();
    let widened = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
    (tensor.data().unwrap().into_owned(), widened.to_vec1().unwrap())
}

fn root_mean_square(a: &[f32], b: &[f32]) -> f32 {
    let sum: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (sum / a.len() as f32).sqrt()
}

#[test]
fn every_type_of_ggml_is_widened_as_candle_does_it() {
    let weights = numbers(1, ROWS * COLS);
    for (id, dtype) in TYPES {
        let ggml = GgmlType::from_id(id).unwrap();
        let (bytes, expected) = quantised(dtype, &weights);
        assert_eq!(ggml.bytes(ROWS * COLS), Some(bytes.len()), "{ggml:?}");
        let mut found = vec![0.0; ROWS * COLS];
        ggml.widen(&bytes, &mut found);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-6, "{ggml:?}: {found} is not {expected}");
        }
    }
    assert_eq!(GgmlType::from_id(9), None, "only ever an intermediate");
    let mut one = [0.0];
    GgmlType::from_id(30)
        .unwrap()
        .widen(&half::bf16::from_f32(1.5).to_le_bytes(), &mut one);
    assert_eq!(one, [1.5]);
}

#[test]
fn blocks_with_kernels_keep_every_bit_and_others_become_the_next_finer_format() {
    let weights = numbers(2, ROWS * COLS);
    for (id, dtype) in &TYPES[2..] {
        let ggml = GgmlType::from_id(*id).unwrap();
        let (bytes, expected) = quantised(*dtype, &weights);
        let matrix = QuantMatrix::from_ggml(ggml, &bytes, ROWS, COLS).unwrap();
        let found = matrix.to_f32();
        match ggml {
            GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q4K => assert!(found == expected, "{ggml:?}"),
            // What the second quantisation loses is little beside what the first did.
            _ => assert!(
                root_mean_square(&found, &expected) < 0.5 * root_mean_square(&weights, &expected),
                "{ggml:?}"
            ),
        }
    }
    assert!(QuantMatrix::from_ggml(GgmlType::Q8_0, &[0; 33], 1, 32).is_none());
    assert!(QuantMatrix::from_ggml(GgmlType::Q4K, &[0; 144], 1, 255).is_none());
    assert!(QuantMatrix::from_ggml(GgmlType::F16, &[0; 64], 1, 32).is_none());
}

#[test]
fn own_quantisation_is_ggmls_or_loses_less() {
    let weights = numbers(3, ROWS * COLS);
    for (format, dtype) in [
        (WeightFormat::Q8_0, GgmlDType::Q8_0),
        (WeightFormat::Q4_0, GgmlDType::Q4_0),
        (WeightFormat::Q4K, GgmlDType::Q4K),
    ] {
        let (_, expected) = quantised(dtype, &weights);
        let mut matrix = QuantMatrix::zeros(format, ROWS, COLS).unwrap();
        for (panel, rows) in matrix.panels_mut().zip(weights.chunks(16 * COLS)) {
            encode_panel(format, rows, COLS, panel);
        }
        let found = matrix.to_f32();
        if format == WeightFormat::Q4K {
            let (ours, theirs) = (
                root_mean_square(&found, &weights),
                root_mean_square(&expected, &weights),
            );
            assert!(ours <= theirs, "{ours} and {theirs}");
        } else {
            assert!(found == expected, "{format:?}");
        }
    }
}
