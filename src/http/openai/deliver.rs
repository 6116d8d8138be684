//! Answers on their way out: one JSON object at the end, or a stream of server-sent events, one per piece. What the objects
//! look like is the [`Writer`]'s.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, stream};
use serde_json::{Value, json};

use super::{
    answers::{Answers, News},
    error::ApiError,
    model::{ServedModel, now},
};
use crate::client::{Generation, HopReport, Token};

/// Silence after which a comment is sent; proxies close what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long the first piece is waited for before the stream begins. Until then an error is a status of its own.
const FIRST_PIECE: Duration = Duration::from_secs(10);
/// The last event of a stream that came to its end.
const DONE: &str = "[DONE]";

/// Makes JSON of news.
pub(crate) trait Writer: Send + 'static {
    /// The pieces of a stream that a token makes.
    fn token(&mut self, index: usize, token: &Token, route: Option<&[HopReport]>) -> Vec<Value>;
    /// The pieces that the end of a text makes.
    fn end(&mut self, index: usize, generation: &Generation) -> Vec<Value>;
    /// The piece behind all texts.
    fn last(&mut self) -> Option<Value>;
    /// Everything in one object.
    fn whole(self) -> Value;
}

/// What all objects of one answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    /// For an answer of this model; `prefix` begins its id.
    pub(crate) fn new(prefix: &str, model: &ServedModel) -> Self {
        Self {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: now(),
            model: model.id.clone(),
        }
    }

    /// An object of this kind with these choices.
    pub(crate) fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("sepal-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }
}

/// Tokens of a request. A prompt counts once, however many choices there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    prompt: usize,
    cached: usize,
    completion: usize,
}

impl Usage {
    /// Adds a text; `is_first` for the first one of its prompt.
    pub(crate) fn add(&mut self, generation: &Generation, is_first: bool) {
        self.completion += generation.token_ids.len();
        if is_first {
            self.prompt += generation.prompt_tokens;
            self.cached += generation.reused_tokens;
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Where tokens are computed: what the extension `sepal` of an answer says while it comes.
pub(crate) fn route_json(route: &[HopReport]) -> Value {
    let hops: Vec<Value> = route
        .iter()
        .map(|hop| {
            json!({
                "peer": hop.place(),
                "blocks": [hop.blocks.start, hop.blocks.end],
                "name": hop.name,
                "ms_per_step": hop.per_step.map(milliseconds),
                "ms_last_step": hop.last_step.map(milliseconds),
            })
        })
        .collect();
    json!({"route": hops})
}

/// What it says at the end: also how long it took, how many tokens were guessed ahead and how many of them right, and which
/// servers are left out for what they did to this API's sessions.
pub(crate) fn whole_route_json(generation: &Generation, model: &ServedModel) -> Value {
    let mut extension = route_json(&generation.route);
    extension["tokens_per_second"] = generation.tokens_per_second().into();
    extension["ms_to_first_token"] = milliseconds(generation.time_to_first_token).into();
    let guesses = &generation.guesses;
    extension["guesses"] = json!({"drafted": guesses.drafted, "accepted": guesses.accepted});
    let avoided = model.conversations.client().avoided();
    let avoided = avoided.iter().map(|server| {
        json!({
            "peer": server.peer.to_string(),
            "name": server.name,
            "seconds_left": server.left.as_secs(),
            "reason": server.reason,
        })
    });
    extension["avoided"] = avoided.collect();
    extension
}

/// All of it at once, or in pieces as they come.
///
/// # Errors
/// What ended a generation; of a stream that has begun it is an event.
pub(crate) async fn deliver(answers: Answers, writer: impl Writer, stream: bool) -> Result<Response, ApiError> {
    if stream {
        in_pieces(answers, writer).await
    } else {
        at_once(answers, writer).await
    }
}

async fn at_once(mut answers: Answers, mut writer: impl Writer) -> Result<Response, ApiError> {
    while let Some(news) = answers.next().await {
        match news {
            News::Token { index, token, route } => drop(writer.token(index, &token, route.as_deref())),
            News::End { index, generation } => drop(writer.end(index, &generation)),
            News::Failed(error) => return Err(error),
        }
    }
    Ok(Json(writer.whole()).into_response())
}

async fn in_pieces(mut answers: Answers, writer: impl Writer) -> Result<Response, ApiError> {
    let mut pieces = Pieces {
        writer,
        ready: VecDeque::new(),
        is_over: false,
        answers: None,
    };
    match tokio::time::timeout(FIRST_PIECE, answers.next()).await {
        Ok(Some(News::Failed(error))) => return Err(error),
        Ok(Some(news)) => pieces.take(news),
        Ok(None) => pieces.close(),
        Err(_) => {}
    }
    pieces.answers = Some(answers);
    Ok(Sse::new(events(pieces))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// The events of a stream, as far as they are known.
struct Pieces<W> {
    writer: W,
    ready: VecDeque<Event>,
    is_over: bool,
    answers: Option<Answers>,
}

impl<W: Writer> Pieces<W> {
    fn take(&mut self, news: News) {
        let pieces = match news {
            News::Token { index, token, route } => self.writer.token(index, &token, route.as_deref()),
            News::End { index, generation } => self.writer.end(index, &generation),
            News::Failed(error) => {
                self.is_over = true;
                vec![error.body()]
            }
        };
        self.ready.extend(pieces.iter().map(event));
    }

    fn close(&mut self) {
        self.ready.extend(self.writer.last().iter().map(event));
        self.ready.push_back(Event::default().data(DONE));
        self.is_over = true;
    }
}

fn events<W: Writer>(pieces: Pieces<W>) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(pieces, |mut pieces| async move {
        loop {
            if let Some(event) = pieces.ready.pop_front() {
                return Some((Ok(event), pieces));
            }
            if pieces.is_over {
                return None;
            }
            match pieces.answers.as_mut()?.next().await {
                Some(news) => pieces.take(news),
                None => pieces.close(),
            }
        }
    })
}

/// A piece as an event. JSON has no line breaks, so that it is one line.
fn event(piece: &Value) -> Event {
    Event::default().data(piece.to_string())
}
