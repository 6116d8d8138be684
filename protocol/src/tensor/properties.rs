//! What holds for any tensor, any message and any stream of parts, tried on random ones from a fixed seed.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, test_runner::RngSeed};

use super::{
    DType, WireTensor, split,
    tests::{floats, join},
};
use crate::{compress::Compression, proto};

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
