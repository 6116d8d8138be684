//! What one block takes, in each format.

use serde::Serialize;

use super::Announced;
use crate::{
    cli::info::Limits,
    model::{Blocks, CacheOptions, KvDType, Machine, ModelFiles, Precision, WeightFormat},
    server::{self, ComputeRates, Load},
    swarm::speed::Line,
};

/// A block in one format. Sizes are bytes, times seconds.
#[derive(Debug, Serialize)]
pub(super) struct Format {
    pub(super) format: &'static str,
    pub(super) block_bytes: u64,
    /// What one token of a session takes.
    pub(super) step_seconds: f64,
    /// What reading the weights takes, which it cannot be quicker than; not known of cards.
    pub(super) step_seconds_at_best: Option<f64>,
    /// Of many tokens at once.
    pub(super) tokens_per_second: f64,
    /// Blocks that fit.
    pub(super) fit: u32,
    /// Of so many.
    pub(super) of_blocks: u32,
    /// Numbers in the activations of a token.
    pub(super) hidden_size: usize,
    #[serde(skip)]
    rates: ComputeRates,
}

/// Loads block 0 of `files` in a format and measures it as servers do.
///
/// # Errors
/// No memory, or a block that fails.
pub(super) fn measure(
    files: &ModelFiles,
    weights: WeightFormat,
    machine: &Machine,
    limits: Limits,
) -> anyhow::Result<Format> {
    let config = files.config();
    let dtype = config.auto_dtype();
    let precision = Precision { weights, dtype };
    // Before there is a block of it in memory.
    let fit = server::fit(config, (precision, KvDType::from(dtype)), &server::room(machine));
    let blocks = Blocks::load(files, 0..1, precision, machine)?.with_cache(CacheOptions {
        dtype: None,
        block_tokens: 0,
        share_prefixes: false,
    })?;
    let rates = server::measure(&blocks)?;
    let read = config.bytes_read_per_token(weights) as f64 / limits.read_bytes_per_second;
    Ok(Format {
        format: weights.as_str(),
        block_bytes: config.block_bytes(weights),
        step_seconds: 1.0 / rates.inference_rps,
        step_seconds_at_best: (!machine.has_cards()).then_some(read),
        tokens_per_second: rates.forward_rps,
        fit: fit.n_blocks,
        of_blocks: config.n_blocks,
        hidden_size: config.hidden_size,
        rates,
    })
}

impl Format {
    /// What a server of `n_blocks` such blocks would announce on this line.
    pub(super) fn announced(&self, n_blocks: u32, line: Option<Line>) -> Announced {
        let load = Load {
            n_blocks: n_blocks as usize,
            n_models: 1,
            hidden_size: self.hidden_size,
            cpu_share: 1.0,
            max_bits: None,
        };
        let (rates, explained) = server::explain(self.rates, line, load);
        Announced {
            format: self.format,
            blocks: n_blocks,
            throughput: rates.throughput,
            relayed_throughput: rates.relayed_throughput,
            inference_rps: rates.inference_rps,
            forward_rps: rates.forward_rps,
            network_rps: rates.network_rps,
            explained,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::environment,
        model::{Engine, ModelSource},
    };

    #[test]
    fn a_block_of_noise_is_measured_and_what_it_is_worth_is_explained() {
        let demo = ModelSource::resolve("demo", &environment::hub_options(None, None)).unwrap();
        let files = ModelFiles::of_noise(demo.config()).unwrap();
        let limits = Limits {
            read_bytes_per_second: 1e9,
            flops_per_second: 1e9,
        };
        let machine = Machine::from(Engine::new(None).unwrap());
        let format = measure(&files, WeightFormat::Q8_0, &machine, limits).unwrap();
        assert_eq!((format.format, format.of_blocks), ("q8_0", 8));
        assert!(format.step_seconds > 0.0 && format.tokens_per_second > 0.0);
        assert_eq!(format.step_seconds_at_best, Some(format.block_bytes as f64 / 1e9));
        let announced = format.announced(4, None);
        assert_eq!(announced.throughput, announced.forward_rps.unwrap() / 2.5);
        assert!(announced.explained[0].contains("for 4 block(s)"), "{announced:?}");
    }
}
