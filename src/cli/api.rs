//! `sepal api`: models of a swarm behind the API of OpenAI, for software that knows that API.

use std::{net::SocketAddr, path::PathBuf, pin::Pin, time::Duration};

use anyhow::Context;
use clap::Args as ClapArgs;
use tokio_util::sync::CancellationToken;

use super::{
    access::AccessArgs,
    caller::CallerArgs,
    control::{self, ControlArgs},
    conversation::ConversationArgs,
    figures::Figures,
    model::Model,
    models::{ForModel, ModelsArgs, of, refuse_stray, stray},
    node::{self, Node},
    otlp, output,
    parsers::{socket_addr, whole},
    signals,
    swarm::SwarmArgs,
};
use crate::{
    client::{ChatError, ChatTemplate, Client, Conversations, Limits, TextCodec},
    control::{Called, Subject},
    http::{self, Api, ApiLimits, Guard, ModelText, Origin, ServedModel},
    task::Tasks,
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    models: ModelsArgs,
    #[command(flatten)]
    swarm: SwarmArgs,
    /// Where to listen. Without --api-keys whoever reaches this address can use the models.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080", value_parser = socket_addr)]
    http: SocketAddr,
    /// Name of the model in requests [default: MODEL, of a folder or file its last part].
    #[arg(long, value_name = "[MODEL=]NAME", value_parser = ForModel::<String>::parse)]
    served_model_name: Vec<ForModel<String>>,
    /// File with a Jinja chat template to use instead of the model's own.
    #[arg(long, value_name = "[MODEL=]FILE", value_parser = ForModel::<PathBuf>::parse, alias = "chat_template")]
    chat_template: Vec<ForModel<PathBuf>>,
    /// Longest prompt and answer together, in tokens [default: what the model was made for].
    #[arg(long, value_name = "[MODEL=]TOKENS", value_parser = ForModel::<usize>::parse, alias = "max-model-len")]
    context_length: Vec<ForModel<usize>>,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    caller: CallerArgs,
    #[command(flatten)]
    control: ControlArgs,
}

/// What ends the command.
pub(super) type Stop = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// How much the API takes on.
#[derive(Clone, Debug, ClapArgs)]
pub(super) struct LimitArgs {
    /// Answers that are generated at the same time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_positive)]
    parallel: usize,
    /// Requests that may wait for that; more are refused at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole::<usize>)]
    queue: usize,
    /// Longest answer in a chat, in tokens, where a request does not say: servers reserve memory for it.
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = parse_positive)]
    default_max_tokens: usize,
    /// Conversations of each model whose sessions stay open on the servers, for when they go on.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole::<usize>)]
    keep_sessions: usize,
    /// How long they stay, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = whole::<u64>)]
    keep_seconds: u64,
    /// Page of another site that may use the API from a browser, such as https://chat.example, or * for all; may be given
    /// several times.
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<Origin>,
}

fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("expected a number, got {text:?}")),
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let asked = CancellationToken::new();
    let mut stop: Stop = Box::pin(signals::stop_requested_or(asked.clone()));
    let models = tokio::select! {
        models = args.resolve() => models?,
        stopped = &mut stop => return stopped,
    };
    let swarm = args.swarm.joined()?;
    // A taken port is said before anything is loaded.
    let listening = http::listen(args.http).await?;
    let tasks = Tasks::new();
    let guard = args.access.guard(&tasks)?;
    let node = node::client(&swarm).await?;
    let served = tokio::select! {
        served = args.connect(&models, &node) => served,
        stopped = &mut stop => stopped.map(|()| Vec::new()),
    };
    let mut control = None;
    let outcome = match served {
        Ok(served) if served.is_empty() => Ok(()),
        Ok(served) => {
            let figures = Figures::of(&node);
            let subject = control::subject("api", (&node, &swarm), &asked).map(|subject| Subject {
                calls: called(&served),
                api: Some(figures.answering()),
                ..subject
            });
            control = args.control.open(subject).await?;
            serve(listening, (served, guard), (&args.limits, figures, &node.tasks), stop).await
        }
        Err(error) => Err(error),
    };
    node.tasks.shutdown().await;
    tasks.shutdown().await;
    control::close(control).await;
    outcome
}

/// What is called for the models of an API.
pub(super) fn called(served: &[ServedModel]) -> Vec<Called> {
    let called = served.iter().map(|model| Called {
        model: model.id().to_owned(),
        directory: model.conversations().client().directory().clone(),
    });
    called.collect()
}

/// Serves `models` until `stop`; then answers under way have a few seconds to end, and sessions are closed.
///
/// # Errors
/// When signals cannot be listened for.
pub(super) async fn serve(
    (listener, site): (tokio::net::TcpListener, http::Site),
    (models, guard): (Vec<ServedModel>, Guard),
    (limits, figures, tasks): (&LimitArgs, Figures, &Tasks),
    stop: Stop,
) -> anyhow::Result<()> {
    for model in &models {
        let context = model
            .context_length()
            .map_or_else(|| "any".to_owned(), |tokens| tokens.to_string());
        let kind = if model.takes_chats() {
            "chat and text"
        } else {
            "text only"
        };
        output::line(format_args!("model {}: {kind}, context {context}", model.id()));
    }
    let conversations: Vec<Conversations> = models.iter().map(|model| model.conversations().clone()).collect();
    // A group of its own: answers need the node until their end.
    let tasks = tasks.child();
    let limits = ApiLimits {
        parallel: limits.parallel,
        queue: limits.queue,
        default_max_tokens: limits.default_max_tokens,
        origins: limits.allow_origin.clone(),
    };
    if guard.is_open() && !site.addr.ip().is_loopback() {
        output::note("anybody who reaches this address can use the models: --api-keys FILE asks for a key");
    }
    let api = Api::new(models, limits, guard, &tasks).telling(figures.own());
    otlp::tell(figures.with_api(&api));
    http::serve_api(listener, api);
    output::line(format_args!("api: http://{}/v1", site.addr));
    output::line(format_args!("chat: http://{}/", site.addr));
    let stopped = stop.await;
    tasks.shutdown().await;
    futures::future::join_all(conversations.iter().map(Conversations::close)).await;
    stopped
}

/// A model as the API serves it.
///
/// # Errors
/// It has no tokenizer, or its chat template cannot be used.
pub(super) async fn served_model(
    model: &Model,
    (id, template): (String, Option<ChatTemplate>),
    client: Client,
    (limits, tasks): (&LimitArgs, &Tasks),
    context_length: Option<usize>,
) -> anyhow::Result<ServedModel> {
    let limits = Limits {
        max_idle: limits.keep_sessions,
        max_idle_time: Duration::from_secs(limits.keep_seconds),
    };
    let conversations = Conversations::new(client, limits, tasks);
    let source = model.source.clone();
    let made = tokio::task::spawn_blocking(move || -> anyhow::Result<ServedModel> {
        let codec = TextCodec::from_json(&source.tokenizer_json()?)?;
        let text = ModelText { codec, template };
        Ok(ServedModel::new(id, &source, text, conversations, context_length))
    });
    made.await.context("interrupted")?
}

/// The template of `model`, or the one in `file`; `None` for a model that was not made to chat.
///
/// # Errors
/// There is one that cannot be read or understood.
pub(super) async fn template_of(model: &Model, file: Option<PathBuf>) -> anyhow::Result<Option<ChatTemplate>> {
    match ConversationArgs::of_template(file).template(model).await {
        Ok(template) => Ok(Some(template)),
        Err(error) => match error.downcast_ref() {
            Some(ChatError::NoTemplate) => Ok(None),
            _ => Err(error),
        },
    }
}

impl Args {
    async fn resolve(&self) -> anyhow::Result<Vec<Model>> {
        let names = self.models.names();
        for (flag, stray) in [
            ("--served-model-name", stray(&self.served_model_name, &names)),
            ("--chat-template", stray(&self.chat_template, &names)),
            ("--context-length", stray(&self.context_length, &names)),
            ("--adapter", stray(&self.caller.adapter, &names)),
            ("--private-ends", stray(&self.caller.private_ends, &names)),
            ("--draft", stray(&self.caller.draft, &names)),
        ] {
            refuse_stray(flag, stray)?;
        }
        self.models.resolve().await
    }

    async fn connect(&self, models: &[Model], node: &Node) -> anyhow::Result<Vec<ServedModel>> {
        let mut served = Vec::new();
        for model in models {
            let file = of(&self.chat_template, &model.name).cloned();
            let template = template_of(model, file).await?;
            let name = of(&self.served_model_name, &model.name).cloned();
            let id = name.unwrap_or_else(|| plain_name(&model.name).to_owned());
            let client = self.caller.connect(model, node).await?;
            let context = of(&self.context_length, &model.name).copied();
            served.push(served_model(model, (id, template), client, (&self.limits, &node.tasks), context).await?);
        }
        Ok(served)
    }
}

/// Nobody who asks over the network has to know where folders of this machine are.
fn plain_name(model: &str) -> &str {
    let is_path = model.starts_with(['.', '/', '~', '\\']);
    let last = model.trim_end_matches('/').rsplit(['/', '\\']).next();
    last.filter(|_| is_path).unwrap_or(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_known_by_their_last_part_only() {
        assert_eq!(plain_name("/home/me/models/tiny/"), "tiny");
        assert_eq!(plain_name("./model.gguf"), "model.gguf");
        assert_eq!(plain_name("org/name"), "org/name");
        assert_eq!(plain_name("demo"), "demo");
    }
}
