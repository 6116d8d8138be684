//! Calls of tools with the chat templates of real models, from the request to the answer, whole and in pieces: what the
//! model says is scripted, everything else is as ever.

use serde_json::{Value, json};

use super::{asking::user, scripted::Stage};

fn tools() -> Value {
    let tool = |name: &str, properties: Value| {
        let parameters = json!({"type": "object", "properties": properties});
        json!({"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}})
    };
    json!([
        tool("get_weather", json!({"city": {"type": "string"}})),
        tool("add", json!({"a": {"type": "integer"}, "b": {"type": "integer"}})),
    ])
}

/// What came back, however it came.
#[derive(Debug, PartialEq)]
struct Came {
    content: Option<String>,
    calls: Vec<(String, String)>,
    ids: Vec<String>,
    finish: String,
}

impl Came {
    fn whole(answer: &Value) -> Self {
        let choice = &answer["choices"][0];
        let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        assert!(calls.iter().all(|call| call["type"] == "function"), "{choice}");
        Self {
            content: choice["message"]["content"].as_str().map(str::to_owned),
            calls: calls
                .iter()
                .map(|call| (text(&call["function"]["name"]), text(&call["function"]["arguments"])))
                .collect(),
            ids: calls.iter().map(|call| text(&call["id"])).collect(),
            finish: text(&choice["finish_reason"]),
        }
    }

    /// As clients put pieces together.
    fn in_pieces(events: &[Value]) -> Self {
        let mut came = Self {
            content: None,
            calls: Vec::new(),
            ids: Vec::new(),
            finish: String::new(),
        };
        for event in events {
            let choice = &event["choices"][0];
            let delta = &choice["delta"];
            if let Some(text) = delta["content"].as_str().filter(|text| !text.is_empty()) {
                came.content.get_or_insert_default().push_str(text);
            }
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let at = call["index"].as_u64().unwrap() as usize;
                if at == came.calls.len() {
                    assert_eq!(call["type"], "function");
                    came.ids.push(call["id"].as_str().unwrap().to_owned());
                    let name = call["function"]["name"].as_str().unwrap();
                    came.calls.push((name.to_owned(), String::new()));
                }
                came.calls[at]
                    .1
                    .push_str(call["function"]["arguments"].as_str().unwrap());
            }
            if let Some(finish) = choice["finish_reason"].as_str() {
                came.finish = finish.to_owned();
            }
        }
        came
    }
}

/// What has to come of it: content, calls, reason of the end.
type Expected<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)], &'a str);

/// Lets the model say `says` to a request with tools and more fields, and compares what comes back whole and in pieces.
#[track_caller]
fn check<'a>(
    stage: &'a Stage,
    says: &'a str,
    more: Value,
    (content, calls, finish): Expected<'a>,
) -> impl Future<Output = Came> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        stage.says(says);
        let mut request = json!({"tools": tools()});
        for (name, value) in more.as_object().unwrap() {
            request[name] = value.clone();
        }
        let answer = stage.asker.chat(request.clone()).await;
        assert_eq!(answer.status, 200, "{} for {caller}", answer.body);
        let whole = Came::whole(&answer.json());
        request["stream"] = true.into();
        let pieces = Came::in_pieces(&stage.asker.chat(request).await.events());
        let calls: Vec<_> = calls.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        for came in [&pieces, &whole] {
            assert_eq!(came.content.as_deref(), content, "{came:?} for {caller}");
            assert_eq!(came.calls, calls, "{came:?} for {caller}");
            assert_eq!(came.finish, finish, "{came:?} for {caller}");
            assert_eq!(came.ids.len(), calls.len(), "{came:?} for {caller}");
        }
        whole
    }
}

/// The conversation after a call of `get_weather`, as the package of OpenAI sends it on.
fn after_the_call(ids: &[String], arguments: &str) -> Value {
    let call = json!({"id": ids[0], "type": "function", "function": {"name": "get_weather", "arguments": arguments}});
    let answer = json!({
        "role": "assistant", "content": null, "tool_calls": [call], "refusal": null, "audio": null,
        "function_call": null,
    });
    let result = json!({"role": "tool", "tool_call_id": ids[0], "content": "sunny, 21 degrees"});
    json!({"messages": [user("How is it in Bern?"), answer, result]})
}

const BERN: &str = "{\"city\": \"Bern\"}";
const SUM: &str = "{\"a\": 1, \"b\": 2}";

#[tokio::test]
async fn qwen_calls_tools_and_hears_what_came_of_it() {
    let stage = &Stage::of("qwen2.5").await;
    let weather = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
    let add = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n</tool_call>";
    let came = check(
        stage,
        weather,
        json!({}),
        (None, &[("get_weather", BERN)], "tool_calls"),
    )
    .await;
    assert!(
        stage
            .heard()
            .contains("{\"type\": \"function\", \"function\": {\"name\": \"get_weather\"")
    );
    assert!(came.ids[0].starts_with("call_"));
    let both = format!("I will look.\n{weather}\n{add}");
    let calls = [("get_weather", BERN), ("add", SUM)];
    let came = check(stage, &both, json!({}), (Some("I will look.\n"), &calls, "tool_calls")).await;
    assert_ne!(came.ids[0], came.ids[1]);
    let one = json!({"parallel_tool_calls": false});
    check(stage, &both, one, (Some("I will look.\n"), &calls[..1], "tool_calls")).await;

    // Nothing may be called: then the model is told of no tools, and its text is text.
    let none = json!({"tool_choice": "none"});
    check(stage, weather, none, (Some(weather), &[], "stop")).await;
    assert!(!stage.heard().contains("get_weather"));
    // What must come begins in the prompt.
    let demanded = "{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}";
    let required = json!({"tool_choice": "required"});
    check(stage, demanded, required, (None, &[("add", SUM)], "tool_calls")).await;
    assert!(stage.heard().ends_with("<tool_call>\n"), "{}", stage.heard());
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "add"}}});
    check(stage, demanded, named.clone(), (None, &[("add", SUM)], "stop")).await;
    // Another one than the one that is named cannot come.
    let other = "{\"name\": \"get_weather\", \"arguments\": {\"a\": 1, \"b\": 2}}";
    stage.says(other);
    let came = Came::whole(
        &stage
            .asker
            .chat(json!({"tools": tools(), "tool_choice": named["tool_choice"]}))
            .await
            .json(),
    );
    assert_eq!(came.calls[0].0, "add");

    let next = after_the_call(&came.ids, "{\"city\":\"Bern\"}");
    check(stage, "It is sunny.", next, (Some("It is sunny."), &[], "stop")).await;
    let heard = stage.heard();
    assert!(
        heard.contains("<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>")
    );
    assert!(
        heard.contains("<tool_response>\nsunny, 21 degrees\n</tool_response>"),
        "{heard}"
    );
}

#[tokio::test]
async fn what_is_no_call_comes_as_text() {
    let stage = &Stage::of("qwen2.5").await;
    for text in [
        "<tool_call>\n{\"name\": \"launch\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{'name': 'add', 'arguments': {}}\n</tool_call>",
        "<tool_call>\nadd 1 and 2\n</tool_call>",
        "{\"city\": \"Bern\", \"name\": \"add\"}",
        "{\"answer\": 3}",
        "add(1, 2) gives [3] < 4; {that} is it",
        "<tool_call>\n{\"name\": \"add\"",
        "Grüße 🌍 — ärgerlich",
    ] {
        check(stage, text, json!({}), (Some(text), &[], "stop")).await;
    }
    let cut =
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2, \"c\": [1, 2, 3, 4, 5, 6, 7, 8, 9]}}";
    stage.says(cut);
    let answer = stage
        .asker
        .chat(json!({"tools": tools(), "max_tokens": 40}))
        .await
        .json();
    let came = Came::whole(&answer);
    assert_eq!(
        (came.finish.as_str(), answer["usage"]["completion_tokens"].as_u64()),
        ("length", Some(40))
    );
    assert!(
        came.calls[0].1.starts_with("{\"a\": 1, ") && cut.contains(&came.calls[0].1),
        "{came:?}"
    );
}

#[tokio::test]
async fn llama_calls_one_tool_at_a_time_and_hears_what_came_of_it() {
    let stage = &Stage::of("llama-3.1").await;
    let weather = "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Bern\"}}";
    let add = "{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}";
    let call = [("get_weather", BERN)];
    let came = check(stage, weather, json!({}), (None, &call, "tool_calls")).await;
    for says in [
        format!("<|python_tag|>{weather}<|eom_id|>"),
        format!("{{\"type\": \"function\", \"function\": {weather}}}"),
        // Its template takes one call in a message.
        format!("{weather}; {add}"),
        format!("{weather}<|python_tag|>{add}"),
    ] {
        check(stage, &says, json!({}), (None, &call, "tool_calls")).await;
    }
    // A program for an interpreter that nobody offered.
    let program = "<|python_tag|>print(\"Bern\")<|eom_id|>";
    check(stage, program, json!({}), (Some("print(\"Bern\")"), &[], "stop")).await;
    let required = json!({"tool_choice": "required"});
    check(stage, add, required, (None, &[("add", SUM)], "tool_calls")).await;
    assert!(
        stage.heard().ends_with("assistant<|end_header_id|>\n\n"),
        "{}",
        stage.heard()
    );

    let mut next = after_the_call(&came.ids, "{\"city\": \"Bern\"}");
    next["messages"].as_array_mut().unwrap().push(json!({
        "role": "assistant", "content": "It is sunny.", "tool_calls": null, "refusal": null,
    }));
    next["messages"].as_array_mut().unwrap().push(user("Thank you."));
    check(stage, "Welcome.", next, (Some("Welcome."), &[], "stop")).await;
    let heard = stage.heard();
    assert!(
        heard.contains("{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Bern\"}}"),
        "{heard}"
    );
    assert!(
        heard.contains("ipython<|end_header_id|>\n\n\"sunny, 21 degrees\""),
        "{heard}"
    );
    assert!(heard.contains("assistant<|end_header_id|>\n\nIt is sunny."), "{heard}");
}

#[tokio::test]
async fn mistral_calls_tools_and_hears_what_came_of_it() {
    let stage = &Stage::of("mistral").await;
    let weather = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}";
    let add = "{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}";
    let calls = [("get_weather", BERN), ("add", SUM)];
    let mut ids = Vec::new();
    for (says, content) in [
        (format!("[TOOL_CALLS] [{weather}, {add}]"), None),
        (format!("[TOOL_CALLS][{weather}, {add}]"), None),
        (
            format!("I will look.[TOOL_CALLS] [{weather}, {add}]"),
            Some("I will look."),
        ),
        (
            format!("[TOOL_CALLS]get_weather[ARGS]{BERN}[TOOL_CALLS]add[ARGS]{SUM}"),
            None,
        ),
        (
            format!("So:[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{BERN}[TOOL_CALLS]add{SUM}"),
            Some("So:"),
        ),
    ] {
        let came = check(stage, &says, json!({}), (content, &calls, "tool_calls")).await;
        ids = came.ids;
    }
    assert!(
        ids.iter()
            .all(|id| id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric())),
        "{ids:?}"
    );
    let required = json!({"tool_choice": "required"});
    check(stage, &format!("[{add}]"), required, (None, &calls[1..], "tool_calls")).await;
    let next = after_the_call(&ids, "{\"city\": \"Bern\"}");
    check(stage, "It is sunny.", next, (Some("It is sunny."), &[], "stop")).await;
    let heard = stage.heard();
    assert!(
        heard.contains("{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}, \"id\": \""),
        "{heard}"
    );
    assert!(
        heard.contains("{\"content\": sunny, 21 degrees, \"call_id\": "),
        "{heard}"
    );
}

#[tokio::test]
async fn choices_stops_and_probabilities_are_told_as_they_are_whole_and_in_pieces() {
    let stage = &Stage::of("chatml").await;
    stage.says("Grüße 🌍, the end is near.");
    // A stop that begins within a token and ends within another one.
    for (stop, text) in [("nd is ne", "Grüße 🌍, the e"), ("🌍", "Grüße "), ("ü", "Gr")] {
        let request = json!({"stop": ["never", stop], "n": 2, "logprobs": true, "top_logprobs": 1});
        let whole = stage.asker.chat(request.clone()).await.json();
        let mut streamed = request;
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({"include_usage": true});
        let events = stage.asker.chat(streamed).await.events();
        let (usage, events) = events.split_last().unwrap();
        assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
        for index in 0..2 {
            let choice = &whole["choices"][index];
            assert_eq!(
                (&choice["message"]["content"], &choice["finish_reason"]),
                (&json!(text), &json!("stop"))
            );
            let mine = events.iter().filter(|event| event["choices"][0]["index"] == index);
            let mine: Vec<_> = mine.map(|event| &event["choices"][0]).collect();
            assert!(events.iter().all(|event| event["usage"].is_null()));
            let pieces = mine.iter().filter_map(|choice| choice["delta"]["content"].as_str());
            assert_eq!(pieces.collect::<String>(), text);
            let told: Vec<Value> = mine
                .iter()
                .filter_map(|choice| choice["logprobs"]["content"].as_array())
                .flatten()
                .cloned()
                .collect();
            assert_eq!(choice["logprobs"]["content"], json!(told));
        }
    }
}
