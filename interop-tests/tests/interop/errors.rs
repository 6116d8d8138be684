//! Every refusal that a Petals server knows, asked for by a real hivemind client: our server answers in the same words, and
//! the session beside goes on as if nothing had happened.

use interop_tests::{
    hub::Hub,
    node::{Node, Swarm},
    raw::{self, RawClient},
};
use serde_json::{Value, json};

/// The limits of the server, small enough to be exceeded.
const LIMITS: [&str; 6] = [
    "--attn-cache-tokens",
    "512",
    "--inference-max-length",
    "1024",
    "--max-batch-size",
    "128",
];

/// A session that takes one step after every mistake of the others.
struct Witness {
    steps: Vec<Vec<f64>>,
}

impl Witness {
    const LENGTH: usize = 48;

    fn open(client: &mut RawClient, server: &Node) -> Self {
        client.open("witness", &server.peer_id).unwrap();
        let mut witness = Self { steps: Vec::new() };
        witness.step(client, "witness");
        witness
    }

    fn step(&mut self, client: &mut RawClient, stream: &str) {
        let step = self.steps.len();
        let fields = json!({"session_id": stream, "step_id": format!("step {step}"), "max_length": Self::LENGTH});
        let request = raw::inference(&raw::chain(0, 4), raw::random(1, step as u64), fields);
        self.steps.push(client.step(stream, &request).unwrap());
    }

    /// The same steps in a session with nothing beside it.
    fn check(&self, client: &mut RawClient, server: &Node) {
        client.open("undisturbed", &server.peer_id).unwrap();
        let mut again = Self { steps: Vec::new() };
        for want in &self.steps {
            again.step(client, "undisturbed");
            let got = again.steps.last().unwrap();
            assert!(raw::difference(got, want) < 1e-5, "step {}", again.steps.len());
        }
    }
}

/// A step's metadata: a session of its own by the name of the row.
fn fields(session: &str, max_length: usize) -> Value {
    json!({"session_id": session, "step_id": "first", "max_length": max_length, "points": 0.0})
}

fn with(mut fields: Value, key: &str, value: Value) -> Value {
    fields[key] = value;
    fields
}

/// A session that is refused: its name, what is sent, one after the other, and what the last answer says.
type SessionRow = (&'static str, Vec<Value>, &'static str);

fn step(tokens: usize, fields: Value) -> Value {
    raw::inference(&raw::chain(0, 4), raw::random(tokens, 1), fields)
}

/// Sessions that ask for what the server does not have or does not give.
fn opening_rows() -> Vec<SessionRow> {
    let one = |fields: Value| vec![step(1, fields)];
    vec![
        (
            "uid not served",
            vec![raw::inference("tiny-llama-hf.9", raw::random(1, 1), fields("uid", 8))],
            "Remote peer does not serve tiny-llama-hf.9",
        ),
        (
            "unknown adapter",
            one(with(fields("adapter", 8), "active_adapter", json!("foo/bar"))),
            "adapter foo/bar not found",
        ),
        (
            "max_length missing",
            one(json!({"session_id": "length"})),
            "rpc_inference metadata must contain int max_length, got None",
        ),
        (
            "max_length too large",
            one(fields("large", 1025)),
            "Cannot allocate KV cache for 1025 tokens, max = 1024",
        ),
        (
            "cache full, no patience",
            one(fields("full", 600)),
            "immediately: out of memory",
        ),
        (
            "bigger than the whole cache",
            one(with(fields("bigger", 600), "alloc_timeout", json!(1.0))),
            "max cache size = ",
        ),
        (
            "waited in vain",
            one(with(fields("patient", 500), "alloc_timeout", json!(0.5))),
            "within 0.5 seconds",
        ),
        (
            "session id in use",
            one(fields("witness", 8)),
            "session id witness is not unique",
        ),
    ]
}

/// Sessions in which a step is wrong.
fn step_rows() -> Vec<SessionRow> {
    let with_tensor = |at: usize, tensor: Option<Value>, session: &str| {
        let mut request = step(1, fields(session, 8));
        let tensors = request["tensors"].as_array_mut().unwrap();
        tensors.remove(at);
        tensors.extend(tensor);
        request["metadata"]["args"] = json!(request["tensors"].as_array().unwrap().len());
        vec![request]
    };
    let later = |session: &str| json!({"session_id": session, "step_id": "second"});
    let of_shape = |shape: [usize; 3], fields| raw::inference(&raw::chain(0, 4), json!({"shape": shape}), fields);
    vec![
        (
            "too long",
            vec![step(3, fields("long", 4)), step(3, later("long"))],
            "Maximum length exceeded: prefix 3 + current 3 exceeds pre-allocated maximum 4",
        ),
        (
            "too many tokens",
            vec![step(129, fields("many", 200))],
            "Task size greater than max_batch_size (128), it can't be processed",
        ),
        (
            "hypo dtype",
            with_tensor(2, Some(json!({"shape": [0]})), "hypo"),
            "hypo ids must be int64, got torch.float32",
        ),
        (
            "too few tensors",
            with_tensor(2, None, "few"),
            "not enough values to unpack (expected at least 3, got 2)",
        ),
        (
            "a position that the cache has not reached",
            vec![step(1, with(fields("ahead", 8), "start_from_position", json!(5)))],
            "position",
        ),
        (
            "a batch that changes",
            vec![step(1, fields("batch", 8)), of_shape([2, 1, 64], later("batch"))],
            "",
        ),
        (
            "activations of another width",
            vec![of_shape([1, 1, 32], fields("width", 8))],
            "",
        ),
    ]
}

/// Single requests that are refused.
fn forward_rows() -> Vec<(&'static str, Value, &'static str)> {
    let all = raw::chain(0, 4);
    let request = |fields| raw::forward(&all, raw::random(2, 1), fields);
    let mut alone = request(json!({}));
    alone["tensors"].as_array_mut().unwrap().truncate(1);
    vec![
        (
            "points not a number",
            request(json!({"points": "5"})),
            "rpc_forward should have number of points as number or None, got 5",
        ),
        (
            "output_compression of another length",
            request(json!({"output_compression": [0, 0]})),
            "output_compression tuple should have 1 element",
        ),
        (
            "uid not served",
            raw::forward("tiny-llama-hf.0 tiny-llama-hf.77", raw::random(1, 1), json!({})),
            "Remote peer does not serve tiny-llama-hf.77",
        ),
        (
            "empty uid",
            raw::forward("", raw::random(1, 1), json!({})),
            "Remote peer does not serve ",
        ),
        (
            "unknown adapter",
            request(json!({"active_adapter": "foo"})),
            "adapter foo not found",
        ),
        (
            "too many tokens",
            raw::forward(&all, raw::random(129, 1), json!({})),
            "Task size greater than max_batch_size (128), it can't be processed",
        ),
        ("prompts missing", alone, "not enough values to unpack"),
        (
            "no rows",
            raw::forward(&all, json!({"shape": [0, 4, 64]}), json!({})),
            "",
        ),
    ]
}

fn complaint(answer: &Value) -> &str {
    answer["error"]
        .as_str()
        .unwrap_or_else(|| panic!("not refused: {answer}"))
}

fn free_cache(client: &mut RawClient, server: &Node) -> u64 {
    let answer = client
        .ask(&json!({"op": "info", "peer": server.peer_id, "uid": ""}))
        .unwrap();
    answer["info"]["cache_tokens_available"].as_u64().unwrap()
}

#[test]
fn every_refusal_of_petals_has_its_words_and_costs_nothing() {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:4"], &LIMITS).unwrap();
    let server = &swarm.servers[0];
    let mut client = RawClient::start(&hub, &[&server.addr]).unwrap();
    let mut witness = Witness::open(&mut client, server);
    let free = free_cache(&mut client, server);

    for (name, requests, text) in opening_rows().into_iter().chain(step_rows()) {
        client.open(name, &server.peer_id).unwrap();
        let (last, before) = requests.split_last().unwrap();
        for request in before {
            client.step(name, request).unwrap();
        }
        client.send(name, last).unwrap();
        let answer = client.receive(name).unwrap();
        assert!(complaint(&answer).contains(text), "{name}: {answer}");
        witness.step(&mut client, "witness");
    }
    for (name, request, text) in forward_rows() {
        let order = json!({"op": "unary", "peer": server.peer_id, "method": "rpc_forward", "request": request});
        let answer = client.ask(&order).unwrap();
        assert!(complaint(&answer).contains(text), "{name}: {answer}");
        witness.step(&mut client, "witness");
    }
    let unknown = client
        .ask(&json!({"op": "info", "peer": server.peer_id, "uid": "tiny-llama-hf.77"}))
        .unwrap();
    assert_eq!(complaint(&unknown), "KeyError('tiny-llama-hf.77')");
    let unserved = client
        .ask(&json!({"op": "call", "peer": server.peer_id, "name": "TransformerConnectionHandler.rpc_nothing"}))
        .unwrap();
    assert!(complaint(&unserved).contains("protocol"), "{unserved}");

    assert_eq!(free_cache(&mut client, server), free, "a refused session keeps memory");
    witness.check(&mut client, server);
}

#[test]
fn a_session_id_can_be_used_again_after_an_error() {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:4"], &LIMITS).unwrap();
    let server = &swarm.servers[0];
    let mut client = RawClient::start(&hub, &[&server.addr]).unwrap();
    for attempt in 0..3 {
        let stream = format!("attempt {attempt}");
        client.open(&stream, &server.peer_id).unwrap();
        let step = |tokens| raw::inference(&raw::chain(0, 4), raw::random(tokens, 1), fields("the same", 4));
        client.step(&stream, &step(2)).unwrap();
        let mut second = step(5);
        second["metadata"]["step_id"] = json!("second");
        client.send(&stream, &second).unwrap();
        let answer = client.receive(&stream).unwrap();
        assert!(complaint(&answer).contains("Maximum length exceeded"), "{answer}");
    }
}
