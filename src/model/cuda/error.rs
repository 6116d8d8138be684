//! What can go wrong with a card, by what can be done about it.

use thiserror::Error;

/// A card cannot be used, or did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CudaError {
    /// There is no driver.
    #[error("no NVIDIA driver was found (libcuda.so.1): install it, or compute with --device cpu")]
    NoDriver,
    /// There are cards, and the program is one that can load nothing.
    #[error(
        "this program is static and cannot load the NVIDIA driver: take the release for linux-gnu or build on this machine, or \
         compute with --device cpu"
    )]
    Static,
    /// The driver has no card.
    #[error("the NVIDIA driver finds no card it can use ({reason}): compute with --device cpu")]
    NoCards {
        /// What it says.
        reason: String,
    },
    /// The driver has fewer cards.
    #[error("there is no card {ordinal}: the driver knows {n_cards}, numbered from 0")]
    NoSuchCard {
        /// What was asked for.
        ordinal: usize,
        /// How many there are.
        n_cards: usize,
    },
    /// The card is older than those that kernels are made for.
    #[error(
        "card {card} has compute capability {}.{}, and kernels are made for 7.0 and newer: compute with --device cpu",
        .capability / 10, .capability % 10
    )]
    TooOld {
        /// Its number.
        card: usize,
        /// 61 for 6.1.
        capability: i32,
    },
    /// Kernels cannot be compiled.
    #[error(
        "NVIDIA's run-time compiler was not found ({names}): install the CUDA toolkit, or `pip install {package}`, or \
         compute with --device cpu"
    )]
    NoCompiler {
        /// The files that were looked for.
        names: String,
        /// The Python package that has it.
        package: String,
    },
    /// A library lacks a function.
    #[error("{library} is not one that can be used: {problem}")]
    Library {
        /// Which.
        library: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The memory of a card is full.
    #[error("card {card} has no {bytes} bytes of memory left")]
    OutOfMemory {
        /// Its number.
        card: usize,
        /// What was asked for.
        bytes: usize,
    },
    /// The driver refused something, or a kernel failed.
    #[error("card {card}: {doing} failed: {name}")]
    Driver {
        /// The number of the card.
        card: usize,
        /// What was tried.
        doing: &'static str,
        /// The name of NVIDIA's error.
        name: String,
        /// Its number.
        code: i32,
    },
    /// A kernel is not valid CUDA for this compiler.
    #[error("the kernels \"{program}\" do not compile for {architecture}: {log}")]
    Compile {
        /// Which text.
        program: &'static str,
        /// For which card.
        architecture: String,
        /// What the compiler says.
        log: String,
    },
    /// cuBLAS or the compiler failed for a reason of its own.
    #[error("{doing} failed with status {status}")]
    Status {
        /// What was tried.
        doing: &'static str,
        /// What the library answered.
        status: i32,
    },
}

impl CudaError {
    /// Whether everything on the card is lost, so that nothing more can be computed on it.
    pub fn is_fatal(&self) -> bool {
        /// `CUDA_ERROR_OUT_OF_MEMORY`, `CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES` and `CUDA_ERROR_INVALID_VALUE` leave the card
        /// as it was.
        const HARMLESS: [i32; 3] = [2, 701, 1];
        matches!(self, Self::Driver { code, .. } if !HARMLESS.contains(code))
    }
}
