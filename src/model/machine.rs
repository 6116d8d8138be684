//! What blocks are computed with: the processor or, where there are any and they proved themselves, cards. Everything around
//! the blocks (embeddings, heads, gradients) is the processor's in any case.

use std::{error::Error, sync::Arc};

use thiserror::Error;
use tracing::{info, warn};

use super::{
    Blocks, CacheOptions, ComputeError, CudaError, Engine, Hidden, KvDType, LoadError, ModelFiles, Precision, Toolkit,
    builtin, cuda::Device,
};

/// The part of the largest output that a card's may differ from the processor's: products of many tokens round activations
/// to 16 bits on cards, and those of few do not.
const TOLERANCE: f32 = 0.03;

/// Tokens that a card has to prove itself with: many at once, then one.
const MANY_TOKENS: usize = 70;

/// What blocks are computed with. Clones share it.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) engine: Engine,
    /// If there are any, they have all blocks.
    pub(crate) cards: Vec<Arc<Device>>,
}

/// Which cards to compute with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cards {
    /// All that the driver knows and that can be used.
    All,
    /// These, by their numbers, every one of them.
    These(Vec<usize>),
}

impl Cards {
    /// Those of `tried`, by their numbers, that are to be used. Where all are wanted, those that cannot be are left out with
    /// a warning.
    ///
    /// # Errors
    /// The first of a card that is wanted by its number, or of all of them.
    fn usable<T, E: Error + 'static>(&self, tried: impl Iterator<Item = (usize, Result<T, E>)>) -> Result<Vec<T>, E> {
        let (mut usable, mut others) = (Vec::new(), Vec::new());
        for (card, outcome) in tried {
            match outcome {
                Ok(item) => usable.push(item),
                Err(error) if matches!(self, Self::These(_)) => return Err(error),
                Err(error) => others.push((card, error)),
            }
        }
        if usable.is_empty() && !others.is_empty() {
            return Err(others.swap_remove(0).1);
        }
        for (card, error) in &others {
            let error: &(dyn Error + 'static) = error;
            warn!(card, error, "a card is left out: it cannot be used");
        }
        Ok(usable)
    }
}

/// A card that must not be used.
#[derive(Debug, Error)]
pub enum ProofError {
    /// The blocks to compute could not be loaded.
    #[error("a test block cannot be loaded")]
    Load(#[from] LoadError),
    /// They could not be computed.
    #[error("a test block cannot be computed")]
    Compute(#[from] ComputeError),
    /// The card computes something else than the processor.
    #[error("card {card} ({name}) does not compute what the processor does with {format} weights: it is off by {off}")]
    Disagrees {
        /// Its number.
        card: usize,
        /// What the driver calls it.
        name: String,
        /// Of the weights.
        format: &'static str,
        /// The largest difference as a part of the largest output.
        off: f32,
    },
}

impl From<Engine> for Machine {
    fn from(engine: Engine) -> Self {
        Self {
            engine,
            cards: Vec::new(),
        }
    }
}

impl From<&Engine> for Machine {
    fn from(engine: &Engine) -> Self {
        engine.clone().into()
    }
}

impl From<&Self> for Machine {
    fn from(machine: &Self) -> Self {
        machine.clone()
    }
}

impl Machine {
    /// How many cards the driver knows, at least one.
    ///
    /// # Errors
    /// No driver, or one that finds no card.
    pub(crate) fn count_cards() -> Result<usize, CudaError> {
        Device::count()
    }

    /// A machine whose cards have all blocks.
    ///
    /// # Errors
    /// No driver, no such card, one of those that are named cannot be used, or none of all.
    pub fn with_cards(engine: Engine, wanted: &Cards, toolkit: &Toolkit) -> Result<Self, CudaError> {
        let ordinals = match wanted {
            Cards::These(ordinals) => ordinals.clone(),
            Cards::All => (0..Device::count()?).collect(),
        };
        let tried = ordinals
            .into_iter()
            .map(|ordinal| (ordinal, Device::open(ordinal, toolkit)));
        let cards: Vec<Arc<Device>> = wanted.usable(tried)?;
        for card in &cards {
            let (card, name, cublas) = (card.ordinal(), card.name(), card.has_blas());
            info!(card, name, cublas, "a card to compute with");
            if !cublas {
                warn!("without cuBLAS prompts are computed more slowly: `pip install nvidia-cublas-cu12` has it");
            }
        }
        Ok(Self { engine, cards })
    }

    /// The processor's part.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether blocks are on cards.
    pub fn has_cards(&self) -> bool {
        !self.cards.is_empty()
    }

    /// What blocks are computed with, for people and for what remembers how fast it was: an instruction set, or cards.
    pub fn kernels(&self) -> String {
        if self.cards.is_empty() {
            return self.engine.instructions().to_owned();
        }
        let names: Vec<String> = self.cards.iter().map(|card| format!("cuda {}", card.name())).collect();
        names.join(" + ")
    }

    /// The same for quantised weights.
    pub fn quant_kernels(&self) -> String {
        match self.cards.is_empty() {
            true => self.engine.quant_instructions().to_owned(),
            false => self.kernels(),
        }
    }

    /// Bytes that are free on each card; `None` for those of the host.
    ///
    /// # Errors
    /// When a card does not answer.
    pub fn free_on_cards(&self) -> Result<Option<Vec<u64>>, CudaError> {
        if self.cards.is_empty() {
            return Ok(None);
        }
        let free = self.cards.iter().map(|card| Ok(card.memory()?.0 as u64));
        free.collect::<Result<_, _>>().map(Some)
    }

    /// The machine with those of its cards, which were `wanted`, that compute a block of the built-in model as the processor
    /// does in all of `formats`.
    ///
    /// # Errors
    /// One of the cards that are named computes something else, or nothing; or all of them do.
    pub fn proven(mut self, wanted: &Cards, formats: &[(Precision, KvDType)]) -> Result<Self, ProofError> {
        if self.cards.is_empty() {
            return Ok(self);
        }
        let processor = Self::from(&self.engine);
        let expected = formats.iter().map(|format| proof(&processor, *format));
        let expected: Vec<Vec<f32>> = expected.collect::<Result<_, _>>()?;
        let tried = self.cards.iter().map(|card| {
            let mut pairs = formats.iter().zip(&expected);
            let outcome = pairs.try_for_each(|(format, expected)| self.prove(card, *format, expected));
            (card.ordinal(), outcome.map(|()| card.clone()))
        });
        self.cards = wanted.usable(tried)?;
        Ok(self)
    }

    fn prove(&self, card: &Arc<Device>, format: (Precision, KvDType), expected: &[f32]) -> Result<(), ProofError> {
        let alone = Self {
            engine: self.engine.clone(),
            cards: vec![card.clone()],
        };
        let off = difference(&proof(&alone, format)?, expected);
        // Not a number is no agreement.
        if off.is_nan() || off > TOLERANCE {
            return Err(ProofError::Disagrees {
                card: card.ordinal(),
                name: card.name().to_owned(),
                format: format.0.weights.as_str(),
                off,
            });
        }
        Ok(())
    }
}

/// What a block of the built-in model gives for many tokens and for one after them.
fn proof(machine: &Machine, (precision, kv_dtype): (Precision, KvDType)) -> Result<Vec<f32>, ProofError> {
    let files = ModelFiles::from_bytes(builtin::CONFIG, builtin::weights())?;
    let blocks = Blocks::load(&files, 0..1, precision, machine)?.with_cache(CacheOptions {
        dtype: Some(kv_dtype),
        block_tokens: 0,
        share_prefixes: false,
    })?;
    let mut cache = blocks.new_cache(1, 1, MANY_TOKENS + 1);
    let mut out = Vec::new();
    for (position, tokens) in [(0, MANY_TOKENS), (MANY_TOKENS, 1)] {
        let width = blocks.config().hidden_size;
        let data = (0..tokens * width).map(|i| ((i * 7919 + position) % 2003) as f32 / 1001.5 - 1.0);
        let mut x = Hidden {
            data: data.collect(),
            batch: 1,
            tokens,
            width,
        };
        blocks.step(0, &mut cache, 0, &mut x, position)?;
        out.append(&mut x.data);
    }
    Ok(out)
}

/// The largest difference as a part of the largest number.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected
        .iter()
        .fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let differences = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs());
    // Unlike `max`, this keeps what is not a number.
    differences.fold(0.0, |off, difference| {
        if difference > off || difference.is_nan() {
            difference
        } else {
            off
        }
    }) / largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_that_cannot_be_used_are_left_out_unless_they_are_named() {
        let lost = |card| CudaError::Driver {
            card,
            doing: "opening the card",
            name: "CUDA_ERROR_UNKNOWN".into(),
            code: 999,
        };
        let tried = |bad: &[usize]| {
            let outcomes = (0..3).map(|card| (card, if bad.contains(&card) { Err(lost(card)) } else { Ok(card) }));
            outcomes.collect::<Vec<_>>().into_iter()
        };
        assert_eq!(Cards::All.usable(tried(&[])), Ok(vec![0, 1, 2]));
        assert_eq!(Cards::All.usable(tried(&[0, 1])), Ok(vec![2]));
        assert_eq!(Cards::All.usable(tried(&[0, 1, 2])), Err(lost(0)));
        let named = Cards::These(vec![0, 1, 2]);
        assert_eq!(named.usable(tried(&[])), Ok(vec![0, 1, 2]));
        assert_eq!(named.usable(tried(&[1, 2])), Err(lost(1)));
    }

    #[test]
    fn whatever_is_no_number_is_no_agreement() {
        assert!((difference(&[1.0, 2.5], &[1.0, 2.0]) - 0.25).abs() < 1e-6);
        for wrong in [f32::NAN, f32::INFINITY] {
            let off = difference(&[wrong, 1.0], &[1.0, 1.0]);
            assert!(off.is_nan() || off > TOLERANCE);
        }
    }
}
