//! The tools of a request: what the template is told of them, and how a call is made certain where one is demanded.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{calls::CallFinder, error::ApiError, fields::Fields, model::ServedModel};
use crate::client::{ChatTemplate, Constraint};

/// OpenAI's limits.
const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;

/// Hermes and Qwen.
const TOOL_CALL_TAG: &str = "<tool_call>";
/// Mistral, whose templates take no ids but those of nine letters and digits.
const TOOL_CALLS_TAG: &str = "[TOOL_CALLS]";
/// Llama 3.1 calls the arguments so.
const PARAMETERS: &str = "\"parameters\": dictionary";

/// What templates say that take one call in a message, and so no others back: Llama 3.
const SINGLE_CALLS: &str = "only supports single tool-calls";

/// Characters of an id, where the template does not care.
const ID_LENGTH: usize = 24;
const MISTRAL_ID_LENGTH: usize = 9;

/// What a request says about tools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// For the template; empty if there are none, or if none may be called.
    pub(crate) offered: Vec<Value>,
    names: Vec<String>,
    /// A call has to come, of one of these tools.
    demanded: Option<Vec<usize>>,
    /// One tool is demanded by its name.
    pub(crate) is_named: bool,
    one_at_a_time: bool,
    id_length: usize,
}

/// How a demanded call begins, and how it goes on.
pub(crate) struct Demand {
    /// Stands at the end of the prompt.
    pub(crate) opening: &'static str,
    pub(crate) constraint: Constraint,
}

impl Tools {
    /// # Errors
    /// A tool or a choice is malformed, or the model knows no tools.
    pub(crate) fn read(fields: &Fields<'_>, template: &ChatTemplate) -> Result<Self, ApiError> {
        for old in ["functions", "function_call"] {
            fields.only(
                old,
                &[json!([]), json!("none")],
                "is not supported: use tools and tool_choice",
            )?;
        }
        let given = fields.list("tools")?.unwrap_or_default();
        if given.len() > MAX_TOOLS {
            return Err(fields.wrong("tools", &format!("must be at most {MAX_TOOLS}")));
        }
        let mut names = Vec::new();
        for (at, tool) in given.iter().enumerate() {
            names.push(name_of(tool, &format!("tools[{at}]"))?);
        }
        if names.iter().collect::<HashSet<_>>().len() < names.len() {
            return Err(fields.wrong("tools", "must have names of their own"));
        }
        let (demanded, offered) = choice(fields, &names)?;
        if !offered || names.is_empty() {
            return Ok(Self::default());
        }
        if !template.mentions("tools") {
            let why = "cannot be used: the chat template of this model has no place for them";
            return Err(fields.wrong("tools", why));
        }
        let is_mistral = template.mentions(TOOL_CALLS_TAG);
        Ok(Self {
            offered: given.to_vec(),
            names,
            is_named: demanded.as_ref().is_some_and(|demanded| demanded.is_named),
            demanded: demanded.map(|demanded| demanded.tools),
            one_at_a_time: template.mentions(SINGLE_CALLS) || !fields.flag("parallel_tool_calls")?.unwrap_or(true),
            id_length: if is_mistral { MISTRAL_ID_LENGTH } else { ID_LENGTH },
        })
    }

    /// Whether the model may call tools.
    pub(crate) fn are_offered(&self) -> bool {
        !self.offered.is_empty()
    }

    /// What finds calls in an answer.
    pub(crate) fn finder(&self) -> CallFinder {
        let most = if self.one_at_a_time || self.is_named {
            1
        } else {
            usize::MAX
        };
        CallFinder::new(self.names.clone(), most)
    }

    /// An id for a call.
    pub(crate) fn new_id(&self) -> String {
        let random = uuid::Uuid::new_v4().simple().to_string();
        if self.id_length == MISTRAL_ID_LENGTH {
            random[..MISTRAL_ID_LENGTH].to_owned()
        } else {
            format!("call_{}", &random[..ID_LENGTH])
        }
    }

    /// How it is made certain that a call comes, if one has to: in the format of the model, which is known from its template.
    ///
    /// # Errors
    /// The model's text cannot be constrained, or a tool's schema is not supported.
    pub(crate) fn demand(&self, template: &ChatTemplate, model: &ServedModel) -> Result<Option<Demand>, ApiError> {
        let Some(demanded) = &self.demanded else {
            return Ok(None);
        };
        let Some(constraints) = &model.constraints else {
            let why = "cannot demand a call: text of this model cannot be constrained";
            return Err(ApiError::invalid("tool_choice", format!("tool_choice {why}")));
        };
        let arguments = if template.mentions(PARAMETERS) {
            "parameters"
        } else {
            "arguments"
        };
        let schema = schema_of_call(&self.offered, demanded, arguments);
        let (opening, schema) = if template.mentions(TOOL_CALL_TAG) {
            ("<tool_call>\n", schema)
        } else if template.mentions(TOOL_CALLS_TAG) {
            (TOOL_CALLS_TAG, as_list(schema))
        } else {
            ("", schema)
        };
        let constraint = constraints.json_schema(&schema);
        let constraint = constraint.map_err(|error| ApiError::invalid("tools", error.to_string()))?;
        Ok(Some(Demand { opening, constraint }))
    }
}

/// What a choice demands.
struct Demanded {
    /// By their place in the request.
    tools: Vec<usize>,
    is_named: bool,
}

/// What is demanded, and whether tools may be called at all.
fn choice(fields: &Fields<'_>, names: &[String]) -> Result<(Option<Demanded>, bool), ApiError> {
    let needs_tools = || fields.wrong("tool_choice", "is allowed only with tools");
    match fields.get("tool_choice") {
        None => Ok((None, true)),
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => Ok((None, false)),
            "auto" => Ok((None, true)),
            "required" if names.is_empty() => Err(needs_tools()),
            "required" => {
                let tools = (0..names.len()).collect();
                Ok((Some(Demanded { tools, is_named: false }), true))
            }
            _ => Err(fields.wrong("tool_choice", "must be none, auto, required, or a function by its name")),
        },
        Some(choice) => {
            let name = name_of(choice, "tool_choice")?;
            let place = names.iter().position(|known| *known == name);
            let tools =
                vec![place.ok_or_else(|| fields.wrong("tool_choice", "names a function that is not in tools"))?];
            Ok((Some(Demanded { tools, is_named: true }), true))
        }
    }
}

/// The name in `{"type": "function", "function": {"name": …}}`.
fn name_of(tool: &Value, path: &str) -> Result<String, ApiError> {
    let fields = Fields::of(tool, path)?;
    if fields.text("type")? != Some("function") {
        return Err(fields.wrong("type", "must be \"function\""));
    }
    let missing = || fields.wrong("function", "is missing");
    let function = fields.nested("function")?.ok_or_else(missing)?;
    let name = function.text("name")?.unwrap_or_default();
    if !is_name(name) {
        let why = format!("must be 1 to {MAX_NAME} letters, digits, _, - or .");
        return Err(function.wrong("name", &why));
    }
    function.nested("parameters")?;
    Ok(name.to_owned())
}

/// Whether OpenAI takes it as a name; the dot is taken besides.
pub(crate) fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_allowed)
}

/// The schema of one call of any of these tools. Their own schemas move to a place from which references still lead to
/// where they led.
fn schema_of_call(tools: &[Value], demanded: &[usize], arguments: &str) -> Value {
    let mut definitions = Map::new();
    let mut calls = Vec::new();
    for at in demanded {
        let function = &tools[*at]["function"];
        let mut parameters = match &function["parameters"] {
            Value::Object(parameters) => Value::Object(parameters.clone()),
            _ => json!({"type": "object"}),
        };
        let place = format!("tool{at}");
        move_references(&mut parameters, &format!("#/$defs/{place}"));
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"const": function["name"]}, arguments: {"$ref": format!("#/$defs/{place}")}},
            "required": ["name", arguments],
            "additionalProperties": false,
        }));
        definitions.insert(place, parameters);
    }
    let mut schema = match calls.len() {
        1 => calls.remove(0),
        _ => json!({"anyOf": calls}),
    };
    schema["$defs"] = definitions.into();
    schema
}

/// A list of at least one such call.
fn as_list(mut call: Value) -> Value {
    let definitions = call["$defs"].take();
    if let Some(call) = call.as_object_mut() {
        call.shift_remove("$defs");
    }
    json!({"type": "array", "items": call, "minItems": 1, "$defs": definitions})
}

/// Lets references within a schema lead to where it is moved.
fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(object) => {
            for (name, value) in object {
                match value {
                    Value::String(target) if name == "$ref" => {
                        if let Some(path) = target.strip_prefix('#') {
                            *target = format!("{place}{path}");
                        }
                    }
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| move_references(value, place)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ChatFiles;

    fn template(text: &str) -> ChatTemplate {
        let files = ChatFiles {
            templates: vec![("default".to_owned(), text.to_owned())],
            special_tokens: Map::new(),
        };
        ChatTemplate::new(files).unwrap()
    }

    fn read(request: &Value, template: &ChatTemplate) -> Result<Tools, Value> {
        let fields = Fields::of_request(request.as_object().unwrap());
        Tools::read(&fields, template).map_err(|error| error.body()["error"].clone())
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    #[test]
    fn what_is_wrong_with_tools_is_named() {
        let takes = template("{{ tools }}");
        let param = |request: Value| {
            read(&request, &takes).unwrap_err()["param"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(param(json!({"tools": [tool("a b")]})), "tools[0].function.name");
        assert_eq!(param(json!({"tools": [{"type": "code_interpreter"}]})), "tools[0].type");
        assert_eq!(param(json!({"tools": [tool("a"), tool("a")]})), "tools");
        assert_eq!(param(json!({"tool_choice": "required"})), "tool_choice");
        assert_eq!(
            param(json!({"tools": [tool("a")], "tool_choice": tool("b")})),
            "tool_choice"
        );
        assert_eq!(param(json!({"functions": [{"name": "a"}]})), "functions");
        let error = read(&json!({"tools": [tool("a")]}), &template("{{ messages }}")).unwrap_err();
        assert!(
            error["message"].as_str().unwrap().contains("no place for them"),
            "{error}"
        );
    }

    #[test]
    fn tools_that_must_not_be_called_are_not_offered() {
        let tools = read(&json!({"tools": [tool("a")], "tool_choice": "none"}), &template("-")).unwrap();
        assert!(!tools.are_offered());
        let tools = read(&json!({"tools": []}), &template("-")).unwrap();
        assert!(!tools.are_offered());
    }

    #[test]
    fn ids_are_of_the_form_that_the_template_takes() {
        let request = json!({"tools": [tool("a")]});
        let id = read(&request, &template("[TOOL_CALLS]{{ tools }}")).unwrap().new_id();
        assert!(id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
        let id = read(&request, &template("{{ tools }}")).unwrap().new_id();
        assert!(id.starts_with("call_") && id.len() == 29, "{id}");
    }

    #[test]
    fn references_lead_to_where_they_led() {
        let mut first = tool("a");
        first["function"]["parameters"] = json!({
            "type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": "integer"}},
        });
        let schema = schema_of_call(&[first, tool("b")], &[0, 1], "arguments");
        let reference = &schema["$defs"]["tool0"]["properties"]["x"]["$ref"];
        assert_eq!(reference, "#/$defs/tool0/$defs/X");
        assert_eq!(
            schema.pointer("/$defs/tool0/$defs/X"),
            Some(&json!({"type": "integer"}))
        );
        assert_eq!(schema["anyOf"][1]["properties"]["arguments"]["$ref"], "#/$defs/tool1");
        let list = as_list(schema);
        assert_eq!(list["items"].get("$defs"), None);
        assert!(list["$defs"]["tool1"].is_object());
    }
}
