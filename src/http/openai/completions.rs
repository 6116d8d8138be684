//! `POST /v1/completions`: texts or tokens in, what follows them out. Nothing is put around a prompt but the special tokens
//! that the tokenizer begins texts with.

mod writer;

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use self::writer::CompletionWriter;
use super::{
    Api,
    answers::{Answers, Job},
    body, deliver,
    error::{ApiError, with_causes},
    fields::Fields,
    metrics::AskedFor,
    model::ServedModel,
    params::{self, Delivery, MAX_CHOICES},
};

/// OpenAI's, where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A prompt and what is known of it.
#[derive(Clone, Debug)]
struct Prompt {
    text: String,
    tokens: Vec<u32>,
}

/// A request that was understood.
struct Order {
    jobs: Vec<Job>,
    delivery: Delivery,
    /// What each text begins with in the answer; empty unless that was asked for.
    echoes: Vec<String>,
    n: usize,
}

pub(crate) async fn completions(State(api): State<Api>, request: Request) -> Response {
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
    let order = super::off_thread({
        let model = model.clone();
        move || read(&request, &model)
    })
    .await?;
    let writer = CompletionWriter::new(&model, &order.delivery, order.echoes, order.n);
    let wants_route = order.delivery.route;
    let answers = Answers::start((api.gate(), place), &model, order.jobs, wants_route, api.tasks());
    deliver::deliver(answers, writer, order.delivery.stream).await
}

fn read(request: &Map<String, Value>, model: &ServedModel) -> Result<Order, ApiError> {
    let fields = Fields::of_request(request);
    let delivery = Delivery::read(&fields)?;
    let n = params::choices(&fields)?;
    fields.only(
        "suffix",
        &[json!("")],
        "is not supported: these models write forwards only",
    )?;
    fields.only("best_of", &[json!(n)], "is not supported unless it is equal to n")?;
    let mut params = params::params(&fields, model)?;
    params.sampling.logprobs = params::told_logprobs(&fields, "logprobs")?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    if echo && params.sampling.logprobs.is_some() {
        return Err(fields.wrong(
            "logprobs",
            "cannot be combined with echo: those of prompts are not computed",
        ));
    }
    let prompts = prompts(&fields, model)?;
    if prompts.len() * n > MAX_CHOICES {
        let why = format!(
            "of {} texts with n = {n} asks for more than {MAX_CHOICES} at once",
            prompts.len()
        );
        return Err(fields.wrong("prompt", &why));
    }
    let wanted = fields
        .count("max_tokens", 0..=usize::MAX)?
        .unwrap_or(DEFAULT_MAX_TOKENS);
    let (seed, mut jobs, mut echoes) = (params.sampling.seed, Vec::new(), Vec::new());
    for Prompt { text, tokens } in prompts {
        let length = params::length(model.context_length, tokens.len(), Some(wanted), (wanted, "prompt"))?;
        for _ in 0..n {
            let index = jobs.len();
            let mut params = params.clone();
            params.max_new_tokens = length;
            params.sampling.seed = params::seed_of(seed, index);
            let prompt = tokens.clone();
            jobs.push(Job { index, prompt, params });
            echoes.push(if echo { text.clone() } else { String::new() });
        }
    }
    Ok(Order {
        jobs,
        delivery,
        echoes,
        n,
    })
}

/// A text, texts, tokens, or lists of tokens.
fn prompts(fields: &Fields<'_>, model: &ServedModel) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || {
        let why =
            "must be a string, an array of strings, an array of tokens, or an array of arrays of tokens, none empty";
        fields.wrong("prompt", why)
    };
    match fields.get("prompt") {
        Some(Value::String(text)) => Ok(vec![of_text(text, model)?]),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => Ok(vec![of_tokens(list, fields, model)?]),
            Some(Value::String(_)) => {
                let text = |value: &Value| of_text(value.as_str().ok_or_else(wrong)?, model);
                list.iter().map(text).collect()
            }
            Some(Value::Array(_)) => {
                let tokens = |value: &Value| of_tokens(value.as_array().ok_or_else(wrong)?, fields, model);
                list.iter().map(tokens).collect()
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

fn of_text(text: &str, model: &ServedModel) -> Result<Prompt, ApiError> {
    let tokens = model.codec.encode(text);
    let tokens = tokens.map_err(|error| ApiError::internal(with_causes(&error)))?;
    if tokens.is_empty() {
        return Err(ApiError::invalid("prompt", "prompt has no tokens"));
    }
    let text = text.to_owned();
    Ok(Prompt { text, tokens })
}

fn of_tokens(list: &[Value], fields: &Fields<'_>, model: &ServedModel) -> Result<Prompt, ApiError> {
    let id = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < model.vocab_size as u64);
        id.map(|id| id as u32)
    };
    let tokens: Option<Vec<u32>> = list.iter().map(id).collect();
    let Some(tokens) = tokens.filter(|tokens| !tokens.is_empty()) else {
        let why = format!(
            "must have ids of tokens from 0 to {}, at least one",
            model.vocab_size - 1
        );
        return Err(fields.wrong("prompt", &why));
    };
    let text = model.codec.decode(&tokens);
    let text = text.map_err(|error| ApiError::internal(with_causes(&error)))?;
    Ok(Prompt { text, tokens })
}
