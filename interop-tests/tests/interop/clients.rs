//! Real Petals clients (2.2.0) generate through our servers alone, and get what plain transformers computes.

use interop_tests::{
    hub::{self, Hub},
    node::Swarm,
    python,
};
use serde_json::{Value, json};

/// Largest difference allowed between activations computed by torch and by us, in float32; they are about 10 large.
const TOLERANCE: f64 = 1e-3;

/// Runs every scenario of `petals_client.py` through servers of ours for these spans.
fn petals_client_through(spans: &[&str]) {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, spans, &[]).unwrap();
    let order = json!({
        "model": hub::MODEL,
        "initial_peers": [swarm.bootstrap.addr],
        "prompts": [[1, 17, 42, 99, 200, 5, 250], [3, 4, 5, 6, 7, 8], [77, 90, 11, 201, 13, 54]],
        "max_new_tokens": 8,
        "scenarios": ["goodbyes", "greedy", "batch", "beam", "resumed", "deep_prompts", "forward", "forward_stream"],
    });
    let results = python::run(&hub, "petals_client.py", &order).unwrap();
    for scenario in ["goodbyes", "greedy", "batch", "beam", "resumed", "deep_prompts"] {
        let result = &results[scenario];
        assert!(result["got"].is_array(), "{scenario}: {result}");
        assert_eq!(result["got"], result["want"], "{scenario} through {spans:?}");
    }
    for scenario in ["forward", "forward_stream"] {
        let difference = results[scenario]["difference"].as_f64().unwrap();
        assert!(difference < TOLERANCE, "{scenario} through {spans:?}: {difference}");
    }
    assert!(
        results["forward_stream"]["bytes"].as_u64() > Some(1 << 20),
        "Petals streams only what is over 1 MiB"
    );
}

#[test]
fn a_petals_client_is_served_by_one_server_with_all_blocks() {
    petals_client_through(&["0:4"]);
}

#[test]
fn a_petals_client_is_served_by_three_servers_in_a_row() {
    petals_client_through(&["0:1", "1:3", "3:4"]);
}

#[test]
fn a_petals_client_gets_an_answer_from_a_bfloat16_server() {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:4"], &["--torch_dtype", "bfloat16"]).unwrap();
    let order = json!({
        "model": hub::MODEL,
        "initial_peers": [swarm.bootstrap.addr],
        "prompts": [[1, 17, 42, 99, 200, 5, 250]],
        "max_new_tokens": 4,
        "scenarios": ["forward"],
    });
    let results: Value = python::run(&hub, "petals_client.py", &order).unwrap();
    let difference = results["forward"]["difference"].as_f64().unwrap();
    // Not zero, or it was not bfloat16; a real Petals server in bfloat16 differs by up to 0.1 from one in float32.
    assert!(difference > 0.0 && difference < 0.5, "{difference}");
}
