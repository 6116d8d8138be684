//! cuBLAS: products with many tokens at once. Cards work without it, more slowly.

use std::{
    ffi::{c_int, c_void},
    path::PathBuf,
    ptr,
};

use libloading::Library;
use tracing::warn;

use super::{
    error::CudaError,
    library::{Version, entry_points, names, open},
};
use crate::model::WeightDType;

/// `CUBLAS_OP_N`, `CUBLAS_OP_T`, `CUBLAS_COMPUTE_32F`, `CUDA_R_32F` and `CUBLAS_GEMM_DEFAULT`
const AS_IT_IS: c_int = 0;
const TRANSPOSED: c_int = 1;
const COMPUTE_F32: c_int = 68;
const F32: c_int = 0;
const ANY_ALGORITHM: c_int = -1;

entry_points! {
    /// The functions of `libcublas.so` that are used.
    struct Cublas {
        create: "cublasCreate_v2"(*mut *mut c_void),
        destroy: "cublasDestroy_v2"(*mut c_void),
        set_stream: "cublasSetStream_v2"(*mut c_void, *mut c_void),
        gemm: "cublasGemmEx"(
            *mut c_void, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, *const c_void,
            c_int, c_int, *const c_void, *mut c_void, c_int, c_int, c_int, c_int
        ),
    }
}

/// cuBLAS on the stream of one card.
#[derive(Debug)]
pub(crate) struct Blas {
    cublas: Cublas,
    handle: *mut c_void,
}

// SAFETY: the handle is used by one thread at a time: its device locks it.
unsafe impl Send for Blas {}

/// `y = x · Wᵀ` with `x` `[tokens, cols]` and `w` `[rows, cols]` of one type, and `y` `[tokens, rows]` in f32: addresses on
/// the card, and sizes. A token's y are `y_stride` numbers after those of the one before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    pub(crate) dtype: WeightDType,
    pub(crate) weights: u64,
    pub(crate) x: u64,
    pub(crate) y: u64,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) tokens: usize,
    pub(crate) y_stride: usize,
    /// Whether the product is added to what is in `y`.
    pub(crate) add: bool,
}

impl Blas {
    /// A library for the current context, on a card of `capability` and a driver which serves `driver`, and `stream`; `None` if
    /// there is none, or none that works.
    pub(super) fn find(driver: Version, capability: c_int, folders: &[PathBuf], stream: *mut c_void) -> Option<Self> {
        let names = names("libcublas", driver, capability);
        let found = open(&names, folders, |library| Self::start(library, stream));
        if let Err(Some(error)) = &found {
            warn!(%error, "cuBLAS was found and does not work");
        }
        found.ok()
    }

    fn start(library: Library, stream: *mut c_void) -> Result<Self, CudaError> {
        let cublas = Cublas::of(library).map_err(|error| CudaError::Library {
            library: "cuBLAS",
            problem: error.to_string(),
        })?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes the handle, for the current context.
        check("starting cuBLAS", unsafe { (cublas.create)(&mut handle) })?;
        let blas = Self { cublas, handle };
        // SAFETY: both live.
        check("starting cuBLAS", unsafe { (blas.cublas.set_stream)(handle, stream) })?;
        Ok(blas)
    }

    /// Starts a product. Sums are f32.
    ///
    /// # Errors
    /// When cuBLAS refuses.
    pub(super) fn multiply(&self, gemm: Gemm) -> Result<(), CudaError> {
        let dtype = match gemm.dtype {
            WeightDType::F32 => F32,
            WeightDType::F16 => 2,
            WeightDType::Bf16 => 14,
        };
        let [rows, cols, tokens] = [gemm.rows, gemm.cols, gemm.tokens].map(|size| size as c_int);
        let (one, keep) = (1.0_f32, if gemm.add { 1.0_f32 } else { 0.0 });
        // cuBLAS counts columns first: what is `[rows, cols]` here is its transpose there.
        // SAFETY: factors are on the host, matrices on the card, of the sizes that are said.
        let status = unsafe {
            (self.cublas.gemm)(
                self.handle,
                TRANSPOSED,
                AS_IT_IS,
                rows,
                tokens,
                cols,
                (&raw const one).cast(),
                gemm.weights as *const c_void,
                dtype,
                cols,
                gemm.x as *const c_void,
                dtype,
                cols,
                (&raw const keep).cast(),
                gemm.y as *mut c_void,
                F32,
                gemm.y_stride as c_int,
                COMPUTE_F32,
                ANY_ALGORITHM,
            )
        };
        check("a product of cuBLAS", status)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: it was created, and is not used any more.
        unsafe { (self.cublas.destroy)(self.handle) };
    }
}

fn check(doing: &'static str, status: c_int) -> Result<(), CudaError> {
    match status {
        0 => Ok(()),
        status => Err(CudaError::Status { doing, status }),
    }
}
