//! `sepal generate`: continues a prompt through the servers of a swarm.

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use serde_json::json;

use super::{
    caller::CallerArgs,
    conversation::{self, ConversationArgs},
    form::FormArgs,
    model::{Model, ModelArgs},
    node, output,
    sampling::SamplingArgs,
    signals,
    swarm::SwarmArgs,
};
use crate::{
    client::{Generation, Params, TextCodec, Token},
    model::{Logprobs, SamplingParams},
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    swarm: SwarmArgs,
    /// Text to continue.
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present_any = ["prompt_ids", "message"],
        conflicts_with_all = ["prompt_ids", "message"]
    )]
    prompt: Option<String>,
    /// Message to answer instead of a text to continue: the model's chat template is put around it.
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_ids")]
    message: Option<String>,
    #[command(flatten)]
    conversation: ConversationArgs,
    /// Token ids to continue instead of a text, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    prompt_ids: Vec<u32>,
    /// Print one JSON object at the end instead of the text as it comes.
    #[arg(long)]
    json: bool,
    /// Most new tokens.
    #[arg(long, value_name = "N", default_value_t = 128, alias = "max_new_tokens")]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Tell how probable each token was, with --json: the N most probable ones, before penalties and filters.
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    #[command(flatten)]
    form: FormArgs,
    /// Text that ends the generation; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    caller: CallerArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let model = args.model.resolve().await?;
    // Whoever gives token ids need not have the model's tokenizer; the answer is then token ids as well.
    let codec = match model.source.tokenizer_json() {
        Ok(json) => Some(TextCodec::from_json(&json)?),
        Err(_) if args.prompt.is_none() && args.message.is_none() && args.stop.is_empty() => None,
        Err(error) => return Err(error.into()),
    };
    let params = args.params(&model, codec.as_ref())?;
    let prompt = args.prompt(&model, codec.as_ref()).await?;
    let vocab_size = model.source.config().vocab_size;
    if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab_size) {
        bail!(
            "--prompt-ids: {id} is not a token of {}, which has {vocab_size}",
            model.name
        );
    }
    let node = node::client(&args.swarm.joined()?).await?;
    let outcome = tokio::select! {
        outcome = generate(&args, &model, &node, (codec.as_ref(), &prompt, &params)) => outcome,
        stopped = signals::stop_requested() => stopped.and_then(|()| bail!("interrupted")),
    };
    node.tasks.shutdown().await;
    let generation = outcome?;
    if args.json {
        output::line(report(&generation, codec.as_ref()));
    } else {
        output::line("");
    }
    Ok(())
}

async fn generate(
    args: &Args,
    model: &Model,
    node: &node::Node,
    (codec, prompt, params): (Option<&TextCodec>, &[u32], &Params),
) -> anyhow::Result<Generation> {
    let client = args.caller.connect(model, node).await?;
    let stream = !args.json;
    let mut on_token = move |token: &Token| {
        if stream {
            output::piece(&token.text);
        }
    };
    client
        .generate(codec, prompt, params, &mut on_token)
        .await
        .context("generation failed")
}

impl Args {
    /// The tokens to go on from.
    async fn prompt(&self, model: &Model, codec: Option<&TextCodec>) -> anyhow::Result<Vec<u32>> {
        if self.message.is_none() && self.conversation.is_given() {
            bail!("--system and --chat-template need --message");
        }
        let Some(codec) = codec else {
            return Ok(self.prompt_ids.clone());
        };
        if let Some(text) = &self.prompt {
            return Ok(codec.encode(text)?);
        }
        let Some(message) = &self.message else {
            return Ok(self.prompt_ids.clone());
        };
        let template = self.conversation.template(model).await?;
        let system = self.conversation.system.iter();
        let mut messages: Vec<_> = system.map(|text| conversation::message("system", text)).collect();
        messages.push(conversation::message("user", message));
        Ok(codec.encode_rendered(&conversation::prompt(&template, messages)?)?)
    }

    fn params(&self, model: &Model, codec: Option<&TextCodec>) -> anyhow::Result<Params> {
        let defaults = model.source.generation_config();
        let sampling = SamplingParams {
            logprobs: self.logprobs,
            ..self.sampling.chosen(defaults.sampling())?
        };
        Ok(Params {
            max_new_tokens: self.max_new_tokens,
            sampling,
            stop: self.stop.clone(),
            eos_token_ids: defaults.eos_token_ids.clone(),
            constraint: self.form.constraint(model, codec)?,
        })
    }
}

fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn report(generation: &Generation, codec: Option<&TextCodec>) -> serde_json::Value {
    let route: Vec<_> = generation
        .route
        .iter()
        .map(|hop| {
            json!({
                "peer": hop.place(),
                "blocks": format!("{}:{}", hop.blocks.start, hop.blocks.end),
                "ms_per_step": hop.per_step.map(milliseconds),
                "verified_steps": hop.verified,
            })
        })
        .collect();
    let probable = |(logprobs, id): (&Logprobs, &u32)| {
        let entry = |id: u32, logprob: f32| {
            let token = codec.and_then(|codec| codec.decode(&[id]).ok());
            json!({"id": id, "token": token, "logprob": logprob})
        };
        let mut chosen = entry(*id, logprobs.chosen);
        chosen["top_logprobs"] = logprobs.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
        chosen
    };
    let logprobs = generation.logprobs.iter().zip(&generation.token_ids).map(probable);
    let logprobs: Vec<_> = logprobs.collect();
    let wrong_answers = generation.wrong_answers.iter().map(|wrong| {
        json!({
            "peer": wrong.peer.to_string(),
            "blocks": format!("{}:{}", wrong.blocks.start, wrong.blocks.end),
            "noticed_after_tokens": wrong.position,
        })
    });
    json!({
        "text": generation.text,
        "token_ids": generation.token_ids,
        "logprobs": (!logprobs.is_empty()).then_some(logprobs),
        "finish_reason": generation.finish_reason.name(),
        "prompt_tokens": generation.prompt_tokens,
        "drafted_tokens": generation.guesses.drafted,
        "accepted_tokens": generation.guesses.accepted,
        "drafted_by_model": generation.guesses.drafted_by_model,
        "accepted_by_model": generation.guesses.accepted_by_model,
        "accepted_per_step": generation.guesses.accepted_per_step(),
        "tokens_per_second": generation.tokens_per_second(),
        "time_to_first_token_ms": milliseconds(generation.time_to_first_token),
        "route": route,
        "wrong_answers": wrong_answers.collect::<Vec<_>>(),
    })
}
