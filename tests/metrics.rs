//! What nodes say at `/metrics`, read by the rules of the format, and the dashboard that is made of it: every name and
//! label that it uses is there.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "all of this program is a test")]

#[path = "../src/metrics/testing.rs"]
mod exposition;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Lines, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

/// Names of samples, each with those of its labels.
type Samples = BTreeMap<String, BTreeSet<String>>;

/// A process that ends with the test.
struct Node {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn sepal(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sepal"));
    command
        .args(line.split(' '))
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder);
    command
}

impl Node {
    fn start(folder: &Path, line: &str) -> Self {
        let mut child = sepal(folder, line)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What follows `text` in the next line that has it.
    fn says(&mut self, text: &str) -> String {
        let mut lines = self.lines.by_ref().map(Result::unwrap);
        let found = lines.find_map(|line| Some(line.split_once(text)?.1.trim().to_owned()));
        found.unwrap_or_else(|| panic!("it ended without {text:?}"))
    }
}

fn ask(address: &str, request: &str, body: &str) -> String {
    let address = address.trim_start_matches("http://").split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    body.to_owned()
}

/// All that the commands with `/metrics` say there: an API before a swarm, a server that takes jobs, a bootstrap node.
fn samples() -> Vec<(&'static str, Samples)> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut demo = Node::start(folder, "demo --http 127.0.0.1:0 --no-control");
    let listen = "--listen /ip4/127.0.0.1/tcp/0 --http 127.0.0.1:0 --no-control";
    let mut bootstrap = Node::start(folder, &format!("bootstrap {listen}"));
    let entry = bootstrap.says("--initial-peers ");
    let mut server = Node::start(
        folder,
        &format!("serve demo --blocks 0:8 --throughput 1 --jobs --initial-peers {entry} {listen}"),
    );
    let of_server = server.says("health map ");
    server.says("online ");
    let job = format!("job submit --model demo --initial-peers {entry} --max-new-tokens 2 --prompt Hello");
    assert!(sepal(folder, &job).status().unwrap().success());

    let api = demo.says("api: ");
    let body = r#"{"model":"demo","prompt":"Hello","max_tokens":3}"#;
    ask(&api, "POST /v1/completions", body);
    let of_bootstrap = bootstrap.says("health map ");
    [("demo", api), ("serve", of_server), ("bootstrap", of_bootstrap)]
        .map(|(command, site)| {
            let text = ask(&site, "GET /metrics", "");
            if command == "serve" {
                let done = "sepal_jobs_ended_total{model=\"demo-hf\",end=\"done\"} 1";
                assert!(text.lines().any(|line| line == done), "{text}");
            }
            (command, exposition::check(&text))
        })
        .into()
}

/// The names of metrics in an expression, and those of labels.
fn names_in(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = expression;
    let mut in_labels = false;
    while let Some(c) = rest.chars().next() {
        let word = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
        if word.starts_with("sepal_") || word.starts_with("process_") {
            metrics.insert(word.to_owned());
        } else if ["by", "ignoring"].contains(&word) {
            in_labels = true;
        } else if in_labels && !word.is_empty() {
            labels.insert(word.to_owned());
        }
        match c {
            '{' => in_labels = true,
            '}' | ')' => in_labels = false,
            '"' => {
                rest = rest[1..].split_once('"').expect(expression).1;
                continue;
            }
            _ => {}
        }
        rest = &rest[word.len().max(c.len_utf8())..];
    }
    (metrics, labels)
}

#[test]
fn expressions_are_taken_apart() {
    let expression =
        r#"sum by (le, model) (rate(sepal_a_total{instance=~"$i", status=~"5.."}[1m])) / ignoring (state) process_b"#;
    let (metrics, labels) = names_in(expression);
    assert_eq!(
        metrics,
        BTreeSet::from(["sepal_a_total", "process_b"].map(str::to_owned))
    );
    let expected = ["le", "model", "instance", "status", "state"].map(str::to_owned);
    assert_eq!(labels, BTreeSet::from(expected));
}

/// All that is told, by whichever node; each tells some of it.
fn told() -> Samples {
    let mut known = Samples::new();
    for (command, samples) in samples() {
        for name in [
            "sepal_build_info",
            "sepal_uptime_seconds",
            "sepal_node_connected_peers",
            "process_start_time_seconds",
        ] {
            assert!(samples.contains_key(name), "{command} tells nothing of {name}");
        }
        for (name, labels) in samples {
            known.entry(name).or_default().extend(labels);
        }
    }
    known
}

#[test]
fn every_node_tells_what_it_counts_and_the_dashboard_shows_nothing_else() {
    let known = told();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let (mut used, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for target in targets {
        assert_eq!(target["datasource"]["uid"], "${datasource}");
        let expression = target["expr"].as_str().unwrap();
        let (metrics, mut labels) = names_in(expression);
        let legend = target["legendFormat"].as_str().unwrap();
        labels.extend(
            legend
                .split("{{")
                .skip(1)
                .map(|part| part.split("}}").next().unwrap().to_owned()),
        );
        assert!(!metrics.is_empty(), "{expression}");
        // Whoever reads the metrics adds where they are from.
        let mut there = BTreeSet::from(["instance".to_owned()]);
        for metric in &metrics {
            there.extend(
                known
                    .get(metric)
                    .unwrap_or_else(|| panic!("{metric} of {expression} is told by nobody"))
                    .clone(),
            );
        }
        assert!(
            labels.is_subset(&there),
            "{labels:?} of {legend:?}, {expression}: there are {there:?}"
        );
        used.extend(metrics);
    }
    for panel in panels {
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{panel} has no id of its own"
        );
    }
    for topic in [
        "sepal_server_",
        "sepal_api_",
        "sepal_model_",
        "sepal_jobs_",
        "sepal_node_",
        "process_",
    ] {
        assert!(
            used.iter().any(|name| name.starts_with(topic)),
            "nothing is shown of {topic}"
        );
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!(variables[0]["type"], "datasource");
    assert_eq!(variables[0]["name"], "datasource");
}
