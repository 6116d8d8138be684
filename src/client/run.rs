//! One generation on its way: embed, step through the swarm, head, sample, until an end token, a stop string, the end of
//! what is allowed, or the length. Whoever asked pulls one token after another.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Client, ClientError, HopReport, Session,
    constraint::Constraint,
    generate::{FinishReason, Generation, Params, Token},
    text::{Piece, TextCodec, TextStream},
};
use crate::model::{Choice, Ends, Hidden, Logprobs, Sampler, Seen};

/// Numbers that are copied or multiplied at once: that takes less time than handing them to another thread and back.
const INLINE_NUMBERS: usize = 1 << 18;

/// Where a generation begins.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// All tokens so far.
    pub(super) prompt: &'a [u32],
    /// A session that has seen some of them, but not the last.
    pub(super) session: Session,
}

/// A session after a generation, and the tokens that its caches hold.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) session: Session,
    pub(super) tokens: Vec<u32>,
}

/// A generation on its way. Dropping it ends its session.
#[derive(Debug)]
pub struct Run {
    client: Client,
    params: Params,
    session: Session,
    /// `None` only while a token is being chosen.
    chooser: Option<Chooser>,
    /// `None` without a tokenizer, and after the end of the text.
    stream: Option<TextStream>,
    /// Prompt and new tokens.
    tokens: Vec<u32>,
    prompt_len: usize,
    reused: usize,
    text: String,
    logprobs: Vec<Logprobs>,
    started: Instant,
    first_token: Option<Duration>,
    last_token: Duration,
    finish: Option<FinishReason>,
}

/// What a choice changes.
#[derive(Debug)]
struct Chooser {
    sampler: Sampler,
    constraint: Option<Constraint>,
}

impl Run {
    pub(super) fn new(
        client: &Client,
        codec: Option<&TextCodec>,
        start: Start<'_>,
        params: &Params,
    ) -> Result<Self, ClientError> {
        if start.prompt.is_empty() {
            return Err(ClientError::EmptyPrompt);
        }
        let chooser = Chooser {
            sampler: Sampler::new(params.sampling.clone())?,
            constraint: params.constraint.as_ref().map(Constraint::afresh),
        };
        Ok(Self {
            client: client.clone(),
            params: params.clone(),
            chooser: Some(chooser),
            stream: codec.map(|codec| codec.stream(start.prompt, &params.stop)),
            tokens: start.prompt.to_vec(),
            prompt_len: start.prompt.len(),
            reused: start.session.position(),
            session: start.session,
            text: String::new(),
            logprobs: Vec::new(),
            started: Instant::now(),
            first_token: None,
            last_token: Duration::ZERO,
            finish: (params.max_new_tokens == 0).then_some(FinishReason::Length),
        })
    }

    /// The next token; `None` after the last one.
    ///
    /// # Errors
    /// As [`Session::step`], and when no token can be chosen. What was handed out before stays right.
    ///
    /// # Cancel safety
    /// None: after the future was dropped the session is over.
    pub async fn next(&mut self) -> Result<Option<Token>, ClientError> {
        if self.finish.is_some() {
            return Ok(None);
        }
        let output = self.step().await?;
        let choice = self.choose(output).await?;
        self.last_token = self.started.elapsed();
        self.first_token.get_or_insert(self.last_token);
        self.tokens.push(choice.token);
        self.logprobs.extend(choice.logprobs.clone());
        let mut text = String::new();
        if self.params.eos_token_ids.contains(&choice.token) {
            self.finish = Some(FinishReason::EndToken(choice.token));
        } else if let Some(stream) = &mut self.stream {
            let piece = stream.push(choice.token)?;
            self.finish = piece.stopped.clone().map(FinishReason::StopText);
            text = piece.text;
        }
        if self.finish.is_none() {
            self.finish = self.end_reached();
        }
        if self.finish.is_some() {
            text.push_str(&self.rest()?.text);
        }
        self.text.push_str(&text);
        Ok(Some(Token {
            id: choice.token,
            text,
            logprobs: choice.logprobs,
            finish: self.finish.clone(),
        }))
    }

    /// The servers in use, in order, with their times so far.
    pub fn route(&self) -> Vec<HopReport> {
        self.session.report()
    }

    /// Hands every token to `on_token`.
    ///
    /// # Errors
    /// As [`Run::next`].
    pub(super) async fn drive(&mut self, on_token: &mut (dyn FnMut(&Token) + Send)) -> Result<(), ClientError> {
        while let Some(token) = self.next().await? {
            on_token(&token);
        }
        Ok(())
    }

    /// What came of it, also before its end, and the session to go on with or to close.
    pub(super) fn end(mut self) -> (Result<Generation, ClientError>, Used) {
        let rest = self.rest();
        let seen = self.tokens[..self.session.position().min(self.tokens.len())].to_vec();
        let generation = rest.map(|rest| {
            self.text.push_str(&rest.text);
            Generation {
                text: self.text,
                // They are gone if the choice of a token was not waited for.
                token_ids: self.tokens.get(self.prompt_len..).unwrap_or_default().to_vec(),
                logprobs: self.logprobs,
                prompt_tokens: self.prompt_len,
                reused_tokens: self.reused,
                time_to_first_token: self.first_token.unwrap_or_default(),
                total_time: self.last_token,
                route: self.session.report(),
                finish_reason: self.finish.unwrap_or(FinishReason::Interrupted),
            }
        });
        let used = Used {
            session: self.session,
            tokens: seen,
        };
        (generation, used)
    }

    fn end_reached(&self) -> Option<FinishReason> {
        let constraint = self.chooser.as_ref().and_then(|chooser| chooser.constraint.as_ref());
        if constraint.is_some_and(Constraint::is_complete) {
            return Some(FinishReason::Complete);
        }
        let new_tokens = self.tokens.len() - self.prompt_len;
        (new_tokens >= self.params.max_new_tokens).then_some(FinishReason::Length)
    }

    /// The text that was held back.
    fn rest(&mut self) -> Result<Piece, ClientError> {
        match self.stream.take() {
            Some(stream) => Ok(stream.finish()?),
            None => Ok(Piece::default()),
        }
    }

    /// Sends the tokens that the session has not seen. A session that reserved more than it needs now is tried again
    /// without that, if servers refuse it.
    async fn step(&mut self) -> Result<Hidden, ClientError> {
        let input = self.embed().await?;
        let needed = self.prompt_len + self.params.max_new_tokens;
        let outcome = self.session.step(input).await;
        let fresh = self.session.position() == 0;
        match outcome {
            Err(ClientError::Refused { .. }) if fresh && self.session.max_length() > needed => {
                self.session = self.client.session(needed);
                let input = self.embed().await?;
                self.session.step(input).await
            }
            outcome => outcome,
        }
    }

    /// Embeddings of the tokens that the session has not seen.
    async fn embed(&self) -> Result<Hidden, ClientError> {
        let ends = self.client.ends.clone();
        let tokens = self.tokens[self.session.position()..].to_vec();
        let n_numbers = tokens.len() * ends.config().hidden_size;
        compute(n_numbers, move || ends.embed(&tokens))
            .await?
            .map_err(ClientError::Compute)
    }

    /// The token that follows the last position of `output`.
    async fn choose(&mut self, output: Hidden) -> Result<Choice, ClientError> {
        let ends = self.client.ends.clone();
        let (tokens, prompt_len) = (std::mem::take(&mut self.tokens), self.prompt_len);
        let eos = self.params.eos_token_ids.clone();
        let mut chooser = self.chooser.take().ok_or(ClientError::Interrupted)?;
        let n_numbers = ends.config().hidden_size * ends.config().vocab_size;
        let (choice, tokens, chooser) = compute(n_numbers, move || {
            let (prompt, new) = tokens.split_at(prompt_len);
            let seen = Seen { prompt, output: new };
            let choice = chooser.choose(&ends, &output, seen, &eos);
            (choice, tokens, chooser)
        })
        .await?;
        self.tokens = tokens;
        self.chooser = Some(chooser);
        choice
    }
}

impl Chooser {
    fn choose(
        &mut self,
        ends: &Arc<Ends>,
        output: &Hidden,
        seen: Seen<'_>,
        eos: &[u32],
    ) -> Result<Choice, ClientError> {
        let last = &output.data[output.data.len() - output.width..];
        let logits = ends.logits(last).map_err(ClientError::Compute)?;
        let Some(constraint) = &mut self.constraint else {
            return Ok(self.sampler.next(&logits, seen, None)?);
        };
        let allowed = constraint.allowed(eos)?;
        let choice = self.sampler.next(&logits, seen, Some(&|token| allowed.has(token)))?;
        if !eos.contains(&choice.token) {
            constraint.accept(choice.token)?;
        }
        Ok(choice)
    }
}

/// Runs `work`, which is about so many numbers: not on an asynchronous thread if they are many.
async fn compute<T: Send + 'static>(
    n_numbers: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ClientError> {
    if n_numbers <= INLINE_NUMBERS {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ClientError::Interrupted)
}
