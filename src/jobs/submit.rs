//! Submits a job and waits for its result. The rules are in `submission.rs`.

use std::time::Duration;

use thiserror::Error;
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::{
    BEAT, LEASE,
    check::{Delivery, check},
    message::{JobAssign, Message, VERSION},
    order::{Answer, NAME, Order, encode, passes},
    submission::{Effect, Event, Submission},
    topic,
};
use crate::{
    p2p::{Heard, P2p, PeerId},
    task::Tasks,
};

/// How often is looked what is due.
const TICK: Duration = Duration::from_millis(50);
/// Events of streams that wait.
const EVENTS: usize = 64;

/// Why a job has no result.
#[derive(Debug, Error)]
pub enum JobError {
    /// Nobody would take it.
    #[error("the job cannot be submitted: {0}")]
    Unfit(&'static str),
    /// Nobody did it.
    #[error("{why}")]
    NotDone {
        /// What was tried.
        why: String,
    },
    /// The node is stopping.
    #[error("interrupted")]
    Interrupted,
}

/// Has `order` done by somebody; gives up when nobody works on it for `patience`. `p2p` has to gossip on the topic of the
/// model ([`super::gossip`]).
///
/// # Errors
/// When nobody does it, or the node is stopping.
///
/// # Cancel safety
/// Dropping the future ends the job: whoever works on it stops.
pub async fn submit(p2p: &P2p, order: Order, patience: Duration, tasks: &Tasks) -> Result<Delivery, JobError> {
    if let Some(why) = order.unfit() {
        return Err(JobError::Unfit(why));
    }
    let began = Instant::now();
    let (events, inbox) = mpsc::channel(EVENTS);
    let submitting = Submitting {
        submission: Submission::new(patience, Duration::ZERO),
        topic: topic(&order.model),
        p2p: p2p.clone(),
        order,
        tasks: tasks.clone(),
        began,
        events,
        stream: None,
        delivered: None,
    };
    submitting.run(inbox).await
}

/// What is said on the stream of an attempt.
enum Said {
    Beat,
    Result(Box<(String, Vec<u32>, String)>),
    Lost(String),
    Refused(String),
}

struct Submitting {
    p2p: P2p,
    order: Order,
    topic: String,
    tasks: Tasks,
    submission: Submission,
    began: Instant,
    events: mpsc::Sender<(u32, Said)>,
    /// Ends the stream of the attempt when it is dropped.
    stream: Option<(DropGuard, PeerId)>,
    delivered: Option<Delivery>,
}

impl Submitting {
    async fn run(mut self, mut inbox: mpsc::Receiver<(u32, Said)>) -> Result<Delivery, JobError> {
        let mut heard = self.p2p.heard();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.tasks.token();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return Err(JobError::Interrupted),
                Some((attempt, said)) = inbox.recv() => Some(self.on_said(attempt, said)),
                heard = heard.recv() => match heard {
                    Ok(heard) => self.on_heard(&heard),
                    Err(RecvError::Lagged(missed)) => {
                        debug!(missed, "too much gossip");
                        None
                    }
                    Err(RecvError::Closed) => return Err(JobError::Interrupted),
                },
                _ = tick.tick() => Some(Event::Tick),
            };
            let Some(event) = event else { continue };
            for effect in self.submission.on(event, self.began.elapsed()) {
                if let Some(end) = self.obey(effect).await {
                    return end;
                }
            }
        }
    }

    fn on_heard(&self, heard: &Heard) -> Option<Event> {
        if heard.topic != self.topic {
            return None;
        }
        match Message::parse(&heard.message) {
            Ok((worker, Message::JobClaim(claim)))
                if claim.job == self.order.job && claim.submitter == self.p2p.peer_id().to_string() =>
            {
                Some(Event::Claimed {
                    worker,
                    number: claim.number,
                    jobs: claim.jobs,
                })
            }
            _ => None,
        }
    }

    fn on_said(&mut self, attempt: u32, said: Said) -> Event {
        match said {
            Said::Beat => Event::Beat { attempt },
            Said::Lost(why) => Event::Lost { attempt, why },
            Said::Refused(why) => Event::Refused { attempt, why },
            Said::Result(result) => {
                let (text, token_ids, receipt) = *result;
                let current = self.stream.as_ref().filter(|_| attempt == self.order.attempt);
                let Some((_, worker)) = current else {
                    let why = "too late".to_owned();
                    return Event::Lost { attempt, why };
                };
                let parties = (&self.p2p.peer_id(), *worker);
                let checked = check(&self.order, parties, (text, token_ids), receipt);
                let outcome = checked.map(|delivery| self.delivered = Some(delivery));
                if let Err(error) = &outcome {
                    warn!(%worker, %error, "a false result");
                }
                Event::Delivered { attempt, outcome }
            }
        }
    }

    /// Returns what came of the job, if that is its end.
    async fn obey(&mut self, effect: Effect) -> Option<Result<Delivery, JobError>> {
        match effect {
            Effect::Offer { number } => {
                self.publish(Message::WorkOffer(self.order.offer(number))).await;
            }
            Effect::Assign { worker, attempt } => {
                info!(job = self.order.job, %worker, attempt, "job given out");
                self.order.attempt = attempt;
                let assign = JobAssign {
                    version: VERSION,
                    job: self.order.job.clone(),
                    attempt,
                    worker: worker.to_string(),
                };
                self.publish(Message::JobAssign(assign)).await;
                self.open(worker);
            }
            Effect::Drop { attempt } => {
                info!(job = self.order.job, attempt, "job taken back");
                self.stream = None;
            }
            Effect::Done { .. } => return self.delivered.take().map(Ok),
            Effect::Fail { why } => return Some(Err(JobError::NotDone { why })),
        }
        None
    }

    fn open(&mut self, worker: PeerId) {
        let stop = CancellationToken::new();
        let attempt = Attempt {
            p2p: self.p2p.clone(),
            worker,
            order: self.order.clone(),
            events: self.events.clone(),
        };
        self.stream = Some((stop.clone().drop_guard(), worker));
        self.tasks.spawn_until_stopped("job", async move {
            stop.run_until_cancelled(attempt.run()).await;
        });
    }

    async fn publish(&self, message: Message) {
        let Some(text) = message.sign(self.p2p.identity()) else {
            return;
        };
        if let Err(error) = self.p2p.publish(&self.topic, text.into()).await {
            debug!(%error, "a message about jobs is not sent");
        }
    }
}

/// The stream to one worker.
struct Attempt {
    p2p: P2p,
    worker: PeerId,
    order: Order,
    events: mpsc::Sender<(u32, Said)>,
}

impl Attempt {
    async fn run(self) {
        let end = self.work().await.unwrap_or_else(Said::Lost);
        // Nobody waits for it any more otherwise.
        drop(self.events.send((self.order.attempt, end)).await);
    }

    /// What the worker says last.
    ///
    /// # Errors
    /// It is gone, or could not take the job at this moment.
    async fn work(&self) -> Result<Said, String> {
        let stream = self.p2p.open_stream(self.worker, NAME, LEASE).await;
        let (mut requests, mut answers) = stream.map_err(|error| error.to_string())?;
        let sent = requests.send(encode(&self.order)).await;
        sent.map_err(|error| error.to_string())?;
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    let sent = requests.send(encode(&"waiting")).await;
                    sent.map_err(|error| error.to_string())?;
                }
                answer = answers.recv() => {
                    let answer = answer.map_err(|error| error.to_string())?;
                    let answer = answer.ok_or("it ended without a result")?;
                    match serde_json::from_slice(&answer).map_err(|error| format!("not an answer: {error}"))? {
                        Answer::Beat { tokens } => {
                            debug!(job = self.order.job, tokens, "beat");
                            drop(self.events.send((self.order.attempt, Said::Beat)).await);
                        }
                        Answer::Refused { why } if passes(&why) => return Err(why),
                        Answer::Refused { why } => return Ok(Said::Refused(why)),
                        Answer::Result { text, token_ids, receipt } => {
                            return Ok(Said::Result(Box::new((text, token_ids, receipt))));
                        }
                    }
                }
            }
        }
    }
}
