//! The Python peers: the environment they run in, and each as a process.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{
    ANSWER, STARTUP, WORK,
    hub::{Hub, repository},
    process::Process,
};

/// The python of the environment that `scripts/python-env.sh` makes, once per machine.
fn interpreter() -> anyhow::Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = FOUND.get() {
        return Ok(path.clone());
    }
    let path = made_by("scripts/python-env.sh")?;
    Ok(FOUND.get_or_init(|| path).clone())
}

/// The python of an environment that this script makes.
fn made_by(script: &str) -> anyhow::Result<PathBuf> {
    let output = Command::new(repository().join(script))
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {script}"))?;
    let path = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    if !output.status.success() || !path.is_file() {
        bail!("{script} made no Python environment ({})", output.status);
    }
    Ok(path)
}

/// Runs `openai_client.py`, which takes one JSON object and prints one, with the packages of OpenAI.
///
/// # Errors
///
/// If it does not, or the object is an error.
pub fn run_openai(hub: &Hub, order: &Value) -> anyhow::Result<Value> {
    let script = repository().join("interop-tests/python/openai_client.py");
    let mut command = hub.command(made_by("scripts/openai-env.sh")?);
    let mut process = Process::start("openai_client.py", command.arg(script.canonicalize()?))?;
    let answer = process.ask(order, WORK)?;
    if answer.get("error").is_some() {
        bail!("openai_client.py: {answer}\n{}", process.said().err);
    }
    Ok(answer)
}

/// The environment's python, pointed at the test's model cache.
fn python(hub: &Hub, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = hub.command(interpreter()?);
    // One thread: every peer is a process of its own already, and Petals forks, which threads do not survive.
    command
        .env("OMP_NUM_THREADS", "1")
        .env("HIVEMIND_COLORS", "False")
        .args(arguments);
    Ok(command)
}

/// A script of `interop-tests/python` with arguments.
///
/// # Errors
///
/// If it cannot be started.
pub fn start(hub: &Hub, script: &str, arguments: &[&str]) -> anyhow::Result<Process> {
    let path = repository().join("interop-tests/python").join(script);
    let path = path.canonicalize().with_context(|| format!("no {script}"))?;
    let path = path.to_str().context("a path that is not text")?;
    let mut all = vec![path];
    all.extend(arguments);
    Process::start(script, &mut python(hub, &all)?)
}

/// Runs a script that takes one JSON object and prints one.
///
/// # Errors
///
/// If it does not, or the object is an error.
pub fn run(hub: &Hub, script: &str, order: &Value) -> anyhow::Result<Value> {
    let mut process = start(hub, script, &[])?;
    let answer = process.ask(order, WORK)?;
    if answer.get("error").is_some() {
        bail!("{script}: {answer}\n{}", process.said().err);
    }
    Ok(answer)
}

/// What plain transformers continues each prompt with, greedily.
///
/// # Errors
///
/// If it cannot.
pub fn reference(hub: &Hub, prompts: &[Vec<u32>], n_tokens: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let order = json!({"model": hub.model().name, "prompts": prompts, "max_new_tokens": n_tokens});
    let answer = run(hub, "reference.py", &order)?;
    Ok(serde_json::from_value(answer["continuations"].clone())?)
}

/// A hivemind DHT node of Python.
#[derive(Debug)]
pub struct DhtPeer {
    process: Process,
    /// Its first address, with `/p2p/ID`; none in client mode.
    pub addr: Option<String>,
    /// Its peer id, base58.
    pub peer_id: String,
}

impl DhtPeer {
    /// Starts one that knows these peers.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn start(hub: &Hub, initial_peers: &[&str]) -> anyhow::Result<Self> {
        let mut process = start(hub, "dht_peer.py", initial_peers)?;
        let hello = process.answer(STARTUP)?;
        Ok(Self {
            process,
            addr: hello["addrs"][0].as_str().map(str::to_owned),
            peer_id: hello["peer_id"].as_str().context("no peer id")?.to_owned(),
        })
    }

    /// One order of `dht_peer.py`.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn ask(&mut self, order: &Value) -> anyhow::Result<Value> {
        self.process.ask(order, ANSWER)
    }
}

/// A Petals node: a server or `run_dht`.
#[derive(Debug)]
pub struct PetalsNode {
    /// The process.
    pub process: Process,
    /// Its address, with `/p2p/ID`.
    pub addr: String,
    /// Its peer id, base58.
    pub peer_id: String,
}

impl PetalsNode {
    /// Petals' bootstrap node, `run_dht`, as the first of a swarm or joining one.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn bootstrap(hub: &Hub, initial_peers: &[&str]) -> anyhow::Result<Self> {
        let maddr = hub.place().host_maddr();
        let mut arguments = vec!["-m", "petals.cli.run_dht", "--host_maddrs", &maddr];
        if !initial_peers.is_empty() {
            arguments.push("--initial_peers");
            arguments.extend(initial_peers);
        }
        Self::addressed(
            Process::start("petals run_dht", &mut python(hub, &arguments)?)?,
            &hub.place().ip,
        )
    }

    /// A Petals server of these blocks; returns when its address is known, which is before it serves.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn serve(hub: &Hub, blocks: &str, initial_peers: &[&str]) -> anyhow::Result<Self> {
        let mut arguments = vec![hub.model().name, "--block_indices", blocks, "--initial_peers"];
        arguments.extend(initial_peers);
        let maddr = hub.place().host_maddr();
        arguments.extend(["--host_maddrs", &maddr, "--device", "cpu", "--torch_dtype", "float32"]);
        arguments.extend(["--throughput", "100", "--num_handlers", "1", "--update_period", "5"]);
        Self::addressed(start(hub, "petals_server.py", &arguments)?, &hub.place().ip)
    }

    /// Waits until a server serves.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn online(&mut self) -> anyhow::Result<()> {
        self.process
            .wait_for("Started", STARTUP, |said| said.err.contains("Started").then_some(()))
    }

    fn addressed(mut process: Process, ip: &str) -> anyhow::Result<Self> {
        let addr = process.wait_for("address", STARTUP, |said| address_in(&said.err, ip))?;
        let peer_id = addr
            .rsplit_once("/p2p/")
            .context("an address without /p2p/")?
            .1
            .to_owned();
        Ok(Self { process, addr, peer_id })
    }
}

/// The first complete address with this number in a log, of the log's own node. A server first prints the addresses it was told
/// to join through, so only the line in which it speaks of itself counts.
fn address_in(log: &str, ip: &str) -> Option<String> {
    let complete = &log[..log.rfind('\n')? + 1];
    let own = complete
        .lines()
        .find(|line| line.contains("Running a server on") || line.contains("--initial_peers"))?;
    let start = own.find(&format!("/ip4/{ip}/"))?;
    let addr = own[start..]
        .split(|c: char| !(c.is_ascii_alphanumeric() || "/.".contains(c)))
        .next()?;
    addr.contains("/p2p/").then(|| addr.to_owned())
}
