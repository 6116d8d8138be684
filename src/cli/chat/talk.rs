//! A conversation: its messages, how the next one is answered, and what is known of the last answer.

use std::{fs, io::Write, path::Path, pin::pin, time::Duration};

use anyhow::{Context, bail};
use serde_json::Value;

use super::super::{
    conversation::{self, message},
    output,
    signals::Interrupts,
};
use crate::{
    client::{ChatTemplate, ClientError, Conversations, FinishReason, Generation, Params, Run, TextCodec, Token},
    model::Sampler,
};

/// A conversation with one model.
#[derive(Debug)]
pub(super) struct Talk {
    conversations: Conversations,
    template: ChatTemplate,
    codec: TextCodec,
    params: Params,
    /// As chat templates have them, the oldest first.
    messages: Vec<Value>,
    last: Option<Generation>,
}

impl Talk {
    pub(super) fn new(
        conversations: Conversations,
        template: ChatTemplate,
        (codec, params): (TextCodec, Params),
        system: Option<&str>,
    ) -> Self {
        let mut talk = Self {
            conversations,
            template,
            codec,
            params,
            messages: Vec::new(),
            last: None,
        };
        talk.set_system(system);
        talk
    }

    /// Answers a message. What could not be answered is not part of the conversation.
    ///
    /// # Errors
    /// The template does not take the conversation, or the swarm does not answer.
    pub(super) async fn say(&mut self, text: &str, interrupts: &mut Interrupts) -> anyhow::Result<()> {
        self.messages.push(message("user", text));
        let answered = self.answer(interrupts).await;
        if answered.is_err() {
            self.messages.pop();
        }
        answered
    }

    /// Answers the last message again, with other random choices.
    ///
    /// # Errors
    /// There is no answer yet, or as [`Talk::say`].
    pub(super) async fn regenerate(&mut self, interrupts: &mut Interrupts) -> anyhow::Result<()> {
        let is_answer = |message: &Value| message["role"] == "assistant";
        let Some(previous) = self.messages.pop_if(|message| is_answer(message)) else {
            bail!("there is no answer yet");
        };
        let answered = self.answer(interrupts).await;
        if answered.is_err() {
            self.messages.push(previous);
        }
        answered
    }

    /// Takes back the last message and its answer.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn undo(&mut self) -> anyhow::Result<()> {
        let last = self.messages.iter().rposition(|message| message["role"] == "user");
        let Some(last) = last else {
            bail!("there is nothing to take back")
        };
        self.messages.truncate(last);
        Ok(())
    }

    /// Forgets all but what the model was told before.
    pub(super) fn reset(&mut self) {
        self.messages.retain(|message| message["role"] == "system");
    }

    /// What the model is told before the conversation.
    pub(super) fn set_system(&mut self, text: Option<&str>) {
        self.messages.retain(|message| message["role"] != "system");
        if let Some(text) = text {
            self.messages.insert(0, message("system", text));
        }
    }

    /// Writes the messages as JSON; a new file is readable by its owner only, as the history is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(&self.messages)?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(path).and_then(|mut file| writeln!(file, "{json}"));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Goes on with the messages of a file.
    ///
    /// # Errors
    /// It cannot be read, or is no conversation.
    pub(super) fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let read = || -> anyhow::Result<Vec<Value>> {
            let messages: Vec<Value> = serde_json::from_slice(&fs::read(path)?)?;
            if messages.iter().all(|message| message["role"].is_string()) {
                Ok(messages)
            } else {
                bail!("it is no list of messages with a role each")
            }
        };
        self.messages = read().with_context(|| format!("cannot load {}", path.display()))?;
        Ok(())
    }

    /// Changes how tokens are chosen from now on.
    ///
    /// # Errors
    /// There is no such parameter, or it cannot have this value.
    pub(super) fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        fn parsed<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<T> {
            let wrong = || anyhow::anyhow!("{name} cannot be {value:?}");
            value.parse().map_err(|_| wrong())
        }
        let mut params = self.params.clone();
        let sampling = &mut params.sampling;
        match name {
            "temperature" => sampling.temperature = parsed(name, value)?,
            "top_k" => sampling.top_k = parsed(name, value)?,
            "top_p" => sampling.top_p = parsed(name, value)?,
            "min_p" => sampling.min_p = parsed(name, value)?,
            "repetition_penalty" => sampling.repetition_penalty = parsed(name, value)?,
            "presence_penalty" => sampling.presence_penalty = parsed(name, value)?,
            "frequency_penalty" => sampling.frequency_penalty = parsed(name, value)?,
            "seed" => sampling.seed = parsed(name, value)?,
            "max_new_tokens" => params.max_new_tokens = parsed(name, value)?,
            _ => bail!("there is no parameter {name}; /help lists those that there are"),
        }
        Sampler::new(params.sampling.clone())?;
        self.params = params;
        Ok(())
    }

    /// The servers of the last answer, and those that are left out.
    pub(super) fn print_route(&self) {
        self.print_hops();
        for server in self.conversations.client().avoided() {
            output::line(server);
        }
    }

    fn print_hops(&self) {
        let Some(last) = &self.last else {
            return output::line("no answer yet");
        };
        for hop in &last.route {
            let blocks = format!("{}:{}", hop.blocks.start, hop.blocks.end);
            let time = hop
                .per_step
                .map_or_else(|| "-".to_owned(), |time| format!("{:.2} ms", milliseconds(time)));
            output::line(format_args!("blocks {blocks:<9} {time:>12} per step  {}", hop.place()));
        }
    }

    /// Tokens and times of the last answer.
    pub(super) fn print_stats(&self) {
        let Some(last) = &self.last else {
            return output::line("no answer yet");
        };
        output::line(format_args!(
            "prompt {} tokens, {} of them known to the servers; answer {} tokens, {:.1} tokens/s, the first after {:.0} ms",
            last.prompt_tokens,
            last.reused_tokens,
            last.token_ids.len(),
            last.tokens_per_second(),
            milliseconds(last.time_to_first_token),
        ));
        let guesses = last.guesses;
        if guesses.drafted > 0 {
            output::line(format_args!(
                "guessed ahead {} tokens in {} steps, {} of them right, {:.1} a step",
                guesses.drafted,
                guesses.steps,
                guesses.accepted,
                guesses.accepted_per_step()
            ));
        }
        if guesses.drafted_by_model > 0 {
            output::line(format_args!(
                "{} of these were guessed by the draft model, {} of them right",
                guesses.drafted_by_model, guesses.accepted_by_model
            ));
        }
        output::line(format_args!("sessions kept open: {}", self.conversations.n_idle()));
    }

    /// Ends all sessions.
    pub(super) async fn close(&self) {
        self.conversations.close().await;
    }

    async fn answer(&mut self, interrupts: &mut Interrupts) -> anyhow::Result<()> {
        let text = conversation::prompt(&self.template, self.messages.clone())?;
        let prompt = self.codec.encode_rendered(&text)?;
        let begun = self.conversations.begin(Some(&self.codec), &prompt, &self.params);
        let mut run = begun.await?;
        let outcome = stream(&mut run, interrupts).await;
        let generation = self.conversations.end(run).await;
        output::line("");
        outcome.context("no answer")?;
        let generation = generation?;
        // The next answer makes other choices.
        self.params.sampling.seed = self.params.sampling.seed.wrapping_add(1);
        self.messages.push(message("assistant", &generation.text));
        match generation.finish_reason {
            FinishReason::Length => output::note("(the answer is cut: /set max_new_tokens allows more)"),
            FinishReason::Interrupted => output::note("(broken off)"),
            _ => {}
        }
        self.last = Some(generation);
        Ok(())
    }
}

/// Shows the answer as it comes. Ctrl-C ends it after the token that is under way, so that the session stays whole; a
/// second one does not wait for that.
async fn stream(run: &mut Run, interrupts: &mut Interrupts) -> Result<(), ClientError> {
    loop {
        let (token, stop) = {
            let mut next = pin!(run.next());
            tokio::select! {
                token = &mut next => (token?, false),
                () = interrupts.next() => tokio::select! {
                    token = &mut next => (token?, true),
                    () = interrupts.next() => return Err(ClientError::Interrupted),
                },
            }
        };
        let Some(Token { text, .. }) = token else { return Ok(()) };
        output::piece(&text);
        if stop {
            return Ok(());
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
