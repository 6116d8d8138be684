//! A block of any model with weights that mean nothing: to measure how long it takes without having the model. How long a
//! product takes does not depend on the numbers in it.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf, sync::Arc};

use bytes::Bytes;
use half::bf16;
use safetensors::{Dtype, View, serialize};

use super::{
    Blocks, LoadError, Machine, ModelConfig, ModelFiles, Precision,
    layout::{BlockLayout, Packing, TensorSpec},
    load,
};

/// What a power of two is stored as in MXFP4: 2⁻⁷, so that numbers stay small.
const SMALL_SCALE: u8 = 120;

/// A tensor filled with the beginning of the same bytes as all others.
struct Noise<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl View for Noise<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl ModelFiles {
    /// Block 0 of a model of this shape, and nothing else of it.
    ///
    /// # Errors
    /// When the tensors cannot be put together.
    pub fn of_noise(config: &ModelConfig) -> Result<Self, LoadError> {
        // How somebody packed them is of no interest: they are made as numbers.
        let config = ModelConfig {
            packed: None,
            ..config.clone()
        };
        let layout = BlockLayout::new(&config, 0, &|_| false);
        let tensors: BTreeMap<&str, &TensorSpec> = layout.tensors().map(|spec| (spec.name.as_str(), spec)).collect();
        let n_numbers = |spec: &TensorSpec| spec.shape.iter().product::<usize>();
        let most = tensors.values().map(|spec| n_numbers(spec)).max().unwrap_or(0);
        let numbers: Vec<bf16> = (0..most).map(noise).collect();
        let numbers: &[u8] = bytemuck::cast_slice(&numbers);
        let scales = vec![SMALL_SCALE; most / 32];
        let stored = tensors.into_iter().flat_map(|(name, spec)| match spec.packing {
            Packing::Mxfp4 => {
                let [blocks, codes_of] = load::mxfp4_shapes(&spec.shape);
                let packed = |shape: Vec<usize>, from: &'_ [u8]| shape.iter().product::<usize>().min(from.len());
                let (n_blocks, n_scales) = (packed(blocks.clone(), numbers), packed(codes_of.clone(), &scales));
                vec![
                    (format!("{name}_blocks"), of_bytes(blocks, &numbers[..n_blocks])),
                    (format!("{name}_scales"), of_bytes(codes_of, &scales[..n_scales])),
                ]
            }
            Packing::Plain | Packing::Grouped(_) => {
                let bytes = &numbers[..n_numbers(spec) * size_of::<bf16>()];
                let (dtype, shape) = (Dtype::BF16, spec.shape.clone());
                vec![(name.to_owned(), Noise { dtype, shape, bytes })]
            }
        });
        let content = serialize(stored, None).map_err(|source| LoadError::Damaged {
            path: PathBuf::from("noise"),
            tensor: "of block 0".to_owned(),
            source,
        })?;
        Ok(Self::from_memory(Arc::new(config), Bytes::from(content)))
    }
}

impl Blocks {
    /// So many blocks like block 0 of a model of this shape, of noise, each with memory of its own.
    ///
    /// # Errors
    /// As [`Blocks::load`].
    pub fn of_noise(
        config: &ModelConfig,
        n_blocks: u32,
        precision: impl Into<Precision>,
        machine: impl Into<Machine>,
    ) -> Result<Self, LoadError> {
        let (precision, machine) = (precision.into(), machine.into());
        let config = ModelConfig {
            n_blocks,
            ..config.clone()
        };
        let files = ModelFiles::of_noise(&config)?;
        let mut all = Self::load(&files, 0..1, precision, &machine)?;
        for _ in 1..n_blocks {
            all.blocks
                .append(&mut Self::load(&files, 0..1, precision, &machine)?.blocks);
        }
        all.span = 0..n_blocks;
        Ok(all)
    }
}

fn of_bytes(shape: Vec<usize>, bytes: &[u8]) -> Noise<'_> {
    Noise {
        dtype: Dtype::U8,
        shape,
        bytes,
    }
}

/// Numbers as small as weights are, without much of a pattern.
fn noise(i: usize) -> bf16 {
    bf16::from_f32((i.wrapping_mul(7919) % 2003) as f32 / 50_000.0 - 0.02)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Hidden, WeightDType, testing};

    #[test]
    fn a_block_of_noise_of_every_family_can_be_computed() {
        for family in Family::ALL {
            let fixtures = family.support().fixtures;
            let folder = fixtures
                .iter()
                .map(|name| testing::vectors(name))
                .find(|path| path.is_dir());
            let json = std::fs::read(folder.unwrap().join("config.json")).unwrap();
            let files = ModelFiles::of_noise(&ModelConfig::from_json(&json).unwrap()).unwrap();
            let blocks = Blocks::load(&files, 0..1, WeightDType::Bf16, testing::engine()).unwrap();
            let width = blocks.config().hidden_size;
            let mut x = Hidden::new(vec![0.5; 3 * width], 1, 3, width).unwrap();
            blocks.forward(0, &mut x).unwrap();
            assert!(x.data.iter().all(|x| x.is_finite()), "{family:?}");
        }
    }

    #[test]
    fn blocks_of_noise_have_the_same_weights_in_memory_of_their_own() {
        let json = std::fs::read(testing::vectors("petals/tiny-llama/config.json")).unwrap();
        let config = ModelConfig::from_json(&json).unwrap();
        let blocks = Blocks::of_noise(&config, 3, WeightDType::Bf16, testing::engine()).unwrap();
        assert_eq!(blocks.span(), 0..3);
        assert!(!Arc::ptr_eq(&blocks.blocks[0], &blocks.blocks[2]));
        let width = config.hidden_size;
        let run = |block| {
            let mut x = Hidden::new(vec![0.5; width], 1, 1, width).unwrap();
            blocks.forward(block, &mut x).unwrap();
            x.data
        };
        assert_eq!(run(0), run(2));
    }
}
