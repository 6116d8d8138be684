//! The jobs of one worker: which are claimed, which wait, which one runs. Without network and clock.
//!
//! One runs at a time. Those with more priority come first, among equals the oldest; whenever a job is passed over it gains
//! one, so that none waits for ever.

use super::{
    message::{JobClaim, VERSION, WorkOffer},
    order::{GIVEN_AGAIN, HERE_ALREADY, MAX_NEW_TOKENS, MAX_PROMPT, NO_ROOM},
};
use crate::p2p::PeerId;

/// One assignment of a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) submitter: PeerId,
    pub(super) job: String,
    pub(super) attempt: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Start(Key),
    /// Somebody else does it, or nobody wants it any more. [`Queue::finished`] has to follow.
    Stop(Key),
    Refuse(Key, &'static str),
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    priority: i64,
}

/// The jobs of a worker.
#[derive(Debug)]
pub(super) struct Queue {
    model: String,
    room: usize,
    /// Oldest first.
    waiting: Vec<Waiting>,
    running: Option<Key>,
}

impl Queue {
    /// For one model and at most `room` jobs.
    pub(super) fn new(model: String, room: usize) -> Self {
        Self {
            model,
            room,
            waiting: Vec::new(),
            running: None,
        }
    }

    /// Jobs that wait or run.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.running.is_some())
    }

    /// Whether a job is of this worker's model and it has room.
    pub(super) fn claim(&self, submitter: &PeerId, offer: &WorkOffer) -> Option<JobClaim> {
        let fits = offer.model == self.model
            && offer.prompt_bytes as usize <= MAX_PROMPT
            && offer.settings.max_new_tokens <= MAX_NEW_TOKENS;
        (fits && self.len() < self.room).then(|| JobClaim {
            version: VERSION,
            submitter: submitter.to_string(),
            job: offer.job.clone(),
            number: offer.number,
            jobs: self.len() as u32,
        })
    }

    /// A job has come. An earlier attempt of the same job gives way to it.
    pub(super) fn assigned(&mut self, key: Key, priority: i32) -> Vec<Effect> {
        let same = |other: &Key| other.submitter == key.submitter && other.job == key.job;
        let mut effects = Vec::new();
        if let Some(running) = self.running.as_ref().filter(|running| same(running)) {
            if running.attempt >= key.attempt {
                return vec![Effect::Refuse(key, HERE_ALREADY)];
            }
            effects.push(Effect::Stop(running.clone()));
        }
        self.waiting.retain(|waiting| {
            let replaced = same(&waiting.key) && waiting.key.attempt < key.attempt;
            if replaced {
                effects.push(Effect::Refuse(waiting.key.clone(), GIVEN_AGAIN));
            }
            !replaced
        });
        if self.waiting.iter().any(|waiting| same(&waiting.key)) {
            effects.push(Effect::Refuse(key, HERE_ALREADY));
        } else if self.len() >= self.room {
            effects.push(Effect::Refuse(key, NO_ROOM));
        } else {
            self.waiting.push(Waiting {
                key,
                priority: i64::from(priority),
            });
            effects.extend(self.start());
        }
        effects
    }

    /// The submitter is gone, or has given up.
    pub(super) fn gone(&mut self, key: &Key) -> Vec<Effect> {
        self.waiting.retain(|waiting| waiting.key != *key);
        match &self.running {
            Some(running) if running == key => vec![Effect::Stop(key.clone())],
            _ => Vec::new(),
        }
    }

    /// The one that ran does not run any more.
    pub(super) fn finished(&mut self, key: &Key) -> Vec<Effect> {
        if self.running.as_ref() != Some(key) {
            return Vec::new();
        }
        self.running = None;
        self.start().into_iter().collect()
    }

    fn start(&mut self) -> Option<Effect> {
        if self.running.is_some() {
            return None;
        }
        let most = self.waiting.iter().map(|waiting| waiting.priority).max()?;
        let at = self.waiting.iter().position(|waiting| waiting.priority == most)?;
        let next = self.waiting.remove(at);
        for passed in self.waiting.iter_mut().take(at) {
            passed.priority += 1;
        }
        self.running = Some(next.key.clone());
        Some(Effect::Start(next.key))
    }
}
