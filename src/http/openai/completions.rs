//! `POST /v1/completions`: texts or tokens in, what follows them out. Nothing is put around a prompt but the special tokens
//! that the tokenizer begins texts with.

mod writer;

use std::sync::Arc;

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
use crate::client::Params;

/// OpenAI's, where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Most bytes of prompts that an answer repeats, in all its texts together.
const MAX_ECHO_BYTES: usize = 2 * body::MAX_BODY_BYTES;

/// A prompt as it came, and its tokens.
struct Prompt<'a> {
    /// `None` if it came as tokens.
    text: Option<&'a str>,
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
    params::refuse_unknown(&fields, &["prompt", "suffix", "best_of", "echo"])?;
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
    params.max_new_tokens = fields
        .count("max_tokens", 0..=usize::MAX)?
        .unwrap_or(DEFAULT_MAX_TOKENS);
    let prompts = prompts(&fields, model, n)?;
    let wanted = params.max_new_tokens;
    for prompt in &prompts {
        let tokens = prompt.tokens.len();
        params::length(model.context_length, tokens, Some(wanted), (wanted, "prompt"))?;
    }
    let echoes = match echo {
        true => echoes(&fields, &prompts, (model, n))?,
        false => vec![String::new(); prompts.len() * n],
    };
    Ok(Order {
        jobs: jobs(prompts, params, n),
        delivery,
        echoes,
        n,
    })
}

/// `n` texts for each prompt.
fn jobs(prompts: Vec<Prompt<'_>>, params: Params, n: usize) -> Vec<Job> {
    let (seed, params, mut jobs) = (params.sampling.seed, Arc::new(params), Vec::new());
    for prompt in prompts {
        let prompt: Arc<[u32]> = prompt.tokens.into();
        for _ in 0..n {
            let index = jobs.len();
            jobs.push(Job {
                index,
                prompt: prompt.clone(),
                params: params.clone(),
                seed: params::seed_of(seed, index),
            });
        }
    }
    jobs
}

/// What each of `n` texts for each prompt begins with.
fn echoes(
    fields: &Fields<'_>,
    prompts: &[Prompt<'_>],
    (model, n): (&ServedModel, usize),
) -> Result<Vec<String>, ApiError> {
    let (mut echoes, mut bytes) = (Vec::new(), 0);
    for prompt in prompts {
        let text = match prompt.text {
            Some(text) => text.to_owned(),
            None => {
                let text = model.codec.decode(&prompt.tokens);
                text.map_err(|error| ApiError::internal(with_causes(&error)))?
            }
        };
        bytes += n * text.len();
        if bytes > MAX_ECHO_BYTES {
            let why = format!("would repeat {bytes} bytes of prompts, {MAX_ECHO_BYTES} are possible");
            return Err(fields.wrong("echo", &why));
        }
        echoes.extend(std::iter::repeat_n(text, n));
    }
    Ok(echoes)
}

/// A text, texts, tokens, or lists of tokens, to be continued `n` times each.
fn prompts<'a>(fields: &Fields<'a>, model: &ServedModel, n: usize) -> Result<Vec<Prompt<'a>>, ApiError> {
    let wrong = || {
        let why =
            "must be a string, an array of strings, an array of tokens, or an array of arrays of tokens, none empty";
        fields.wrong("prompt", why)
    };
    // Before any of them is read.
    let counted = |list: &[Value]| {
        let texts = list.len();
        let why = format!("of {texts} texts with n = {n} asks for more than {MAX_CHOICES} at once");
        let few = texts.saturating_mul(n) <= MAX_CHOICES;
        few.then_some(()).ok_or_else(|| fields.wrong("prompt", &why))
    };
    match fields.get("prompt") {
        Some(Value::String(text)) => Ok(vec![of_text(text, model)?]),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => Ok(vec![of_tokens(list, fields, model)?]),
            Some(Value::String(_)) => {
                counted(list)?;
                let text = |value: &'a Value| of_text(value.as_str().ok_or_else(wrong)?, model);
                list.iter().map(text).collect()
            }
            Some(Value::Array(_)) => {
                counted(list)?;
                let tokens = |value: &Value| of_tokens(value.as_array().ok_or_else(wrong)?, fields, model);
                list.iter().map(tokens).collect()
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

fn of_text<'a>(text: &'a str, model: &ServedModel) -> Result<Prompt<'a>, ApiError> {
    let tokens = model.codec.encode(text);
    let tokens = tokens.map_err(|error| ApiError::internal(with_causes(&error)))?;
    if tokens.is_empty() {
        return Err(ApiError::invalid("prompt", "prompt has no tokens"));
    }
    let text = Some(text);
    Ok(Prompt { text, tokens })
}

fn of_tokens(list: &[Value], fields: &Fields<'_>, model: &ServedModel) -> Result<Prompt<'static>, ApiError> {
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
    Ok(Prompt { text: None, tokens })
}
