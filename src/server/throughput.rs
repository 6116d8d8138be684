//! How many tokens per second this server can do. What it computes is measured once per model, format and machine, then
//! remembered in a file; what its line carries is measured with peers at every start (`swarm/speed.rs`), because it depends
//! on who they are and takes seconds.
//!
//! The figures and the formula are Petals' (`server/throughput.py`), because clients and block placement of the whole
//! swarm compare them. Petals measures the line with speedtest.net.

mod explain;

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use explain::explain;
use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, System};
use tracing::{info, warn};

use crate::{
    model::{Blocks, ComputeError, Hidden, KvDType},
    swarm::speed::Line,
};

/// Steps of one token, after a warm-up.
const INFERENCE_STEPS: usize = 100;
/// Passes over [`FORWARD_TOKENS`] tokens, after a warm-up.
const FORWARD_STEPS: usize = 10;
/// Tokens in one pass.
const FORWARD_TOKENS: usize = 1024;
/// Blocks that are measured together where several go at a call. A call has to bring activations to a card and back as well,
/// which takes long beside one block and little beside a span.
const BLOCKS: usize = 8;
/// Each of the two measurements stops after this long, with what it has: large blocks need fewer repetitions.
const MEASURE_FOR: Duration = Duration::from_millis(1500);
/// Where nobody is there to measure with, in bits per second. Petals' own fallback.
const ASSUMED_NETWORK_BITS: f64 = 100e6;
/// Bits per value that travels: Petals counts 16.
const BITS_PER_VALUE: f64 = 16.0;
/// Share of the network rate that is left when everything goes through a relay.
const RELAY_FACTOR: f64 = 0.2;

/// How long a server waits for others on this machine that are measuring.
const LOCK_PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks whether they are done.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// Where the announced throughput comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Throughput {
    /// The compute part is measured once and remembered, the network part at every start.
    Auto,
    /// Both are measured at every start.
    Eval,
    /// Given by the person who runs the server, in tokens per second.
    Fixed(f64),
}

/// What a server announces, in requests of one token per second and block (`*_rps`) and tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of the span.
    pub throughput: f64,
    /// Instead of `throughput`, when everything goes through a relay.
    pub relayed_throughput: f64,
    /// Steps of one session; `None` for all three if the throughput was given.
    pub inference_rps: Option<f64>,
    /// Tokens of whole sequences.
    pub forward_rps: Option<f64>,
    /// Tokens that the line carries.
    pub network_rps: Option<f64>,
}

/// What the compute part measures, for one block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComputeRates {
    /// Steps of one token, one after the other, in a second.
    pub inference_rps: f64,
    /// Tokens of whole sequences in a second.
    pub forward_rps: f64,
}

/// What a measured compute rate depends on: it is taken again when any of this changes.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) model: String,
    pub(crate) dtype: &'static str,
    pub(crate) quantisation: &'static str,
    pub(crate) kv_dtype: KvDType,
    pub(crate) threads: usize,
    /// Instruction sets, or cards.
    pub(crate) kernels: String,
    pub(crate) quant_kernels: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if cfg!(debug_assertions) { "debug" } else { "release" };
        write!(
            f,
            "{} | {} | {} | weights {} | cache {:?} | {} and {} | {} threads | {} {build}",
            self.model,
            device(),
            self.dtype,
            self.quantisation,
            self.kv_dtype,
            self.kernels,
            self.quant_kernels,
            self.threads,
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// What the machine calls its processor.
fn device() -> String {
    let mut system = System::new();
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    let brand = system.cpus().first().map(|cpu| cpu.brand().trim().to_string());
    brand
        .filter(|brand| !brand.is_empty())
        .unwrap_or_else(|| "cpu".to_string())
}

/// Held while something is measured: two servers that start together would share the machine and the line, and each
/// would believe that it has half of both.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Locked until it is closed; `None` if it could not be locked.
    _file: Option<File>,
}

impl Turn {
    /// Waits until no other server that remembers its speeds in `file` is measuring, but not for ever. Blocks.
    pub(crate) fn take(file: &Path) -> Self {
        let lock = file.with_extension("lock");
        let folder = lock.parent().map_or(Ok(()), fs::create_dir_all);
        let open = folder.and_then(|()| OpenOptions::new().write(true).create(true).truncate(false).open(&lock));
        let file = match open {
            Ok(file) => file,
            Err(error) => {
                warn!(file = %lock.display(), %error, "cannot see whether other servers are measuring");
                return Self { _file: None };
            }
        };
        let began = Instant::now();
        while let Err(error) = file.try_lock() {
            if let TryLockError::Error(error) = error {
                warn!(file = %lock.display(), %error, "cannot see whether other servers are measuring");
                return Self { _file: None };
            }
            if began.elapsed() > LOCK_PATIENCE {
                warn!(file = %lock.display(), "another server is measuring for too long, not waiting for it");
                return Self { _file: None };
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Self { _file: Some(file) }
    }
}

/// The compute rates of a block of `blocks`. `cache` is the file to remember measurements in, under a key; what is measured while
/// the machine has other work serves this start and is not remembered.
///
/// Blocks the calling thread while it measures.
///
/// # Errors
/// When the block to measure with fails.
pub(crate) fn compute_rates(
    choice: Throughput,
    blocks: &Blocks,
    cache: Option<(&Path, &str)>,
    is_idle: bool,
) -> Result<ComputeRates, ComputeError> {
    let remembered = cache.filter(|_| choice == Throughput::Auto);
    if let Some(known) = remembered.and_then(|(file, key)| remembered_rates(file, key)) {
        return Ok(known);
    }
    let measured = measure(blocks)?;
    if !is_idle {
        info!("this node serves other models meanwhile: throughput is measured again at the next start");
    } else if let Some((file, key)) = cache
        && let Err(error) = remember(file, key, measured)
    {
        warn!(file = %file.display(), %error, "throughput is measured again at the next start");
    }
    Ok(measured)
}

/// The rates to announce if the throughput was given.
pub(crate) fn fixed(throughput: f64) -> Rates {
    Rates {
        throughput,
        relayed_throughput: throughput,
        inference_rps: None,
        forward_rps: None,
        network_rps: None,
    }
}

/// What shares a machine and a line: blocks of one model, and models of one node.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Blocks of the span.
    pub n_blocks: usize,
    /// Models of the node.
    pub n_models: usize,
    /// Numbers in the activations of one token.
    pub hidden_size: usize,
    /// Part of the time that is computed in.
    pub cpu_share: f64,
    /// Bits a second that the line may be used for.
    pub max_bits: Option<f64>,
}

impl Load {
    /// What the line is worth, in bits a second.
    fn bits(self, line: Option<Line>) -> f64 {
        let bits = line.map_or(ASSUMED_NETWORK_BITS, |line| line.bits_per_second);
        self.max_bits.map_or(bits, |max| bits.min(max))
    }
}

/// The rates to announce. A request uses half of the span on average, hence `(n + 1) / 2` blocks; of several models each
/// has its share of the whole. Rates of one block are announced as they were measured, as Petals does, less what the node
/// rests: whoever computes half of the time takes twice as long.
pub fn combine(compute: ComputeRates, line: Option<Line>, load: Load) -> Rates {
    let bits = load.bits(line);
    let compute = ComputeRates {
        inference_rps: compute.inference_rps * load.cpu_share,
        forward_rps: compute.forward_rps * load.cpu_share,
    };
    let network_rps = bits / (load.hidden_size as f64 * BITS_PER_VALUE);
    let share = 1.0 / load.n_models.max(1) as f64;
    let compute_rps = share * compute.forward_rps / ((load.n_blocks as f64 + 1.0) / 2.0);
    let rates = Rates {
        throughput: compute_rps.min(share * network_rps),
        relayed_throughput: compute_rps.min(share * network_rps * RELAY_FACTOR),
        inference_rps: Some(compute.inference_rps),
        forward_rps: Some(compute.forward_rps),
        network_rps: Some(network_rps),
    };
    let source = match line {
        Some(_) => "the network part measured with peers",
        None => "no peer to measure the network with, 100 Mbit/s are assumed",
    };
    let rounded = |rate: f64| (rate * 10.0).round() / 10.0;
    info!(
        megabits = rounded(bits / 1e6),
        peers = line.map_or(0, |line| line.peers),
        tokens_per_second = rounded(rates.throughput),
        relayed_tokens_per_second = rounded(rates.relayed_throughput),
        inference_rps = rounded(compute.inference_rps),
        forward_rps = rounded(compute.forward_rps),
        network_rps = rounded(network_rps),
        "throughput; {source}"
    );
    rates
}

/// Measures the first of `blocks` for some three seconds, as a server does before it announces anything. On cards it is several
/// blocks at a call, one behind the other, that are measured; the rates are those of one all the same.
///
/// # Errors
/// When the block fails.
pub fn measure(blocks: &Blocks) -> Result<ComputeRates, ComputeError> {
    let chain = chain(blocks);
    let (n_blocks, width) = (chain.len(), blocks.config().hidden_size);
    let mut cache = blocks.new_cache(n_blocks, 1, INFERENCE_STEPS + 1);
    let mut position = 0;
    let steps_per_second = repeat(INFERENCE_STEPS, || {
        blocks.step_through(&chain, (&mut cache, 0), &mut noise(1, width), position)?;
        position += 1;
        Ok(())
    })?;
    // What comes out goes in again, as from block to block: making new numbers would take longer than a card.
    let mut x = noise(FORWARD_TOKENS, width);
    let passes_per_second = repeat(FORWARD_STEPS, || {
        let mut cache = blocks.new_pass_cache(n_blocks, 1, FORWARD_TOKENS);
        blocks.step_through(&chain, (&mut cache, 0), &mut x, 0)
    })?;
    Ok(ComputeRates {
        inference_rps: steps_per_second * n_blocks as f64,
        forward_rps: passes_per_second * (n_blocks * FORWARD_TOKENS) as f64,
    })
}

/// The first of `blocks`, as many times as blocks go at a call.
fn chain(blocks: &Blocks) -> Vec<u32> {
    let mut chain = vec![blocks.span().start; BLOCKS];
    chain.truncate(blocks.at_a_call(&chain));
    chain
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

fn remembered_rates(file: &Path, key: &str) -> Option<ComputeRates> {
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
    use crate::model::{
        Cards, Machine, ModelFiles, Toolkit, WeightDType,
        testing::{assert_same_bits, engine},
    };

    const MEASURED: ComputeRates = ComputeRates {
        inference_rps: 300.0,
        forward_rps: 1000.0,
    };

    /// Rates with a line that carries so many tokens per second.
    fn with_line(network_rps: f64, n_blocks: usize, n_models: usize) -> Rates {
        let line = Line {
            bits_per_second: network_rps * 64.0 * 16.0,
            peers: 1,
        };
        let load = Load {
            n_blocks,
            n_models,
            hidden_size: 64,
            cpu_share: 1.0,
            max_bits: None,
        };
        combine(MEASURED, Some(line), load)
    }

    #[test]
    fn throughput_is_the_smaller_of_compute_and_network() {
        let slow_network = with_line(500.0, 3, 1);
        assert_eq!(
            (slow_network.throughput, slow_network.relayed_throughput),
            (500.0, 100.0)
        );
        assert_eq!(
            slow_network.network_rps,
            Some(500.0),
            "announced without the relay factor"
        );
        let fast_network = with_line(5000.0, 9, 1);
        assert_eq!(
            (fast_network.throughput, fast_network.relayed_throughput),
            (200.0, 200.0)
        );
    }

    #[test]
    fn models_of_one_node_share_what_it_can_do() {
        let rates = with_line(500.0, 3, 2);
        assert_eq!((rates.throughput, rates.relayed_throughput), (250.0, 50.0));
        assert_eq!((rates.forward_rps, rates.network_rps), (Some(1000.0), Some(500.0)));
    }

    #[test]
    fn without_a_measured_line_100_mbit_are_assumed() {
        let load = Load {
            n_blocks: 1,
            n_models: 1,
            hidden_size: 1000,
            cpu_share: 1.0,
            max_bits: None,
        };
        assert_eq!(combine(MEASURED, None, load).network_rps, Some(6250.0));
    }

    #[test]
    fn a_node_that_computes_half_of_the_time_on_part_of_its_line_announces_that() {
        let load = Load {
            n_blocks: 1,
            n_models: 1,
            hidden_size: 1000,
            cpu_share: 0.5,
            max_bits: Some(8e6),
        };
        let rates = combine(MEASURED, None, load);
        assert_eq!(
            (rates.inference_rps, rates.forward_rps, rates.network_rps),
            (Some(150.0), Some(500.0), Some(500.0))
        );
        let narrow = Line {
            bits_per_second: 4e6,
            peers: 1,
        };
        assert_eq!(combine(MEASURED, Some(narrow), load).throughput, 250.0);
    }

    /// A block.
    fn blocks(machine: impl Into<Machine>) -> Blocks {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/petals/tiny-llama");
        let files = ModelFiles::from_folder(folder.as_ref()).unwrap();
        Blocks::load(&files, 1..2, WeightDType::F32, machine).unwrap()
    }

    #[test]
    fn one_block_at_a_time_is_measured_on_the_processor() {
        let blocks = blocks(engine());
        assert_eq!(chain(&blocks), [1]);
        let rates = measure(&blocks).unwrap();
        assert!(rates.inference_rps > 0.0 && rates.forward_rps > 0.0, "{rates:?}");
    }

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn as_many_blocks_are_measured_at_a_call_on_cuda_cards_as_go_at_one() {
        let machine = Machine::with_cards(engine(), &Cards::These(vec![0]), &Toolkit::default()).unwrap();
        let blocks = blocks(machine);
        let chain = chain(&blocks);
        assert_eq!(chain, [1; BLOCKS]);
        let (mut at_a_call, mut one_by_one) = (noise(5, 64), noise(5, 64));
        let mut cache = blocks.new_pass_cache(BLOCKS, 1, 5);
        blocks.step_through(&chain, (&mut cache, 0), &mut at_a_call, 0).unwrap();
        chain
            .iter()
            .for_each(|block| blocks.forward(*block, &mut one_by_one).unwrap());
        assert_same_bits(&at_a_call.data, &one_by_one.data);
    }

    #[test]
    fn one_server_measures_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache/throughput.json");
        let turn = Turn::take(&file);
        let path = file.clone();
        let other = std::thread::spawn(move || drop(Turn::take(&path)));
        let locked = File::open(file.with_extension("lock")).unwrap();
        assert!(locked.try_lock().is_err());
        assert!(!other.is_finished());
        drop(turn);
        other.join().unwrap();
        locked.try_lock().unwrap();
    }

    #[test]
    fn a_measurement_is_of_one_machine_and_one_format() {
        let key = Key {
            model: "org/model".into(),
            dtype: "bfloat16",
            quantisation: "q8_0",
            kv_dtype: KvDType::Int8,
            threads: 8,
            kernels: "avx2".into(),
            quant_kernels: "vnni".into(),
        };
        let text = key.to_string();
        for part in ["org/model", "bfloat16", "q8_0", "Int8", "8 threads", "avx2"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn measurements_are_remembered_by_key_and_a_broken_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache/throughput.json");
        assert_eq!(remembered_rates(&file, "a"), None);
        remember(&file, "a", MEASURED).unwrap();
        assert_eq!(remembered_rates(&file, "a"), Some(MEASURED));
        assert_eq!(remembered_rates(&file, "b"), None);
        fs::write(&file, b"{\"a\": 5").unwrap();
        assert_eq!(remembered_rates(&file, "a"), None);
        remember(&file, "b", MEASURED).unwrap();
        assert_eq!(remembered_rates(&file, "b"), Some(MEASURED));
    }
}
