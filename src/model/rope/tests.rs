//! Frequencies of every kind of scaling.

use super::*;
use crate::model::testing::engine;

impl Rope {
    fn frequencies(&self, sequence_len: usize) -> Vec<f32> {
        let mut out = Vec::new();
        self.frequencies_to(sequence_len, &mut out);
        out
    }
}

fn rope(scaling: RopeScaling) -> Rope {
    Rope::new(&RopeConfig {
        theta: 10_000.0,
        max_positions: 64,
        rotary_dim: 8,
        scaling,
    })
}

#[test]
fn without_scaling_frequencies_are_powers_of_theta() {
    let rope = rope(RopeScaling::Default);
    for (found, expected) in rope.frequencies(1000).iter().zip([1.0, 0.1, 0.01, 0.001]) {
        assert!((found - expected).abs() < 1e-7);
    }
}

#[test]
fn rotation_turns_the_first_half_into_the_second() {
    let rope = rope(RopeScaling::Default);
    let mut angles = Angles::new(&rope);
    angles.push(&rope, 3..5, 5, &engine().pool);
    let mut head = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    angles.rotate(1, &mut head);
    assert!((head[0] - 4.0_f32.cos()).abs() < 1e-6 && (head[4] - 4.0_f32.sin()).abs() < 1e-6);
}

#[test]
fn dynamic_scaling_begins_where_training_ended() {
    let rope = rope(RopeScaling::Dynamic { factor: 2.0 });
    assert_eq!(rope.frequencies(10), rope.frequencies(64));
    assert_eq!(rope.frequencies(64), plain(10_000.0, 8).collect::<Vec<f32>>());
    let grown = rope.frequencies(128);
    assert_eq!(grown[0], 1.0);
    assert!((grown[3] - 0.001 / 3.0).abs() < 1e-7, "{grown:?}");
}

#[test]
fn extreme_ramps_do_not_divide_by_zero() {
    for scaling in [
        RopeScaling::Yarn {
            factor: 2.0,
            attention_factor: 1.0,
            beta_fast: 1.0,
            beta_slow: 1.0,
            original_max_positions: 64,
            truncate: true,
        },
        RopeScaling::Llama3 {
            factor: 2.0,
            low_freq_factor: 1.0,
            high_freq_factor: 1.0,
            original_max_positions: 0,
        },
    ] {
        let rope = rope(scaling);
        let frequencies = rope.frequencies(1);
        assert!(
            frequencies.iter().all(|frequency| frequency.is_finite()),
            "{frequencies:?}"
        );
    }
}

#[test]
fn longrope_takes_the_longer_list_beyond_the_original_context() {
    let rope = rope(RopeScaling::LongRope {
        short_divisors: vec![1.0; 4],
        long_divisors: vec![2.0; 4],
        original_max_positions: 10,
        attention_factor: 1.0,
    });
    assert_eq!(rope.frequencies(10)[0], 1.0);
    assert_eq!(rope.frequencies(11)[0], 0.5);
}

#[test]
fn numbers_beyond_the_rotated_ones_stay() {
    let rope = Rope::new(&RopeConfig {
        theta: 10_000.0,
        max_positions: 64,
        rotary_dim: 4,
        scaling: RopeScaling::Default,
    });
    let mut angles = Angles::new(&rope);
    angles.push(&rope, 1..2, 2, &engine().pool);
    let mut head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    angles.rotate(0, &mut head);
    assert!((head[2] - (3.0 * 1.0_f32.cos() + 1.0_f32.sin())).abs() < 1e-6);
    assert_eq!(head[4..], [5.0, 6.0]);
}
