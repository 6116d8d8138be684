//! Transformer blocks: loading and running them. It knows no peers.
