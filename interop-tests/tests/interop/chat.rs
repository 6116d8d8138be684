//! Talking to the built-in model as a person or a script does: the real binary, a swarm of two servers on loopback.

use std::fs;

use interop_tests::{
    ANSWER, STARTUP,
    hub::Hub,
    node::{Node, sepal},
    process::Process,
};
use serde_json::Value;

/// All messages one behind the other. The model's own template leaves out all but the last question.
const WHOLE_TALK: &str = "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + message['content'] }}\
    {% else %}{{ '\\n' + message['content'] + eos_token }}{% endif %}{% endfor %}{{ '\\n' }}";

/// A bootstrap node and two servers that hold half of the built-in model each.
fn swarm(hub: &Hub) -> (Node, Vec<Process>) {
    let bootstrap = Node::bootstrap(hub, &[]).unwrap();
    let serve = |blocks: &str| {
        let arguments = ["serve", "demo", "--blocks", blocks, "--initial-peers", &bootstrap.addr];
        let local = ["--listen", "/ip4/127.0.0.1/tcp/0", "--throughput", "100"];
        Process::start(
            "sepal serve",
            &mut sepal(hub, &[&arguments[..], &local].concat()).unwrap(),
        )
        .unwrap()
    };
    let mut servers = vec![serve("0:4"), serve("4:8")];
    for (server, span) in servers.iter_mut().zip(["0:4", "4:8"]) {
        server.wait_line(&format!("online demo-hf {span}"), STARTUP).unwrap();
    }
    (bootstrap, servers)
}

fn chat(hub: &Hub, bootstrap: &Node, more: &[&str]) -> Process {
    let arguments = ["chat", "demo", "--initial-peers", &bootstrap.addr, "--temperature", "0"];
    Process::start("sepal chat", &mut sepal(hub, &[&arguments[..], more].concat()).unwrap()).unwrap()
}

#[test]
fn a_conversation_through_a_pipe_reuses_what_the_servers_know() {
    let hub = Hub::new().unwrap();
    let (bootstrap, _servers) = swarm(&hub);
    let folder = tempfile::tempdir().unwrap();
    let (saved, template) = (folder.path().join("talk.json"), folder.path().join("talk.jinja"));
    fs::write(&template, WHOLE_TALK).unwrap();
    let template = template.display().to_string();
    let mut chat = chat(&hub, &bootstrap, &["--chat-template", &template]);
    chat.say("What is 2+2?").unwrap();
    chat.wait_line("2 + 2 = 4.", ANSWER).unwrap();
    chat.say("/stats").unwrap();
    chat.wait_for("no reuse yet", ANSWER, |said| {
        said.out.contains(", 0 of them known").then_some(())
    })
    .unwrap();
    chat.say("What is 7 plus 5?").unwrap();
    chat.say(&format!("/save {}", saved.display())).unwrap();
    chat.say("/stats").unwrap();
    // The whole first exchange but for the token that ended it.
    let reused = chat
        .wait_for("the statistics of the second answer", ANSWER, |said| {
            let stats: Vec<&str> = said.out.lines().filter(|line| line.starts_with("prompt ")).collect();
            let words: Vec<&str> = stats.get(1)?.split_whitespace().collect();
            words.get(3)?.parse::<usize>().ok()
        })
        .unwrap();
    assert!(reused >= 15, "{reused} tokens were reused");
    chat.say("/route").unwrap();
    chat.wait_line("blocks 4:8", ANSWER).unwrap();
    chat.say("/quit").unwrap();
    assert!(chat.wait_exit(ANSWER).unwrap().success());
    let messages: Vec<Value> = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let roles: Vec<&str> = messages
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert_eq!(messages[1]["content"], "2 + 2 = 4.");
}

#[test]
fn the_built_in_model_answers_message_after_message() {
    let hub = Hub::new().unwrap();
    let (bootstrap, _servers) = swarm(&hub);
    let mut chat = chat(&hub, &bootstrap, &["--system", "Be brief."]);
    chat.say("What is 2+2?").unwrap();
    chat.wait_line("2 + 2 = 4.", ANSWER).unwrap();
    chat.say("What is 7 plus 5?").unwrap();
    chat.wait_line("7 + 5 = 12.", ANSWER).unwrap();
    chat.interrupt();
    assert!(chat.wait_exit(ANSWER).unwrap().success(), "nothing was being answered");
}

#[test]
fn a_script_notices_what_went_wrong() {
    let hub = Hub::new().unwrap();
    let (bootstrap, _servers) = swarm(&hub);
    let mut chat = chat(&hub, &bootstrap, &[]);
    chat.say("/dance").unwrap();
    assert_eq!(chat.wait_exit(ANSWER).unwrap().code(), Some(1));
    assert!(chat.said().err.contains("there is no command /dance"));
}

#[test]
fn json_of_a_schema_is_generated_end_to_end() {
    let hub = Hub::new().unwrap();
    let (bootstrap, _servers) = swarm(&hub);
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.json");
    let text = r#"{"type": "object", "properties": {"answer": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["answer"], "additionalProperties": false}"#;
    fs::write(&schema, text).unwrap();
    let schema = schema.display().to_string();
    let arguments = [
        "generate",
        "demo",
        "--initial-peers",
        &bootstrap.addr,
        "--temperature",
        "0",
    ];
    let more = [
        "--message",
        "What is 2+2?",
        "--json-schema",
        &schema,
        "--json",
        "--logprobs",
        "3",
    ];
    let mut generate = Process::start("sepal", &mut sepal(&hub, &[&arguments[..], &more].concat()).unwrap()).unwrap();
    let answer = generate.answer(ANSWER).unwrap();
    assert!(generate.wait_exit(ANSWER).unwrap().success());
    let json: Value = serde_json::from_str(answer["text"].as_str().unwrap()).unwrap();
    assert!(json["answer"].as_u64().is_some_and(|number| number < 100), "{json}");
    assert_eq!(answer["finish_reason"], "stop");
    let logprobs = answer["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), answer["token_ids"].as_array().unwrap().len());
    assert!(
        logprobs
            .iter()
            .all(|token| token["top_logprobs"].as_array().unwrap().len() == 3)
    );
}

#[test]
fn a_text_that_is_longer_than_the_model_was_made_for_goes_on_with_a_warning() {
    let hub = Hub::new().unwrap();
    let (bootstrap, _servers) = swarm(&hub);
    for (length, warns) in [(511, false), (513, true)] {
        let prompt = vec!["7"; length].join(",");
        let arguments = ["generate", "demo", "--initial-peers", &bootstrap.addr, "--json"];
        let more = ["--prompt-ids", &prompt, "--max-new-tokens", "2", "--temperature", "0"];
        let mut generate =
            Process::start("sepal", &mut sepal(&hub, &[&arguments[..], &more].concat()).unwrap()).unwrap();
        let answer = generate.answer(ANSWER).unwrap();
        assert!(generate.wait_exit(ANSWER).unwrap().success());
        assert!(!answer["token_ids"].as_array().unwrap().is_empty());
        let said = generate.said().err;
        let warnings = said
            .matches("longer than the 512 tokens that the model was made for")
            .count();
        assert_eq!(warnings, usize::from(warns), "{length} tokens: {said}");
    }
}
