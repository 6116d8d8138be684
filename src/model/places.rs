//! Where blocks are: in the memory of the host, or on one of the cards. The rest of this layer asks here.

use std::sync::Arc;

use super::{
    AdapterError, ComputeError, LoadError, Machine,
    block::Block,
    cpu::Engine,
    cuda::{CardBlock, CudaError},
    hub::Lease,
    load::Amount,
    lora::BlockAdapter,
    rope::Rope,
};

/// A block's weights.
#[derive(Debug)]
pub(crate) struct Held {
    pub(super) block: Placed,
    /// Its projections' weights, as they were loaded.
    pub(super) packed: Amount,
    /// Keeps the files that they are from.
    _lease: Option<Arc<Lease>>,
}

/// A block where it runs.
#[derive(Debug)]
pub(crate) enum Placed {
    Host(Box<Block>),
    /// On the card of this number among those of the machine.
    Card(usize, Box<CardBlock>),
}

impl Held {
    /// Brings a block that was loaded to its place, a number among the cards.
    ///
    /// # Errors
    /// When the card has no memory for it.
    pub(super) fn new(
        (block, packed): (Block, Amount),
        lease: Option<Arc<Lease>>,
        (machine, place): (&Machine, Option<usize>),
    ) -> Result<Arc<Self>, LoadError> {
        let block = match place {
            None => Placed::Host(Box::new(block)),
            Some(place) => {
                let card = CardBlock::of(block, &machine.engine, &machine.cards[place]);
                Placed::Card(place, Box::new(card.map_err(LoadError::Card)?))
            }
        };
        Ok(Arc::new(Self {
            block,
            packed,
            _lease: lease,
        }))
    }

    /// The block on the host.
    #[cfg(test)]
    pub(super) fn host(&self) -> &Block {
        match &self.block {
            Placed::Host(block) => block,
            Placed::Card(..) => panic!("a block on a card"),
        }
    }

    /// As [`Held::host`].
    #[cfg(test)]
    pub(super) fn host_mut(&mut self) -> &mut Block {
        match &mut self.block {
            Placed::Host(block) => block,
            Placed::Card(..) => panic!("a block on a card"),
        }
    }

    /// Adds what one more adapter changes.
    ///
    /// # Errors
    /// When a card has no memory for it.
    pub(super) fn add_adapter(&mut self, adapter: BlockAdapter, engine: &Engine) -> Result<(), AdapterError> {
        match &mut self.block {
            Placed::Host(block) => block.adapters.push(adapter),
            Placed::Card(_, block) => block.add_adapter(adapter, engine).map_err(AdapterError::Card)?,
        }
        Ok(())
    }

    pub(super) fn rope(&self) -> Option<&Rope> {
        match &self.block {
            Placed::Host(block) => block.rope.as_ref(),
            Placed::Card(_, block) => block.rope.as_ref(),
        }
    }

    /// The card it is on, if it is on one.
    pub(super) fn place(&self) -> Option<usize> {
        match &self.block {
            Placed::Host(_) => None,
            Placed::Card(place, _) => Some(*place),
        }
    }

    /// Runs `task` with the block on the host and its adapters there; brings them, in f32, if it is on a card.
    ///
    /// # Errors
    /// When the card is lost.
    pub(super) fn with_host<T>(
        &self,
        engine: &Engine,
        task: impl FnOnce(&Block, &[BlockAdapter]) -> T,
    ) -> Result<T, ComputeError> {
        match &self.block {
            Placed::Host(block) => Ok(task(block, &block.adapters)),
            Placed::Card(_, block) => {
                let host = block.on_host(engine).map_err(ComputeError::Card)?;
                Ok(task(&host, block.host_adapters()))
            }
        }
    }
}

/// Cards for `n_blocks` consecutive blocks: equal parts of the memory that each has free, one card after the other.
///
/// # Errors
/// When a card does not say what is free.
pub(super) fn spread(machine: &Machine, n_blocks: usize) -> Result<Vec<Option<usize>>, CudaError> {
    if machine.cards.is_empty() {
        return Ok(vec![None; n_blocks]);
    }
    let free: Result<Vec<usize>, CudaError> = machine.cards.iter().map(|card| Ok(card.memory()?.0)).collect();
    let shares = shares(&free?, n_blocks).into_iter().enumerate();
    Ok(shares.flat_map(|(place, n)| vec![Some(place); n]).collect())
}

/// `n` divided in proportion to `free`, what is left by rounding to those that lost most by it.
fn shares(free: &[usize], n: usize) -> Vec<usize> {
    let total = free.iter().sum::<usize>().max(1) as f64;
    let exact: Vec<f64> = free.iter().map(|free| n as f64 * *free as f64 / total).collect();
    let mut shares: Vec<usize> = exact.iter().map(|share| *share as usize).collect();
    let mut order: Vec<usize> = (0..free.len()).collect();
    order.sort_by(|a, b| exact[*b].fract().total_cmp(&exact[*a].fract()));
    let left = n.saturating_sub(shares.iter().sum());
    order.into_iter().cycle().take(left).for_each(|card| shares[card] += 1);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_parts_of_a_span_in_proportion_to_what_is_free() {
        assert_eq!(shares(&[24, 24], 8), [4, 4]);
        assert_eq!(shares(&[20, 10], 4), [3, 1]);
        assert_eq!(shares(&[11, 19], 4), [1, 3]);
        assert_eq!(shares(&[80], 7), [7]);
        assert_eq!(shares(&[1, 1, 1], 2).iter().sum::<usize>(), 2);
        assert_eq!(shares(&[0, 0], 3).iter().sum::<usize>(), 3);
    }
}
