//! The generations of one request: each in a task of its own, as many at once as the API allows, with their news in one
//! bounded channel. Whoever drops the channel ends them after the token that is under way, so that sessions stay usable.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{error::ApiError, metrics::Metrics, model::ServedModel};
use crate::{
    client::{ClientError, Generation, HopReport, Params, Run, Token},
    task::Tasks,
};

/// Pieces of news that wait for a connection that reads slowly; a generation waits for the connection then.
const MAX_WAITING: usize = 64;
/// How long it waits. Sessions and places must not be held by those who never read.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the token under way is waited for when nobody wants it any more.
const LAST_TOKEN: Duration = Duration::from_secs(10);
/// How long generations may go on when the API stops; shorter than what their connections have.
const STOP_GRACE: Duration = Duration::from_secs(4);
/// How often a route is told while an answer comes.
const ROUTE_PERIOD: Duration = Duration::from_millis(250);

/// How many generations there may be.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    /// For requests, those that wait included.
    places: Arc<Semaphore>,
    /// For generations.
    running: Arc<Semaphore>,
    metrics: Metrics,
}

impl Gate {
    /// So many generations at once, and so many requests that wait besides.
    pub(crate) fn new(parallel: usize, queue: usize, metrics: Metrics) -> Self {
        Self {
            places: Arc::new(Semaphore::new(parallel + queue)),
            running: Arc::new(Semaphore::new(parallel)),
            metrics,
        }
    }

    /// A place for a request.
    ///
    /// # Errors
    /// All are taken.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = self.places.clone().try_acquire_owned();
        place.map_err(|_| ApiError::overloaded())
    }
}

/// One text to generate.
#[derive(Debug)]
pub(crate) struct Job {
    /// Of the choice.
    pub(crate) index: usize,
    /// All choices of a prompt share it.
    pub(crate) prompt: Arc<[u32]>,
    /// All texts of a request share them, but for the seed.
    pub(crate) params: Arc<Params>,
    pub(crate) seed: u64,
}

/// What is new of the texts of a request.
#[derive(Debug)]
pub(crate) enum News {
    Token {
        index: usize,
        token: Token,
        /// Where tokens are computed, from time to time, if that was asked for.
        route: Option<Vec<HopReport>>,
    },
    End {
        index: usize,
        generation: Box<Generation>,
    },
    /// All are over.
    Failed(ApiError),
}

/// The news of one request. Dropping it ends its generations.
#[derive(Debug)]
pub(crate) struct Answers {
    news: mpsc::Receiver<News>,
    running: usize,
    stop: CancellationToken,
}

impl Answers {
    /// Starts the generations of `jobs`. The request keeps its place until all have ended.
    pub(crate) fn start(
        (gate, place): (&Gate, OwnedSemaphorePermit),
        model: &Arc<ServedModel>,
        jobs: Vec<Job>,
        wants_route: bool,
        tasks: &Tasks,
    ) -> Self {
        let (sender, news) = mpsc::channel(MAX_WAITING);
        let running = jobs.len();
        let place = Arc::new(place);
        for job in jobs {
            let worker = Worker {
                model: model.clone(),
                sender: sender.clone(),
                stop: tasks.token(),
                wants_route,
                metrics: gate.metrics.clone(),
            };
            let (gate, place) = (gate.running.clone(), place.clone());
            let answer = async move {
                worker.run(job, gate).await;
                drop(place);
            };
            // The log says which request it is, and so do traces.
            tasks.spawn("answer", answer.in_current_span());
        }
        let stop = tasks.token();
        Self { news, running, stop }
    }

    /// The next piece; `None` when all generations have ended, after their last news or the error that ended them.
    pub(crate) async fn next(&mut self) -> Option<News> {
        if self.running == 0 {
            return None;
        }
        let news = match self.news.recv().await {
            Some(news) => news,
            None => News::Failed(self.broken_off()),
        };
        match &news {
            News::Token { .. } => {}
            News::End { .. } => self.running -= 1,
            News::Failed(_) => self.running = 0,
        }
        Some(news)
    }

    /// Why the news end before the answers do.
    fn broken_off(&self) -> ApiError {
        match self.stop.is_cancelled() {
            true => ApiError::stopping(),
            false => ApiError::internal(format!(
                "the answer ended early: it was not read for {READ_TIMEOUT:?}, or this program has a defect, see its log"
            )),
        }
    }
}

/// What one generation needs.
struct Worker {
    model: Arc<ServedModel>,
    sender: mpsc::Sender<News>,
    stop: CancellationToken,
    wants_route: bool,
    metrics: Metrics,
}

/// Why a generation ends before its end.
enum Interruption {
    /// Nobody reads it.
    Gone,
    Stopping,
}

impl Worker {
    async fn run(self, job: Job, gate: Arc<Semaphore>) {
        let waits = self.metrics.waits();
        let turn = tokio::select! {
            turn = gate.acquire_owned() => turn,
            () = self.sender.closed() => return,
            () = self.stop.cancelled() => return self.tell(News::Failed(ApiError::stopping())).await,
        };
        drop(waits);
        let runs = self.metrics.runs();
        let index = job.index;
        let news = match self.generate(job).await {
            Ok(Some(generation)) => News::End {
                index,
                generation: Box::new(generation),
            },
            Ok(None) => return,
            Err(error) => {
                if error.is_ours() && !self.stop.is_cancelled() {
                    tracing::warn!(model = self.model.id(), error = %error.body()["error"]["message"], "an answer failed");
                }
                News::Failed(error)
            }
        };
        drop((turn, runs));
        self.tell(news).await;
    }

    async fn tell(&self, news: News) {
        drop(self.sender.send_timeout(news, READ_TIMEOUT).await);
    }

    /// `None` if nobody waits for it any more.
    async fn generate(&self, job: Job) -> Result<Option<Generation>, ApiError> {
        let conversations = &self.model.conversations;
        let mut params = Params::clone(&job.params);
        params.sampling.seed = job.seed;
        let begun = conversations.begin(Some(&self.model.codec), &job.prompt, &params);
        let mut run = begun.await?;
        let outcome = self.drive(&mut run, job.index).await;
        // Whatever happened, the session goes back or is closed.
        let generation = conversations.end(run).await;
        if let Ok(generation) = &generation {
            self.metrics.answered(self.model.id(), generation);
        }
        match outcome? {
            None => Ok(Some(generation?)),
            Some(Interruption::Gone) => Ok(None),
            Some(Interruption::Stopping) => Err(ApiError::stopping()),
        }
    }

    /// Pulls token after token and passes them on.
    async fn drive(&self, run: &mut Run, index: usize) -> Result<Option<Interruption>, ClientError> {
        let mut interrupted = pin!(self.interrupted());
        let mut route_told: Option<Instant> = None;
        loop {
            let next = {
                let mut next = pin!(run.next());
                tokio::select! {
                    biased;
                    why = &mut interrupted => {
                        // The session is lost only if this takes too long.
                        if matches!(why, Interruption::Gone) {
                            drop(timeout(LAST_TOKEN, next).await);
                        }
                        return Ok(Some(why));
                    }
                    next = &mut next => next?,
                }
            };
            let Some(token) = next else { return Ok(None) };
            let is_due = route_told.is_none_or(|told| told.elapsed() >= ROUTE_PERIOD);
            let route = (self.wants_route && is_due).then(|| run.route());
            if route.is_some() {
                route_told = Some(Instant::now());
            }
            let news = News::Token { index, token, route };
            if self.sender.send_timeout(news, READ_TIMEOUT).await.is_err() {
                return Ok(Some(Interruption::Gone));
            }
        }
    }

    async fn interrupted(&self) -> Interruption {
        let stopped = async {
            self.stop.cancelled().await;
            sleep(STOP_GRACE).await;
        };
        tokio::select! {
            () = self.sender.closed() => Interruption::Gone,
            () = stopped => Interruption::Stopping,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_told_as_a_stop_only_if_there_is_one() {
        for (is_stopping, code) in [(false, "internal_error"), (true, "shutting_down")] {
            let stop = CancellationToken::new();
            if is_stopping {
                stop.cancel();
            }
            let (sender, news) = mpsc::channel(1);
            drop(sender);
            let mut answers = Answers { news, running: 1, stop };
            let Some(News::Failed(error)) = answers.next().await else {
                panic!("nothing was said");
            };
            assert_eq!(error.body()["error"]["code"], code);
            assert!(answers.next().await.is_none());
        }
    }
}
