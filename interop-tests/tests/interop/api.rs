//! The API as existing software uses it: the real binary, a server on loopback, the client that OpenAI publishes.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use interop_tests::{ANSWER, STARTUP, hub::Hub, node::sepal, process::Process, python};
use serde_json::json;

/// All messages one behind the other, and a word of tools. The model's own template knows none.
const TALK: &str = "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + message['content'] }}\
    {% elif message['role'] == 'assistant' %}{{ '\\n' + message['content'] + eos_token }}{% endif %}{% endfor %}\
    {% if tools %}{% endif %}{{ '\\n' }}";

/// `sepal api` of the built-in model; the process and where it answers.
fn api(hub: &Hub, server: &str, more: &[&str]) -> (Process, String) {
    let arguments = ["api", "demo", "--initial-peers", server, "--http", "127.0.0.1:0"];
    let mut process = Process::start("sepal api", &mut sepal(hub, &[&arguments[..], more].concat()).unwrap()).unwrap();
    let url = process.wait_line("api: ", STARTUP).unwrap();
    (process, url)
}

/// A long answer of which the first bytes are there.
fn stream(base_url: &str) -> TcpStream {
    let addr = base_url.trim_start_matches("http://").trim_end_matches("/v1");
    let body = json!({
        "model": "demo", "stream": true, "ignore_eos": true, "max_tokens": 480, "messages": [{"role": "user", "content": "Hi"}],
    });
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream.write_all((head + &body).as_bytes()).unwrap();
    assert!(stream.read(&mut [0; 64]).unwrap() > 0);
    stream
}

#[test]
fn the_client_that_openai_publishes_works_unchanged() {
    let hub = Hub::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("talk.jinja");
    fs::write(&template, TALK).unwrap();
    let template = template.display().to_string();
    let arguments = ["serve", "demo", "--blocks", "0:8", "--new-swarm", "--throughput", "100"];
    let local = ["--listen", "/ip4/127.0.0.1/tcp/0"];
    let mut server = sepal(&hub, &[&arguments[..], &local].concat()).unwrap();
    let mut server = Process::start("sepal serve", &mut server).unwrap();
    let addr = server.wait_line("listening ", STARTUP).unwrap();
    server.wait_line("online demo-hf 0:8", STARTUP).unwrap();
    let (mut open, base_url) = api(&hub, &addr, &["--chat-template", &template]);
    let (_busy, busy_url) = api(&hub, &addr, &["--parallel", "1", "--queue", "0"]);

    let order = json!({"base_url": base_url, "busy_url": busy_url, "model": "demo"});
    let answer = python::run_openai(&hub, &order).unwrap();
    assert_eq!(answer["passed"].as_array().unwrap().len(), 12, "{answer}");
    // Answers that are under way when the person ends it come to their end, or to an error that says so.
    let mut streams = [stream(&base_url), stream(&base_url)];
    open.interrupt();
    for stream in &mut streams {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        let ended = rest.contains("data: [DONE]") || rest.contains("\"code\":\"shutting_down\"");
        assert!(ended, "{rest}");
    }
    assert!(open.wait_exit(ANSWER).unwrap().success(), "Ctrl-C is no failure");
}
