//! Transformer blocks: loading and running them. It knows no peers and opens no socket.
//!
//! ```text
//! config.json ──▶ ModelConfig ─┐
//! *.safetensors ──▶ ModelFiles ┴▶ Blocks ── step(block, cache, x, position) ──▶ x
//! ```

mod config;
mod error;
mod family;
mod files;
mod sample;

pub use config::{ModelConfig, RopeConfig, RopeScaling, WeightDType};
pub use error::{ConfigError, LoadError};
pub use family::Family;
pub use files::{ModelFiles, ShardIndex};
pub use sample::{SampleError, Sampler, SamplingParams};
