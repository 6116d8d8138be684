//! The way of a backward pass through its chain: there, to learn what goes into each block, and back. Where there is no
//! memory for all of these inputs, only the first of every stretch of blocks is kept, and the others are computed again
//! when it is their turn. It computes nothing itself.

/// A block of the chain, by its position there, and which way it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// From the last input that there is to the next one.
    There {
        index: usize,
        /// Whether the block's input is needed again; if not, its output takes the place.
        keeps: bool,
    },
    /// The last input that there is is used up.
    Back { index: usize },
}

/// All stages of a pass through `n_blocks` blocks in stretches of `stretch`, in order. The output of the last block is
/// never computed.
pub(crate) fn stages(n_blocks: usize, stretch: usize) -> Vec<Stage> {
    let stretch = stretch.max(1);
    let last_start = n_blocks.saturating_sub(1) / stretch * stretch;
    let there = (0..n_blocks.saturating_sub(1)).map(|index| Stage::There {
        index,
        keeps: index.is_multiple_of(stretch) || index >= last_start,
    });
    let mut stages: Vec<Stage> = there.collect();
    for start in (0..n_blocks).step_by(stretch).rev() {
        let end = n_blocks.min(start + stretch);
        if start < last_start {
            stages.extend((start..end - 1).map(|index| Stage::There { index, keeps: true }));
        }
        stages.extend((start..end).rev().map(|index| Stage::Back { index }));
    }
    stages
}

/// How many inputs there are at a time at most.
pub(crate) fn most_inputs(n_blocks: usize, stretch: usize) -> usize {
    let stretch = stretch.clamp(1, n_blocks.max(1));
    n_blocks.div_ceil(stretch) + stretch - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_room_for_all_inputs_a_pass_goes_there_without_the_last_block_and_all_the_way_back() {
        for (n_blocks, expected) in [(1, vec![0]), (3, vec![0, 1, 2, 1, 0])] {
            let indices = stages(n_blocks, 1).into_iter().map(|stage| match stage {
                Stage::There { index, keeps } => {
                    assert!(keeps);
                    index
                }
                Stage::Back { index } => index,
            });
            assert_eq!(indices.collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn every_block_is_passed_back_with_its_own_input_and_no_more_are_kept_than_promised() {
        for n_blocks in 1..40 {
            for stretch in 1..=n_blocks + 1 {
                let (mut inputs, mut most, mut back) = (vec![0], 1, Vec::new());
                for stage in stages(n_blocks, stretch) {
                    match stage {
                        Stage::There { index, keeps } => {
                            assert_eq!(inputs.last(), Some(&index));
                            if !keeps {
                                inputs.pop();
                            }
                            inputs.push(index + 1);
                        }
                        Stage::Back { index } => {
                            assert_eq!(inputs.pop(), Some(index));
                            back.push(index);
                        }
                    }
                    most = most.max(inputs.len());
                }
                assert_eq!(back, (0..n_blocks).rev().collect::<Vec<_>>());
                assert!(inputs.is_empty());
                assert!(most <= most_inputs(n_blocks, stretch), "{n_blocks} {stretch} {most}");
            }
        }
    }
}
