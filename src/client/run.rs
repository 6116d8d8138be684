//! One generation on its way: embed, step through the swarm, head, sample, until an end token, a stop string, the end of
//! what is allowed, or the length. Whoever asked pulls one token after another; a step whose guesses were right gives
//! several, which wait here.

mod chooser;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use self::chooser::Chooser;
use super::{
    Client, ClientError, HopReport, Session,
    constraint::Constraint,
    conversations::IdleSessions,
    generate::{FinishReason, Generation, Params, Token},
    speculate::{Draft, Guesses, Speculator},
    text::{Piece, TextCodec, TextStream},
};
use crate::model::{Choice, Hidden, Logprobs, Seen};

/// Numbers that are copied or multiplied at once: that takes less time than handing them to another thread and back.
const INLINE_NUMBERS: usize = 1 << 18;

/// Multiplications that choosing a token from so many scores is worth, for each of them.
const CHOICE: usize = 16;

/// Where a generation begins.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// All tokens so far.
    pub(super) prompt: &'a [u32],
    /// A session that has seen some of them, but not the last.
    pub(super) session: Session,
    /// What is known of its steps.
    pub(super) speculator: Speculator,
    /// What may be closed for it if servers are full.
    pub(super) idle: Option<IdleSessions>,
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
    idle: Option<IdleSessions>,
    /// `None` only while a token is being chosen.
    chooser: Option<Chooser>,
    speculator: Speculator,
    guesses: Guesses,
    /// Chosen, and not handed out yet; with each what it adds to `guesses`.
    waiting: VecDeque<(Guesses, Choice)>,
    /// `None` without a tokenizer, and after the end of the text.
    stream: Option<TextStream>,
    /// Prompt and new tokens that were handed out.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Whether it was said that the text is longer than the model was made for.
    is_too_long: bool,
    reused: usize,
    text: String,
    logprobs: Vec<Logprobs>,
    started: Instant,
    first_token: Option<Duration>,
    last_token: Duration,
    finish: Option<FinishReason>,
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
        let chooser = Chooser::new(params)?;
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
            is_too_long: false,
            reused: start.session.position(),
            session: start.session,
            idle: start.idle,
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
        self.warn_of_length();
        if self.waiting.is_empty() {
            self.advance().await?;
        }
        let (guessed, choice) = self.waiting.pop_front().ok_or(ClientError::Interrupted)?;
        self.guesses += guessed;
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

    /// Says once when the model has not learned positions as far as the next step's. Nothing forbids these.
    fn warn_of_length(&mut self) {
        let Some(context) = self.client.ends.config().context_length() else {
            return;
        };
        if !self.is_too_long && self.tokens.len() > context {
            self.is_too_long = true;
            warn!(
                "the text is longer than the {context} tokens that the model was made for: what follows may make no sense"
            );
        }
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
        let draft = self.draft().await?;
        let started = Instant::now();
        let decoding = self.is_decoding();
        let output = self.step(&draft.tokens).await?;
        let before = self.tokens.len();
        let (draft, choices) = self.choose(output, draft).await?;
        let right = choices.len() - 1;
        self.guesses += draft.sent();
        if decoding {
            let chosen: Vec<u32> = choices.iter().map(|choice| choice.token).collect();
            self.speculator.checked(&draft, &chosen, started.elapsed());
        }
        if right < draft.tokens.len() {
            self.take_back(before + right).await;
        }
        let guesses = draft.tokens.iter().map(Some).chain([None]);
        self.waiting
            .extend(choices.into_iter().zip(guesses).map(|(choice, guess)| {
                let is_right = guess == Some(&choice.token);
                (if is_right { draft.accepted() } else { Guesses::default() }, choice)
            }));
        Ok(())
    }

    /// Whether the servers lack the last token only.
    fn is_decoding(&self) -> bool {
        self.session.position() > 0 && self.session.position() + 1 == self.tokens.len()
    }

    /// Guesses the next tokens, if the servers can take back wrong ones. No guess is longer than what may still come, so
    /// none needs more of the session than the text itself.
    async fn draft(&mut self) -> Result<Draft, ClientError> {
        if !self.is_decoding() {
            self.speculator.read(&self.tokens);
            return Ok(Draft::default());
        }
        if !self.session.can_rewind() {
            return Ok(Draft::default());
        }
        let new_tokens = self.tokens.len() - self.prompt_len;
        let wanted = self.params.max_new_tokens.saturating_sub(new_tokens + 1);
        let room = self.session.max_length().saturating_sub(self.tokens.len());
        let mut draft = self.speculator.draft(&self.tokens, wanted.min(room)).await;
        if draft.wanted > 0 {
            // Neither an end nor anything that is not allowed.
            draft.tokens = self.ask(draft.wanted).await?;
            return Ok(draft);
        }
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

    /// What the draft model takes for the next tokens, at most `n`: chosen as those of the text are.
    async fn ask(&mut self, n: usize) -> Result<Vec<u32>, ClientError> {
        let (started, length, prompt_len) = (Instant::now(), self.tokens.len(), self.prompt_len);
        let vocab_size = self.client.ends.config().vocab_size;
        let (mut text, eos) = (self.tokens.clone(), self.params.eos_token_ids.clone());
        let mut chooser = self.chooser.take().ok_or(ClientError::Interrupted)?;
        while text.len() < length + n {
            let Some(mut logits) = self.speculator.after(&text).await else {
                break;
            };
            // Either model may have room for tokens that there are not.
            logits.resize(vocab_size, f32::NEG_INFINITY);
            let (seen, ends) = (text.clone(), eos.clone());
            let guess;
            (guess, chooser) = compute(CHOICE * vocab_size, move || {
                let (prompt, output) = seen.split_at(prompt_len);
                (chooser.guess(&logits, Seen { prompt, output }, &ends), chooser)
            })
            .await?;
            match guess? {
                Some(token) => text.push(token),
                None => break,
            }
        }
        let guesses = text.split_off(length);
        chooser.take_back(guesses.len())?;
        self.chooser = Some(chooser);
        self.speculator.asked(guesses.len(), started.elapsed());
        Ok(guesses)
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
    /// tried again without that, if servers refuse it; if they have no room, after those that wait were closed.
    async fn step(&mut self, draft: &[u32]) -> Result<Hidden, ClientError> {
        let input = self.embed(draft).await?;
        let needed = self.prompt_len.saturating_add(self.params.max_new_tokens);
        let outcome = self.session.step(input).await;
        let fresh = self.session.position() == 0;
        match (outcome, &self.idle) {
            (Err(ClientError::Refused { .. }), _) if fresh && self.session.max_length() > needed => {}
            (Err(error), Some(idle)) if fresh && error.lacks_room() => idle.close_all().await,
            (outcome, _) => return outcome,
        }
        self.session = self.client.session(needed);
        let input = self.embed(draft).await?;
        self.session.step(input).await
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
