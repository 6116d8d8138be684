//! What the tests of the kernels have in common.

use std::sync::Arc;

use bytemuck::Pod;

use crate::model::cuda::{Toolkit, device::Device, memory::Buffer};

/// The first card.
pub(super) fn card() -> Arc<Device> {
    Device::open(0, &Toolkit::default()).unwrap()
}

/// All that is in a buffer.
pub(super) fn downloaded<T: Pod>(buffer: &Buffer<T>) -> Vec<T> {
    let mut out = vec![T::zeroed(); buffer.len()];
    buffer.download(0, &mut out).unwrap();
    out
}
