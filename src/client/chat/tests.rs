//! Templates of public models, rendered as transformers renders them, and what happens when a template does not work.

use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    now: String,
    special_tokens: Map<String, Value>,
    chats: Map<String, Value>,
    cases: Vec<Case>,
}

/// One case of `scripts/make-chat-vectors.py`.
#[derive(Deserialize)]
struct Case {
    template: String,
    chat: String,
    text: Option<String>,
    raised: Option<String>,
}

fn folder() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/sepal")
}

fn recorded() -> Vectors {
    serde_json::from_str(&std::fs::read_to_string(format!("{}/chat.json", folder())).unwrap()).unwrap()
}

fn chat(given: &Value) -> Chat {
    let mut variables = given.as_object().unwrap().clone();
    let mut take = |name: &str| variables.shift_remove(name);
    let list = |value: Value| value.as_array().unwrap().clone();
    let messages = list(take("messages").unwrap());
    let tools = take("tools").map(list);
    let ending = match (take("add_generation_prompt"), take("continue_final_message")) {
        (Some(_), _) => Ending::GenerationPrompt,
        (_, Some(_)) => Ending::Continue,
        _ => Ending::Closed,
    };
    Chat {
        messages,
        tools,
        documents: None,
        ending,
        variables,
    }
}

fn template(text: &str) -> ChatTemplate {
    named(&[("default", text)])
}

fn named(templates: &[(&str, &str)]) -> ChatTemplate {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    ChatTemplate::new(ChatFiles {
        templates: templates.iter().map(owned).collect(),
        special_tokens: Map::new(),
    })
    .unwrap()
}

fn now() -> LocalTime {
    LocalTime::at("2025-03-09T08:07:06").unwrap()
}

fn one_user() -> Chat {
    Chat {
        messages: vec![json!({"role": "user", "content": "Hi"})],
        ..Chat::default()
    }
}

#[test]
fn templates_of_public_models_render_as_with_transformers() {
    let vectors = recorded();
    let now = LocalTime::at(&vectors.now).unwrap();
    let mut wrong = Vec::new();
    for case in &vectors.cases {
        let text = std::fs::read_to_string(format!("{}/chat/{}", folder(), case.template)).unwrap();
        let template = ChatTemplate::new(ChatFiles {
            templates: vec![("default".to_owned(), text)],
            special_tokens: vectors.special_tokens.clone(),
        })
        .unwrap();
        let found = template.render(&chat(&vectors.chats[&case.chat]), &now);
        let same = match (&found, &case.text, &case.raised) {
            (Ok(found), Some(text), _) => found == text,
            (Err(ChatError::Raised(found)), _, Some(raised)) => found == raised,
            (Err(error), None, None) => !matches!(error, ChatError::Raised(_)),
            _ => false,
        };
        if !same {
            wrong.push(format!(
                "{} {}\nfound {found:?}\nexpected {:?}",
                case.template, case.chat, case.text
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        vectors.cases.len(),
        wrong.join("\n\n")
    );
}

#[test]
fn tools_choose_the_template_for_tools() {
    let template = named(&[("default", "plain"), ("tool_use", "with {{ tools | length }}")]);
    assert_eq!(template.render(&one_user(), &now()).unwrap(), "plain");
    let with_tools = Chat {
        tools: Some(vec![json!({})]),
        ..one_user()
    };
    assert_eq!(template.render(&with_tools, &now()).unwrap(), "with 1");
    let error = named(&[("rag", "x")]).render(&one_user(), &now()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model has no default chat template, only [\"rag\"]"
    );
}

#[test]
fn a_template_that_refuses_says_so_in_its_own_words() {
    let refusing = template("{% macro no() %}{{ raise_exception('Only cats!') }}{% endmacro %}{{ no() }}");
    let error = refusing.render(&one_user(), &now()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model's chat template does not take this conversation: Only cats!"
    );
}

#[test]
fn a_template_that_is_none_is_refused_when_it_is_read() {
    let files = |text: &str| ChatFiles {
        templates: vec![("default".to_owned(), text.to_owned())],
        special_tokens: Map::new(),
    };
    let error = ChatTemplate::new(files("{% if %}")).unwrap_err();
    assert!(matches!(error, ChatError::Syntax { .. }), "{error}");
    assert!(matches!(
        ChatTemplate::new(ChatFiles::default()),
        Err(ChatError::NoTemplate)
    ));
}

#[test]
fn a_template_without_end_ends() {
    let endless = template("{% for a in range(10000) %}{% for b in range(10000) %}{{ b }}{% endfor %}{% endfor %}");
    assert!(matches!(endless.render(&one_user(), &now()), Err(ChatError::Render(_))));
}

#[test]
fn messages_that_are_none_are_named() {
    let template = template("{{ messages | length }}");
    assert!(matches!(
        template.render(&Chat::default(), &now()),
        Err(ChatError::Empty)
    ));
    let chat = Chat {
        messages: vec![json!({"role": "user"}), json!("hello")],
        ..Chat::default()
    };
    assert!(matches!(template.render(&chat, &now()), Err(ChatError::NoMessage(1))));
    let chat = Chat {
        messages: vec![json!({"role": "assistant"})],
        ending: Ending::Continue,
        ..Chat::default()
    };
    assert!(matches!(
        template.render(&chat, &now()),
        Err(ChatError::NothingToContinue)
    ));
}

#[test]
fn generation_tags_are_scopes_and_nothing_else() {
    let plain = environment::without_generation_tags("{%- generation -%}a{% endgeneration%}{% generations %}{%");
    assert_eq!(plain, "{%- with -%}a{% endwith%}{% generations %}{%");
}
