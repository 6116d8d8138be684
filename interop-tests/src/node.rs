//! The `sepal` program: bootstrap nodes, servers and clients as processes.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{ANSWER, STARTUP, WORK, hub::Hub, process::Process};

/// A node that others can dial.
#[derive(Debug)]
pub struct Node {
    /// The process.
    pub process: Process,
    /// Its first address, with `/p2p/ID`.
    pub addr: String,
    /// Its peer id, base58.
    pub peer_id: String,
    /// Of the blocks of the test's model.
    prefix: &'static str,
}

/// The program with `arguments`, which every test runs as it was built beside the tests.
///
/// # Errors
///
/// If it was not built.
pub fn sepal(hub: &Hub, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = hub.command(program()?);
    command.args(arguments).env("RUST_LOG", "warn,sepal=debug");
    // Control sockets go into the cache: nodes of other tests are none of this one's.
    command.env_remove("XDG_RUNTIME_DIR");
    Ok(command)
}

fn program() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test
        .parent()
        .and_then(|deps| deps.parent())
        .context("no target folder")?;
    let program = folder.join("sepal");
    ensure!(
        program.is_file(),
        "{} is missing: build it with `cargo build --bin sepal` (scripts/test.sh does)",
        program.display()
    );
    Ok(program)
}

impl Node {
    /// `sepal bootstrap`, as the first of a swarm or joining one.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn bootstrap(hub: &Hub, initial_peers: &[&str]) -> anyhow::Result<Self> {
        let mut arguments = vec!["bootstrap"];
        arguments.extend(hub.place().listen_flags());
        if !initial_peers.is_empty() {
            arguments.push("--initial-peers");
            arguments.extend(initial_peers);
        }
        Self::listening(hub, Process::start("sepal bootstrap", &mut sepal(hub, &arguments)?)?)
    }

    /// `sepal serve` for these blocks; returns as soon as it listens.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn serve(hub: &Hub, blocks: &str, initial_peers: &[&str], more: &[&str]) -> anyhow::Result<Self> {
        Self::listening(hub, Self::start_server(hub, blocks, initial_peers, more)?)
    }

    /// `sepal serve` for these blocks of several models of the cache; returns as soon as it listens.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn serve_models(hub: &Hub, models: &[&str], blocks: &str, entry: &str, more: &[&str]) -> anyhow::Result<Self> {
        Self::listening(hub, Self::start_server_of(hub, models, (blocks, &[entry]), more)?)
    }

    /// The process of [`Node::serve`], about which nothing is known yet.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_server(hub: &Hub, blocks: &str, initial_peers: &[&str], more: &[&str]) -> anyhow::Result<Process> {
        Self::start_server_of(hub, &[hub.model().name], (blocks, initial_peers), more)
    }

    fn start_server_of(
        hub: &Hub,
        models: &[&str],
        (blocks, initial_peers): (&str, &[&str]),
        more: &[&str],
    ) -> anyhow::Result<Process> {
        let mut arguments = vec!["serve"];
        arguments.extend(models);
        arguments.extend(["--blocks", blocks]);
        arguments.extend(hub.place().listen_flags());
        arguments.extend(["--throughput", "100", "--update-period", "5"]);
        // Petals' own spelling is the one that tests override it with.
        if !more.contains(&"--torch_dtype") {
            arguments.extend(["--dtype", "float32"]);
        }
        if initial_peers.is_empty() {
            arguments.push("--new-swarm");
        } else {
            arguments.push("--initial-peers");
            arguments.extend(initial_peers);
        }
        arguments.extend(more);
        Process::start(&format!("sepal serve {blocks}"), &mut sepal(hub, &arguments)?)
    }

    /// Waits for the line that a server prints once its ONLINE records are stored.
    ///
    /// # Errors
    ///
    /// If it does not come, or names other blocks.
    pub fn online(&mut self, blocks: &str) -> anyhow::Result<()> {
        let line = self.process.wait_line("online ", STARTUP)?;
        ensure!(line == format!("{} {blocks}", self.prefix), "online with {line:?}");
        Ok(())
    }

    fn listening(hub: &Hub, mut process: Process) -> anyhow::Result<Self> {
        let addr = process.wait_line("listening ", STARTUP)?;
        let peer_id = addr
            .rsplit_once("/p2p/")
            .context("an address without /p2p/")?
            .1
            .to_owned();
        Ok(Self {
            process,
            addr,
            peer_id,
            prefix: hub.model().prefix,
        })
    }
}

/// A bootstrap node and servers of ours for these spans, all online.
#[derive(Debug)]
pub struct Swarm {
    /// What others join through.
    pub bootstrap: Node,
    /// In the order of the spans.
    pub servers: Vec<Node>,
}

impl Swarm {
    /// Starts them side by side.
    ///
    /// # Errors
    ///
    /// If one does not come up.
    pub fn start(hub: &Hub, spans: &[&str], more: &[&str]) -> anyhow::Result<Self> {
        let bootstrap = Node::bootstrap(hub, &[])?;
        let servers: anyhow::Result<Vec<Node>> = spans
            .iter()
            .map(|span| Node::serve(hub, span, &[&bootstrap.addr], more))
            .collect();
        let mut servers = servers?;
        for (server, span) in servers.iter_mut().zip(spans) {
            server.online(span)?;
        }
        Ok(Self { bootstrap, servers })
    }
}

/// `sepal generate`, greedy, started and not waited for. With `json` it prints one object at the end, else the ids as text
/// while they come.
///
/// # Errors
///
/// If it cannot be started.
pub fn start_generate(
    hub: &Hub,
    initial: &str,
    prompt: &[u32],
    n_tokens: usize,
    json: bool,
) -> anyhow::Result<Process> {
    let more: &[&str] = if json { &["--json"] } else { &[] };
    generating(hub, (hub.model().name, initial), (prompt, n_tokens), more)
}

fn generating(
    hub: &Hub,
    (model, initial): (&str, &str),
    (prompt, n_tokens): (&[u32], usize),
    more: &[&str],
) -> anyhow::Result<Process> {
    let prompt: Vec<String> = prompt.iter().map(u32::to_string).collect();
    let (prompt, n_tokens) = (prompt.join(" "), n_tokens.to_string());
    let mut arguments = vec!["generate", model, "--initial-peers", initial, "--prompt", &prompt];
    arguments.extend(["--max-new-tokens", &n_tokens, "--temperature", "0"]);
    arguments.extend(more);
    Process::start("sepal generate", &mut sepal(hub, &arguments)?)
}

/// `sepal generate --json` to its end.
///
/// # Errors
///
/// If it fails or prints no object.
pub fn generate(hub: &Hub, initial: &str, prompt: &[u32], n_tokens: usize) -> anyhow::Result<Value> {
    generate_with(hub, (hub.model().name, initial), (prompt, n_tokens), &[])
}

/// The same with any model of the cache and with more flags.
///
/// # Errors
///
/// As [`generate`].
pub fn generate_with(hub: &Hub, place: (&str, &str), text: (&[u32], usize), more: &[&str]) -> anyhow::Result<Value> {
    finish(generating(hub, place, text, &[&["--json"], more].concat())?)
}

/// The same for a model without a tokenizer, all of whose flags are given.
///
/// # Errors
///
/// As [`generate`].
pub fn generate_ids(hub: &Hub, (model, initial): (&str, &str), flags: &[&str]) -> anyhow::Result<Value> {
    let mut arguments = vec![
        "generate",
        model,
        "--initial-peers",
        initial,
        "--temperature",
        "0",
        "--json",
    ];
    arguments.extend(flags);
    finish(Process::start("sepal generate", &mut sepal(hub, &arguments)?)?)
}

fn finish(mut process: Process) -> anyhow::Result<Value> {
    let answer = process.answer(WORK)?;
    let status = process.wait_exit(ANSWER)?;
    if !status.success() {
        bail!("sepal generate ended with {status} after {answer}");
    }
    Ok(answer)
}

/// The ids in a JSON list.
///
/// # Errors
///
/// If it is none.
pub fn ids(value: &Value) -> anyhow::Result<Vec<u32>> {
    Ok(serde_json::from_value(value.clone())?)
}

/// The servers that `generate` took, and the blocks of each.
///
/// # Errors
///
/// If the answer names none.
pub fn route(answer: &Value) -> anyhow::Result<Vec<(&str, &str)>> {
    let hops = answer["route"].as_array().context("no route")?;
    fn hop(hop: &Value) -> Option<(&str, &str)> {
        Some((hop["peer"].as_str()?, hop["blocks"].as_str()?))
    }
    hops.iter()
        .map(|at| hop(at).context("a hop without peer or blocks"))
        .collect()
}
