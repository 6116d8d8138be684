//! Every weight format through real programs: a Petals client and ours generate through servers of ours that keep the same
//! weights in different formats, and get what transformers computes with the weights as they are, within what a format can
//! tell.

use interop_tests::{
    STARTUP,
    hub::{self, Hub},
    node::{self, Node},
    python,
};
use serde_json::json;

const PROMPT: [u32; 7] = [1, 17, 42, 99, 200, 5, 250];
const N_TOKENS: usize = 12;

/// A format, the flags that choose it, how far the rounding of one weight or activation may move it (of the largest in
/// its block), and whether the text stays the same. The weights are random and 64 wide: nothing averages out.
const FORMATS: [(&str, &str, &str, f64, bool); 7] = [
    ("float32", "--dtype", "float32", 0.0, true),
    ("float16", "--dtype", "float16", 1.0 / 2048.0, true),
    ("bfloat16", "--dtype", "bfloat16", 1.0 / 256.0, false),
    ("int8", "--quant", "int8", 0.5 / 127.0, false),
    ("q4-k", "--quant", "q4_k", 0.5 / 15.0, false),
    ("nf4", "--quant", "nf4", 0.152, false),
    ("q4-0", "--quant", "q4_0", 0.5 / 8.0, false),
];

/// What float32 is allowed, as the largest difference over the root mean square of activations.
const FLOAT32: f64 = 1e-4;

/// Four blocks with seven products each add up this many roundings of the largest size; found were at most 3.
const ROUNDINGS: f64 = 8.0;

#[test]
fn clients_get_from_servers_in_every_weight_format_what_its_bits_can_tell() {
    let hub = Hub::new().unwrap();
    let names = FORMATS.map(|(format, ..)| format!("sepal/tiny-{format}"));
    for name in &names {
        hub.add(name).unwrap();
    }
    let flags: Vec<String> = FORMATS
        .iter()
        .zip(&names)
        .flat_map(|((_, flag, value, ..), name)| [(*flag).to_owned(), format!("{name}={value}")])
        .collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let models: Vec<&str> = names.iter().map(String::as_str).collect();
    // Two servers with half of each model, so that activations go on from one to the other.
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let mut servers = ["0:2", "2:4"].map(|blocks| {
        let server = Node::serve_models(&hub, &models, blocks, &bootstrap.addr, &flags);
        (blocks, server.unwrap())
    });
    for (blocks, server) in &mut servers {
        for (format, ..) in FORMATS {
            let line = server.process.wait_line(&format!("online tiny-{format}-hf"), STARTUP);
            assert_eq!(line.unwrap(), *blocks);
        }
    }
    let order = json!({
        "model": hub::MODEL,
        "models": models,
        "initial_peers": [bootstrap.addr],
        "prompts": [PROMPT],
        "max_new_tokens": N_TOKENS,
    });
    let results = python::run(&hub, "formats.py", &order).unwrap();
    let want = node::ids(&results["want"]).unwrap();
    for ((format, _, _, rounding, same_text), name) in FORMATS.into_iter().zip(&names) {
        let relative = results["relative"][name].as_f64().unwrap();
        println!("{format}: {relative}");
        let bound = FLOAT32 + ROUNDINGS * rounding;
        assert!(relative <= bound, "{format}: {relative} is more than {bound}");
        assert!(relative > 0.01 * rounding, "{format}: {relative} is another format");
        let theirs = node::ids(&results["got"][name]).unwrap();
        let ours = node::generate_with(&hub, (name, &bootstrap.addr), (&PROMPT, N_TOKENS), &[]).unwrap();
        let ours = node::ids(&ours["token_ids"]).unwrap();
        assert_eq!((ours.len(), theirs.len()), (N_TOKENS, N_TOKENS), "{format}");
        if same_text {
            assert_eq!((&ours, &theirs), (&want, &want), "{format}");
        }
    }
}
