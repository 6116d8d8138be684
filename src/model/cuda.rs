//! Graphics cards of NVIDIA: what blocks compute with where there is one. Driver, compiler and cuBLAS are looked for when
//! a card is wanted, so that the same program starts where there is none.
//!
//! ```text
//! library ──▶ driver · compiler · blas      the three libraries of NVIDIA, each a table of the functions used here
//!                 └──▶ device ──▶ memory · launch      one card: its memory, and kernels started on it
//!                                    └──▶ kernels      CUDA C texts, and a wrapper for each
//! ```
//!
//! Everything on a card happens in the order in which it was asked for, on one stream. So memory can be used again as soon
//! as the last kernel that needs it has been asked for.
#![expect(unsafe_code, reason = "the libraries of NVIDIA are C")]

mod blas;
mod block;
mod compiler;
mod device;
mod driver;
mod error;
mod kernels;
mod launch;
mod library;
mod limits;
mod memory;
mod steps;
mod stretch;

pub(crate) use block::CardBlock;
pub(crate) use device::Device;
pub use device::Toolkit;
pub use error::CudaError;
pub(crate) use kernels::cache::{CardHeads, page_bytes};
pub use limits::{CardLimits, measure_cards};
pub(crate) use memory::{Buffer, Piece, View};
pub(crate) use stretch::{Stretch, Tables};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
