//! `sepal chat`: a conversation in a terminal, or through a pipe, one message a line. Lines that begin with `/` are
//! commands; Ctrl-C breaks off an answer, Ctrl-D ends.

mod commands;
mod input;
mod talk;

use clap::Args as ClapArgs;

use self::{
    commands::{Command, HELP, Setting},
    input::{Input, Line},
    talk::Talk,
};
use super::{
    caller::CallerArgs,
    conversation::ConversationArgs,
    model::ModelArgs,
    node::{self, Node},
    output,
    sampling::SamplingArgs,
    signals::Interrupts,
    swarm::SwarmArgs,
};
use crate::client::{Conversations, Limits, TextCodec};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    swarm: SwarmArgs,
    #[command(flatten)]
    conversation: ConversationArgs,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 512, alias = "max_new_tokens")]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    caller: CallerArgs,
}

/// It is one conversation: a session that it does not continue is of no use any more.
fn limits() -> Limits {
    Limits {
        max_idle: 1,
        ..Limits::default()
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let model = args.model.resolve().await?;
    let template = args.conversation.template(&model).await?;
    let codec = TextCodec::from_json(&model.source.tokenizer_json()?)?;
    let defaults = model.source.generation_config();
    let params = crate::client::Params {
        max_new_tokens: args.max_new_tokens,
        sampling: args.sampling.chosen(defaults.sampling())?,
        eos_token_ids: defaults.eos_token_ids.clone(),
        ..crate::client::Params::default()
    };
    let node = node::client(&args.swarm.joined()?).await?;
    let mut interrupts = Interrupts::listen()?;
    let outcome = tokio::select! {
        client = args.caller.connect(&model, &node) => match client {
            Ok(client) => Ok(Conversations::new(client, limits(), &node.tasks)),
            Err(error) => Err(error),
        },
        () = interrupts.next() => Err(anyhow::anyhow!("interrupted")),
    };
    let outcome = match outcome {
        Ok(conversations) => {
            let talk = Talk::new(
                conversations,
                template,
                (codec, params),
                args.conversation.system.as_deref(),
            );
            converse(talk, &mut interrupts, &node).await
        }
        Err(error) => Err(error),
    };
    node.tasks.shutdown().await;
    outcome
}

/// Message after message until the input ends.
async fn converse(mut talk: Talk, interrupts: &mut Interrupts, node: &Node) -> anyhow::Result<()> {
    let mut input = Input::open()?;
    if input.is_terminal() {
        output::line("Ask something. /help lists the commands, Ctrl-C breaks off an answer, Ctrl-D ends.");
    }
    let outcome = loop {
        let line = match input.next(interrupts).await {
            Ok(Line::Text(line)) => line,
            Ok(Line::Nothing) => continue,
            Ok(Line::End) => break Ok(()),
            Err(error) => break Err(error),
        };
        match obey(&mut talk, &line, interrupts).await {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            // A person goes on; a script must notice.
            Err(error) if input.is_terminal() => output::error(&error),
            Err(error) => break Err(error),
        }
    };
    talk.close().await;
    drop(input);
    tracing::debug!(peer = %node.p2p.peer_id(), "chat ends");
    outcome
}

/// Does what one line says. `false` ends the conversation.
async fn obey(talk: &mut Talk, line: &str, interrupts: &mut Interrupts) -> anyhow::Result<bool> {
    match Command::parse(line)? {
        Command::Say(text) => talk.say(&text, interrupts).await?,
        Command::Help => output::line(HELP),
        Command::Reset => talk.reset(),
        Command::System(text) => talk.set_system(text.as_deref()),
        Command::Save(path) => talk.save(&path)?,
        Command::Load(path) => talk.load(&path)?,
        Command::Route => talk.print_route(),
        Command::Stats => talk.print_stats(),
        Command::Set(Setting { name, value }) => talk.set(&name, &value)?,
        Command::Regenerate => talk.regenerate(interrupts).await?,
        Command::Undo => talk.undo()?,
        Command::Quit => return Ok(false),
    }
    Ok(true)
}
