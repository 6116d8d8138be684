//! How many tokens per second this server can do: measured once per model, dtype and machine, then remembered in a file.
//!
//! The figures and the formula are Petals' (`server/throughput.py`), because clients and block placement of the whole
//! swarm compare them. The network part is assumed, not measured: there is no speed-test service a swarm could rely on.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::model::{Blocks, ComputeError, Hidden};

/// Steps of one token, after a warm-up.
const INFERENCE_STEPS: usize = 100;
/// Passes over [`FORWARD_TOKENS`] tokens, after a warm-up.
const FORWARD_STEPS: usize = 10;
/// Tokens in one pass.
const FORWARD_TOKENS: usize = 1024;
/// Each of the two measurements stops after this long, with what it has: large blocks need fewer repetitions.
const MEASURE_FOR: Duration = Duration::from_millis(1500);
/// Petals' own fallback when it cannot measure the network, in bits per second.
const ASSUMED_NETWORK_BITS: f64 = 100e6;
/// Bits per value that travels: Petals counts 16.
const BITS_PER_VALUE: f64 = 16.0;
/// Share of the network rate that is left when everything goes through a relay.
const RELAY_FACTOR: f64 = 0.2;

/// Where the announced throughput comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Throughput {
    /// Measured on this machine.
    Auto,
    /// Given by the person who runs the server, in tokens per second.
    Fixed(f64),
}

/// What a server announces, in requests of one token per second and block (`*_rps`) and tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    pub(crate) throughput: f64,
    /// Instead of `throughput`, when everything goes through a relay.
    pub(crate) relayed_throughput: f64,
    pub(crate) inference_rps: Option<f64>,
    pub(crate) forward_rps: Option<f64>,
    pub(crate) network_rps: Option<f64>,
}

/// What the compute part measures, for one block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct ComputeRates {
    inference_rps: f64,
    forward_rps: f64,
}

/// The rates to announce for `blocks`. `cache` is the file to remember measurements in, under `key`.
///
/// Blocks the calling thread while it measures.
///
/// # Errors
/// When the block to measure with fails.
pub(crate) fn rates(choice: Throughput, blocks: &Blocks, cache: Option<(&Path, &str)>) -> Result<Rates, ComputeError> {
    if let Throughput::Fixed(throughput) = choice {
        return Ok(Rates {
            throughput,
            relayed_throughput: throughput,
            inference_rps: None,
            forward_rps: None,
            network_rps: None,
        });
    }
    let compute = match cache.and_then(|(file, key)| remembered(file, key)) {
        Some(known) => known,
        None => {
            let measured = measure(blocks)?;
            if let Some((file, key)) = cache
                && let Err(error) = remember(file, key, measured)
            {
                warn!(file = %file.display(), %error, "throughput is measured again at the next start");
            }
            measured
        }
    };
    let network_rps = ASSUMED_NETWORK_BITS / (blocks.config().hidden_size as f64 * BITS_PER_VALUE);
    let rates = combine(compute, network_rps, blocks.span().len());
    info!(
        inference_rps = compute.inference_rps,
        forward_rps = compute.forward_rps,
        network_rps,
        throughput = rates.throughput,
        "throughput in tokens per second; the network part is an assumption of 100 Mbit/s"
    );
    Ok(rates)
}

/// A request uses half of the span on average, hence `(n + 1) / 2` blocks.
fn combine(compute: ComputeRates, network_rps: f64, n_blocks: usize) -> Rates {
    let compute_rps = compute.forward_rps / ((n_blocks as f64 + 1.0) / 2.0);
    Rates {
        throughput: compute_rps.min(network_rps),
        relayed_throughput: compute_rps.min(network_rps * RELAY_FACTOR),
        inference_rps: Some(compute.inference_rps),
        forward_rps: Some(compute.forward_rps),
        network_rps: Some(network_rps),
    }
}

fn measure(blocks: &Blocks) -> Result<ComputeRates, ComputeError> {
    let block = blocks.span().start;
    let width = blocks.config().hidden_size;
    let mut cache = blocks.new_cache(1, 1, INFERENCE_STEPS + 1);
    let mut position = 0;
    let steps_per_second = repeat(INFERENCE_STEPS, || {
        blocks.step(block, &mut cache, 0, &mut noise(1, width), position)?;
        position += 1;
        Ok(())
    })?;
    let passes_per_second = repeat(FORWARD_STEPS, || {
        blocks.forward(block, &mut noise(FORWARD_TOKENS, width))
    })?;
    Ok(ComputeRates {
        inference_rps: steps_per_second,
        forward_rps: passes_per_second * FORWARD_TOKENS as f64,
    })
}

/// Calls per second of `run`, after one call to warm up.
fn repeat(times: usize, mut run: impl FnMut() -> Result<(), ComputeError>) -> Result<f64, ComputeError> {
    run()?;
    let start = Instant::now();
    let mut done = 0;
    while done < times && (done == 0 || start.elapsed() < MEASURE_FOR) {
        run()?;
        done += 1;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE))
}

/// Activations of ordinary size, the same at every call.
fn noise(tokens: usize, width: usize) -> Hidden {
    let data = (0..tokens * width)
        .map(|i| ((i * 7919 % 2003) as f32 / 1001.5) - 1.0)
        .collect();
    Hidden {
        data,
        batch: 1,
        tokens,
        width,
    }
}

fn read(file: &Path) -> io::Result<BTreeMap<String, ComputeRates>> {
    Ok(serde_json::from_slice(&fs::read(file)?)?)
}

fn remembered(file: &Path, key: &str) -> Option<ComputeRates> {
    let known = read(file).ok()?.remove(key)?;
    let usable = [known.inference_rps, known.forward_rps]
        .iter()
        .all(|rps| rps.is_finite() && *rps > 0.0);
    usable.then_some(known)
}

fn remember(file: &Path, key: &str, rates: ComputeRates) -> io::Result<()> {
    let mut all = read(file).unwrap_or_default();
    all.insert(key.to_string(), rates);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // Written beside and renamed, so that a second server on this machine never reads half a file.
    let fresh: PathBuf = file.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&fresh, serde_json::to_vec_pretty(&all)?)?;
    fs::rename(&fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURED: ComputeRates = ComputeRates {
        inference_rps: 300.0,
        forward_rps: 1000.0,
    };

    #[test]
    fn throughput_is_the_smaller_of_compute_and_network() {
        let slow_network = combine(MEASURED, 500.0, 3);
        assert_eq!(
            (slow_network.throughput, slow_network.relayed_throughput),
            (500.0, 100.0)
        );
        assert_eq!(
            slow_network.network_rps,
            Some(500.0),
            "announced without the relay factor"
        );
        let fast_network = combine(MEASURED, 5000.0, 9);
        assert_eq!(
            (fast_network.throughput, fast_network.relayed_throughput),
            (200.0, 200.0)
        );
    }

    #[test]
    fn measurements_are_remembered_by_key_and_a_broken_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache/throughput.json");
        assert_eq!(remembered(&file, "a"), None);
        remember(&file, "a", MEASURED).unwrap();
        assert_eq!(remembered(&file, "a"), Some(MEASURED));
        assert_eq!(remembered(&file, "b"), None);
        fs::write(&file, b"{\"a\": 5").unwrap();
        assert_eq!(remembered(&file, "a"), None);
        remember(&file, "b", MEASURED).unwrap();
        assert_eq!(remembered(&file, "b"), Some(MEASURED));
    }
}
