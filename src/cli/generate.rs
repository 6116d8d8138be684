//! `sepal generate`: continues a prompt through the servers of a swarm.

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use serde_json::json;

use super::{
    conversation::{self, ConversationArgs},
    model::{Model, ModelArgs},
    node, output, signals,
    swarm::SwarmArgs,
};
use crate::{
    client::{self, Client, Generation, Params, TextCodec},
    model::SamplingParams,
    swarm::directory::Filter,
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
    /// Text that ends the generation; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Do not let servers send activations straight to each other.
    #[arg(long)]
    no_push: bool,
    /// LoRA adapter to use; only servers that have it are.
    #[arg(long, value_name = "NAME", alias = "active_adapter")]
    adapter: Option<String>,
    /// Failed servers, and pauses for missing blocks, before giving up.
    #[arg(long, value_name = "N", default_value_t = 5, alias = "max_retries")]
    max_retries: usize,
}

/// How tokens are chosen. Everything not given comes from the model's generation_config.json.
#[derive(Debug, Default, ClapArgs)]
pub(super) struct SamplingArgs {
    /// 0 always takes the most likely token.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Only the K most likely tokens; 0 for all.
    #[arg(long, value_name = "K", alias = "top_k")]
    top_k: Option<usize>,
    /// Only the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", alias = "top_p", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// More than 1 makes tokens that were there before less likely.
    #[arg(long, value_name = "R", alias = "repetition_penalty", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Makes sampling repeatable [default: a new one each time].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// # Errors
    /// Names the flag that is out of range.
    pub(super) fn chosen(&self, mut params: SamplingParams) -> anyhow::Result<SamplingParams> {
        if let Some(temperature) = self.temperature {
            if !temperature.is_finite() || temperature < 0.0 {
                bail!("--temperature {temperature} must be 0 or more");
            }
            params.temperature = temperature;
        }
        if let Some(top_p) = self.top_p {
            if !(top_p > 0.0 && top_p <= 1.0) {
                bail!("--top-p {top_p} must be more than 0 and at most 1");
            }
            params.top_p = top_p;
        }
        if let Some(penalty) = self.repetition_penalty {
            if !penalty.is_finite() || penalty <= 0.0 {
                bail!("--repetition-penalty {penalty} must be more than 0");
            }
            params.repetition_penalty = penalty;
        }
        if let Some(top_k) = self.top_k {
            params.top_k = top_k;
        }
        params.seed = self.seed.unwrap_or_else(rand::random);
        Ok(params)
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let model = args.model.resolve().await?;
    // Whoever gives token ids need not have the model's tokenizer; the answer is then token ids as well.
    let codec = match model.source.tokenizer_json() {
        Ok(json) => Some(TextCodec::from_json(&json)?),
        Err(_) if args.prompt.is_none() && args.message.is_none() && args.stop.is_empty() => None,
        Err(error) => return Err(error.into()),
    };
    let params = args.params(&model)?;
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
        output::line(report(&generation));
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
    node.join().await?;
    let config = client::Config {
        push: !args.no_push,
        backoff: client::Backoff {
            max_retries: args.max_retries,
            ..client::Backoff::default()
        },
        filter: Filter {
            adapter: args.adapter.clone(),
            ..Filter::default()
        },
        ..client::Config::new(model.prefix.clone())
    };
    let client = Client::connect(config, &model.source, (node.p2p.clone(), node.dht.clone()), &node.tasks).await?;
    let stream = !args.json;
    let mut on_text = move |text: &str| {
        if stream {
            output::piece(text);
        }
    };
    client
        .generate(codec, prompt, params, &mut on_text)
        .await
        .context("generation failed")
}

impl Args {
    /// The tokens to go on from.
    async fn prompt(&self, model: &Model, codec: Option<&TextCodec>) -> anyhow::Result<Vec<u32>> {
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

    fn params(&self, model: &Model) -> anyhow::Result<Params> {
        let defaults = model.source.generation_config();
        Ok(Params {
            max_new_tokens: self.max_new_tokens,
            sampling: self.sampling.chosen(defaults.sampling())?,
            stop: self.stop.clone(),
            eos_token_ids: defaults.eos_token_ids.clone(),
        })
    }
}

fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn report(generation: &Generation) -> serde_json::Value {
    let route: Vec<_> = generation
        .route
        .iter()
        .map(|hop| {
            json!({
                "peer": hop.peer.to_string(),
                "blocks": format!("{}:{}", hop.blocks.start, hop.blocks.end),
                "ms_per_step": hop.per_step.map(milliseconds),
            })
        })
        .collect();
    json!({
        "text": generation.text,
        "token_ids": generation.token_ids,
        "prompt_tokens": generation.prompt_tokens,
        "tokens_per_second": generation.tokens_per_second(),
        "time_to_first_token_ms": milliseconds(generation.time_to_first_token),
        "route": route,
    })
}
