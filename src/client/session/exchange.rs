//! A step and its answer, to tell whether the next answer is the same one again: of a server that answers twice, or is a
//! step behind, everything that follows would be wrong without anything else showing it.

use sepal_protocol::tensor::WireTensor;

use crate::model::Hidden;

/// Most numbers of a step that is remembered. Steps that follow each other with one answer are those of a token or few.
const MAX_NUMBERS: usize = 1 << 18;
/// How far apart two steps have to be, relative to their size, before they cannot have the same answer. The numbers of a
/// token that is repeated for ever differ by roundings only, and then so may the answers.
const DIFFERENT: f64 = 0.01;

#[derive(Debug)]
pub(super) struct Exchange {
    sent: WireTensor,
    answer: Vec<f32>,
}

impl Exchange {
    /// `None` if it is too large to keep.
    pub(super) fn of(sent: &WireTensor, answer: &Hidden) -> Option<Self> {
        (answer.data.len() <= MAX_NUMBERS).then(|| Self {
            sent: sent.clone(),
            answer: answer.data.clone(),
        })
    }

    /// Whether `answer` is the one that was given to this step, though `sent` is another one.
    pub(super) fn is_repeated_by(&self, sent: &WireTensor, answer: &Hidden) -> bool {
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        self.sent.shape == sent.shape
            && !answer.data.is_empty()
            && self.answer.iter().zip(&answer.data).all(same)
            && distance(&self.sent.to_f32_vec(), &sent.to_f32_vec()) > DIFFERENT
    }
}

/// Of two steps, relative to the first.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
    let difference = squares(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference / squares(&mut a.iter().map(|a| f64::from(*a))).max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use sepal_protocol::tensor::DType;

    use super::*;

    fn step(numbers: &[f32]) -> WireTensor {
        WireTensor::from_f32(numbers, [1, 1, numbers.len()], DType::F32).unwrap()
    }

    fn answer(numbers: &[f32]) -> Hidden {
        Hidden::new(numbers.to_vec(), 1, 1, numbers.len()).unwrap()
    }

    #[test]
    fn only_the_same_answer_to_another_step_is_a_repetition() {
        let last = Exchange::of(&step(&[1.0, 2.0]), &answer(&[3.0, 4.0])).unwrap();
        assert!(last.is_repeated_by(&step(&[1.0, 2.5]), &answer(&[3.0, 4.0])));
        assert!(!last.is_repeated_by(&step(&[1.0, 2.5]), &answer(&[3.0, 4.1])));
        assert!(!last.is_repeated_by(&step(&[1.0, 2.0]), &answer(&[3.0, 4.0])));
        assert!(!last.is_repeated_by(&step(&[1.0, 2.0001]), &answer(&[3.0, 4.0])));
        assert!(!last.is_repeated_by(&step(&[1.0, 2.5, 3.0]), &answer(&[3.0, 4.0, 5.0])));
    }
}
