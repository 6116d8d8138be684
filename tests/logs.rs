//! The program when it logs for programs: all of stderr is lines of JSON, and nothing secret is in them.
#![expect(clippy::unwrap_used, reason = "all of this program is a test")]

#[path = "common/node.rs"]
mod node;
#[path = "common/program.rs"]
mod program;

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::Value;

use self::{
    node::{Node, ask},
    program::sepal,
};

const KEY: &str = "key-that-nobody-else-knows";
const TOKEN: &str = "hf_tokenThatNobodyElseKnows";
const PROMPT: &str = "What is 3 plus 4?";

/// What each line of a log is, all of which have the same parts.
fn parsed(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let parts: Vec<&String> = object.as_object().unwrap().keys().collect();
        assert_eq!(
            parts,
            ["timestamp", "level", "target", "message", "fields", "spans"],
            "{line}"
        );
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
        assert!(object["message"].is_string() && object["fields"].is_object(), "{line}");
        object
    });
    lines.collect()
}

#[test]
fn all_that_a_node_says_on_stderr_is_json_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("keys"), format!("{KEY} name=alice\n")).unwrap();
    fs::set_permissions(folder.join("keys"), fs::Permissions::from_mode(0o600)).unwrap();
    let line = "demo --http 127.0.0.1:0 --api-keys keys --control socket --log-format json -vv";
    let log = fs::File::create(folder.join("log")).unwrap();
    let mut command = sepal(folder, line);
    let mut node = Node::start(command.env("HF_TOKEN", TOKEN).env("SEPAL_THREDS", "1").stderr(log));
    let body = format!(r#"{{"model":"demo","messages":[{{"role":"user","content":"{PROMPT}"}}]}}"#);
    let key = format!("authorization: Bearer {KEY}");
    ask(&node.says("api: "), "POST /v1/chat/completions", &[&key], &body);
    let level = sepal(folder, "log trace --control socket").output().unwrap();
    assert!(level.status.success(), "{level:?}");
    assert!(sepal(folder, "stop --control socket").status().unwrap().success());
    assert!(node.child.wait().unwrap().success());

    let log = fs::read_to_string(folder.join("log")).unwrap();
    let events = parsed(&log);
    let said = |text: &str| {
        events
            .iter()
            .any(|event| event["message"].as_str().unwrap().contains(text))
    };
    assert!(said("SEPAL_THREDS is no option"), "{log}");
    let in_request = |event: &&Value| {
        event["spans"]
            .as_array()
            .unwrap()
            .iter()
            .any(|span| span["name"] == "request")
    };
    assert!(events.iter().any(|event| in_request(&event)), "{log}");
    for secret in [KEY, TOKEN, PROMPT] {
        assert!(!log.contains(secret), "{secret} is in\n{log}");
    }
}

#[test]
fn an_error_that_ends_the_program_is_json_with_its_remedy_and_other_formats_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port());
    let line = format!("bootstrap --listen {listen} --log-format json");
    let ended = sepal(folder.path(), &line).output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let events = parsed(&String::from_utf8(ended.stderr).unwrap());
    let last = events.last().unwrap();
    assert_eq!(last["level"], "ERROR", "{last}");
    assert!(last["message"].as_str().unwrap().contains(&listen), "{last}");
    assert!(last["fields"]["hint"].is_string(), "{last}");

    let ended = sepal(folder.path(), "bootstrap --log-format xml").output().unwrap();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    for part in ["'xml'", "--log-format", "text, json"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}
