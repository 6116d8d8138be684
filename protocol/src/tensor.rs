//! Tensors as they travel: item type, shape and bytes, and their split into parts for streaming.
