//! LoRA adapters of a block on a card: `y += B(A x)` for the tokens of the sequences that want it, with the factor of an
//! adapter inside its B.

use std::sync::Arc;

use crate::model::{
    cpu::Engine,
    cuda::{Buffer, CudaError, Device, View, kernels::linear::CardLinear, steps::Rows},
    lora::{BlockAdapter, LowRank, Target, f32_linear},
};

/// What one adapter changes in one block.
#[derive(Debug)]
pub(super) struct CardAdapter {
    updates: Vec<(Target, CardLowRank)>,
}

/// The update of one projection.
#[derive(Debug)]
struct CardLowRank {
    a: CardLinear,
    b: CardLinear,
}

impl CardAdapter {
    /// # Errors
    /// When the card has no memory for it.
    pub(super) fn of(adapter: &BlockAdapter, engine: &Engine, device: &Arc<Device>) -> Result<Self, CudaError> {
        let updates = Target::ALL.into_iter().filter_map(|target| {
            let update = adapter.get(target)?;
            Some(CardLowRank::of(update, engine, device).map(|update| (target, update)))
        });
        Ok(Self {
            updates: updates.collect::<Result<_, _>>()?,
        })
    }

    /// Starts to add the update of `target`, if there is one, for some of the tokens `x` to the same of `y`.
    ///
    /// # Errors
    /// When the card refuses.
    pub(super) fn add(
        &self,
        target: Target,
        tokens: Rows<'_>,
        x: View<'_, f32>,
        y: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let Some((_, update)) = self.updates.iter().find(|(of, _)| *of == target) else {
            return Ok(());
        };
        let (cols, rows) = (update.a.weight.cols(), update.b.weight.rows());
        let places = tokens.range();
        let x = x.part(places.start * cols..places.end * cols);
        let mut inner = Buffer::temporary(y.device(), tokens.len() * update.a.weight.rows())?;
        update.a.apply(x, tokens, inner.all_mut())?;
        let y = y.view_mut(places.start * rows..places.end * rows);
        update.b.add(inner.all(), tokens, y)
    }
}

impl CardLowRank {
    fn of(update: &LowRank, engine: &Engine, device: &Arc<Device>) -> Result<Self, CudaError> {
        let b = &update.b.weight;
        let mut numbers = b.to_f32();
        numbers.iter_mut().for_each(|number| *number *= update.scale);
        let scaled = f32_linear([b.rows(), b.cols()], &numbers, engine);
        Ok(Self {
            a: CardLinear::of(&update.a, engine, device)?,
            b: CardLinear::of(&scaled, engine, device)?,
        })
    }
}
