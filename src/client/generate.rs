//! What to generate, and what came of it. The token loop itself is in `run`.

use std::time::Duration;

use super::{
    Client, ClientError, HopReport, Session, WrongAnswer,
    constraint::Constraint,
    run::{Run, Start},
    speculate::{Guesses, Speculator},
    text::TextCodec,
};
use crate::model::{Logprobs, SamplingParams};

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
    /// What the text has to be like.
    pub constraint: Option<Constraint>,
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// This end token.
    EndToken(u32),
    /// This stop string.
    StopText(String),
    /// The text is all that its constraint allows.
    Complete,
    /// The length that was asked for.
    Length,
    /// Whoever asked for it wanted no more.
    Interrupted,
}

impl FinishReason {
    /// As the API of OpenAI has it: `length` if there would have been more, else `stop`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EndToken(_) | Self::StopText(_) | Self::Complete | Self::Interrupted => "stop",
            Self::Length => "length",
        }
    }
}

/// One new token, as soon as it is chosen.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that is certain now: nothing while a character or a stop string is not complete, and without a codec.
    pub text: String,
    /// How probable it was, if [`SamplingParams::logprobs`] asks.
    pub logprobs: Option<Logprobs>,
    /// With the last token, why it is the last.
    pub finish: Option<FinishReason>,
}

/// A finished generation.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The new text, without what ended it.
    pub text: String,
    /// The new tokens, an end token included.
    pub token_ids: Vec<u32>,
    /// How probable each of them was; empty unless that was asked for.
    pub logprobs: Vec<Logprobs>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the servers had in their caches already.
    pub reused_tokens: usize,
    /// Tokens that were guessed ahead.
    pub guesses: Guesses,
    /// From the call to the first new token.
    pub time_to_first_token: Duration,
    /// From the call to the last new token.
    pub total_time: Duration,
    /// The servers that took part, in order.
    pub route: Vec<HopReport>,
    /// Servers that were found to answer wrongly. Tokens before that, if they were not looked at, may be wrong.
    pub wrong_answers: Vec<WrongAnswer>,
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
    /// Guesses for a session that nothing is known of yet.
    pub(super) fn speculator(&self, session: &Session) -> Speculator {
        let drafter = self.drafts.as_ref().map(|drafts| drafts.drafter(session.max_length()));
        Speculator::new(self.speculate, drafter)
    }

    /// Starts to continue `prompt` (token ids) in a session of its own. Without a `codec` there are tokens and no text, and
    /// stop strings are never found. Nothing is sent before the first [`Run::next`].
    ///
    /// # Errors
    /// No tokens, or parameters out of their range.
    pub fn begin(&self, codec: Option<&TextCodec>, prompt: &[u32], params: &Params) -> Result<Run, ClientError> {
        let session = self.session(prompt.len().saturating_add(params.max_new_tokens));
        let start = Start {
            prompt,
            speculator: self.speculator(&session),
            session,
            idle: None,
        };
        Run::new(self, codec, start, params)
    }

    /// Continues `prompt` in a session of its own and hands each new token to `on_token`.
    ///
    /// # Errors
    /// As [`Client::begin`] and [`Run::next`]; what was handed out before stays right.
    pub async fn generate(
        &self,
        codec: Option<&TextCodec>,
        prompt: &[u32],
        params: &Params,
        on_token: &mut (dyn FnMut(&Token) + Send),
    ) -> Result<Generation, ClientError> {
        let mut run = self.begin(codec, prompt, params)?;
        let outcome = run.drive(on_token).await;
        let (generation, used) = run.end();
        used.session.close().await;
        outcome?;
        generation
    }
}
