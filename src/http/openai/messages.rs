//! The messages of a chat request as chat templates take them: texts instead of parts, roles that templates know, arguments
//! of calls as objects.

use serde_json::{Map, Value};

use super::{
    error::ApiError,
    fields::{Fields, kind},
};
use crate::client::ChatTemplate;

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The messages, checked and in the form of `template`.
///
/// # Errors
/// There are none, or one is malformed or has something else than text.
pub(crate) fn read(fields: &Fields<'_>, template: &ChatTemplate) -> Result<Vec<Value>, ApiError> {
    let given = fields.list("messages")?.unwrap_or_default();
    if given.is_empty() {
        return Err(fields.wrong("messages", "must have at least one message"));
    }
    let knows_developers = template.mentions("developer");
    let one = |(at, message): (usize, &Value)| message_of(message, &format!("messages[{at}]"), knows_developers);
    given.iter().enumerate().map(one).collect()
}

fn message_of(message: &Value, path: &str, knows_developers: bool) -> Result<Value, ApiError> {
    let fields = Fields::of(message, path)?;
    let role = fields.text("role")?.unwrap_or_default();
    if !ROLES.contains(&role) {
        return Err(fields.wrong("role", &format!("must be one of {}", ROLES.join(", "))));
    }
    let mut prepared: Map<String, Value> = fields.object().clone();
    // Clients write out all that a message could have; templates ask whether a field is there.
    prepared.retain(|_, value| !value.is_null());
    if role == "developer" && !knows_developers {
        prepared.insert("role".into(), "system".into());
    }
    let calls = fields.list("tool_calls")?;
    match fields.get("content") {
        Some(content) => {
            prepared.insert("content".into(), text_of(content, &fields.path_of("content"))?.into());
        }
        // An answer that is only calls has no content.
        None if role == "assistant" && (calls.is_some() || fields.get("refusal").is_some()) => {
            prepared.insert("content".into(), "".into());
        }
        None => return Err(fields.wrong("content", "is missing")),
    }
    if role == "tool" && fields.text("tool_call_id")?.is_none() {
        return Err(fields.wrong("tool_call_id", "is missing"));
    }
    if let Some(calls) = calls {
        let path = fields.path_of("tool_calls");
        let one = |(at, call): (usize, &Value)| call_of(call, &format!("{path}[{at}]"));
        let calls: Vec<Value> = calls.iter().enumerate().map(one).collect::<Result<_, _>>()?;
        // Templates ask whether there are any, and take an empty list for some.
        if calls.is_empty() {
            prepared.shift_remove("tool_calls");
        } else {
            prepared.insert("tool_calls".into(), calls.into());
        }
    }
    Ok(prepared.into())
}

/// A text, or the texts of its parts, a line each as vLLM has it.
fn text_of(content: &Value, path: &str) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => {
            let message = format!("{path} must be a string or an array of parts, not {}", kind(other));
            return Err(ApiError::invalid(path, message));
        }
    };
    let part = |(at, part): (usize, &Value)| {
        let fields = Fields::of(part, &format!("{path}[{at}]"))?;
        match fields.text("type")? {
            Some("text") => {}
            Some(other) => {
                let message = format!("parts of type {other:?} are not supported: the models here read text only");
                return Err(ApiError::invalid(fields.path_of("type"), message));
            }
            None => return Err(fields.wrong("type", "is missing")),
        }
        let text = fields.text("text")?;
        text.map(str::to_owned)
            .ok_or_else(|| fields.wrong("text", "is missing"))
    };
    let texts: Vec<String> = parts.iter().enumerate().map(part).collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

/// A call that the model made earlier. Templates write its arguments as JSON themselves, as transformers wants it.
fn call_of(call: &Value, path: &str) -> Result<Value, ApiError> {
    let fields = Fields::of(call, path)?;
    let missing = || fields.wrong("function", "is missing");
    let function = fields.nested("function")?.ok_or_else(missing)?;
    if function.text("name")?.is_none() {
        return Err(function.wrong("name", "is missing"));
    }
    let mut call = call.clone();
    if let Some(Value::String(arguments)) = function.get("arguments") {
        let parsed: Value = match arguments.trim() {
            "" => Value::Object(Map::new()),
            text => serde_json::from_str(text).map_err(|_| function.wrong("arguments", "must be JSON"))?,
        };
        call["function"]["arguments"] = parsed;
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::ChatFiles;

    fn read_for(template: &str, messages: Value) -> Result<Vec<Value>, Value> {
        let files = ChatFiles {
            templates: vec![("default".to_owned(), template.to_owned())],
            special_tokens: Map::new(),
        };
        let template = ChatTemplate::new(files).unwrap();
        let request = json!({"messages": messages});
        let fields = Fields::of_request(request.as_object().unwrap());
        read(&fields, &template).map_err(|error| error.body()["error"].clone())
    }

    #[test]
    fn parts_become_texts_and_arguments_objects() {
        let messages = json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            {"role": "assistant", "content": "Two.", "tool_calls": null, "refusal": null, "audio": null},
        ]);
        let read = read_for("-", messages.clone()).unwrap();
        assert_eq!(read[0]["role"], "system");
        assert_eq!(read[1]["content"], "a\nb");
        assert_eq!(read[2]["content"], "");
        assert_eq!(read[2]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(read[3]["tool_call_id"], "1");
        assert_eq!(read[4], json!({"role": "assistant", "content": "Two."}));
        assert_eq!(read_for("developer", messages).unwrap()[0]["role"], "developer");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
        for (messages, param) in [
            (json!([]), "messages"),
            (json!(["hello"]), "messages[0]"),
            (json!([{"role": "alien", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": image}]),
                "messages[0].content[0].type",
            ),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
            (
                json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ] {
            assert_eq!(read_for("-", messages).unwrap_err()["param"], param);
        }
    }
}
