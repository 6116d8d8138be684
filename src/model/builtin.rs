//! The built-in model `demo`: the folder `demo/` as part of the program. How it was made is in its README.

/// What a user calls it.
pub(crate) const NAME: &str = "demo";
/// What a swarm calls it.
pub(crate) const REPO_NAME: &str = "sepal/demo";

pub(crate) const CONFIG: &[u8] = include_bytes!("demo/config.json");
pub(crate) const GENERATION_CONFIG: &[u8] = include_bytes!("demo/generation_config.json");
pub(crate) const TOKENIZER: &[u8] = include_bytes!("demo/tokenizer.json");
pub(crate) const TOKENIZER_CONFIG: &[u8] = include_bytes!("demo/tokenizer_config.json");

/// Bytes at an address that any number type may start at, so that weights can be used where they lie.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("demo/model.safetensors"));

/// The bytes of `model.safetensors`.
pub(crate) fn weights() -> &'static [u8] {
    &WEIGHTS.0
}
