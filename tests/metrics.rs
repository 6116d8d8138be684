//! What nodes say at `/metrics`, read by the rules of the format, and the dashboard that is made of it: every name and
//! label that it uses is there.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "all of this program is a test")]

#[path = "../src/metrics/testing.rs"]
mod exposition;
#[path = "common/node.rs"]
mod node;
#[path = "common/program.rs"]
mod program;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Stdio,
};

use serde_json::Value;

use self::{
    node::{Node, ask},
    program::sepal,
};

/// Names of samples, each with those of its labels.
type Samples = BTreeMap<String, BTreeSet<String>>;

/// All that the commands with `/metrics` say there: an API before a swarm, a server in two swarms that takes jobs, a
/// bootstrap node.
fn samples() -> Vec<(&'static str, Samples)> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let start = |line: &str| Node::start(sepal(folder, line).stderr(Stdio::null()));
    let mut demo = start("demo --http 127.0.0.1:0 --no-control");
    let listen = "--listen /ip4/127.0.0.1/tcp/0 --http 127.0.0.1:0";
    let [mut bootstrap, mut other] = [(); 2].map(|()| start(&format!("bootstrap {listen} --no-control")));
    let [entry, beside] = [&mut bootstrap, &mut other].map(|node| node.says("--initial-peers "));
    let mut server = start(&format!(
        "serve demo --blocks 0:8 --throughput 1 --jobs --control socket --initial-peers {entry} {listen}"
    ));
    let of_server = server.says("health map ");
    server.says("online ");
    let connect = format!("connect {beside} --control socket");
    assert!(sepal(folder, &connect).status().unwrap().success());
    let text = ask(&of_server, "GET /metrics", &[], "");
    let mut lines = text.lines();
    let connected = lines.find_map(|line| line.strip_prefix("sepal_node_connected_peers "));
    // The node of either swarm.
    assert!(connected.unwrap().parse::<f64>().unwrap() >= 2.0, "{text}");
    let job = format!("job submit --model demo --initial-peers {entry} --max-new-tokens 2 --prompt Hello");
    assert!(sepal(folder, &job).status().unwrap().success());

    let api = demo.says("api: ");
    let body = r#"{"model":"demo","prompt":"Hello","max_tokens":3}"#;
    ask(&api, "POST /v1/completions", &[], body);
    let of_bootstrap = bootstrap.says("health map ");
    [("demo", api), ("serve", of_server), ("bootstrap", of_bootstrap)]
        .map(|(command, site)| {
            let text = ask(&site, "GET /metrics", &[], "");
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
    // All nodes are those that there are, and not all that Prometheus knows.
    assert_eq!(variables[1]["name"], "instance");
    assert!(variables[1]["allValue"].is_null(), "{}", variables[1]);
}
