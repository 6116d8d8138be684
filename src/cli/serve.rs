//! `sepal serve`: holds a span of blocks and runs them for whoever asks.

use std::{ops::Range, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, ValueEnum};

use super::{
    compute::ComputeArgs,
    environment,
    map::{self, MapArgs},
    model::{Model, ModelArgs},
    node::{self, ListenArgs},
    output,
    quant::QuantArgs,
    signals,
    standing::{self, MonitorArgs, Standing, StandingArgs},
    swarm::{Swarm, SwarmArgs},
};
use crate::{
    model::{Adapter, AdapterError, DEFAULT_MAX_CHUNK_BYTES, KvDType, WeightDType},
    server::{self, BlockChoice, LimitChoice, Server, Throughput},
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    swarm: SwarmArgs,
    #[command(flatten)]
    standing: StandingArgs,
    #[command(flatten)]
    monitor: MonitorArgs,
    /// Start a swarm of your own.
    #[arg(long, alias = "new_swarm", conflicts_with = "initial_peers")]
    new_swarm: bool,
    /// Blocks to serve, first and one past the last, such as 0:16.
    #[arg(long, value_name = "A:B", value_parser = parse_range, alias = "block_indices", conflicts_with = "num_blocks")]
    blocks: Option<Range<u32>>,
    /// How many blocks to serve, wherever the swarm needs them most [default: as many as fit into free memory].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), alias = "num_blocks")]
    num_blocks: Option<u32>,
    /// LoRA adapters that clients may ask for by name: Hugging Face repositories, folders, or NAME=FOLDER.
    #[arg(long, value_name = "ADAPTER", num_args = 1..)]
    adapters: Vec<String>,
    /// Name shown on health monitors; a link if it starts with http:// or https://.
    #[arg(long, value_name = "NAME", alias = "public_name")]
    public_name: Option<String>,
    /// Precision of weights, cache and replies; auto takes the checkpoint's, bfloat16 for float32 ones.
    #[arg(long, value_enum, default_value_t = Dtype::Auto, alias = "torch_dtype")]
    dtype: Dtype,
    #[command(flatten)]
    quant: QuantArgs,
    /// Announced speed in tokens per second; auto measures it once and remembers it.
    #[arg(long, value_name = "auto|N", value_parser = parse_throughput, default_value = "auto")]
    throughput: Throughput,
    /// Compression of activations in replies, and in requests of Python clients.
    #[arg(long, value_enum, default_value_t = Compression::None, ignore_case = true)]
    compression: Compression,
    /// Do not let others reach this server through relays when they cannot dial it.
    #[arg(long, alias = "no_auto_relay")]
    no_auto_relay: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    announcing: AnnounceArgs,
    #[command(flatten)]
    map: MapArgs,
}

/// How much one server takes on.
#[derive(Debug, ClapArgs)]
struct LimitArgs {
    /// Attention cache per block, in tokens [default: 16384 with grouped heads, else 4096].
    #[arg(long, value_name = "TOKENS", alias = "attn_cache_tokens")]
    attn_cache_tokens: Option<usize>,
    /// Precision of cached keys and values; auto takes that of the weights.
    #[arg(long, value_enum, default_value_t = CacheDtype::Auto, alias = "kv_dtype")]
    kv_dtype: CacheDtype,
    /// Compute every session's tokens anew, even if others sent the same.
    #[arg(long, alias = "no_prefix_cache")]
    no_prefix_cache: bool,
    /// Longest session, in tokens [default: 8192 with grouped heads, else 2048].
    #[arg(long, value_name = "TOKENS", alias = "inference_max_length")]
    inference_max_length: Option<usize>,
    /// Most tokens in one request [default: 8192 with grouped heads, else 2048].
    #[arg(long, value_name = "TOKENS", alias = "max_batch_size")]
    max_batch_size: Option<usize>,
    /// Most bytes of activations that a long step computes on at a time.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_CHUNK_BYTES, value_parser = parse_positive, alias = "max_chunk_size_bytes")]
    max_chunk_size_bytes: usize,
    /// Steps and requests that may wait for the compute thread; more are refused at once.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = parse_positive)]
    max_queue: usize,
    /// Longest wait for cache memory that a client may ask for, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse_seconds, alias = "max_alloc_timeout")]
    max_alloc_timeout: Duration,
    /// Longest single request, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "180", value_parser = parse_seconds, alias = "request_timeout")]
    request_timeout: Duration,
    /// Longest inference session, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "1800", value_parser = parse_seconds, alias = "session_timeout")]
    session_timeout: Duration,
    /// Longest silence within a session, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds, alias = "step_timeout")]
    step_timeout: Duration,
}

/// What others learn of us, and when.
#[derive(Debug, ClapArgs)]
struct AnnounceArgs {
    /// Seconds between two announcements.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = parse_seconds, alias = "update_period")]
    update_period: Duration,
    /// Seconds that an announcement stays valid [default: twice the update period, at least 3].
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    expiration: Option<Duration>,
    /// Move to other blocks when the swarm's slowest block would gain at least this much; 0 stays for ever.
    #[arg(
        long,
        value_name = "RATIO",
        default_value_t = 0.75,
        alias = "balance_quality",
        allow_negative_numbers = true
    )]
    balance_quality: f64,
    /// Mean seconds between two looks at whether to move.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds, alias = "mean_balance_check_period")]
    mean_balance_check_period: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CacheDtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
    Int8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Compression {
    None,
    #[value(name = "meanstd_16bit", alias = "meanstd-16bit")]
    MeanStd16Bit,
    Float16,
    #[value(name = "quantile_8bit", alias = "quantile-8bit")]
    Quantile8Bit,
    #[value(name = "uniform_8bit", alias = "uniform-8bit")]
    Uniform8Bit,
    #[value(name = "blockwise_8bit", alias = "blockwise-8bit")]
    Blockwise8Bit,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = signals::stop_requested();
    tokio::pin!(stop);
    let model = args.model.resolve().await?;
    let mut config = args.server_config(&model)?;
    config.adapters = args.adapters().await?;
    let swarm = if args.new_swarm {
        args.swarm.new_or_joined()?
    } else {
        args.swarm.joined()?
    };
    let node = node::listen(&args.listen, &swarm, !args.no_auto_relay).await?;
    let standing = Standing::of(&node, &args.standing);
    config.access = standing.access();
    config.monitor = standing::monitor(&args.monitor, &args.standing, &swarm.initial_peers);
    let server = Arc::new(node.server(config, &model));
    let (stats, map) = (server.clone(), map::config(&swarm, vec![map::own_model(&model)]));
    args.map.serve(&node, map, move || map::numbers(stats.stats())).await?;
    let outcome = tokio::select! {
        outcome = start_and_stay(&node, standing, &server, &model, &swarm) => outcome,
        outcome = &mut stop => outcome,
    };
    server.shutdown().await;
    node.tasks.shutdown().await;
    outcome
}

/// Joins, loads, announces, and then only returns if the server ends by itself, with the reason.
async fn start_and_stay(
    node: &node::Node,
    mut standing: Standing,
    server: &Server,
    model: &Model,
    swarm: &Swarm,
) -> anyhow::Result<()> {
    let is_first = swarm.initial_peers.is_empty();
    if is_first {
        // Nobody can join through a client, and there is nobody to ask.
        standing.begin(&node.tasks);
        standing.known().await;
    }
    for addr in node.p2p.addrs() {
        output::line(format_args!("listening {addr}"));
    }
    node.join().await?;
    standing.begin(&node.tasks);
    let span = server.bring_up().await?;
    output::line(format_args!("online {} {}:{}", model.prefix, span.start, span.end));
    if let Some(addr) = node.p2p.addrs().first() {
        output::line(format_args!(
            "join with: sepal serve {}{} --initial-peers {addr}{}",
            model.name, model.flags, swarm.flags
        ));
    }
    loop {
        let span = server.moved().await?;
        output::line(format_args!("online {} {}:{}", model.prefix, span.start, span.end));
    }
}

impl Args {
    /// Reads the adapters, from the hub where they are no folders.
    async fn adapters(&self) -> anyhow::Result<Vec<Adapter>> {
        let (places, options) = (self.adapters.clone(), self.model.hub_options()?);
        let open = move || places.iter().map(|place| Adapter::open(place, &options)).collect();
        let opened: Result<Vec<Adapter>, AdapterError> =
            tokio::task::spawn_blocking(open).await.context("interrupted")?;
        Ok(opened?)
    }

    fn server_config(&self, model: &Model) -> anyhow::Result<server::Config> {
        let n_blocks = model.source.config().n_blocks;
        let blocks = match (&self.blocks, self.num_blocks) {
            (Some(range), _) if range.end > n_blocks => {
                bail!(
                    "--blocks {}:{} is outside of {}, which has {n_blocks} blocks",
                    range.start,
                    range.end,
                    model.name
                )
            }
            (Some(range), _) => BlockChoice::Fixed(range.clone()),
            (None, Some(count)) if count > n_blocks => {
                bail!(
                    "--num-blocks {count} is more than the {n_blocks} blocks of {}",
                    model.name
                )
            }
            (None, Some(count)) => BlockChoice::Count(count),
            (None, None) => BlockChoice::AsManyAsFit,
        };
        if !self.announcing.balance_quality.is_finite() || self.announcing.balance_quality < 0.0 {
            bail!(
                "--balance-quality {} must be 0 or more",
                self.announcing.balance_quality
            );
        }
        Ok(server::Config {
            dtype: self.dtype.chosen(),
            quant: self.quant.chosen(),
            throughput: self.throughput,
            throughput_cache: Some(environment::cache_folder().join("throughput.json")),
            compression: self.compression.chosen(),
            public_name: self.public_name.clone(),
            update_period: self.announcing.update_period,
            expiration: self.announcing.expiration,
            balance_quality: self.announcing.balance_quality,
            mean_balance_check_period: self.announcing.mean_balance_check_period,
            ..server::Config::new(
                model.prefix.clone(),
                blocks,
                self.limits.chosen(),
                self.compute.start()?,
            )
        })
    }
}

impl LimitArgs {
    fn chosen(&self) -> LimitChoice {
        LimitChoice {
            attn_cache_tokens: self.attn_cache_tokens,
            kv_dtype: self.kv_dtype.chosen(),
            share_prefixes: !self.no_prefix_cache,
            inference_max_length: self.inference_max_length,
            max_batch_size: self.max_batch_size,
            max_chunk_size_bytes: self.max_chunk_size_bytes,
            max_queue: self.max_queue,
            max_alloc_timeout: self.max_alloc_timeout,
            request_timeout: self.request_timeout,
            session_timeout: self.session_timeout,
            step_timeout: self.step_timeout,
        }
    }
}

impl Dtype {
    fn chosen(self) -> Option<WeightDType> {
        match self {
            Self::Auto => None,
            Self::Float32 => Some(WeightDType::F32),
            Self::Bfloat16 => Some(WeightDType::Bf16),
            Self::Float16 => Some(WeightDType::F16),
        }
    }
}

impl CacheDtype {
    fn chosen(self) -> Option<KvDType> {
        match self {
            Self::Auto => None,
            Self::Float32 => Some(KvDType::F32),
            Self::Bfloat16 => Some(KvDType::Bf16),
            Self::Float16 => Some(KvDType::F16),
            Self::Int8 => Some(KvDType::Int8),
        }
    }
}

impl Compression {
    fn chosen(self) -> sepal_protocol::compress::Compression {
        use sepal_protocol::compress::Compression as Wire;
        match self {
            Self::None => Wire::None,
            Self::MeanStd16Bit => Wire::MeanStd16,
            Self::Float16 => Wire::Float16,
            Self::Quantile8Bit => Wire::Quantile8,
            Self::Uniform8Bit => Wire::Uniform8,
            Self::Blockwise8Bit => Wire::Blockwise8,
        }
    }
}

fn parse_range(text: &str) -> Result<Range<u32>, String> {
    let wrong = || format!("expected FIRST:END such as 0:16, got {text:?}");
    let (start, end) = text.split_once(':').ok_or_else(wrong)?;
    let range = start.trim().parse().map_err(|_| wrong())?..end.trim().parse().map_err(|_| wrong())?;
    if range.is_empty() {
        Err(format!("{text:?} contains no blocks"))
    } else {
        Ok(range)
    }
}

fn parse_throughput(text: &str) -> Result<Throughput, String> {
    if text == "auto" {
        return Ok(Throughput::Auto);
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(Throughput::Fixed(value)),
        _ => Err(format!("expected auto or a number of tokens per second, got {text:?}")),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a positive number of seconds, got {text:?}");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if seconds <= 0.0 {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

fn parse_positive(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|value| *value > 0)
        .ok_or_else(|| format!("expected a positive number, got {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_seconds_say_what_was_expected() {
        assert_eq!(parse_range("0:16"), Ok(0..16));
        assert_eq!(
            parse_range("16").unwrap_err(),
            "expected FIRST:END such as 0:16, got \"16\""
        );
        assert_eq!(parse_range("3:3").unwrap_err(), "\"3:3\" contains no blocks");
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "inf", "nan", "soon"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
