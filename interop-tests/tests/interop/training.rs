//! Petals' own training examples through our servers: prompt tuning, a classifier on top, LoRA adapters. All losses and
//! gradients are those of plain transformers and peft.

use interop_tests::{
    hub::{self, Hub, repository},
    node::{self, Swarm},
    python,
};
use serde_json::{Value, json};

/// Largest difference between losses after some steps of training in float32.
const LOSS_TOLERANCE: f64 = 2e-3;

/// As for activations in `clients.rs`.
const TOLERANCE: f64 = 1e-3;

/// As `training.py` has it.
const ADAPTER_PROMPT: [u32; 7] = [1, 17, 42, 99, 200, 5, 250];

fn train(spans: &[&str], order: &Value) -> Value {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, spans, &[]).unwrap();
    let mut order = order.clone();
    order["model"] = hub::MODEL.into();
    order["initial_peers"] = json!([swarm.bootstrap.addr]);
    python::run(&hub, "training.py", &order).unwrap()
}

#[test]
fn prompts_and_a_classifier_are_trained_through_our_servers_as_they_are_locally() {
    let scenarios = ["ptune", "deep_ptune", "classification"];
    let results = train(&["0:2", "2:4"], &json!({"scenarios": scenarios, "steps": 6}));
    for scenario in scenarios {
        let [got, want] = ["got", "want"].map(|side| -> Vec<f64> {
            serde_json::from_value(results[scenario][side].clone()).unwrap_or_else(|_| panic!("{scenario}: {results}"))
        });
        assert_eq!((got.len(), want.len()), (6, 6), "{scenario}");
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < LOSS_TOLERANCE, "{scenario}: {results}");
        }
        assert!(got[5] < got[0] - 0.05, "{scenario} learns: {got:?}");
    }
}

#[test]
fn both_clients_get_text_and_petals_gets_activations_and_gradients_of_an_adapter() {
    let folder = repository().join("protocol/vectors/sepal/lora/everything");
    let folder = folder.canonicalize().unwrap();
    let folder = folder.to_str().unwrap();
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:3", "3:4"], &["--adapters", folder]).unwrap();
    let order = json!({
        "model": hub::MODEL,
        "initial_peers": [swarm.bootstrap.addr],
        "scenarios": ["adapter"],
        "adapter": folder,
    });
    let results = python::run(&hub, "training.py", &order).unwrap();
    let result = &results["adapter"];
    assert_eq!(result["got"], result["want"]);
    assert_ne!(result["got"], result["without"], "the adapter changes the text");
    for difference in ["difference", "gradient_difference"] {
        assert!(result[difference].as_f64().unwrap() < TOLERANCE, "{result}");
    }
    let generate = |more: &[&str]| {
        let place = (hub::MODEL, swarm.bootstrap.addr.as_str());
        node::generate_with(&hub, place, (&ADAPTER_PROMPT, 8), more).unwrap()["token_ids"].clone()
    };
    assert_eq!(
        generate(&["--adapter", "everything"]),
        result["want"][0],
        "peft's text by our client"
    );
    assert_eq!(generate(&[]), result["without"][0]);
}
