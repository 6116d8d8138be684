//! The program with a collector of OpenTelemetry: what that gets of a swarm, and that one which is away changes nothing.
//!
//! Messages are declared here as opentelemetry-proto 1.x has them, with the fields that are looked at.
#![expect(clippy::unwrap_used, reason = "all of this program is a test")]

#[path = "common/node.rs"]
mod node;
#[path = "common/program.rs"]
mod program;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use prost::Message;

use self::{
    node::{Node, ask},
    program::sepal,
};

const PROMPT: &str = "What is 3 plus 4?";

/// Everything that was sent to a path.
type Got = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A collector on a port of its own.
fn collector() -> (String, Got) {
    let (listener, got) = (TcpListener::bind("127.0.0.1:0").unwrap(), Got::default());
    let (address, all) = (listener.local_addr().unwrap(), got.clone());
    thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let all = all.clone();
            thread::spawn(move || serve(stream, &all));
        }
    });
    (format!("http://{address}"), got)
}

/// Takes requests until the other side hangs up.
fn serve(stream: TcpStream, all: &Got) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut path, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap().to_owned();
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            } else if let Some(value) = line.strip_prefix("content-type: ") {
                assert_eq!(value, "application/x-protobuf");
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        all.lock().unwrap().push((path, body));
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        if reader.get_mut().write_all(answer).is_err() {
            return;
        }
    }
}

/// A node that sends to `url` and listens to orders.
fn start(folder: &Path, line: &str, url: &str) -> Node {
    let log = fs::File::create(folder.join("log")).unwrap();
    let line = format!("{line} --control socket --otlp {url}");
    Node::start(sepal(folder, &line).env("RUST_LOG", "warn").stderr(log))
}

/// Stops it, and returns what it logged.
fn stop(folder: &Path, mut node: Node) -> String {
    assert!(sepal(folder, "stop --control socket").status().unwrap().success());
    assert!(node.child.wait().unwrap().success());
    fs::read_to_string(folder.join("log")).unwrap()
}

/// Runs a whole swarm that sends to `url`, asks it once, stops it, and returns what it logged.
fn swarm(folder: &Path, url: &str) -> String {
    let mut node = start(folder, "demo --http 127.0.0.1:0", url);
    let body = format!(r#"{{"model":"demo","prompt":"{PROMPT}","max_tokens":4}}"#);
    ask(&node.says("api: "), "POST /v1/completions", &[], &body);
    stop(folder, node)
}

/// `ExportTraceServiceRequest` or `ExportMetricsServiceRequest`, around `T`.
#[derive(Message)]
struct Request<T: Message + Default + Debug> {
    #[prost(message, repeated, tag = "1")]
    of_resources: Vec<OfResource<T>>,
}

/// `ResourceSpans` or `ResourceMetrics`.
#[derive(Message)]
struct OfResource<T: Message + Default + Debug> {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    of_scopes: Vec<OfScope<T>>,
}

/// `ScopeSpans` or `ScopeMetrics`.
#[derive(Message)]
struct OfScope<T: Message + Default + Debug> {
    #[prost(message, repeated, tag = "2")]
    them: Vec<T>,
}

#[derive(Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
}

#[derive(Message)]
struct Span {
    #[prost(bytes, tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes, tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes, tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
}

#[derive(Message)]
struct Metric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    unit: String,
    #[prost(message, optional, tag = "5")]
    gauge: Option<Numbers>,
    #[prost(message, optional, tag = "7")]
    sum: Option<Numbers>,
    #[prost(message, optional, tag = "9")]
    histogram: Option<Distributions>,
}

#[derive(Message)]
struct Numbers {
    #[prost(message, repeated, tag = "1")]
    points: Vec<Number>,
    #[prost(int32, tag = "2")]
    temporality: i32,
    #[prost(bool, tag = "3")]
    is_monotonic: bool,
}

#[derive(Message)]
struct Number {
    #[prost(fixed64, tag = "3")]
    time_unix_nano: u64,
    #[prost(double, tag = "4")]
    number: f64,
}

#[derive(Message)]
struct Distributions {
    #[prost(message, repeated, tag = "1")]
    points: Vec<Distribution>,
}

#[derive(Message)]
struct Distribution {
    #[prost(fixed64, tag = "4")]
    count: u64,
    #[prost(double, tag = "5")]
    sum: f64,
    #[prost(fixed64, repeated, tag = "6")]
    bucket_counts: Vec<u64>,
    #[prost(double, repeated, tag = "7")]
    explicit_bounds: Vec<f64>,
}

fn decoded<T: Message + Default + Debug>(got: &[(String, Vec<u8>)], path: &str) -> Vec<Request<T>> {
    let bodies = got.iter().filter(|(to, _)| to == path);
    bodies
        .map(|(_, body)| Request::decode(body.as_slice()).unwrap())
        .collect()
}

/// The numbers that were sent last.
fn last_metrics(got: &[(String, Vec<u8>)]) -> OfResource<Metric> {
    let mut last = decoded::<Metric>(got, "/v1/metrics").pop().unwrap();
    assert_eq!(last.of_resources.len(), 1);
    last.of_resources.remove(0)
}

fn metric<'a>(last: &'a OfResource<Metric>, name: &str) -> &'a Metric {
    let mut metrics = last.of_scopes.iter().flat_map(|of| &of.them);
    let found = metrics.find(|metric| metric.name == name);
    found.unwrap_or_else(|| panic!("{name} is not there"))
}

#[test]
fn a_collector_gets_the_traces_and_the_metrics_of_a_swarm_and_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let (url, got) = collector();
    let log = swarm(folder.path(), &url);
    assert!(!log.contains("collector"), "{log}");
    let got = got.lock().unwrap();
    for (path, body) in got.iter() {
        let text = String::from_utf8_lossy(body);
        assert!(
            !text.contains(PROMPT) && !text.contains(&folder.path().display().to_string()),
            "{path}: {text}"
        );
    }

    let requests = decoded::<Span>(&got, "/v1/traces").into_iter();
    let scopes = requests
        .flat_map(|request| request.of_resources)
        .flat_map(|of| of.of_scopes);
    let spans: Vec<Span> = scopes.flat_map(|of| of.them).collect();
    let named: BTreeMap<&[u8], &str> = spans.iter().map(|span| (&*span.span_id, &*span.name)).collect();
    let ways: BTreeSet<(&str, &str)> = spans
        .iter()
        .map(|span| (named.get(&*span.parent_span_id).copied().unwrap_or(""), &*span.name))
        .collect();
    for way in [
        ("", "request"),
        ("request", "chain"),
        ("chain", "hop"),
        ("", "step"),
        ("step", "queue"),
        ("step", "compute"),
        ("step", "push"),
    ] {
        assert!(ways.contains(&way), "{way:?} is not in {ways:?}");
    }
    for span in &spans {
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8), "{span:?}");
    }

    let last = last_metrics(&got);
    let about = &last.resource.as_ref().unwrap().attributes;
    assert!(
        about.iter().any(|attribute| attribute.key == "service.name"),
        "{about:?}"
    );
    let metric = |name: &str| metric(&last, name);
    let steps = metric("sepal_server_steps").sum.as_ref().unwrap();
    assert!(
        steps.is_monotonic && steps.temporality == 2 && steps.points[0].number > 0.0,
        "{steps:?}"
    );
    assert!(metric("sepal_node_connected_peers").gauge.is_some());
    let first_token = metric("sepal_api_time_to_first_token_seconds");
    assert_eq!(first_token.unit, "s");
    let times = &first_token.histogram.as_ref().unwrap().points[0];
    assert!(times.sum > 0.0 && steps.points[0].time_unix_nano > 0);
    assert_eq!((times.count, times.bucket_counts.iter().sum::<u64>()), (1, 1));
    assert_eq!(times.bucket_counts.len(), times.explicit_bounds.len() + 1);
}

#[test]
fn a_collector_gets_how_the_swarm_is_from_nodes_that_show_it() {
    let folder = tempfile::tempdir().unwrap();
    let (of_map, of_table) = (collector(), collector());
    let line = "bootstrap --listen /ip4/127.0.0.1/tcp/0 --http 127.0.0.1:0";
    let mut node = start(folder.path(), line, &of_map.0);
    let entry = node.says("--initial-peers ");
    node.says("health map ");
    let line = format!("health --initial-peers {entry} --otlp {}", of_table.0);
    assert!(sepal(folder.path(), &line).status().unwrap().success());
    stop(folder.path(), node);
    for (_, got) in [of_map, of_table] {
        let last = last_metrics(&got.lock().unwrap());
        for name in ["sepal_swarm_servers_online", "sepal_node_connected_peers"] {
            assert!(metric(&last, name).gauge.is_some(), "{name}");
        }
    }
}

#[test]
fn a_collector_that_is_away_is_said_once_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody listens there.
    let log = swarm(folder.path(), "http://127.0.0.1:9");
    assert_eq!(log.matches("the collector does not take").count(), 1, "{log}");
}
