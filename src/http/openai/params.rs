//! What the two ways to generate have in common: how tokens are chosen, where the text ends, how many texts there are.

use serde_json::Value;

use super::{error::ApiError, fields::Fields, model::ServedModel};
use crate::{
    client::Params,
    model::{MAX_LOGPROBS, Sampler, SamplingParams},
};

/// Most texts that one request may ask for, prompts times choices. OpenAI's limit for `n`.
pub(crate) const MAX_CHOICES: usize = 128;
/// Most stop strings; OpenAI takes 4.
const MAX_STOPS: usize = 64;
/// Most tokens of prompt and answer where the model does not say how many it was made for: more than there are models for,
/// and few enough to count with.
const MOST_TOKENS: usize = 1 << 24;
/// OpenAI's range of biases, on both sides of 0.
const MAX_BIAS: f32 = 100.0;

/// What every request may have: what is read, and what the text does not depend on.
const COMMON: [&str; 25] = [
    "model",
    "stream",
    "stream_options",
    "sepal",
    "n",
    "temperature",
    "top_p",
    "min_p",
    "top_k",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "ignore_eos",
    "stop",
    "stop_token_ids",
    "logprobs",
    "max_tokens",
    // Who asks and how it is billed, noted and cached.
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// Refuses what is read nowhere: it may be misspelt, and it may ask for another text.
///
/// # Errors
/// There is something that is neither common to all requests nor among the `own` parameters of this kind.
pub(crate) fn refuse_unknown(fields: &Fields<'_>, own: &[&str]) -> Result<(), ApiError> {
    let is_known = |name: &str| COMMON.contains(&name) || own.contains(&name);
    let mut given = fields.object().iter().filter(|(_, value)| !value.is_null());
    match given.find(|(name, _)| !is_known(name.as_str())) {
        Some((name, _)) => Err(ApiError::invalid(
            name.as_str(),
            format!("unrecognized request argument: {name}"),
        )),
        None => Ok(()),
    }
}

/// How a request is answered, besides what is generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// As server-sent events.
    pub(crate) stream: bool,
    /// The stream ends with the numbers of tokens.
    pub(crate) include_usage: bool,
    /// The answer tells where tokens were computed: an extension, `"sepal": {"route": true}`.
    pub(crate) route: bool,
}

impl Delivery {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let stream = fields.flag("stream")?.unwrap_or(false);
        let options = fields.nested("stream_options")?;
        if options.is_some() && !stream {
            return Err(fields.wrong("stream_options", "is allowed only with stream"));
        }
        let include_usage = match &options {
            Some(options) => options.flag("include_usage")?.unwrap_or(false),
            None => false,
        };
        let route = match fields.nested("sepal")? {
            Some(extension) => extension.flag("route")?.unwrap_or(false),
            None => false,
        };
        Ok(Self {
            stream,
            include_usage,
            route,
        })
    }
}

/// How many texts for each prompt.
pub(crate) fn choices(fields: &Fields<'_>) -> Result<usize, ApiError> {
    Ok(fields.count("n", 1..=MAX_CHOICES)?.unwrap_or(1))
}

/// How tokens are chosen and what ends the text. Length and form are left to the caller.
///
/// # Errors
/// A parameter is malformed or out of its range.
pub(crate) fn params(fields: &Fields<'_>, model: &ServedModel) -> Result<Params, ApiError> {
    let sampling = sampling(fields, model)?;
    Sampler::new(sampling.clone())?;
    let mut eos_token_ids = model.eos_token_ids.clone();
    if fields.flag("ignore_eos")?.unwrap_or(false) {
        eos_token_ids.clear();
    }
    eos_token_ids.extend(stop_tokens(fields)?);
    Ok(Params {
        max_new_tokens: 0,
        sampling,
        stop: stop(fields)?,
        eos_token_ids,
        constraint: None,
    })
}

fn sampling(fields: &Fields<'_>, model: &ServedModel) -> Result<SamplingParams, ApiError> {
    let mut params = model.sampling.clone();
    let number = |name: &str, default: f32| -> Result<f32, ApiError> { Ok(fields.number(name)?.unwrap_or(default)) };
    params.temperature = number("temperature", params.temperature)?;
    params.top_p = number("top_p", params.top_p)?;
    if params.top_p == 0.0 {
        // Allowed by OpenAI: only the most probable token is left.
        params.top_p = f32::MIN_POSITIVE;
    }
    params.min_p = number("min_p", params.min_p)?;
    params.repetition_penalty = number("repetition_penalty", params.repetition_penalty)?;
    params.presence_penalty = penalty(fields, "presence_penalty")?;
    params.frequency_penalty = penalty(fields, "frequency_penalty")?;
    params.top_k = match fields.integer("top_k")? {
        // As vLLM writes that there is no limit.
        Some(-1) => 0,
        Some(_) => fields.count("top_k", 0..=usize::MAX)?.unwrap_or(0),
        None => params.top_k,
    };
    params.seed = match fields.integer("seed")? {
        Some(seed) => seed as u64,
        None => rand::random(),
    };
    params.logit_bias = logit_bias(fields, model.vocab_size)?;
    Ok(params)
}

fn penalty(fields: &Fields<'_>, name: &str) -> Result<f32, ApiError> {
    let penalty = fields.number(name)?.unwrap_or(0.0);
    if (-2.0..=2.0).contains(&penalty) {
        Ok(penalty)
    } else {
        Err(fields.wrong(name, &format!("must be from -2 to 2, not {penalty}")))
    }
}

fn logit_bias(fields: &Fields<'_>, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(biases) = fields.nested("logit_bias")? else {
        return Ok(Vec::new());
    };
    let read = |(token, bias): (&String, &Value)| {
        let id = token.parse::<u32>().ok().filter(|id| (*id as usize) < vocab_size);
        let bias = bias.as_f64().map(|bias| bias as f32);
        match (id, bias.filter(|bias| bias.abs() <= MAX_BIAS)) {
            (Some(id), Some(bias)) => Ok((id, bias)),
            (None, _) => Err(fields.wrong(
                "logit_bias",
                &format!("names {token:?}, which is no token of the model"),
            )),
            (_, None) => Err(fields.wrong("logit_bias", "must have values from -100 to 100")),
        }
    };
    biases.object().iter().map(read).collect()
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let wrong = || {
        fields.wrong(
            "stop",
            &format!("must be a string or up to {MAX_STOPS} strings, none of them empty"),
        )
    };
    let stops: Vec<String> = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => {
            let texts = stops.iter().map(|stop| stop.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    if stops.len() > MAX_STOPS || stops.iter().any(String::is_empty) {
        return Err(wrong());
    }
    Ok(stops)
}

fn stop_tokens(fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let ids = fields.list("stop_token_ids")?.unwrap_or_default();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
    ids.ok_or_else(|| fields.wrong("stop_token_ids", "must be ids of tokens"))
}

/// `top_logprobs` of chats and `logprobs` of completions: how many tokens are told of for each.
pub(crate) fn told_logprobs(fields: &Fields<'_>, name: &str) -> Result<Option<usize>, ApiError> {
    fields.count(name, 0..=MAX_LOGPROBS)
}

/// The seed of one of several texts: other choices for each, the same again for the same seed.
pub(crate) fn seed_of(seed: u64, index: usize) -> u64 {
    seed.wrapping_add(index as u64)
}

/// How many tokens the answer to a prompt of so many may have. `wanted` is what the request says, `default` what is taken
/// without that as far as there is room.
///
/// # Errors
/// They do not fit into the context.
pub(crate) fn length(
    context: Option<usize>,
    prompt: usize,
    wanted: Option<usize>,
    (default, param): (usize, &str),
) -> Result<usize, ApiError> {
    let Some(context) = context else {
        let wanted = wanted.unwrap_or(default);
        if prompt.saturating_add(wanted) <= MOST_TOKENS {
            return Ok(wanted);
        }
        let message = format!("the prompt has {prompt} tokens, with {wanted} more they are over {MOST_TOKENS}");
        return Err(ApiError::too_long(param, message));
    };
    let left = context.saturating_sub(prompt);
    let too_long = |asked: &str| {
        let message = format!("this model's context is {context} tokens, the prompt has {prompt}{asked}");
        ApiError::too_long(param, message)
    };
    match wanted {
        Some(wanted) if wanted > left => Err(too_long(&format!(" and {wanted} more are asked for"))),
        // Nothing is asked for; what could not be computed is not kept and repeated either.
        Some(_) if prompt > context => Err(too_long("")),
        Some(wanted) => Ok(wanted),
        None if left == 0 => Err(too_long(" and leaves no room for an answer")),
        None => Ok(left.min(default)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read<T>(request: Value, read: impl Fn(&Fields<'_>) -> Result<T, ApiError>) -> Result<T, Value> {
        let fields = Fields::of_request(request.as_object().unwrap());
        read(&fields).map_err(|error| error.body()["error"].clone())
    }

    #[test]
    fn stops_are_one_text_or_several() {
        assert_eq!(read(json!({"stop": "a"}), stop).unwrap(), ["a"]);
        assert_eq!(read(json!({"stop": ["a", "b", "c", "d", "e"]}), stop).unwrap().len(), 5);
        assert!(read(json!({"stop": null}), stop).unwrap().is_empty());
        for wrong in [json!(1), json!([1]), json!(""), json!(vec!["x"; 65])] {
            assert_eq!(read(json!({"stop": wrong}), stop).unwrap_err()["param"], "stop");
        }
    }

    #[test]
    fn biases_are_for_tokens_that_there_are() {
        let bias = |request| read(request, |fields| logit_bias(fields, 10));
        assert_eq!(
            bias(json!({"logit_bias": {"9": -100, "2": 1.5}})).unwrap(),
            [(9, -100.0), (2, 1.5)]
        );
        for wrong in [
            json!({"10": 1}),
            json!({"x": 1}),
            json!({"1": 101}),
            json!({"1": "a"}),
            json!([1]),
        ] {
            assert_eq!(bias(json!({"logit_bias": wrong})).unwrap_err()["param"], "logit_bias");
        }
    }

    #[test]
    fn answers_are_as_long_as_there_is_room() {
        let length = |wanted, prompt| length(Some(100), prompt, wanted, (40, "messages"));
        assert_eq!(length(None, 10), Ok(40));
        assert_eq!(length(None, 70), Ok(30));
        assert_eq!(length(Some(90), 10), Ok(90));
        assert_eq!(length(Some(0), 100), Ok(0));
        for (wanted, prompt) in [(Some(91), 10), (None, 100), (Some(1), 100), (Some(0), 101)] {
            let error = length(wanted, prompt).unwrap_err().body();
            assert_eq!(error["error"]["code"], "context_length_exceeded");
            assert_eq!(error["error"]["param"], "messages");
        }
        assert_eq!(super::length(None, 500, None, (40, "prompt")), Ok(40));
        for (prompt, wanted) in [(MOST_TOKENS + 1, 0), (1, MOST_TOKENS), (1, usize::MAX)] {
            let error = super::length(None, prompt, Some(wanted), (40, "prompt")).unwrap_err();
            assert_eq!(error.body()["error"]["code"], "context_length_exceeded");
        }
    }

    #[test]
    fn options_of_a_stream_need_one() {
        let request = json!({"stream": true, "stream_options": {"include_usage": true}, "sepal": {"route": true}});
        let delivery = read(request, Delivery::read).unwrap();
        assert!(delivery.stream && delivery.include_usage && delivery.route);
        let error = read(json!({"stream_options": {}}), Delivery::read).unwrap_err();
        assert_eq!(error["param"], "stream_options");
    }
}
