//! `sepal serve`: holds a span of blocks and runs them for whoever asks.

mod values;

use std::{ops::Range, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

pub(super) use self::values::parse_seconds;
use self::values::{
    CacheDtype, Compression, Dtype, Speed, blocks_of, count_of, dtype_of, kv_dtype_of, parse_positive, throughput_of,
    tokens_of,
};
use super::{
    compute::{ComputeArgs, DeviceArgs},
    control::{self, ControlArgs},
    environment,
    figures::Figures,
    jobs::{self, Workers},
    map::{self, MapArgs},
    model::Model,
    models::{ForModel, ModelsArgs, is_named, of, refuse_stray, stray},
    node::{self, ListenArgs},
    output,
    parsers::number,
    polite::PoliteArgs,
    quant::QuantArgs,
    signals,
    standing::{self, MonitorArgs, Standing, StandingArgs},
    swarm::{Swarm, SwarmArgs},
    swarms::{self, AlsoArgs, Ground, Swarms},
};
use crate::{
    control::Subject,
    jobs::gossip,
    model::{Adapter, AdapterError, DEFAULT_MAX_CHUNK_BYTES, Engine},
    server::{self, BlockChoice, LimitChoice, Server, Throughput},
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    models: ModelsArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    swarm: SwarmArgs,
    #[command(flatten)]
    also: AlsoArgs,
    #[command(flatten)]
    standing: StandingArgs,
    #[command(flatten)]
    monitor: MonitorArgs,
    /// Start a swarm of your own.
    #[arg(long, alias = "new_swarm", conflicts_with = "initial_peers")]
    new_swarm: bool,
    /// Blocks to serve, first and one past the last, such as 0:16. The server stays at them.
    #[arg(long, value_name = "[MODEL=]A:B", value_parser = blocks_of, alias = "block_indices")]
    blocks: Vec<ForModel<Range<u32>>>,
    /// How many blocks to serve, wherever the swarm needs them most [default: as many as fit into free memory, shared
    /// equally by several models].
    #[arg(long, value_name = "[MODEL=]N", value_parser = count_of, alias = "num_blocks")]
    num_blocks: Vec<ForModel<u32>>,
    /// LoRA adapters that clients may ask for by name: Hugging Face repositories, folders, or NAME=FOLDER. With one
    /// model only.
    #[arg(long, value_name = "ADAPTER", num_args = 1..)]
    adapters: Vec<String>,
    /// Work on whole jobs as well (`sepal job submit`): the model is loaded once more, all of it. With one model only.
    /// Without --initial-peers and --new-swarm the swarm is then that of the local network.
    #[arg(long)]
    jobs: bool,
    /// Name shown on health monitors; a link if it starts with http:// or https://.
    #[arg(long, value_name = "NAME", alias = "public_name")]
    public_name: Option<String>,
    /// Precision of weights, cache and replies; auto takes the checkpoint's, bfloat16 for float32 ones.
    #[arg(long, value_name = "[MODEL=]auto|float32|bfloat16|float16", value_parser = dtype_of, alias = "torch_dtype")]
    dtype: Vec<ForModel<Dtype>>,
    #[command(flatten)]
    quant: QuantArgs,
    /// Announced speed in tokens per second. auto measures: what this machine computes once, and remembers it; what its
    /// line carries at every start, with up to three other nodes, up to 4 MiB each way with each. Where no Sepal node is
    /// there to measure with, 100 Mbit/s are assumed. eval does not believe what is remembered; dry_run measures like eval,
    /// prints and exits.
    #[arg(long, value_name = "[MODEL=]auto|eval|dry_run|N", value_parser = throughput_of)]
    throughput: Vec<ForModel<Speed>>,
    /// Compression of activations in replies, and in requests of Python clients.
    #[arg(long, value_enum, default_value_t = Compression::None, ignore_case = true)]
    compression: Compression,
    /// Do not let others reach this server through relays when they cannot dial it.
    #[arg(long, alias = "no_auto_relay")]
    no_auto_relay: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    polite: PoliteArgs,
    #[command(flatten)]
    announcing: AnnounceArgs,
    #[command(flatten)]
    map: MapArgs,
    #[command(flatten)]
    control: ControlArgs,
}

/// How much one server takes on.
#[derive(Debug, ClapArgs)]
struct LimitArgs {
    /// Attention cache per block, in tokens [default: 16384 with grouped heads, else 4096].
    #[arg(long, value_name = "[MODEL=]TOKENS", value_parser = tokens_of, alias = "attn_cache_tokens")]
    attn_cache_tokens: Vec<ForModel<usize>>,
    /// Precision of cached keys and values; auto takes that of the weights [default: auto].
    #[arg(long, value_name = "[MODEL=]auto|float32|bfloat16|float16|int8", value_parser = kv_dtype_of, alias = "kv_dtype")]
    kv_dtype: Vec<ForModel<CacheDtype>>,
    /// Compute every session's tokens anew, even if others sent the same.
    #[arg(long, alias = "no_prefix_cache")]
    no_prefix_cache: bool,
    /// Longest session, in tokens [default: 8192 with grouped heads, else 2048].
    #[arg(long, value_name = "TOKENS", value_parser = parse_positive, alias = "inference_max_length")]
    inference_max_length: Option<usize>,
    /// Most tokens in one request [default: 8192 with grouped heads, else 2048].
    #[arg(long, value_name = "TOKENS", value_parser = parse_positive, alias = "max_batch_size")]
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
    #[arg(long, value_name = "RATIO", default_value_t = 0.75, value_parser = number::<f64>, alias = "balance_quality")]
    balance_quality: f64,
    /// Mean seconds between two looks at whether to move.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds, alias = "mean_balance_check_period")]
    mean_balance_check_period: Duration,
}

pub(super) async fn run(mut args: Args) -> anyhow::Result<()> {
    args.models.hub.keep_trying = true;
    let asked = CancellationToken::new();
    let stop = signals::stop_requested_or(asked.clone());
    tokio::pin!(stop);
    let (models, adapters) = tokio::select! {
        found = args.find() => found?,
        outcome = &mut stop => return outcome,
    };
    let swarm = args.swarm(&models)?;
    // One machine, so the models share its threads.
    let engine = args.compute.start()?;
    let configs: Vec<_> = models
        .iter()
        .map(|model| args.server_config(model, &swarm, &engine))
        .collect::<Result<_, _>>()?;
    let pairs = configs.iter().zip(&models);
    let formats: Vec<_> = pairs.map(|(config, model)| config.formats(&model.source)).collect();
    let machine = args.device.machine(&engine, &formats)?;
    let node = node::listen(&args.listen, &swarm, !args.no_auto_relay).await?;
    let standing = Standing::of(&node, &args.standing);
    let monitor = standing::monitor(&args.monitor, &args.standing, &swarm.initial_peers);
    let with_access = configs.into_iter().map(|config| server::Config {
        machine: machine.clone(),
        access: standing.access(),
        monitor: monitor.clone(),
        adapters: adapters.clone(),
        ..config
    });
    let hosted = Hosted {
        servers: node.servers(with_access.zip(&models)),
        models,
        workers: Workers::default(),
    };
    let swarms = Swarms::new(
        "serve",
        (&node, &swarm),
        Some(standing.access()),
        Some(args.ground(&node, &hosted)),
    );
    let subject = control::subject("serve", (&node, &swarm), &asked);
    let subject = subject.map(|subject| hosted.told_of(subject, &standing, &swarms));
    let control = args.control.open(subject).await?;
    let serving = async {
        serve_beside((&node, &swarms), &hosted, (&args, &swarm), &engine).await?;
        start_and_stay((&node, &swarms), standing, &hosted, &args, &swarm).await
    };
    let outcome = tokio::select! {
        outcome = serving => outcome,
        outcome = &mut stop => outcome,
    };
    swarms.close().await;
    join_all(hosted.servers.iter().map(|server| server.shutdown())).await;
    node.tasks.shutdown().await;
    control::close(control).await;
    outcome
}

/// Jobs and the health map, if they were asked for.
async fn serve_beside(
    (node, swarms): (&node::Node, &Arc<Swarms>),
    hosted: &Hosted,
    (args, swarm): (&Args, &Swarm),
    engine: &Engine,
) -> anyhow::Result<()> {
    let jobs = match args.jobs {
        true => jobs::work(&hosted.models, node, engine).await?,
        false => Vec::new(),
    };
    hosted.workers.begin(jobs.clone());
    let map = map::config(swarm, hosted.models.iter().map(map::own_model).collect());
    let figures = Figures::of(node)
        .within(swarms.clone())
        .serving(hosted.servers.clone())
        .working(jobs);
    args.map.serve(node, map, figures.own()).await
}

/// The models of this node, the server of each, and who works on whole jobs of them.
struct Hosted {
    models: Vec<Model>,
    servers: Vec<Arc<Server>>,
    workers: Workers,
}

impl Hosted {
    /// What the process lets itself be asked, with all this.
    fn told_of(&self, subject: Subject, standing: &Standing, swarms: &Arc<Swarms>) -> Subject {
        Subject {
            access: Some(standing.access()),
            swarms: Arc::new(swarms::Handle(swarms.clone())),
            servers: self.servers.clone(),
            jobs: Some(self.workers.reading()),
            ..subject
        }
    }
}

/// Joins, loads, announces, and then only returns if no server is left, with the reason of the last one.
async fn start_and_stay(
    (node, swarms): (&node::Node, &Arc<Swarms>),
    mut standing: Standing,
    hosted: &Hosted,
    args: &Args,
    swarm: &Swarm,
) -> anyhow::Result<()> {
    // Whoever asked for too much learns it before anything is fetched.
    server::plan(&hosted.servers)?;
    args.polite.keep_hours(&hosted.servers, &node.tasks);
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
    if args.is_dry_run() {
        return dry_run(hosted).await;
    }
    args.also.join(swarms)?;
    for (model, server) in hosted.models.iter().zip(&hosted.servers) {
        let span = server.bring_up().await?;
        output::line(format_args!("online {} {}:{}", model.prefix, span.start, span.end));
        if let Some(addr) = node.p2p.addrs().first() {
            output::line(format_args!(
                "join with: sepal serve {}{} --initial-peers {addr}{}",
                model.name, model.flags, swarm.flags
            ));
        }
    }
    let online = |prefix: &str, span: &Range<u32>| {
        output::line(format_args!("online {prefix} {}:{}", span.start, span.end));
    };
    Err(server::stay(&hosted.servers, online).await.into())
}

/// Measures and says what was measured.
async fn dry_run(hosted: &Hosted) -> anyhow::Result<()> {
    for (model, server) in hosted.models.iter().zip(&hosted.servers) {
        let rates = server.measure().await?;
        let shown = |rate: Option<f64>| rate.map_or_else(|| "not measured".to_owned(), |rate| format!("{rate:.1}"));
        output::line(format_args!(
            "throughput {} {:.1} tokens/s (through a relay {:.1}), of one block: inference {}, forward {}, network {}",
            model.prefix,
            rates.throughput,
            rates.relayed_throughput,
            shown(rates.inference_rps),
            shown(rates.forward_rps),
            shown(rates.network_rps)
        ));
    }
    Ok(())
}

impl Args {
    fn ground(&self, node: &node::Node, hosted: &Hosted) -> Ground {
        Ground {
            identity: node.p2p.identity().clone(),
            listen: self.listen.beside(&node.p2p),
            standing: self.standing.clone(),
            auto_relay: !self.no_auto_relay,
            servers: hosted.servers.clone(),
        }
    }

    /// The models and their adapters; this may wait for the hub.
    async fn find(&self) -> anyhow::Result<(Vec<Model>, Vec<Adapter>)> {
        let models = self.models.resolve().await?;
        self.refuse_strays()?;
        if models.len() > 1 && !self.adapters.is_empty() {
            bail!("--adapters go with one model, and {} are served", models.len());
        }
        let adapters = self.adapters().await?;
        Ok((models, adapters))
    }

    /// Reads the adapters, from the hub where they are no folders.
    async fn adapters(&self) -> anyhow::Result<Vec<Adapter>> {
        let (places, options) = (self.adapters.clone(), self.models.hub.options(None)?);
        let open = move || places.iter().map(|place| Adapter::open(place, &options)).collect();
        let opened: Result<Vec<Adapter>, AdapterError> =
            tokio::task::spawn_blocking(open).await.context("interrupted")?;
        Ok(opened?)
    }

    /// # Errors
    /// When jobs of several models are wanted, or the swarm is not one that can be joined.
    fn swarm(&self, models: &[Model]) -> anyhow::Result<Swarm> {
        if self.jobs && models.len() > 1 {
            bail!("--jobs go with one model, and {} are served", models.len());
        }
        let mut swarm = match (self.new_swarm, self.jobs) {
            (true, _) => self.swarm.new_or_joined(),
            (false, true) => self.swarm.joined_or_local(),
            (false, false) => self.swarm.joined(),
        }?;
        let prefixes: Vec<&str> = models.iter().map(|model| model.prefix.as_str()).collect();
        swarm.gossip = self.jobs.then(|| gossip(&prefixes));
        Ok(swarm)
    }

    /// # Errors
    /// When a flag names a model that is not served.
    fn refuse_strays(&self) -> anyhow::Result<()> {
        let names = self.models.names();
        for (flag, stray) in [
            ("--blocks", stray(&self.blocks, &names)),
            ("--num-blocks", stray(&self.num_blocks, &names)),
            ("--dtype", stray(&self.dtype, &names)),
            ("--quant", self.quant.stray(&names)),
            ("--kv-dtype", stray(&self.limits.kv_dtype, &names)),
            ("--throughput", stray(&self.throughput, &names)),
            ("--attn-cache-tokens", stray(&self.limits.attn_cache_tokens, &names)),
        ] {
            refuse_stray(flag, stray)?;
        }
        Ok(())
    }

    /// If one model is only measured, all are.
    fn is_dry_run(&self) -> bool {
        let names = self.models.names();
        names
            .iter()
            .any(|name| of(&self.throughput, name) == Some(&Speed::DryRun))
    }

    /// Which blocks of a model to serve.
    ///
    /// # Errors
    /// When it has not so many, or two flags contradict each other.
    fn choice(&self, model: &Model) -> anyhow::Result<BlockChoice> {
        let (name, n_blocks) = (&model.name, model.source.config().n_blocks);
        let (range, count) = (of(&self.blocks, name), of(&self.num_blocks, name));
        let by_name = (is_named(&self.blocks, name), is_named(&self.num_blocks, name));
        let (range, count) = match (range, count) {
            (Some(_), Some(_)) if by_name.0 == by_name.1 => {
                bail!("--blocks and --num-blocks exclude each other, and both are given for {name}")
            }
            (range, _) if by_name.0 => (range, None),
            (_, count) if by_name.1 => (None, count),
            both => both,
        };
        match (range, count) {
            (Some(range), _) if range.end > n_blocks => {
                bail!(
                    "--blocks {}:{} is outside of {name}, which has {n_blocks} blocks",
                    range.start,
                    range.end
                )
            }
            (Some(range), _) => Ok(BlockChoice::Fixed(range.clone())),
            (None, Some(count)) if *count > n_blocks => {
                bail!("--num-blocks {count} is more than the {n_blocks} blocks of {name}")
            }
            (None, Some(count)) => Ok(BlockChoice::Count(*count)),
            (None, None) => Ok(BlockChoice::AsManyAsFit),
        }
    }

    fn server_config(&self, model: &Model, swarm: &Swarm, engine: &Engine) -> anyhow::Result<server::Config> {
        if !self.announcing.balance_quality.is_finite() || self.announcing.balance_quality < 0.0 {
            bail!(
                "--balance-quality {} must be 0 or more",
                self.announcing.balance_quality
            );
        }
        let limits = LimitChoice {
            attn_cache_tokens: of(&self.limits.attn_cache_tokens, &model.name).copied(),
            kv_dtype: of(&self.limits.kv_dtype, &model.name).and_then(|dtype| dtype.chosen()),
            ..self.limits.chosen()
        };
        let throughput = match of(&self.throughput, &model.name) {
            None => Throughput::Auto,
            Some(Speed::Announce(throughput)) => *throughput,
            Some(Speed::DryRun) => Throughput::Eval,
        };
        let dtype = of(&self.dtype, &model.name).and_then(|dtype| dtype.chosen());
        let plain = dtype.unwrap_or_else(|| model.source.config().auto_dtype());
        let usual = server::Config::new(model.prefix.clone(), self.choice(model)?, limits, engine);
        Ok(server::Config {
            dtype,
            quant: self.quant.chosen(&model.name, plain),
            throughput,
            throughput_cache: Some(environment::cache_folder().join("throughput.json")),
            compression: self.compression.chosen(),
            politeness: self.polite.rules(engine.threads()),
            public_name: self.public_name.clone(),
            update_period: self.announcing.update_period,
            expiration: self.announcing.expiration,
            balance_quality: self.announcing.balance_quality,
            mean_balance_check_period: self.announcing.mean_balance_check_period,
            // The first node of a swarm has nobody to wait for.
            choose_after: match swarm.is_new() {
                true => Duration::ZERO,
                false => usual.choose_after,
            },
            ..usual
        })
    }
}

impl LimitArgs {
    /// Those that are the same for all models.
    fn chosen(&self) -> LimitChoice {
        LimitChoice {
            attn_cache_tokens: None,
            kv_dtype: None,
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
