//! Works on the jobs of one model: listens, claims, runs one at a time, delivers. The rules are in `queue.rs`.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{
    BEAT, LEASE,
    check::tokens_digest,
    counts::{Counts, End},
    message::{Announce, JobReceipt, Message, VERSION},
    order::{Answer, HERE_ALREADY, MAX_MESSAGE, MAX_NEW_TOKENS, NAME, Order, encode},
    queue::{Effect, Key, Queue},
    topic,
};
use crate::{
    p2p::{Handler, HandlerError, HandlerLimits, Heard, P2p, PeerId, StreamReceiver, StreamSender},
    receipt::Digest,
    task::Tasks,
};

/// How often is looked who is gone.
const TICK: Duration = Duration::from_millis(250);
/// How often others are told what this worker can do.
const ANNOUNCE: Duration = Duration::from_secs(10);
/// Streams of jobs at the same time; those beyond the room are refused on them.
const MAX_STREAMS: usize = 64;
/// Answers that wait for a submitter: beats, and always room for the result.
const ANSWERS: usize = 8;
/// Notes that wait for the worker.
const NOTES: usize = 64;

/// Where jobs are worked on.
#[derive(Clone, Debug)]
pub struct Place {
    /// DHT prefix of the model.
    pub model: String,
    /// Format of its weights.
    pub weights: String,
    /// Jobs that are taken at most, the one that runs included.
    pub room: usize,
}

/// A job at work.
#[derive(Clone, Debug)]
pub struct Running {
    /// What is to be done.
    pub order: Order,
    /// New tokens so far, to be kept up to date by whoever does it.
    pub tokens: Arc<AtomicU32>,
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The new text.
    pub text: String,
    /// The new tokens.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
}

/// Does a job. The future is dropped when nobody wants the result any more.
pub type Executor = Arc<dyn Fn(Running) -> BoxFuture<'static, Result<Output, String>> + Send + Sync>;

/// Works on jobs until `tasks` stop. The handler is to be served on `p2p`, which has to gossip on the topic of the model
/// ([`super::gossip`]); the counts are those of the worker.
pub fn serve(p2p: &P2p, place: Place, executor: Executor, tasks: &Tasks) -> (Handler, Arc<Counts>) {
    let (notes, inbox) = mpsc::channel(NOTES);
    let desk = Desk::new(p2p, place, (executor, tasks), notes.clone());
    let counts = desk.counts.clone();
    tasks.spawn_until_stopped("jobs", desk.run(inbox));
    let limits = HandlerLimits {
        max_calls: MAX_STREAMS,
        max_message: MAX_MESSAGE,
    };
    let handler = Handler::stream(NAME, limits, move |submitter, requests, answers| {
        attend(submitter, requests, answers, notes.clone())
    });
    (handler, counts)
}

/// What the worker learns from streams and jobs.
enum Note {
    Assigned {
        key: Key,
        order: Order,
        answers: mpsc::Sender<Answer>,
    },
    /// `None` if it was stopped.
    Finished {
        key: Key,
        outcome: Option<Result<Output, String>>,
        took: Duration,
    },
}

/// The stream of one job, from its order to its result. Whoever drops this is gone.
async fn attend(
    submitter: PeerId,
    mut requests: StreamReceiver,
    mut replies: StreamSender,
    notes: mpsc::Sender<Note>,
) -> Result<(), HandlerError> {
    let Ok(Ok(Some(first))) = timeout(LEASE, requests.recv()).await else {
        return Ok(());
    };
    let order: Order =
        serde_json::from_slice(&first).map_err(|error| HandlerError::new(format!("not an order: {error}")))?;
    if let Some(why) = order.unfit() {
        return Err(HandlerError::new(format!("the job is refused: {why}")));
    }
    let key = Key {
        submitter,
        job: order.job.clone(),
        attempt: order.attempt,
    };
    let (sender, mut answers) = mpsc::channel(ANSWERS);
    let assigned = Note::Assigned {
        key,
        order,
        answers: sender,
    };
    let stopping = || HandlerError::new("the worker is stopping");
    notes.send(assigned).await.map_err(|_| stopping())?;
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            answer = answers.recv() => {
                let answer = answer.ok_or_else(stopping)?;
                if replies.send(encode(&answer)).await.is_err() || !matches!(answer, Answer::Beat { .. }) {
                    return Ok(());
                }
            }
            said = requests.recv() => match said {
                Ok(Some(_)) => heard = Instant::now(),
                Ok(None) | Err(_) => return Ok(()),
            },
            () = tokio::time::sleep_until(heard + LEASE) => {
                debug!(%submitter, "the submitter of a job is silent");
                return Ok(());
            }
        }
    }
}

/// A job that is here.
struct Open {
    order: Order,
    /// Closed when the submitter is gone.
    answers: mpsc::Sender<Answer>,
    tokens: Arc<AtomicU32>,
    stop: CancellationToken,
}

struct Desk {
    p2p: P2p,
    place: Place,
    topic: String,
    executor: Executor,
    tasks: Tasks,
    queue: Queue,
    open: HashMap<Key, Open>,
    heard: tokio::sync::broadcast::Receiver<Heard>,
    announced: u32,
    counts: Arc<Counts>,
    notes: mpsc::Sender<Note>,
}

impl Desk {
    fn new(p2p: &P2p, place: Place, (executor, tasks): (Executor, &Tasks), notes: mpsc::Sender<Note>) -> Self {
        Self {
            queue: Queue::new(place.model.clone(), place.room),
            topic: topic(&place.model),
            heard: p2p.heard(),
            p2p: p2p.clone(),
            counts: Arc::new(Counts::new(&place.model)),
            place,
            executor,
            tasks: tasks.clone(),
            open: HashMap::new(),
            announced: 0,
            notes,
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Note>) {
        let [mut tick, mut beat, mut announce] = [TICK, BEAT, ANNOUNCE].map(|period| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        loop {
            tokio::select! {
                Some(note) = inbox.recv() => self.on_note(note).await,
                heard = self.heard.recv() => match heard {
                    Ok(heard) => self.on_heard(&heard).await,
                    Err(RecvError::Lagged(missed)) => debug!(missed, "too much gossip"),
                    Err(RecvError::Closed) => return,
                },
                _ = tick.tick() => self.look_who_is_gone(),
                _ = beat.tick() => self.beat(),
                _ = announce.tick() => self.announce().await,
            }
            self.counts.now(self.open.len());
        }
    }

    async fn on_heard(&mut self, heard: &Heard) {
        if heard.topic != self.topic {
            return;
        }
        let Ok((submitter, Message::WorkOffer(offer))) = Message::parse(&heard.message) else {
            return;
        };
        self.counts.offered();
        if let Some(claim) = self.queue.claim(&submitter, &offer) {
            self.counts.claimed();
            debug!(%submitter, job = offer.job, "claims a job");
            self.publish(Message::JobClaim(claim)).await;
        }
    }

    async fn on_note(&mut self, note: Note) {
        match note {
            Note::Assigned { key, order, answers } => {
                if order.model != self.place.model {
                    let why = format!("there are no jobs of {} here", order.model);
                    drop(answers.try_send(Answer::Refused { why }));
                    self.counts.ended(End::Refused);
                    return;
                }
                let priority = order.priority;
                let open = Open {
                    order,
                    answers,
                    tokens: Arc::default(),
                    stop: self.tasks.token().child_token(),
                };
                if self.open.contains_key(&key) {
                    let why = HERE_ALREADY.to_owned();
                    drop(open.answers.try_send(Answer::Refused { why }));
                    self.counts.ended(End::Refused);
                    return;
                }
                self.counts.assigned(&key);
                self.open.insert(key.clone(), open);
                let effects = self.queue.assigned(key, priority);
                self.obey(effects);
            }
            Note::Finished { key, outcome, took } => {
                self.deliver(&key, outcome, took).await;
                let effects = self.queue.finished(&key);
                self.obey(effects);
            }
        }
    }

    fn obey(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Start(key) => self.start(key),
                Effect::Stop(key) => {
                    if let Some(open) = self.open.get(&key) {
                        open.stop.cancel();
                    }
                }
                Effect::Refuse(key, why) => {
                    if let Some(open) = self.open.remove(&key) {
                        self.counts.ended(End::Refused);
                        drop(open.answers.try_send(Answer::Refused { why: why.to_owned() }));
                    }
                }
            }
        }
    }

    fn start(&self, key: Key) {
        let Some(open) = self.open.get(&key) else { return };
        let running = Running {
            order: open.order.clone(),
            tokens: open.tokens.clone(),
        };
        info!(submitter = %key.submitter, job = key.job, attempt = key.attempt, "job starts");
        let (executor, stop, notes) = (self.executor.clone(), open.stop.clone(), self.notes.clone());
        self.tasks.spawn("job", async move {
            let begun = Instant::now();
            let work = AssertUnwindSafe(async move { executor(running).await }).catch_unwind();
            let outcome = stop.run_until_cancelled(work).await;
            let outcome = outcome.map(|done| done.unwrap_or_else(|_| Err("the worker has a defect".to_owned())));
            let took = begun.elapsed();
            // The worker itself has stopped otherwise.
            drop(notes.send(Note::Finished { key, outcome, took }).await);
        });
    }

    /// Hands over what came of a job, if its submitter is still there.
    async fn deliver(&mut self, key: &Key, outcome: Option<Result<Output, String>>, took: Duration) {
        let (Some(open), Some(outcome)) = (self.open.remove(key), outcome) else {
            info!(job = key.job, attempt = key.attempt, "job stopped");
            self.counts.ended(End::Stopped);
            return;
        };
        if open.answers.is_closed() {
            return self.unwanted(key);
        }
        let signed = outcome.and_then(|output| {
            let message = Message::Receipt(self.receipt(key, &open.order, &output, took));
            let receipt = message.sign(self.p2p.identity());
            let receipt = receipt.ok_or_else(|| "the worker cannot sign the receipt".to_owned())?;
            Ok((output, receipt))
        });
        let (Output { text, token_ids, .. }, receipt) = match signed {
            Ok(signed) => signed,
            Err(why) => {
                info!(job = key.job, why, "job failed");
                self.counts.ended(End::Failed);
                drop(open.answers.try_send(Answer::Refused { why }));
                return;
            }
        };
        let delivered = open.answers.try_send(Answer::Result {
            text,
            token_ids,
            receipt: receipt.clone(),
        });
        // Whoever hung up since the look above is not there either.
        if delivered.is_err() {
            return self.unwanted(key);
        }
        info!(job = key.job, attempt = key.attempt, "job done");
        self.counts.ended(End::Done);
        self.say(receipt).await;
    }

    /// A job came to its end, and its submitter is gone.
    fn unwanted(&self, key: &Key) {
        info!(job = key.job, "nobody waits for the result any more");
        self.counts.ended(End::Stopped);
    }

    fn receipt(&self, key: &Key, order: &Order, output: &Output, took: Duration) -> JobReceipt {
        JobReceipt {
            version: VERSION,
            worker: self.p2p.peer_id().to_string(),
            submitter: key.submitter.to_string(),
            job: key.job.clone(),
            attempt: key.attempt,
            model: self.place.model.clone(),
            weights: self.place.weights.clone(),
            settings: order.settings,
            prompt: Digest::of(order.prompt.as_bytes()),
            prompt_tokens: output.prompt_tokens,
            new_tokens: output.token_ids.len() as u32,
            tokens: tokens_digest(&output.token_ids),
            text: Digest::of(output.text.as_bytes()),
            took_ms: took.as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    fn look_who_is_gone(&mut self) {
        let is_gone = |(key, open): (&Key, &Open)| open.answers.is_closed().then(|| key.clone());
        let gone: Vec<Key> = self.open.iter().filter_map(is_gone).collect();
        for key in gone {
            let effects = self.queue.gone(&key);
            // What runs is removed when it has ended.
            if effects.is_empty() && self.open.remove(&key).is_some() {
                self.counts.ended(End::Stopped);
            }
            self.obey(effects);
        }
    }

    fn beat(&self) {
        for open in self.open.values() {
            // One place is for the result.
            if open.answers.capacity() > 1 {
                let tokens = open.tokens.load(Ordering::Relaxed);
                drop(open.answers.try_send(Answer::Beat { tokens }));
            }
        }
    }

    async fn announce(&mut self) {
        let announce = Announce {
            version: VERSION,
            model: self.place.model.clone(),
            weights: self.place.weights.clone(),
            jobs: self.queue.len() as u32,
            room: self.place.room as u32,
            max_new_tokens: MAX_NEW_TOKENS,
            number: self.announced,
        };
        self.announced = self.announced.wrapping_add(1);
        self.publish(Message::Announce(announce)).await;
    }

    async fn publish(&self, message: Message) {
        if let Some(text) = message.sign(self.p2p.identity()) {
            self.say(text).await;
        }
    }

    async fn say(&self, text: String) {
        if let Err(error) = self.p2p.publish(&self.topic, text.into()).await {
            debug!(%error, "a message about jobs is not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        jobs::message::Settings,
        p2p::{Config, Identity},
    };

    #[tokio::test]
    async fn a_result_that_cannot_be_handed_over_is_that_of_a_job_that_nobody_wanted() {
        let tasks = Tasks::new();
        let p2p = P2p::bind(Config::default(), &tasks).await.unwrap();
        let place = Place {
            model: "M-hf".to_owned(),
            weights: "float32".to_owned(),
            room: 1,
        };
        let executor: Executor = Arc::new(|_| async { Err("nothing is done here".to_owned()) }.boxed());
        let (notes, _inbox) = mpsc::channel(NOTES);
        let mut desk = Desk::new(&p2p, place, (executor, &tasks), notes);
        let settings = Settings {
            max_new_tokens: 1,
            temperature_milli: 0,
            seed: 0,
        };
        let order = Order::new("M-hf".to_owned(), "hello".to_owned(), settings, 0);
        let key = Key {
            submitter: Identity::ephemeral().peer_id(),
            job: order.job.clone(),
            attempt: 0,
        };
        // A stream that takes no more, although it is still open.
        let (answers, _stream) = mpsc::channel(1);
        answers.try_send(Answer::Beat { tokens: 0 }).unwrap();
        let open = Open {
            order,
            answers,
            tokens: Arc::default(),
            stop: CancellationToken::new(),
        };
        desk.open.insert(key.clone(), open);
        let output = Output {
            text: "olleh".to_owned(),
            token_ids: vec![1],
            prompt_tokens: 1,
        };
        desk.deliver(&key, Some(Ok(output)), Duration::from_millis(1)).await;
        let expected = Counts::new("M-hf");
        expected.ended(End::Stopped);
        assert_eq!(desk.counts.families(), expected.families());
        tasks.shutdown().await;
    }
}
