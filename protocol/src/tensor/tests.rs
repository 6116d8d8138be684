//! Tensors against recorded messages, streams of parts, and arbitrary bytes.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, test_runner::RngSeed};

use super::{DEFAULT_PART_BYTES, DType, Joiner, MAX_DIMS, TensorError, WireTensor, split};
use crate::{
    Message,
    compress::Compression,
    error::WireError,
    proto,
    testing::{bytes, recorded_events, vectors},
};

fn floats(values: &[f32], dtype: DType) -> proto::Tensor {
    WireTensor::from_f32(values, [values.len()], dtype)
        .unwrap()
        .encode(Compression::None)
        .unwrap()
}

fn tensor_error<T: std::fmt::Debug>(result: Result<T, WireError>) -> TensorError {
    match result.unwrap_err() {
        WireError::Tensor(error) => error,
        other => panic!("not a tensor error: {other}"),
    }
}

fn join(parts: Vec<proto::Tensor>) -> Result<Vec<proto::Tensor>, WireError> {
    let mut joiner = Joiner::new(1 << 20, 16);
    let mut tensors = Vec::new();
    for part in parts {
        tensors.extend(joiner.push(part)?);
    }
    tensors.extend(joiner.finish()?);
    Ok(tensors)
}

/// The tensors of every recorded request and response, one list per stream or call and direction.
fn recorded_tensors() -> Vec<(String, Vec<proto::Tensor>)> {
    let mut streams: Vec<(String, Vec<proto::Tensor>)> = Vec::new();
    for (file, event) in recorded_events() {
        // Messages too long to keep were recorded without their bytes.
        let Some(raw) = event["raw_hex"].is_string().then(|| bytes(&event["raw_hex"])) else {
            continue;
        };
        let tensors = match event["decoded"]["type"].as_str() {
            Some("ExpertRequest") => proto::ExpertRequest::decode(raw.as_slice()).unwrap().tensors,
            Some("ExpertResponse") => proto::ExpertResponse::decode(raw.as_slice()).unwrap().tensors,
            _ => continue,
        };
        let key = format!("{file} {} {} {}", event["who"], event["call"], event["event"]);
        match streams.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => known.extend(tensors),
            None => streams.push((key, tensors)),
        }
    }
    streams
}

#[test]
fn every_tensor_of_the_recorded_petals_sessions_joins_and_decodes() {
    let (mut n_tensors, mut n_joined) = (0, 0);
    for (stream, parts) in recorded_tensors() {
        let starts: Vec<proto::Tensor> = parts.iter().filter(|part| !part.dtype.is_empty()).cloned().collect();
        let mut joiner = Joiner::new(64 << 20, 1000);
        let mut joined = Vec::new();
        n_joined += parts.len() - starts.len();
        for part in parts {
            joined.extend(joiner.push(part).unwrap());
        }
        joined.extend(joiner.finish().unwrap());
        assert_eq!(joined.len(), starts.len(), "{stream}");
        for (tensor, start) in joined.iter().zip(starts) {
            let decoded = WireTensor::decode(tensor).unwrap();
            let shape: Vec<u32> = decoded.shape.iter().map(|dim| *dim as u32).collect();
            assert_eq!(
                (decoded.dtype.as_str(), shape),
                (start.dtype.as_str(), start.size),
                "{stream}"
            );
            assert!(decoded.to_f32_vec().iter().all(|value| value.is_finite()), "{stream}");
            n_tensors += 1;
        }
    }
    assert_eq!(n_joined, 6, "parts after the first");
    assert!(n_tensors > 400, "{n_tensors}");
}

#[test]
fn tensors_split_into_the_parts_that_python_sends_and_join_again() {
    let file = vectors("hivemind/tensors.json");
    for case in file["split_for_streaming"].as_array().unwrap() {
        let part_bytes = case["chunk_size_bytes"].as_u64().unwrap() as usize;
        let Some(parts) = case["parts"].as_array() else {
            let zeros = floats(
                &vec![0.0; case["buffer_len"].as_u64().unwrap() as usize / 4],
                DType::F32,
            );
            let parts = split(zeros, part_bytes);
            let lens: Vec<usize> = parts.iter().map(|part| part.buffer.len()).collect();
            assert_eq!(serde_json::json!(lens), case["part_buffer_lens"]);
            assert_eq!(parts[0].chunks, case["chunks_field_of_first"]);
            assert!(parts[1..].iter().all(|part| part.chunks == 0));
            continue;
        };
        let whole = proto::Tensor::decode(bytes(&case["tensor_proto"]).as_slice()).unwrap();
        let ours = split(whole.clone(), part_bytes);
        let encoded: Vec<Vec<u8>> = ours.iter().map(Message::encode_to_vec).collect();
        assert_eq!(encoded, parts.iter().map(bytes).collect::<Vec<_>>());
        let joined = join(ours).unwrap();
        assert_eq!(joined.len(), 1);
        assert_eq!(
            proto::Tensor {
                chunks: 0,
                ..joined[0].clone()
            },
            whole
        );
        if case.get("combined").is_some() {
            assert_eq!(joined[0].encode_to_vec(), bytes(&case["combined"]));
        }
    }
}

#[test]
fn plain_data_is_shared_with_the_message_in_both_directions_and_by_its_parts() {
    let message = floats(&[1.0; 100], DType::F32);
    let tensor = WireTensor::decode(&message).unwrap();
    assert_eq!(tensor.data.as_ptr(), message.buffer.as_ptr());
    assert_eq!(
        tensor.encode(Compression::None).unwrap().buffer.as_ptr(),
        message.buffer.as_ptr()
    );
    let halves = WireTensor::from_f32(&[1.0; 8], [8], DType::F16)
        .unwrap()
        .encode(Compression::Float16)
        .unwrap();
    assert_eq!(
        WireTensor::decode(&halves).unwrap().data.as_ptr(),
        halves.buffer.as_ptr()
    );
    let parts = split(message.clone(), 100);
    assert_eq!(parts[1].buffer.as_ptr(), message.buffer[100..].as_ptr());
    let single = join(split(message.clone(), DEFAULT_PART_BYTES)).unwrap();
    assert_eq!(single[0].buffer.as_ptr(), message.buffer.as_ptr());
}

#[test]
fn a_part_with_a_dtype_starts_the_next_tensor() {
    let (a, b, empty) = (
        floats(&[1.0; 40], DType::F32),
        floats(&[2.0; 9], DType::Bf16),
        floats(&[], DType::F32),
    );
    let mut parts = split(a.clone(), 64);
    parts.extend(split(empty.clone(), 64));
    parts.extend(split(b.clone(), 2));
    let joined = join(parts).unwrap();
    let decoded: Vec<WireTensor> = joined
        .iter()
        .map(|tensor| WireTensor::decode(tensor).unwrap())
        .collect();
    let expected: Vec<WireTensor> = [a, empty, b]
        .iter()
        .map(|tensor| WireTensor::decode(tensor).unwrap())
        .collect();
    assert_eq!(decoded, expected);
    assert_eq!(join(Vec::new()).unwrap(), []);
}

#[test]
fn a_tensor_that_lost_its_end_is_an_error_that_names_it() {
    let mut parts = split(floats(&[1.0; 4], DType::F32), 64);
    parts.extend(split(floats(&[1.0; 40], DType::F32), 64));
    parts.pop();
    let truncated = TensorError::Truncated {
        tensor: 1,
        parts: 2,
        announced: 3,
    };
    assert_eq!(tensor_error(join(parts.clone())), truncated);
    parts.extend(split(floats(&[1.0], DType::F32), 64));
    assert_eq!(
        tensor_error(join(parts.clone())),
        truncated,
        "in the middle of a stream too"
    );
    parts.pop();
    parts[1].chunks = 0;
    let TensorError::Streamed { tensor: 1, source } = tensor_error(join(parts)) else {
        panic!("another error")
    };
    assert!(matches!(
        *source,
        TensorError::Length {
            expected: 160,
            actual: 128,
            ..
        }
    ));
}

#[test]
fn half_of_a_legacy_bfloat16_tensor_does_not_pass_for_a_whole_one() {
    let mut legacy = floats(&[1.0; 8], DType::F32);
    legacy.dtype = "bfloat16".to_owned();
    let whole = join(split(legacy.clone(), 16)).unwrap();
    assert_eq!(
        WireTensor::decode(&whole[0]).unwrap(),
        WireTensor::from_f32(&[1.0; 8], [8], DType::Bf16).unwrap()
    );
    let mut parts = split(legacy, 16);
    parts.pop();
    assert_eq!(
        tensor_error(join(parts)),
        TensorError::Truncated {
            tensor: 0,
            parts: 1,
            announced: 2
        }
    );
}

#[test]
fn streams_are_held_to_their_budgets() {
    let tensor = floats(&[1.0; 4], DType::F32);
    let mut joiner = Joiner::new(24, 8);
    assert_eq!(joiner.push(tensor.clone()).unwrap(), None);
    assert_eq!(
        tensor_error(joiner.push(tensor.clone())),
        TensorError::TooManyBytes { max: 24 }
    );
    let mut joiner = Joiner::new(1000, 1);
    assert_eq!(joiner.push(tensor.clone()).unwrap(), None);
    assert_eq!(
        tensor_error(joiner.push(tensor)),
        TensorError::TooManyTensors { max: 1 }
    );
    let rest = proto::Tensor::default();
    assert_eq!(tensor_error(Joiner::new(1000, 1).push(rest)), TensorError::NoTensorOpen);
}

#[test]
fn a_stream_fails_at_the_first_part_when_its_head_is_wrong() {
    let head = proto::Tensor {
        dtype: "complex64".to_owned(),
        ..proto::Tensor::default()
    };
    let TensorError::Streamed { tensor: 0, source } = tensor_error(Joiner::new(8, 8).push(head)) else {
        panic!("another error")
    };
    assert_eq!(
        *source,
        TensorError::UnknownDType {
            name: "complex64".into()
        }
    );
}

#[test]
fn shapes_that_overflow_or_lie_are_refused_without_allocating() {
    let lying = |size: &[u32], dtype: DType, compression: i32| {
        let (size, dtype) = (size.to_vec(), dtype.as_str().to_owned());
        let message = proto::Tensor {
            size,
            dtype,
            compression,
            buffer: Bytes::from(vec![0; 8]),
            ..Default::default()
        };
        tensor_error(WireTensor::decode(&message))
    };
    for compression in 0..6 {
        assert_eq!(
            lying(&[u32::MAX; 3], DType::F32, compression),
            TensorError::ShapeTooLarge
        );
        assert_eq!(
            lying(&[u32::MAX, u32::MAX, u32::MAX, 0], DType::F32, compression),
            TensorError::ShapeTooLarge
        );
        let claimed = lying(&[u32::MAX, 1 << 28], DType::F64, compression);
        assert!(matches!(claimed, TensorError::Length { .. }), "{claimed}");
    }
    assert_eq!(
        lying(&[1; MAX_DIMS + 1], DType::U8, 0),
        TensorError::TooManyDims {
            n_dims: MAX_DIMS + 1,
            max: MAX_DIMS
        }
    );
    assert_eq!(lying(&[1], DType::F64, 6), TensorError::UnknownCompression { id: 6 });
    assert_eq!(lying(&[1], DType::F64, -1), TensorError::UnknownCompression { id: -1 });
}

#[test]
fn values_must_fill_the_shape_and_data_too() {
    let missing = WireTensor::from_f32(&[1.0; 3], [2, 2], DType::F32);
    assert_eq!(tensor_error(missing), TensorError::ItemCount { expected: 4, actual: 3 });
    assert_eq!(
        tensor_error(WireTensor::from_i64(&[], [])),
        TensorError::ItemCount { expected: 1, actual: 0 }
    );
    let mut tensor = WireTensor::from_f32(&[1.0; 4], [2, 2], DType::F32).unwrap();
    tensor.shape.push(2);
    assert!(matches!(
        tensor_error(tensor.encode(Compression::Float16)),
        TensorError::Length { .. }
    ));
    tensor.shape = vec![1 << 33, 0];
    tensor.data = Bytes::new();
    assert_eq!(
        tensor_error(tensor.encode(Compression::None)),
        TensorError::ShapeTooLarge
    );
}

#[test]
fn integers_survive_and_only_int64_reads_as_int64() {
    let ids = WireTensor::from_i64(&[3, -1, i64::MAX], [3]).unwrap();
    let decoded = WireTensor::decode(&ids.encode(Compression::None).unwrap()).unwrap();
    assert_eq!(decoded.to_i64_vec(), Some(vec![3, -1, i64::MAX]));
    assert_eq!(
        WireTensor::from_f32(&[1.0], [1], DType::I32).unwrap().to_i64_vec(),
        None
    );
    for dtype in DType::ALL {
        let tensor = WireTensor::from_f32(&[0.0, 1.0], [2], dtype).unwrap();
        assert_eq!(tensor.to_f32_vec(), [0.0, 1.0], "{dtype}");
    }
    let saturated = WireTensor::from_f32(&[300.7, -300.7, f32::NAN], [3], DType::I8).unwrap();
    assert_eq!(saturated.to_f32_vec(), [127.0, -128.0, 0.0]);
}

#[test]
fn bfloat16_rounds_to_nearest_even_and_keeps_infinities_and_nan() {
    for (value, expected) in [
        (0x3f80_8000, 0x3f80), // halfway, down to even
        (0x3f81_8000, 0x3f82), // halfway, up to even
        (0x3f80_8001, 0x3f81),
        (0x3f80_7fff, 0x3f80),
        (0x7f7f_ffff, 0x7f80), // largest float rounds to infinity
        (0x7f80_0000, 0x7f80),
        (0xff80_0000, 0xff80),
        (0x7f80_0001, 0x7fc0), // a NaN whose payload is cut off stays a NaN
        (0x8000_0000, 0x8000),
    ] {
        let tensor = WireTensor::from_f32(&[f32::from_bits(value)], [1], DType::Bf16).unwrap();
        assert_eq!(tensor.data, u16::to_le_bytes(expected).to_vec(), "{value:x}");
    }
}

fn any_dtype() -> impl Strategy<Value = DType> {
    proptest::sample::select(DType::ALL.to_vec())
}

fn any_compression() -> impl Strategy<Value = Compression> {
    proptest::sample::select(Compression::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(8),
        ..ProptestConfig::default()
    })]

    #[test]
    fn conversions_round_like_the_half_crate(value: u32, at in 0usize..3000) {
        let value = f32::from_bits(value);
        let mut values = vec![0.0; 3000];
        values[at] = value;
        let bf16 = WireTensor::from_f32(&values, [3000], DType::Bf16).unwrap();
        prop_assert_eq!(&bf16.data[at * 2..at * 2 + 2], half::bf16::from_f32(value).to_le_bytes());
        let f16 = WireTensor::from_f32(&values, [3000], DType::F16).unwrap();
        prop_assert_eq!(&f16.data[at * 2..at * 2 + 2], half::f16::from_f32(value).to_le_bytes());
        let back = f16.to_f32_vec()[at];
        let expected = half::f16::from_f32(value).to_f32();
        prop_assert!(back == expected || (back.is_nan() && expected.is_nan()));
    }

    #[test]
    fn any_bytes_round_trip_uncompressed(dtype in any_dtype(), rows in 0usize..5, data in vec(any::<u8>(), 0..200), grad: bool) {
        let row_items = data.len() / dtype.size() / rows.max(1);
        let data = Bytes::from(data).slice(..rows * row_items * dtype.size());
        let tensor = WireTensor { dtype, shape: vec![rows, row_items], data, requires_grad: grad };
        let message = tensor.encode(Compression::None).unwrap();
        prop_assert_eq!(WireTensor::decode(&message).unwrap(), tensor);
    }

    #[test]
    fn arbitrary_messages_never_panic(
        dtype in any_dtype(),
        compression in any_compression(),
        size in vec(prop_oneof![4 => 0u32..20, 1 => any::<u32>()], 0..4),
        counts in proptest::option::of((-2i64..300, -2i64..300)),
        bytes in vec(any::<u8>(), 0..1400),
    ) {
        let mut buffer = Vec::new();
        if let Some((first, second)) = counts {
            buffer.extend(first.to_le_bytes());
            buffer.extend(second.to_le_bytes());
        }
        buffer.extend(bytes);
        let message = proto::Tensor {
            buffer: buffer.into(),
            size,
            dtype: dtype.as_str().to_owned(),
            compression: compression.id(),
            ..proto::Tensor::default()
        };
        if let Ok(tensor) = WireTensor::decode(&message) {
            prop_assert_eq!(tensor.n_items(), tensor.shape.iter().product::<usize>());
            prop_assert!(tensor.data.len() <= message.buffer.len() * 8);
        }
    }

    #[test]
    fn damaged_messages_never_panic(
        dtype in any_dtype(),
        compression in any_compression(),
        values in vec(any::<f32>(), 1..50),
        at in any::<proptest::sample::Index>(),
        byte: u8,
        cut in any::<proptest::sample::Index>(),
    ) {
        let tensor = WireTensor::from_f32(&values, [values.len()], dtype).unwrap();
        let Ok(message) = tensor.encode(compression) else { return Ok(()) };
        prop_assert!(WireTensor::decode(&message).is_ok());
        let mut damaged = message.buffer.to_vec();
        let at = at.index(damaged.len());
        damaged[at] = byte;
        let _ = WireTensor::decode(&proto::Tensor { buffer: damaged.clone().into(), ..message.clone() });
        damaged.truncate(cut.index(damaged.len()));
        let cut = proto::Tensor { buffer: damaged.into(), ..message };
        prop_assert!(WireTensor::decode(&cut).is_err());
    }

    #[test]
    fn split_and_join_are_inverse(values in vec(any::<f32>(), 0..100), part_bytes in 0usize..500) {
        let message = floats(&values, DType::F32);
        let parts = split(message.clone(), part_bytes);
        prop_assert!(parts.iter().all(|part| part.buffer.len() <= part_bytes.max(1)));
        let joined = join(parts).unwrap();
        prop_assert_eq!(&joined[0].buffer, &message.buffer);
        prop_assert_eq!(&joined[0].size, &message.size);
    }

    #[test]
    fn arbitrary_streams_never_panic(parts in vec((any::<bool>(), 0u32..20, vec(any::<u8>(), 0..20), -3i32..5), 0..10)) {
        let parts = parts.into_iter().map(|(starts, dim, data, chunks)| proto::Tensor {
            buffer: data.into(),
            size: vec![dim],
            dtype: if starts { "uint8".to_owned() } else { String::new() },
            chunks,
            ..proto::Tensor::default()
        });
        let _ = join(parts.collect());
    }
}
