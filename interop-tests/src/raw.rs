//! The raw Python client, `raw_client.py`, and the requests it is told to send.

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

use crate::{
    ANSWER, STARTUP,
    hub::{HIDDEN, Hub, PREFIX},
    process::Process,
    python,
};

/// A hivemind client that sends what it is told.
#[derive(Debug)]
pub struct RawClient {
    process: Process,
}

impl RawClient {
    /// Starts one that knows these addresses.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn start(hub: &Hub, addrs: &[&str]) -> anyhow::Result<Self> {
        let mut process = python::start(hub, "raw_client.py", addrs)?;
        process.answer(STARTUP)?;
        Ok(Self { process })
    }

    /// One order; its answer as it is.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn ask(&mut self, order: &Value) -> anyhow::Result<Value> {
        self.process.ask(order, ANSWER)
    }

    /// Opens an inference session under a name for later orders.
    ///
    /// # Errors
    ///
    /// If it does not open.
    pub fn open(&mut self, stream: &str, peer_id: &str) -> anyhow::Result<()> {
        let answer = self.ask(&json!({"op": "open", "stream": stream, "peer": peer_id, "method": "rpc_inference"}))?;
        ensure!(answer == json!({"opened": true}), "{answer}");
        Ok(())
    }

    /// Sends on a stream.
    ///
    /// # Errors
    ///
    /// If it cannot.
    pub fn send(&mut self, stream: &str, request: &Value) -> anyhow::Result<()> {
        self.ask(&json!({"op": "send", "stream": stream, "request": request}))?;
        Ok(())
    }

    /// The next message of a stream: tensors, end, or error.
    ///
    /// # Errors
    ///
    /// If nothing comes in time.
    pub fn receive(&mut self, stream: &str) -> anyhow::Result<Value> {
        let answer = self.ask(&json!({"op": "recv", "stream": stream, "timeout": 60}))?;
        ensure!(answer.get("timeout").is_none(), "nothing came on {stream}");
        Ok(answer)
    }

    /// One step of a session, which must succeed: the activations that come back.
    ///
    /// # Errors
    ///
    /// If anything else comes back.
    pub fn step(&mut self, stream: &str, request: &Value) -> anyhow::Result<Vec<f64>> {
        self.send(stream, request)?;
        let answer = self.receive(stream)?;
        values(&answer).with_context(|| format!("a step on {stream}"))
    }
}

/// The values of the only tensor of an answer.
///
/// # Errors
///
/// If the answer is something else.
pub fn values(answer: &Value) -> anyhow::Result<Vec<f64>> {
    match answer.pointer("/tensors/0/values") {
        Some(values) => Ok(serde_json::from_value(values.clone())?),
        None => bail!("no tensor but {answer}"),
    }
}

/// The largest absolute difference; infinite for different lengths.
pub fn difference(one: &[f64], other: &[f64]) -> f64 {
    if one.len() != other.len() {
        return f64::INFINITY;
    }
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The chain of blocks `start..end` of the test model.
pub fn chain(start: u32, end: u32) -> String {
    let uids: Vec<String> = (start..end).map(|block| format!("{PREFIX}.{block}")).collect();
    uids.join(" ")
}

/// Activations for `tokens` tokens, the same for the same seed.
pub fn random(tokens: usize, seed: u64) -> Value {
    json!({"shape": [1, tokens, HIDDEN], "seed": seed})
}

/// Activations with these values.
pub fn exact(values: &[f64]) -> Value {
    json!({"shape": [1, values.len() / HIDDEN, HIDDEN], "values": values})
}

/// An inference request: activations, no prompts, no reordering. `fields` is the metadata; Petals' args_structure is added.
pub fn inference(uid: &str, hidden: Value, fields: Value) -> Value {
    let mut metadata: Map<String, Value> = fields.as_object().cloned().unwrap_or_default();
    metadata.insert("args".to_owned(), json!(3));
    let no_prompts = json!({"shape": [0]});
    let no_reordering = json!({"shape": [0], "dtype": "int64"});
    json!({"uid": uid, "tensors": [hidden, no_prompts, no_reordering], "metadata": metadata})
}

/// A forward request: activations and no prompts.
pub fn forward(uid: &str, hidden: Value, fields: Value) -> Value {
    let no_prompts = json!({"shape": [0]});
    json!({"uid": uid, "tensors": [hidden, no_prompts], "metadata": fields})
}
