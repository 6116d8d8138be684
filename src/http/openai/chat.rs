//! `POST /v1/chat/completions`: messages in, the next message out.

mod writer;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use self::writer::ChatWriter;
use super::{
    Api,
    answers::{Answers, Job},
    body, deliver,
    error::ApiError,
    fields::Fields,
    messages,
    metrics::AskedFor,
    model::ServedModel,
    params::{self, Delivery},
    tools::{self, Tools},
};
use crate::client::{Chat, ChatError, ChatTemplate, Constraint, Ending, LocalTime};

/// What only chats have.
const OWN: [&str; 18] = [
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "max_completion_tokens",
    "top_logprobs",
    "continue_final_message",
    "add_generation_prompt",
    "chat_template_kwargs",
    "reasoning_effort",
    "documents",
    "modalities",
    "audio",
    "web_search_options",
    "chat_template",
    "store",
    // It may make an answer quicker, and never another one.
    "prediction",
];

/// A request that was understood.
struct Order {
    jobs: Vec<Job>,
    delivery: Delivery,
    tools: Tools,
}

pub(crate) async fn chat(State(api): State<Api>, request: Request) -> Response {
    match answer(&api, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(api: &Api, request: Request) -> Result<Response, ApiError> {
    let asked_for = AskedFor::of(&request);
    let request = body::read(request).await?;
    let model = api.model_of(&request)?;
    asked_for.set(&model.id);
    let place = api.gate().admit()?;
    let default_length = api.default_max_tokens();
    let order = super::off_thread({
        let model = model.clone();
        move || read(&request, &model, default_length)
    })
    .await?;
    let writer = ChatWriter::new(&model, &order.delivery, order.tools, order.jobs.len());
    let wants_route = order.delivery.route;
    let answers = Answers::start((api.gate(), place), &model, order.jobs, wants_route, api.tasks());
    deliver::deliver(answers, writer, order.delivery.stream).await
}

/// Everything that can be known before tokens are generated. Takes its time for long prompts and large schemas.
fn read(request: &Map<String, Value>, model: &Arc<ServedModel>, default_length: usize) -> Result<Order, ApiError> {
    let fields = Fields::of_request(request);
    params::refuse_unknown(&fields, &OWN)?;
    refuse_unsupported(&fields)?;
    let Some(template) = &model.template else {
        let message = format!("{} was not made for conversations: it has no chat template", model.id);
        return Err(ApiError::invalid("model", message));
    };
    let delivery = Delivery::read(&fields)?;
    let n = params::choices(&fields)?;
    let mut params = params::params(&fields, model)?;
    params.sampling.logprobs = logprobs(&fields)?;
    let tools = Tools::read(&fields, template)?;
    let demand = tools.demand(template, model)?;
    let form = response_format(&fields, model)?;
    if form.is_some() && tools.are_offered() {
        let why = "cannot be combined with tools that may be called: set tool_choice to none";
        return Err(fields.wrong("response_format", why));
    }
    let mut text = render(&fields, template, &tools)?;
    if let Some(demand) = &demand {
        text.push_str(demand.opening);
    }
    let prompt = model.codec.encode_rendered(&text);
    let prompt = prompt.map_err(|error| ApiError::internal(super::error::with_causes(&error)))?;
    params.constraint = demand.map(|demand| demand.constraint).or(form);
    let wanted = match fields.count("max_completion_tokens", 1..=usize::MAX)? {
        None => fields.count("max_tokens", 1..=usize::MAX)?,
        wanted => wanted,
    };
    params.max_new_tokens = params::length(model.context_length, prompt.len(), wanted, (default_length, "messages"))?;
    let (prompt, seed, params): (Arc<[u32]>, _, _) = (prompt.into(), params.sampling.seed, Arc::new(params));
    let jobs = (0..n).map(|index| Job {
        index,
        prompt: prompt.clone(),
        params: params.clone(),
        seed: params::seed_of(seed, index),
    });
    Ok(Order {
        jobs: jobs.collect(),
        delivery,
        tools,
    })
}

/// What would change the answer and is not done.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.only("modalities", &[json!(["text"])], "can only be [\"text\"]")?;
    fields.only("audio", &[], "is not supported")?;
    fields.only("web_search_options", &[], "is not supported")?;
    fields.only(
        "chat_template",
        &[],
        "is not taken from requests: --chat-template sets it",
    )?;
    fields.only("store", &[json!(false)], "is not supported: nothing is stored")
}

/// How many of the most probable tokens are told, if any.
fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = params::told_logprobs(fields, "top_logprobs")?;
    if top.is_some() && !wanted {
        return Err(fields.wrong("top_logprobs", "is allowed only with logprobs"));
    }
    Ok(wanted.then(|| top.unwrap_or(0)))
}

/// What the text has to be like.
fn response_format(fields: &Fields<'_>, model: &ServedModel) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = fields.nested("response_format")? else {
        return Ok(None);
    };
    let kind = format.text("type")?.unwrap_or_default();
    if kind == "text" {
        return Ok(None);
    }
    if !["json_object", "json_schema"].contains(&kind) {
        return Err(format.wrong("type", "must be text, json_object or json_schema"));
    }
    let Some(constraints) = &model.constraints else {
        return Err(fields.wrong(
            "response_format",
            "is not supported: text of this model cannot be constrained",
        ));
    };
    let constraint = if kind == "json_object" {
        constraints.json_object()
    } else {
        let missing = || format.wrong("json_schema", "is missing");
        let described = format.nested("json_schema")?.ok_or_else(missing)?;
        if !described.text("name")?.is_some_and(tools::is_name) {
            return Err(described.wrong("name", "must be 1 to 64 letters, digits, _, - or ."));
        }
        described.flag("strict")?;
        let schema = described
            .get("schema")
            .cloned()
            .unwrap_or_else(|| json!({"type": "object"}));
        constraints.json_schema(&schema)
    };
    let wrong = |error: crate::client::ConstraintError| ApiError::invalid("response_format", error.to_string());
    constraint.map(Some).map_err(wrong)
}

fn render(fields: &Fields<'_>, template: &ChatTemplate, tools: &Tools) -> Result<String, ApiError> {
    let goes_on = fields.flag("continue_final_message")?.unwrap_or(false);
    let asks = fields.flag("add_generation_prompt")?.unwrap_or(!goes_on);
    let ending = match (goes_on, asks) {
        (true, true) => return Err(fields.wrong("continue_final_message", "excludes add_generation_prompt")),
        (true, false) => Ending::Continue,
        (false, true) => Ending::GenerationPrompt,
        (false, false) => Ending::Closed,
    };
    let mut variables = match fields.nested("chat_template_kwargs")? {
        Some(given) => given.object().clone(),
        None => Map::new(),
    };
    if let Some(effort) = fields.text("reasoning_effort")? {
        if effort != "none" && !template.mentions("reasoning_effort") {
            let why = "is not supported: the chat template of this model does not take it";
            return Err(fields.wrong("reasoning_effort", why));
        }
        variables.insert("reasoning_effort".into(), effort.into());
    }
    let chat = Chat {
        messages: messages::read(fields, template)?,
        tools: tools.are_offered().then(|| tools.offered.clone()),
        documents: fields.list("documents")?.map(<[Value]>::to_vec),
        ending,
        variables,
    };
    let text = template.render(&chat, &LocalTime::now());
    text.map_err(|error| match error {
        ChatError::NoTemplate | ChatError::NoDefault { .. } | ChatError::Syntax { .. } => {
            ApiError::internal(super::error::with_causes(&error))
        }
        _ => ApiError::invalid("messages", super::error::with_causes(&error)),
    })
}
