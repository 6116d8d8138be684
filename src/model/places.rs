//! Where blocks are: in the memory of the host, or on one of the cards. The rest of this layer asks here.

use std::{cmp::Reverse, iter, sync::Arc};

use super::{
    AdapterError, ComputeError, LoadError, Machine,
    block::Block,
    cpu::Engine,
    cuda::{CardBlock, CudaError},
    free::plannable_on_card,
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

/// What blocks of one model take in the places that they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Bytes of each.
    pub(crate) block: u64,
    /// Bytes that are needed once in a place that has any.
    pub(crate) once: u64,
}

impl Need {
    /// How many blocks fit into places that have so many bytes `free`. Each is in one of them.
    pub(crate) fn fit(self, free: &[u64]) -> u64 {
        let fitting = free
            .iter()
            .map(|free| free.saturating_sub(self.once) / self.block.max(1));
        fitting.fold(0, u64::saturating_add)
    }

    /// How many of `n_blocks` to put into each of these places: in proportion to how many fit there. So they fit if they fit in
    /// any way; those that do not are spread all the same.
    pub(crate) fn spread(self, free: &[u64], n_blocks: usize) -> Vec<usize> {
        match self.fit(free) >= n_blocks as u64 {
            true => {
                let fitting: Vec<u64> = free.iter().map(|free| self.fit(&[*free])).collect();
                proportion(&fitting, n_blocks)
            }
            false => proportion(free, n_blocks),
        }
    }

    /// Bytes of so many blocks in one place.
    pub(crate) fn bytes(self, n_blocks: usize) -> u64 {
        match n_blocks {
            0 => 0,
            _ => self.block.saturating_mul(n_blocks as u64).saturating_add(self.once),
        }
    }

    /// Whether as many blocks as `shares` says fit into each of the places.
    pub(crate) fn holds(self, free: &[u64], shares: &[usize]) -> bool {
        let fits = |(free, n_blocks): (&u64, &usize)| self.bytes(*n_blocks) <= *free;
        free.len() == shares.len() && free.iter().zip(shares).all(fits)
    }
}

/// `n` divided in proportion to `parts`, what is left by rounding to those that lost most by it. Nobody gets more than its
/// part where these are enough.
fn proportion(parts: &[u64], n: usize) -> Vec<usize> {
    let total = parts.iter().copied().map(u128::from).sum::<u128>().max(1);
    let exact = |part: u64| (n as u128).saturating_mul(u128::from(part));
    let mut shares: Vec<usize> = parts.iter().map(|part| (exact(*part) / total) as usize).collect();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|place| Reverse(exact(parts[*place]) % total));
    let left = n.saturating_sub(shares.iter().sum());
    order
        .into_iter()
        .cycle()
        .take(left)
        .for_each(|place| shares[place] += 1);
    shares
}

/// Bytes that may be planned with on each card; `None` where blocks are on the host.
///
/// # Errors
/// When a card does not say what is free.
pub(crate) fn room_on_cards(machine: &Machine) -> Result<Option<Vec<u64>>, CudaError> {
    let free = machine.free_on_cards()?;
    Ok(free.map(|cards| cards.into_iter().map(plannable_on_card).collect()))
}

/// How many of `n_blocks` blocks of which only the size is known to put on each card.
///
/// # Errors
/// When a card does not say what is free.
pub(super) fn spread(machine: &Machine, block: u64, n_blocks: usize) -> Result<Vec<usize>, CudaError> {
    let room = room_on_cards(machine)?.unwrap_or_default();
    Ok(Need { block, once: 0 }.spread(&room, n_blocks))
}

/// The cards of consecutive blocks, of which each has as many as `shares` says, one card after the other, and the last one
/// those that are not counted there; `None` where they are on the host.
pub(super) fn in_order(machine: &Machine, shares: &[usize]) -> impl Iterator<Item = Option<usize>> {
    let last = machine.cards.len().checked_sub(1);
    let shares = match last {
        Some(_) => shares,
        None => &[],
    };
    let counted = shares.iter().enumerate();
    let counted = counted.flat_map(|(place, n_blocks)| iter::repeat_n(Some(place), *n_blocks));
    counted.chain(iter::repeat(last))
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn spread_of(block: u64, free: &[u64], n_blocks: usize) -> Vec<usize> {
        Need { block, once: 0 }.spread(free, n_blocks)
    }

    #[test]
    fn cards_have_parts_of_a_span_in_proportion_to_what_fits() {
        assert_eq!(spread_of(3, &[24, 24], 8), [4, 4]);
        assert_eq!(spread_of(5, &[20, 10], 4), [3, 1]);
        assert_eq!(spread_of(4, &[7, 20], 6), [1, 5]);
        assert_eq!(spread_of(10, &[80], 7), [7]);
        assert_eq!(spread_of(1, &[1, 1, 1], 2), [1, 1, 0]);
        // A little more that is free on one of them does not decide where all are.
        assert_eq!(spread_of(1, &[1_000_000, 1_000_100], 4), [2, 2]);
    }

    #[test]
    fn what_does_not_fit_is_spread_as_well() {
        assert_eq!(spread_of(4, &[0, 0], 3), [2, 1]);
        assert_eq!(spread_of(4, &[], 3), [0; 0]);
    }

    #[test]
    fn a_block_is_whole_in_one_place() {
        let need = Need { block: 4, once: 1 };
        assert_eq!(need.fit(&[4, 4]), 0);
        assert_eq!(need.fit(&[5, 8, 9]), 4);
        assert!(need.holds(&[5, 8, 9], &[1, 1, 2]) && need.holds(&[0, 9], &[0, 2]));
        assert!(!need.holds(&[5, 8, 9], &[0, 2, 2]) && !need.holds(&[9], &[1, 1]));
    }

    #[test]
    fn as_many_blocks_as_fit_are_spread_so_that_they_do() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..1000 {
            let free: Vec<u64> = (0..rng.random_range(1..6)).map(|_| rng.random_range(0..100)).collect();
            let need = Need {
                block: rng.random_range(1..30),
                once: rng.random_range(0..30),
            };
            let most = need.fit(&free) as usize;
            for n_blocks in 0..=most {
                let shares = need.spread(&free, n_blocks);
                assert_eq!(shares.iter().sum::<usize>(), n_blocks);
                assert!(need.holds(&free, &shares), "{need:?} {free:?} {shares:?}");
            }
            assert!(!need.holds(&free, &need.spread(&free, most + 1)));
        }
    }
}
