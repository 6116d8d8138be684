//! Activations between blocks, and the ways to and from tensors on the wire. The only file that knows both.

use sepal_protocol::{
    WireError,
    tensor::{DType, WireTensor},
};

use super::{ComputeError, WeightDType};

/// Activations `[batch, tokens, width]`, row-major, always f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Hidden {
    /// `batch · tokens · width` numbers.
    pub data: Vec<f32>,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Numbers of each token.
    pub width: usize,
}

impl From<WeightDType> for DType {
    fn from(dtype: WeightDType) -> Self {
        match dtype {
            WeightDType::F32 => Self::F32,
            WeightDType::Bf16 => Self::Bf16,
            WeightDType::F16 => Self::F16,
        }
    }
}

impl Hidden {
    /// # Errors
    /// [`ComputeError::Size`] if there are not `batch · tokens · width` numbers.
    pub fn new(data: Vec<f32>, batch: usize, tokens: usize, width: usize) -> Result<Self, ComputeError> {
        let hidden = Self {
            data,
            batch,
            tokens,
            width,
        };
        hidden.check_size()?;
        Ok(hidden)
    }

    /// The activations of a tensor `[batch, tokens, hidden]` of any floating-point type.
    ///
    /// # Errors
    /// [`ComputeError::Dimensions`] unless it has three dimensions, [`ComputeError::NotFloat`] if it has integers.
    pub fn from_wire(tensor: &WireTensor) -> Result<Self, ComputeError> {
        let [batch, tokens, width] = tensor.shape[..] else {
            return Err(ComputeError::Dimensions {
                shape: tensor.shape.clone(),
            });
        };
        if !tensor.dtype.is_float() {
            return Err(ComputeError::NotFloat { dtype: tensor.dtype });
        }
        Self::new(tensor.to_f32_vec(), batch, tokens, width)
    }

    /// A tensor `[batch, tokens, hidden]` of type `dtype`, rounded to nearest.
    ///
    /// # Errors
    /// If there are not `batch · tokens · width` numbers.
    pub fn to_wire(&self, dtype: DType) -> Result<WireTensor, WireError> {
        WireTensor::from_f32(&self.data, [self.batch, self.tokens, self.width], dtype)
    }

    pub(crate) fn check_size(&self) -> Result<(), ComputeError> {
        let Self {
            data,
            batch,
            tokens,
            width,
        } = self;
        let expected = batch.checked_mul(*tokens).and_then(|n| n.checked_mul(*width));
        if expected == Some(data.len()) {
            Ok(())
        } else {
            Err(ComputeError::Size {
                shape: [*batch, *tokens, *width],
                found: data.len(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_survive_the_wire_in_their_own_type() {
        let x = Hidden::new(vec![1.0, -0.5, 3.0, 0.0, 2.0, -4.0], 1, 3, 2).unwrap();
        for dtype in [WeightDType::F32, WeightDType::Bf16, WeightDType::F16] {
            let wire = x.to_wire(dtype.into()).unwrap();
            assert_eq!(
                (wire.dtype, wire.shape.as_slice()),
                (dtype.into(), [1, 3, 2].as_slice())
            );
            assert_eq!(wire.dtype.as_str(), dtype.as_torch_str());
            assert_eq!(Hidden::from_wire(&wire).unwrap(), x);
        }
    }

    #[test]
    fn tensors_that_are_no_activations_are_refused() {
        let flat = WireTensor::from_f32(&[1.0, 2.0], [2], DType::F32).unwrap();
        let error = Hidden::from_wire(&flat).unwrap_err();
        assert_eq!(
            error.to_string(),
            "activations have the dimensions batch, tokens and hidden size, not [2]"
        );
        let whole = WireTensor::from_i64(&[1, 2], [1, 1, 2]).unwrap();
        let error = Hidden::from_wire(&whole).unwrap_err();
        assert_eq!(error.to_string(), "activations are floating-point numbers, not int64");
    }
}
