//! What is laid out against candle, which quantises and widens every one of ggml's types.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};

use super::{can_lay_out, lay_out, own_format};
use crate::model::{
    cpu::quant::testing::numbers,
    quant::{QuantMatrix, WeightFormat, encode_panel},
    testing::engine,
};

const ROWS: usize = 19;
const COLS: usize = 768;

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
fn blocks_with_kernels_keep_every_weight() {
    let weights = numbers(2, ROWS * COLS);
    for kind in [GgmlDType::Q8_0, GgmlDType::Q5_0, GgmlDType::Q4_0, GgmlDType::Q4K] {
        let (bytes, expected) = quantised(kind, &weights);
        let format = own_format(kind).unwrap();
        assert!(can_lay_out(kind, format));
        let row_bytes = bytes.len() / ROWS;
        let write = |row: usize, place: &mut crate::model::quant::PanelRow<'_>| {
            lay_out(kind, &bytes[row * row_bytes..(row + 1) * row_bytes], place);
        };
        let matrix = QuantMatrix::lay_out(format, [ROWS, COLS], &write, &engine()).unwrap();
        assert!(matrix.to_f32() == expected, "{kind:?}");
    }
}

#[test]
fn other_blocks_become_a_format_whose_rounding_is_small_beside_theirs() {
    let weights = numbers(2, ROWS * COLS);
    for kind in [
        GgmlDType::Q4_1,
        GgmlDType::Q5_1,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ] {
        let (_, expected) = quantised(kind, &weights);
        let format = own_format(kind).unwrap();
        assert!(!can_lay_out(kind, format));
        let source = |rows: std::ops::Range<usize>, out: &mut [f32]| {
            out.copy_from_slice(&expected[rows.start * COLS..rows.end * COLS]);
        };
        let matrix = QuantMatrix::pack(format, [ROWS, COLS], &source, &engine()).unwrap();
        let (again, first) = (
            root_mean_square(&matrix.to_f32(), &expected),
            root_mean_square(&weights, &expected),
        );
        assert!(again < 0.5 * first, "{kind:?}: {again} beside {first}");
    }
    assert_eq!(own_format(GgmlDType::F16), None);
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
