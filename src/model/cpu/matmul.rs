//! f32 matrix products large enough to be limited by arithmetic: a checked call of the `gemm` crate.

use gemm::Parallelism;

/// A matrix seen through strides, in numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<T> {
    data: T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<T: AsRef<[f32]>> Operand<T> {
    /// `rows · cols` numbers, each row after the other with `row_stride` between their first.
    ///
    /// # Panics
    /// If the last number would lie outside `data`.
    pub(crate) fn new(data: T, rows: usize, cols: usize, row_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!(
                (rows - 1) * row_stride + cols <= data.as_ref().len(),
                "matrix is larger than its buffer"
            );
        }
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The same numbers with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }
}

/// `out = lhs · rhs`, or `out += lhs · rhs` with `add`; on all threads of the current pool with `parallel`.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn matmul(out: Operand<&mut [f32]>, lhs: Operand<&[f32]>, rhs: Operand<&[f32]>, add: bool, parallel: bool) {
    assert!(
        out.rows == lhs.rows && out.cols == rhs.cols && lhs.cols == rhs.rows,
        "shapes of a matrix product do not fit"
    );
    let parallelism = if parallel {
        Parallelism::Rayon(0)
    } else {
        Parallelism::None
    };
    // SAFETY: `Operand::new` checked that every number addressed lies in its buffer; `out` is borrowed mutably.
    unsafe {
        gemm::gemm(
            out.rows,
            out.cols,
            lhs.cols,
            out.data.as_mut_ptr(),
            out.col_stride as isize,
            out.row_stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
