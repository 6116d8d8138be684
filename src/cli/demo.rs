//! `sepal demo`: a whole swarm on this machine, and an API in front of it if that is asked for. Four real nodes, each with
//! its own identity, host and DHT, talking TCP; nothing is handed over in memory.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args as ClapArgs;
use tokio_util::sync::CancellationToken;

use super::{
    access::AccessArgs,
    api::{self, LimitArgs, Stop},
    compute::{ComputeArgs, DeviceArgs},
    control::{self, ControlArgs},
    figures::Figures,
    model::{Model, ModelArgs},
    node::{self, Node},
    output,
    parsers::socket_addr,
    quant::QuantArgs,
    signals,
    swarm::Swarm,
};
use crate::{
    client::{self, Client, Generation, Params, TextCodec, Token},
    control::Subject,
    http::{self, ServedModel},
    model::SamplingParams,
    p2p::{self, Identity, Multiaddr, PeerId},
    server::{self, BlockChoice, LimitChoice, Server},
    task::Tasks,
};

/// Servers in the demonstration; each holds an equal part of the model.
const N_SERVERS: u32 = 2;

// There is one model, so that nothing is said of each of several.
#[derive(Debug, ClapArgs)]
#[command(mut_arg("quant", |arg| arg.value_name("auto|none|int8|q4_0|q4_k|nf4")))]
pub(super) struct Args {
    /// What to ask.
    #[arg(long, value_name = "TEXT", default_value = "What is 2+2?")]
    prompt: String,
    /// Most new tokens.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    quant: QuantArgs,
    /// Leave the swarm running afterwards and serve its model at this address, as `sepal api` does.
    #[arg(long, value_name = "IP:PORT", value_parser = socket_addr)]
    http: Option<SocketAddr>,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    control: ControlArgs,
}

/// The swarm of the demonstration.
struct Stage {
    model: Model,
    bootstrap: Node,
    servers: Vec<(Node, Arc<Server>)>,
    node: Node,
    client: Client,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let asked = CancellationToken::new();
    let mut stop: Stop = Box::pin(signals::stop_requested_or(asked.clone()));
    let listening = match args.http {
        Some(addr) => Some(http::listen(addr).await?),
        None => None,
    };
    // Keys that cannot be used are said before anything is started as well.
    let tasks = Tasks::new();
    let guard = match listening {
        Some(_) => args.access.guard(&tasks)?,
        None => http::Guard::default(),
    };
    let stage = tokio::select! {
        stage = tell(&args) => stage?,
        stopped = &mut stop => return stopped,
    };
    let mut control = None;
    let outcome = match listening {
        Some(listening) => {
            let (limits, tasks) = (&args.limits, &stage.node.tasks);
            let template = api::template_of(&stage.model, None).await?;
            let named = (stage.model.name.clone(), template);
            let served = api::served_model(&stage.model, named, stage.client.clone(), (limits, tasks), None).await?;
            output::line("");
            let (served, figures) = (vec![served], stage.figures());
            // Without an API it would be gone before anybody asks.
            control = args.control.open(stage.subject(&served, &figures, &asked)).await?;
            api::serve(listening, (served, guard), (limits, figures, tasks), stop).await
        }
        None => Ok(()),
    };
    stage.end().await;
    tasks.shutdown().await;
    control::close(control).await;
    outcome
}

impl Stage {
    /// All of it is one process: its servers are asked together.
    fn subject(&self, served: &[ServedModel], figures: &Figures, asked: &CancellationToken) -> Option<Subject> {
        let swarm = Swarm {
            initial_peers: self.bootstrap.p2p.addrs(),
            ..Swarm::default()
        };
        control::subject("demo", (&self.node, &swarm), asked).map(|subject| Subject {
            servers: self.servers.iter().map(|(_, server)| server.clone()).collect(),
            calls: api::called(served),
            api: Some(figures.answering()),
            ..subject
        })
    }

    fn figures(&self) -> Figures {
        let figures = Figures::of(&self.node).and(&self.bootstrap);
        let with =
            |figures: Figures, (node, server): &(Node, Arc<Server>)| figures.and(node).serving(vec![server.clone()]);
        self.servers.iter().fold(figures, with)
    }

    async fn end(self) {
        for (node, server) in &self.servers {
            server.shutdown().await;
            node.tasks.shutdown().await;
        }
        self.node.tasks.shutdown().await;
        self.bootstrap.tasks.shutdown().await;
    }
}

async fn tell(args: &Args) -> anyhow::Result<Stage> {
    let start = Instant::now();
    let model = ModelArgs::named("demo").resolve().await?;
    let n_blocks = model.source.config().n_blocks;
    output::line(format_args!(
        "A private swarm on this machine, for the built-in model ({n_blocks} blocks)."
    ));
    output::line("");

    let bootstrap = start_node("bootstrap", false, &[]).await?;
    bootstrap.router().spawn(&bootstrap.tasks);
    let entry = bootstrap.p2p.addrs();

    // One machine, so the servers share its threads.
    let engine = args.compute.start()?;
    let config = |blocks| server::Config {
        quant: args.quant.chosen(&model.name, model.source.config().auto_dtype()),
        ..server::Config::new(
            model.prefix.clone(),
            BlockChoice::Fixed(blocks),
            LimitChoice::default(),
            &engine,
        )
    };
    let formats = config(0..1).formats(&model.source);
    let machine = args.device.machine(&engine, &[formats])?;
    let mut servers = Vec::new();
    for index in 0..N_SERVERS {
        let blocks = n_blocks * index / N_SERVERS..n_blocks * (index + 1) / N_SERVERS;
        let config = server::Config {
            machine: machine.clone(),
            ..config(blocks)
        };
        servers.push(start_server(&model, index, &entry, config).await?);
    }
    let node = start_node("client", true, &entry).await?;
    node.join().await?;
    let (client, generation) = ask(args, &model, &node, &servers).await?;
    table(&generation, start.elapsed());
    Ok(Stage {
        model,
        bootstrap,
        servers,
        node,
        client,
    })
}

/// A node of its own on a free loopback port; a client listens nowhere.
async fn start_node(name: &str, client_mode: bool, initial_peers: &[Multiaddr]) -> anyhow::Result<Node> {
    let listen = if client_mode {
        Vec::new()
    } else {
        vec!["/ip4/127.0.0.1/tcp/0".parse()?]
    };
    let config = p2p::Config {
        listen,
        identity: Identity::ephemeral(),
        client_mode,
        known_peers: initial_peers.to_vec(),
        ..p2p::Config::default()
    };
    let node = node::start(config).await?;
    let place = match node.p2p.addrs().first() {
        Some(addr) => format!("listens on {addr}"),
        None => format!("only dials out, as {}", node.p2p.peer_id()),
    };
    output::line(format_args!("{name:>9}  {place}"));
    Ok(node)
}

async fn start_server(
    model: &Model,
    index: u32,
    entry: &[Multiaddr],
    config: server::Config,
) -> anyhow::Result<(Node, Arc<Server>)> {
    let name = format!("server {}", index + 1);
    let node = start_node(&name, false, entry).await?;
    let config = server::Config {
        public_name: Some(name.clone()),
        ..config
    };
    let server = node.servers([(config, model)]).remove(0);
    node.join().await?;
    let seen = node.p2p.connected_peers().len();
    output::line(format_args!(
        "{name:>9}  joined through the bootstrap, sees {seen} peer(s)"
    ));
    let span = server.bring_up().await?;
    output::line(format_args!(
        "{name:>9}  serves blocks {}:{} of {}",
        span.start, span.end, model.prefix
    ));
    Ok((node, server))
}

async fn ask(
    args: &Args,
    model: &Model,
    node: &Node,
    servers: &[(Node, Arc<Server>)],
) -> anyhow::Result<(Client, Generation)> {
    let name = |peer: PeerId| {
        let index = servers.iter().position(|(node, _)| node.p2p.peer_id() == peer);
        index.map_or_else(|| peer.to_string(), |index| format!("server {}", index + 1))
    };
    let codec = TextCodec::from_json(&model.source.tokenizer_json()?)?;
    let config = client::Config::new(model.prefix.clone());
    let client = Client::connect(config, &model.source, (node.p2p.clone(), node.dht.clone()), &node.tasks).await?;
    let prompt = codec.encode(&args.prompt)?;
    let defaults = model.source.generation_config();
    let params = Params {
        max_new_tokens: args.max_new_tokens,
        sampling: SamplingParams {
            temperature: 0.0,
            ..defaults.sampling()
        },
        eos_token_ids: defaults.eos_token_ids.clone(),
        ..Params::default()
    };
    let route = client.route(prompt.len() + params.max_new_tokens).await?;
    let route: Vec<String> = route
        .iter()
        .map(|hop| format!("{} ({}:{})", name(hop.peer), hop.blocks.start, hop.blocks.end))
        .collect();
    output::line(format_args!(
        "{:>9}  found in the DHT: {}",
        "client",
        spans(&client, &name)
    ));
    output::line(format_args!("{:>9}  route: {}", "client", route.join(" → ")));
    output::line("");
    output::line(format_args!("> {}", args.prompt));
    // The model begins its answer with a line break, as a text would; here the question stands on a line of its own.
    let mut begun = false;
    let mut on_token = |token: &Token| {
        let text = if begun { &token.text } else { token.text.trim_start() };
        begun |= !text.is_empty();
        output::piece(text);
    };
    let generation = client
        .generate(Some(&codec), &prompt, &params, &mut on_token)
        .await
        .context("the demonstration failed")?;
    output::line("");
    Ok((client, generation))
}

fn spans(client: &Client, name: &dyn Fn(PeerId) -> String) -> String {
    let snapshot = client.snapshot();
    let spans: Vec<String> = snapshot
        .spans
        .iter()
        .map(|span| format!("{} holds {}:{}", name(span.peer), span.blocks.start, span.blocks.end))
        .collect();
    spans.join(", ")
}

fn table(generation: &Generation, total: Duration) {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    output::line("");
    output::line(format_args!("hops                 {:>10}", generation.route.len()));
    output::line(format_args!("new tokens           {:>10}", generation.token_ids.len()));
    output::line(format_args!(
        "time to first token  {:>10.1} ms",
        milliseconds(generation.time_to_first_token)
    ));
    output::line(format_args!(
        "speed                {:>10.0} tokens/s",
        generation.tokens_per_second()
    ));
    for hop in &generation.route {
        let blocks = format!("blocks {}:{}", hop.blocks.start, hop.blocks.end);
        match hop.per_step {
            Some(time) => output::line(format_args!("{blocks:<20} {:>10.2} ms per step", milliseconds(time))),
            None => output::line(format_args!("{blocks:<20} {:>10}", "one step")),
        }
    }
    output::line(format_args!("everything took      {:>10.1} s", total.as_secs_f64()));
}
