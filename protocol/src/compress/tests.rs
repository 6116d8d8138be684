//! The codecs against the tensors that Hivemind 1.1.12 encoded and decoded, and against hostile headers.

use serde_json::Value as Json;

use super::{Compression, codebook::N_BINS, dynamic_map::dynamic_map};
use crate::{
    Message,
    error::WireError,
    proto,
    tensor::{DType, TensorError, WireTensor},
    testing::{bytes, vectors},
};

fn cases(compressions: &[Compression]) -> Vec<Json> {
    let file = vectors("hivemind/tensors.json");
    let mut cases = file["cases"].as_array().unwrap().clone();
    cases.retain(|case| compressions.contains(&compression_of(case)));
    assert!(!cases.is_empty());
    cases
}

fn compression_of(case: &Json) -> Compression {
    let compression = Compression::from_name(case["compression"].as_str().unwrap()).unwrap();
    assert_eq!(Some(i64::from(compression.id())), case["compression_id"].as_i64());
    compression
}

fn shape_of(case: &Json) -> Vec<usize> {
    case["shape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|dim| dim.as_u64().unwrap() as usize)
        .collect()
}

fn recorded(case: &Json) -> proto::Tensor {
    proto::Tensor::decode(bytes(&case["tensor_proto"]).as_slice()).unwrap()
}

fn input(case: &Json) -> WireTensor {
    let dtype = DType::from_name(case["dtype"].as_str().unwrap()).unwrap();
    let mut input = WireTensor::new(dtype, shape_of(case), bytes(&case["input_raw_le"]).into()).unwrap();
    input.requires_grad = case["requires_grad"].as_bool().unwrap();
    input
}

/// Root of the mean squared difference.
fn rms(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

fn tensor(dtype: DType, size: &[u32], compression: Compression, buffer: Vec<u8>) -> proto::Tensor {
    proto::Tensor {
        buffer: buffer.into(),
        size: size.to_vec(),
        dtype: dtype.as_str().to_owned(),
        compression: compression.id(),
        ..proto::Tensor::default()
    }
}

fn decode_error(message: &proto::Tensor) -> TensorError {
    match WireTensor::decode(message).unwrap_err() {
        WireError::Tensor(error) => error,
        other => panic!("not a tensor error: {other}"),
    }
}

#[test]
fn every_recorded_tensor_decodes_to_the_bits_that_python_decodes() {
    for case in cases(&Compression::ALL) {
        let name = &case["name"];
        let decoded = WireTensor::decode(&recorded(&case)).unwrap();
        assert_eq!(decoded.dtype.as_str(), case["decoded_dtype"], "{name}");
        assert_eq!(decoded.shape, shape_of(&case), "{name}");
        assert_eq!(decoded.data, bytes(&case["decoded_raw_le"]), "{name}");
        assert_eq!(decoded.requires_grad, case["decoded_requires_grad"], "{name}");
    }
}

#[test]
fn none_and_float16_encode_to_the_messages_that_python_sends() {
    for case in cases(&[Compression::None, Compression::Float16]) {
        if case["USE_LEGACY_BFLOAT16"] == true {
            continue;
        }
        let encoded = input(&case).encode(compression_of(&case)).unwrap();
        assert_eq!(
            encoded.encode_to_vec(),
            bytes(&case["tensor_proto"]),
            "{}",
            case["name"]
        );
    }
}

#[test]
fn bfloat16_is_sent_in_two_bytes_even_where_hivemind_would_send_four() {
    for case in cases(&[Compression::None]) {
        if case["USE_LEGACY_BFLOAT16"] == true {
            let encoded = input(&case).encode(Compression::None).unwrap();
            assert_eq!(encoded.buffer, bytes(&case["input_raw_le"]));
            assert_eq!(encoded.dtype, "bfloat16");
        }
    }
}

#[test]
fn mean_std_encodes_to_what_python_sends_up_to_the_order_of_sums() {
    for case in cases(&[Compression::MeanStd16]) {
        let (ours, theirs) = (input(&case).encode(Compression::MeanStd16).unwrap(), recorded(&case));
        assert_eq!(
            proto::Tensor {
                buffer: theirs.buffer.clone(),
                ..ours.clone()
            },
            theirs,
            "{}",
            case["name"]
        );
        let n_items: usize = shape_of(&case).iter().product();
        let (our_halves, our_stats) = ours.buffer.split_at(n_items * 2);
        let (their_halves, their_stats) = theirs.buffer.split_at(n_items * 2);
        let halves = |bytes: &[u8]| {
            WireTensor::new(DType::F16, [n_items], bytes.to_vec().into())
                .unwrap()
                .to_f32_vec()
        };
        for (a, b) in halves(our_halves).iter().zip(halves(their_halves)) {
            assert!(
                (a - b).abs() <= b.abs() * 2f32.powi(-10),
                "{}: {a} and {b}",
                case["name"]
            );
        }
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|item| f32::from_le_bytes(*item))
                .collect()
        };
        for (a, b) in floats(our_stats).iter().zip(floats(their_stats)) {
            assert!((a - b).abs() <= b.abs() * 1e-6 + 1e-7, "{}: {a} and {b}", case["name"]);
        }
    }
}

#[test]
fn eight_bit_encoders_lose_no_more_than_pythons() {
    for case in cases(&[Compression::Quantile8, Compression::Uniform8, Compression::Blockwise8]) {
        let (name, input) = (&case["name"], input(&case));
        let encoded = input.encode(compression_of(&case)).unwrap();
        assert_eq!(encoded.buffer.len() as u64, case["buffer_len"], "{name}");
        // Ours may come labelled float32 where theirs was rounded to the dtype: compare after the same rounding.
        let loss = |message: &proto::Tensor| {
            let decoded = WireTensor::decode(message).unwrap();
            let rounded = WireTensor::from_f32(&decoded.to_f32_vec(), input.shape.clone(), input.dtype).unwrap();
            rms(&rounded.to_f32_vec(), &input.to_f32_vec())
        };
        let (our_loss, their_loss) = (loss(&encoded), loss(&recorded(&case)));
        assert!(
            our_loss <= their_loss * 1.01 + 1e-7,
            "{name}: {our_loss} and {their_loss}"
        );
    }
}

#[test]
fn blockwise_encodes_floats_to_the_bytes_that_python_sends() {
    for case in cases(&[Compression::Blockwise8]) {
        let encoded = input(&case).encode(Compression::Blockwise8).unwrap();
        assert_eq!(encoded.buffer, recorded(&case).buffer, "{}", case["name"]);
    }
}

#[test]
fn the_blockwise_codebook_is_the_recorded_one() {
    let file = vectors("hivemind/blockwise_codebook.json");
    let ours: Vec<u8> = dynamic_map().iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(ours, bytes(&file["float32_le"]));
    assert!(dynamic_map().is_sorted());
}

#[test]
fn what_hivemind_refuses_to_encode_is_refused_or_for_bfloat16_labelled_float32() {
    let file = vectors("hivemind/tensors.json");
    for case in file["rejected"].as_array().unwrap() {
        let dtype = DType::from_name(case["dtype"].as_str().unwrap()).unwrap();
        let compression = compression_of(case);
        let shape = shape_of(case);
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        let encoded = WireTensor::from_f32(&values, shape.clone(), dtype)
            .unwrap()
            .encode(compression);
        if dtype == DType::Bf16 {
            let decoded = WireTensor::decode(&encoded.unwrap()).unwrap();
            assert_eq!(decoded.dtype, DType::F32);
            assert!(rms(&decoded.to_f32_vec(), &values) < 1e-2);
        } else {
            let n_dims = shape.len();
            assert_eq!(
                encoded.unwrap_err(),
                TensorError::Unsupported {
                    compression,
                    dtype,
                    n_dims
                }
                .into()
            );
        }
    }
}

#[test]
fn every_codec_round_trips_long_tensors_of_every_float_type() {
    let values: Vec<f32> = (0..3 * 70_001)
        .map(|i| ((i * 7919) % 10_007) as f32 / 5_000.0 - 1.0)
        .collect();
    for dtype in [DType::F32, DType::F16, DType::Bf16, DType::F64] {
        let tensor = WireTensor::from_f32(&values, [3, 70_001], dtype).unwrap();
        for compression in Compression::ALL {
            let decoded = WireTensor::decode(&tensor.encode(compression).unwrap()).unwrap();
            assert_eq!(Some(decoded.dtype), compression.label(dtype));
            assert_eq!(decoded.shape, tensor.shape);
            let loss = rms(&decoded.to_f32_vec(), &values);
            assert!(loss < 0.03, "{dtype} {compression}: {loss}");
        }
    }
}

#[test]
fn empty_constant_and_single_item_tensors_round_trip_through_every_codec() {
    for compression in Compression::ALL {
        for shape in [vec![0], vec![2, 0], vec![0, 3]] {
            let empty = WireTensor::from_f32(&[], shape.clone(), DType::F32).unwrap();
            let decoded = WireTensor::decode(&empty.encode(compression).unwrap()).unwrap();
            assert_eq!(decoded, empty, "{compression}");
        }
        for shape in [vec![1], vec![2, 3], vec![5000]] {
            let constant = vec![0.5; shape.iter().product()];
            let tensor = WireTensor::from_f32(&constant, shape, DType::F32).unwrap();
            let decoded = WireTensor::decode(&tensor.encode(compression).unwrap()).unwrap();
            assert_eq!(decoded, tensor, "{compression}");
        }
    }
}

#[test]
fn a_broken_number_stays_visible_through_every_codec() {
    let tensor = WireTensor::from_f32(&[1.0, f32::NAN, 2.0], [3], DType::F32).unwrap();
    for compression in Compression::ALL {
        let decoded = WireTensor::decode(&tensor.encode(compression).unwrap()).unwrap();
        assert!(decoded.to_f32_vec()[1].is_nan(), "{compression}");
    }
}

#[test]
fn mean_std_needs_a_last_axis_and_does_not_allocate_for_rows_of_nothing() {
    let scalar = WireTensor::from_f32(&[1.0], [], DType::F32).unwrap();
    let (compression, dtype) = (Compression::MeanStd16, DType::F32);
    let unsupported = TensorError::Unsupported {
        compression,
        dtype,
        n_dims: 0,
    };
    assert_eq!(scalar.encode(compression).unwrap_err(), unsupported.clone().into());
    assert_eq!(decode_error(&tensor(dtype, &[], compression, vec![0; 10])), unsupported);
    let nothing = WireTensor::from_f32(&[], [u32::MAX as usize, 0], dtype).unwrap();
    assert_eq!(
        nothing.encode(compression).unwrap_err(),
        TensorError::ShapeTooLarge.into()
    );
}

#[test]
fn table_sizes_in_headers_are_checked_before_they_are_used() {
    for compression in [Compression::Quantile8, Compression::Uniform8, Compression::Blockwise8] {
        for claimed in [-1, i64::MIN, i64::MAX, 1 << 62, 258] {
            let mut buffer = i64::to_le_bytes(claimed).to_vec();
            buffer.resize(8 + 1024 + 4, 0);
            let message = tensor(DType::F32, &[4], compression, buffer);
            assert_eq!(decode_error(&message), TensorError::Header { compression, claimed });
        }
        for length in [0, 7, 8, 15, 16] {
            let message = tensor(DType::F32, &[4], compression, vec![0; length]);
            assert!(
                matches!(decode_error(&message), TensorError::Length { .. }),
                "{compression} {length}"
            );
        }
    }
}

#[test]
fn a_code_outside_a_short_codebook_is_refused_and_inside_it_is_read() {
    let mut buffer = i64::to_le_bytes(2).to_vec();
    buffer.extend([1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()));
    buffer.extend([0, 1, 0]);
    let mut message = tensor(DType::F32, &[3], Compression::Uniform8, buffer.clone());
    assert_eq!(WireTensor::decode(&message).unwrap().to_f32_vec(), [1.5, -2.0, 1.5]);
    buffer[17] = 2;
    message.buffer = buffer.into();
    assert_eq!(
        decode_error(&message),
        TensorError::OutsideCodebook { index: 2, size: 2 }
    );
}

#[test]
fn a_blockwise_tensor_must_bring_one_scale_per_block() {
    let good = WireTensor::from_f32(&vec![1.0; 4097], [4097], DType::F32).unwrap();
    let mut message = good.encode(Compression::Blockwise8).unwrap();
    assert_eq!(message.buffer[..8], 2i64.to_le_bytes());
    let mut buffer = 1i64.to_le_bytes().to_vec();
    buffer.extend_from_slice(&(N_BINS as i64).to_le_bytes());
    buffer.extend_from_slice(&message.buffer[20..]);
    message.buffer = buffer.into();
    assert_eq!(
        decode_error(&message),
        TensorError::ScaleCount { expected: 2, actual: 1 }
    );
}
