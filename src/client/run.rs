//! One generation on its way: embed, step through the swarm, head, sample, until an end token, a stop string, the end of
//! what is allowed, or the length. Whoever asked pulls one token after another; a step whose guesses were right gives
//! several, which wait here.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::debug;

use super::{
    Client, ClientError, HopReport, Session,
    constraint::Constraint,
    generate::{FinishReason, Generation, Params, Token},
    speculate::{self, Draft, Guesses, Speculator},
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
    /// What is known of its steps.
    pub(super) speculator: Speculator,
}

/// A session after a generation, the tokens that its caches hold, and what is known of its steps.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) session: Session,
    pub(super) tokens: Vec<u32>,
    pub(super) speculator: Speculator,
}

/// A generation on its way. Dropping it ends its session.
#[derive(Debug)]
pub struct Run {
    client: Client,
    params: Params,
    session: Session,
    /// `None` only while a token is being chosen.
    chooser: Option<Chooser>,
    speculator: Speculator,
    guesses: Guesses,
    /// Chosen, and not handed out yet; with each whether it had been guessed.
    waiting: VecDeque<(bool, Choice)>,
    /// `None` without a tokenizer, and after the end of the text.
    stream: Option<TextStream>,
    /// Prompt and new tokens that were handed out.
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
            speculator: start.speculator,
            guesses: Guesses::default(),
            waiting: VecDeque::new(),
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
        if self.waiting.is_empty() {
            self.advance().await?;
        }
        let (guessed, choice) = self.waiting.pop_front().ok_or(ClientError::Interrupted)?;
        self.guesses.accepted += usize::from(guessed);
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
        // What was chosen and nobody wanted any more.
        let unwanted = self.session.position() > self.tokens.len();
        let known = !unwanted || self.session.rewind(self.tokens.len());
        let n_seen = if known {
            self.session.position().min(self.tokens.len())
        } else {
            0
        };
        let seen = self.tokens[..n_seen].to_vec();
        let generation = rest.map(|rest| {
            self.text.push_str(&rest.text);
            Generation {
                text: self.text,
                // They are gone if the choice of a token was not waited for.
                token_ids: self.tokens.get(self.prompt_len..).unwrap_or_default().to_vec(),
                logprobs: self.logprobs,
                prompt_tokens: self.prompt_len,
                reused_tokens: self.reused,
                guesses: self.guesses,
                time_to_first_token: self.first_token.unwrap_or_default(),
                total_time: self.last_token,
                route: self.session.report(),
                wrong_answers: self.session.wrong_answers().to_vec(),
                finish_reason: self.finish.unwrap_or(FinishReason::Interrupted),
            }
        });
        let used = Used {
            session: self.session,
            tokens: seen,
            speculator: self.speculator,
        };
        (generation, used)
    }

    fn end_reached(&self) -> Option<FinishReason> {
        let constraint = self.chooser.as_ref().and_then(|chooser| chooser.constraint.as_ref());
        // It is ahead of what was handed out.
        if self.waiting.is_empty() && constraint.is_some_and(Constraint::is_complete) {
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

    /// One step through the swarm, and the tokens that are chosen after it: one, and as many as were guessed right.
    async fn advance(&mut self) -> Result<(), ClientError> {
        let draft = self.draft()?;
        let started = Instant::now();
        let decoding = self.is_decoding();
        let output = self.step(&draft.tokens).await?;
        let before = self.tokens.len();
        let (draft, choices) = self.choose(output, draft).await?;
        let right = choices.len() - 1;
        self.guesses.drafted += draft.tokens.len();
        if decoding {
            let chosen: Vec<u32> = choices.iter().map(|choice| choice.token).collect();
            self.speculator.checked(&draft, &chosen, started.elapsed());
        }
        if right < draft.tokens.len() {
            self.take_back(before + right).await;
        }
        let guesses = draft.tokens.into_iter().map(Some).chain([None]);
        let with_guess = choices.into_iter().zip(guesses);
        self.waiting
            .extend(with_guess.map(|(choice, guess)| (guess == Some(choice.token), choice)));
        Ok(())
    }

    /// Whether the servers lack the last token only.
    fn is_decoding(&self) -> bool {
        self.session.position() > 0 && self.session.position() + 1 == self.tokens.len()
    }

    /// Guesses the next tokens, if the servers can take back wrong ones. No guess is longer than what may still come, so
    /// none needs more of the session than the text itself.
    fn draft(&mut self) -> Result<Draft, ClientError> {
        if !self.is_decoding() || !self.session.can_rewind() {
            return Ok(Draft::default());
        }
        let new_tokens = self.tokens.len() - self.prompt_len;
        let wanted = self.params.max_new_tokens.saturating_sub(new_tokens + 1);
        let room = self.session.max_length().saturating_sub(self.tokens.len());
        let mut draft = self.speculator.draft(&self.tokens, wanted.min(room));
        let mut n = draft.tokens.len();
        if let Some(end) = draft
            .tokens
            .iter()
            .position(|token| self.params.eos_token_ids.contains(token))
        {
            // Nothing follows an end.
            n = end;
        }
        if let Some(constraint) = self.chooser.as_mut().and_then(|chooser| chooser.constraint.as_mut()) {
            n = n.min(constraint.n_allowed(&draft.tokens)?);
        }
        draft.tokens.truncate(n);
        Ok(draft)
    }

    /// Makes the servers forget what follows the first `length` tokens. A server that took over in the middle of a step
    /// may not know how; then the text goes on in a new session.
    async fn take_back(&mut self, length: usize) {
        if self.session.rewind(length) {
            return;
        }
        debug!("a new server does not take tokens back: the session begins anew");
        let fresh = self.client.session(self.session.max_length());
        std::mem::replace(&mut self.session, fresh).close().await;
    }

    /// Sends the tokens that the session has not seen, and `draft`. A session that reserved more than it needs now is
    /// tried again without that, if servers refuse it.
    async fn step(&mut self, draft: &[u32]) -> Result<Hidden, ClientError> {
        let input = self.embed(draft).await?;
        let needed = self.prompt_len + self.params.max_new_tokens;
        let outcome = self.session.step(input).await;
        let fresh = self.session.position() == 0;
        match outcome {
            Err(ClientError::Refused { .. }) if fresh && self.session.max_length() > needed => {
                self.session = self.client.session(needed);
                let input = self.embed(draft).await?;
                self.session.step(input).await
            }
            outcome => outcome,
        }
    }

    /// Embeddings of the tokens that the session has not seen, and of `draft`.
    async fn embed(&self, draft: &[u32]) -> Result<Hidden, ClientError> {
        let ends = self.client.ends.clone();
        let tokens = [&self.tokens[self.session.position()..], draft].concat();
        let n_numbers = tokens.len() * ends.config().hidden_size;
        compute(n_numbers, move || ends.embed(&tokens))
            .await?
            .map_err(ClientError::Compute)
    }

    /// The tokens that follow the last positions of `output`: after the last token that is certain, and after each right
    /// guess.
    async fn choose(&mut self, output: Hidden, draft: Draft) -> Result<(Draft, Vec<Choice>), ClientError> {
        let ends = self.client.ends.clone();
        let (mut tokens, prompt_len) = (std::mem::take(&mut self.tokens), self.prompt_len);
        let eos = self.params.eos_token_ids.clone();
        let mut chooser = self.chooser.take().ok_or(ClientError::Interrupted)?;
        let n_numbers = (1 + draft.tokens.len()) * ends.config().hidden_size * ends.config().vocab_size;
        let (choices, draft, tokens, chooser) = compute(n_numbers, move || {
            let length = tokens.len();
            let choices = chooser.choose(&ends, &output, (&mut tokens, prompt_len), (&draft.tokens, &eos));
            tokens.truncate(length);
            (choices, draft, tokens, chooser)
        })
        .await?;
        self.tokens = tokens;
        self.chooser = Some(chooser);
        Ok((draft, choices?))
    }
}

impl Chooser {
    /// Appends what it chooses to `tokens`. The last choice is no guess, another one than the guess, or an end.
    fn choose(
        &mut self,
        ends: &Arc<Ends>,
        output: &Hidden,
        (tokens, prompt_len): (&mut Vec<u32>, usize),
        (draft, eos): (&[u32], &[u32]),
    ) -> Result<Vec<Choice>, ClientError> {
        let first = output.data.len() - (draft.len() + 1) * output.width;
        // All at once: the weights of the head are read once.
        let logits = ends.logits(&output.data[first..]).map_err(ClientError::Compute)?;
        let mut rows = logits.chunks_exact(ends.config().vocab_size);
        let mut choices = Vec::new();
        speculate::verify(draft, || {
            let (prompt, output) = tokens.split_at(prompt_len);
            let choice = self.next(rows.next().unwrap_or_default(), Seen { prompt, output }, eos)?;
            let token = choice.token;
            tokens.push(token);
            choices.push(choice);
            let complete = self.constraint.as_ref().is_some_and(Constraint::is_complete);
            Ok::<_, ClientError>((token, complete || eos.contains(&token)))
        })?;
        Ok(choices)
    }

    fn next(&mut self, logits: &[f32], seen: Seen<'_>, eos: &[u32]) -> Result<Choice, ClientError> {
        let Some(constraint) = &mut self.constraint else {
            return Ok(self.sampler.next(logits, seen, None)?);
        };
        let allowed = constraint.allowed(eos)?;
        let choice = self.sampler.next(logits, seen, Some(&|token| allowed.has(token)))?;
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
