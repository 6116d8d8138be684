//! What the program says when something is wrong, and how it ends: the real binary, no peers.

use std::{fs, os::unix::fs::PermissionsExt};

use interop_tests::{
    ANSWER, STARTUP,
    hub::{Hub, MODEL},
    node::{Node, sepal},
    process::Process,
};

/// Exit code of a command line that cannot be understood; everything else that fails exits with 1.
const USAGE: i32 = 2;
const NOBODY: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d";

/// Runs the program to its end: exit code, stdout, stderr.
fn run(hub: &Hub, arguments: &[&str]) -> (i32, String, String) {
    let mut process = Process::start("sepal", &mut sepal(hub, arguments).unwrap()).unwrap();
    let status = process.wait_exit(STARTUP).unwrap();
    let said = process.said();
    (status.code().unwrap_or(-1), said.out, said.err)
}

/// The program fails with `code`, prints nothing on stdout, and its complaint contains each of `texts`.
fn refuses(hub: &Hub, arguments: &str, code: i32, texts: &[&str]) {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let (got, out, err) = run(hub, &arguments);
    assert_eq!(got, code, "{arguments:?}: {err}");
    assert_eq!(out, "", "{arguments:?}");
    for text in texts {
        assert!(err.contains(text), "{arguments:?} does not say {text:?}: {err}");
    }
}

#[test]
fn a_bad_command_line_is_explained_by_its_flag() {
    let hub = Hub::new().unwrap();
    for (arguments, text) in [
        ("serve demo --new-swarm --blocks 4", "--blocks"),
        ("serve demo --new-swarm --blocks 4:4", "contains no blocks"),
        ("serve demo --new-swarm --num-blocks 0", "--num-blocks"),
        ("serve demo --new-swarm --throughput fast", "tokens per second"),
        ("serve demo --new-swarm --dtype int3", "bfloat16"),
        ("serve demo --new-swarm --step-timeout 0", "positive number of seconds"),
        ("serve demo --new-swarm --listen nowhere", "--listen"),
        ("serve", "MODEL"),
        ("generate demo --initial-peers /ip4/127.0.0.1/tcp/9", "--prompt"),
        ("bootstrap --port 99999", "--port"),
        ("eligible demo --quant int3", "q4_k"),
        ("completions ksh", "fish"),
        ("sing", "sing"),
    ] {
        refuses(&hub, arguments, USAGE, &[text]);
    }
}

#[test]
fn what_cannot_work_is_said_with_its_cause() {
    let hub = Hub::new().unwrap();
    let generate = format!("generate demo --prompt hi --initial-peers {NOBODY}");
    let one = format!("{generate} --temperature -1");
    let two = format!("{generate} --top-p 2");
    for (arguments, texts) in [
        (
            "serve ./nothing --new-swarm",
            &["there is no folder ./nothing"] as &[&str],
        ),
        ("serve org/model --new-swarm", &["org/model", "HF_HUB_OFFLINE"]),
        ("serve demo --new-swarm --blocks 0:99", &["--blocks 0:99", "8 blocks"]),
        (
            "serve demo --new-swarm --blocks 0:2 --num-blocks 2",
            &["--blocks", "--num-blocks", "exclude each other"],
        ),
        (
            "serve demo --new-swarm --num-blocks 99",
            &["--num-blocks 99", "8 blocks"],
        ),
        ("serve demo --new-swarm --dht-prefix a.b", &["--dht-prefix"]),
        ("eligible ./nothing", &["there is no folder ./nothing"]),
        ("benchmark demo --num-blocks 9", &["--num-blocks 9", "between 1 and 8"]),
        ("serve demo --new-swarm --balance-quality -1", &["--balance-quality"]),
        (
            "serve demo --new-swarm --public-ip 192.0.2.1 --port 0",
            &["--public-ip", "--port"],
        ),
        (
            "generate demo --prompt hi --initial-peers /ip4/127.0.0.1/tcp/9",
            &["--initial-peers", "/p2p/PEER_ID"],
        ),
        (&generate, &["cannot join the swarm", "--initial-peers", NOBODY]),
        (&one, &["--temperature -1"]),
        (&two, &["--top-p 2"]),
    ] {
        refuses(&hub, arguments, 1, texts);
    }
    let too_large = format!("generate {MODEL} --prompt-ids 999999 --initial-peers {NOBODY}");
    refuses(&hub, &too_large, 1, &["--prompt-ids", "999999"]);
}

#[test]
fn an_api_that_cannot_be_says_why_before_it_starts_anything() {
    let hub = Hub::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let key = "0123456789abcdef0123456789abcdef\n";
    let (open, empty) = (file("open", key, 0o644), file("empty", "# nobody\n", 0o600));
    let (short, good) = (file("short", "secret\n", 0o600), file("good", key, 0o600));
    let none = folder.path().join("none").display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let api = format!("api demo --initial-peers {NOBODY} --http");
    for command in [api.as_str(), "demo --http"] {
        for (keys, texts) in [
            (
                &open,
                &["others can read the API keys in ", &format!("chmod 600 {open}")] as &[&str],
            ),
            (&empty, &["has no keys", "openssl rand"]),
            (&short, &["short, line 1", "16 characters"]),
            (&none, &["cannot read the API keys in ", "No such file"]),
        ] {
            let arguments = format!("{command} 127.0.0.1:0 --api-keys {keys}");
            refuses(&hub, &arguments, 1, texts);
        }
        let arguments = format!("{command} {taken} --api-keys {good}");
        refuses(
            &hub,
            &arguments,
            1,
            &[&format!("--http {taken}"), "free port", "in use"],
        );
    }
    let arguments = format!("{api} 127.0.0.1:0 --api-keys {good}");
    refuses(
        &hub,
        &arguments,
        1,
        &["cannot join the swarm", "--initial-peers", "--new-swarm"],
    );
}

#[test]
fn a_broken_model_is_named_by_file_and_tensor() {
    let hub = Hub::new().unwrap();
    let snapshot = fs::read_dir(hub.path().join("models--sepal--tiny-llama/snapshots"))
        .unwrap()
        .next()
        .unwrap();
    let weights = snapshot.unwrap().path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let serve = format!("serve {MODEL} --new-swarm --blocks 0:4 --listen /ip4/127.0.0.1/tcp/0 --throughput 1");
    let arguments: Vec<&str> = serve.split_whitespace().collect();
    let complaint = |content: &[u8]| {
        fs::write(&weights, content).unwrap();
        let (code, _, err) = run(&hub, &arguments);
        assert_eq!(code, 1, "{err}");
        err
    };
    let cut = complaint(&whole[..whole.len() / 2]);
    assert!(cut.contains("model.safetensors"), "{cut}");
    let renamed = String::from_utf8_lossy(&whole[8..64 << 10])
        .find("model.layers.2.mlp.up_proj")
        .unwrap()
        + 8;
    let mut missing = whole.clone();
    missing[renamed + "model.layers.2.mlp.".len()] = b'x';
    let missing = complaint(&missing);
    assert!(missing.contains("model.layers.2.mlp.up_proj.weight"), "{missing}");
}

#[test]
fn ctrl_c_ends_a_bootstrap_node_and_a_server_with_success() {
    let hub = Hub::new().unwrap();
    let mut bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let mut server = Node::serve(&hub, "0:4", &[&bootstrap.addr], &[]).unwrap();
    server.online("0:4").unwrap();
    let join = server.process.wait_line("join with: ", ANSWER).unwrap();
    assert_eq!(join, format!("sepal serve {MODEL} --initial-peers {}", server.addr));
    for node in [&mut server, &mut bootstrap] {
        node.process.interrupt();
        assert!(node.process.wait_exit(ANSWER).unwrap().success());
    }
}

#[test]
fn a_taken_port_is_named() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let port = bootstrap.addr.split('/').nth(4).unwrap().to_owned();
    let arguments = format!("bootstrap --listen /ip4/127.0.0.1/tcp/{port}");
    let addr = format!("cannot listen on /ip4/127.0.0.1/tcp/{port}");
    refuses(
        &hub,
        &arguments,
        1,
        &[&addr, "hint: another program may have that port", "--port"],
    );
}

#[test]
fn a_machine_describes_itself() {
    let hub = Hub::new().unwrap();
    let (code, out, err) = run(&hub, &["info", "--no-measure", "--threads", "1", "--json"]);
    assert_eq!(code, 0, "{err}");
    let info: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(info["kernels"]["threads"], 1);
    assert!(info["limits"].is_null(), "{info}");
    assert!(info["memory"]["usable"].as_u64().unwrap() > 0, "{info}");
    let formats = info["formats"].as_array().unwrap();
    let bits = |name: &str| formats.iter().find(|format| format["name"] == name).unwrap()["bits_per_weight"].clone();
    let is_coded = ["AVX2", "AVX-512", "AVX-512 BF16"]
        .iter()
        .any(|name| info["kernels"]["dense"] == *name);
    let bf16 = if is_coded { 12.0 } else { 16.0 };
    assert_eq!((bits("bfloat16"), bits("q8_0")), (bf16.into(), 8.5.into()));
}
