//! A text from a model that is all here: the token loop of whoever works alone. Not for the swarm: that one is in `run`.

use super::{LocalModel, LocalSession};
use crate::{
    client::{ClientError, Params, TextCodec},
    model::{Sampler, Seen},
};

/// Tokens of a prompt that are read at once.
const PIECE: usize = 512;

/// What a local model made of a prompt.
#[derive(Clone, Debug, Default)]
pub struct LocalGeneration {
    /// The new text, without what ended it.
    pub text: String,
    /// The new tokens, an end token included.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

impl LocalModel {
    /// Continues `prompt` and tells `on_token` how many tokens there are after each. Constraints are not looked at.
    ///
    /// # Errors
    /// An empty prompt, parameters out of their range, a defect.
    pub async fn generate(
        &self,
        codec: &TextCodec,
        prompt: &str,
        params: &Params,
        on_token: &(dyn Fn(usize) + Send + Sync),
    ) -> Result<LocalGeneration, ClientError> {
        let sampler = Sampler::new(params.sampling.clone())?;
        let prompt = codec.encode(prompt)?;
        let Some((last, before)) = prompt.split_last() else {
            return Err(ClientError::EmptyPrompt);
        };
        let mut session: LocalSession = self.session(prompt.len().saturating_add(params.max_new_tokens));
        for piece in before.chunks(PIECE) {
            session.feed(piece).await?;
        }
        let mut stream = codec.stream(&prompt, &params.stop);
        let mut made = LocalGeneration {
            prompt_tokens: prompt.len(),
            ..LocalGeneration::default()
        };
        let mut newest = *last;
        while made.token_ids.len() < params.max_new_tokens {
            let logits = session.logits(&[newest]).await?;
            let seen = Seen {
                prompt: &prompt,
                output: &made.token_ids,
            };
            newest = sampler.next(&logits, seen, None)?.token;
            made.token_ids.push(newest);
            on_token(made.token_ids.len());
            if params.eos_token_ids.contains(&newest) {
                break;
            }
            let piece = stream.push(newest)?;
            made.text.push_str(&piece.text);
            if piece.stopped.is_some() {
                break;
            }
        }
        made.text.push_str(&stream.finish()?.text);
        Ok(made)
    }
}
