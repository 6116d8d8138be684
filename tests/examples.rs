//! The examples, each by itself as a newcomer runs it: it ends with success, and prints what its header says it prints. In a
//! header `…` stands for any text of a line, and a line of nothing else for any lines. `cargo test` builds examples along with
//! the tests.
#![expect(clippy::unwrap_used, reason = "all of this program is a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longest time for one example, most of which take a second.
const LIMIT: Duration = Duration::from_secs(120);

/// Lines of an example that is to be copied from.
const MAX_LINES: usize = 100;

/// What the header of an example says that it prints when it is run without arguments.
fn expected(name: &str, source: &str) -> Vec<String> {
    let header = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let command = format!("$ cargo run --release --example {name}");
    let printed = header.skip_while(|line| *line != command).skip(1);
    let printed: Vec<String> = printed
        .take_while(|line| !line.starts_with("```"))
        .map(one_space)
        .collect();
    assert!(
        !printed.is_empty(),
        "the header of {name} does not say what {command} prints"
    );
    printed
}

fn one_space(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `line` is `pattern` with something in the place of each `…`.
fn fits(pattern: &str, line: &str) -> bool {
    match pattern.split_once('…') {
        None => pattern == line,
        Some((before, rest)) => line.strip_prefix(before).is_some_and(|line| {
            let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
            ends.skip(1).any(|at| fits(rest, &line[at..]))
        }),
    }
}

fn all_fit(patterns: &[String], lines: &[String]) -> bool {
    match patterns.split_first() {
        None => lines.is_empty(),
        Some((any, rest)) if any == "…" => (0..=lines.len()).any(|skipped| all_fit(rest, &lines[skipped..])),
        Some((pattern, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| fits(pattern, line) && all_fit(rest, others)),
    }
}

/// The program, which lies in a folder beside that of this test.
fn program(name: &str, source: &Path) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    assert!(
        changed(&program) >= changed(source),
        "{} is missing or older than its source: cargo build --examples",
        program.display()
    );
    program
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/{name}.rs"))
}

fn run(name: &str) {
    let source = source(name);
    let program = program(name, &source);
    let source = fs::read_to_string(source).unwrap();
    let lines = source.lines().count();
    assert!(
        lines <= MAX_LINES,
        "{name} has {lines} lines, an example at most {MAX_LINES}"
    );
    let expected = expected(name, &source);
    let output = finish(Command::new(program).env_clear());
    let printed: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(one_space).collect();
    assert!(output.status.success(), "{output:?}");
    assert!(
        all_fit(&expected, &printed),
        "{name} printed\n  {}\nand its header says\n  {}",
        printed.join("\n  "),
        expected.join("\n  ")
    );
}

/// What it printed. One that hangs is ended.
fn finish(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn p2p_node() {
    run("p2p_node");
}

#[test]
fn dht_node() {
    run("dht_node");
}

#[test]
fn petals_visible() {
    run("petals_visible");
}

#[test]
fn tensor_exchange() {
    run("tensor_exchange");
}

#[test]
fn forward_pass() {
    run("forward_pass");
}

#[test]
fn quantization() {
    run("quantization");
}

#[test]
fn tiny_swarm() {
    run("tiny_swarm");
}

#[test]
fn generate() {
    run("generate");
}

#[test]
fn custom_client() {
    run("custom_client");
}

#[test]
fn a_tool_that_is_not_told_whom_or_what_to_ask_says_so() {
    for (name, line, missing) in [
        ("whois", "demo-hf 8", "INITIAL_PEER"),
        ("sessions_bench", "demo 1 1 /ip4/127.0.0.1/tcp/9", "PREFIX"),
    ] {
        let program = program(name, &source(name));
        let output = finish(Command::new(program).args(line.split(' ')).env_clear());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(missing), "{name}: {output:?}");
    }
}

#[test]
fn a_header_is_compared_line_by_line() {
    let lines = |text: &str| text.lines().map(one_space).collect::<Vec<_>>();
    let header = lines("at …\nsize … MB\n…\ndone");
    assert!(all_fit(&header, &lines("at /ip4\nsize  4 MB\none\ntwo\ndone")));
    assert!(all_fit(&header, &lines("at /ip4\nsize 4 MB\ndone")));
    for other in [
        "at\nsize 4 MB\ndone",
        "at /ip4\nsize 4 GB\ndone",
        "at /ip4\nsize 4 MB\ndone\nmore",
        "at /ip4",
    ] {
        assert!(!all_fit(&header, &lines(other)), "{other}");
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn cuda_benchmarks_of_blocks_print_figures_for_every_format() {
    let program = program("card_bench", &source("card_bench"));
    let output = finish(Command::new(program).args(["--shape", "tiny", "--quick"]));
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.lines().count(), 6, "{printed}");
    for line in printed.lines() {
        let found: serde_json::Value = serde_json::from_str(line).unwrap();
        let tables = ["decode_s", "decode_of_read", "prefill_s", "prefill_of_peak"];
        let tables = tables.map(|key| found[key].as_object().unwrap());
        assert_eq!(tables.map(serde_json::Map::len), [4, 4, 2, 2], "{line}");
        let alone = ["block_bytes", "read_gb_s", "peak_tflop_s"].map(|key| &found[key]);
        let mut figures = alone
            .into_iter()
            .chain(tables.into_iter().flat_map(|table| table.values()));
        let is_figure = |figure: &serde_json::Value| figure.as_f64().is_some_and(|n| n.is_finite() && n > 0.0);
        assert!(figures.all(is_figure), "{line}");
    }
}
