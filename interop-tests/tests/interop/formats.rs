//! Every weight format through real programs: a Petals client and ours generate through servers of ours that keep the same
//! weights in different formats, and get what transformers computes with the weights as they are, within what a format can
//! tell.

use std::fs;

use interop_tests::{
    STARTUP,
    hub::{self, Hub, repository},
    node::{self, Node},
    python,
};
use serde_json::{Value, json};

const PROMPT: [u32; 7] = [1, 17, 42, 99, 200, 5, 250];
const N_TOKENS: usize = 12;

/// A format, the flag that chooses it, the rounding of a number (root mean square, over that of the numbers), and whether
/// the text stays the same. Floating-point numbers are rounded by up to half of their last bit. Blocks of 32 normally
/// distributed weights reach 2.1 of their deviation: a step of int8 is a 127th of that, of q4_0 an 8th, of q4_k a 15th of
/// the range, and a rounding 1/√12 of a step; int8 activations add as much to int8 weights. NF4's is that of its quantiles.
const FORMATS: [(&str, &str, &str, f64, bool); 7] = [
    ("float32", "--dtype", "float32", 4e-8, true),
    ("float16", "--dtype", "float16", 2e-4, true),
    ("bfloat16", "--dtype", "bfloat16", 1.6e-3, false),
    ("int8", "--quant", "int8", 7e-3, false),
    ("q4-k", "--quant", "q4_k", 0.07, false),
    ("nf4", "--quant", "nf4", 0.09, false),
    ("q4-0", "--quant", "q4_0", 0.076, false),
];

/// How much larger the differences after four blocks are, seven products and two norms each, of weights that are random and
/// 64 wide, so that nothing averages out. Found were 4.6 to 7.5 roundings, and 21 of float32, whose sums are rounded too.
const ROUNDINGS: f64 = 10.0;
const ROUNDINGS_OF_FLOAT32: f64 = 50.0;

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
        let most = if format == "float32" {
            ROUNDINGS_OF_FLOAT32
        } else {
            ROUNDINGS
        };
        assert!(relative <= most * rounding, "{format}: {relative}");
        // Less would be another format.
        assert!(relative >= rounding, "{format}: {relative}");
        let theirs = node::ids(&results["got"][name]).unwrap();
        let ours = node::generate_with(&hub, (name, &bootstrap.addr), (&PROMPT, N_TOKENS), &[]).unwrap();
        let ours = node::ids(&ours["token_ids"]).unwrap();
        assert_eq!((ours.len(), theirs.len()), (N_TOKENS, N_TOKENS), "{format}");
        if same_text {
            assert_eq!((&ours, &theirs), (&want, &want), "{format}");
        }
    }
}

/// Without `--quant` a server says which formats the files have; with `none` it computes what transformers does with the
/// weights that are in them.
#[test]
fn files_in_blocks_are_served_as_they_are_or_widened() {
    let hub = Hub::new().unwrap();
    let vectors = repository().join("protocol/vectors/sepal").canonicalize().unwrap();
    let path = |name: &str| vectors.join(name).to_str().unwrap().to_owned();
    let (gguf, packed) = (path("gguf/llama-q4_k_m.gguf"), path("packed/awq"));
    let reference: Value =
        serde_json::from_slice(&fs::read(vectors.join("packed/awq/reference.json")).unwrap()).unwrap();
    let prompt = node::ids(&reference["input_ids"][0]).unwrap();
    let prompt: Vec<String> = prompt.iter().map(u32::to_string).collect();
    let flags = [
        "--prompt-ids",
        &prompt.join(","),
        "--max-new-tokens",
        "6",
        "--dht-prefix",
    ];
    for quant in ["auto", "none"] {
        let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
        let prefixes = [format!("{gguf}=in-gguf"), format!("{packed}=in-awq")];
        let more = [
            "--quant",
            quant,
            "--dht-prefix",
            &prefixes[0],
            "--dht-prefix",
            &prefixes[1],
        ];
        let first = format!("{gguf}=0:1");
        let more = [&more[..], &["--blocks", &first]].concat();
        let mut server = Node::serve_models(&hub, &[&gguf, &packed], "0:2", &bootstrap.addr, &more).unwrap();
        for prefix in ["in-gguf", "in-awq"] {
            server.process.wait_line(&format!("online {prefix}"), STARTUP).unwrap();
        }
        let said = server.process.said().err;
        let weights = match quant {
            "auto" => ["\"q4_k\"", "\"q8_0\""],
            _ => ["\"float32\""; 2],
        };
        for weights in weights {
            assert!(said.contains(&format!("weights={weights}")), "{quant}: {said}");
        }
        for (model, prefix) in [(&gguf, "in-gguf"), (&packed, "in-awq")] {
            let more = [&flags[..], &[prefix]].concat();
            let answer = node::generate_ids(&hub, (model, &bootstrap.addr), &more).unwrap();
            let found = node::ids(&answer["token_ids"]).unwrap();
            assert_eq!(found.len(), 6, "{answer}");
            if quant == "none" && prefix == "in-awq" {
                assert_eq!(found, node::ids(&reference["greedy"]).unwrap());
            }
        }
    }
}
