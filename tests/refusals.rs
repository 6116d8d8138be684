//! What the program says, and how it ends, when a command cannot be done: one row each. Those of nodes and models are tested
//! with peers in `interop-tests`, those of the configuration in `configuration.rs`.
#![expect(clippy::unwrap_used, reason = "all of this program is a test")]

#[path = "common/program.rs"]
mod program;

use std::fs;

use self::program::sepal;

/// Exit code of a command line that cannot be understood; everything else that fails exits with 1.
const USAGE: i32 = 2;
const FAILED: i32 = 1;

/// Nobody is there.
const NOBODY: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d";

/// A command line, its exit code, and what it says on stderr.
type Row<'a> = (&'a str, i32, &'a [&'a str]);

/// A folder with a file that is none of what it is taken for below.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ordinary"), "just text\n").unwrap();
    fs::write(folder.path().join("binary"), [0xff, 0xfe, b'\n']).unwrap();
    folder
}

fn refuses(rows: &[Row<'_>]) {
    let folder = folder();
    for (line, code, texts) in rows {
        let line = line.replace("NOBODY", NOBODY);
        let output = sepal(folder.path(), &line).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{line}: {said}");
        for text in *texts {
            assert!(said.contains(text), "{line} does not say {text:?}: {said}");
        }
    }
}

#[test]
fn commands_to_a_running_node_say_which_node_they_miss() {
    let nobody: &[&str] = &[
        "looked for nodes in ",
        "no node of yours runs on this machine",
        "sepal serve",
        "--control",
    ];
    refuses(&[
        ("status", FAILED, nobody),
        ("peers", FAILED, nobody),
        ("sessions", FAILED, nobody),
        ("swarms", FAILED, nobody),
        ("connect NOBODY", FAILED, nobody),
        ("disconnect swarm-2", FAILED, nobody),
        ("top", FAILED, nobody),
        ("pause", FAILED, nobody),
        ("resume", FAILED, nobody),
        ("drain", FAILED, nobody),
        ("stop", FAILED, nobody),
        ("log info", FAILED, nobody),
        ("status --node abc", FAILED, nobody),
        (
            "stop --control missing.sock",
            FAILED,
            &["no node listens on missing.sock", "No such file"],
        ),
        (
            "log --control ordinary",
            FAILED,
            &["no node listens on ordinary", "refused"],
        ),
        (
            "status --node a --control b",
            USAGE,
            &["'--node <NAME>' cannot be used with '--control <PATH>'"],
        ),
        (
            "drain --timeout 0",
            USAGE,
            &["--timeout <SECONDS>", "a positive number of seconds, got \"0\""],
        ),
        (
            "top --period never",
            USAGE,
            &["--period <SECONDS>", "a positive number of seconds, got \"never\""],
        ),
    ]);
}

#[test]
fn a_variable_for_the_log_that_is_not_understood_is_said() {
    let folder = folder();
    let mut command = sepal(folder.path(), "status");
    let output = command.env("RUST_LOG", "sepal=loud").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("warning: RUST_LOG does not count: ") && said.contains("got \"sepal=loud\""),
        "{said}"
    );
}

#[test]
fn values_with_which_a_server_is_of_no_use_are_refused() {
    let positive: &[&str] = &["a positive number, got \"0\""];
    refuses(&[
        ("serve demo --attn-cache-tokens 0", USAGE, positive),
        ("serve demo --attn-cache-tokens demo=0", USAGE, positive),
        ("serve demo --max-batch-size 0", USAGE, positive),
        ("serve demo --inference-max-length 0", USAGE, positive),
        (
            "serve demo --throughput 1e300",
            USAGE,
            &["--throughput", "nobody believes more than 1e9 tokens per second"],
        ),
        (
            "serve demo --dtype int8",
            USAGE,
            &["expected one of auto, float32, bfloat16, float16, got \"int8\""],
        ),
        (
            "serve demo --kv-dtype q4",
            USAGE,
            &["expected one of auto, float32, bfloat16, float16, int8, got \"q4\""],
        ),
    ]);
}

#[test]
fn commands_about_the_machine_say_what_they_cannot_do() {
    refuses(&[
        (
            "info --threads 0",
            USAGE,
            &["--threads <N>", "expected how many, from 1"],
        ),
        (
            "info --no-measure --save",
            USAGE,
            &["'--no-measure' cannot be used with '--save'"],
        ),
        ("eligible ./nothing", FAILED, &["there is no folder ./nothing"]),
        ("eligible demo --quant int3", USAGE, &["'int3'", "--quant", "q4_k"]),
        (
            "eligible demo --initial-peers /ip4/127.0.0.1/tcp/9",
            FAILED,
            &["does not end in /p2p/PEER_ID"],
        ),
        (
            "eligible demo --threads x",
            USAGE,
            &["--threads <N>", "expected how many, from 1"],
        ),
        ("benchmark ./nothing", FAILED, &["there is no folder ./nothing"]),
        (
            "benchmark demo --num-blocks 0",
            FAILED,
            &["--num-blocks 0 is not between 1 and 8, the blocks of demo"],
        ),
        (
            "benchmark demo --device gpu",
            USAGE,
            &["--device <auto|cpu|cuda[:N,…]>", "cuda"],
        ),
    ]);
    let folder = folder();
    let file = folder.path().join("ordinary");
    let mut command = sepal(folder.path(), "info --save");
    let output = command.env("XDG_CACHE_HOME", file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FAILED), "{said}");
    assert!(
        said.contains("error: cannot write ") && said.contains("ordinary/sepal/machine.json: Not a directory"),
        "{said}"
    );
}

#[test]
fn commands_with_files_name_the_file_and_the_cause() {
    refuses(&[
        (
            "receipts verify missing",
            FAILED,
            &["cannot read missing: No such file"],
        ),
        ("receipts verify ordinary", FAILED, &["ordinary, line 1: not a receipt"]),
        ("receipts verify binary", FAILED, &["cannot read binary after line 0"]),
        ("receipts verify", USAGE, &["<FILE>"]),
        ("receipts", USAGE, &["verify"]),
        (
            "generate demo --prompt hi --receipts ordinary/x --initial-peers NOBODY",
            FAILED,
            &["cannot keep receipts in ordinary/x: Not a directory"],
        ),
        (
            "man --dir ordinary/x",
            FAILED,
            &["cannot make ordinary/x: Not a directory"],
        ),
        (
            "completions ksh",
            USAGE,
            &["'ksh'", "[possible values: bash, elvish, fish, powershell, zsh]"],
        ),
        ("completions", USAGE, &["<SHELL>"]),
        (
            "init ordinary",
            USAGE,
            &["ordinary is there already; --force overwrites it"],
        ),
        (
            "init nowhere/sepal.toml",
            USAGE,
            &["cannot write nowhere/sepal.toml: No such file"],
        ),
        ("init - -- sing", USAGE, &["unrecognized subcommand 'sing'"]),
        ("init - -- serve demo --prot 1", USAGE, &["'--prot'", "'--port'"]),
        ("config sing", USAGE, &["unrecognized subcommand 'sing'"]),
        (
            "config --config missing.toml",
            USAGE,
            &["cannot read missing.toml: No such file"],
        ),
        (
            "serve demo --config missing.toml",
            USAGE,
            &["cannot read missing.toml: No such file"],
        ),
        (
            "serve demo --control ordinary --new-swarm --listen /ip4/127.0.0.1/tcp/0 --throughput 1",
            FAILED,
            &["ordinary is there and is no socket: give --control another path"],
        ),
        (
            "swarm-key ordinary",
            FAILED,
            &["ordinary exists already and was not changed"],
        ),
    ]);
}

#[test]
fn jobs_that_cannot_be_submitted_say_why() {
    refuses(&[
        ("job", USAGE, &["submit"]),
        ("job submit --prompt x", USAGE, &["--model <MODEL>"]),
        ("job submit --model demo", USAGE, &["--prompt <TEXT>"]),
        (
            "job submit --model ./nothing --prompt x",
            FAILED,
            &["there is no folder ./nothing"],
        ),
        (
            "job submit --model demo --prompt x --temperature 101",
            USAGE,
            &["'101'", "a number from 0 to 100"],
        ),
        (
            "job submit --model demo --prompt x --priority high",
            USAGE,
            &["'high'", "--priority <N>"],
        ),
        (
            "job submit --model demo --prompt x --initial-peers NOBODY",
            FAILED,
            &["cannot join the swarm", "--initial-peers", "Connection refused"],
        ),
        (
            "serve demo demo --jobs --new-swarm",
            FAILED,
            &["both have the prefix demo-hf", "--dht-prefix demo=PREFIX"],
        ),
    ]);
}
