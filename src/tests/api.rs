//! The API over a swarm of real nodes: requests as bytes on a socket, answers of the built-in model.

use std::{ops::Deref, time::Duration};

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::{
    asking::{Asker, user},
    conversing::demo,
    drafting,
    generating::client_with,
    setup::{Node, Swarm, TestServer, soon, until},
};
use crate::{
    client::{ChatTemplate, Config, Conversations, Limits, Speculate},
    http::{self, Access, Api, ApiLimits, Guard, ModelText, ServedModel},
    task::Tasks,
};

/// All messages one behind the other, so that a conversation goes on where it was, and a word of tools.
const TALK: &str = "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + message['content'] }}\
    {% elif message['content'] %}{{ '\\n' + message['content'] + eos_token }}{% endif %}{% endfor %}{% if tools %} {% endif %}\
    {{ '\\n' }}";

/// How soon the API knows of servers that come and go.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// An API of the built-in model, and a swarm of one server behind it.
pub(super) struct Site {
    asker: Asker,
    tasks: Tasks,
    conversations: Conversations,
    pub(super) server: TestServer,
    pub(super) swarm: Swarm,
    _node: Node,
}

pub(super) fn limits() -> ApiLimits {
    ApiLimits {
        parallel: 4,
        queue: 4,
        default_max_tokens: 64,
        origins: vec!["https://chat.example".parse().unwrap()],
    }
}

async fn site() -> Site {
    site_with(limits(), Access::default()).await
}

pub(super) async fn site_with(limits: ApiLimits, access: Access) -> Site {
    site_of(limits, access, |_| {}).await
}

/// With a client that is as `change` has it.
async fn site_of(limits: ApiLimits, access: Access, change: impl FnOnce(&mut Config)) -> Site {
    let (swarm, codec) = demo().await;
    let server = swarm.serve(0..8).await;
    let (node, client) = client_with(&swarm, |config| {
        config.update_period = LOOK_EVERY;
        change(config);
    })
    .await;
    let conversations = Conversations::new(client, Limits::default(), &node.tasks);
    let mut files = swarm.source.chat_files().unwrap();
    files.templates = vec![("default".to_owned(), TALK.to_owned())];
    let template = Some(ChatTemplate::new(files).unwrap());
    let text = ModelText { codec, template };
    let model = ServedModel::new("demo".to_owned(), &swarm.source, text, conversations.clone(), None);
    let tasks = node.tasks.child();
    let (listener, place) = http::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let guard = Guard::new(access, &node.tasks).unwrap();
    http::serve_api(listener, Api::new(vec![model], limits, guard, &tasks));
    Site {
        asker: Asker::new(place.addr),
        tasks,
        conversations,
        server,
        swarm,
        _node: node,
    }
}

impl Deref for Site {
    type Target = Asker;

    fn deref(&self) -> &Asker {
        &self.asker
    }
}

#[tokio::test]
async fn a_chat_is_answered_whole_and_in_pieces() {
    let site = site().await;
    let whole = site.chat(json!({"sepal": {"route": true}})).await;
    assert_eq!(whole.status, 200, "{}", whole.body);
    assert!(whole.head.contains("content-security-policy: default-src 'none'"));
    let whole = whole.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], "2 + 2 = 4.");
    assert_eq!(
        (choice["message"]["role"].as_str(), &choice["finish_reason"]),
        (Some("assistant"), &json!("stop"))
    );
    let usage = &whole["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
    assert_eq!(whole["sepal"]["route"][0]["blocks"], json!([0, 8]));
    assert!(whole["sepal"]["tokens_per_second"].is_f64());
    assert_eq!(
        streamed_usage(&site).await["completion_tokens"],
        usage["completion_tokens"]
    );
    // The conversation goes on in the session of its first question.
    let answer = json!({"role": "assistant", "content": "2 + 2 = 4."});
    let talk = json!({"messages": [user("What is 2+2?"), answer, user("What is 7 plus 5?")]});
    let next = site.chat(talk).await.json();
    let cached = next["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(cached > count("prompt_tokens"), "{cached} tokens were known");
}

/// Asks the same in pieces, which are to make up the same answer.
async fn streamed_usage(site: &Site) -> Value {
    let options =
        json!({"stream": true, "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 2});
    let events = site.chat(options).await.events();
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"])
    );
    let deltas = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), "2 + 2 = 4.");
    let told = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let told: Vec<&Value> = told.flatten().collect();
    let bytes: Vec<u8> = told
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap().trim(), "2 + 2 = 4.");
    assert!(
        told.iter()
            .all(|token| token["top_logprobs"].as_array().unwrap().len() == 2)
    );
    let [.., last, usage] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    usage["usage"].clone()
}

#[tokio::test]
async fn completions_take_texts_and_tokens_and_give_every_choice_its_place() {
    let site = site().await;
    let body = json!({
        "model": "demo", "prompt": ["What is 2+2?", "What is 7 plus 5?"], "n": 2, "temperature": 0, "max_tokens": 40,
        "echo": true, "stop": ["."],
    });
    let answer = site.post("/v1/completions", body.clone()).await.json();
    let texts: Vec<&str> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["text"].as_str().unwrap())
        .collect();
    let expected = ["What is 2+2?\n2 + 2 = 4", "What is 7 plus 5?\n7 + 5 = 12"];
    assert_eq!(texts, [expected[0], expected[0], expected[1], expected[1]]);
    let mut streamed = body;
    streamed["stream"] = true.into();
    let mut pieces = vec![String::new(); 4];
    for event in site.post("/v1/completions", streamed).await.events() {
        let choice = &event["choices"][0];
        pieces[choice["index"].as_u64().unwrap() as usize].push_str(choice["text"].as_str().unwrap());
    }
    assert_eq!(pieces, texts);
    let codec = &crate::client::TextCodec::from_json(&site.swarm.source.tokenizer_json().unwrap()).unwrap();
    let tokens = codec.encode("What is 2+2?").unwrap();
    let body = json!({"model": "demo", "prompt": tokens, "temperature": 0, "max_tokens": 3, "logprobs": 2});
    let answer = site.post("/v1/completions", body).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &answer["usage"]["completion_tokens"]),
        (&json!("length"), &json!(3))
    );
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!((tokens.len(), joined.as_str()), (3, choice["text"].as_str().unwrap()));
    assert_eq!(choice["logprobs"]["text_offset"][0], 0);
}

#[tokio::test]
async fn choices_are_different_and_the_same_again_for_the_same_seed() {
    let site = site().await;
    let contents = |answer: Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap();
        choices
            .iter()
            .map(|choice| choice["message"]["content"].to_string())
            .collect()
    };
    let order = json!({"n": 3, "seed": 11, "temperature": 9, "max_completion_tokens": 12});
    let first = contents(site.chat(order.clone()).await.json());
    assert_eq!(first, contents(site.chat(order).await.json()));
    assert!(first[0] != first[1] || first[1] != first[2], "{first:?}");
}

#[tokio::test]
async fn choices_of_a_request_are_the_same_with_a_draft_model() {
    let order = json!({"n": 3, "seed": 11, "temperature": 0.8, "max_completion_tokens": 12, "sepal": {"route": true}});
    let expected = site().await.chat(order.clone()).await.json();
    let drafting = site_of(limits(), Access::default(), |config| {
        config.speculate = Speculate::Always(4);
        config.draft = Some(drafting::demo());
    });
    let found = drafting.await.chat(order).await.json();
    assert_eq!(found["choices"], expected["choices"]);
    let guesses = &found["sepal"]["guesses"];
    let count = |name: &str| guesses[name].as_u64().unwrap();
    assert!(
        count("accepted") >= 1 && count("drafted") >= count("accepted"),
        "{guesses}"
    );
    assert_eq!(found["usage"].get("completion_tokens_details"), None);
}

#[tokio::test]
async fn demanded_forms_and_calls_come_whatever_the_model_would_say() {
    let site = site().await;
    let schema = json!({"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["sum"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": true}});
    let answer = site.chat(json!({"response_format": format})).await.json();
    let content: Value = serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(content["sum"].is_u64(), "{content}");

    let tool = json!({"type": "function", "function": {"name": "add", "parameters": schema}});
    let order = json!({"tools": [tool], "tool_choice": "required"});
    let answer = site.chat(order.clone()).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&call["type"], &call["function"]["name"]),
        (&json!("function"), &json!("add"))
    );
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["sum"].is_u64() && choice["message"]["content"].is_null());

    let mut streamed = order;
    streamed["stream"] = true.into();
    streamed["tool_choice"] = json!({"type": "function", "function": {"name": "add"}});
    let events = site.chat(streamed).await.events();
    let deltas = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array());
    let deltas: Vec<&Value> = deltas.flatten().collect();
    assert_eq!(deltas[0]["function"], json!({"name": "add", "arguments": ""}));
    assert!(deltas[0]["id"].as_str().unwrap().starts_with("call_"));
    let text: String = deltas
        .iter()
        .map(|delta| delta["function"]["arguments"].as_str().unwrap())
        .collect();
    let streamed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(streamed, arguments, "the choice was greedy");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn requests_that_are_wrong_are_refused_with_the_parameter_named() {
    let site = site().await;
    let models = site.get("/v1/models").await.json();
    assert_eq!(
        (&models["object"], &models["data"][0]["id"]),
        (&json!("list"), &json!("demo"))
    );
    assert_eq!(site.get("/v1/models/demo").await.json()["object"], "model");
    assert_eq!(
        site.get("/v1/models/org/none").await.json()["error"]["code"],
        "model_not_found"
    );
    assert_eq!(site.get("/v2").await.status, 404);
    for (origin, status) in [("https://chat.example", 204), ("https://other.example", 405)] {
        let answer = site
            .ask(&format!(
                "OPTIONS /v1/models HTTP/1.1\r\norigin: {origin}\r\naccess-control-request-method: GET"
            ))
            .await;
        assert_eq!(answer.status, status);
        assert_eq!(
            answer
                .head
                .contains("access-control-allow-origin: https://chat.example"),
            status == 204
        );
    }
    assert_eq!(site.get("/v1/completions").await.status, 405);
    assert_eq!(site.post("/v1/embeddings", json!({})).await.status, 501);
    for (request, status, param) in [
        (json!({"model": "gpt"}), 404, "model"),
        (json!({"model": null}), 400, "model"),
        (json!({"messages": []}), 400, "messages"),
        (json!({"temperature": -1}), 400, "temperature"),
        (json!({"n": 0}), 400, "n"),
        (json!({"top_logprobs": 2}), 400, "top_logprobs"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"max_tokens": 5000}), 400, "messages"),
        (json!({"modalities": ["text", "audio"]}), 400, "modalities"),
        (json!({"response_format": {"type": "xml"}}), 400, "response_format.type"),
        (json!({"tempreture": 1}), 400, "tempreture"),
        (json!({"min_tokens": 50, "user": "me"}), 400, "min_tokens"),
        (json!({"reasoning_effort": "high"}), 400, "reasoning_effort"),
    ] {
        let answer = site.chat(request.clone()).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (status, &json!(param)),
            "{request}"
        );
    }
}

#[tokio::test]
async fn completions_that_are_wrong_are_refused_with_the_parameter_named() {
    let site = site().await;
    for (request, param) in [
        (json!({"prompt": "x", "suffix": "y"}), "suffix"),
        (json!({"prompt": "x", "top_logprobs": 2}), "top_logprobs"),
        (json!({"prompt": "x", "guided_json": {}}), "guided_json"),
        (json!({"prompt": ["x", "y"], "n": 65}), "prompt"),
        (json!({"prompt": vec![1; 513], "max_tokens": 0, "n": 128}), "prompt"),
        (json!({"prompt": [1], "max_tokens": i64::MAX}), "prompt"),
    ] {
        let mut body = request.clone();
        body["model"] = json!("demo");
        let answer = site.post("/v1/completions", body).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{request}"
        );
    }
}

#[tokio::test]
async fn whoever_goes_away_is_not_generated_for_and_leaves_the_session_behind() {
    let site = site().await;
    let body = json!({
        "model": "demo", "stream": true, "ignore_eos": true, "max_tokens": 400, "messages": [user("What is 2+2?")],
    });
    let mut stream = site.open("/v1/chat/completions", &body).await;
    let mut part = [0; 512];
    assert!(soon("the first piece", stream.read(&mut part)).await.unwrap() > 0);
    drop(stream);
    until("the session waits", || site.conversations.n_idle() == 1).await;
    let tokens = site.server.server.stats().block_tokens / 8;
    assert!(tokens < 300, "{tokens} tokens were computed");
}

#[tokio::test]
async fn requests_beyond_the_bound_are_told_to_come_again() {
    let limits = ApiLimits {
        parallel: 1,
        queue: 0,
        ..limits()
    };
    let site = site_with(limits, Access::default()).await;
    let body = json!({
        "model": "demo", "stream": true, "ignore_eos": true, "max_tokens": 400, "messages": [user("What is 2+2?")],
    });
    let mut stream = site.open("/v1/chat/completions", &body).await;
    let mut part = [0; 64];
    soon("the first piece", stream.read(&mut part)).await.unwrap();
    let refused = site.chat(json!({})).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.head.contains("retry-after: "));
    // When the API stops, the answer under way ends with an error or comes to its end.
    let stopping = async { assert!(site.tasks.shutdown().await, "an answer holds the API up") };
    let mut rest = String::new();
    let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_to_string(&mut rest));
    let (_, read) = tokio::join!(stopping, reading);
    read.unwrap().unwrap();
    assert!(
        rest.contains("data: [DONE]") || rest.contains("\"shutting_down\""),
        "{rest}"
    );
}
