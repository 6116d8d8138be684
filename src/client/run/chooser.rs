//! Logits to tokens of one text: the sampler, what the text has to be like, and how far that is. Servers and sessions it
//! does not know; whoever calls it sees to it that this is not on an asynchronous thread.

use std::sync::Arc;

use crate::{
    client::{
        ClientError,
        constraint::{Constraint, ConstraintError},
        generate::Params,
        speculate,
    },
    model::{Choice, Ends, Hidden, Sampler, SamplingParams, Seen},
};

/// What a choice changes.
#[derive(Debug)]
pub(super) struct Chooser {
    sampler: Sampler,
    /// Chooses the same tokens, but nobody asks how probable they were.
    guesser: Sampler,
    pub(super) constraint: Option<Constraint>,
}

impl Chooser {
    /// # Errors
    /// A parameter is out of its range.
    pub(super) fn new(params: &Params) -> Result<Self, ClientError> {
        let guessing = SamplingParams {
            logprobs: None,
            ..params.sampling.clone()
        };
        Ok(Self {
            sampler: Sampler::new(params.sampling.clone())?,
            guesser: Sampler::new(guessing)?,
            constraint: params.constraint.as_ref().map(Constraint::afresh),
        })
    }

    /// Appends what it chooses to `tokens`. The last choice is no guess, another one than the guess, or an end.
    pub(super) fn choose(
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

    /// What would be chosen if `logits`, which are those of another model, were right, and goes on behind it. `None` for
    /// what ends the text, and where there is no choice. Logits of another model that are no numbers are no choice either.
    ///
    /// # Errors
    /// The form is too complex for the parser.
    pub(super) fn guess(
        &mut self,
        logits: &[f32],
        seen: Seen<'_>,
        eos: &[u32],
    ) -> Result<Option<u32>, ConstraintError> {
        let chosen = match &mut self.constraint {
            Some(constraint) if constraint.is_complete() => return Ok(None),
            Some(constraint) => {
                let allowed = constraint.allowed(eos)?;
                self.guesser.next(logits, seen, Some(&|token| allowed.has(token)))
            }
            None => self.guesser.next(logits, seen, None),
        };
        let token = chosen
            .ok()
            .map(|choice| choice.token)
            .filter(|token| !eos.contains(token));
        if let (Some(constraint), Some(token)) = (&mut self.constraint, token) {
            constraint.accept(token)?;
        }
        Ok(token)
    }

    /// Goes back before the last `n` tokens that were guessed.
    ///
    /// # Errors
    /// The parser does not find back.
    pub(super) fn take_back(&mut self, n: usize) -> Result<(), ConstraintError> {
        self.constraint
            .as_mut()
            .map_or(Ok(()), |constraint| constraint.take_back(n))
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
