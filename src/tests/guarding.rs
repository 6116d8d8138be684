//! Who may use the API and how often, what malformed requests are told, and whether it says that it is well: over HTTP.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt;

use super::{
    api::{Site, limits, site_with},
    asking::user,
    setup::soon,
};
use crate::http::Access;

const ALICE: &str = "sk-alice-0123456789";
const BOB: &str = "sk-bob-0123456789";

async fn guarded() -> (Site, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let keys = format!("{ALICE} name=alice requests_per_minute=2\n{BOB} name=bob concurrent=1\n");
    fs::write(file.path(), keys).unwrap();
    let access = Access {
        keys: Some(file.path().to_owned()),
        ..Access::default()
    };
    (site_with(limits(), access).await, file)
}

#[tokio::test]
async fn without_a_known_key_there_is_a_401_as_openai_has_it() {
    let (site, _keys) = guarded().await;
    for (asker, says) in [
        ((*site).clone(), "You didn't provide an API key"),
        (site.with_key("sk-mallory-0123456789"), "Incorrect API key provided."),
    ] {
        for answer in [asker.get("/v1/models").await, asker.chat(json!({})).await] {
            assert_eq!(answer.status, 401, "{}", answer.body);
            assert_eq!(answer.header("www-authenticate"), Some("bearer realm=\"sepal\""));
            let error = &answer.json()["error"];
            assert!(error["message"].as_str().unwrap().starts_with(says), "{error}");
            assert_eq!(error["type"], "invalid_request_error");
            assert_eq!(
                (&error["param"], &error["code"]),
                (&Value::Null, &json!("invalid_api_key"))
            );
            assert!(!answer.body.contains("mallory"), "{}", answer.body);
        }
    }
    // Those who watch over it need none, and browsers get the page that asks for one.
    for path in ["/health", "/metrics", "/"] {
        assert_eq!(site.get(path).await.status, 200, "{path}");
    }
    assert_eq!(site.with_key(BOB).get("/v1/models").await.status, 200);
}

#[tokio::test]
async fn whoever_asks_too_often_gets_a_429_with_the_time_to_wait() {
    let (site, _keys) = guarded().await;
    let alice = site.with_key(ALICE);
    for left in ["1", "0"] {
        let answer = alice.chat(json!({"max_tokens": 1})).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some(left));
    }
    let refused = alice.chat(json!({})).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(
        (refused.error("type"), refused.error("code"), refused.error("param")),
        (json!("requests"), json!("rate_limit_exceeded"), Value::Null)
    );
    let message = refused.error("message");
    assert!(message.as_str().unwrap().contains("2 requests per minute"), "{message}");
    let seconds: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    // What computes nothing is not counted, and others are not meant.
    assert_eq!(alice.get("/v1/models").await.status, 200);
    assert_eq!(site.with_key(BOB).chat(json!({"max_tokens": 1})).await.status, 200);
}

#[tokio::test]
async fn whoever_asks_for_too_much_at_once_gets_a_429_until_something_ends() {
    let (site, _keys) = guarded().await;
    let bob = site.with_key(BOB);
    let body = json!({
        "model": "demo", "stream": true, "ignore_eos": true, "max_tokens": 400, "messages": [user("What is 2+2?")],
    });
    let mut stream = bob.open("/v1/chat/completions", &body).await;
    soon("the first piece", stream.read(&mut [0; 64])).await.unwrap();
    let refused = bob.chat(json!({"max_tokens": 1})).await;
    assert_eq!(
        (refused.status, refused.error("code")),
        (429, json!("rate_limit_exceeded"))
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    drop(stream);
    let again = async {
        while bob.chat(json!({"max_tokens": 1})).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    soon("there is room again", again).await;
}

#[tokio::test]
async fn bodies_that_are_no_request_are_refused_as_openai_does() {
    let site = site_with(limits(), Access::default()).await;
    for (body, says) in [
        ("{bad", "the body is not JSON: "),
        ("[]", "the body has to be a JSON object"),
        ("", "the body is not JSON: "),
        ("\"x\"", "the body has to be a JSON object"),
    ] {
        for path in ["/v1/chat/completions", "/v1/completions"] {
            let answer = site.post_text(path, body).await;
            assert_eq!(answer.status, 400, "{body}");
            let error = &answer.json()["error"];
            assert!(error["message"].as_str().unwrap().starts_with(says), "{error}");
            assert_eq!(error["type"], "invalid_request_error");
            assert_eq!(
                (&error["param"], &error["code"]),
                (&Value::Null, &Value::Null),
                "{body}"
            );
        }
    }
    let wrong = site.chat(json!({"temperature": "hot"})).await;
    assert_eq!(
        wrong.json()["error"],
        json!({
            "message": "temperature must be a number, not a string", "type": "invalid_request_error",
            "param": "temperature", "code": null,
        })
    );
    let no_model = site.chat(json!({"model": "gpt-4o"})).await;
    assert_eq!(no_model.status, 404);
    assert_eq!(
        no_model.json()["error"],
        json!({
            "message": "the model \"gpt-4o\" does not exist here; there is demo", "type": "invalid_request_error",
            "param": "model", "code": "model_not_found",
        })
    );
    let no_method = site.get("/v1/chat/completions").await;
    assert_eq!(no_method.status, 405);
    assert_eq!(no_method.error("message"), "/v1/chat/completions does not take GET");
    let ids = [&wrong, &no_model, &no_method].map(|answer| answer.header("x-request-id").unwrap().to_owned());
    assert!(
        ids[0].starts_with("req_") && ids[0] != ids[1] && ids[1] != ids[2],
        "{ids:?}"
    );
}

#[tokio::test]
async fn parameters_that_change_nothing_are_taken_as_openai_takes_them() {
    let site = site_with(limits(), Access::default()).await;
    let more = json!({
        "user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "store": false, "parallel_tool_calls": null,
        "safety_identifier": "x", "prompt_cache_key": "x", "verbosity": null, "reasoning_effort": "none",
        "prediction": {"type": "content", "content": "2 + 2 = 5."}, "modalities": ["text"], "logprobs": false,
        "stream_options": null, "stop": null, "n": null, "seed": null, "tools": [], "of_tomorrow": null,
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "name": "me", "content": [{"type": "text", "text": "What is 2+2?"}]},
        ],
    });
    let messages = more["messages"].clone();
    let answer = site.chat(more).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let without = site.chat(json!({"messages": messages})).await.json();
    assert_eq!(answer.json()["choices"], without["choices"]);
}

/// Waits until `/health` has this status, and returns what it says.
async fn health(site: &Site, status: u16) -> Value {
    let asking = async {
        loop {
            let answer = site.get("/health").await;
            if answer.status == status {
                return answer.json();
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the health", asking).await
}

#[tokio::test]
async fn health_and_requests_say_when_no_route_exists_and_when_one_does_again() {
    let site = site_with(limits(), Access::default()).await;
    assert_eq!(health(&site, 200).await["status"], "ok");
    site.server.server.shutdown().await;
    let ill = health(&site, 503).await;
    assert_eq!(ill["status"], "blocks missing");
    assert_eq!(
        ill["models"],
        json!([{"id": "demo", "status": "blocks missing", "missing_blocks": [[0, 8]]}])
    );
    for stream in [false, true] {
        let refused = site.chat(json!({"stream": stream})).await;
        assert_eq!((refused.status, refused.error("code")), (503, json!("blocks_missing")));
        let message = refused.error("message");
        assert!(message.as_str().unwrap().starts_with("blocks 0:8 of "), "{message}");
        assert!(refused.header("retry-after").is_some());
    }
    let _other = site.swarm.serve(0..8).await;
    assert_eq!(health(&site, 200).await["models"][0]["missing_blocks"], json!([]));
    let answer = site.chat(json!({})).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "2 + 2 = 4.");
}

#[tokio::test]
async fn servers_that_are_left_out_are_told_with_the_route_and_counted() {
    let site = site_with(limits(), Access::default()).await;
    let other = site.swarm.serve(0..8).await;
    let route = |answer: &Value| answer["sepal"]["route"][0]["peer"].as_str().unwrap().to_owned();
    let told = site.chat(json!({"sepal": {"route": true}})).await.json();
    assert_eq!(told["sepal"]["avoided"], json!([]));
    let used = route(&told);
    let servers = [&site.server, &other];
    let lost = servers
        .iter()
        .find(|server| server.node.peer().to_string() == used)
        .unwrap();
    lost.kill();
    // The conversation goes on in its session, which has to notice.
    let messages = json!([
        user("What is 2+2?"),
        told["choices"][0]["message"],
        user("What is 7 plus 5?")
    ]);
    let next = site.chat(json!({"sepal": {"route": true}, "messages": messages}));
    let told = next.await.json();
    assert_ne!(route(&told), used);
    let avoided = &told["sepal"]["avoided"][0];
    assert_eq!(avoided["peer"], used);
    assert!(
        avoided["seconds_left"].is_u64() && !avoided["reason"].as_str().unwrap().is_empty(),
        "{avoided}"
    );
    let metrics = site.get("/metrics").await.body;
    let line = "sepal_api_servers_avoided{model=\"demo\"} 1";
    assert!(metrics.lines().any(|had| had == line), "{metrics}");
}
