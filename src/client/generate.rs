//! The token loop: embed, step through the swarm, head, sample, until an end token, a stop string or the length.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Client, ClientError, HopReport, Session,
    text::{Piece, TextCodec, TextStream},
};
use crate::model::{Ends, Hidden, Sampler, SamplingParams};

/// Numbers that are copied or multiplied at once: that takes less time than handing them to another thread and back.
const INLINE_NUMBERS: usize = 1 << 18;

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Params {
    /// Most new tokens.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation; they are not part of its text.
    pub stop: Vec<String>,
    /// Tokens that end the generation.
    pub eos_token_ids: Vec<u32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// The length that was asked for.
    Length,
}

/// A finished generation.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The new text, without what ended it.
    pub text: String,
    /// The new tokens, an end token included.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the call to the first new token.
    pub time_to_first_token: Duration,
    /// From the call to the last new token.
    pub total_time: Duration,
    /// The servers that took part, in order.
    pub route: Vec<HopReport>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

impl Generation {
    /// New tokens per second after the first; 0 when there is only one.
    pub fn tokens_per_second(&self) -> f64 {
        let decode = self.total_time.saturating_sub(self.time_to_first_token).as_secs_f64();
        let tokens = self.token_ids.len().saturating_sub(1);
        if tokens == 0 || decode <= 0.0 {
            0.0
        } else {
            tokens as f64 / decode
        }
    }
}

impl Client {
    /// Continues `prompt` (token ids) in a session of its own and hands each new piece of text to `on_text`. Without a
    /// `codec` there are tokens and no text, and stop strings are never found.
    ///
    /// # Errors
    /// As [`Session::step`]; what was handed out before stays right.
    pub async fn generate(
        &self,
        codec: Option<&TextCodec>,
        prompt: &[u32],
        params: &Params,
        on_text: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Generation, ClientError> {
        if prompt.is_empty() {
            return Err(ClientError::EmptyPrompt);
        }
        let mut run = Run::new(self.ends.clone(), codec, prompt, params)?;
        let mut session = self.session(prompt.len() + params.max_new_tokens);
        let outcome = run.drive(&mut session, on_text).await;
        let route = session.report();
        session.close().await;
        let finish_reason = outcome?;
        Ok(Generation {
            text: run.text,
            token_ids: run.tokens.split_off(prompt.len()),
            prompt_tokens: prompt.len(),
            time_to_first_token: run.first_token.unwrap_or_default(),
            total_time: run.last_token,
            route,
            finish_reason,
        })
    }
}

/// One generation on its way.
struct Run<'a> {
    ends: Arc<Ends>,
    params: &'a Params,
    /// `None` only while a token is being chosen.
    sampler: Option<Sampler>,
    /// `None` without a tokenizer, and after the end of the text.
    stream: Option<TextStream>,
    /// Prompt and new tokens.
    tokens: Vec<u32>,
    prompt_len: usize,
    text: String,
    started: Instant,
    first_token: Option<Duration>,
    last_token: Duration,
}

impl<'a> Run<'a> {
    fn new(
        ends: Arc<Ends>,
        codec: Option<&TextCodec>,
        prompt: &[u32],
        params: &'a Params,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            ends,
            params,
            sampler: Some(Sampler::new(params.sampling.clone())?),
            stream: codec.map(|codec| codec.stream(prompt, &params.stop)),
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            text: String::new(),
            started: Instant::now(),
            first_token: None,
            last_token: Duration::ZERO,
        })
    }

    async fn drive(
        &mut self,
        session: &mut Session,
        on_text: &mut (dyn FnMut(&str) + Send),
    ) -> Result<FinishReason, ClientError> {
        while self.tokens.len() - self.prompt_len < self.params.max_new_tokens {
            let input = self.embed(session.position()).await?;
            let output = session.step(input).await?;
            let token = self.choose(output).await?;
            self.last_token = self.started.elapsed();
            self.first_token.get_or_insert(self.last_token);
            self.tokens.push(token);
            if self.params.eos_token_ids.contains(&token) {
                self.finish_text(on_text)?;
                return Ok(FinishReason::Stop);
            }
            let Some(stream) = &mut self.stream else { continue };
            let piece = stream.push(token)?;
            let stopped = piece.stopped;
            self.show(piece, on_text);
            if stopped {
                return Ok(FinishReason::Stop);
            }
        }
        self.finish_text(on_text)?;
        Ok(FinishReason::Length)
    }

    fn show(&mut self, piece: Piece, on_text: &mut (dyn FnMut(&str) + Send)) {
        if !piece.text.is_empty() {
            on_text(&piece.text);
            self.text.push_str(&piece.text);
        }
    }

    fn finish_text(&mut self, on_text: &mut (dyn FnMut(&str) + Send)) -> Result<(), ClientError> {
        if let Some(stream) = self.stream.take() {
            let piece = stream.finish()?;
            self.show(piece, on_text);
        }
        Ok(())
    }

    /// Embeddings of the tokens from `position` on.
    async fn embed(&self, position: usize) -> Result<Hidden, ClientError> {
        let (ends, tokens) = (self.ends.clone(), self.tokens[position..].to_vec());
        let n_numbers = tokens.len() * ends.config().hidden_size;
        compute(n_numbers, move || ends.embed(&tokens))
            .await?
            .map_err(ClientError::Compute)
    }

    /// The token that follows the last position of `output`.
    async fn choose(&mut self, output: Hidden) -> Result<u32, ClientError> {
        let ends = self.ends.clone();
        let tokens = std::mem::take(&mut self.tokens);
        let mut sampler = self.sampler.take().ok_or(ClientError::Interrupted)?;
        let n_numbers = ends.config().hidden_size * ends.config().vocab_size;
        let (token, tokens, sampler) = compute(n_numbers, move || {
            let last = &output.data[output.data.len() - output.width..];
            let logits = ends.logits(last).map_err(ClientError::Compute);
            let token = logits.and_then(|logits| Ok(sampler.next(&logits, &tokens)?));
            (token, tokens, sampler)
        })
        .await?;
        self.tokens = tokens;
        self.sampler = Some(sampler);
        token
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
